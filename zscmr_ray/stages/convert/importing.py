"""The clip-retrieval layout to an embeddings directory that `zscmr index` takes: a part per numbered file.

Vectors become unit blocks in half precision; rows that cannot (zero or not finite vectors, missing or repeated ids)
are in `rejected/` with their reason. Columns that our tables have no place for are named in the manifest. The rules
for one row are in `incoming.py`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.claim import Claim, open_stage
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.manifest import Manifest, StageKey
from zscmr_ray.progress import Progress
from zscmr_ray.schema import (
    ROW_GROUP_ROWS,
    image_embeddings_schema,
    part_name,
    rejected_schema,
    text_embeddings_schema,
)
from zscmr_ray.stages import StageResult
from zscmr_ray.stages.convert.foreign import SourceFacts, read_source
from zscmr_ray.stages.convert.incoming import USED_COLUMNS, IncomingBatch, IncomingRows
from zscmr_ray.stages.convert.layout import (
    IMAGES,
    METADATA,
    TEXTS,
    NumberedFiles,
    find_files,
    map_vectors,
)
from zscmr_ray.stages.plane.chunks import Shard
from zscmr_ray.stages.plane.commit import (
    Commit,
    clear_bookkeeping,
    commit_key,
    finish_stage,
    shard_fingerprint,
    valid_commits,
    write_part,
)
from zscmr_ray.stages.verified_parts import open_parquet
from zscmr_ray.storage import Store

STAGE = "convert"
REJECTED = "rejected"


def import_clip_retrieval(
    source: Store,
    target: Store,
    *,
    model_name: str | None = None,
    id_column: str | None = None,
    overwrite: bool = False,
) -> StageResult:
    """Write embeddings from a clip-retrieval directory, resuming by part.

    `id_column` names the metadata column with the ids; without it `id`, else `image_path`, else the row's number.
    Raises DataError for a broken layout, ConfigError when no model is named, RefusedError when the target holds
    something else.
    """
    files = find_files(source)
    shape = _Shape(source, files[0], id_column=id_column)
    facts = read_source(source, files, model_name=model_name, dimension=shape.dimension)
    config = {
        "from": "clip-retrieval",
        "fingerprint": facts.vectors["fingerprint"],
        "id_column": shape.id_column,
    }
    key = StageKey(stage=STAGE, config=config, input_fingerprint=facts.contents)
    with open_stage(target, key, overwrite=overwrite) as claim:
        if claim.complete is not None:
            clear_bookkeeping(target)
            return _result(target, claim.complete, skipped=True)
        shards = _shards(files, facts)
        commits = valid_commits(target, shards)
        with Progress(STAGE, total=None, unit="rows") as progress:
            for numbered, shard in zip(files, shards, strict=True):
                if shard.part not in commits:
                    commits[shard.part] = _PartReader(source, claim, numbered, shard, shape, facts).write()
                progress.advance(commits[shard.part].counts["in"])
        info = facts.vectors | {
            "model": facts.model,
            "layout": "clip-retrieval",
            "id_column": shape.id_column,
            "left_out": shape.unused_columns,
            "source_contents": facts.contents,
        }
        return _result(target, finish_stage(claim, commits.values(), info=info), skipped=False)


class _Shape:
    """What the first numbered files show of all: folders, dimension, metadata columns, where ids come from."""

    def __init__(self, source: Store, first: NumberedFiles, *, id_column: str | None) -> None:
        self.folders = tuple(sorted(first.files))
        self.dimension = 0
        for folder in (IMAGES, TEXTS):
            if folder in first.files:
                with source.local_copy(first.files[folder].key) as path:
                    self.dimension = int(map_vectors(path, first.files[folder].key).shape[1])
                break
        columns: list[str] = []
        if METADATA in first.files:
            name = first.files[METADATA].key
            with source.local_copy(name) as path, open_parquet(path, name) as part:
                columns = list(part.schema_arrow.names)
        if TEXTS in first.files and "caption" not in columns:
            raise DataError(
                "text vectors without their texts",
                got=f"metadata columns {', '.join(columns) or 'none'}",
                expected="a column `caption`",
            )
        self.id_column = _id_column(columns, id_column)
        self.columns = tuple(c for c in columns if c in USED_COLUMNS or c == self.id_column)
        self.unused_columns = [c for c in columns if c not in self.columns]


class _PartReader:
    """Turns the files of one number into a part of each side."""

    def __init__(
        self,
        source: Store,
        claim: Claim,
        numbered: NumberedFiles,
        shard: Shard,
        shape: _Shape,
        facts: SourceFacts,
    ) -> None:
        self._source, self._target = source, claim.store
        self._numbered, self._shard = numbered, shard
        assert claim.lease is not None, "only a driver writes"
        self._check = claim.lease.fence.check
        self._shape, self._facts = shape, facts
        provenance = {"stage": STAGE, "config_hash": claim.key.config_hash} | facts.vectors
        self._schemas = {
            # The layout has no region weights: the column is there, as in every embeddings part, and null.
            "image": image_embeddings_schema(
                dimension=shape.dimension, num_regions=None, metadata=provenance
            ),
            "text": text_embeddings_schema(dimension=shape.dimension, metadata=provenance),
        }
        self._rejected_schema = rejected_schema(provenance)

    def write(self) -> Commit:
        """Write and commit; each side is read for itself, so that only a batch of rows is in memory."""
        with contextlib.ExitStack() as stack:
            paths = {
                folder: stack.enter_context(self._source.local_copy(info.key))
                for folder, info in self._numbered.files.items()
            }
            names = {folder: info.key for folder, info in self._numbered.files.items()}
            vectors = {f: map_vectors(paths[f], names[f]) for f in (IMAGES, TEXTS) if f in paths}
            metadata = None
            if METADATA in paths:
                metadata = stack.enter_context(open_parquet(paths[METADATA], names[METADATA]))
            num_rows = self._check_shapes(vectors, metadata)

            def batches() -> Iterator[IncomingBatch]:
                rows = IncomingRows(
                    shard_key=self._shard.key,
                    id_column=self._shape.id_column,
                    blocks=self._facts.vectors["blocks"],
                    stage=STAGE,
                )
                tables = _metadata_batches(metadata, self._shape.columns, num_rows)
                start = 0
                for table in tables:
                    stop = start + table.num_rows
                    yield rows.read(table, {f: v[start:stop] for f, v in vectors.items()}, first=start)
                    start = stop

            return self._write_tables(batches, num_rows, list(vectors))

    def _write_tables(
        self, batches: Callable[[], Iterator[IncomingBatch]], num_rows: int, folders: Sequence[str]
    ) -> Commit:
        part, files = self._shard.part, []
        rejects = [row for batch in batches() for row in batch.rejected]
        counts = {"in": num_rows, "out": num_rows - len(rejects), "rejected": len(rejects), "filtered": 0}
        if rejects:
            table = pa.Table.from_pylist(
                [asdict(row) for row in rejects],
                schema=self._rejected_schema,
            )
            files.append(write_part(self._target, f"{REJECTED}/{part}", [table], check=self._check))
        for side, folder in (("image", IMAGES), ("text", TEXTS)):
            if folder not in folders:
                continue
            schema = self._schemas[side]
            tables = (pa.Table.from_pydict(getattr(batch, side), schema=schema) for batch in batches())
            files.append(
                write_part(self._target, f"{side}/{part}", _at_least_one(tables, schema), check=self._check)
            )
            counts[side] = files[-1].rows
        commit = Commit(
            part=part,
            shard_key=self._shard.key,
            fingerprint=shard_fingerprint(self._shard),
            counts=counts,
            rejected=dict(sorted(Counter(str(row.code) for row in rejects).items())),
            files=sorted(files, key=lambda record: record.name),
        )
        self._check()
        self._target.write_json(commit_key(part), commit.model_dump())
        return commit

    def _check_shapes(self, vectors: dict[str, Any], metadata: pq.ParquetFile | None) -> int:
        """Rows of these files, the same in each, and the dimension of all; DataError."""
        rows = {self._numbered.files[folder].key: len(table) for folder, table in vectors.items()}
        if metadata is not None:
            rows[self._numbered.files[METADATA].key] = metadata.metadata.num_rows
            missing = set(self._shape.columns) - set(metadata.schema_arrow.names)
            if missing:
                raise DataError(
                    "a metadata file lacks columns that the first one has",
                    got=self._numbered.files[METADATA].key,
                    expected=", ".join(sorted(missing)),
                )
        if len(set(rows.values())) > 1:
            raise DataError(
                "files of one number have different numbers of rows",
                got=", ".join(f"{name}: {count}" for name, count in sorted(rows.items())),
                expected="row n of each to be the same image and caption",
                remedy="copy the directory again, or delete this number from every folder",
            )
        for folder, table in vectors.items():
            if table.shape[1] != self._shape.dimension:
                raise DataError(
                    "vectors of different lengths",
                    got=f"{self._numbered.files[folder].key}: {table.shape[1]}",
                    expected=f"{self._shape.dimension}, as in the first file",
                )
        return next(iter(rows.values()))


def _metadata_batches(
    metadata: pq.ParquetFile | None, columns: Sequence[str], num_rows: int
) -> Iterator[pa.Table]:
    """Batches of rows with the columns we use; without metadata batches of rows without any."""
    if metadata is not None and columns:
        for batch in metadata.iter_batches(ROW_GROUP_ROWS, columns=list(columns)):
            yield pa.Table.from_batches([batch])
        return
    for start in range(0, num_rows, ROW_GROUP_ROWS):
        # A table needs a column to have rows.
        yield pa.table({"": pa.nulls(min(ROW_GROUP_ROWS, num_rows - start))})


def _at_least_one(tables: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    yield schema.empty_table()
    yield from tables


def _id_column(columns: Sequence[str], wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in columns:
            raise ConfigError(
                "no such metadata column", got=f"--id-column {wanted}", expected=", ".join(columns) or "none"
            )
        return wanted
    return next((name for name in ("id", "image_path") if name in columns), None)


def _shards(files: Sequence[NumberedFiles], facts: SourceFacts) -> list[Shard]:
    """A part per number: named as in the export it came from, else after the number."""
    shards = []
    for place, numbered in enumerate(files):
        ours = facts.part_names
        part = ours[place] if ours else part_name(numbered.number)
        shards.append(Shard(part, numbered.number, numbered.size_bytes))
    return shards


def _result(target: Store, manifest: Manifest, *, skipped: bool) -> StageResult:
    return StageResult(STAGE, target.uri, skipped=skipped, counts=manifest.counts, info=manifest.info)
