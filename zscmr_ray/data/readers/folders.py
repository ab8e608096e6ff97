"""Folders of images: captions in a sidecar `.txt` of the same name, or the class in the folder's name.

One shard is one directory. A text file without an image is a rejected row, so that nothing is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from zscmr_ray.data.readers.fields import MAX_TEXT_BYTES, decode_text
from zscmr_ray.data.readers.images import is_image_name, read_image
from zscmr_ray.data.readers.rows import Cells, RowBuilder
from zscmr_ray.data.records import NOT_READ, Columns, OpenFile, Record, Reject, RowRejected, ShardSpec
from zscmr_ray.schema import Partition, RejectCode

_PARTITION_FOLDERS = {
    "train": Partition.TRAIN,
    "val": Partition.VAL,
    "valid": Partition.VAL,
    "validation": Partition.VAL,
    "test": Partition.TEST,
}


def read_folder(
    spec: ShardSpec,
    open_file: OpenFile,
    columns: Columns,
    builder: RowBuilder,
    *,
    keep: frozenset[int] | None,
) -> Iterator[Record | Reject]:
    """Yield the images of one directory by name; the key is the file name.

    In a `class_folder` the directory's own name is the class, and a directory above it that is called train, val,
    validation or test is the partition (`data.columns.label=-` and `partition=-` read neither).
    """
    folders = PurePosixPath(spec.key).parts
    is_class_folder = spec.format == "class_folder"
    label = folders[-1] if is_class_folder and columns.label != NOT_READ else None
    above = [_PARTITION_FOLDERS[name] for name in folders[:-1] if name in _PARTITION_FOLDERS]
    partition = above[-1].value if is_class_folder and above and columns.partition != NOT_READ else None
    for offset, (name, image, text) in enumerate(_items(spec.files)):
        if keep is not None and offset not in keep:
            continue

        def cells(image: str | None = image, text: str | None = text) -> Cells:
            return Cells(
                image=lambda: None if image is None else read_image(image, open_file),
                caption=None if text is None or columns.caption == NOT_READ else _read_text(text, open_file),
                label=label,
                partition=partition,
            )

        yield builder.build(name, offset, cells)


def _items(files: tuple[str, ...]) -> list[tuple[str, str | None, str | None]]:
    """(row key, image, sidecar) by name; two images with one stem share the sidecar, one without any stands alone."""
    texts = {PurePosixPath(key).name: key for key in files if key.endswith(".txt")}
    items: list[tuple[str, str | None, str | None]] = []
    used = set()
    for key in files:
        if is_image_name(key):
            name = PurePosixPath(key)
            text = next((t for t in (f"{name.stem}.txt", f"{name.name}.txt") if t in texts), None)
            used.add(text)
            items.append((name.name, key, texts[text] if text else None))
    items += [(name, None, key) for name, key in texts.items() if name not in used]
    return sorted(items)


def _read_text(key: str, open_file: OpenFile) -> str:
    with open_file(key) as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"a text of more than {MAX_TEXT_BYTES} bytes")
    return decode_text(data, key)
