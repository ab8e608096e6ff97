"""How a shard becomes a part: join its staged chunks, check that no row was lost, write the files, note the commit.

Order is the law here: rejected part, data parts, then `_commits/<part>.json` LAST. A part without a valid commit
does not exist, whatever the listing says. Bytes depend on the chunks and the pinned writer only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from zscmr_ray.errors import DataError
from zscmr_ray.manifest import Manifest, PartRecord, StageKey, part_record, write_manifest
from zscmr_ray.schema import PARQUET_OPTIONS, ROW_GROUP_ROWS
from zscmr_ray.stages.plane.chunks import ChunkResult, Shard
from zscmr_ray.stages.plane.encode import REJECTED
from zscmr_ray.stages.plane.staging import STAGING, read_chunk
from zscmr_ray.storage import Store

COMMITS = "_commits"


class Commit(BaseModel):
    """One shard that is done: its counts and its files, as noted in `_commits/`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    shard_key: str
    counts: dict[str, int]
    rejected: dict[str, int]
    files: list[PartRecord]


def commit_part(store: Store, shard: Shard, results: Sequence[ChunkResult], *, item_output: str) -> Commit:
    """Write a shard's files from its staged chunks and note the commit; safe to repeat.

    `item_output` names the output with one row per item ("" is the stage directory itself). Raises DataError, and
    commits nothing, when chunks are missing or rows were lost.
    """
    ordered = sorted(results, key=lambda result: result.index)
    _check_complete(shard, ordered)
    rows, rejects = _check_chunks(store, ordered)
    counts = {
        "in": sum(result.num_in for result in ordered),
        "out": rows[item_output],
        "rejected": rejects.num_rows,
        "filtered": sum(result.num_filtered for result in ordered),
    } | {name: count for name, count in sorted(rows.items()) if name}
    _check_conservation(shard, counts)
    files = []
    if rejects.num_rows:
        files.append(write_part(store, f"{REJECTED}/{shard.part}", [rejects]))
    for name in sorted(rows):
        key = f"{name}/{shard.part}" if name else shard.part
        files.append(write_part(store, key, _tables(store, ordered, name)))
    codes = Counter(rejects["code"].to_pylist())
    commit = Commit(
        part=shard.part,
        shard_key=shard.key,
        counts=counts,
        rejected=dict(sorted(codes.items())),
        files=sorted(files, key=lambda record: record.name),
    )
    store.write_json(commit_key(shard.part), commit.model_dump())
    return commit


def commit_key(part: str) -> str:
    """The file that says a part is committed."""
    return f"{COMMITS}/{PurePosixPath(part).stem}.json"


def valid_commits(store: Store, shards: Iterable[Shard]) -> dict[str, Commit]:
    """The commits of these shards whose files are all there with their noted sizes, by part."""
    sizes = {info.key: info.size_bytes for info in store.list()}
    found = {}
    for shard in shards:
        if commit_key(shard.part) not in sizes:
            continue
        commit = _read_commit(store, shard.part)
        if commit is not None and all(sizes.get(file.name) == file.size_bytes for file in commit.files):
            found[shard.part] = commit
    return found


def finish_stage(store: Store, key: StageKey, commits: Iterable[Commit], *, info: dict[str, Any]) -> Manifest:
    """Write the manifest over all commits, then delete the bookkeeping: a finished directory holds output only."""
    ordered = sorted(commits, key=lambda commit: commit.part)
    totals: Counter[str] = Counter()
    for commit in ordered:
        totals.update(commit.counts)
        totals.update({f"rejected_{code}": count for code, count in commit.rejected.items()})
    manifest = Manifest(
        key=key,
        config_hash=key.config_hash,
        counts={name: totals[name] for name in sorted(totals)} | {"shards": len(ordered)},
        parts=sorted((file for commit in ordered for file in commit.files), key=lambda record: record.name),
        info=info,
    )
    write_manifest(store, manifest)
    clear_bookkeeping(store)
    return manifest


def clear_bookkeeping(store: Store) -> None:
    """Delete what a finished stage no longer needs (also after a kill between manifest and deletion)."""
    store.delete_tree(STAGING)
    store.delete_tree(COMMITS)


def write_part(store: Store, key: str, tables: Iterable[pa.Table]) -> PartRecord:
    """Write tables of one schema as a parquet file of full row groups; bytes do not depend on where they were cut."""
    rows = 0
    iterator = iter(tables)
    first = next(iterator)
    with store.open_write(key) as file, pq.ParquetWriter(file, first.schema, **PARQUET_OPTIONS) as writer:
        for group in _row_groups(first, iterator):
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            rows += group.num_rows
    return part_record(store, key, rows=rows)


def _row_groups(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    held = first
    for table in rest:
        held = pa.concat_tables([held, table])
        while held.num_rows >= ROW_GROUP_ROWS:
            yield held.slice(0, ROW_GROUP_ROWS).combine_chunks()
            held = held.slice(ROW_GROUP_ROWS)
    while held.num_rows:
        yield held.slice(0, ROW_GROUP_ROWS).combine_chunks()
        held = held.slice(ROW_GROUP_ROWS)


def _tables(store: Store, ordered: Sequence[ChunkResult], name: str) -> Iterator[pa.Table]:
    # Each output reads the chunks again: one chunk in memory at a time, whatever the shard's size.
    for result in ordered:
        yield read_chunk(store, result.part, index=result.index, sha256=None)[name]


def _check_chunks(store: Store, ordered: Sequence[ChunkResult]) -> tuple[Counter[str], pa.Table]:
    """Read every chunk once, checksums compared: the rows of each output, and the rejected rows of all."""
    rows: Counter[str] = Counter()
    rejects, metadata = [], None
    for result in ordered:
        tables = read_chunk(store, result.part, index=result.index, sha256=result.sha256)
        rejected = tables.pop(REJECTED)
        # Copied out of the chunk, which would otherwise stay in memory with them.
        rejects.append(pa.Table.from_pylist(rejected.to_pylist(), schema=rejected.schema))
        rows.update({name: table.num_rows for name, table in tables.items()})
        metadata = next(iter(tables.values())).schema.metadata
    return rows, pa.concat_tables(rejects).replace_schema_metadata(metadata)


def _check_complete(shard: Shard, ordered: Sequence[ChunkResult]) -> None:
    indices = [result.index for result in ordered]
    if indices != list(range(len(ordered))) or not ordered or not ordered[-1].last:
        raise DataError(
            "a shard has missing chunks",
            got=f"{shard.key}: chunks {indices}",
            expected="0, 1, ... to the one marked last",
            remedy="run the same command again",
        )


def _check_conservation(shard: Shard, counts: dict[str, int]) -> None:
    accounted = counts["out"] + counts["rejected"] + counts["filtered"]
    if counts["in"] != accounted:
        raise DataError(
            f"rows were lost or added in {shard.key}",
            got=f"{counts['in']} rows in",
            expected=f"{counts['out']} out + {counts['rejected']} rejected + {counts['filtered']} filtered "
            f"= {accounted}",
            remedy="this is a defect of the stage: report it with the shard",
        )


def _read_commit(store: Store, part: str) -> Commit | None:
    try:
        return Commit.model_validate(store.read_json(commit_key(part)))
    except (DataError, ValidationError):
        # Puts are atomic, so an unreadable note was damaged from outside: the shard is simply done again.
        return None
