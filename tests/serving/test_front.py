"""HAProxy as Serve starts it for us: to this machine only, gone with its parent. In front of a service: test_app.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving.served import listens_on
from zscmr_ray.config import RaySection
from zscmr_ray.serving.front import free_ports, http_front

ENDS_IN_S = 30.0


CONFIG = """global
    stats socket {folder}/admin mode 666 level admin
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    errorfile 503 {folder}/serves-own.http
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind 127.0.0.1:{port}
    use_backend replicas if {{ path_beg /v1 }}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \'%[path]\' not found."
backend replicas
    server python-proxy 127.0.0.1:{stats} check backup
listen stats
  bind *:{stats}
"""


@dataclass(frozen=True)
class Front:
    """How to start HAProxy as Serve does, with a configuration like Serve's, and where it will listen."""

    command: list[str]
    port: int
    others: tuple[int, int]
    admin: Path


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    for name in ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_HAPROXY_BINARY_PATH"):
        # Set where another test's Ray is up.
        monkeypatch.delenv(name, raising=False)
    (port,) = free_ports(1)
    with http_front(RaySection()):
        metrics = int(os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"])
        stats = int(os.environ["RAY_SERVE_HAPROXY_STATS_PORT"])
        config = Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
        folder = config.parent
        config.write_text(CONFIG.format(folder=folder, metrics=metrics, stats=stats, port=port))
        (folder / "serves-own.http").write_text("HTTP/1.1 500 Internal Server Error\r\n\r\n")
        command = [os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config)]
        yield Front(command, port, (metrics, stats), folder / "admin")


def test_what_serve_leaves_open_is_closed_and_no_replica_is_a_503_that_says_when_to_come_back(
    front: Front,
) -> None:
    with subprocess.Popen(front.command) as process:
        try:
            answers = [retried(f"http://127.0.0.1:{front.port}{path}") for path in ("/v1/search", "/other")]
            assert listens_on(psutil.Process(process.pid)) == {
                ("127.0.0.1", number) for number in (front.port, *front.others)
            }
            assert front.admin.stat().st_mode & 0o077 == 0
        finally:
            process.terminate()
    for answer in answers:
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "3"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["title"] == "the service is busy"


PARENT = "import subprocess, sys; child = subprocess.Popen(sys.argv[1:]); print(child.pid, flush=True); child.wait()"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (util-linux) on this machine")
def test_it_ends_with_the_process_that_started_it(front: Front) -> None:
    command = [sys.executable, "-c", PARENT, *front.command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        haproxy = psutil.Process(int(parent.stdout.readline()))
        retried(f"http://127.0.0.1:{front.port}/")
        parent.kill()
    _, alive = psutil.wait_procs([haproxy], timeout=ENDS_IN_S)
    assert not alive


def retried(url: str) -> httpx.Response:
    """The answer, once HAProxy listens."""
    end_s = time.monotonic() + ENDS_IN_S
    while True:
        try:
            return httpx.get(url)
        except httpx.ConnectError:
            assert time.monotonic() < end_s
            time.sleep(0.05)


@pytest.mark.parametrize(("switch", "address"), [("0", None), (None, "127.0.0.1:6379")])
def test_a_users_own_choice_and_a_ray_that_runs_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, switch: str | None, address: str | None
) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    if switch is not None:
        monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", switch)
    before = dict(os.environ)
    with http_front(RaySection(address=address)):
        assert dict(os.environ) == before


def test_a_folder_that_may_not_hold_programs_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    monkeypatch.delenv("RAY_SERVE_HAPROXY_BINARY_PATH", raising=False)
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).startswith("/tmp/zh"))
    before = dict(os.environ)
    with http_front(RaySection()):
        assert dict(os.environ) == before
    assert "without HAProxy" in capsys.readouterr().err
