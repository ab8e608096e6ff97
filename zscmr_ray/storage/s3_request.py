"""One S3 request at a time: the client and its timeouts, what an answer's failure means, and the retries around it.

The only file that imports s3fs. Credentials and the endpoint come from the usual AWS environment variables (or
whatever else botocore finds); nothing of them, and no text a server sent, enters a message: codes and names only.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import s3fs
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync

from zscmr_ray.errors import ConfigError, StorageError, ZscmrError
from zscmr_ray.storage.retry import TransientError, with_retries

CONNECT_TIMEOUT_S = 10
# Between two packets; and for a whole request, which a trickle would otherwise hold for ever.
READ_TIMEOUT_S = 30
REQUEST_TIMEOUT_S = 60
SLOWEST_BYTES_PER_S = 1 << 20

# Answers below 500 that are worth another attempt: throttling, and bodies that were torn on the way to the server.
_TRANSIENT_STATUS = {408, 425, 429}
_TRANSIENT_CODES = {
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "RequestThrottled",
    "RequestTimeout", "RequestTimeoutException", "InternalError", "ServiceUnavailable", "OperationAborted",
    "ConditionalRequestConflict", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}  # fmt: skip
_TRANSIENT_ERRORS = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    ResponseParserError,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
_UNKNOWN_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_CREDENTIALS_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary keys)"
)


class PreconditionError(Exception):
    """The object is not (or no longer) the one an If-Match or If-None-Match asked for."""


def request(
    method: str,
    *,
    what: str,
    check: Callable[[dict[str, Any]], None] | None = None,
    num_bytes: int = 0,
    **arguments: Any,
) -> dict[str, Any]:
    """Send one request until it is answered; a body that is read is returned whole as bytes under `Body`.

    `check` may raise TransientError for an answer that is not good enough; `num_bytes` of payload lengthen the
    request's timeout. Raises FileNotFoundError for a missing object, PreconditionError, StorageError and ConfigError.
    """
    timeout_s = REQUEST_TIMEOUT_S + num_bytes / SLOWEST_BYTES_PER_S

    def attempt() -> dict[str, Any]:
        try:
            filesystem = _filesystem()
            answer: dict[str, Any] = sync(filesystem.loop, _send, filesystem, method, arguments, timeout_s)
        except Exception as error:
            raise _judged(error, what) from error
        if check is not None:
            check(answer)
        return answer

    return with_retries(attempt, what=what)


async def _send(filesystem: Any, method: str, arguments: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    async with asyncio.timeout(timeout_s):
        answer: dict[str, Any] = dict(await filesystem._call_s3(method, **arguments))
        if "Body" in answer:
            async with answer["Body"] as stream:
                body = await stream.read()
            expected = answer.get("ContentLength", len(body))
            if len(body) != expected:
                raise TransientError(f"a torn download, {len(body)} of {expected} bytes")
            answer["Body"] = body
        return answer


def _filesystem() -> Any:
    """This process's client for the environment as it is now."""
    if "@" in urlsplit(_address()).netloc:
        raise _bad_endpoint("connect", "it holds a user name; credentials belong into AWS_ACCESS_KEY_ID")
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _open_filesystem(os.getpid(), settings)


@functools.lru_cache(maxsize=4)
def _open_filesystem(process_id: int, settings: tuple[tuple[str, str], ...]) -> Any:
    # A client costs 0.1 s and connections: one for all stores of a process. Another process (fork) or other
    # credentials need their own, hence the arguments.
    filesystem = s3fs.S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 32,
        },
    )
    filesystem.retries = 1
    return filesystem


# -- what a failure means ---------------------------------------------------------------------------------


def _judged(error: Exception, what: str) -> Exception:
    """The error to raise instead: TransientError for another attempt, else one of our own, or the error itself."""
    response = next((e.response for e in _chain(error) if isinstance(e, boto.ClientError)), None)
    if response is not None:
        return _judged_answer(response, what)
    if isinstance(error, TransientError | ZscmrError):
        return error
    if isinstance(
        error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError
    ):
        return ConfigError("no credentials for S3", got=type(error).__name__, remedy=_CREDENTIALS_REMEDY)
    if isinstance(error, boto.SSLError):
        return StorageError(
            "no trusted connection to S3",
            got=f"{what}: {type(error).__name__} at {endpoint()}",
            expected="a certificate this machine trusts",
            remedy="AWS_CA_BUNDLE names further ones",
        )
    if any(isinstance(e, socket.gaierror) and e.errno == socket.EAI_NONAME for e in _chain(error)):
        return _bad_endpoint(what, "the name is unknown")
    if any(isinstance(e, aiohttp.InvalidURL) for e in _chain(error)):
        return _bad_endpoint(what, "not a URL")
    if isinstance(error, _TRANSIENT_ERRORS):
        return TransientError(f"{type(error).__name__} at {endpoint()}")
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return _bad_endpoint(what, "not a URL")
    return error


def _judged_answer(response: dict[str, Any], what: str) -> Exception:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{code} ({status})" if code and code != str(status) else str(status)
    if code in _TRANSIENT_CODES or status in _TRANSIENT_STATUS or (status >= 500 and status != 501):
        return TransientError(said)
    if code == "NoSuchBucket":
        return StorageError(
            "no such bucket",
            got=f"{what}: {said}",
            expected="a bucket that exists",
            remedy="create it or correct the s3:// URI; AWS_ENDPOINT_URL must name its server",
        )
    if status == 404:
        return FileNotFoundError(what)
    if status in {412, 304}:
        return PreconditionError(what)
    if code in _UNKNOWN_KEYS:
        return StorageError(
            "S3 does not accept the credentials",
            got=f"{what}: {said}",
            expected="a key that this server knows, and its secret",
            remedy=_CREDENTIALS_REMEDY,
        )
    if status in {401, 403}:
        return StorageError(
            "S3 refuses access",
            got=f"{what}: {said}",
            expected="credentials that may do this to this bucket",
            remedy=f"{_CREDENTIALS_REMEDY}, or change the bucket's policy",
        )
    return StorageError("S3 refuses a request", got=f"{what}: {said}", expected="status 200")


def _bad_endpoint(what: str, why: str) -> ConfigError:
    return ConfigError(
        "the S3 endpoint cannot be used",
        got=f"{what}: {endpoint()} ({why})",
        expected="an address like https://host:port",
        remedy="correct AWS_ENDPOINT_URL, or unset it for AWS",
    )


def endpoint() -> str:
    """The server as messages may name it: no user, no password, no query."""
    address = _address()
    if not address:
        return "AWS"
    return urlsplit(address).netloc.rpartition("@")[2] or "an empty address"


def _address() -> str:
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return address if "//" in address or not address else f"//{address}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # Not __context__: inside an except block it is whatever was being handled there.
        inner = getattr(error, "kwargs", {}).get("error") or getattr(error, "os_error", None)
        error = error.__cause__ or (inner if isinstance(inner, BaseException) else None)
