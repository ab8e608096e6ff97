"""A served run and a headless Chromium that looks at it; skipped, with the reason, where either is missing."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.imfa_run import imfa_run
from zscmr_ray.config import Config
from zscmr_ray.serving.app import open_service
from zscmr_ray.serving.routes import http_app

KEY = "only for this test"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright: pip install -c constraints.txt -e '.[browser]'"
    )
    program = next(
        (found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None
    )
    if program is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """24 pictures of three classes, with region weights and kept regions."""
    return imfa_run(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="session")
def url(run: Config) -> Iterator[str]:
    """The run's service, open."""
    with served(run) as found:
        yield found


@pytest.fixture(scope="session")
def locked_url(run: Config) -> Iterator[str]:
    """The same, behind an API key."""
    with served(run, KEY) as found:
        yield found


@contextlib.contextmanager
def served(config: Config, *api_keys: str) -> Iterator[str]:
    """Serve in a thread on a free port of loopback."""
    import uvicorn

    service = open_service(config)
    app = http_app(service, config.serve, api_keys=api_keys)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
    service.close()


class Visit:
    """A page, with what it asked for and what it complained about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requested: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        # A refused answer is the service's word (a 4xx); everything else on the console is the page's fault.
        page.on(
            "console",
            lambda said: (
                None
                if said.type != "error" or "status of 4" in said.text
                else self.complaints.append(said.text)
            ),
        )


@pytest.fixture
def visit(browser: Any, url: str) -> Iterator[Visit]:
    """A desktop visit to the open service; ends with no complaint and nothing fetched from elsewhere."""
    yield from visited(browser, url)


@pytest.fixture
def phone_visit(browser: Any, url: str) -> Iterator[Visit]:
    """The same at a phone's width."""
    yield from visited(browser, url, viewport={"width": 390, "height": 844}, has_touch=True)


@pytest.fixture
def locked_visit(browser: Any, locked_url: str) -> Iterator[Visit]:
    """A visit to the service with a key."""
    yield from visited(browser, locked_url)


def visited(browser: Any, url: str, **options: Any) -> Iterator[Visit]:
    """Open a page of its own context."""
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    visit = Visit(context.new_page())
    visit.page.goto(url)
    yield visit
    context.close()
    assert visit.complaints == []
    assert {address for address in visit.requested if not address.startswith((url, "blob:"))} == set()
