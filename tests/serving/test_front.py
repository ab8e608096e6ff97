"""The way in of a service on a Ray of its own: HAProxy, to this machine only, gone when Ray is."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.own_ray import own_ray
from tests.serving.served import make_served_run
from zscmr_ray.config import Config, RaySection
from zscmr_ray.serving.app import running
from zscmr_ray.serving.front import free_ports, http_front

pytestmark = pytest.mark.ray

ENDS_IN_S = 30.0


@pytest.fixture(scope="module")
def served_run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_served_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def ray_here() -> Iterator[list[psutil.Process]]:
    """A Ray of this module's own; gives a list for the processes that must not outlive it."""
    found: list[psutil.Process] = []
    with own_ray(num_cpus=2, object_store_bytes=100_000_000):
        yield found
    _, alive = psutil.wait_procs(found, timeout=ENDS_IN_S)
    assert not alive, "HAProxy outlived its Ray"


def haproxies() -> list[psutil.Process]:
    """The HAProxy processes of this block."""
    folder = str(front_folder())
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "haproxy" and folder in " ".join(process.info["cmdline"] or ())
    ]


def addresses(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    """Where they listen."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def front_folder() -> Path:
    return Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent


def test_requests_come_through_haproxy_which_listens_on_loopback_only(
    served_run: Config, ray_here: list[psutil.Process]
) -> None:
    with running(served_run) as url:
        question = {"query": {"text": "caption"}, "target": "text", "k": 2}
        answer = httpx.post(f"{url}/v1/search", json=question, timeout=30.0)
        assert answer.status_code == 200, answer.text
        ray_here += haproxies()
        listening = addresses(ray_here)
        assert int(url.rpartition(":")[2]) in {port for _, port in listening}
        assert {host for host, _ in listening} == {"127.0.0.1"}
        (admin,) = front_folder().glob("*/admin")
        assert admin.stat().st_mode & 0o077 == 0


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


def test_what_serve_leaves_open_is_closed_and_no_replica_is_a_503_that_says_when_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Set where another test's Ray is up.
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    (port,) = free_ports(1)
    with http_front(RaySection()):
        metrics = int(os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"])
        stats = int(os.environ["RAY_SERVE_HAPROXY_STATS_PORT"])
        config = front_folder() / "haproxy.cfg"
        config.write_text(CONFIG.format(folder=front_folder(), metrics=metrics, stats=stats, port=port))
        (front_folder() / "serves-own.http").write_text("HTTP/1.1 500 Internal Server Error\r\n\r\n")
        script = os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
        with subprocess.Popen([script, "-db", "-f", str(config)]) as process:
            try:
                answers = [retried(f"http://127.0.0.1:{port}{path}") for path in ("/v1/search", "/other")]
                assert addresses([psutil.Process(process.pid)]) == {
                    ("127.0.0.1", number) for number in (metrics, stats, port)
                }
                assert (front_folder() / "admin").stat().st_mode & 0o077 == 0
            finally:
                process.terminate()
    for answer in answers:
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "3"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["title"] == "the service is busy"


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
