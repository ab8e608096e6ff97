"""A raw shard to chunks of decoded rows, on a CPU. Runs in decode tasks, so it imports no torch.

A row leaves here decoded, rejected with a code, or filtered by the cap: never uncounted. What a row must have is
`data.modality`: an image-only corpus has no captions and a text-only one no images, and neither is a defect.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.config import DataSection
from zscmr_ray.data.captions import clean_captions, mask_class_words
from zscmr_ray.data.coco_classes import caption_classes
from zscmr_ray.data.decode import Fit, decode_image
from zscmr_ray.data.layouts import LAYOUTS, read_layout
from zscmr_ray.data.readers import read_shard
from zscmr_ray.data.records import NOT_READ, PAIR_FIELDS, Columns, Field, Record, Reject, RowRejected
from zscmr_ray.data.splits import instance_partition
from zscmr_ray.schema import RejectCode
from zscmr_ray.stages.plane.chunks import CHUNK_BYTES, DecodedChunk, RejectedRow, Shard, Source
from zscmr_ray.stages.plane.effort import timed_open
from zscmr_ray.stages.shards.inputs import spec_of
from zscmr_ray.stages.shards.pixels import PIXELS, pixels_column
from zscmr_ray.storage import Store

KEEP = "keep"
_NEEDS: dict[str, frozenset[Field]] = {
    "pairs": PAIR_FIELDS,
    "image": frozenset({"image"}),
    "text": frozenset({"caption"}),
}


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """How an image is cut and resized for the model, in plain values (the models' own class needs torch)."""

    size_px: int
    crop_fraction: float
    interpolation: str
    fit: Fit = "crop"


@dataclass(frozen=True, slots=True)
class Item:
    """A row that may become a pair if its image decodes."""

    id: str
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    partition: str


@dataclass(frozen=True)
class ShardSource:
    """Reads raw shards; a `plane.chunks.Source`. No `pixels` where no image is read, no `thumbnail_px` for no thumbnail."""

    input: Store
    data: DataSection
    pixels: PixelSpec | None
    chunk_rows: int
    thumbnail_px: int | None
    keep_images: bool = False

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        """Yield the shard's chunks; the row after a full chunk is seen first, so that the last one knows it is."""
        keep = shard.detail.get(KEEP)
        keep = None if keep is None else frozenset(keep)
        chunk = _Chunk(self, shard.key)
        for entry in admitted(self.input, self.data, shard, with_images=self.pixels is not None):
            if chunk.is_full:
                yield chunk.finish(last=False)
                chunk = _Chunk(self, shard.key)
            chunk.num_in += 1
            if isinstance(entry, Reject):
                chunk.reject(entry.key, entry)
            elif keep is not None and entry[0].offset not in keep:
                chunk.num_filtered += 1
            else:
                chunk.add(*entry)
        yield chunk.finish(last=True)


def count_rows(source: Source, shard: Shard) -> int | None:
    """The rows of a raw shard where its format says without reading them (parquet), else None."""
    if not isinstance(source, ShardSource) or shard.detail.get("format") != "parquet":
        return None
    try:
        with source.input.open(shard.key) as file:
            return int(pq.read_metadata(file).num_rows)
    except pa.ArrowException:
        # Damaged: the stage rejects it by name, and an estimate does without it.
        return 0


def admitted(
    store: Store, data: DataSection, shard: Shard, *, with_images: bool
) -> Iterator[tuple[Record, Item] | Reject]:
    """Yield every row of a shard as an admissible item or a reject: captions, labels and ids are judged, not images.

    Raises DataError for an unreadable container.
    """
    seen: set[str] = set()
    spec = spec_of(shard)
    read = read_layout if spec.format in LAYOUTS else read_shard
    rows = read(
        spec,
        timed_open(store),
        columns_of(data),
        with_images=with_images and data.modality != "text",
        needs=_NEEDS[data.modality],
    )
    for row in rows:
        if isinstance(row, Reject):
            yield row
            continue
        try:
            item = _item(row, data, shard.key)
            if item.id in seen:
                raise RowRejected(RejectCode.DUPLICATE_ID, f"id {item.id} was in this shard before")
            seen.add(item.id)
            yield row, item
        except RowRejected as reason:
            yield Reject(shard.key, row.key, row.offset, "read", reason.code, reason.reason)


def columns_of(data: DataSection) -> Columns:
    """The reader's column mapping from the configuration; the side that the corpus lacks is not looked for."""
    mapped = data.columns.model_dump()
    if data.modality == "image":
        mapped["caption"] = NOT_READ
    elif data.modality == "text":
        mapped["image"] = NOT_READ
    return Columns(**mapped, label_separator=data.label_separator)


def _item(record: Record, data: DataSection, shard_key: str) -> Item:
    cleaned = clean_captions(record.captions) if data.modality != "image" else ()
    captions = cleaned
    labels = caption_classes(cleaned) if data.caption_classes == "coco" else record.labels
    if data.mask_class_words:
        captions = clean_captions(mask_class_words(caption, labels) for caption in cleaned)
    captions = clean_captions(caption[: data.max_caption_chars] for caption in captions)[: data.max_captions]
    if not captions and data.modality != "image":
        reason = "only words of the row's own classes" if cleaned else "no caption with text"
        raise RowRejected(RejectCode.EMPTY_CAPTION, reason)
    item_id = record.item_id(shard_key)
    return Item(item_id, captions, labels, record.partition or instance_partition(item_id))


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a chunk, but for its pixels."""

    item: Item
    offset: int
    thumbnail: bytes | None = None
    image: bytes | None = None
    sha256: str | None = None


@dataclass
class _Chunk:
    """Rows on their way into one chunk."""

    source: ShardSource
    shard_key: str
    num_in: int = 0
    num_filtered: int = 0
    rejects: list[RejectedRow] = field(default_factory=list)
    rows: list[_Row] = field(default_factory=list)
    image_bytes: int = 0

    def __post_init__(self) -> None:
        # Images are decoded into their place; rows that never come cost address space only.
        size = self.source.pixels.size_px if self.source.pixels is not None else 0
        self._pixels_BHW3 = np.empty((self.source.chunk_rows, size, size, 3), np.uint8)

    @property
    def is_full(self) -> bool:
        return len(self.rows) == self.source.chunk_rows or self.image_bytes >= CHUNK_BYTES

    def add(self, record: Record, item: Item) -> None:
        try:
            row = _Row(item, record.offset) if self.source.pixels is None else self._decode(record, item)
        except RowRejected as reason:
            reject = Reject(self.shard_key, record.key, record.offset, "decode", reason.code, reason.reason)
            self.reject(record.key, reject)
            return
        self.image_bytes += len(row.image or b"")
        self.rows.append(row)

    def _decode(self, record: Record, item: Item) -> _Row:
        source, pixels = self.source, self.source.pixels
        assert pixels is not None
        if record.image is None:
            raise RowRejected(RejectCode.MISSING_IMAGE, "no image in this row")
        # First, while the bytes just read are in the caches: a tenth of the hash's time.
        digest = hashlib.sha256(record.image).hexdigest()
        image = decode_image(
            record.image,
            size_px=pixels.size_px,
            crop_fraction=pixels.crop_fraction,
            interpolation=pixels.interpolation,
            fit=pixels.fit,
            max_pixels=source.data.max_pixels,
            thumbnail_px=source.thumbnail_px,
            scaled_jpeg=source.data.scaled_jpeg,
        )
        self._pixels_BHW3[len(self.rows)] = image.pixels_HW3
        kept = record.image if source.keep_images else None
        return _Row(item, record.offset, image.thumbnail_jpeg, kept, digest)

    def reject(self, key: str | None, reject: Reject) -> None:
        item_id = None if key is None else f"{self.shard_key}#{key}"
        self.rejects.append(
            RejectedRow(
                item_id, self.shard_key, reject.offset, reject.stage, reject.code.value, reject.reason
            )
        )

    def finish(self, *, last: bool) -> DecodedChunk:
        return DecodedChunk(self._table(), tuple(self.rejects), self.num_in, self.num_filtered, last)

    def _table(self) -> pa.Table:
        rows, strings = self.rows, pa.list_(pa.string())
        columns = {
            "id": pa.array([row.item.id for row in rows], pa.string()),
            "thumbnail": pa.array([row.thumbnail for row in rows], pa.binary()),
            "image": pa.array([row.image for row in rows], pa.binary()),
            "captions": pa.array([row.item.captions for row in rows], strings),
            "labels": pa.array([row.item.labels for row in rows], strings),
            "partition": pa.array([row.item.partition for row in rows], pa.string()),
            "source_shard": pa.array([self.shard_key] * len(rows), pa.string()),
            "source_offset": pa.array([row.offset for row in rows], pa.int64()),
            "sha256": pa.array([row.sha256 for row in rows], pa.string()),
        }
        if self.source.pixels is not None:
            columns[PIXELS] = pixels_column(self._pixels_BHW3[: len(rows)])
        return pa.table(columns)
