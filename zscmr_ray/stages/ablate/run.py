"""The trials of a plan side by side as Ray tasks; each writes its own record, so that a kill loses only what was at work.

    trials/<corpus>/<split>/<recipe>-<seed>-<hash>.json   a finished trial; never redone
    failed/...                                            one that failed, with its error; tried again by the next run
    looks/...                                             how often a trial has evaluated unseen classes
    table.json, table.md, ablation.html                   of this command's plan, written whenever a trial ends

A corpus is read once, into Ray's object store, from where every task on the machine maps it. What it is not: the trial
(`trial.py`) or the numbers of the table (`results.py`).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from zscmr_ray.errors import TrainingError, ZscmrError
from zscmr_ray.lease import Lease, take_lease
from zscmr_ray.stages import StageResult, require_pairs
from zscmr_ray.stages.ablate.page import write_page
from zscmr_ray.stages.ablate.plan import AblationPlan, Trial
from zscmr_ray.stages.ablate.results import make_table
from zscmr_ray.storage import Store

TRIALS, FAILED, LOOKS = "trials", "failed", "looks"
TABLE = "table.json"
_PAGE_EVERY_S = 180.0  # a page costs seconds of resampling


@dataclass
class Progress:
    """What the driver knows of its trials so far."""

    records: dict[str, dict[str, Any]]
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_done: int = 0


def run_ablate(plan: AblationPlan) -> StageResult:
    """Run what is left of a plan and write its table; needs a running Ray unless every trial is finished.

    Raises TrainingError at the end, the table written, when trials failed; RefusedError while another driver works here.
    """
    store = plan.store
    with take_lease(store, "ablate", num_trials=len(plan.trials)) as lease:
        found = {
            trial.name: store.read_json(record_key(trial)) for trial in plan.trials if _is_done(store, trial)
        }
        progress = Progress(dict(found))
        left = [trial for trial in plan.trials if trial.name not in found]
        print(
            f"ablate: {len(plan.trials)} trials, {len(found)} of them finished", file=sys.stderr, flush=True
        )
        if left:
            _run_all(plan, left, progress, lease)
        summary = write_results(plan, progress)
    counts = {
        "trials": len(plan.trials),
        "done": len(progress.records),
        "failed": len(progress.failures),
        "skipped": len(found),
    }
    if progress.failures:
        first = next(iter(progress.failures.values()))
        raise TrainingError(
            f"{len(progress.failures)} of {len(plan.trials)} trials failed; the table has the others",
            got=f"{first['recipe']} on {first['corpus']}, {first['split']}: {first['error']}",
            expected="trials that end",
            remedy=f"the errors are in {store.uri}/{FAILED}; the same command tries these trials again",
        )
    return StageResult("ablate", store.uri, skipped=not left, counts=counts, info={"summary": summary})


def write_results(plan: AblationPlan, progress: Progress) -> str:
    """Write table.json, table.md and the page of what is finished; returns the table as markdown."""
    store = plan.store
    table = make_table(
        plan,
        progress.records,
        failures=list(progress.failures.values()),
        looks={trial.name: _read_looks(store, trial) for trial in plan.trials},
    )
    store.write_json(TABLE, table)
    return write_page(store, table)


def record_key(trial: Trial) -> str:
    """Where a finished trial's record is."""
    return f"{TRIALS}/{trial.name}.json"


def _is_done(store: Store, trial: Trial) -> bool:
    return store.is_file(record_key(trial))


def _read_looks(store: Store, trial: Trial) -> int:
    key = f"{LOOKS}/{trial.name}.json"
    return int(store.read_json(key)["unseen_evaluations"]) if store.is_file(key) else 0


def _run_all(plan: AblationPlan, left: list[Trial], progress: Progress, lease: Lease) -> None:
    written_s = time.monotonic()
    began_s = time.monotonic()
    for trial, outcome in _outcomes(plan, left):
        lease.fence.check()
        progress.num_done += 1
        if "error" in outcome:
            progress.failures[trial.name] = outcome
            plan.store.write_json(f"{FAILED}/{trial.name}.json", outcome)
        else:
            progress.records[trial.name] = outcome
            plan.store.delete(f"{FAILED}/{trial.name}.json")
        lease.report(trials_done=len(progress.records), trials_failed=len(progress.failures))
        _say(trial, outcome, number=progress.num_done, of=len(left), elapsed_s=time.monotonic() - began_s)
        if time.monotonic() - written_s > _PAGE_EVERY_S:
            write_results(plan, progress)
            written_s = time.monotonic()


def _outcomes(plan: AblationPlan, left: list[Trial]) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """Yield each trial with its record or its error, as they end; as many at once as the cluster has CPUs for."""
    waiting = deque(left)
    running: dict[Any, Trial] = {}
    corpora: dict[str, Any] = {}
    cpus = float(ray.cluster_resources().get("CPU", 1))
    in_use = 0.0
    while waiting or running:
        while waiting and (not running or in_use + _threads(waiting[0]) <= cpus):
            trial = waiting.popleft()
            if trial.corpus not in corpora:
                # One corpus more than the trials at work need is held while they end.
                held = {other.corpus for other in running.values()}
                corpora = {name: ref for name, ref in corpora.items() if name in held}
                corpora[trial.corpus] = _load_corpus.remote(
                    trial.config.data.pairs_uri, trial.config.model.region_grid
                )
            task = _trial_task.options(num_cpus=min(_threads(trial), cpus))
            running[task.remote(trial, corpora[trial.corpus], plan.store)] = trial
            in_use += _threads(trial)
        ended, _ = ray.wait(list(running), num_returns=1)
        for ref in ended:
            trial = running.pop(ref)
            in_use -= _threads(trial)
            yield trial, _outcome(trial, ref)


def _outcome(trial: Trial, ref: Any) -> dict[str, Any]:
    try:
        outcome: dict[str, Any] = ray.get(ref)
        return outcome
    except RayError as error:
        # The worker itself died (memory, say), or the corpus could not be read.
        return failure(trial, getattr(error, "cause", None) or error)


def failure(trial: Trial, error: BaseException) -> dict[str, Any]:
    """Return the record of a failed trial."""
    text = str(error) if isinstance(error, ZscmrError) else f"{type(error).__name__}: {error}"
    place = {"corpus": trial.corpus, "recipe": trial.recipe, "split": trial.split, "seed": trial.seed}
    return place | {"error": text.strip().split("\n")[0][:2000]}


@ray.remote(num_cpus=1)
def _load_corpus(pairs_uri: str, region_grid: int | None) -> Any:
    from zscmr_ray.stages.ablate.trial import CorpusFeatures
    from zscmr_ray.stages.measure.rows import read_features

    store = Store(pairs_uri)
    manifest = require_pairs(store)
    return CorpusFeatures(read_features(store, manifest, region_grid=region_grid), dict(manifest.info))


@ray.remote(max_retries=1)
def _trial_task(trial: Trial, corpus: Any, store: Store) -> dict[str, Any]:
    """Run one trial and write its record; errors are returned, for Ray would only say that a task failed."""
    from zscmr_ray.stages.ablate.trial import run_trial

    def count_look() -> None:
        looks = _read_looks(store, trial) + 1
        store.write_json(f"{LOOKS}/{trial.name}.json", {"unseen_evaluations": looks})

    try:
        record = run_trial(trial, corpus, before_evaluation=count_look)
    except Exception as error:
        return failure(trial, error)
    store.write_json(record_key(trial), record)
    return record


def _threads(trial: Trial) -> float:
    return float(trial.config.train.threads_per_worker)


def _say(trial: Trial, outcome: dict[str, Any], *, number: int, of: int, elapsed_s: float) -> None:
    if "error" in outcome:
        told = f"failed: {outcome['error']}"
    else:
        averages = [
            row["classes"]["U|U"]["average"]
            for row in outcome["rows"]
            if "U|U" in row["classes"] and outcome["main"] in (None, row["key"])
        ]
        scores = ", ".join(f"{one['map']:.3f} (chance {one['chance']:.3f})" for one in averages)
        told = f"U|U {scores or 'none'}, {outcome['train_s']:.0f} + {outcome['evaluate_s']:.0f} s"
    left_s = elapsed_s / number * (of - number)
    print(
        f"ablate: {number}/{of} {trial.corpus} {trial.split} {trial.recipe} {trial.seed}: {told}; {left_s:.0f} s left",
        file=sys.stderr,
        flush=True,
    )
