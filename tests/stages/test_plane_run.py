"""The chunk and commit machinery on a real local Ray, with a source and an encoder of numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from tests.stages.numbers import RAY_WARNINGS, Build, Numbers, digests, make_shards
from zscmr_ray.config import PlaneSection
from zscmr_ray.errors import DataError, MissingPackageError
from zscmr_ray.schema import part_name
from zscmr_ray.stages.plane import on_ray
from zscmr_ray.stages.plane.chunks import Shard
from zscmr_ray.stages.plane.run import PlaneJob, RowEstimate, run_plane
from zscmr_ray.storage import Store

pytestmark = [pytest.mark.ray, *RAY_WARNINGS]


def make_job(
    store: Store,
    shards: list[Shard],
    *,
    num_encoders: int | None = None,
    steps: str = "auto",
    **changes: object,
) -> PlaneJob:
    values: dict[str, object] = {"source": Numbers(), "build_encoder": Build()} | changes
    plane = PlaneSection(chunk_rows=3, num_encoders=num_encoders, steps=steps)
    return PlaneJob(stage="test", store=store, shards=shards, plane=plane, **values)  # type: ignore[arg-type]


def test_the_remaining_rows_are_estimated_by_bytes_where_the_input_does_not_say() -> None:
    shards = [Shard("a", "a", 100), Shard("b", "b", 300), Shard("c", "c", 0)]
    estimate = RowEstimate(shards)
    assert estimate.total is None
    assert [estimate.after(shard, rows) for shard, rows in zip(shards, (10, 50, 0), strict=True)] == [
        40,
        60,
        60,
    ]
    known = RowEstimate([Shard("a", "a", 100, num_rows=7), Shard("b", "b", 100, num_rows=9)])
    assert known.total == 16 and known.after(shards[0], 7) == 16


def test_rows_arrive_in_order_and_are_counted(ray_local: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    commits = run_plane(make_job(store, make_shards(10, 1, 0), num_encoders=1))
    assert [commit.counts for commit in commits] == [
        {"in": 10, "out": 7, "rejected": 2, "filtered": 1},
        {"in": 1, "out": 1, "rejected": 0, "filtered": 0},
        {"in": 0, "out": 0, "rejected": 0, "filtered": 0},
    ]
    table = pq.read_table(store.path(part_name("s0.tar")))
    assert table["double"].to_pylist() == [0, 2, 4, 6, 10, 14, 16]
    rejected = pq.read_table(store.path(f"rejected/{part_name('s0.tar')}"))
    assert rejected["offset"].to_pylist() == [4, 9]
    assert not store.exists(f"rejected/{part_name('s1.tar')}")


def test_a_crashed_worker_and_another_width_change_no_byte(ray_local: None, tmp_path: Path) -> None:
    shards = make_shards(20, 8)
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    run_plane(make_job(one, shards, num_encoders=1, steps="apart"))
    crashing = Numbers(crash="s0.tar", marker=str(tmp_path / "crashed"))
    run_plane(make_job(two, shards, source=crashing, num_encoders=2, steps="together"))
    assert (tmp_path / "crashed").exists()
    assert len(digests(one)) == 4
    assert digests(one) == digests(two)


@pytest.mark.parametrize("steps", ["apart", "together"])
def test_bad_shards_fail_by_name_and_the_rerun_does_only_them(
    ray_local: None, tmp_path: Path, steps: str
) -> None:
    """One run with every fault at once: all six shards share one decode task (apart), and its worker crashes."""
    store, shards = Store(tmp_path), make_shards(4, 9, 10, 9, 9, 6)
    faulty = Numbers(crash="s1.tar", broken="s2.tar", lossy="s3.tar")
    build = Build(crash="s4.tar#3", poison="s5.tar#1")
    with pytest.raises(DataError, match="4 of 6 shards") as caught:
        run_plane(make_job(store, shards, source=faulty, build_encoder=build, num_encoders=1, steps=steps))
    assert caught.value.exit_code == 3
    said = str(caught.value)
    assert "s1.tar (its worker crashed 3 times at work on it)" in said
    assert "s2.tar (truncated" in said
    assert "s3.tar (rows were lost or added in s3.tar" in said
    assert (
        f"s4.tar (its worker crashed 3 times {'at work on it' if steps == 'together' else 'while encoding chunk 1'})"
        in said
    )
    done = {key: store.info(key).version for key in digests(store)}
    assert {key for key in done if "/" not in key} == {part_name("s0.tar"), part_name("s5.tar")}

    commits = run_plane(make_job(store, shards, num_encoders=1))
    assert {key: store.info(key).version for key in done} == done
    assert [commit.counts["in"] for commit in commits] == [4, 9, 10, 9, 9, 6]
    assert commits[5].rejected == {"empty_image": 1, "encode_failed": 1}


def test_an_encoder_called_from_two_threads_changes_no_byte(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside a GPU, which this machine may lack."""
    assert [on_ray.calls_at_once(PlaneSection(encoder_gpus=gpus)) for gpus in (0.0, 0.5)] == [1, 2]
    shards = make_shards(40, 8, 5)
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    run_plane(make_job(one, shards, num_encoders=1, steps="apart"))
    monkeypatch.setattr(on_ray, "calls_at_once", lambda plane: 2)
    run_plane(make_job(two, shards, num_encoders=1, steps="apart"))
    assert len(digests(one)) == 6
    assert digests(one) == digests(two)


def test_an_encoder_that_cannot_be_built_says_why(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match="pip install weights"):
        run_plane(make_job(Store(tmp_path), make_shards(3), build_encoder=Build(missing=True)))


def test_ray_datas_loop_rests_in_proportion_and_its_setting_ends_with_the_run() -> None:
    from ray.data import DataContext

    assert [on_ray.rest_s(running_s) for running_s in (0.0, 1.0, 10.0, 3600.0)] == [0.0, 0.02, 0.2, 0.5]
    context = DataContext.get_current()
    before = context.custom_execution_callback_classes
    with on_ray._data_context(rests=True):
        assert context.custom_execution_callback_classes == [*before, on_ray._Rests]
    with on_ray._data_context(rests=False):
        assert context.custom_execution_callback_classes == before
    assert context.custom_execution_callback_classes == before


def test_the_loop_rests_while_there_is_work_and_says_when_there_is_something_to_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    clock = iter((0.0, *[10.0] * 9))
    monkeypatch.setattr(on_ray, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=slept.append))
    queue: list[str] = []
    rests = on_ray._Rests()
    rests.before_execution_starts(None)

    def turn(num_tasks: int, *, is_complete: bool = False) -> bool:
        """Whether a turn that leaves so many tasks under way says that there is something."""
        on_ray._Rests._news.clear()
        operator = SimpleNamespace(num_active_tasks=lambda: num_tasks, has_completed=lambda: is_complete)
        rests.on_execution_step(SimpleNamespace(_output_node=(operator, SimpleNamespace(output_queue=queue))))
        return on_ray._Rests._news.is_set()

    assert [turn(1), turn(4), turn(4)] == [False] * 3 and len(slept) == 3
    queue.append("a block")
    assert turn(4) and slept == [0.2] * 4
    on_ray._Rests.wait_for_news()
    assert turn(3), "it is there until it is taken"
    queue.clear()
    assert not turn(0)
    assert turn(0, is_complete=True)
    on_ray._Rests.wait_for_news()
    assert len(slept) == 4, "no rest when the end is near"
