"""A prefix of an S3 bucket as a place for objects: every read and write is checked against what the server says.

An upload counts as done when the server's ETag is the MD5 of what was sent, or, where an ETag is something else (KMS
keys, directory buckets), when it accepted our Content-MD5 and reports our size. A whole download is checked the same
way; ranges are read with If-Match, so that they come from one version. An abandoned multipart upload is invisible;
a bucket's lifecycle rule may delete what a killed writer left of one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from zscmr_ray.errors import DataError, ZscmrError
from zscmr_ray.storage.local import say_write_errors
from zscmr_ray.storage.place import FileInfo
from zscmr_ray.storage.retry import TransientError
from zscmr_ray.storage.s3_read import RangeReader
from zscmr_ray.storage.s3_request import PreconditionError, request

# One put up to here, parts of at least this size above; S3 takes 10,000 parts.
PART_BYTES = 32 << 20
MAX_PARTS = 10_000
READ_BYTES = 8 << 20
_SPOOL_BYTES = 32 << 20
_DELETE_KEYS = 1000
_MD5 = re.compile(r"[0-9a-f]{32}\Z")


class S3Objects:
    """The objects below `s3://bucket/prefix`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.bucket, _, self.prefix = uri.removeprefix("s3://").partition("/")

    def exists(self, key: str) -> bool:
        """Whether an object, or one below it, is at the key."""
        return self.is_file(key) or bool(self._page(key, most=1).get("Contents"))

    def is_file(self, key: str) -> bool:
        """Whether an object is at the key."""
        try:
            return bool(self._full(key)) and self.info(key) is not None
        except FileNotFoundError:
            return False

    def info(self, key: str) -> FileInfo:
        """Size and ETag of an object."""
        answer = self._request("head_object", key)
        return FileInfo(key, int(answer["ContentLength"]), _etag(answer))

    def list(self, prefix: str) -> list[FileInfo]:
        """All objects below a prefix; each page is retried by itself."""
        found: list[FileInfo] = []
        start = len(self.prefix) + 1 if self.prefix else 0
        token: dict[str, Any] = {}
        while True:
            page = self._page(prefix, **token)
            found += [
                FileInfo(entry["Key"][start:], int(entry["Size"]), _etag(entry))
                for entry in page.get("Contents", [])
                if not entry["Key"].endswith("/")  # folder markers of other tools
            ]
            if not page.get("IsTruncated"):
                return found
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading in ranges of one version."""
        return io.BufferedReader(RangeReader(self._request, self.info(key), uri=self.uri), READ_BYTES)

    def read(self, key: str) -> bytes:
        """Read a whole object."""
        answer = self._request("get_object", key, check=self._check_download(key))
        return bytes(answer["Body"])

    @contextlib.contextmanager
    def local_copy(self, key: str) -> Iterator[Path]:
        """A temporary file with the object's contents."""
        with tempfile.TemporaryDirectory(prefix="zscmr-") as folder:
            target = Path(folder) / PurePosixPath(key).name
            with say_write_errors(target), target.open("wb") as file, self.open(key) as source:
                while block := source.read(READ_BYTES):
                    file.write(block)
            yield target

    @contextlib.contextmanager
    def open_write(self, key: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        """A spooled file that is uploaded when the block ends well; always durable."""
        with (
            say_write_errors(Path(tempfile.gettempdir())),
            tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool,
        ):
            yield spool
            size = spool.seek(0, io.SEEK_END)
            spool.seek(0)
            if size <= PART_BYTES:
                self.put(key, spool.read())
            else:
                self._put_parts(key, spool, size)

    def put(self, key: str, data: bytes, **conditions: str) -> None:
        """Put an object in one request."""
        md5 = hashlib.md5(data, usedforsecurity=False)
        self._request(
            "put_object",
            key,
            check=self._check_upload(key, md5.hexdigest(), len(data)),
            num_bytes=len(data),
            Body=data,
            ContentMD5=base64.b64encode(md5.digest()).decode(),
            **conditions,
        )

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only where none is; whether this call made it. `data` must be this writer's own."""
        try:
            self.put(key, data, IfNoneMatch="*")
        except PreconditionError:
            # An attempt whose answer was lost may have made it: then the content is ours.
            try:
                return self.read(key) == data
            except FileNotFoundError:
                return False
        return True

    def delete(self, key: str) -> None:
        """Delete an object; a missing one is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._request("delete_object", key)

    def delete_tree(self, prefix: str) -> None:
        """Delete every object below a prefix, in batches; what a batch could not delete is tried again."""
        keys = [self._full(info.key) for info in self.list(prefix)]
        for start in range(0, len(keys), _DELETE_KEYS):
            batch = {"Objects": [{"Key": key} for key in keys[start : start + _DELETE_KEYS]], "Quiet": True}
            request(
                "delete_objects",
                what=f"delete {self.uri}/{prefix}",
                check=_check_deleted,
                Bucket=self.bucket,
                Delete=batch,
            )

    def sweep(self) -> None:
        """Nothing: a killed upload left no object."""

    # -- requests ---------------------------------------------------------------------------------------------

    def _full(self, key: str) -> str:
        return "/".join(part for part in (self.prefix, key) if part)

    def _request(
        self,
        method: str,
        key: str,
        *,
        check: Callable[[dict[str, Any]], None] | None = None,
        num_bytes: int = 0,
        **arguments: Any,
    ) -> dict[str, Any]:
        what = f"{method.partition('_')[0]} {self.uri}/{key}"
        place = {"Bucket": self.bucket, "Key": self._full(key)}
        return request(method, what=what, check=check, num_bytes=num_bytes, **place, **arguments)

    def _page(self, prefix: str, *, most: int = 1000, **arguments: Any) -> dict[str, Any]:
        full = self._full(prefix)
        return request(
            "list_objects_v2",
            what=f"list {self.uri}/{prefix}",
            Bucket=self.bucket,
            Prefix=f"{full}/" if full else "",
            MaxKeys=most,
            **arguments,
        )

    def _put_parts(self, key: str, source: IO[bytes], size: int) -> None:
        """Upload in parts; each is checked, and the whole once more."""
        step = max(PART_BYTES, math.ceil(size / MAX_PARTS))
        upload = {"UploadId": self._request("create_multipart_upload", key)["UploadId"]}
        parts: list[dict[str, Any]] = []
        try:
            while data := source.read(step):
                md5 = hashlib.md5(data, usedforsecurity=False)
                answer = self._request(
                    "upload_part",
                    key,
                    check=self._check_upload(key, md5.hexdigest(), None),
                    num_bytes=len(data),
                    Body=data,
                    PartNumber=len(parts) + 1,
                    ContentMD5=base64.b64encode(md5.digest()).decode(),
                    **upload,
                )
                parts.append({"PartNumber": len(parts) + 1, "ETag": answer["ETag"]})
            with contextlib.suppress(FileNotFoundError):  # completed by an attempt whose answer was lost
                self._request("complete_multipart_upload", key, MultipartUpload={"Parts": parts}, **upload)
            self._check_whole(key, size)
        except BaseException:
            with contextlib.suppress(ZscmrError, FileNotFoundError):
                self._request("abort_multipart_upload", key, **upload)
            raise

    # -- checks -----------------------------------------------------------------------------------------------

    def _check_upload(self, key: str, md5: str, size: int | None) -> Callable[[dict[str, Any]], None]:
        def check(answer: dict[str, Any]) -> None:
            if self._is_md5(answer):
                if _etag(answer) != md5:
                    raise TransientError("a torn upload: the server holds other bytes")
            elif size is not None:
                self._check_whole(key, size)

        return check

    def _check_whole(self, key: str, size: int) -> None:
        stored = self.info(key).size_bytes
        if stored != size:
            raise DataError(
                "an upload is not whole",
                got=f"{self.uri}/{key}: {stored} bytes",
                expected=f"{size} bytes",
                remedy="run the same command again; two writers must not share a directory",
            )

    def _check_download(self, key: str) -> Callable[[dict[str, Any]], None]:
        def check(answer: dict[str, Any]) -> None:
            body = answer["Body"]
            if self._is_md5(answer):
                if hashlib.md5(body, usedforsecurity=False).hexdigest() != _etag(answer):
                    raise TransientError("a torn download: other bytes than the server's ETag says")
            elif self.info(key).size_bytes != len(body):
                raise TransientError("a torn download: another size than the server says")

        return check

    def _is_md5(self, answer: dict[str, Any]) -> bool:
        """Whether the ETag is the MD5 of the contents: not with KMS or customer keys, nor in directory buckets."""
        is_encrypted = (
            answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
        )
        return bool(_MD5.match(_etag(answer))) and not is_encrypted and not self.bucket.endswith("--x-s3")


def _check_deleted(answer: dict[str, Any]) -> None:
    codes = sorted({str(error.get("Code")) for error in answer.get("Errors", [])} - {"NoSuchKey"})
    if not codes:
        return
    if "AccessDenied" in codes:
        raise DataError("S3 refuses to delete", got=", ".join(codes), remedy="change the bucket's policy")
    raise TransientError(f"objects not deleted: {', '.join(codes)}")


def _etag(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')
