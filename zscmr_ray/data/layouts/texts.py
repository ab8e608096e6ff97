"""The text files of old datasets as captions: their encodings, the Wikipedia XML that no parser takes, sentence files.

Not annotation files in JSON: those are parsed where they are planned.
"""

from __future__ import annotations

import html
import re

from zscmr_ray.data.records import RowRejected
from zscmr_ray.schema import RejectCode

_TEXT = re.compile(r"<text[^>]*>(.*?)</text\s*>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
# With its semicolon only: texts quote web addresses, whose `&sect=2` is no paragraph sign.
_ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-fA-F]+|\w+);")


def decode_legacy(data: bytes) -> str:
    """Decode UTF-8, or else Windows-1252 and Latin-1, which these datasets' files were written in before it.

    >>> decode_legacy(b"caf\\xe9"), decode_legacy("café".encode())
    ('café', 'café')
    """
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def wikipedia_text(data: bytes, key: str) -> tuple[str, ...]:
    """The one text of a Wikipedia article's section; raises RowRejected for a file without a whole `<text>`.

    Read by pattern: 888 of the 2,866 files are not well-formed XML (bare ampersands, undefined entities).

    >>> wikipedia_text(b"<document><text>Tom &amp; Jerry &ndash; R&B</text></document>", "a.xml")
    ('Tom & Jerry – R&B',)
    """
    found = _TEXT.search(decode_legacy(data))
    if found is None:
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"{key} has no <text>...</text>")
    plain = _TAG.sub(" ", found.group(1))
    return (_ENTITY.sub(lambda entity: html.unescape(entity.group()), plain),)


def sentences(data: bytes, key: str) -> tuple[str, ...]:
    """One caption a line; raises nothing (`key` is for the other readers)."""
    del key
    return tuple(decode_legacy(data).splitlines())


def whole_text(data: bytes, key: str) -> tuple[str, ...]:
    """The file as one caption; an XML section as in Wikipedia is read as such."""
    text = decode_legacy(data)
    return wikipedia_text(data, key) if _TEXT.search(text) else (text,)
