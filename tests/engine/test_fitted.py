"""The fitted training: weights and fit never see an unseen class, no fold is fitted on what it asks, twice the same."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.pairs_run import (
    GRID,
    IMAGE_CHANNELS,
    TEACHER_CLASSES,
    TOKEN_CHANNELS,
    PairsSpec,
    make_tables,
    tiny_config,
)
from zscmr_ray.data.pairs import PairFeatures, load_pair_features
from zscmr_ray.data.splits import ClassSplit, count_classes, make_class_split
from zscmr_ray.engine.base import model_architecture
from zscmr_ray.engine.fitted import FittedRun, Rows, mean_features
from zscmr_ray.engine.run import Outcome
from zscmr_ray.models.alignment_statistics import PairRows
from zscmr_ray.models.best import Best
from zscmr_ray.models.best_settings import EPOCHS, PARTS
from zscmr_ray.models.teacher_head import TeacherHead


def make_features(num_classes: int = 16) -> PairFeatures:
    return load_pair_features(
        make_tables(PairsSpec(num_classes=num_classes)), num_regions=GRID**2, token_channels=TOKEN_CHANNELS
    )


def make_head() -> TeacherHead:
    generator = torch.Generator().manual_seed(0)
    names = torch.nn.functional.normalize(
        torch.randn(TEACHER_CLASSES, TOKEN_CHANNELS, generator=generator), dim=1
    )
    weight = torch.randn(TEACHER_CLASSES, IMAGE_CHANNELS, generator=generator)
    return TeacherHead(weight, torch.zeros(TEACHER_CLASSES), names, names.flip(1), names.flip(0))


def split_of(features: PairFeatures) -> ClassSplit:
    return make_class_split(count_classes(features.labels), "even_odd", seed=0)


def fit(
    features: PairFeatures, split: ClassSplit, *, refit: bool = True, said: io.StringIO | None = None
) -> Outcome:
    config = tiny_config("unused", model={"method": "best"}, train={"refit": refit})
    architecture = model_architecture(
        config,
        image_channels=IMAGE_CHANNELS,
        text_channels=TOKEN_CHANNELS,
        num_classes=TEACHER_CLASSES,
    )
    return FittedRun(
        config, split, features, architecture=architecture, head=make_head(), stream=said or io.StringIO()
    ).run()


def test_unseen_classes_change_nothing() -> None:
    """Fails if weights, validation or fit read a row of an unseen class."""
    features = make_features()
    split = split_of(features)
    outcome = fit(features, split)
    unseen = np.array([names[0] in split.unseen for names in features.labels])
    regions = features.regions_NRD.copy()
    regions[unseen] = -3.0 * regions[unseen][::-1]
    tokens = features.token_values_TD.copy()
    starts, items = features.token_starts_M1, features.caption_item_M
    of_unseen = np.repeat(unseen[items], np.diff(starts))
    tokens[of_unseen] = -2.0 * tokens[of_unseen][::-1]
    other = fit(replace(features, regions_NRD=regions, token_values_TD=tokens), split)
    assert other.selection == outcome.selection
    for name, value in outcome.weights.items():
        assert torch.equal(other.weights[name], value), name
    seen = regions.copy()
    seen[~unseen] = seen[~unseen][::-1]
    assert fit(replace(features, regions_NRD=seen), split).selection != outcome.selection


@pytest.mark.parametrize("refit", [True, False])
def test_no_fold_is_fitted_on_the_classes_that_it_scores(
    refit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = make_features()
    split = split_of(features)
    image_NF, _ = mean_features(features)
    row_of = {image.tobytes(): row for row, image in enumerate(image_NF)}
    fitted: list[set[str]] = []
    original = Best.fit

    def spy(self: Best, rows: PairRows, head: TeacherHead, **inputs: torch.Tensor) -> None:
        fitted.append({features.labels[row_of[image.tobytes()]][0] for image in rows.image_NF})
        original(self, rows, head, **inputs)

    read: list[set[str]] = []
    tokens_of = FittedRun._some_tokens

    def spy_tokens(self: FittedRun, captions: Rows) -> torch.Tensor:
        read.append({features.labels[row][0] for row in features.caption_item_M[captions]})
        return tokens_of(self, captions)

    monkeypatch.setattr(Best, "fit", spy)
    monkeypatch.setattr(FittedRun, "_some_tokens", spy_tokens)
    outcome = fit(features, split, refit=refit)
    trained = set(split.trained(refit=refit))
    *folds, validated, last = fitted
    assert read == fitted, "landmarks are drawn from the rows that a model is fitted on"
    assert outcome.selection["folds"] == 3
    assert folds == folds[:3] * len(EPOCHS)
    held_out = [trained - names for names in folds[:3]]
    assert all(names < trained for names in folds)
    assert set.union(*held_out) == trained
    assert sum(map(len, held_out)) == len(trained)
    assert validated == set(split.trained(refit=False))
    assert last == trained


@pytest.mark.parametrize("better", EPOCHS)
def test_the_epochs_with_the_better_folds_are_validated_and_fitted(
    better: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if another number of epochs than the folds' choice reaches the model."""
    features, fitted = make_features(), []
    original = Best.fit

    def spy(self: Best, rows: PairRows, head: TeacherHead, *, epochs: int, **inputs: torch.Tensor) -> None:
        fitted.append(epochs)
        original(self, rows, head, epochs=epochs, **inputs)

    maps = iter([0.2 if epochs == better else 0.1 for epochs in EPOCHS])
    monkeypatch.setattr(Best, "fit", spy)
    monkeypatch.setattr("zscmr_ray.engine.fitted.mean_map", lambda folds, weights: next(maps))
    outcome = fit(features, split_of(features))
    assert fitted == [epochs for epochs in EPOCHS for _ in range(3)] + [better, better]
    assert outcome.selection["tower_epochs"] == better


def test_it_is_deterministic_and_says_what_it_chose() -> None:
    features, said = make_features(), io.StringIO()
    split = split_of(features)
    one, two = fit(features, split, said=said), fit(features, split)
    assert one.selection == two.selection
    assert all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())
    assert set(one.selection["part_weights"]) == set(PARTS)
    assert one.selection["steps"] == 1
    assert one.selection["score"] > one.selection["chance"]
    assert "best of 3 folds" in said.getvalue()


def test_too_few_classes_keep_the_default_weights_and_say_so() -> None:
    features, said = make_features(num_classes=6), io.StringIO()
    outcome = fit(features, split_of(features), said=said)
    assert outcome.selection["folds"] == 0
    assert "too few for folds" in said.getvalue()
