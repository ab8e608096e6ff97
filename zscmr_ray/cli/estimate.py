"""`zscmr estimate embed|preprocess`: what a run would take, from a probe of its real input; and `--estimate` of a run.

The probe costs seconds (the model is loaded, 200 rows are done), more than a small run may take in all: so a run makes
it only when asked. The arithmetic is stages/plane/forecast.py.
"""

from __future__ import annotations

import json
import os
import time
from typing import Annotated, Any

import typer

from zscmr_ray.cli import options as opt
from zscmr_ray.config import Config
from zscmr_ray.config.load import LoadedConfig
from zscmr_ray.errors import ConfigError

STAGES = ("embed", "preprocess")
_SCALES = (1, 2, 4, 8)
_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def estimate(
    stage: Annotated[str, typer.Argument(help="`embed` or `preprocess`.", show_default=False)],
    config: opt.ConfigFile = None,
    recipe: opt.Recipe = "fgan",
    overrides: opt.Overrides = None,
    run: opt.RunDirectory = None,
    input_uri: opt.Input = None,
    model: opt.Model = None,
    address: opt.Address = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes of the cluster it would run on.", min=1)] = None,
    node_cpus: Annotated[float | None, typer.Option(help="CPUs of such a node.", min=1)] = None,
    node_gpus: Annotated[float, typer.Option(help="GPUs of such a node.", min=0)] = 0,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Price of one node for an hour, in any currency.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run would take: time by number of nodes, disk, memory and, given a price, cost.

    Example: `zscmr estimate embed --input shards/ --model runs/mine --price-per-hour 0.10`

    About 200 rows of the real input are done in this process. The cluster is `--address`'s, or `--nodes` of
    `--node-cpus`, or this machine.
    """
    loaded = opt.configure(
        config, recipe, overrides, run=run, input_uri=input_uri, address=address, model=model
    )
    wanted = None
    if nodes is not None or node_cpus is not None or node_gpus:
        wanted = (nodes or 1, node_cpus or _own_cpus(loaded.config), node_gpus)
    _, found = probe_and_estimate(loaded, stage, wanted=wanted, price_per_hour=price_per_hour)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines_of(found)))


def print_estimate(loaded: LoadedConfig, stage: str) -> Any:
    """What `--estimate` says on stderr before a run; returns the probe, for the run's end to compare."""
    probe, found = probe_and_estimate(loaded, stage)
    typer.echo("\n".join(lines_of(found)), err=True)
    return probe


def probe_and_estimate(
    loaded: LoadedConfig,
    stage: str,
    *,
    wanted: tuple[int, float, float] | None = None,
    price_per_hour: float | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Probe the stage's input; returns the probe, and as plain values what it comes to on several widths.

    `wanted` is nodes, CPUs and GPUs of each; None = the connected cluster's, else this machine's.
    """
    from zscmr_ray.stages.plane.forecast import estimate_run
    from zscmr_ray.stages.plane.probe import probe_job
    from zscmr_ray.stages.plane.resources import NodeResources, fleet_of
    from zscmr_ray.stages.shards.source import count_rows

    job = _job(loaded.config, stage)
    started_s = time.monotonic()
    probe = probe_job(job, count_rows=lambda shard: count_rows(job.source, shard))
    probe_s = time.monotonic() - started_s
    if wanted is not None:
        base = [NodeResources(wanted[1], wanted[2])] * wanted[0]
    else:
        base = _cluster(loaded.config) or [NodeResources(_own_cpus(loaded.config))]
    estimates = []
    for scale in _SCALES:
        fleet = fleet_of(base * scale, job.plane, max_encoders=job.max_encoders)
        found = estimate_run(probe, fleet, probe.total_rows, price_per_hour=price_per_hour)
        estimates.append(
            {"nodes": fleet.num_nodes, "cpus": fleet.cpus, "encoders": fleet.num_encoders} | found.as_json()
        )
    effort = probe.effort
    return probe, {
        "stage": stage,
        "rows": probe.total_rows,
        "rows_are_counted": all(shard.num_rows is not None for shard in job.shards),
        "shards": len(job.shards),
        "input_bytes": sum(shard.size_bytes for shard in job.shards),
        "is_capped": loaded.config.data.max_items_per_class is not None,
        "probe": {
            "rows": probe.num_rows,
            "seconds": round(probe_s, 2),
            "decode_cpu_ms_per_row": _ms(effort.decode_cpu_s, probe.num_rows),
            "encode_cpu_ms_per_row": _ms(effort.encode_cpu_s, probe.num_rows),
            "commit_cpu_ms_per_row": _ms(probe.commit_cpu_s, probe.num_rows),
            "output_bytes_per_row": round(probe.part_bytes / probe.num_rows),
            "read_bytes_per_s": round(effort.read_bytes / max(effort.read_s, 1e-9)),
            "write_bytes_per_s": round(effort.write_bytes / max(effort.write_s, 1e-9)),
            "encoder_bytes": probe.encoder_bytes,
        },
        "estimates": estimates,
    }


def lines_of(found: dict[str, Any]) -> list[str]:
    """An estimate in words."""
    stage, probe, estimates = found["stage"], found["probe"], found["estimates"]
    first = estimates[0]
    rows = f"{found['rows']:,} rows" if found["rows_are_counted"] else f"about {found['rows']:,} rows"
    cap = ", before data.max_items_per_class takes some away" if found["is_capped"] else ""
    lines = [
        f"{stage}: {rows} in {found['shards']:,} shards, {_size(found['input_bytes'])}{cap}",
        f"{stage}: probed {probe['rows']} rows in {probe['seconds']:.1f} s: decoding {probe['decode_cpu_ms_per_row']} ms, "
        f"encoding {probe['encode_cpu_ms_per_row']} ms, committing {probe['commit_cpu_ms_per_row']} ms of CPU a row; "
        f"storage reads {_size(probe['read_bytes_per_s'])}/s, writes {_size(probe['write_bytes_per_s'])}/s",
        f"{stage}: disk {_size(first['output_bytes'])} of output, {_size(first['staging_bytes'])} more while it runs; "
        f"memory {_size(first['memory_bytes'])} in all, {_size(first['encoder_bytes'])} an encoder",
        f"{'nodes':>8} {'CPUs':>7} {'encoders':>9} {'rows/s':>10} {'time':>10} {'cost':>10}  limited by",
    ]
    for one in estimates:
        cost = "" if one["cost"] is None else f"{one['cost']:,.2f}"
        lines.append(
            f"{one['nodes']:>8} {one['cpus']:>7g} {one['encoders']:>9} {one['rows_per_s']:>10,.1f} "
            f"{_duration(one['time_s']):>10} {cost:>10}  {one['bottleneck']}"
        )
    return lines


def _job(config: Config, stage: str) -> Any:
    """The stage's work over the whole input; which rows a cap of classes keeps is not known before a scan of them all."""
    data = config.data.model_copy(update={"max_items_per_class": None})
    uncapped = config.model_copy(update={"data": data})
    if stage == "embed":
        from zscmr_ray.stages.embed.plan import plan_embed
        from zscmr_ray.stages.embed.run import embed_job

        return embed_job(uncapped, plan_embed(uncapped))
    if stage == "preprocess":
        from zscmr_ray.stages.preprocess.run import plan_preprocess, preprocess_job

        return preprocess_job(uncapped, plan_preprocess(uncapped))
    raise ConfigError("no estimate for this stage", got=stage, expected=" or ".join(STAGES))


def _cluster(config: Config) -> list[Any]:
    """The nodes of the cluster that the configuration or the environment names; none without one."""
    if config.ray.cluster_address is None:
        return []
    from zscmr_ray.cli.session import ray_session
    from zscmr_ray.stages.plane.on_ray import cluster_nodes

    with ray_session(config.ray):
        return [node for node in cluster_nodes() if node.cpus]


def _own_cpus(config: Config) -> float:
    return float(config.ray.num_cpus or os.cpu_count() or 1)


def _ms(seconds: float, rows: int) -> float:
    return round(1000 * seconds / rows, 2)


def _size(num_bytes: float) -> str:
    """Bytes for people.

    >>> _size(1_536_000), _size(12)
    ('1.5 MB', '12 B')
    """
    unit = 0
    while num_bytes >= 1000 and unit < len(_UNITS) - 1:
        num_bytes /= 1000
        unit += 1
    return f"{num_bytes:.1f} {_UNITS[unit]}" if unit else f"{num_bytes:.0f} B"


def _duration(seconds: float) -> str:
    """Seconds for people.

    >>> _duration(42), _duration(150), _duration(90_000)
    ('42 s', '2.5 min', '25.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
