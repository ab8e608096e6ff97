"""Image cells: bytes, base64 text, a Hugging Face {bytes, path} struct, or a path beside the manifest.

Paths are relative to the manifest and stay inside the input root; nothing here follows a URL. Symbolic links are
followed, wherever they lead: who may put one into the input may put the picture there, and model hubs' caches are made
of them. A broken or circular one is a missing picture; a file that may not be read is an error, because rejecting its
row would lose it for good where a change of permissions helps. Not decoding: that is `data/decode.py`.
"""

from __future__ import annotations

import base64
import binascii
import errno
import posixpath
import re
from pathlib import PurePosixPath

from zscmr_ray.data.readers.quoting import shown
from zscmr_ray.data.records import OpenFile, RowRejected
from zscmr_ray.errors import DataError
from zscmr_ray.schema import RejectCode

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MAX_IMAGE_BYTES = 256 << 20

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]*:")
_DATA_URI = re.compile(r"^data:[^,]{0,100};base64,", re.IGNORECASE)
# No two parts of this can match the same characters: it looks at each once, however long the text.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]++={0,2}")
# No image is smaller than this in base64; a shorter word without a dot can only be a path.
_MIN_BASE64_CHARS = 48
# What S3 and the usual file systems take.
_MAX_KEY_BYTES, _MAX_NAME_BYTES = 1024, 255
_NO_NAME = re.compile("[\x00\ud800-\udfff]")
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_MISSING_ERRNOS = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)


def is_image_name(name: str) -> bool:
    """Whether a file name has the extension of a readable image format."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def image_of(value: object, *, base_key: str, open_file: OpenFile) -> bytes | None:
    """Return the image bytes of a cell, None for a null or blank one; paths are relative to the file `base_key`.

    Raises RowRejected: missing_image, empty_image, bad_path, unreadable_record.
    """
    match value:
        case None:
            return None
        case bytes():
            return checked(value)
        case {"bytes": bytes() as data}:
            return checked(data)
        case {"path": str() as path}:
            return read_image(resolve(path, base_key=base_key), open_file)
        case str() if not value.strip():
            return None
        case str():
            return _from_text(value.strip(), base_key, open_file)
    raise RowRejected(RejectCode.UNREADABLE_RECORD, f"an image cell of type {type(value).__name__}")


def checked(data: bytes) -> bytes:
    """Return the bytes; raises RowRejected for none at all or absurdly many."""
    if not data:
        raise RowRejected(RejectCode.EMPTY_IMAGE, "zero bytes")
    if len(data) > MAX_IMAGE_BYTES:
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"an image of {len(data)} bytes")
    return data


def read_image(key: str, open_file: OpenFile) -> bytes:
    """Read an image file of the input root; raises RowRejected when it is missing or empty."""
    try:
        with open_file(key) as file:
            return checked(file.read(MAX_IMAGE_BYTES + 1))
    except (OSError, DataError) as error:
        # The store says "missing" as a DataError; any other fault of the storage is not the row's.
        cause = error.__cause__ if isinstance(error, DataError) else error
        if not isinstance(cause, _MISSING) and getattr(cause, "errno", None) not in _MISSING_ERRNOS:
            raise
        raise RowRejected(RejectCode.MISSING_IMAGE, f"no file {shown(key)}") from error


def resolve(path: str, *, base_key: str) -> str:
    """Return the key of a path relative to the file `base_key`; raises RowRejected (bad_path) if it may not be read.

    >>> resolve("images/a.jpg", base_key="shop/items.csv")
    'shop/images/a.jpg'
    """
    if path.startswith(("/", "\\")) or _URL.match(path):
        raise RowRejected(RejectCode.BAD_PATH, f"not a relative path: {shown(path)}")
    key = posixpath.normpath(posixpath.join(posixpath.dirname(base_key), path))
    if key == ".." or key.startswith("../"):
        raise RowRejected(RejectCode.BAD_PATH, f"the path leaves the input folder: {shown(path)}")
    data = key.encode("utf-8", "surrogatepass")
    is_too_long = len(data) > _MAX_KEY_BYTES or max(map(len, data.split(b"/"))) > _MAX_NAME_BYTES
    if is_too_long or _NO_NAME.search(key):
        raise RowRejected(RejectCode.BAD_PATH, f"neither a file name nor base64: {shown(path)}")
    return key


def _from_text(text: str, base_key: str, open_file: OpenFile) -> bytes:
    uri = _DATA_URI.match(text)
    if uri:
        return _from_base64(text[uri.end() :])
    if len(text) >= _MIN_BASE64_CHARS and _BASE64.fullmatch(text):
        return _from_base64(text)
    return read_image(resolve(text, base_key=base_key), open_file)


def _from_base64(text: str) -> bytes:
    try:
        return checked(base64.b64decode("".join(text.split()), validate=True))
    except binascii.Error as error:
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"not valid base64: {error}") from error
