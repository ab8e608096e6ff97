"""Shards to rows: `list_shards` says what there is to read, `read_shard` yields a record or a reject per row.

Formats: WebDataset tar, parquet, JSON Lines, CSV, a folder with sidecar texts, a folder per class. Nothing here
knows where files live: they come as keys, sizes and an `open_file` callable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from zscmr_ray.data.readers.folders import read_folder
from zscmr_ray.data.readers.listing import FORMATS, list_shards
from zscmr_ray.data.readers.manifests import read_csv, read_jsonl
from zscmr_ray.data.readers.parquet import read_parquet
from zscmr_ray.data.readers.rows import RowBuilder
from zscmr_ray.data.readers.webdataset import read_webdataset
from zscmr_ray.data.records import PAIR_FIELDS, Columns, Field, OpenFile, Record, Reject, ShardSpec
from zscmr_ray.errors import ConfigError

__all__ = ["FORMATS", "list_shards", "read_shard"]


def read_shard(
    spec: ShardSpec,
    open_file: OpenFile,
    columns: Columns,
    *,
    keep: frozenset[int] | None = None,
    with_images: bool = True,
    needs: Collection[Field] = PAIR_FIELDS,
) -> Iterator[Record | Reject]:
    """Yield one Record or Reject per row, in the shard's order.

    `open_file` takes a key relative to the input root. `keep` are the offsets to read (None = all): the others are
    neither read nor yielded, and offsets do not depend on it. Without `with_images` no image is read or checked.
    `needs` are the fields without which a row is rejected and a table refused: image and caption for pairs,
    `{"image"}` for an image-only corpus, `{"caption"}` for texts.

    Raises DataError, naming the shard, for a container that cannot be read whole (truncated, unsorted, no footer)
    and for missing or ambiguous columns; for formats whose rows have fields of their own, after the last row.
    """
    builder = RowBuilder(spec, columns, needs=needs, with_images=with_images)
    match spec.format:
        case "webdataset":
            return read_webdataset(spec, open_file, columns, builder, keep=keep, with_images=with_images)
        case "parquet":
            return read_parquet(spec, open_file, columns, needs=needs, keep=keep, with_images=with_images)
        case "jsonl":
            return read_jsonl(spec, open_file, columns, builder, keep=keep)
        case "csv":
            return read_csv(spec, open_file, columns, builder, needs=needs, keep=keep)
        case "folder" | "class_folder":
            return read_folder(spec, open_file, columns, builder, keep=keep)
    raise ConfigError("unknown shard format", got=spec.format, expected=", ".join(FORMATS))
