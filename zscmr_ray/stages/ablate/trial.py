"""One trial in this process: train in the bare loop, evaluate as `zscmr evaluate` does, return a plain record.

What it is: engine/trained.py and stages/measure in turn, over features that are in memory already. What it is not: Ray
(`run.py` calls it in a task), or a place where anything is chosen: what was selected, was on pseudo-unseen classes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TextIO

import numpy as np
import torch

from zscmr_ray.config import Config
from zscmr_ray.data.no_leak import rule_features
from zscmr_ray.data.pairs import PairFeatures
from zscmr_ray.data.splits import ClassSplit
from zscmr_ray.engine.bare import BareEngine
from zscmr_ray.engine.class_split import configured_split
from zscmr_ray.engine.trained import Trained, train_model, wanted_rows
from zscmr_ray.retrieval.protocol import ClassGroups, evaluate_method
from zscmr_ray.stages.ablate.plan import Trial
from zscmr_ray.stages.measure.baselines import Baseline, make_baselines
from zscmr_ray.stages.measure.facts import split_groups
from zscmr_ray.stages.measure.methods import model_rows
from zscmr_ray.stages.measure.rows import PairsTable, choose_ids, encode_features, pooled_features
from zscmr_ray.stages.report import plain_values
from zscmr_ray.stages.report.tables import OURS
from zscmr_ray.storage import Store

_NEVER = 10**9  # a trial is short: begun again, it is trained again


@dataclass(frozen=True)
class CorpusFeatures:
    """A corpus in memory: every row's features, and what its pairs' manifest says of them."""

    features: PairFeatures
    info: dict[str, Any]


def run_trial(
    trial: Trial,
    corpus: CorpusFeatures,
    *,
    before_evaluation: Callable[[], None] = lambda: None,
    stream: TextIO | None = None,
) -> dict[str, Any]:
    """Train and evaluate; `before_evaluation` is called when the unseen classes are about to be looked at.

    Raises what training and evaluation raise.
    """
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    config = trial.config
    torch.set_num_threads(config.train.threads_per_worker)
    split = configured_split(corpus.features.labels, config.split)
    features = rule_features(corpus.features, split)
    corpus = replace(corpus, features=features)
    groups = split_groups(split, refit=config.train.refit)
    trained = None if trial.is_training_free else _train(config, split, corpus, stream)
    trained_s = time.monotonic() - started_s
    before_evaluation()
    wanted, _ = choose_ids(PairsTable(features.ids, features.labels, features.partition), groups)
    chosen = features.select([row for row, name in enumerate(features.ids) if name in wanted])
    rows = _rows(chosen, trained, config, groups, corpus.info)
    return plain_values(
        {
            "corpus": trial.corpus,
            "recipe": trial.recipe,
            "split": trial.split,
            "seed": trial.seed,
            "key": trial.key,
            "main": _main_row(rows),
            "rows": rows["rows"],
            "not_run": rows["not_run"],
            "selection": None if trained is None else _selection(trained),
            "classes": split.summary() | {"trained": len(groups.seen)},
            "num_items": len(chosen),
            "train_s": round(trained_s, 1),
            "evaluate_s": round(time.monotonic() - started_s - trained_s, 1),
            # Beside other work wall time says little: this is what the trial cost.
            "cpu_s": round(time.process_time() - started_cpu_s, 1),
        }
    )


def _train(config: Config, split: ClassSplit, corpus: CorpusFeatures, stream: TextIO | None) -> Trained:
    features = corpus.features
    used = np.flatnonzero(wanted_rows(features.labels, features.partition.tolist(), split))
    quiet = config.model_copy(
        update={"train": config.train.model_copy(update={"checkpoint_every_steps": _NEVER})}
    )
    with tempfile.TemporaryDirectory(prefix="zscmr-trial-") as folder:
        return train_model(
            quiet,
            split,
            features.select(used),
            info=corpus.info,
            store=Store(folder),
            make_engine=lambda step, total_steps: BareEngine(
                step, optim=config.optim, total_steps=total_steps
            ),
            stream=stream,
        )


def _rows(
    features: PairFeatures,
    trained: Trained | None,
    config: Config,
    groups: ClassGroups,
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """The numbers of every row of a trial, and the rows that were not run with the reason."""
    section = config.evaluate
    found: list[Baseline]
    if trained is None:
        rows = pooled_features(features)
        found = make_baselines(rows, groups, info)
    else:
        rows = encode_features(features, trained.model, batch_rows=section.batch_rows)
        found = model_rows(trained.model, trained.meta, rows, section)
    return {
        "rows": [
            {"key": one.key, "name": one.name}
            | evaluate_method(
                one.towers,
                rows.corpus,
                groups,
                num_resamples=section.bootstrap_resamples,
                seed=section.seed,
                keep_queries=("U|U",),
            )
            for one in found
            if one.towers is not None
        ],
        "not_run": [{"name": one.name, "reason": one.reason} for one in found if one.towers is None],
    }


def _main_row(rows: Mapping[str, Any]) -> str | None:
    keys = [row["key"] for row in rows["rows"]]
    return next((key for key in OURS if key in keys), None)


def _selection(trained: Trained) -> dict[str, Any]:
    return {name: value for name, value in trained.meta.selection.items() if name != "table"}
