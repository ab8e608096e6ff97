"""Which function a verb calls and what it needs; `pipeline` calls them in turn."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from zscmr_ray.claim import Update
from zscmr_ray.cli.session import ray_session
from zscmr_ray.config import Config
from zscmr_ray.manifest import STAGE_MARK, read_manifest
from zscmr_ray.stages import StageResult, stage_store

if TYPE_CHECKING:
    from zscmr_ray.stages.plane.forecast import Probe

PIPELINE = ("preprocess", "train", "evaluate", "embed", "index")
# evaluate is one process's work, and so is an index of one segment; the others are Ray's.
NEEDS_RAY = frozenset({"preprocess", "train", "embed"})


def run_stages(
    config: Config,
    stages: Sequence[str],
    *,
    overwrite: bool = False,
    update: Update | None = None,
    probe: Probe | None = None,
) -> list[StageResult]:
    """Run stages in order, Ray started once and only when a stage that needs it is reached; print each result.

    `update` is for preprocess, embed and index, `probe` for the first two alone.
    """
    results: list[StageResult] = []
    for number, stage in enumerate(stages):
        # Ray outlives the stage that started it, so that the next one does not pay for the start again.
        if _needs_ray(config, stage) and (overwrite or update is not None or not _is_complete(config, stage)):
            with ray_session(config.ray):
                rest = [
                    _run(config, name, overwrite=overwrite, update=update, probe=probe)
                    for name in stages[number:]
                ]
            return results + rest
        results.append(_run(config, stage, overwrite=overwrite, update=update, probe=probe))
    return results


def plan(config: Config, stages: Sequence[str]) -> list[str]:
    """What `--dry-run` prints: per stage its directory, and whether it is done, begun or to do."""
    lines = []
    for stage in stages:
        store = stage_store(config, stage)
        state = "done" if read_manifest(store) else "begun" if store.exists(STAGE_MARK) else "to do"
        lines.append(f"{stage:<11}{state:<7}{store.uri}")
    return lines


def _run(
    config: Config, stage: str, *, overwrite: bool, update: Update | None, probe: Probe | None
) -> StageResult:
    started_s = time.monotonic()
    module = importlib.import_module(f"zscmr_ray.stages.{stage}")
    given = {"update": update, "probe": probe}
    options: dict[str, Any] = {"overwrite": overwrite} | {
        name: value for name, value in given.items() if value is not None
    }
    result: StageResult = getattr(module, f"run_{stage}")(config, **options)
    counts = ", ".join(f"{value} {name}" for name, value in result.counts.items())
    state = "already done" if result.skipped else f"done in {time.monotonic() - started_s:.1f} s"
    typer.echo(f"{stage}: {state}; {counts}; {result.directory}")
    return result


def _needs_ray(config: Config, stage: str) -> bool:
    if stage != "index":
        return stage in NEEDS_RAY
    from zscmr_ray.stages.index import needs_ray

    return needs_ray(config)


def _is_complete(config: Config, stage: str) -> bool:
    return read_manifest(stage_store(config, stage)) is not None
