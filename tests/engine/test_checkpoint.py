"""Checkpoints describe themselves, give back the same model, and refuse what was changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.pairs_run import IMAGE_CHANNELS, TEACHER_CLASSES, TOKEN_CHANNELS, pairs_info, tiny_config
from zscmr_ray.engine.base import model_architecture
from zscmr_ray.engine.checkpoint import (
    BlockRecord,
    CheckpointMeta,
    check_backbone,
    load_checkpoint,
    load_dual_encoder,
    save_checkpoint,
)
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.models.build import build_model
from zscmr_ray.storage import Store


def make_model(image_channels: int = IMAGE_CHANNELS, text_channels: int = TOKEN_CHANNELS) -> AlignmentModel:
    architecture = model_architecture(
        tiny_config("unused"),
        image_channels=image_channels,
        text_channels=text_channels,
        num_classes=TEACHER_CLASSES,
    )
    return build_model(architecture, seed=5)


def make_meta(model: AlignmentModel, **changes: object) -> CheckpointMeta:
    info = pairs_info()
    values: dict[str, object] = {
        "architecture": model.architecture(),
        "blocks": tuple(BlockRecord(name=b.name, start=b.start, stop=b.stop) for b in model.blocks),
        "label_temperature": 0.5,
        "label_weight": 0.3,
        "image_backbone": info["image_backbone"],
        "text_backbone": info["text_backbone"],
        "teacher": info["teacher"],
        "preprocessing": info["image_backbone"]["spec"],  # type: ignore[index]
        "region_grid": 2,
        "max_tokens": 8,
        "selection": {"steps": 7},
        "recipe": "fgan",
        "config": tiny_config("unused").model_dump(mode="json"),
        "split": {"seen": ["a"], "unseen": ["b"]},
    }
    return CheckpointMeta.model_validate(values | changes)


def saved(tmp_path: Path) -> tuple[Store, AlignmentModel, CheckpointMeta]:
    store, model = Store(tmp_path / "checkpoint"), make_model()
    return store, model, save_checkpoint(store, model, make_meta(model))


def test_a_loaded_model_gives_the_same_vectors(tmp_path: Path) -> None:
    store, model, meta = saved(tmp_path)
    loaded, found = load_checkpoint(store)
    assert found == meta
    assert len(meta.fingerprint) == 64 and meta.method == "fgan"
    assert not loaded.training and loaded.label_temperature == 0.5
    model.label_temperature = 0.5
    regions_BRD = torch.randn(3, 4, IMAGE_CHANNELS)
    expected = model.eval().vectors(model.encode_image(regions_BRD))
    assert torch.equal(loaded.vectors(loaded.encode_image(regions_BRD)), expected)


def test_the_same_training_gives_the_same_bytes(tmp_path: Path) -> None:
    store, model, _ = saved(tmp_path)
    other = Store(tmp_path / "again")
    save_checkpoint(other, model, make_meta(model))
    names = [info.key for info in store.list()]
    assert names == ["config.json", "meta.json", "model.safetensors", "split.json"]
    assert [store.sha256(name) for name in names] == [other.sha256(name) for name in names]


@pytest.mark.parametrize(
    "changes, differs",
    [
        ({"label_temperature": 0.6}, True),
        ({"region_grid": 4}, True),
        ({"max_tokens": 9}, True),
        ({"preprocessing": {"size_px": 9}}, True),
        ({"label_weight": 0.9}, False),
        ({"recipe": "other"}, False),
    ],
)
def test_the_fingerprint_covers_what_decides_a_vector(
    tmp_path: Path, changes: dict[str, object], differs: bool
) -> None:
    _, model, meta = saved(tmp_path)
    other = save_checkpoint(Store(tmp_path / "other"), model, make_meta(model, **changes))
    assert (other.fingerprint != meta.fingerprint) == differs


def test_one_wrong_byte_of_weights_is_refused(tmp_path: Path) -> None:
    store, _, _ = saved(tmp_path)
    data = bytearray(store.read_bytes("model.safetensors"))
    data[-1] ^= 1
    store.write_bytes("model.safetensors", bytes(data))
    with pytest.raises(RefusedError, match="fingerprint differs"):
        load_checkpoint(store)


def test_an_edited_meta_is_refused(tmp_path: Path) -> None:
    store, _, _ = saved(tmp_path)
    store.write_json("meta.json", store.read_json("meta.json") | {"label_temperature": 2.0})
    with pytest.raises(RefusedError, match="fingerprint differs"):
        load_checkpoint(store)


def test_torn_and_missing_files_are_data_errors(tmp_path: Path) -> None:
    store, _, _ = saved(tmp_path)
    whole = store.read_bytes("model.safetensors")
    store.write_bytes("model.safetensors", whole[: len(whole) // 2])
    with pytest.raises(DataError, match="unreadable weights"):
        load_checkpoint(store)
    store.write_json("meta.json", {"method": "fgan"})
    with pytest.raises(DataError, match="unreadable checkpoint"):
        load_checkpoint(store)
    with pytest.raises(DataError, match="no such file"):
        load_checkpoint(Store(tmp_path / "nowhere"))


def test_dual_encoder_checks_the_backbones(tmp_path: Path) -> None:
    image, text = load_image_backbone("tiny"), load_text_backbone("tiny", max_tokens=8)
    model, store = make_model(image.num_channels, text.num_channels), Store(tmp_path)
    records = {
        f"{side}_backbone": {
            "id": "tiny",
            "weights_sha256": net.weights_sha256,
            "num_channels": net.num_channels,
        }
        for side, net in (("image", image), ("text", text))
    }
    save_checkpoint(store, model, make_meta(model, **records))
    encoder, meta = load_dual_encoder(store)
    vectors_BD, _ = encoder.encode_texts(["a red apple", "two"])
    assert vectors_BD.shape == (2, meta.blocks[-1].stop)
    records["text_backbone"] |= {"weights_sha256": "0" * 64}
    save_checkpoint(store, model, make_meta(model, **records))
    with pytest.raises(RefusedError, match="other weights than in training"):
        load_dual_encoder(store)


def test_check_backbone_names_both_hashes() -> None:
    record = make_meta(make_model()).image_backbone
    check_backbone("1" * 64, record)
    with pytest.raises(RefusedError, match=r"sha256 222222222222.*sha256 111111111111"):
        check_backbone("2" * 64, record)


def test_meta_is_plain_json(tmp_path: Path) -> None:
    store, _, meta = saved(tmp_path)
    raw = json.loads(store.read_bytes("meta.json"))
    assert raw["fingerprint"] == meta.fingerprint
    assert "config" not in raw and "split" not in raw
