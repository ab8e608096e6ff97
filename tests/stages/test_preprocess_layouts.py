"""Each dataset layout through the whole of preprocess, in this process: counts, splits, rejects, ids, a second run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.layouts import fixtures
from tests.stages.corpus import corpus_config
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from zscmr_ray.claim import Update
from zscmr_ray.config import Config
from zscmr_ray.config.load import load_config
from zscmr_ray.data.layouts import LAYOUTS
from zscmr_ray.errors import DataError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.stages.verify import verify_run

pytestmark = pytest.mark.usefixtures("inline_plane")

# layout: the dataset, rows by partition, rejects by code, an id
CASES: dict[str, tuple[Callable[[], fixtures.Files], dict[str, int], dict[str, int], str]] = {
    "wikipedia": (
        fixtures.wikipedia,
        {"train": 4, "test": 2},
        {"missing_image": 1, "unreadable_record": 1, "missing_caption": 1},
        "t0-1",
    ),
    "pascal_sentence": (
        fixtures.pascal_sentence,
        {"train": 16, "val": 2, "test": 2},
        {},
        "diningtable/2008_000003",
    ),
    "xmedia": (
        lambda: fixtures.xmedia() | {"train.txt": "0_insect insect_0\n", "test.txt": "2_bird bird_2\n"},
        {"train": 1, "test": 1},
        {},
        "bird/2_bird",
    ),
    "nuswide": (
        fixtures.nuswide,
        {"train": 2, "test": 1},
        {"missing_image": 1, "empty_caption": 1},
        "0001_22",
    ),
    "coco": (
        fixtures.coco,
        {"train": 3, "test": 1},
        {"missing_caption": 1, "missing_image": 1},
        "000000000139",
    ),
    "karpathy": (
        fixtures.karpathy_coco,
        {"train": 2, "val": 1, "test": 1},
        {},
        "COCO_val2014_000000000031",
    ),
    "flickr": (
        fixtures.flickr8k,
        {"train": 1, "val": 1, "test": 1},
        {"missing_image": 1},
        "1002674143_1b742ab4b8",
    ),
}


def config_of(tmp_path: Path, name: str, files: fixtures.Files) -> Config:
    fixtures.write(tmp_path / "shards", files)
    return corpus_config(tmp_path, data={"format": name})


@pytest.mark.parametrize("name", CASES)
def test_a_layout_becomes_pairs(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, partitions, rejected, item_id = CASES[name]
    config = config_of(tmp_path, name, make())
    counts = run_preprocess(config).counts
    assert counts["out"] == sum(partitions.values()) and counts["rejected"] == sum(rejected.values())
    assert counts["in"] == counts["out"] + counts["rejected"]
    assert {code: counts[f"rejected_{code}"] for code in rejected} == rejected
    store = stage_store(config, "preprocess")
    manifest = require_manifest(store, "preprocess")
    rows = [
        row
        for part in manifest.parts
        if "/" not in part.name
        for row in pq.read_table(store.path(part.name)).to_pylist()
    ]
    assert Counter(row["partition"] for row in rows) == partitions
    assert item_id in {row["id"] for row in rows}
    assert all(row["captions"] and row["regions"] and row["thumbnail"] for row in rows)
    assert sum(manifest.info["layout"]["rows"].values()) == counts["in"]
    assert f"preprocess: {name}: " in capsys.readouterr().err
    assert run_preprocess(config).skipped
    assert [text for report in verify_run(config.data.run_uri) for text in report.violations] == []


def test_a_repaired_picture_is_retried_and_the_rest_stays(tmp_path: Path) -> None:
    config = config_of(tmp_path, "wikipedia", fixtures.wikipedia())
    run_preprocess(config)
    fixtures.write(tmp_path / "shards", {"images/art/i4.jpg": fixtures.jpeg(4)})
    counts = run_preprocess(config, update=Update.RETRY).counts
    assert (counts["out"], counts["rejected"]) == (7, 2)


def test_another_dataset_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    config = config_of(tmp_path, "coco", fixtures.pascal_sentence(1))
    with pytest.raises(DataError, match=r"data.format=coco: no captions.*dataset/.*captions_<set>.json"):
        run_preprocess(config)


def test_every_layout_is_a_format_of_the_configuration() -> None:
    for name in LAYOUTS:
        assert load_config(overrides=[f"data.format={name}"]).config.data.format == name


def test_what_a_layout_leaves_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path, "nuswide10k", fixtures.nuswide())
    counts = run_preprocess(config).counts
    assert (counts["in"], counts["out"]) == (3, 1)
    assert "left out 1: none of the ten classes" in capsys.readouterr().err


def test_classes_of_captions_and_their_coverage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixtures.write(tmp_path / "shards", fixtures.flickr30k() | fixtures.flickr8k())
    (tmp_path / "shards/results_20130124.token").unlink()
    config = corpus_config(tmp_path, data={"format": "flickr", "caption_classes": "coco"})
    run_preprocess(config)
    assert "3 of 3 items have one (100.0%), 1 classes; dominant: person 3" in capsys.readouterr().err
    assert run_preprocess(config).skipped
