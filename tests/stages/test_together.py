"""Both steps and commits in one process: the same results, parts and failures as each step by itself."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.stages.numbers import Build, Numbers, digests, make_shards, run_steps
from zscmr_ray.errors import RefusedError
from zscmr_ray.lease import Fence, take_lease
from zscmr_ray.stages.plane import together as together_module
from zscmr_ray.stages.plane.chunks import ChunkResult, Failure, Shard, results_of, task_row
from zscmr_ray.stages.plane.commit import Commit, Commits, commit_part, valid_commits
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.encode import raise_what_ends_run
from zscmr_ray.stages.plane.staging import HeldChunks, note_attempt, staging_store
from zscmr_ray.stages.plane.together import EmbedShards
from zscmr_ray.storage import Store


def run_together(
    store: Store, shards: list[Shard], *, commits: Commits | None = None, source: Numbers | None = None
) -> list[list[ChunkResult]]:
    """The results of one task, a list for each row of them."""
    decode = DecodeShards(source or Numbers(), staging_store(store, 0), max_failures=3, chunk_rows=3)
    both = EmbedShards(decode, Build(), threads=1, commits=commits)
    rows = both(pa.Table.from_pylist([task_row(shards)]))
    return [results_of(row["results"][0].as_py()) for row in rows]


def commits_of(store: Store, fence: Fence | None = None) -> Commits:
    return Commits(store, staging_store(store, 0), fence=fence)


def test_both_steps_in_one_process_give_what_they_give_apart(tmp_path: Path) -> None:
    apart, together = Store(tmp_path / "apart"), Store(tmp_path / "together")
    shards = make_shards(7, 1, 1, 27)
    rows = run_together(together, shards)
    # The first bundle travels as soon as it is staged; then eight share a row, or what is left.
    assert [len(row) for row in rows] == [1, 11, 2]
    found = [result for row in rows for result in row]
    assert found == [result for shard in shards for result in run_steps(staging_store(apart, 0), shard)]


@pytest.mark.parametrize("room_bytes", [0, 300, 32 << 20])
def test_shards_are_committed_where_they_were_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    """Small ones in a bundle, and one that takes several: the bytes and the commits of each step by itself.

    Whether chunks wait in files, in memory, or some here and some there.
    """
    monkeypatch.setattr(together_module, "_HELD_BYTES", room_bytes)
    apart, together = Store(tmp_path / "apart"), Store(tmp_path / "together")
    shards = make_shards(7, 1, 1, 27)
    results = [
        result for row in run_together(together, shards, commits=commits_of(together)) for result in row
    ]
    said = {result.part: Commit.model_validate_json(result.commit) for result in results if result.commit}
    assert [result.last for result in results] == [bool(result.commit) for result in results]
    assert all(result.effort.commit_s > 0 for result in results if result.commit)
    assert said == {
        shard.part: commit_part(commits_of(apart), shard, run_steps(apart, shard)) for shard in shards
    }
    assert said == valid_commits(together, shards)
    assert digests(together) == digests(apart)
    assert not staging_store(together, 0).list()


def test_chunks_are_held_while_there_is_room() -> None:
    table = pa.table({"id": pa.array(range(100), pa.int64())})
    held = HeldChunks(2 * table.nbytes)
    assert held.put("a", index=0, tables={"": table}) and held.put("a", index=1, tables={"": table})
    assert not held.put("b", index=0, tables={"": table})
    assert held.put("a", index=1, tables={"": table}), "a chunk made again takes its own place"
    assert held.get("a", index=1) == {"": table} and held.get("b", index=0) is None
    held.drop("a")
    assert held.get("a", index=0) is None
    assert held.put("b", index=0, tables={"": table, "text": table})


def test_a_shard_that_fails_is_not_committed_and_its_neighbours_are(tmp_path: Path) -> None:
    store, shards = Store(tmp_path), make_shards(9, 9, 9)
    for broken in (Numbers(broken="s1.tar"), Numbers(lossy="s1.tar")):
        results = [
            result
            for row in run_together(store, shards, commits=commits_of(store), source=broken)
            for result in row
        ]
        assert {result.part for result in results if result.commit} == {shards[0].part, shards[2].part}
        (failure,) = (result.failure for result in results if result.failure is not None)
        assert "s1.tar" in failure.reason


def test_a_task_repeated_after_its_commits_gives_the_same(tmp_path: Path) -> None:
    """Its worker died before it could say so: Ray gives the task to another."""
    store, shards = Store(tmp_path), make_shards(7, 1, 27)
    first = run_together(store, shards, commits=commits_of(store))
    before = digests(store)
    assert run_together(store, shards, commits=commits_of(store)) == first
    assert digests(store) == before


def test_a_lost_lease_ends_the_run(tmp_path: Path) -> None:
    store, (shard,) = Store(tmp_path), make_shards(3)
    with take_lease(store, "embed") as lease:
        passed_over = Fence(store, lease.note.epoch, "another's token")
        ((result,),) = run_together(store, [shard], commits=commits_of(store, passed_over))
    assert not result.commit
    with pytest.raises(RefusedError, match="another driver has taken over"):
        raise_what_ends_run(result.failure)
    assert valid_commits(store, [shard]) == {}


@pytest.mark.parametrize("num_crashes", [2, 3])
def test_commits_that_crash_their_worker_three_times_are_not_tried_again(
    tmp_path: Path, num_crashes: int
) -> None:
    store, shards = Store(tmp_path), make_shards(1, 1, 9)
    for _ in range(num_crashes):
        note_attempt(staging_store(store, 0), shards[0].part, what="commit")
    results = [result for row in run_together(store, shards, commits=commits_of(store)) for result in row]
    failures = {result.part: result.failure for result in results if result.failure is not None}
    crashed = Failure("crashed", "its worker crashed 3 times while committing it")
    # The first two share a bundle, and which of them was at fault nobody knows.
    assert failures == ({} if num_crashes == 2 else {shard.part: crashed for shard in shards[:2]})
    assert shards[2].part in valid_commits(store, shards)
