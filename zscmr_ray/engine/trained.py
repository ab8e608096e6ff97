"""From cached features and a class split to a trained model and what its checkpoint says of itself.

What a Ray Train worker (stages/train_loop.py, under DeepSpeed) and a trial of an ablation (the bare loop) both call, so
that a trial is a training and nothing else. What it is not: the reading of pairs, or the writing of a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from zscmr_ray.config import Config
from zscmr_ray.data.pairs import PairFeatures
from zscmr_ray.data.splits import ClassSplit, training_rows
from zscmr_ray.engine.base import model_architecture
from zscmr_ray.engine.checkpoint import BackboneRecord, BlockRecord, CheckpointMeta, save_checkpoint
from zscmr_ray.engine.feeding import FedPairs, trained_encoders
from zscmr_ray.engine.fitted import fit_method
from zscmr_ray.engine.run import MakeEngine, Outcome, TrainingRun
from zscmr_ray.errors import ConfigError
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.models.build import ENCODERS, build_model, is_fitted
from zscmr_ray.models.tuned import TunedModel
from zscmr_ray.storage import Store

BEST = "best"
"""Where, below a checkpoint, the best validated weights of a training in progress are."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model in eval mode, and its meta, unsigned: the fingerprint is added when it is saved."""

    model: AlignmentModel
    meta: CheckpointMeta


def train_model(
    config: Config,
    split: ClassSplit,
    features: PairFeatures,
    *,
    info: Mapping[str, Any],
    store: Store,
    make_engine: MakeEngine,
    device: str = "cpu",
    stream: TextIO | None = None,
    keep_best: bool = False,
) -> Trained:
    """Train on the rows of `wanted_rows`, going on from a state in `store` if there is one. Every rank must call it.

    With `keep_best` the best validated weights so far are a checkpoint too, below `store`'s `best/`. `info` is the
    pairs' manifest's. Raises as `engine.run.TrainingRun.run`.
    """
    architecture = model_architecture(
        config,
        image_channels=int(info["image_channels"]),
        text_channels=int(info["token_channels"]),
        num_classes=int(info["num_classes"] or 0),
        encoders=trained_encoders(config.model, info),
    )
    _check_fed(architecture, features)

    def as_trained(outcome: Outcome) -> Trained:
        model = build_model(architecture)
        model.load_state_dict(outcome.weights)
        model.label_temperature = outcome.label_temperature
        return Trained(model.eval(), _meta(config, split, info, model, outcome))

    def keep(outcome: Outcome) -> None:
        best = as_trained(outcome)
        save_checkpoint(store.child(BEST), best.model, best.meta)

    outcome = (
        fit_method(config, split, features, architecture=architecture, info=info, stream=stream)
        if is_fitted(architecture)
        else TrainingRun(
            config,
            split,
            features,
            architecture=architecture,
            store=store,
            make_engine=make_engine,
            device=device,
            stream=stream,
            keep_best=keep if keep_best else None,
        ).run()
    )
    return as_trained(outcome)


def wanted_rows(
    labels: Sequence[Sequence[str]], partition: Sequence[str], split: ClassSplit
) -> npt.NDArray[np.bool_]:
    """Return a mask of the rows of seen classes: all partitions of pseudo-unseen ones, train (and val) of the others."""
    seen = training_rows(labels, split, refit=True)
    held_out = frozenset(split.pseudo_unseen)
    pseudo = np.array([not held_out.isdisjoint(names) for names in labels], dtype=np.bool_)
    used = np.isin(np.array(partition, dtype="U5"), ("train", "val") if split.kind == "none" else ("train",))
    return seen & (pseudo | used)


def _meta(
    config: Config, split: ClassSplit, info: Mapping[str, Any], model: AlignmentModel, outcome: Outcome
) -> CheckpointMeta:
    teacher = info["teacher"]
    return CheckpointMeta(
        architecture=dict(model.architecture()),
        blocks=tuple(BlockRecord(**asdict(block)) for block in model.blocks),
        label_temperature=outcome.label_temperature,
        label_weight=outcome.label_weight,
        image_backbone=_backbone("image", info, model),
        text_backbone=_backbone("text", info, model),
        # A thousand class names belong to the backbone, not to every checkpoint.
        teacher=teacher and {name: value for name, value in teacher.items() if name != "class_names"},
        preprocessing=info["image_backbone"]["spec"],
        region_grid=config.model.region_grid or info["region_grid"],
        max_tokens=info["max_tokens"],
        selection=outcome.selection,
        recipe=config.recipe,
        config=config.model_dump(mode="json"),
        split=json.loads(split.to_json()),
    )


def _backbone(side: str, info: Mapping[str, Any], model: AlignmentModel) -> BackboneRecord:
    """A backbone as the pairs name it, with the hash and the blocks of its training where it was trained."""
    facts = dict(info[f"{side}_backbone"])
    if isinstance(model, TunedModel) and side in model.encoders:
        blocks = model.encoders[side]["blocks"]
        which = "all its layers" if blocks == "all" else f"the last {blocks} of its blocks"
        facts |= {
            "trained_on": f"{facts.get('trained_on') or 'not stated'}; then {which} with this model",
            "weights_sha256": model.encoder_sha256()[side],
            "untrained_sha256": facts["weights_sha256"],
            "trained_blocks": blocks,
        }
    return BackboneRecord.model_validate(facts)


def _check_fed(architecture: Mapping[str, Any], features: PairFeatures) -> None:
    """Refuse encoders where there is nothing to train them from, or no training."""
    encoders = sorted(architecture.get(ENCODERS, ()))
    if not encoders:
        return
    if is_fitted(architecture):
        raise ConfigError(
            f"method {architecture['method']} is fitted in closed form: no gradient reaches a backbone",
            got=f"model.{encoders[0]}_blocks",
            expected="a method trained by gradient, or frozen backbones",
            remedy="model.method=fgan, inn or tower, or model.image_blocks=0 and model.text_blocks=0",
        )
    if not isinstance(features, FedPairs):
        raise ConfigError(
            "an ablation trains from cached features: its backbones are frozen",
            got=f"model.{encoders[0]}_blocks",
            expected="0",
            remedy="train backbones with `zscmr train`",
        )
