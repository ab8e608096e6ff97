"""An S3 object as a seekable file: ranges of one version (If-Match), each of the length that was asked for."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from zscmr_ray.errors import DataError
from zscmr_ray.storage.place import FileInfo
from zscmr_ray.storage.retry import TransientError
from zscmr_ray.storage.s3_request import PreconditionError


class RangeReader(io.RawIOBase):
    """An object as a seekable raw file: each read is one checked range request."""

    def __init__(self, request: Callable[..., dict[str, Any]], info: FileInfo, *, uri: str) -> None:
        """`request(method, key, ...)` sends one to the object's store, which is at `uri`."""
        self._request, self._info, self._uri = request, info, uri
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move; no request is sent."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer, or what of it the object still has."""
        size = min(len(buffer), self._info.size_bytes - self._at)
        if size <= 0:
            return 0
        buffer[:size] = self._fetch(self._at, size)
        self._at += size
        return size

    def _fetch(self, start: int, size: int) -> bytes:
        def check(answer: dict[str, Any]) -> None:
            if len(answer["Body"]) != size:
                raise TransientError(f"a torn download, {len(answer['Body'])} of {size} bytes")

        version = {"IfMatch": f'"{self._info.version}"'} if self._info.version else {}
        try:
            answer = self._request(
                "get_object",
                self._info.key,
                check=check,
                num_bytes=size,
                Range=f"bytes={start}-{start + size - 1}",
                **version,
            )
        except (PreconditionError, FileNotFoundError) as error:
            raise DataError(
                "an object changed while it was read",
                got=f"{self._uri}/{self._info.key}",
                expected=f"ETag {self._info.version}",
                remedy="run the same command again when nobody writes there",
            ) from error
        return bytes(answer["Body"])
