"""Embeddings to the clip-retrieval layout: vectors byte for byte, ids and provenance in the metadata.

Thumbnails and region weights have no place in that layout and are left out (the manifest says so). Vectors stay what
they are: unit blocks, of constant norm, so an inner product ranks as our own index does with equal block weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.claim import Claim, open_stage
from zscmr_ray.config.operator import OWN_CHECKPOINT
from zscmr_ray.errors import DataError
from zscmr_ray.manifest import Manifest, PartRecord, StageKey, part_record, require_manifest
from zscmr_ray.progress import Progress
from zscmr_ray.schema import PARQUET_OPTIONS, ROW_GROUP_ROWS, file_metadata, provenance_of
from zscmr_ray.stages import StageResult
from zscmr_ray.stages.convert.layout import IMAGES, METADATA, TEXTS, file_key, write_vectors
from zscmr_ray.stages.convert.rows import LinedUp, RowReader, line_up, vectors_of
from zscmr_ray.stages.plane.chunks import Shard
from zscmr_ray.stages.plane.commit import Commit, commit_key, shard_fingerprint, valid_commits
from zscmr_ray.stages.plane.finish import clear_bookkeeping, finish_stage
from zscmr_ray.stages.verified_parts import verified_part
from zscmr_ray.storage import Store

STAGE = "convert"
SIDES = {"image": IMAGES, "text": TEXTS}
LEFT_OUT = ("thumbnail", "region_weights", "regions")
# What of a part's provenance says whose vectors these are; the rest is about the stage that wrote it.
_NOT_THE_MODEL = {"stage", "config_hash"}

_METADATA_FIELDS = [
    pa.field("image_path", pa.string()),
    pa.field("caption", pa.string()),
    pa.field("item_id", pa.string(), nullable=False),
    pa.field("caption_id", pa.string()),
    pa.field("labels", pa.list_(pa.string())),
    pa.field("source_shard", pa.string()),
    pa.field("source_offset", pa.int64()),
    pa.field("sha256", pa.string()),
]
_COLUMNS = {
    "image": ("id", "vector", "labels", "source_shard", "source_offset", "sha256"),
    "text": ("id", "item_id", "caption", "vector", "labels"),
}


@dataclass(frozen=True, slots=True)
class _Part:
    """One part of the embeddings (side -> its file) and the number it becomes."""

    name: str
    number: int
    records: Mapping[str, PartRecord]


def export_clip_retrieval(source: Store, target: Store, *, overwrite: bool = False) -> StageResult:
    """Write an embeddings directory in the clip-retrieval layout, resuming by part.

    Raises DataError when the embeddings are incomplete, damaged or of several models, RefusedError when the target
    holds another conversion.
    """
    embeddings = require_manifest(source, "embed")
    model = _model(source, embeddings)
    key = StageKey(stage=STAGE, config={"to": "clip-retrieval"}, input_fingerprint=embeddings.fingerprint)
    with open_stage(target, key, overwrite=overwrite) as claim:
        if claim.complete is not None:
            clear_bookkeeping(target)
            return _result(target, claim.complete, skipped=True)
        parts = _parts(embeddings)
        sides = [side for side in SIDES if any(side in part.records for part in parts)]
        shards = [_shard(part) for part in parts]
        commits = valid_commits(target, shards)
        total = sum(record.rows for part in parts for record in part.records.values())
        with Progress(STAGE, total=total, unit="rows") as progress:
            for part in parts:
                if part.name not in commits:
                    writer = _PartWriter(source, claim, part, sides, model=model, num_files=len(parts))
                    commits[part.name] = writer.write()
                progress.advance(sum(record.rows for record in part.records.values()))
        info = {
            "layout": "clip-retrieval",
            "vectors": model,
            "model": embeddings.info.get("model", OWN_CHECKPOINT),
            "sides": sides,
            "parts": [part.name for part in parts],
            "left_out": list(LEFT_OUT),
        }
        manifest = finish_stage(claim, commits.values(), info=info)
        return _result(target, manifest, skipped=False)


class _PartWriter:
    """Writes the up to three files of one part."""

    def __init__(
        self,
        source: Store,
        claim: Claim,
        part: _Part,
        sides: Sequence[str],
        *,
        model: dict[str, Any],
        num_files: int,
    ) -> None:
        self._source, self._target, self._part, self._sides = source, claim.store, part, sides
        assert claim.lease is not None, "only a driver writes"
        self._check = claim.lease.fence.check
        self._dimension = int(model["blocks"][-1]["stop"])
        self._schema = pa.schema(_METADATA_FIELDS, metadata=file_metadata({"stage": STAGE} | model))
        self._keys = {
            folder: file_key(folder, part.number, num_files=num_files)
            for folder in (*(SIDES[side] for side in sides), METADATA)
        }

    def write(self) -> Commit:
        """Write and commit; each file is read for itself, so that only a batch of rows is in memory."""
        with contextlib.ExitStack() as stack:
            opened = {
                side: stack.enter_context(verified_part(self._source, record))
                for side, record in self._part.records.items()
            }
            image_ids = _strings(opened.get("image"), "id")
            rows = line_up(image_ids, _strings(opened.get("text"), "item_id"), part=self._part.name)
            num_rows = len(rows.images_N)
            for side in self._sides:
                with self._target.open_write(self._keys[SIDES[side]]) as file:
                    blocks = (
                        vectors_of(table["vector"], dimension=self._dimension)
                        for table in self._batches(opened, rows, side, ("vector",))
                    )
                    write_vectors(file, blocks, shape=(num_rows, self._dimension))
                    self._check()
            self._write_metadata(opened, rows)
        counts = {"rows": num_rows} | {
            side: record.rows for side, record in sorted(self._part.records.items())
        }
        files = [part_record(self._target, key, rows=num_rows) for key in sorted(self._keys.values())]
        commit = Commit(
            part=self._part.name,
            shard_key=self._part.name,
            fingerprint=shard_fingerprint(_shard(self._part)),
            counts=counts,
            rejected={},
            files=files,
        )
        self._check()
        self._target.write_json(commit_key(commit.part), commit.model_dump())
        return commit

    def _batches(
        self, opened: Mapping[str, pq.ParquetFile], rows: LinedUp, side: str, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        schema = pa.schema([pa.field("vector", pa.list_(pa.float16(), self._dimension))])
        numbers = rows.images_N if side == "image" else rows.texts_N
        reader = RowReader(opened.get(side), columns, batch_rows=ROW_GROUP_ROWS)
        for start in range(0, len(numbers), ROW_GROUP_ROWS):
            wanted = numbers[start : start + ROW_GROUP_ROWS]
            table = reader.take(wanted)
            # A part without this side, where others have it: all of its rows are absent.
            yield table if table is not None else pa.table({"vector": pa.nulls(len(wanted), schema[0].type)})

    def _write_metadata(self, opened: Mapping[str, pq.ParquetFile], rows: LinedUp) -> None:
        readers = {
            side: RowReader(
                opened.get(side), [c for c in _COLUMNS[side] if c != "vector"], batch_rows=ROW_GROUP_ROWS
            )
            for side in SIDES
        }
        with self._target.open_write(self._keys[METADATA]) as file:
            with pq.ParquetWriter(file, self._schema, **PARQUET_OPTIONS) as writer:
                for start in range(0, len(rows.images_N), ROW_GROUP_ROWS):
                    stop = start + ROW_GROUP_ROWS
                    image = readers["image"].take(rows.images_N[start:stop])
                    text = readers["text"].take(rows.texts_N[start:stop])
                    writer.write_table(_metadata(image, text, self._schema), row_group_size=ROW_GROUP_ROWS)
            self._check()


def _metadata(image: pa.Table | None, text: pa.Table | None, schema: pa.Schema) -> pa.Table:
    """What is known of each row: the image's own columns first, the text's where there is no image."""
    length = image.num_rows if image is not None else text.num_rows if text is not None else 0

    def column(table: pa.Table | None, name: str) -> list[Any]:
        return [None] * length if table is None else list(table[name].to_pylist())

    items, owners = column(image, "id"), column(text, "item_id")
    labels, text_labels = column(image, "labels"), column(text, "labels")
    values = {
        "image_path": items,
        "caption": column(text, "caption"),
        "item_id": [owner if item is None else item for item, owner in zip(items, owners, strict=True)],
        "caption_id": column(text, "id"),
        "labels": [b if a is None else a for a, b in zip(labels, text_labels, strict=True)],
    } | {name: column(image, name) for name in ("source_shard", "source_offset", "sha256")}
    return pa.table(
        {name: pa.array(values[name], schema.field(name).type) for name in schema.names}, schema=schema
    )


def _parts(embeddings: Manifest) -> list[_Part]:
    """Parts with rows, numbered in the order of their names."""
    found: dict[str, dict[str, PartRecord]] = {}
    for record in embeddings.parts:
        side, _, name = record.name.partition("/")
        if side in SIDES and record.rows:
            found.setdefault(name, {})[side] = record
    if not found:
        raise DataError("there is nothing to convert", got="no image or text rows in the manifest")
    return [_Part(name, number, found[name]) for number, name in enumerate(sorted(found))]


def _model(source: Store, embeddings: Manifest) -> dict[str, Any]:
    """What the parts say of the model that made their vectors; DataError unless they all say the same."""
    said: dict[str, Any] = {}
    first = ""
    for record in embeddings.parts:
        if record.name.partition("/")[0] not in SIDES or not record.rows:
            continue
        with source.open(record.name) as file:
            facts = {
                name: value
                for name, value in provenance_of(pq.read_schema(file)).items()
                if name not in _NOT_THE_MODEL
            }
        if "fingerprint" not in facts or "blocks" not in facts:
            raise DataError(
                "a part does not say which model made it",
                got=f"{source.uri}/{record.name}",
                remedy="run `zscmr embed --overwrite`",
            )
        if first and facts["fingerprint"] != said["fingerprint"]:
            raise DataError(
                "the embeddings come from different models",
                got=f"{record.name}: {facts['fingerprint']}",
                expected=f"{first}: {said['fingerprint']}",
                remedy="embed again into one directory with one checkpoint",
            )
        first, said = first or record.name, said or facts
    return said


def _strings(part: pq.ParquetFile | None, column: str) -> list[str]:
    return [] if part is None else list(part.read([column])[column].to_pylist())


def _shard(part: _Part) -> Shard:
    return Shard(part.name, part.name, _size(part))


def _size(part: _Part) -> int:
    return sum(record.size_bytes for record in part.records.values())


def _result(target: Store, manifest: Manifest, *, skipped: bool) -> StageResult:
    return StageResult(STAGE, target.uri, skipped=skipped, counts=manifest.counts, info=manifest.info)
