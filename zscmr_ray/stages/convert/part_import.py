"""One numbered file of each folder to one part of each side, in a single pass and memory of a batch of rows.

Files appear in the order of every stage: rejected rows, data, then the commit note. What a row becomes is
`incoming.py`; which directory, whose vectors and the manifest are `importing.py` and `foreign.py`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.claim import Claim
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.manifest import PartRecord, part_record
from zscmr_ray.schema import (
    PARQUET_OPTIONS,
    ROW_GROUP_ROWS,
    image_embeddings_schema,
    rejected_schema,
    text_embeddings_schema,
)
from zscmr_ray.stages.convert.foreign import SourceFacts
from zscmr_ray.stages.convert.incoming import USED_COLUMNS, IncomingBatch, IncomingRows
from zscmr_ray.stages.convert.layout import IMAGES, METADATA, TEXTS, NumberedFiles, map_vectors
from zscmr_ray.stages.plane.chunks import RejectedRow, Shard
from zscmr_ray.stages.plane.commit import Commit, commit_key, shard_fingerprint
from zscmr_ray.stages.plane.parts import write_part
from zscmr_ray.stages.verified_parts import open_parquet
from zscmr_ray.storage import Store

STAGE = "convert"
REJECTED = "rejected"
_SIDES = {"image": IMAGES, "text": TEXTS}


class Shape:
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


class PartImport:
    """The files of one number, and the part they become."""

    def __init__(
        self,
        source: Store,
        claim: Claim,
        numbered: NumberedFiles,
        shard: Shard,
        shape: Shape,
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
        """Write the part and note the commit. Raises DataError for files that do not belong together."""
        with contextlib.ExitStack() as stack:
            files = self._numbered.files
            paths = {
                folder: stack.enter_context(self._source.local_copy(info.key))
                for folder, info in files.items()
            }
            vectors = {f: map_vectors(paths[f], files[f].key) for f in (IMAGES, TEXTS) if f in paths}
            metadata = None
            if METADATA in paths:
                metadata = stack.enter_context(open_parquet(paths[METADATA], files[METADATA].key))
            num_rows = self._check_shapes(vectors, metadata)
            return self._write(self._batches(vectors, metadata, num_rows), num_rows)

    def _batches(
        self, vectors: dict[str, Any], metadata: pq.ParquetFile | None, num_rows: int
    ) -> Iterator[IncomingBatch]:
        rows = IncomingRows(
            shard_key=self._shard.key,
            id_column=self._shape.id_column,
            blocks=self._facts.vectors["blocks"],
            stage=STAGE,
        )
        start = 0
        for table in _metadata_batches(metadata, self._shape.columns, num_rows):
            stop = start + table.num_rows
            yield rows.read(table, {f: v[start:stop] for f, v in vectors.items()}, first=start)
            start = stop

    def _write(self, batches: Iterator[IncomingBatch], num_rows: int) -> Commit:
        part = self._shard.part
        sides = [side for side, folder in _SIDES.items() if folder in self._numbered.files]
        names = {side: f"{side}/{part}" for side in sides}
        files: list[PartRecord] = []
        rejects: list[RejectedRow] = []
        with contextlib.ExitStack() as stack:
            sinks = {
                side: stack.enter_context(
                    _part_sink(self._target, names[side], self._schemas[side], check=self._check)
                )
                for side in sides
            }
            for batch in batches:
                rejects += batch.rejected
                for side, sink in sinks.items():
                    sink.add(getattr(batch, side))
            if rejects:
                table = pa.Table.from_pylist([asdict(row) for row in rejects], schema=self._rejected_schema)
                files.append(write_part(self._target, f"{REJECTED}/{part}", [table], check=self._check))
        files += [part_record(self._target, names[side], rows=sinks[side].num_rows) for side in sides]
        commit = Commit(
            part=part,
            shard_key=self._shard.key,
            fingerprint=shard_fingerprint(self._shard),
            counts={"in": num_rows, "out": num_rows - len(rejects), "rejected": len(rejects), "filtered": 0}
            | {side: sinks[side].num_rows for side in sides},
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


class _Sink:
    """A part being written: rows in batches of any size, row groups of one size."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema
        self._held = schema.empty_table()
        self.num_rows = 0

    def add(self, columns: dict[str, Any]) -> None:
        """Take the next rows."""
        more = pa.Table.from_pydict(columns, schema=self._schema)
        self.num_rows += more.num_rows
        self._held = pa.concat_tables([self._held, more])
        while self._held.num_rows >= ROW_GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write one row group, or what is left."""
        if self._held.num_rows:
            self._writer.write_table(self._held.slice(0, ROW_GROUP_ROWS).combine_chunks(), ROW_GROUP_ROWS)
        self._held = self._held.slice(ROW_GROUP_ROWS)


@contextlib.contextmanager
def _part_sink(target: Store, key: str, schema: pa.Schema, *, check: Callable[[], None]) -> Iterator[_Sink]:
    """A part that appears when the block ends well; `check` is called when it is whole and not yet visible."""
    with target.open_write(key) as file:
        with pq.ParquetWriter(file, schema, **PARQUET_OPTIONS) as writer:
            sink = _Sink(writer, schema)
            yield sink
            sink.flush()
        check()


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


def _id_column(columns: Sequence[str], wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in columns:
            raise ConfigError(
                "no such metadata column", got=f"--id-column {wanted}", expected=", ".join(columns) or "none"
            )
        return wanted
    return next((name for name in ("item_id", "id", "image_path") if name in columns), None)
