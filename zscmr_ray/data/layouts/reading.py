"""Rows of a layout's shard, read in a worker: the picture and, where the layout keeps texts in files, the text.

A picture or text that is listed and not there is a rejected row. Not the lists: each layout's own file plans them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from zscmr_ray.data.layouts.texts import sentences, whole_text, wikipedia_text
from zscmr_ray.data.readers.fields import MAX_TEXT_BYTES
from zscmr_ray.data.readers.images import read_image
from zscmr_ray.data.readers.rows import Cells, RowBuilder
from zscmr_ray.data.records import (
    NOT_READ,
    PAIR_FIELDS,
    Columns,
    Field,
    LayoutRow,
    OpenFile,
    Record,
    Reject,
    RowRejected,
    ShardSpec,
)
from zscmr_ray.errors import DataError
from zscmr_ray.schema import RejectCode

_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_TEXTS: dict[str, Callable[[bytes, str], tuple[str, ...]]] = {
    "wikipedia": wikipedia_text,
    "wikipedia_features": wikipedia_text,
    "pascal_sentence": sentences,
    "xmedia": whole_text,
}


def read_layout(
    spec: ShardSpec,
    open_file: OpenFile,
    columns: Columns,
    *,
    with_images: bool = True,
    needs: Collection[Field] = PAIR_FIELDS,
) -> Iterator[Record | Reject]:
    """Yield one Record or Reject per row of the shard; ids are the dataset's own.

    `data.columns.label=-`, `partition=-` and `caption=-` leave these out; other column names mean nothing here.
    """
    builder = RowBuilder(spec, replace(columns, id="id"), needs=needs, with_images=with_images)
    for offset, row in enumerate(spec.rows):

        def cells(row: LayoutRow = row) -> Cells:
            return Cells(
                image=lambda: None if row.image is None else read_image(row.image, open_file),
                caption=None if columns.caption == NOT_READ else _captions(row, spec.format, open_file),
                label=() if columns.label == NOT_READ else row.labels,
                partition=None if columns.partition == NOT_READ else row.partition,
                id=row.id,
            )

        yield builder.build(row.id, offset, cells)


def _captions(row: LayoutRow, layout: str, open_file: OpenFile) -> list[str] | None:
    if row.text is None:
        return list(row.captions) or None
    return list(_TEXTS[layout](_read_text(row.text, open_file), row.text))


def _read_text(key: str, open_file: OpenFile) -> bytes:
    try:
        with open_file(key) as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except (OSError, DataError) as error:
        # The store says "missing" as a DataError; any other fault of the storage is not the row's.
        if not isinstance(error.__cause__ if isinstance(error, DataError) else error, _MISSING):
            raise
        raise RowRejected(RejectCode.MISSING_CAPTION, f"no file {key}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"{key} has more than {MAX_TEXT_BYTES} bytes")
    return data
