"""Which column holds what, and what its values mean: captions, class names, partition, id.

Shared by every format. Detection of unnamed columns goes by usual names and must be unambiguous: a guess between
two candidates is an error that lists the columns. Images are `images.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from zscmr_ray.data.captions import clean_captions
from zscmr_ray.data.readers.quoting import listed, printable, shown
from zscmr_ray.data.records import NOT_READ, Columns, Field, RowRejected
from zscmr_ray.errors import DataError
from zscmr_ray.schema import Partition, RejectCode

# Usual names, compared without case. A later group counts only where no earlier one has a match: many tables carry
# a `filename` beside the image itself.
_USUAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "image": (
        (
            "image",
            "img",
            "jpg",
            "jpeg",
            "png",
            "webp",
            "image_bytes",
            "image_base64",
            "image_b64",
            "photo",
            "picture",
        ),
        ("image_path", "file_name", "filename", "file_path", "filepath", "path"),
    ),
    "caption": (
        ("caption", "captions"),
        (
            "text",
            "texts",
            "txt",
            "title",
            "description",
            "sentence",
            "sentences",
            "alt_text",
            "productdisplayname",
        ),
    ),
    "label": (("label", "labels", "class", "classes", "class_name", "category", "categories"),),
    "partition": (("partition", "split"),),
}
_PARTITIONS = {
    "train": Partition.TRAIN,
    "training": Partition.TRAIN,
    "restval": Partition.TRAIN,
    "val": Partition.VAL,
    "valid": Partition.VAL,
    "validation": Partition.VAL,
    "dev": Partition.VAL,
    "test": Partition.TEST,
    "testing": Partition.TEST,
}
# What stands for text that is not UTF-8: a lone surrogate, which `check_text` rejects.
UNDECODABLE = "\udcff"
# A text of more bytes is no caption, one of more lines no list of captions; the stages keep far less (data.max_caption*).
MAX_TEXT_BYTES = 16 << 20
_MAX_TEXTS = 100_000
_MAX_NESTING = 4
_MAX_ID_CHARS = 1024
# A short line of JSON can make a hundred times its size of objects: 1 MB of `{},` is 30 MB.
_FREE_JSON_BYTES, _MAX_JSON_VALUES = 1 << 20, 1_000_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class FieldNames(NamedTuple):
    """The column that holds each field, None where there is none."""

    id: str | None
    image: str | None
    caption: str | None
    label: str | None
    partition: str | None


def resolve_columns(
    names: Sequence[str],
    columns: Columns,
    *,
    where: str,
    needs: Collection[Field],
    unnamed_ok: bool = False,
) -> FieldNames:
    """Return which of a table's columns hold what.

    `where` names the shard in errors; `needs` are fields that must exist. With `unnamed_ok` (formats whose rows have
    columns of their own) a missing column gives None instead of an error.

    Raises DataError for a named column that is missing, a needed one that is not found, and ambiguous detection.
    """
    found: dict[str, str | None] = {}
    for field in FieldNames._fields:
        wanted = getattr(columns, field)
        if wanted == NOT_READ:
            found[field] = None
        elif wanted is None:
            found[field] = detect(field, names, where=where)
        else:
            found[field] = wanted if wanted in names else None
            if found[field] is None and not unnamed_ok:
                raise missing_column(field, wanted, names, where=where)
        if found[field] is None and field in needs and not unnamed_ok:
            raise missing_column(field, wanted, names, where=where)
    return FieldNames(**found)


def detect(field: str, names: Sequence[str], *, where: str) -> str | None:
    """Return the one column with a usual name of the field, None when there is none.

    Raises DataError when several columns could be meant.
    """
    for group in _USUAL.get(field, ()):
        matches = [name for name in names if name.lower() in group]
        if len(matches) > 1:
            raise DataError(
                f"{where}: which column holds the {field} is ambiguous",
                got=f"{listed(matches)} (of the columns {listed(names)})",
                expected=f"one column with a usual name of the {field}",
                remedy=f"--set data.columns.{field}={printable(matches[0])} (or another; '-' to read none)",
            )
        if matches:
            return matches[0]
    return None


def missing_column(field: str, wanted: str | None, names: Collection[str], *, where: str) -> DataError:
    """Return the error for a column that no row has."""
    usual = ", ".join(name for group in _USUAL.get(field, ()) for name in group)
    return DataError(
        f"{where}: no column {wanted!r} for the {field}"
        if wanted
        else f"{where}: no column with the {field}",
        got=f"columns {listed(names) or '(none)'}",
        expected=wanted or f"one of {usual}",
        remedy=f"--set data.columns.{field}=<one of the columns>",
    )


def captions_of(value: object) -> tuple[str, ...] | None:
    """Return the cleaned captions in a cell: a string, its lines, a JSON list or a list.

    None for a null cell, () for one without text. Raises RowRejected: bad_text_encoding, unreadable_record.
    """
    if value is None:
        return None
    return clean_captions(_strings(value, "caption", split_lines=True))


def labels_of(
    value: object, *, separator: str | None, class_names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return the class names in a cell, without repeats: one, a list, a JSON list, or a separated string.

    Integers become their digits, or the names that the file declares for them (`class_names`).
    Raises RowRejected for anything else.
    """
    if value is None:
        return ()
    labels: list[str] = []
    items = value if isinstance(value, list | tuple) else [value]
    if len(items) > _MAX_TEXTS:
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"{len(items)} labels, at most {_MAX_TEXTS}")
    for item in items:
        if isinstance(item, int) and not isinstance(item, bool):
            labels.append(_class_name(item, class_names))
        else:
            labels += _strings(item, "label", split_lines=True)
    if separator:
        labels = [part for label in labels for part in label.split(separator)]
    cleaned = (" ".join(label.split()) for label in labels)
    return tuple(dict.fromkeys(label for label in cleaned if label))


def partition_of(value: object) -> str | None:
    """Return train, val or test for the usual spellings, None for a null or empty cell; else raise RowRejected."""
    if value is None or value == "":
        return None
    partition = _PARTITIONS.get(value.strip().lower()) if isinstance(value, str) else None
    if partition is None:
        raise RowRejected(
            RejectCode.UNREADABLE_RECORD,
            f"partition {shown(value)} is none of train, val, test (--set data.columns.partition=- reads none)",
        )
    return partition.value


def id_of(value: object) -> str:
    """Return an explicit id as text; raises RowRejected for a null, empty, overlong or unprintable one."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowRejected(RejectCode.BAD_ID, f"id {shown(value)}")
    check_id(value)
    return value


def check_id(name: str) -> None:
    """Raise RowRejected for an id or key that is overlong, has control characters or is no Unicode."""
    check_text(name, RejectCode.BAD_ID)
    if len(name) > _MAX_ID_CHARS or _CONTROL.search(name):
        raise RowRejected(RejectCode.BAD_ID, f"id {shown(name)}: overlong, or with control characters")


def check_text(text: str, code: RejectCode = RejectCode.BAD_TEXT_ENCODING) -> None:
    """Raise RowRejected for text that UTF-8 cannot hold (lone surrogates): parquet could not store it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowRejected(code, f"not valid Unicode text: {shown(text)}") from error


def decode_text(data: bytes, what: str) -> str:
    """Decode UTF-8 bytes, a byte-order mark taken off; raises RowRejected."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowRejected(RejectCode.BAD_TEXT_ENCODING, f"{what} is not UTF-8: {error}") from error


def parse_object(data: bytes | str, what: str) -> dict[str, object]:
    """Parse a JSON object; raises RowRejected for anything else."""
    text = decode_text(data, what) if isinstance(data, bytes) else data
    if len(text) > _FREE_JSON_BYTES and sum(map(text.count, ",[{")) > _MAX_JSON_VALUES:
        raise RowRejected(
            RejectCode.UNREADABLE_RECORD, f"{what} has more than {_MAX_JSON_VALUES} JSON values"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"{what} is not a JSON object but {shown(value)}")
    return value


def _strings(value: object, what: str, *, split_lines: bool, depth: int = 0) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        if len(value) > _MAX_TEXTS or depth == _MAX_NESTING:
            reason = f"a {what} of {len(value)} items, at most {_MAX_TEXTS}, {_MAX_NESTING} lists deep"
            raise RowRejected(RejectCode.UNREADABLE_RECORD, reason)
        return [text for item in value for text in _strings(item, what, split_lines=False, depth=depth + 1)]
    if not isinstance(value, str):
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"{what} is not text but {shown(value)}")
    if len(value) > MAX_TEXT_BYTES:
        reason = f"a {what} of {len(value)} characters, at most {MAX_TEXT_BYTES}"
        raise RowRejected(RejectCode.UNREADABLE_RECORD, reason)
    check_text(value)
    texts = _json_list(value)
    if texts is None:
        texts = value.splitlines() if split_lines else [value]
    if len(texts) > _MAX_TEXTS:
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"{len(texts)} {what}s, at most {_MAX_TEXTS}")
    return texts


def _json_list(text: str) -> list[str] | None:
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    for item in value:
        check_text(item)  # an escaped surrogate is plain ASCII until now
    return value


def _class_name(number: int, class_names: Sequence[str] | None) -> str:
    if class_names is None:
        return str(number)
    if not 0 <= number < len(class_names):
        raise RowRejected(
            RejectCode.UNREADABLE_RECORD, f"label {number}, but the file names {len(class_names)} classes"
        )
    check_text(class_names[number])
    return class_names[number]
