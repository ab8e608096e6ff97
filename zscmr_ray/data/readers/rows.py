"""The cells of one row to a `Record` or a `Reject`: the same rules for every format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from zscmr_ray.data.readers.fields import FieldNames, captions_of, check_id, id_of, labels_of, partition_of
from zscmr_ray.data.readers.images import image_of
from zscmr_ray.data.readers.quoting import printable
from zscmr_ray.data.records import NOT_READ, Columns, Field, OpenFile, Record, Reject, RowRejected, ShardSpec
from zscmr_ray.schema import RejectCode

_MAX_KEY_CHARS = 1024


@dataclass(slots=True)
class Cells:
    """What a format found for one row, not yet checked; None = nothing there."""

    image: Callable[[], bytes | None]
    caption: object = None
    label: object = None
    partition: object = None
    id: object = None


def row_cells(row: Mapping[str, object], names: FieldNames, key: str, open_file: OpenFile) -> Cells:
    """Take a row's cells from its named columns; an image path is relative to the shard `key`."""

    def cell(name: str | None) -> object:
        return None if name is None else row.get(name)

    return Cells(
        image=lambda: image_of(cell(names.image), base_key=key, open_file=open_file),
        caption=cell(names.caption),
        label=cell(names.label),
        partition=cell(names.partition),
        id=cell(names.id),
    )


class RowBuilder:
    """Checks rows one after another and remembers the ids of the shard, so that a repeated one is rejected.

    `needs` names the fields without which a row is of no use.
    """

    def __init__(
        self,
        spec: ShardSpec,
        columns: Columns,
        *,
        needs: Collection[Field],
        with_images: bool,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._spec = spec
        self._label_separator = columns.label_separator
        self._has_ids = columns.id not in {None, NOT_READ}
        self._needs = needs
        self._with_images = with_images
        self._class_names = class_names
        self._seen: set[str] = set()

    def build(self, key: str, offset: int, cells: Callable[[], Cells]) -> Record | Reject:
        """Return the row, or why it cannot be used; `cells` may raise RowRejected."""
        try:
            return self._record(key, offset, cells)
        except RowRejected as rejected:
            return self.reject(key, offset, rejected)

    def reject(self, key: str | None, offset: int, rejected: RowRejected) -> Reject:
        """Return the reject of a row whose cells could not even be found."""
        name = None if key is None else printable(key, max_chars=_MAX_KEY_CHARS)
        return Reject(self._spec.key, name, offset, "read", rejected.code, printable(rejected.reason))

    def _record(self, key: str, offset: int, cells_of: Callable[[], Cells]) -> Record:
        check_id(key)
        cells = cells_of()
        item_id = id_of(cells.id) if self._has_ids else None
        self._claim(key if item_id is None else item_id)
        captions = captions_of(cells.caption)
        if not captions and "caption" in self._needs:
            if captions is None:
                raise RowRejected(RejectCode.MISSING_CAPTION, "no caption")
            raise RowRejected(RejectCode.EMPTY_CAPTION, "no text in the caption")
        labels = labels_of(cells.label, separator=self._label_separator, class_names=self._class_names)
        if not labels and "label" in self._needs:
            raise RowRejected(RejectCode.MISSING_LABEL, "no label")
        partition = partition_of(cells.partition)
        image = self._image(cells)
        return Record(key, offset, image, captions or (), labels, partition, item_id)

    def _image(self, cells: Cells) -> bytes | None:
        if not self._with_images:
            return None
        image = cells.image()
        if image is None and "image" in self._needs:
            raise RowRejected(RejectCode.MISSING_IMAGE, "no image")
        return image

    def _claim(self, name: str) -> None:
        if name in self._seen:
            raise RowRejected(
                RejectCode.DUPLICATE_ID, f"{name!r} is already the id of an earlier row of this shard"
            )
        self._seen.add(name)
