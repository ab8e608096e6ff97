"""How large a cluster has to be, and what runs on one that grows by itself."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest

from zscmr_ray.config import Config, PlaneSection, RaySection
from zscmr_ray.errors import ConfigError
from zscmr_ray.recipes import vary
from zscmr_ray.stages import sizing
from zscmr_ray.stages.plane.chunks import Effort
from zscmr_ray.stages.plane.forecast import Probe, estimate_run
from zscmr_ray.stages.plane.resources import NodeResources, fit_width, fleet_of
from zscmr_ray.stages.sizing import nodes_for_deadline, replicas_for
from zscmr_ray.stages.train import check_cluster

EFFORT = Effort(decode_cpu_s=0.6, encode_cpu_s=5.0, encode_s=5.0, write_s=0.01, write_bytes=400_000)
PROBE = Probe(200, 200, EFFORT, 0.12, 0.1, 300_000, 10 << 20, 600 << 20, 2.0, 10**8, 10_000.0)
NODE, PLANE = NodeResources(16), PlaneSection()


def test_worked_examples() -> None:
    failed, tried = doctest.testmod(sizing)
    assert tried and not failed


@pytest.mark.parametrize("deadline_s", [3_600, 86_400, 10 * 86_400])
def test_fewest_nodes_are_in_time_and_one_less_is_not(deadline_s: float) -> None:
    nodes, found = nodes_for_deadline(PROBE, NODE, PLANE, num_rows=10**8, deadline_s=deadline_s)
    assert found == estimate_run(PROBE, fleet_of([NODE] * nodes, PLANE), 10**8)
    assert found.time_s <= deadline_s
    if nodes > 1:
        fewer = estimate_run(PROBE, fleet_of([NODE] * (nodes - 1), PLANE), 10**8)
        assert fewer.time_s > deadline_s


def test_a_deadline_before_the_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="in time"):
        nodes_for_deadline(PROBE, NODE, PLANE, num_rows=10**8, deadline_s=5)
    slow = replace(PROBE, effort=replace(EFFORT, read_s=500.0))
    with pytest.raises(ConfigError, match="storage"):
        nodes_for_deadline(slow, NODE, PLANE, num_rows=10**12, deadline_s=3_600)


def test_a_lost_replica_leaves_enough() -> None:
    for requests_per_s in (1, 10, 100, 1000):
        left = replicas_for(requests_per_s, 0.02, spare=1) - 1
        assert requests_per_s * 0.02 / left <= 0.6 + 1e-9


def test_encoders_wait_for_nodes_only_where_nodes_come() -> None:
    on_gpus = PlaneSection(num_encoders=4, encoder_gpus=1)
    with pytest.raises(ConfigError, match="no node has"):
        fit_width([NodeResources(0)], on_gpus)
    assert fit_width([NodeResources(0)], on_gpus, autoscales=True).num_encoders == 4
    # On a fixed cluster forty encoders share what there is; on a growing one each keeps its share and waits.
    many = PlaneSection(num_encoders=40)
    fixed, growing = (fit_width([NODE], many, autoscales=autoscales) for autoscales in (False, True))
    assert 40 * fixed.encoder_cpus + fixed.decode_cpus <= 16
    assert growing.encoder_cpus == fit_width([NODE], PLANE).encoder_cpus
    assert growing.num_encoders == 40


def test_training_waits_for_nodes_only_where_nodes_come(capsys: pytest.CaptureFixture[str]) -> None:
    config = vary(Config(), recipe="fgan", train={"num_workers": 4, "use_gpu": True})
    with pytest.raises(ConfigError, match="autoscales"):
        check_cluster(config, {"CPU": 4.0})
    growing = config.model_copy(update={"ray": RaySection(autoscales=True)})
    check_cluster(growing, {"CPU": 4.0})
    assert "4 workers wait for GPUs (0 now)" in capsys.readouterr().err
    check_cluster(growing, {"GPU": 4.0})
    assert capsys.readouterr().err == ""
