"""An HTTP proxy on loopback before a real S3 server that injects faults by a seeded plan; the real client code runs."""

from __future__ import annotations

import enum
import http.client
import http.server
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import boto3


class Fault(enum.StrEnum):
    """What can happen to one request."""

    HANG = enum.auto()  # no answer until the client gives up
    SLOW = enum.auto()  # the answer comes late, and then in two pieces
    RESET_BEFORE = enum.auto()  # the connection breaks before the server has seen the request
    LOST_ANSWER = enum.auto()  # the server does it, and the connection breaks before its answer
    ERROR_500 = enum.auto()
    SLOW_DOWN_503 = enum.auto()
    TOO_MANY_429 = enum.auto()
    TORN_UPLOAD = enum.auto()  # half of the body reaches the server
    HALF_STORED = enum.auto()  # the server says 200 and holds half of the body
    TORN_DOWNLOAD = enum.auto()  # the connection breaks in the middle of the answer's body
    SHORT_DOWNLOAD = enum.auto()  # half of the body, and a Content-Length that agrees with it
    FLIPPED_BYTE = enum.auto()  # a whole body with another byte in it


# For uploads and downloads of whole objects only: a listing or a head has nothing to tear.
UPLOADS = {Fault.TORN_UPLOAD, Fault.HALF_STORED}
DOWNLOADS = {Fault.TORN_DOWNLOAD, Fault.SHORT_DOWNLOAD, Fault.FLIPPED_BYTE}
_STATUS = {
    Fault.ERROR_500: (500, "InternalError"),
    Fault.SLOW_DOWN_503: (503, "SlowDown"),
    Fault.TOO_MANY_429: (429, "TooManyRequests"),
}


@dataclass
class Plan:
    """Which request gets which fault: first those of `script`, in turn, then by seeded chance."""

    seed: int = 0
    rates: Mapping[Fault, float] = field(default_factory=dict)
    script: list[Fault | None] = field(default_factory=list)
    always: Fault | None = None

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._lock = threading.Lock()

    def draw(self, possible: set[Fault]) -> Fault | None:
        """The fault of the next request, out of those that make sense for it."""
        with self._lock:
            if self.script:
                return self.script.pop(0)
            if self.always is not None:
                return self.always
            at = self._rng.random()
            for fault, rate in self.rates.items():
                at -= rate
                if at < 0:
                    return fault if fault in possible else None
            return None


class FaultProxy:
    """The proxy: its address, the plan in force, and what it has seen and done."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.plan = Plan()
        self.seen: Counter[str] = Counter()
        self.injected: Counter[Fault] = Counter()
        self.hang_s = 2.0
        # Out of the way of the faults: for objects that are stored torn.
        self.direct: Any = boto3.client("s3", endpoint_url=upstream)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[FaultProxy]:
        """Serve in threads for the length of a block."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
            self.direct.close()

    def use(self, plan: Plan) -> None:
        """Put another plan in force and count anew."""
        self.plan = plan
        self.seen.clear()
        self.injected.clear()


def _handler_of(proxy: FaultProxy) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # a client that went away, or one this proxy has thrown out
                self.close_connection = True

        def _serve(self) -> None:
            proxy.seen[f"{self.command} {urlsplit(self.path).path}"] += 1
            fault = proxy.plan.draw(self._possible())
            if fault is not None:
                proxy.injected[fault] += 1
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault is Fault.HANG:
                time.sleep(proxy.hang_s)
            if fault in {Fault.HANG, Fault.RESET_BEFORE}:
                self._reset()
            elif fault in _STATUS:
                status, code = _STATUS[fault]
                self._answer(
                    status, {}, f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                )
            elif fault is Fault.HALF_STORED:
                self._store_half(body)
            else:
                self._forward(body, fault)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

        def _possible(self) -> set[Fault]:
            has_object = urlsplit(self.path).path.count("/") > 1 and "?" not in self.path
            size = int(self.headers.get("Content-Length") or 0)
            impossible = set() if self.command == "PUT" and has_object and size else set(UPLOADS)
            if self.command != "GET" or not has_object:
                impossible |= DOWNLOADS
            if "If-None-Match" in self.headers:
                # A conditional put that is stored torn cannot be told from another writer's object.
                impossible.add(Fault.HALF_STORED)
            if "Range" in self.headers:
                impossible.add(Fault.FLIPPED_BYTE)
            return set(Fault) - impossible

        def _forward(self, body: bytes, fault: Fault | None) -> None:
            upstream = http.client.HTTPConnection(
                proxy.upstream.hostname or "", proxy.upstream.port, timeout=60
            )
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in {"expect", "connection"}:
                        upstream.putheader(name, value)
                upstream.endheaders()
                upstream.send(body[: len(body) // 2] if fault is Fault.TORN_UPLOAD else body)
                if fault is Fault.TORN_UPLOAD:
                    self._reset()
                    return
                answer = upstream.getresponse()
                data = answer.read()
            except OSError:  # the server is down: the client sees what it would see without a proxy between
                self._reset()
                return
            finally:
                upstream.close()
            if fault is Fault.LOST_ANSWER:
                self._reset()
                return
            if fault is Fault.SHORT_DOWNLOAD:
                data = data[: len(data) // 2]
            if fault is Fault.FLIPPED_BYTE and data:
                data = data[:-1] + bytes([data[-1] ^ 1])
            self._answer(answer.status, dict(answer.getheaders()), data, fault)

        def _answer(
            self, status: int, headers: dict[str, str], data: bytes, fault: Fault | None = None
        ) -> None:
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            if fault is Fault.SLOW:
                time.sleep(0.1)
            self.end_headers()
            if self.command == "HEAD":
                return
            half = len(data) // 2
            self.wfile.write(data[:half])
            if fault is Fault.TORN_DOWNLOAD:
                self._reset()
                return
            if fault is Fault.SLOW:
                time.sleep(0.1)
            self.wfile.write(data[half:])

        def _store_half(self, body: bytes) -> None:
            bucket, _, key = urlsplit(self.path).path.lstrip("/").partition("/")
            stored = proxy.direct.put_object(Bucket=bucket, Key=key, Body=body[: len(body) // 2])
            self._answer(200, {"ETag": stored["ETag"]}, b"")

        def _reset(self) -> None:
            self.close_connection = True
            # A zero linger sends RST instead of FIN: the client sees a broken connection, not an end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    return Handler
