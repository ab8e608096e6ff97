"""What a shard reader takes and yields: shard specs and column names in, records and rejects out.

A row of a shard becomes exactly one `Record` or one `Reject`, never neither (DESIGN 2, conservation). Not the
on-disk schema: that is `schema.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

from zscmr_ray.schema import RejectCode

Field = Literal["image", "caption", "label"]
OpenFile = Callable[[str], BinaryIO]
PAIR_FIELDS: frozenset[Field] = frozenset({"image", "caption"})

NOT_READ = "-"
"""A column name that means: this field is not read, not even under its usual names."""


@dataclass(frozen=True, slots=True)
class Record:
    """One readable row: undecoded image bytes, cleaned captions, class names.

    `key` names the row inside its shard and `offset` is its ordinal there, rejected rows counted; `id` is the value
    of an explicit id column, else None. `image` is None when images were not asked for or the corpus has none.
    """

    key: str
    offset: int
    image: bytes | None
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    partition: str | None
    id: str | None

    def item_id(self, shard_key: str) -> str:
        """The item's id: the explicit one, else `<shard key>#<key>`."""
        return self.id if self.id is not None else f"{shard_key}#{self.key}"


@dataclass(frozen=True, slots=True)
class Reject:
    """One row that cannot be used: where it is, which stage refused it, and why."""

    shard_key: str
    key: str | None
    offset: int
    stage: Literal["read", "decode", "encode"]
    code: RejectCode
    reason: str


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column, JSON field or tar extension holds what (`data.columns`).

    None = found by its usual names; `-` = not read. `label_separator` splits one label string into several classes.
    """

    id: str | None = None
    image: str | None = None
    caption: str | None = None
    label: str | None = None
    partition: str | None = None
    label_separator: str | None = None


@dataclass(frozen=True, slots=True)
class LayoutRow:
    """One item as a dataset's own lists name it (`data/layouts/`); keys are relative to the input root.

    `captions` are those of an annotation file; else `text` is the key of the file that holds them.
    """

    id: str
    image: str | None = None
    captions: tuple[str, ...] = ()
    text: str | None = None
    labels: tuple[str, ...] = ()
    partition: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class ShardSpec:
    """One unit of reading and of retry: a container file, a directory of images with the `files` in it, or `rows` of a
    dataset's own lists.

    `key` is relative to the input root (`.` is the root itself). `version` changes when the contents do.
    """

    key: str
    size_bytes: int
    version: str
    format: str
    files: tuple[str, ...] = ()
    rows: tuple[LayoutRow, ...] = ()


class RowRejected(Exception):
    """A row cannot be used; readers and decoders raise it, and one place per loop turns it into a `Reject`."""

    def __init__(self, code: RejectCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class ImageRejected(RowRejected):
    """These bytes give no picture: `code` says which way, `reason` what was seen."""
