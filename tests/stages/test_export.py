"""`zscmr export`: the folder, its card, and that it is a model for everything that takes one."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

import numpy as np
import pytest

from tests.stages.small_run import CLASS_NAMES, small_config, write_checkpoint, write_pairs
from zscmr_ray.cli.main import run
from zscmr_ray.config import Config
from zscmr_ray.engine.checkpoint import FILES, read_meta
from zscmr_ray.engine.vector_model import find_model, read_facts
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.retriever import ZeroShotRetriever
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.evaluate import run_evaluate
from zscmr_ray.stages.export import run_export
from zscmr_ray.stages.export.card import RunFacts, model_card
from zscmr_ray.storage import Store


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run up to its report."""
    config = small_config(str(tmp_path_factory.mktemp("export") / "run"))
    write_pairs(config)
    write_checkpoint(config)
    run_evaluate(config)
    return config


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_a_model_and_tells_nothing_of_the_machine(config: Config, tmp_path: Path) -> None:
    target = tmp_path / "out"
    result = run_export(config, Store(target))
    assert not result.skipped and result.counts == {"files": 5}
    assert names(target) == {*FILES, "README.md", "manifest.json"}
    meta = read_meta(stage_store(config, "train"))
    assert read_facts(find_model(str(target), own=Store(target))).fingerprint == meta.fingerprint
    own, exported = (ZeroShotRetriever.from_pretrained(place) for place in (config.data.run_uri, target))
    np.testing.assert_array_equal(own.encode_texts(["a b"]), exported.encode_texts(["a b"]))
    secrets = (config.data.run_uri, str(tmp_path), socket.gethostname(), f"{getpass.getuser()}@")
    for path in target.rglob("*"):
        text = path.read_bytes().decode(errors="replace")
        assert not [secret for secret in secrets if secret in text], path.name


def test_the_card_tells_the_run(config: Config, tmp_path: Path) -> None:
    run_export(config, Store(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    meta = read_meta(stage_store(config, "train"))
    report = stage_store(config, "evaluate").read_json("report.json")
    assert card.startswith("---\nlibrary_name: zscmr_ray\n")
    for told in (
        meta.fingerprint,
        meta.image_backbone.weights_sha256,
        "5 training steps",
        "recipe | fgan",
        "160 in, 160 out",
        "Split `even_odd`",
        "Unseen by the alignment network",
        report["data"]["teacher_overlap_note"],
        "ZeroShotRetriever.from_pretrained",
        *CLASS_NAMES,
    ):
        assert told in card, told
    (chance,) = {line for line in card.splitlines() if line.startswith("| chance")}
    value = report["methods"][2]["classes"]["U|U"]["average"]["chance"]
    assert f"{value:.3f}"[1:] in chance
    assert "onnx" not in card


def test_what_a_run_lacks_is_said_to_be_lacking(tmp_path: Path) -> None:
    config = small_config(str(tmp_path / "run"))
    with pytest.raises(DataError, match="train is not complete"):
        run_export(config, Store(tmp_path / "out"))
    meta = write_checkpoint(config)
    run_export(config, Store(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not measured in this run" in card and "were not beside the run" in card
    unlabelled = write_checkpoint(small_config(str(tmp_path / "other")), labelled=False)
    assert "trained without classes" in model_card(unlabelled)
    assert model_card(meta) == model_card(meta, RunFacts())


def test_class_names_of_others_cannot_break_the_card(tmp_path: Path) -> None:
    config = small_config(str(tmp_path / "run"))
    meta = write_checkpoint(config)
    assert meta.split is not None
    wild = "a|b\n# <script>"
    split = meta.split | {"unseen": [wild, *meta.split["unseen"][1:]]}
    card = model_card(meta.model_copy(update={"split": split}))
    assert "a\\|b # &lt;script>" in card and wild not in card


def test_a_second_export_returns_at_once_and_a_changed_run_is_refused(config: Config, tmp_path: Path) -> None:
    target = Store(tmp_path / "out")
    run_export(config, target)
    before = require_manifest(target, "export")
    assert run_export(config, target).skipped and require_manifest(target, "export") == before
    other = small_config(str(tmp_path / "run"))
    write_checkpoint(other, label_temperature=0.5)
    with pytest.raises(RefusedError, match="another run of export"):
        run_export(other, target)
    assert not run_export(other, target, overwrite=True).skipped
    assert "Not measured" in target.read_bytes("README.md").decode()
    assert names(tmp_path / "out") == {*FILES, "README.md", "manifest.json"}


def test_a_folder_of_other_things_is_left_alone(config: Config, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(RefusedError, match="no export wrote"):
            run_export(config, Store(tmp_path), overwrite=overwrite)
    assert names(tmp_path) == {"letter.txt"}


def test_a_report_of_another_checkpoint_is_refused(config: Config, tmp_path: Path) -> None:
    other = small_config(str(tmp_path / "run"))
    write_pairs(other)
    write_checkpoint(other)
    run_evaluate(other)
    write_checkpoint(other, label_temperature=0.5)
    with pytest.raises(RefusedError, match="report is of another checkpoint"):
        run_export(other, Store(tmp_path / "out"))


def test_the_command(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--run", config.data.run_uri, "--to", str(tmp_path / "out")]
    assert run(arguments) == 0
    assert "export: done" in capsys.readouterr().out
    assert run(arguments) == 0
    assert "already done" in capsys.readouterr().out
    assert run(["export", "--run", str(tmp_path / "nothing"), "--to", str(tmp_path / "x")]) == 3
