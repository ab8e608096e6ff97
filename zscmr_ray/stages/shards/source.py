"""The CPU half of preprocess: shard to chunks of decoded rows. Runs in decode tasks, so it imports no torch.

A row leaves here decoded, rejected with a code, or filtered by the cap: never uncounted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zscmr_ray.config import DataSection
from zscmr_ray.data.captions import clean_captions, mask_class_words
from zscmr_ray.data.decode import DecodedImage, decode_image
from zscmr_ray.data.readers import read_shard
from zscmr_ray.data.records import Columns, Record, Reject, RowRejected
from zscmr_ray.data.splits import instance_partition
from zscmr_ray.schema import RejectCode
from zscmr_ray.stages.plane.chunks import CHUNK_BYTES, DecodedChunk, RejectedRow, Shard
from zscmr_ray.stages.shards.inputs import spec_of
from zscmr_ray.storage import Store

KEEP = "keep"


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """How an image is cut and resized for the backbone, in plain values (the backbone's own class needs torch)."""

    size_px: int
    crop_fraction: float
    interpolation: str


@dataclass(frozen=True, slots=True)
class Item:
    """A row that may become a pair if its image decodes."""

    id: str
    captions: tuple[str, ...]
    labels: tuple[str, ...]
    partition: str


@dataclass(frozen=True)
class PairSource:
    """Reads shards of image-text rows; a `plane.chunks.Source`."""

    input: Store
    data: DataSection
    pixels: PixelSpec
    chunk_rows: int
    thumbnail_px: int
    keep_images: bool

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        """Yield the shard's chunks; the row after a full chunk is seen first, so that the last one knows it is."""
        keep = shard.detail.get(KEEP)
        chunk = _Chunk(self, shard.key)
        for entry in admitted(self.input, self.data, shard, with_images=True):
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


def admitted(
    store: Store, data: DataSection, shard: Shard, *, with_images: bool
) -> Iterator[tuple[Record, Item] | Reject]:
    """Yield every row of a shard as an admissible item or a reject: captions, labels and ids are judged, not images.

    Raises DataError for an unreadable container.
    """
    seen: set[str] = set()
    for row in read_shard(spec_of(shard), store.open, columns_of(data), with_images=with_images):
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
    """The reader's column mapping from the configuration."""
    return Columns(**data.columns.model_dump(), label_separator=data.label_separator)


def _item(record: Record, data: DataSection, shard_key: str) -> Item:
    cleaned = clean_captions(record.captions)
    captions = cleaned
    if data.mask_class_words:
        captions = clean_captions(mask_class_words(caption, record.labels) for caption in cleaned)
    captions = clean_captions(caption[: data.max_caption_chars] for caption in captions)[: data.max_captions]
    if not captions:
        reason = "only words of the row's own classes" if cleaned else "no caption with text"
        raise RowRejected(RejectCode.EMPTY_CAPTION, reason)
    item_id = record.item_id(shard_key)
    return Item(item_id, captions, record.labels, record.partition or instance_partition(item_id))


@dataclass
class _Chunk:
    """Rows on their way into one chunk."""

    source: PairSource
    shard_key: str
    num_in: int = 0
    num_filtered: int = 0
    rejects: list[RejectedRow] = field(default_factory=list)
    rows: list[tuple[Record, Item, DecodedImage, str]] = field(default_factory=list)
    image_bytes: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.rows) == self.source.chunk_rows or self.image_bytes >= CHUNK_BYTES

    def add(self, record: Record, item: Item) -> None:
        source = self.source
        try:
            if record.image is None:
                raise RowRejected(RejectCode.MISSING_IMAGE, "no image in this row")
            image = decode_image(
                record.image,
                size_px=source.pixels.size_px,
                crop_fraction=source.pixels.crop_fraction,
                interpolation=source.pixels.interpolation,
                max_pixels=source.data.max_pixels,
                thumbnail_px=source.thumbnail_px,
            )
        except RowRejected as reason:
            reject = Reject(self.shard_key, record.key, record.offset, "decode", reason.code, reason.reason)
            self.reject(record.key, reject)
            return
        self.image_bytes += len(record.image) if source.keep_images else 0
        self.rows.append((record, item, image, hashlib.sha256(record.image).hexdigest()))

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
        size = self.source.pixels.size_px
        pixels_BHW3 = np.empty((len(self.rows), size, size, 3), np.uint8)
        for row, (_, _, image, _) in enumerate(self.rows):
            pixels_BHW3[row] = image.pixels_HW3
        items = [item for _, item, _, _ in self.rows]
        kept = [record.image if self.source.keep_images else None for record, _, _, _ in self.rows]
        strings = pa.list_(pa.string())
        return pa.table(
            {
                "id": pa.array([item.id for item in items], pa.string()),
                "thumbnail": pa.array([image.thumbnail_jpeg for _, _, image, _ in self.rows], pa.binary()),
                "image": pa.array(kept, pa.binary()),
                "captions": pa.array([item.captions for item in items], strings),
                "labels": pa.array([item.labels for item in items], strings),
                "partition": pa.array([item.partition for item in items], pa.string()),
                "source_shard": pa.array([self.shard_key] * len(self.rows), pa.string()),
                "source_offset": pa.array([record.offset for record, _, _, _ in self.rows], pa.int64()),
                "sha256": pa.array([digest for _, _, _, digest in self.rows], pa.string()),
                "pixels": pixels_column(pixels_BHW3),
            }
        )


def pixels_column(pixels_BHW3: npt.NDArray[np.uint8]) -> pa.Array:
    """Images as fixed-size binaries, without a copy."""
    rows, width = len(pixels_BHW3), int(np.prod(pixels_BHW3.shape[1:]))
    buffer = pa.py_buffer(pixels_BHW3)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), rows, [None, buffer])
