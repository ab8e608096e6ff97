"""`zscmr duplicates`: mark rows of embeddings that are the same, and delete nothing.

    duplicates.parquet    id, group (the smallest id of it), kind, score (cosine with that row), keep (is that row)

Kinds: `image_bytes` (equal sha256 of the image), `caption` (equal texts), and `image_vector` or, without images,
`text_vector` (cosine of the stored vectors >= threshold, through others where it must be). A row may be in one group
of each kind. Reads part by part; vectors go through a scratch file, so that memory is blocks of rows, ids and hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zscmr_ray.claim import open_stage
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.manifest import Manifest, PartRecord, StageKey, require_manifest
from zscmr_ray.progress import Progress
from zscmr_ray.retrieval.duplicates import BLOCK_ROWS, Groups, cosines, equal_groups, near_groups, num_pairs
from zscmr_ray.schema import ROW_GROUP_ROWS, duplicates_schema
from zscmr_ray.stages import StageResult
from zscmr_ray.stages.plane.parts import write_part
from zscmr_ray.stages.verified_parts import verified_part
from zscmr_ray.storage import Store

STAGE = "duplicates"
FILE = "duplicates.parquet"
DEFAULT_THRESHOLD = 0.97
# 2e10 pairs: five minutes of one core at 512 numbers a vector (docs/interop.md).
DEFAULT_MAX_ROWS = 200_000
_CONTENT = {"image": ("image_bytes", "sha256"), "text": ("caption", "caption")}


@dataclass(frozen=True, slots=True)
class _Side:
    """What is held of one table: ids, their order, a hash of each row's content, and mapped vectors (None: not asked)."""

    ids: pa.Array
    rank_N: npt.NDArray[np.int64]
    digests_N: npt.NDArray[np.bytes_]
    vectors_ND: npt.NDArray[np.float16] | None


def mark_duplicates(
    source: Store,
    target: Store,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    near: bool = True,
    max_rows: int = DEFAULT_MAX_ROWS,
    overwrite: bool = False,
) -> StageResult:
    """Write the table of duplicates of an embeddings directory, or return at once when it is there.

    Raises ConfigError for a threshold outside (0, 1] and, as the comparison is quadratic, for more than `max_rows`
    rows; DataError when the embeddings are incomplete or damaged.
    """
    if not 0.0 < threshold <= 1.0:
        raise ConfigError("the threshold is a cosine", got=threshold, expected="above 0, at most 1")
    embeddings = require_manifest(source, "embed")
    parts = {side: _parts(embeddings, side) for side in _CONTENT}
    compared = next((side for side in _CONTENT if parts[side]), None) if near else None
    num_rows = sum(part.rows for part in parts[compared]) if compared else 0
    if num_rows > max_rows:
        raise _too_many(num_rows, max_rows)
    config: dict[str, Any] = {"threshold": threshold if near else None}
    key = StageKey(stage=STAGE, config=config, input_fingerprint=embeddings.fingerprint)
    with open_stage(target, key, overwrite=overwrite) as claim:
        if claim.complete is not None:
            return _result(target, claim.complete, skipped=True)
        counts: dict[str, int] = {}
        schema = duplicates_schema({"stage": STAGE, "config_hash": key.config_hash})
        with tempfile.TemporaryDirectory(prefix="zscmr-duplicates-") as scratch:
            tables = _tables(
                source, parts, compared, threshold=threshold, scratch=Path(scratch), counts=counts
            )
            # An empty table first: there may be no duplicates.
            found = [schema.empty_table(), *(table.cast(schema) for table in tables)]
            assert claim.lease is not None, "only a driver writes"
            record = write_part(target, FILE, found, check=claim.lease.fence.check)
        manifest = Manifest(
            key=key,
            config_hash=key.config_hash,
            counts=counts,
            parts=[record],
            info={"threshold": config["threshold"], "compared_pairs": num_pairs(num_rows)},
        )
        claim.finish(manifest)
        return _result(target, manifest, skipped=False)


def _tables(
    source: Store,
    parts: dict[str, list[PartRecord]],
    compared: str | None,
    *,
    threshold: float,
    scratch: Path,
    counts: dict[str, int],
) -> Iterator[pa.Table]:
    for side, (kind, column) in _CONTENT.items():
        if not parts[side]:
            continue
        rows = _read_side(source, parts[side], column, scratch=scratch if side == compared else None)
        counts[side] = len(rows.ids)
        groups = equal_groups(rows.digests_N, rank_N=rows.rank_N)
        yield _table(rows, groups, kind, np.ones(len(groups.rows_M)), counts)
        if rows.vectors_ND is not None:
            yield _near_table(rows, rows.vectors_ND, f"{side}_vector", threshold=threshold, counts=counts)


def _near_table(
    rows: _Side, vectors_ND: npt.NDArray[np.float16], kind: str, *, threshold: float, counts: dict[str, int]
) -> pa.Table:
    with Progress(STAGE, total=num_pairs(len(rows.ids)), unit="pairs") as progress:
        groups = near_groups(
            lambda start, stop: np.array(vectors_ND[start:stop]),
            threshold=threshold,
            rank_N=rows.rank_N,
            advance=progress.advance,
        )
    scores = np.ones(len(groups.rows_M))
    for start in range(0, len(scores), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        scores[part] = cosines(vectors_ND[groups.rows_M[part]], vectors_ND[groups.first_M[part]])
    return _table(rows, groups, kind, scores, counts)


def _table(
    rows: _Side, groups: Groups, kind: str, scores: npt.NDArray[np.float64], counts: dict[str, int]
) -> pa.Table:
    counts[f"{kind}_groups"] = groups.num_groups
    counts[f"{kind}_rows"] = len(groups.rows_M)
    return pa.table(
        {
            "id": rows.ids.take(pa.array(groups.rows_M)),
            "group": rows.ids.take(pa.array(groups.first_M)),
            "kind": pa.array([kind] * len(groups.rows_M), pa.string()),
            "score": pa.array(scores.astype(np.float32)),
            "keep": pa.array(groups.rows_M == groups.first_M),
        }
    )


def _read_side(source: Store, parts: list[PartRecord], column: str, *, scratch: Path | None) -> _Side:
    """Read ids and content of every part; vectors go to a scratch file where they will be compared."""
    ids: list[pa.Array] = []
    digests: list[npt.NDArray[np.bytes_]] = []
    columns = ["id", column, *(["vector"] if scratch is not None else [])]
    dimension = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((scratch / "vectors").open("wb")) if scratch is not None else None
        for record in parts:
            with verified_part(source, record) as part:
                for batch in part.iter_batches(ROW_GROUP_ROWS, columns=columns):
                    ids.append(batch.column("id"))
                    digests.append(_digests(batch.column(column), hashed=column == "sha256"))
                    dimension = _keep_vectors(batch, file, dimension, record)
    all_ids = pa.concat_arrays(ids)
    order = pc.sort_indices(all_ids).to_numpy()
    rank_N = np.empty(len(order), np.int64)
    rank_N[order] = np.arange(len(order))
    vectors_ND = None
    if scratch is not None:
        vectors_ND = np.memmap(scratch / "vectors", np.float16, "r", shape=(len(all_ids), dimension))
    return _Side(all_ids, rank_N, np.concatenate(digests), vectors_ND)


def _keep_vectors(batch: pa.RecordBatch, file: IO[bytes] | None, dimension: int, record: PartRecord) -> int:
    if file is None:
        return dimension
    column = batch.column("vector")
    if dimension not in (0, column.type.list_size):
        raise DataError("vectors of another shape", got=f"{record.name}: {column.type}", expected=dimension)
    file.write(column.flatten().to_numpy(zero_copy_only=False).tobytes())
    return int(column.type.list_size)


def _digests(column: pa.Array, *, hashed: bool) -> npt.NDArray[np.bytes_]:
    """32 bytes a row, none for a null; `hashed` columns hold the hex of a sha256 already."""
    values = (value for value in column.to_pylist())
    raw = [
        b"" if not value else bytes.fromhex(value) if hashed else hashlib.sha256(value.encode()).digest()
        for value in values
    ]
    return np.array(raw, "S32")


def _parts(embeddings: Manifest, side: str) -> list[PartRecord]:
    return [part for part in embeddings.parts if part.name.startswith(f"{side}/") and part.rows]


def _too_many(num_rows: int, max_rows: int) -> ConfigError:
    ratio = num_pairs(num_rows) / num_pairs(DEFAULT_MAX_ROWS)
    return ConfigError(
        "too many rows to compare each with each",
        got=f"{num_rows} rows: {num_pairs(num_rows):.2e} pairs",
        expected=f"at most --max-rows {max_rows}",
        remedy=f"--max-rows {num_rows} ({ratio:.1f} x the time of {DEFAULT_MAX_ROWS} rows), or --no-near",
    )


def _result(target: Store, manifest: Manifest, *, skipped: bool) -> StageResult:
    return StageResult(STAGE, target.uri, skipped=skipped, counts=manifest.counts, info=manifest.info)
