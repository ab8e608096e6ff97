"""The training of a method that is fitted at once and not step by step (`best`): weights by folds, a validation, the fit.

    choose     the trained classes are cut into folds by the seed; the parts are fitted on the other folds' classes, with
               each number of the towers' epochs; that with the better average mAP on the classes of each fold is taken,
               and the part weights are moved a third of the way from where they begin to those with the best one
               (retrieval/part_weights.py)
    validate   fitted on seen minus pseudo-unseen classes, scored on the pseudo-unseen ones as every recipe is
    fit        on all trained classes: those, or with `train.refit` all seen ones

Every step sees rows of seen classes only. Deterministic, a minute long, hence without resumable states: a killed run begins
again and ends with the same bytes. No checkpoints, no Ray: engine/run.py is the training of all other methods.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zscmr_ray.config import Config
from zscmr_ray.data.pairs import PairFeatures
from zscmr_ray.data.splits import ClassSplit, check_no_leak, rows_of
from zscmr_ray.engine.checkpoint import BackboneRecord, check_backbone
from zscmr_ray.engine.run import Outcome, held_out_rows, trained_rows
from zscmr_ray.engine.validation import Validator
from zscmr_ray.models.alignment_statistics import PairRows, check_rows
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.models.best import Best
from zscmr_ray.models.best_settings import DEFAULT_WEIGHTS, EPOCHS, PARTS
from zscmr_ray.models.build import build_model
from zscmr_ray.models.teacher_head import TeacherHead, read_teacher_head
from zscmr_ray.models.topk import token_mask
from zscmr_ray.retrieval.ordering import tie_ranks
from zscmr_ray.retrieval.part_weights import PartFold, choose_part_weights, mean_map, shrunk
from zscmr_ray.retrieval.searches import Corpus

NUM_FOLDS = 3
MIN_CLASSES_PER_FOLD = 2
QUERY_FRACTION = 0.3
# How far the weights go from the start to what the folds say; chosen in nested folds (docs/science.md).
FOLD_SHARE = 1 / 3
_BLOCK_ROWS = 256
# Landmarks are drawn from the tokens of at most so many captions.
MAX_LANDMARK_CAPTIONS = 4096
Rows = npt.NDArray[np.int64]


def fit_method(
    config: Config,
    split: ClassSplit,
    features: PairFeatures,
    *,
    architecture: dict[str, Any],
    info: Mapping[str, Any],
    stream: TextIO | None = None,
) -> Outcome:
    """Fit the described method on the rows of a split; `info` is the pairs' manifest's. The same on every rank.

    Raises DataError for rows that cannot be fitted, ConfigError for a backbone that is no teacher, RefusedError when an
    installed backbone is not the one the features came from.
    """
    image = load_image_backbone(info["image_backbone"]["id"])
    text = load_text_backbone(info["text_backbone"]["id"], max_tokens=int(info["max_tokens"]))
    for backbone, side in ((image, "image_backbone"), (text, "text_backbone")):
        check_backbone(backbone.weights_sha256, BackboneRecord.model_validate(info[side]))
    head = read_teacher_head(image, text)
    return FittedRun(config, split, features, architecture=architecture, head=head, stream=stream).run()


class FittedRun:
    """One fit of `best` over features that hold the trained and the validation rows of a split."""

    def __init__(
        self,
        config: Config,
        split: ClassSplit,
        features: PairFeatures,
        *,
        architecture: dict[str, Any],
        head: TeacherHead,
        stream: TextIO | None = None,
    ) -> None:
        self.config, self.split, self.features = config, split, features
        self.architecture, self.head = architecture, head
        self.stream = sys.stderr if stream is None else stream
        self.refits = config.train.refit and bool(split.pseudo_unseen)
        self.image_NF, self.text_MD = mean_features(features)
        self.shares_NC = self._region_shares()

    def run(self) -> Outcome:
        """Choose the weights and the towers' epochs, validate, fit. Raises DataError for rows that cannot be fitted."""
        rows = trained_rows(self.features, self.split, refit=self.refits)
        check_no_leak([self.features.labels[row] for row in rows], self.split, refit=self.refits)
        weights, epochs, score, num_folds = self._choose(rows)
        record: dict[str, Any] = {
            "part_weights": weights,
            "tower_epochs": epochs,
            "fold_map": score,
            "folds": num_folds,
            "label_weight": 0.0,
            "label_temperature": 1.0,
            "rows": "none: no class was held out",
            "steps": 1,
            "epoch": 1.0,
            "refit": self.refits,
            "trained_rows": len(rows),
        }
        record |= self._validate(weights, epochs)
        model = self._fitted(rows, epochs)
        model.set_part_weights(weights)
        outcome_weights = {name: value.clone() for name, value in model.state_dict().items()}
        return Outcome(outcome_weights, 0.0, 1.0, record)

    def _choose(self, rows: Rows) -> tuple[dict[str, float], int, float | None, int]:
        """Weights and epochs from folds of the trained classes; the defaults where there are too few classes to cut."""
        start = dict(zip(PARTS, DEFAULT_WEIGHTS, strict=True))
        classes = self.split.trained(refit=self.refits) if self.split.kind != "none" else ()
        held_out = fold_classes(classes, seed=self.config.train.seed)
        if not held_out:
            if not classes:
                start["seen"] = 0.0
            self._say(f"{len(classes)} classes are too few for folds: the parts have their default weights")
            return start, EPOCHS[0], None, 0
        fitted = {
            epochs: [
                self._fold(self._fitted(rows[self._without(rows, names)], epochs), rows, names)
                for names in held_out
            ]
            for epochs in EPOCHS
        }
        epochs = max(EPOCHS, key=lambda number: mean_map(fitted[number], start))
        folds = fitted[epochs]
        chosen, score = choose_part_weights(folds, start=start)
        weights = shrunk(chosen, start, share=FOLD_SHARE)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in weights.items())
        self._say(
            f"{epochs} epochs of the towers; part weights: {shown}; mAP {score:.4f} at the best of {len(folds)} folds of "
            "pseudo-unseen classes"
        )
        return weights, epochs, score, len(folds)

    def _without(self, rows: Rows, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Rows that show none of some classes (a multi-label row may show one beside others)."""
        left_out = frozenset(names)
        return np.array([left_out.isdisjoint(self.features.labels[row]) for row in rows], dtype=np.bool_)

    def _fold(self, model: Best, rows: Rows, names: Sequence[str]) -> PartFold:
        """The held-out classes' trained rows: the first by the id's hash ask, the others are searched."""
        features = self.features
        items = rows[rows_of([features.labels[row] for row in rows], names)]
        ids = [features.ids[row] for row in items]
        asks_N = tie_ranks(ids) < max(1, round(QUERY_FRACTION * len(ids)))
        place_N = np.full(len(features), -1, np.int64)
        place_N[items] = np.arange(len(items))
        captions = np.flatnonzero(place_N[features.caption_item_M] >= 0)
        with torch.inference_mode():
            image = model.image_parts(
                torch.from_numpy(self.image_NF[items]), torch.from_numpy(self.shares_NC[items])
            )
            text = model.text_parts(torch.from_numpy(self.text_MD[captions]), self._kernel(model, captions))
        return PartFold(
            image={name: part.numpy() for name, part in zip(PARTS, image, strict=True)},
            text={name: part.numpy() for name, part in zip(PARTS, text, strict=True)},
            corpus=Corpus(
                ids,
                [features.labels[row] for row in items],
                features.partition[items],
                place_N[features.caption_item_M[captions]],
            ),
            classes=tuple(names),
            query_items=np.flatnonzero(asks_N),
            gallery_items=np.flatnonzero(~asks_N),
        )

    def _validate(self, weights: dict[str, float], epochs: int) -> dict[str, Any]:
        """The score on the split's pseudo-unseen classes of a model that was not fitted on them."""
        held_out = held_out_rows(self.features, self.split)
        if held_out is None:
            return {}
        model = self._fitted(trained_rows(self.features, self.split, refit=False), epochs)
        model.set_part_weights(weights)
        validator = Validator(
            build_model(self.architecture),
            self.features.select(held_out),
            pseudo_unseen=self.split.pseudo_unseen,
        )
        choice = validator.score(model.state_dict()).to_json()
        self._say(f"mAP {choice['score']:.4f} on {choice['rows']} rows (chance {choice['chance']:.4f})")
        return choice

    def _fitted(self, rows: Rows, epochs: int) -> Best:
        """A model fitted on every caption of some rows."""
        features = self.features
        chosen_N = np.zeros(len(features), np.bool_)
        chosen_N[rows] = True
        captions = np.flatnonzero(chosen_N[features.caption_item_M])
        items = features.caption_item_M[captions]
        model = build_model(self.architecture)
        assert isinstance(model, Best), "FittedRun fits `best`"
        fitted = PairRows(self.image_NF[items], self.text_MD[captions], _class_numbers(features, items))
        check_rows(fitted)
        model.token_kernel.fit(self._some_tokens(captions), seed=self.config.train.seed)
        model.fit(
            fitted,
            self.head,
            kernel_NK=self._kernel(model, captions),
            region_shares_NC=torch.from_numpy(self.shares_NC[items]),
            epochs=epochs,
        )
        return model.eval()

    def _region_shares(self) -> npt.NDArray[np.float32]:
        """What the classifier says of every item's regions, averaged [N, C], a block at a time."""
        model = build_model(self.architecture)
        assert isinstance(model, Best), "FittedRun fits `best`"
        model.set_teacher(self.head)
        rows = np.arange(len(self.features))
        with torch.inference_mode():
            blocks = [
                model.region_shares(self.features.image_inputs(rows[start : start + _BLOCK_ROWS])).numpy()
                for start in range(0, len(rows), _BLOCK_ROWS)
            ]
        return np.concatenate(blocks)

    def _some_tokens(self, captions: Rows) -> Tensor:
        """The tokens [T, D] of some captions, or of a part of them that lies evenly."""
        places = np.linspace(0, len(captions) - 1, min(len(captions), MAX_LANDMARK_CAPTIONS)).astype(int)
        tokens_BLD, lengths_B = self.features.padded_tokens(captions[places])
        return tokens_BLD[token_mask(lengths_B, tokens_BLD.shape[1])]

    @torch.no_grad()
    def _kernel(self, model: Best, captions: Rows) -> Tensor:
        """What the model's token kernel says of some captions [M, K], a block at a time."""
        blocks = [
            model.token_kernel(*self.features.padded_tokens(captions[start : start + _BLOCK_ROWS]))
            for start in range(0, len(captions), _BLOCK_ROWS)
        ]
        return torch.cat(blocks)

    def _say(self, text: str) -> None:
        print(f"train: {text}", file=self.stream, flush=True)


def fold_classes(classes: Sequence[str], *, seed: int) -> list[tuple[str, ...]]:
    """Cut classes into NUM_FOLDS sets by a seed, each at least 2 classes; none where there are too few.

    >>> [len(names) for names in fold_classes([f"class {n}" for n in range(8)], seed=0)]
    [3, 3, 2]
    """
    if len(classes) < NUM_FOLDS * MIN_CLASSES_PER_FOLD:
        return []
    order = np.random.default_rng([seed, 0xF01D]).permutation(len(classes))
    return [tuple(sorted(classes[place] for place in order[fold::NUM_FOLDS])) for fold in range(NUM_FOLDS)]


def mean_features(features: PairFeatures) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return each item's mean region [N, F] and each caption's mean token [M, D], in float32, a block at a time."""
    blocks = range(0, len(features), _BLOCK_ROWS)
    image = [
        features.regions_NRD[start : start + _BLOCK_ROWS].astype(np.float32).mean(axis=1) for start in blocks
    ]
    text = [_mean_tokens(features, start) for start in range(0, features.num_captions, _BLOCK_ROWS)]
    return np.concatenate(image), np.concatenate(text)


def _mean_tokens(features: PairFeatures, first: int) -> npt.NDArray[np.float32]:
    starts_M1 = features.token_starts_M1[first : first + _BLOCK_ROWS + 1]
    values_TD = features.token_values_TD[starts_M1[0] : starts_M1[-1]].astype(np.float32)
    sums_MD = np.add.reduceat(values_TD, starts_M1[:-1] - starts_M1[0], axis=0)
    means_MD: npt.NDArray[np.float32] = (sums_MD / np.diff(starts_M1)[:, None]).astype(np.float32)
    return means_MD


def _class_numbers(features: PairFeatures, items: Rows) -> Rows:
    """A number for each set of labels; a row without labels is its own class."""
    numbers: dict[object, int] = {}
    keys: list[object] = [frozenset(features.labels[item]) or int(item) for item in items]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
