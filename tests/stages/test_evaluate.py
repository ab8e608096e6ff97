"""The evaluate stage on a small run: what it writes, what it refuses, and what it must not look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.stages.small_run import CLASS_NAMES, pairs_info, small_config, write_checkpoint, write_pairs
from zscmr_ray.engine.checkpoint import BackboneRecord
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import read_manifest
from zscmr_ray.retrieval.protocol import ClassGroups
from zscmr_ray.retrieval.searches import Corpus
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.evaluate import run_evaluate
from zscmr_ray.stages.evaluate_examples import spread_over_classes
from zscmr_ray.stages.measure.baselines import shared_names
from zscmr_ray.stages.measure.rows import PairsTable, choose_ids, encode_rows
from zscmr_ray.storage import Store


def test_a_labelled_run_gives_numbers_with_chance_and_baselines(tmp_path: Path) -> None:
    config = small_config(str(tmp_path))
    write_pairs(config)
    meta = write_checkpoint(config)
    result = run_evaluate(config)
    assert not result.skipped
    store = stage_store(config, "evaluate")
    report = store.read_json("report.json")
    assert [method["key"] for method in report["methods"]] == [
        "regions",
        "labels",
        "both",
        "cca",
        "ridge",
        "conse",
    ]
    assert report["main"] == "both"
    assert report["not_run"] == []
    for method in report["methods"]:
        assert set(method["classes"]) == {"U|U", "S|S", "U|all", "S|all", "H"}
        for numbers in method["classes"].values():
            low, high = numbers["average"]["interval"]
            assert 0 < low <= numbers["average"]["map"] <= high <= 1
            assert 0 < numbers["average"]["chance"] < 1
        assert set(method["instance"]) == {"test", "test U"}
    assert report["data"]["classes"] == {"seen": 2, "held_out": 2, "unseen": 4, "dropped": 0}
    assert report["data"]["partitions"]["test"] == 40
    assert report["unseen_evaluations"] == 1
    assert report["model"]["fingerprint"] == meta.fingerprint
    assert report["settings"]["label_weight"] == 0.4
    page = store.read_bytes("report.html").decode()
    assert "Retrieval by class" in page and "What the image side looks at" in page
    assert "U|U" in result.info["summary"] and "chance" in result.info["summary"]
    # CCA has seen two classes whose features lean the same way on both sides: it must beat chance on them.
    cca = report["methods"][3]["classes"]["S|S"]["average"]
    assert cca["map"] > 1.5 * cca["chance"]


def test_a_second_run_returns_at_once_and_counts_nothing(tmp_path: Path) -> None:
    config = small_config(str(tmp_path))
    write_pairs(config)
    meta = write_checkpoint(config)
    first = run_evaluate(config)
    again = run_evaluate(config)
    assert again.skipped and again.counts == first.counts
    store = stage_store(config, "evaluate")
    manifest = read_manifest(store)
    assert manifest is not None
    assert [part.name for part in manifest.parts] == ["examples.json", "report.json"]
    anew = run_evaluate(config, overwrite=True)
    assert not anew.skipped
    assert Store(tmp_path).read_json("unseen_evaluations.json") == {meta.fingerprint: 2}
    assert store.read_json("report.json")["unseen_evaluations"] == 2


def test_looks_at_unseen_classes_are_counted_over_all_checkpoints_of_a_run(tmp_path: Path) -> None:
    config = small_config(str(tmp_path))
    write_pairs(config)
    write_checkpoint(config)
    run_evaluate(config)
    write_checkpoint(config, label_weight=0.2, label_temperature=2.0)
    run_evaluate(config, overwrite=True)
    report = stage_store(config, "evaluate").read_json("report.json")
    assert (report["unseen_evaluations"], report["unseen_evaluations_in_run"]) == (1, 2)
    assert "2 in this run's directory" in (tmp_path / "report" / "report.html").read_text()


def test_the_same_evaluation_writes_the_same_numbers(tmp_path: Path) -> None:
    reports = []
    for name in ("one", "other"):
        config = small_config(str(tmp_path / name), batch_rows=7 if name == "one" else 64)
        write_pairs(config)
        write_checkpoint(config)
        run_evaluate(config)
        reports.append(stage_store(config, "evaluate").read_json("report.json"))
    for one, other in zip(reports[0]["methods"], reports[1]["methods"], strict=True):
        for direction in ("image_to_text", "text_to_image"):
            first, second = one["classes"]["U|U"][direction], other["classes"]["U|U"][direction]
            assert first["map"] == pytest.approx(second["map"], abs=1e-5)
            assert first["interval"] == pytest.approx(second["interval"], abs=1e-5)


def test_without_labels_there_is_instance_retrieval_only(tmp_path: Path) -> None:
    config = small_config(str(tmp_path))
    write_pairs(config, labelled=False)
    write_checkpoint(config, labelled=False)
    result = run_evaluate(config)
    report = stage_store(config, "evaluate").read_json("report.json")
    assert all(method["classes"] == {} for method in report["methods"])
    assert report["methods"][0]["instance"]["test"]["text_to_image"]["num_gallery"] == 40
    assert "instance only" in report["notes"][0]
    assert "R@10" in result.info["summary"]
    page = stage_store(config, "evaluate").read_bytes("report.html").decode()
    assert "Retrieval by instance" in page and "Retrieval by class" not in page


def test_defect_12_an_untrained_checkpoint_is_refused(tmp_path: Path) -> None:
    config = small_config(str(tmp_path))
    write_pairs(config)
    write_checkpoint(config, steps=0)
    with pytest.raises(RefusedError, match="untrained"):
        run_evaluate(config)


def test_features_of_another_backbone_are_refused_with_both_hashes(tmp_path: Path) -> None:
    config = small_config(str(tmp_path))
    write_pairs(config)
    other = BackboneRecord(id="tiny", weights_sha256="f" * 64, num_channels=32)
    write_checkpoint(config, text_backbone=other)
    with pytest.raises(RefusedError, match="another text backbone") as caught:
        run_evaluate(config)
    assert "f" * 64 in str(caught.value)
    assert pairs_info()["text_backbone"]["weights_sha256"] in str(caught.value)


def test_missing_stages_and_missing_test_rows_are_named(tmp_path: Path) -> None:
    config = small_config(str(tmp_path))
    with pytest.raises(DataError, match="preprocess is not complete"):
        run_evaluate(config)
    write_pairs(config)
    with pytest.raises(DataError, match="train is not complete"):
        run_evaluate(config)
    table = PairsTable(["a"], [("kind a",)], np.array(["train"]))
    with pytest.raises(DataError, match="no test row"):
        choose_ids(table, ClassGroups(("kind a",), ()))


def test_a_configured_label_weight_is_said_to_be_configured(tmp_path: Path) -> None:
    config = small_config(str(tmp_path), label_weight=1.0)
    write_pairs(config)
    write_checkpoint(config)
    run_evaluate(config)
    report = stage_store(config, "evaluate").read_json("report.json")
    assert report["settings"]["label_weight_from_config"]
    by_key = {method["key"]: method for method in report["methods"]}
    for condition in ("U|U", "S|all"):
        both, labels = (by_key[key]["classes"][condition]["average"] for key in ("both", "labels"))
        assert both["map"] == pytest.approx(labels["map"], abs=1e-6)


def test_only_rows_of_the_protocol_are_encoded(tmp_path: Path) -> None:
    config = small_config(str(tmp_path))
    write_pairs(config)
    store = stage_store(config, "preprocess")
    manifest = read_manifest(store)
    assert manifest is not None
    from zscmr_ray.engine.checkpoint import load_checkpoint

    write_checkpoint(config)
    model, _meta = load_checkpoint(stage_store(config, "train"))
    wanted = {f"shard.tar#{number}" for number in (3, 50, 159)}
    rows = encode_rows(store, manifest, model, ids=wanted, batch_rows=2)
    assert rows.corpus.ids == ["shard.tar#3", "shard.tar#50", "shard.tar#159"]
    assert rows.corpus.text_item_M.tolist() == [0, 0, 1, 2, 2]
    assert rows.text_MD.shape == (5, model.dim)
    assert rows.weights_NR is not None and rows.weights_NR.shape == (3, 4)


def test_class_names_shared_with_the_teacher() -> None:
    teacher = ["tench, Tinca tinca", "jersey, T-shirt, tee shirt"]
    assert shared_names(["T-shirts", "tinca_tinca", "shirt", "kind a"], teacher) == [
        "T-shirts",
        "tinca_tinca",
    ]


def test_examples_take_turns_over_classes_and_ignore_row_order() -> None:
    labels = [(CLASS_NAMES[0],)] * 8 + [(CLASS_NAMES[1],)] * 2
    ids = [f"i{row}" for row in range(10)]
    corpus = Corpus(ids, labels, np.full(10, "test"), np.arange(9))  # the last item has no caption
    shown = spread_over_classes(corpus, np.arange(10), count=4)
    assert sorted(labels[item][0] for item in shown[:2]) == list(CLASS_NAMES[:2])
    again = spread_over_classes(corpus, np.arange(10)[::-1], count=4)
    assert shown.tolist() == again.tolist()
    assert 9 not in shown
