"""One file of a stage directory against what the manifest says of it: checksum, rows, schema, model, vectors.

Reads a part once, a batch of rows at a time. What is wrong comes back as findings, so that one bad file hides no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.errors import DataError
from zscmr_ray.manifest import Manifest, PartRecord
from zscmr_ray.schema import SCHEMA_VERSION, VERSION_KEY, provenance_of
from zscmr_ray.stages.verified_parts import open_parquet, verified_file
from zscmr_ray.stages.verify_ids import Records, hash_ids
from zscmr_ray.storage import Store

_BATCH_ROWS = 4096
# Half precision rounds each component by 2^-11 of itself, and the norm by no more; ten times that.
NORM_TOLERANCE = 5e-3
# Their rows have an id that must occur once; rejected rows need none.
_WITHOUT_IDS = frozenset({"rejected"})
# A row of its table names an item once for each kind of likeness.
_REPEATS_IDS = frozenset({"duplicates"})


@dataclass
class PartCheck:
    """What was found in one file: its side ("" is the directory itself), its ids' records, and what is wrong with it."""

    record: PartRecord
    side: str
    ids: list[Records] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def find(self, what: str, *, got: object, expected: object) -> None:
        """Note a violation, naming the file."""
        self.findings.append(f"{self.record.name}: {what}: got {got}, expected {expected}")


def check_part(store: Store, manifest: Manifest, number: int) -> PartCheck:
    """Check the manifest's part of this number."""
    record = manifest.parts[number]
    check = PartCheck(record, record.name.rpartition("/")[0])
    try:
        with verified_file(store, record) as path:
            size_bytes = path.stat().st_size
            if size_bytes != record.size_bytes:
                check.find("size", got=size_bytes, expected=f"{record.size_bytes} bytes")
            if record.name.endswith(".parquet"):
                with open_parquet(path, record.name) as part:
                    _check_rows(part, manifest, number, check)
    except DataError as error:
        check.findings.append(f"{record.name}: {error.message}: got {error.got}, expected {error.expected}")
    except (OSError, pa.ArrowException) as error:
        check.findings.append(f"{record.name}: cannot be read: {error}")
    return check


def _check_rows(part: pq.ParquetFile, manifest: Manifest, number: int, check: PartCheck) -> None:
    rows, schema = part.metadata.num_rows, part.schema_arrow
    if rows != check.record.rows:
        check.find("rows", got=rows, expected=check.record.rows)
    version = (schema.metadata or {}).get(VERSION_KEY, b"none").decode()
    if version != str(SCHEMA_VERSION):
        check.find("schema version", got=version, expected=SCHEMA_VERSION)
    provenance = provenance_of(schema)
    if provenance.get("config_hash", manifest.config_hash) != manifest.config_hash:
        check.find("configuration", got=provenance["config_hash"], expected=manifest.config_hash)
    blocks: list[dict[str, Any]] = []
    if "vector" in schema.names:
        for name in ("fingerprint", "blocks"):
            if provenance.get(name) != manifest.info.get(name):
                check.find(name, got=provenance.get(name), expected=f"{manifest.info.get(name)} (manifest)")
        blocks = list(manifest.info.get("blocks") or [])
    unique = check.side not in _WITHOUT_IDS and manifest.key.stage not in _REPEATS_IDS
    has_ids = unique and "id" in schema.names
    columns = [name for name, wanted in (("id", has_ids), ("vector", bool(blocks))) if wanted]
    for first, batch in _batches(part, columns):
        if has_ids:
            check.ids.append(hash_ids(batch["id"].to_pylist(), part=number, first_row=first))
        if blocks:
            _check_vectors(vectors_of(batch["vector"]), blocks, first, check)


def _batches(part: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    if not columns:
        return
    first = 0
    for batch in part.iter_batches(_BATCH_ROWS, columns=columns):
        yield first, batch
        first += batch.num_rows


def vectors_of(column: pa.Array) -> npt.NDArray[np.float32]:
    """A column of fixed-size lists as rows."""
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(len(column), -1)


def _check_vectors(
    vectors_ND: npt.NDArray[np.float32], blocks: list[dict[str, Any]], first: int, check: PartCheck
) -> None:
    if any("of finite numbers" in finding or "norm" in finding for finding in check.findings):
        return  # one row stands for all
    bad = np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))
    if len(bad):
        check.find("vector", got=f"row {first + int(bad[0])} is not", expected="a vector of finite numbers")
        return
    for block in blocks:
        norms_N = np.linalg.norm(vectors_ND[:, int(block["start"]) : int(block["stop"])], axis=1)
        bad = np.flatnonzero(np.abs(norms_N - 1) > NORM_TOLERANCE)
        if len(bad):
            row = int(bad[0])
            check.find(
                f"norm of block {block['name']}",
                got=f"{norms_N[row]:.4f} in row {first + row}",
                expected=f"1 within {NORM_TOLERANCE}",
            )
