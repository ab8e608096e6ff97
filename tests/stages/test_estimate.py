"""What a run will take and what held it up: the arithmetic, the probe of a real input, and the lines at a run's end."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stages.corpus import bad_samples, corpus_config, good_samples, jpeg, write_tar
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.stages.numbers import digests
from tests.stages.small_run import write_checkpoint
from zscmr_ray.config import Config
from zscmr_ray.errors import DataError
from zscmr_ray.lease import read_lease
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.embed.plan import plan_embed
from zscmr_ray.stages.embed.run import embed_job
from zscmr_ray.stages.plane import bottleneck, effort, forecast, resources
from zscmr_ray.stages.plane.bottleneck import Usage, bottleneck_line, shares_of
from zscmr_ray.stages.plane.chunks import Effort
from zscmr_ray.stages.plane.effort import timed_open
from zscmr_ray.stages.plane.forecast import Probe, estimate_run
from zscmr_ray.stages.plane.ledger import Ledger
from zscmr_ray.stages.plane.probe import probe_job
from zscmr_ray.stages.plane.resources import Fleet
from zscmr_ray.stages.shards.source import count_rows
from zscmr_ray.storage import Store

ROWS = {"a.tar": 80, "b.tar": 80, "sub/c.tar": 80}
TWO_CORES = Fleet(1, 2, num_encoders=2, encoder_threads=1, num_decoders=2, num_commits=1)
EFFORT = Effort(decode_cpu_s=0.6, encode_cpu_s=4.4, encode_s=4.4, write_s=0.01, write_bytes=400_000)
PROBE = Probe(200, 190, EFFORT, 0.12, 0.1, 300_000, 10 << 20, 600 << 20, 2.0, 100_000, 1000.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("estimate")
    for number, (key, rows) in enumerate(ROWS.items()):
        write_tar(root / "shards" / key, good_samples(number, rows))
    write_checkpoint(corpus_config(root, "trained"), labelled=True)
    return root


def config_of(root: Path, tmp_path: Path, name: str = "run", **data: Any) -> Config:
    return corpus_config(
        root, data={"run_uri": str(tmp_path / name), **data}, embed={"model": str(root / "trained")}
    )


@pytest.mark.parametrize("module", [bottleneck, effort, forecast, resources])
def test_worked_examples(module: Any) -> None:
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_twice_the_cluster_is_half_the_time_at_the_same_price() -> None:
    four_cores = Fleet(2, 4, num_encoders=4, encoder_threads=1, num_decoders=4, num_commits=1)
    one, two = (estimate_run(PROBE, fleet, 10**6, price_per_hour=1.0) for fleet in (TWO_CORES, four_cores))
    assert two.time_s - two.start_s == pytest.approx((one.time_s - one.start_s) / 2)
    assert one.cost is not None and two.cost == pytest.approx(one.cost, rel=0.01)
    assert one.output_bytes == two.output_bytes == 300_000 * 5000
    assert estimate_run(PROBE, TWO_CORES, 10).cost is None


@pytest.mark.parametrize(
    ("changes", "fleet", "limit"),
    [
        ({}, TWO_CORES, "the CPUs"),
        ({}, replace(TWO_CORES, num_encoders=1), "encoding"),
        ({"decode_cpu_s": 30.0}, replace(TWO_CORES, cpus=8.0), "decoding"),
        ({"read_s": 20.0}, TWO_CORES, "storage"),
        # A GPU's encoder takes no CPU to speak of: its clock counts.
        (
            {"encode_cpu_s": 0.1, "encode_s": 9.0},
            replace(TWO_CORES, num_encoders=1, has_gpus=True),
            "encoding",
        ),
    ],
)
def test_what_limits_an_estimate(changes: dict[str, float], fleet: Fleet, limit: str) -> None:
    found = estimate_run(replace(PROBE, effort=replace(EFFORT, **changes)), fleet, 1000)
    assert found.bottleneck == limit
    assert found.rows_per_s == min(found.ceilings_rows_per_s.values())


@pytest.mark.parametrize(
    ("spent", "commit_s", "verdict"),
    [
        (Effort(decode_cpu_s=15.0), 0.0, "decoding"),
        (Effort(encode_cpu_s=17.0, decode_cpu_s=2.0), 0.0, "encoding"),
        (Effort(read_s=19.0, decode_cpu_s=2.0), 0.0, "storage"),
        (Effort(decode_cpu_s=2.0), 9.0, "committing"),
        (Effort(decode_cpu_s=9.0, encode_cpu_s=8.0), 0.0, "the CPUs (decoding first)"),
        (Effort(decode_cpu_s=1.0), 0.1, "none of them"),
    ],
)
def test_what_held_a_run_up(spent: Effort, commit_s: float, verdict: str) -> None:
    usage = Usage(1000, 10.0, spent, commit_s, TWO_CORES)
    assert f"bottleneck: {verdict}" in bottleneck_line(usage)
    for share in shares_of(usage):
        assert share.share == pytest.approx(usage.rows_per_s / share.ceiling_rows_per_s)


def test_timed_reads_are_the_files_own_bytes(tmp_path: Path) -> None:
    store, data = Store(tmp_path), bytes(range(256)) * 500
    store.write_bytes("x", data)
    with timed_open(store)("x") as file:
        assert file.read(3) == data[:3] and file.seek(-5, 2) == len(data) - 5
        assert file.read() == data[-5:] and file.read() == b""
        assert file.seek(1000) == file.tell() == 1000 and file.read() == data[1000:]
    assert file.closed
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")
    with timed_open(store)("t.parquet") as file:
        assert pq.read_table(file).num_rows == 2


def test_a_probe_does_some_rows_of_the_real_input_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    config = config_of(root, tmp_path)
    job = embed_job(config, plan_embed(config))
    probe = probe_job(job, num_rows=90)
    assert probe.num_rows == probe.num_out == 96  # two chunks of 16 rows of each shard
    assert probe.total_rows == pytest.approx(240, rel=0.1)
    assert probe.effort.decode_cpu_s > 0 and probe.effort.encode_s > 0 and probe.commit_s > 0
    assert (
        probe.effort.read_bytes > 10_000 and probe.effort.write_bytes > 10_000 and probe.part_bytes > 10_000
    )
    assert probe.chunk_bytes > 16 * 224 * 224 * 3 and probe.encoder_bytes > 50 << 20
    assert Store(tmp_path).list() == []
    whole = probe_job(job, num_rows=1000)
    assert (whole.num_rows, whole.total_rows, whole.shard_rows) == (240, 240, 80)


def test_rejected_rows_cost_too_and_shards_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/a.tar", good_samples(0, 3) + bad_samples())
    (tmp_path / "shards/torn.tar").write_bytes((tmp_path / "shards/a.tar").read_bytes()[:2000])
    write_checkpoint(corpus_config(tmp_path, "trained"))
    config = config_of(tmp_path, tmp_path)
    probe = probe_job(embed_job(config, plan_embed(config)))
    assert (probe.num_rows, probe.num_out) == (8, 3)
    (tmp_path / "shards/a.tar").unlink()
    with pytest.raises(DataError, match="nothing to probe"):
        probe_job(embed_job(config, plan_embed(config)))
    assert [info.key for info in stage_store(config, "embed").list()] == []


def test_parquet_says_how_many_rows_it_has(root: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    images = [jpeg(row) for row in range(7)]
    for name, rows in (("a", 300), ("b", 301)):
        table = pa.table({"image": [images[row % 7] for row in range(rows)], "caption": ["a dog"] * rows})
        pq.write_table(table, tmp_path / f"shards/{name}.parquet", row_group_size=rows)
    config = config_of(root, tmp_path, input_uri=str(tmp_path / "shards"))
    job = embed_job(config, plan_embed(config))
    probe = probe_job(job, num_rows=32, count_rows=lambda shard: count_rows(job.source, shard))
    assert probe.total_rows == pytest.approx(601, rel=0.01)


def test_the_end_of_a_run_names_its_bottleneck_and_the_estimates_error(
    root: Path,
    tmp_path: Path,
    inline_plane: None,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, other = config_of(root, tmp_path), config_of(root, tmp_path, "other")
    probe = probe_job(embed_job(config, plan_embed(config)), num_rows=48)
    capsys.readouterr()
    run_embed(config, probe=probe)
    said = capsys.readouterr().err
    assert "bottleneck: " in said and "encoding " in said and "rows/s" in said
    assert "embed: estimated " in said and " s for 240 rows, took " in said
    note = read_lease(stage_store(config, "embed"))
    assert note is not None and note.progress["usage"]["rows"] == 240
    assert note.progress["estimate"]["num_rows"] == pytest.approx(240, rel=0.1)
    run_embed(other)
    assert "estimated" not in capsys.readouterr().err
    assert digests(stage_store(config, "embed")) == digests(stage_store(other, "embed"))


def test_a_few_rows_say_nothing_about_a_rate() -> None:
    assert Ledger().usage(TWO_CORES) is None


def test_sizes_and_times_are_said_for_people() -> None:
    from zscmr_ray.cli import estimate

    failed, tried = doctest.testmod(estimate)
    assert tried and not failed
