"""`zscmr doctor`: is everything there that a run needs? Which checks run, how they are said, and the exit code."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from zscmr_ray.cli import options as opt
from zscmr_ray.cli.estimate import lines_of, probe_and_estimate
from zscmr_ray.cli.session import ray_session
from zscmr_ray.config import Config
from zscmr_ray.config.load import LoadedConfig
from zscmr_ray.errors import ZscmrError
from zscmr_ray.manifest import read_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.doctor import FAILED, OK, Finding
from zscmr_ray.storage import Store

_MARKS = {"ok": "ok", "warning": "WARN", "failed": "FAIL"}


def doctor(
    config: opt.ConfigFile = None,
    recipe: opt.Recipe = "fgan",
    overrides: opt.Overrides = None,
    run: opt.RunDirectory = None,
    input_uri: opt.Input = None,
    model: opt.Model = None,
    address: opt.Address = None,
    rates: Annotated[
        bool, typer.Option("--rates/--no-rates", help="Also do some rows: rates, and the time of a run.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list, one object per finding.")
    ] = False,
) -> None:
    """Look at machine, packages, Ray, storage and shards; say what is wrong and what to do. Exit code 1 if a check fails.

    Example: `zscmr doctor --input shards/ --run runs/mine`, on a cluster `zscmr doctor --address auto`

    Nothing is changed: a probe object is written below the run's directory and deleted. Without `--input` shards and
    rates are left out.
    """
    loaded = opt.configure(
        config, recipe, overrides, run=run, input_uri=input_uri, address=address, model=model
    )
    findings = find(loaded, rates=rates)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        typer.echo("\n".join(lines(findings)))
    if any(finding.state == FAILED for finding in findings):
        raise typer.Exit(1)


def find(loaded: LoadedConfig, *, rates: bool) -> list[Finding]:
    """Every check that this configuration allows, in the order in which a run would meet them."""
    # Here and not above: torch and Ray cost seconds.
    from zscmr_ray.stages.doctor import cluster, data, machine

    config = loaded.config
    has_cluster = config.ray.cluster_address is not None
    place = Store(config.data.run_uri)
    findings = [
        *machine.check_versions(),
        *machine.check_processors(needs_gpu=cluster.needs_gpu(config) and not has_cluster),
        *machine.check_memory(),
        *machine.check_disk(Path(place.uri) if place.is_local else None),
        *machine.check_limits(),
        *cluster.check_token(),
        *(_cluster_findings(config) if has_cluster else cluster.check_dashboards(_known_dashboards())),
        *data.check_storage(config.data.run_uri),
    ]
    if not config.data.input_uri:
        return findings
    shards = data.check_shards(config)
    findings += shards
    if rates and not any(finding.state == FAILED for finding in shards):
        findings += _rate_findings(loaded)
    return findings


def lines(findings: list[Finding]) -> list[str]:
    """A line a finding, its remedy below it, and a last line that counts them."""
    said = []
    for finding in findings:
        said.append(f"{_MARKS[finding.state]:<5}{finding.check}: {finding.said}")
        if finding.remedy:
            said.append(f"     remedy: {finding.remedy}")
    counts = {state: sum(finding.state == state for finding in findings) for state in _MARKS}
    return [*said, f"{counts['ok']} ok, {counts['warning']} warnings, {counts['failed']} failed"]


def _cluster_findings(config: Config) -> list[Finding]:
    """Join the cluster for as long as its nodes are counted."""
    from zscmr_ray.stages.doctor import cluster
    from zscmr_ray.stages.doctor.finding import failed_by

    if unreachable := cluster.check_reachable(config.ray.cluster_address or ""):
        return unreachable
    try:
        with ray_session(config.ray):
            nodes = cluster.check_nodes(config)
            named = cluster.connected_dashboard()
            jobs = cluster.check_jobs(os.environ.get("RAY_API_SERVER_ADDRESS"))
    except ZscmrError as error:
        return [failed_by("ray", error)]
    return [*nodes, *jobs, *cluster.check_dashboards(_known_dashboards() | named)]


def _known_dashboards() -> set[str]:
    """Where a dashboard of this machine or of the named cluster would be."""
    from zscmr_ray.stages.doctor.cluster import DEFAULT_DASHBOARD

    named = os.environ.get("RAY_API_SERVER_ADDRESS")
    return {DEFAULT_DASHBOARD} | ({named} if named else set())


def _rate_findings(loaded: LoadedConfig) -> list[Finding]:
    """What some rows of the real input cost, and what all of them would take: those of the stage that is next."""
    from zscmr_ray.stages.doctor.finding import failed_by

    config = loaded.config
    has_model = config.embed.model != "checkpoint" or read_manifest(stage_store(config, "train")) is not None
    stage = "embed" if has_model else "preprocess"
    try:
        _, found = probe_and_estimate(loaded, stage)
    except ZscmrError as error:
        return [failed_by("rates", error)]
    probe, first = found["probe"], found["estimates"][0]
    decode_ms, encode_ms = probe["decode_cpu_ms_per_row"], probe["encode_cpu_ms_per_row"]
    return [
        Finding("decode rate", OK, f"{_rate(decode_ms)} rows/s a CPU ({decode_ms} ms a row)"),
        Finding("encode rate", OK, f"{_rate(encode_ms)} rows/s a CPU ({encode_ms} ms a row)"),
        Finding(
            "time",
            OK,
            f"{lines_of(found)[0]}: {first['time_s']:,.0f} s here, limited by {first['bottleneck']}",
        ),
    ]


def _rate(ms_per_row: float) -> str:
    return f"{1000 / ms_per_row:,.0f}" if ms_per_row else "very many"
