"""How a shard becomes a part: join its staged chunks, check that no row was lost, write the files, note the commit.

Order is the law here: rejected part, data parts, then `_commits/<part>.json` LAST. A part without a valid commit
does not exist, whatever the listing says. Bytes depend on the chunks and the pinned writer only. A driver that lost its
lease commits nothing: the lease is looked at when a file is whole, just before it becomes visible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.lease import Fence
from zscmr_ray.manifest import TALLY, PartRecord, ShardRecord, hash_json
from zscmr_ray.stages.plane.chunks import ChunkResult, Failure, Shard
from zscmr_ray.stages.plane.decode import failure_of
from zscmr_ray.stages.plane.encode import REJECTED
from zscmr_ray.stages.plane.parts import write_part
from zscmr_ray.stages.plane.staging import HeldChunks, read_chunk, shard_prefix
from zscmr_ray.storage import Store

COMMITS = "_commits"
_READS_AT_ONCE = 16
# Tiny shards come many in a task, and each waits for the disk or a bucket several times: threads wait together. Larger ones
# come alone, so that no task holds more than one of their chunks.
_SHARDS_PER_THREAD, _THREADS = 8, 8


class Commit(BaseModel):
    """One shard that is done, as noted in `_commits/`: what it was, where its rows went, its files.

    It counts for this very shard (`fingerprint`) and configuration only; `epoch` is the lease it was made under.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    shard_key: str
    fingerprint: str
    config_hash: str = ""
    epoch: int = 0
    counts: dict[str, int]
    rejected: dict[str, int]
    files: list[PartRecord]

    @property
    def record(self) -> ShardRecord:
        """The shard as the manifest lists it."""
        return ShardRecord(
            key=self.shard_key,
            part=self.part,
            fingerprint=self.fingerprint,
            counts=self.counts,
            rejected=self.rejected,
        )


@dataclass(frozen=True)
class Commits:
    """Where a run commits, and by what right; travels to the tasks that commit.

    `staging` holds the chunks, `item_output` names the output that items are counted by, one a row or told apart by
    `item_id`; "" is the directory itself. Without a `fence` nobody else can be at work there (tests, benchmarks). `held` are
    chunks of this very process.
    """

    store: Store
    staging: Store
    item_output: str = ""
    config_hash: str = ""
    fence: Fence | None = None
    held: HeldChunks | None = None

    def chunk(self, result: ChunkResult, *, is_checked: bool = False) -> dict[str, pa.Table]:
        """The tables of a chunk, `is_checked` when they were found whole before; raises DataError when they are not."""
        held = None if self.held is None else self.held.get(result.part, index=result.index)
        if held is not None:
            return held
        sha256 = None if is_checked else result.sha256
        return read_chunk(self.staging, result.part, index=result.index, sha256=sha256)

    def check(self) -> None:
        """Raise RefusedError when another driver has taken the directory over."""
        if self.fence is not None:
            self.fence.check()


# What became of the parts of one task, by name.
CommitOutcomes = list[tuple[str, Commit | Failure]]


def commit_part(to: Commits, shard: Shard, results: Sequence[ChunkResult]) -> Commit:
    """Write a shard's files from its staged chunks and note the commit; safe to repeat.

    Raises DataError, and commits nothing, when chunks are missing or rows were lost; RefusedError when the directory
    has another driver by now.
    """
    store = to.store
    ordered = sorted(results, key=lambda result: result.index)
    _check_complete(shard, ordered)
    rows, num_items, rejects, only = _check_chunks(to, ordered)
    counts = {
        "in": sum(result.num_in for result in ordered),
        "out": num_items,
        "rejected": rejects.num_rows,
        "filtered": sum(result.num_filtered for result in ordered),
    } | {name: count for name, count in sorted(rows.items()) if name}
    tally: Counter[str] = Counter()
    for result in ordered:
        tally.update(result.tally)
    counts |= {f"{TALLY}{name}": count for name, count in sorted(tally.items())}
    _check_conservation(shard, counts)
    files = []
    if rejects.num_rows:
        files.append(write_part(store, f"{REJECTED}/{shard.part}", [rejects], check=to.check))
    for name in sorted(rows):
        key = f"{name}/{shard.part}" if name else shard.part
        tables = iter([only[name]]) if only is not None else _tables(to, ordered, name)
        files.append(write_part(store, key, tables, check=to.check))
    codes = Counter(rejects["code"].to_pylist())
    commit = Commit(
        part=shard.part,
        shard_key=shard.key,
        fingerprint=shard_fingerprint(shard),
        config_hash=to.config_hash,
        epoch=to.fence.epoch if to.fence is not None else 0,
        counts=counts,
        rejected=dict(sorted(codes.items())),
        files=sorted(files, key=lambda record: record.name),
    )
    to.check()
    # Not durable: the files are, and a note that a power cut took or tore costs one shard done again. 4 ms a shard.
    store.write_bytes(commit_key(shard.part), commit.model_dump_json().encode(), durable=False)
    return commit


def try_commits(to: Commits, work: Sequence[tuple[Shard, Sequence[ChunkResult]]]) -> CommitOutcomes:
    """Commit parts, few in order, and delete their chunks; what prevents one is returned, a lost lease raised."""
    with ThreadPoolExecutor(_THREADS) as pool:
        apply = pool.map if len(work) >= _SHARDS_PER_THREAD else map
        outcomes = list(apply(lambda one: _try_commit(to, *one), work))
    return [(shard.part, outcome) for (shard, _), outcome in zip(work, outcomes, strict=True)]


def _try_commit(to: Commits, shard: Shard, results: Sequence[ChunkResult]) -> Commit | Failure:
    try:
        commit = commit_part(to, shard, results)
        to.staging.delete_tree(shard_prefix(shard.part))
        return commit
    except RefusedError:
        # Not this shard's failure: the whole run has lost its directory.
        raise
    except Exception as error:
        # A worker that died after its commit could not say so, and its next attempt finds no chunks.
        return valid_commit(to, shard) or failure_of(error)


def valid_commit(to: Commits, shard: Shard) -> Commit | None:
    """The commit of this shard by this driver, if it is there."""
    if not to.store.exists(commit_key(shard.part)):
        return None
    commit, epoch = _read_commit(to.store, shard.part), to.fence.epoch if to.fence is not None else 0
    return commit if commit and commit.epoch == epoch and _is_of(commit, shard, to.config_hash) else None


def shard_fingerprint(shard: Shard) -> str:
    """What a shard is, apart from its name: its size, rows and detail (versions of its files, rows kept of it)."""
    return hash_json([shard.size_bytes, shard.num_rows, shard.detail])


def commit_key(part: str) -> str:
    """The file that says a part is committed."""
    return f"{COMMITS}/{PurePosixPath(part).stem}.json"


def valid_commits(store: Store, shards: Iterable[Shard], *, config_hash: str = "") -> dict[str, Commit]:
    """The commits of these very shards, by this configuration, whose files are there with their noted sizes; by part."""
    sizes = {info.key: info.size_bytes for info in store.list()}
    noted = [shard for shard in shards if commit_key(shard.part) in sizes]
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        commits = pool.map(lambda shard: _read_commit(store, shard.part), noted)
    return {
        shard.part: commit
        for shard, commit in zip(noted, commits, strict=True)
        if commit is not None
        and _is_of(commit, shard, config_hash)
        and all(sizes.get(file.name) == file.size_bytes for file in commit.files)
    }


def _is_of(commit: Commit, shard: Shard, config_hash: str) -> bool:
    found = (commit.shard_key, commit.fingerprint, commit.config_hash)
    return found == (shard.key, shard_fingerprint(shard), config_hash)


def _tables(to: Commits, ordered: Sequence[ChunkResult], name: str) -> Iterator[pa.Table]:
    # Each output reads the chunks again: one chunk in memory at a time, whatever the shard's size.
    for result in ordered:
        yield to.chunk(result, is_checked=True)[name]


def _check_chunks(
    to: Commits, ordered: Sequence[ChunkResult]
) -> tuple[Counter[str], int, pa.Table, dict[str, pa.Table] | None]:
    """Read every chunk once, checksums compared: the rows of each output, the items, and the rejected rows of all.

    The tables of an only chunk as well: it need not be read again.
    """
    rows: Counter[str] = Counter()
    num_items, rejects, metadata = 0, [], None
    for result in ordered:
        tables = to.chunk(result)
        rejected = tables.pop(REJECTED)
        # Copied out of the chunk, which would otherwise stay in memory with them.
        copied = rejected.to_pylist()
        rejects.append(
            pa.Table.from_pylist(copied, schema=rejected.schema) if copied else rejected.schema.empty_table()
        )
        rows.update({name: table.num_rows for name, table in tables.items()})
        num_items += _num_items(tables[to.item_output])
        metadata = next(iter(tables.values())).schema.metadata
    only = tables if len(ordered) == 1 else None
    return rows, num_items, pa.concat_tables(rejects).replace_schema_metadata(metadata), only


def _num_items(table: pa.Table) -> int:
    """Items of a chunk: a row each, but for a table with one row per caption, whose items are whole in their chunk."""
    is_per_caption = "item_id" in table.column_names
    return pc.count_distinct(table["item_id"]).as_py() if is_per_caption else table.num_rows


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
