"""What the serving benchmarks share: the service for a block, a lean HTTP client, and open and closed loads of requests.

The client is plain asyncio sockets with keep-alive: a library client costs as much CPU as the service it measures, and the
generator shares this machine with it. Its CPU share is in every result.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from zscmr_ray.config import Config, RaySection


@contextmanager
def served(config: Config) -> Any:
    """The service on a Ray of this process's own; gives its URL."""
    from zscmr_ray.cli.session import ray_session
    from zscmr_ray.serving.app import running
    from zscmr_ray.serving.front import http_front

    with TemporaryDirectory(prefix="zb", ignore_cleanup_errors=True) as temp:
        section = RaySection(num_cpus=8, object_store_bytes=200_000_000, temp_dir=temp)
        with http_front(section), ray_session(section), running(config) as url:
            yield url


def replica_bytes() -> int:
    """Resident memory of the replicas that this process's Ray runs (Linux)."""
    parents: dict[int, int] = {}
    held: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
            name = (folder / "cmdline").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(status.partition("PPid:")[2].split(maxsplit=1)[0])
        if "ServeReplica" in name and "VmRSS:" in status:
            held[int(folder.name)] = int(status.partition("VmRSS:")[2].split(maxsplit=1)[0]) << 10
    return sum(size for pid, size in held.items() if _is_below(pid, parents))


def _is_below(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        pid = parents.get(pid, 0)
        if pid == os.getpid():
            return True
    return False


@dataclass(frozen=True)
class Answer:
    """One request's end: status (0 = none came), seconds, and Retry-After."""

    status: int
    seconds: float
    retry_after: str | None = None


@dataclass
class Connection:
    """One keep-alive connection; opened again when it broke."""

    host: str
    port: int
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None)

    async def ask(self, head: bytes, body: bytes, *, timeout_s: float = 60.0) -> Answer:
        """Send one request and read its answer whole."""
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                if self.streams is None:
                    self.streams = await asyncio.open_connection(self.host, self.port)
                reader, writer = self.streams
                writer.write(head + body)
                status, headers = _parse_head(await reader.readuntil(b"\r\n\r\n"))
                await _read_body(reader, headers)
                if headers.get("connection") == "close":
                    self.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self.close()
            return Answer(0, time.perf_counter() - began_s)
        return Answer(status, time.perf_counter() - began_s, headers.get("retry-after"))

    def close(self) -> None:
        """Close the connection."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def request_head(url: str, path: str, content_type: str, length: int) -> bytes:
    """The head of a POST."""
    host = urlsplit(url).netloc
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def text_request(url: str, text: str) -> tuple[bytes, bytes]:
    """Head and body of a search by text."""
    body = json.dumps({"query": {"text": text}, "target": "text", "k": 10}).encode()
    return request_head(url, "/v1/search", "application/json", len(body)), body


def image_request(url: str, picture: bytes) -> tuple[bytes, bytes]:
    """Head and body of a search by an uploaded picture."""
    edge = "zscmrzscmrzscmr"
    body = (
        f'--{edge}\r\nContent-Disposition: form-data; name="request"\r\n\r\n{{"target": "text", "k": 10}}\r\n'
        f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="q"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    body += picture + f"\r\n--{edge}--\r\n".encode()
    return request_head(url, "/v1/search", f"multipart/form-data; boundary={edge}", len(body)), body


async def closed_load(
    url: str, requests: Sequence[tuple[bytes, bytes]], *, concurrency: int
) -> tuple[list[Answer], float]:
    """Send every request, `concurrency` at a time; returns answers and wall seconds."""
    queue, answers = list(reversed(requests)), []
    where = urlsplit(url)

    async def work() -> None:
        connection = Connection(str(where.hostname), int(where.port or 80))
        while queue:
            answers.append(await connection.ask(*queue.pop()))
        connection.close()

    began_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return answers, time.perf_counter() - began_s


async def open_load(
    url: str, make: Callable[[int], tuple[bytes, bytes]], *, rate: float, seconds: float, seed: int
) -> tuple[list[Answer], float, float]:
    """Send at Poisson times whatever becomes of earlier requests; returns answers, wall seconds and this CPU's share."""
    rng, where = np.random.default_rng(seed), urlsplit(url)
    idle: list[Connection] = []
    tasks: list[asyncio.Task[Answer]] = []

    async def one(number: int) -> Answer:
        connection = idle.pop() if idle else Connection(str(where.hostname), int(where.port or 80))
        answer = await connection.ask(*make(number))
        idle.append(connection)
        return answer

    began_s, cpu_s, due_s = time.perf_counter(), time.process_time(), 0.0
    while due_s < seconds:
        await asyncio.sleep(max(0.0, began_s + due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(len(tasks))))
        due_s += float(rng.exponential(1 / rate))
    sent_s = time.perf_counter() - began_s
    answers = list(await asyncio.gather(*tasks))
    wall_s = time.perf_counter() - began_s
    for connection in idle:
        connection.close()
    return answers, sent_s, (time.process_time() - cpu_s) / wall_s


async def gathered(calls: Sequence[Callable[[], Awaitable[Any]]], *, concurrency: int) -> float:
    """Run calls in process, `concurrency` at a time; returns wall seconds."""
    queue = list(reversed(calls))

    async def work() -> None:
        while queue:
            await queue.pop()()

    began_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return time.perf_counter() - began_s


def percentile_ms(answers: Sequence[Answer], q: float) -> float:
    """A percentile of the accepted answers' times, in ms; nan when there are none."""
    seconds = [answer.seconds for answer in answers if answer.status == 200]
    return float(np.percentile(seconds, q)) * 1000 if seconds else float("nan")


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    return int(lines[0].split()[1]), {name.lower(): value for name, value in headers.items()}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> None:
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        await reader.readexactly(size + 2)
    await reader.readexactly(2)


def load_average() -> float:
    """How busy the machine was beside us: figures of a busy one mean little."""
    return os.getloadavg()[0]
