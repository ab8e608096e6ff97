"""The no-leak rule from pairs on disk to who is trained on and who is asked: COCO's 48/17 over a small COCO folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.layouts import fixtures
from tests.stages.corpus import corpus_config
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from zscmr_ray.config import Config
from zscmr_ray.data.no_leak import rule_features
from zscmr_ray.data.pairs import COLUMNS, load_pair_features
from zscmr_ray.manifest import Manifest, require_manifest
from zscmr_ray.retrieval.protocol import ClassGroups
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.measure.rows import choose_ids, read_pairs_table
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.stages.train import plan_training
from zscmr_ray.stages.train_loop import TrainJob
from zscmr_ray.stages.train_loop import read_features as read_training_features

PERSON, CAR, CAT, DOG, TABLE = 1, 3, 17, 18, 67
Images = dict[int, tuple[list[tuple[int, float]], list[str]]]
# (instances, captions): how often, and what each is under 48/17 (cat and dog unseen, dining table in neither).
KINDS: dict[str, tuple[int, list[tuple[int, float]], list[str]]] = {
    "car": (12, [(CAR, 9.0)], ["a red car"]),
    "person": (12, [(PERSON, 9.0)], ["a man"]),
    "dog": (12, [(DOG, 9.0), (PERSON, 5.0)], ["a man and a dog"]),
    "cat": (12, [(CAT, 9.0)], ["a cat"]),
    "shows a dog": (3, [(PERSON, 9.0), (DOG, 1.0)], ["a man"]),
    "names a cat": (2, [(PERSON, 9.0)], ["a man with kittens"]),
    "table": (11, [(TABLE, 9.0)], ["a table"]),
    "nothing": (4, [], ["a wall"]),
}


def images(first: int) -> tuple[Images, dict[str, str]]:
    found: Images = {}
    kinds: dict[str, str] = {}
    for kind, (count, instances, captions) in KINDS.items():
        for _ in range(count):
            number = first + len(found)
            found[number] = (instances, captions)
            kinds[f"{number:012d}"] = kind
    return found, kinds


@pytest.fixture
def run(tmp_path: Path, inline_plane: None) -> tuple[Config, Manifest, dict[str, str]]:  # noqa: F811
    """A preprocessed COCO folder of a train and a val set, and the kind of each item."""
    train, train_kinds = images(1)
    val, val_kinds = images(500)
    files = fixtures.coco_annotations(train, "train2017") | fixtures.coco_annotations(val, "val2017")
    picture = fixtures.jpeg(1)
    files |= {f"train2017/{number:012d}.jpg": picture for number in train}
    files |= {f"val2017/{number:012d}.jpg": picture for number in val}
    fixtures.write(tmp_path / "shards", files)
    config = corpus_config(
        tmp_path,
        data={"format": "coco"},
        preprocess={"region_grid": 1},
        split={"kind": "coco_48_17", "min_items_per_class": 5},
        train={"global_batch_size": 4},
    )
    run_preprocess(config)
    manifest = require_manifest(stage_store(config, "preprocess"), "preprocess")
    return config, manifest, train_kinds | val_kinds


def test_coco_trains_and_asks_by_the_rule(
    run: tuple[Config, Manifest, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, manifest, kinds = run
    store = stage_store(config, "preprocess")
    parts = tuple(part.name for part in manifest.parts if part.name.startswith("part-"))
    split, counts = plan_training(config, store, parts)
    assert (split.seen, split.unseen, split.dropped) == (("car", "person"), ("cat", "dog"), ("dining table",))
    said = capsys.readouterr().err
    for line in (
        "22 of 136 pairs take part in nothing: its dominant class is neither seen nor unseen",
        "8 of 136 pairs take part in nothing: no class",
        "3 of 136 pairs take part in nothing: it shows an unseen class",
        "2 of 136 pairs take part in nothing: a caption names an unseen class",
    ):
        assert line in said
    # One of the two seen classes is held out for validation.
    assert counts["trained_rows"] == 12

    features = read_training_features(TrainJob(config, split, store, parts, manifest.info, store))
    in_train = [
        kinds[name] for name, part in zip(features.ids, features.partition, strict=True) if part == "train"
    ]
    assert Counter(in_train) == {"car": 12, "person": 12}
    assert {labels[0] for labels in features.labels} == {"car", "person"}

    groups = ClassGroups(split.seen, split.unseen)
    table = read_pairs_table(store, manifest, split)
    group_N = groups.of_items(table.labels)
    asked = {
        name: Counter(
            kinds[table.ids[row]]
            for row in range(len(table.ids))
            if group_N[row] == name and table.partition_N[row] == "test"
        )
        for name in ("S", "U")
    }
    # A test picture of a person with a dog is a person's; only training is strict.
    assert asked == {
        "S": {"car": 12, "person": 12, "shows a dog": 3, "names a cat": 2},
        "U": {"dog": 12, "cat": 12},
    }
    ids, left_out = choose_ids(table, groups)
    assert left_out == 35 and len(ids) == 101

    tables = [pq.read_table(store.path(part), columns=list(COLUMNS)) for part in parts]
    again = rule_features(load_pair_features(tables, num_regions=1, token_channels=32), split)
    assert sorted(zip(again.ids, again.labels, strict=True)) == sorted(
        zip(table.ids, table.labels, strict=True)
    )
