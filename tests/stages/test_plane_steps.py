"""Every step of the plane as a plain callable, without Ray."""

from __future__ import annotations

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stages.numbers import Build, Doubler, Numbers, make_shards, run_steps
from zscmr_ray.claim import open_stage
from zscmr_ray.config import PlaneSection
from zscmr_ray.errors import ConfigError, DataError, MissingPackageError
from zscmr_ray.manifest import StageKey, read_manifest
from zscmr_ray.schema import part_name
from zscmr_ray.stages.plane.chunks import (
    ChunkResult,
    DecodedChunk,
    EncodedChunk,
    Failure,
    RejectedRow,
    Shard,
    batch_shards,
    bundle_row,
    bundles,
    pack_chunk,
    pack_failure,
    read_bundle,
    results_of,
    results_row,
    shards_of_task,
    task_row,
)
from zscmr_ray.stages.plane.commit import Commit, Commits, commit_key, commit_part, try_commits, valid_commits
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.encode import EncodeChunks, encode_or_isolate, raise_what_ends_run
from zscmr_ray.stages.plane.finish import finish_stage
from zscmr_ray.stages.plane.parts import write_part
from zscmr_ray.stages.plane.resources import NodeResources, fit_width
from zscmr_ray.stages.plane.staging import chunk_key, note_attempt, read_chunk, staging_store, write_chunk
from zscmr_ray.storage import Store

ROWS = pa.table({"id": ["a", "b", "c"], "source_offset": [0, 1, 2]})


def commit(store: Store, shard: Shard, results: list[ChunkResult]) -> Commit:
    return commit_part(Commits(store, staging_store(store, 0)), shard, results)


def test_rows_of_the_dataset_round_trip() -> None:
    shards = make_shards(3, 4)
    assert shards_of_task(pa.Table.from_pylist([task_row(shards)])) == shards
    reject = RejectedRow("x", "s0.tar", 4, "read", "empty_image", "none")
    packed = [
        pack_chunk(shards[0], 2, DecodedChunk(ROWS, (reject,), 5, 1, last=True)),
        pack_failure(shards[0], 0, Failure("error", "why")),
        pack_chunk(shards[1], 0, DecodedChunk(ROWS.slice(1), (), 2, 0, last=True)),
    ]
    for some in (packed, packed[:1], packed[1:2]):
        row = bundle_row(some)
        found = list(read_bundle(row))
        assert row.num_rows == 1 and len(found) == len(some)
        assert [header for header, _ in found] == [one.header for one in some]
    (header, table), (failed, none), (_, other) = read_bundle(bundle_row(packed))
    assert table is not None and table.equals(ROWS) and other is not None and other.equals(ROWS.slice(1))
    assert (header["index"], header["last"], header["num_in"], header["num_filtered"]) == (2, True, 5, 1)
    assert RejectedRow(**header["rejects"][0]) == reject
    assert none is None and failed["failure"] == {"code": "error", "reason": "why"}
    results = [
        ChunkResult("p", 1, True, 3, 1, 0, "ff"),
        ChunkResult("p", 0, False, failure=Failure("a", "b")),
    ]
    assert results_of(results_row(results)["results"][0].as_py()) == results


def test_chunks_share_a_bundle_up_to_the_rows_of_a_full_one() -> None:
    (shard,) = make_shards(3)
    chunks = [DecodedChunk(ROWS.slice(0, rows), (), rows, 0, last=True) for rows in (1, 1, 1, 3, 2, 0, 2)]
    packed = [pack_chunk(shard, index, chunk) for index, chunk in enumerate(chunks)]
    seen = [[one.header["index"] for one in bundle] for bundle in bundles(packed, max_rows=3)]
    assert seen == [[0, 1, 2], [3], [4, 5], [6]]
    empty = [pack_failure(shard, index, Failure("error", "why")) for index in range(130)]
    assert [len(bundle) for bundle in bundles(empty, max_rows=3)] == [64, 64, 2]
    assert not list(bundles([], max_rows=3))
    unread = iter(packed[3:])
    assert len(next(bundles(unread, max_rows=3))) == 1, (
        "a full chunk does not wait for the next to be decoded"
    )
    assert next(unread) is packed[4]


def test_tiny_shards_share_a_task_and_order_stays() -> None:
    shards = [Shard("p", str(number), 1) for number in range(600)]
    assert [len(task) for task in batch_shards(shards)] == [256, 256, 88]
    assert list(itertools.chain(*batch_shards(shards))) == shards
    assert batch_shards([]) == []


def test_a_staged_chunk_reads_back_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    tables = {"": ROWS, "text": ROWS.slice(1), "rejected": ROWS.slice(0, 0)}
    digest = write_chunk(store, "part-x.parquet", index=3, tables=tables)
    assert write_chunk(store, "part-x.parquet", index=3, tables=tables) == digest
    assert read_chunk(store, "part-x.parquet", index=3, sha256=digest) == tables
    store.write_bytes(chunk_key("part-x.parquet", 3), b"{}\n")
    with pytest.raises(DataError, match="changed on disk"):
        read_chunk(store, "part-x.parquet", index=3, sha256=digest)


def test_decode_turns_every_exception_into_a_failed_row(tmp_path: Path) -> None:
    results = run_steps(Store(tmp_path), make_shards(9)[0], source=Numbers(broken="s0.tar"))
    assert [result.failure is None for result in results] == [True, False]
    assert results[-1].last and "truncated" in str(results[-1].failure)


def test_the_attempt_after_max_failures_is_not_made(tmp_path: Path) -> None:
    store, shard = Store(tmp_path), make_shards(9)[0]
    tries = [note_attempt(staging_store(store, 0), shard.part, what="decode") for _ in range(3)]
    assert [len(attempt.earlier) for attempt in tries] == [0, 1, 2]
    (result,) = run_steps(store, shard)
    assert result.failure == Failure("crashed", "its worker crashed 3 times at work on it")


def test_finished_work_leaves_no_attempts(tmp_path: Path) -> None:
    store, shard = Store(tmp_path), make_shards(9)[0]
    for _ in range(5):
        assert all(result.failure is None for result in run_steps(store, shard))


def test_rows_that_raise_alone_are_rejected_and_the_rest_is_encoded() -> None:
    encoded = encode_or_isolate(Doubler(poison="b"), ROWS, shard_key="s.tar")
    assert encoded.outputs[""]["id"].to_pylist() == ["a", "c"]
    assert [(row.id, row.offset, row.code) for row in encoded.rejects] == [("b", 1, "encode_failed")]
    encoded = encode_or_isolate(Doubler(poison="b"), ROWS.slice(1, 1), shard_key="s.tar")
    assert encoded.outputs[""].num_rows == 0


def test_an_encoder_that_always_raises_rejects_no_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="poison"):
        encode_or_isolate(Doubler(poison="all"), ROWS, shard_key="s.tar")
    results = run_steps(Store(tmp_path), make_shards(3)[0], build=Build(poison="all"))
    assert results[0].failure == Failure("error", "ValueError: poison")


def test_one_chunk_is_encoded_at_a_time_and_the_next_ones_pixels_come_meanwhile(tmp_path: Path) -> None:
    """Two threads, as beside a GPU: the first encodes until the second has brought what its chunk needs."""
    at_work = threading.Semaphore(1)
    second_came = threading.Event()

    class Slow(Doubler):
        def bring(self, table: pa.Table) -> str:
            if table["id"][0].as_py() == "s1.tar#0":
                assert began.wait(20)
                second_came.set()
            return "brought " + table["id"][0].as_py()

        def encode(self, table: pa.Table, brought: str | None = None) -> EncodedChunk:
            assert brought == "brought " + table["id"][0].as_py()
            assert at_work.acquire(blocking=False), "two chunks are encoded at once"
            began.set()
            assert second_came.wait(20)
            encoded = super().encode(table)
            at_work.release()
            return encoded

    began = threading.Event()
    staging = staging_store(Store(tmp_path), 0)
    decode = DecodeShards(Numbers(), staging, max_failures=3, chunk_rows=3)
    encode = EncodeChunks(Slow, staging, max_failures=3, threads=1)
    bundles = [next(iter(decode(pa.Table.from_pylist([task_row([shard])])))) for shard in make_shards(3, 3)]
    with ThreadPoolExecutor(2) as threads:
        rows = list(threads.map(encode, bundles))
    results = [result for row in rows for result in results_of(row["results"][0].as_py())]
    assert [(result.part, result.failure) for result in results] == [
        (part_name(key), None) for key in ("s0.tar", "s1.tar")
    ]


def test_an_encoder_that_cannot_be_built_sends_its_error_along(tmp_path: Path) -> None:
    (result,) = run_steps(Store(tmp_path), make_shards(3)[0], build=Build(missing=True))
    with pytest.raises(MissingPackageError) as caught:
        raise_what_ends_run(result.failure)
    assert caught.value.remedy == "pip install weights"


def test_commit_refuses_missing_chunks_and_lost_rows(tmp_path: Path) -> None:
    store, shard = Store(tmp_path), make_shards(9)[0]
    results = run_steps(store, shard)
    for some in ([], results[:-1], results[1:]):
        with pytest.raises(DataError, match="missing chunks"):
            commit(store, shard, some)
    lossy = run_steps(store, shard, source=Numbers(lossy="s0.tar"))
    with pytest.raises(DataError, match=r"rows were lost or added in s0\.tar; got: 9 rows in"):
        commit(store, shard, lossy)
    assert valid_commits(store, [shard]) == {}


def test_commit_in_any_order_of_arrival_and_again_is_the_same(tmp_path: Path) -> None:
    store, shard = Store(tmp_path), make_shards(9)[0]
    results = run_steps(store, shard)
    commits = [commit(store, shard, some) for some in (results, results[::-1])]
    assert commits[0] == commits[1]
    assert valid_commits(store, [shard]) == {shard.part: commits[0]}
    assert commits[0].counts == {"in": 9, "out": 7, "rejected": 1, "filtered": 1}


def test_a_commit_whose_worker_died_before_it_could_say_so_is_found(tmp_path: Path) -> None:
    """Many tiny shards in one task: threads commit them, in order; the chunks go, and the task's next attempt knows why."""
    store, shards = Store(tmp_path), make_shards(*[2] * 20, 0)
    to = Commits(store, staging_store(store, 0))
    work = [(shard, run_steps(store, shard)) for shard in shards]
    outcomes = try_commits(to, work)
    assert [part for part, _ in outcomes] == [shard.part for shard in shards]
    assert all(isinstance(outcome, Commit) for _, outcome in outcomes) and not to.staging.list()
    assert try_commits(to, work) == outcomes
    others = [(replace(shard, size_bytes=7), results) for shard, results in work]
    assert all(isinstance(outcome, Failure) for _, outcome in try_commits(to, others))


def test_tallies_of_chunks_are_summed_beside_the_rows(tmp_path: Path) -> None:
    store, shard = Store(tmp_path), make_shards(9)[0]
    results = [
        replace(result, tally={"words": 2 + result.index, "unknown": 1}) for result in run_steps(store, shard)
    ]
    counts = commit(store, shard, results_of(results_row(results)["results"][0].as_py())).counts
    chunks = len(results)
    assert counts["tally_words"] == 2 * chunks + sum(range(chunks)) and counts["tally_unknown"] == chunks
    assert counts["in"] == counts["out"] + counts["rejected"] + counts["filtered"]


@pytest.mark.parametrize("damage", ["note", "part", "shorter"])
def test_a_damaged_commit_is_no_commit(tmp_path: Path, damage: str) -> None:
    store, shard = Store(tmp_path), make_shards(9)[0]
    commit(store, shard, run_steps(store, shard))
    if damage == "note":
        store.write_bytes(commit_key(shard.part), b"{")
    elif damage == "part":
        store.delete(shard.part)
    else:
        store.write_bytes(shard.part, store.read_bytes(shard.part)[:-1])
    assert valid_commits(store, [shard]) == {}


def test_a_part_does_not_depend_on_where_chunks_were_cut(tmp_path: Path) -> None:
    store = Store(tmp_path)
    table = pa.table({"id": [str(number) for number in range(2500)]})
    write_part(store, "a", [table])
    write_part(store, "b", [table.slice(start, 700) for start in range(0, 2500, 700)])
    record = write_part(store, "c", [table.slice(0, 0)])
    assert store.read_bytes("a") == store.read_bytes("b")
    assert pq.ParquetFile(store.path("a")).metadata.num_row_groups == 3
    assert record.rows == 0 and pq.read_table(store.path("c")).num_rows == 0


def test_a_finished_stage_holds_output_and_its_manifest_only(tmp_path: Path) -> None:
    store, shards = Store(tmp_path), make_shards(9, 4)
    key = StageKey(stage="t", config={}, input_fingerprint="f")
    with open_stage(store, key) as claim:
        commits = [commit(store, shard, run_steps(store, shard)) for shard in shards]
        manifest = finish_stage(claim, commits, info={"k": 1})
    assert manifest.counts == {
        "in": 13, "out": 11, "rejected": 1, "filtered": 1, "rejected_empty_image": 1, "shards": 2,
    }  # fmt: skip
    assert read_manifest(store) == manifest
    notes = {"manifest.json", "_stage.json", "_lease/00000001.json"}
    assert {info.key for info in store.list()} == {part.name for part in manifest.parts} | notes
    assert [(record.key, record.counts["in"]) for record in manifest.shards] == [("s1.tar", 4), ("s0.tar", 9)]
    assert json.dumps(manifest.info) == '{"k": 1}'


@pytest.mark.parametrize("cpus", [[0.5], [1], [2], [3], [4, 4], [0, 2], [16, 2], [64]])
@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("num_encoders", [None, 1, 7])
def test_decode_always_has_room(cpus: list[float], threads: int, num_encoders: int | None) -> None:
    """However Ray places the encoders, some node has room for a decode task: what is free is enough for one a node."""
    nodes = [NodeResources(count) for count in cpus]
    width = fit_width(nodes, PlaneSection(encoder_threads=threads, num_encoders=num_encoders))
    assert width.num_encoders >= 1 and width.encoder_cpus >= 0 and width.decode_cpus > 0
    assert num_encoders is None or width.num_encoders == num_encoders
    free = sum(cpus) - width.num_encoders * width.encoder_cpus
    num_hosts = sum(count > width.decode_cpus for count in cpus)
    assert free >= num_hosts * width.decode_cpus - 1e-9


def test_encoders_on_gpus_need_gpus() -> None:
    with pytest.raises(ConfigError, match="GPUs that no node has"):
        fit_width([NodeResources(8)], PlaneSection(encoder_gpus=1.0))
    shared = fit_width([NodeResources(8, gpus=1)], PlaneSection(encoder_gpus=0.5))
    assert (shared.num_encoders, shared.encoder_cpus) == (2, 1.0)


def test_small_inputs_start_fewer_encoders() -> None:
    assert fit_width([NodeResources(64)], PlaneSection(), max_encoders=1).num_encoders == 1
    assert fit_width([NodeResources(64)], PlaneSection(num_encoders=3), max_encoders=1).num_encoders == 3
