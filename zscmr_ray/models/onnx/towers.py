"""A dual encoder's two sides as modules that `torch.export` can trace: tensors in, retrieval vectors out.

    image   pixels uint8 [B, S, S, 3]                              -> vectors [B, D]
    text    ids int64 [B, L], mask int64 [B, L] (1 = token)        -> vectors [B, D]; padding follows the tokens

Same weights, same numbers as `DualEncoder`; only what cannot be traced is said otherwise: grouping by length; adaptive
pooling, a matrix product here; the stable sort of the hard top-k, counted here; and the GRU over packed sequences, which
is ONNX's own GRU with sequence lengths. Calling a tower with such a GRU outside an export gives nothing useful: it is a
symbol.

Legend: B batch, S side in pixels, P pixels of a feature map, R regions, L tokens, D embedding, H width of a direction.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones import ImageBackbone, TextBackbone
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.models.dual_encoder import DualEncoder
from zscmr_ray.models.regions import RegionHead
from zscmr_ray.models.topk import token_mask
from zscmr_ray.models.trunks import TextTrunk


class ImageTower(nn.Module):
    """Pixels to vectors."""

    pooling: Tensor | None

    def __init__(self, backbone: ImageBackbone, model: AlignmentModel, *, region_grid: int) -> None:
        super().__init__()
        self.backbone, self.model = backbone, model
        pools = region_grid != backbone.native_grid
        self.register_buffer("pooling", pooling_matrix(backbone.native_grid, region_grid) if pools else None)

    def forward(self, pixels_BSS3: Tensor) -> Tensor:
        """Encode uint8 RGB pixels of the model's size."""
        map_BDhw, _ = self.backbone._encode(self.backbone._normalise(pixels_BSS3))
        regions_BDR = map_BDhw.float().flatten(2)
        if self.pooling is not None:
            regions_BDR = regions_BDR @ self.pooling
        return self.model.vectors(self.model.encode_image(_as_cached(regions_BDR.transpose(1, 2))))


class TextTower(nn.Module):
    """Token ids to vectors."""

    def __init__(self, backbone: TextBackbone, model: AlignmentModel) -> None:
        super().__init__()
        self.backbone, self.model = backbone, model

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Encode token ids; every row has at least one token, and its padding at the end."""
        is_token_BL = mask_BL.bool()
        tokens_BLD = self.backbone._encode(ids_BL, is_token_BL).float() * is_token_BL[..., None]
        return self.model.vectors(self.model.encode_text(_as_cached(tokens_BLD), mask_BL.sum(dim=1)))


def traceable_towers(encoder: DualEncoder) -> tuple[ImageTower, TextTower]:
    """Return both sides of an encoder, its own left as it is. Raises ConfigError for one that draws noise at test time."""
    assert encoder.image_backbone is not None and encoder.text_backbone is not None, "both sides"
    model = copy.deepcopy(encoder.model.network).eval()
    _make_traceable(model)
    image = ImageTower(encoder.image_backbone, model, region_grid=encoder.region_grid)
    return image.eval(), TextTower(encoder.text_backbone, model).eval()


def pooling_matrix(native_grid: int, region_grid: int) -> Tensor:
    """Return what `adaptive_avg_pool2d` multiplies a flat feature map with, [P, R].

    >>> pooling_matrix(2, 1).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    cells_P1hw = torch.eye(native_grid**2).view(-1, 1, native_grid, native_grid)
    return functional.adaptive_avg_pool2d(cells_P1hw, region_grid).flatten(1)


def counted_topk(scores_BL: Tensor, lengths_B: Tensor, k_B: Tensor, **_: object) -> Tensor:
    """Select as `models.topk.hard_topk` does: a token is in when fewer than k are ahead of it; earlier ones win ties."""
    mask_BL = token_mask(lengths_B, scores_BL.shape[1])
    masked_BL = scores_BL.float().masked_fill(~mask_BL, -torch.inf)
    position_L = torch.arange(scores_BL.shape[1], device=scores_BL.device)
    other_B1L, own_BL1 = masked_BL[:, None, :], masked_BL[:, :, None]
    ahead_BLL = (other_B1L > own_BL1) | ((other_B1L == own_BL1) & (position_L[None, :] < position_L[:, None]))
    return ((ahead_BLL.sum(dim=2) < k_B[:, None]) & mask_BL).to(torch.float32)


class _OnnxGru(nn.Module):
    """A bidirectional GRU as one ONNX operator; it reverses each row within its own length, as packing does."""

    weight: Tensor
    recurrence: Tensor
    bias: Tensor

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        assert gru.num_layers == 1 and gru.bidirectional and gru.batch_first and gru.bias
        self.hidden = gru.hidden_size
        directions = ("", "_reverse")
        self.register_buffer("weight", self._stacked(gru, "weight_ih_l0", directions))
        self.register_buffer("recurrence", self._stacked(gru, "weight_hh_l0", directions))
        biases = [self._stacked(gru, name, directions) for name in ("bias_ih_l0", "bias_hh_l0")]
        self.register_buffer("bias", torch.cat(biases, dim=1))

    def forward(self, states_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return [B, L, 2 H], 0 after each row's length."""
        num_rows, num_tokens, _ = states_BLD.shape
        output_L2BH = torch.onnx.ops.symbolic(
            "GRU",
            (states_BLD.transpose(0, 1), self.weight, self.recurrence, self.bias, lengths_B.to(torch.int32)),
            # As torch: the reset gate is applied to the product with the recurrent weights, bias included.
            {"hidden_size": self.hidden, "direction": "bidirectional", "linear_before_reset": 1},
            dtype=torch.float32,
            shape=(num_tokens, 2, num_rows, self.hidden),
        )
        return output_L2BH.permute(2, 0, 1, 3).flatten(2)

    def _stacked(self, gru: nn.GRU, name: str, directions: tuple[str, ...]) -> Tensor:
        """Both directions' parameters [2, 3 H, ...], from torch's gate order (reset, update, new) to ONNX's."""
        gates = [getattr(gru, f"{name}{direction}").detach().chunk(3) for direction in directions]
        return torch.stack([torch.cat([update, reset, new]) for reset, update, new in gates])


class _TraceableTextTrunk(nn.Module):
    """`TextTrunk` without packing."""

    def __init__(self, trunk: TextTrunk) -> None:
        super().__init__()
        assert trunk.gru is not None
        self.gru, self.project = _OnnxGru(trunk.gru), trunk.project

    def forward(self, tokens_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        mask_BL1 = token_mask(lengths_B, tokens_BLD.shape[1])[:, :, None]
        states_BLD = self.gru(tokens_BLD.masked_fill(~mask_BL1, 0), lengths_B)
        return self.project(states_BLD).masked_fill(~mask_BL1, 0)


def _make_traceable(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, TextTrunk) and child.gru is not None:
            setattr(module, name, _TraceableTextTrunk(child))
            continue
        if isinstance(child, RegionHead):
            selection = child.selection
            if selection.kind == "topk" and selection.eval_kind != "hard":
                raise ConfigError(
                    "this model draws noise at test time, which ONNX cannot",
                    got=f"model.eval_selection={selection.eval_kind}",
                    expected="model.eval_selection=hard",
                )
            if selection.kind == "topk":
                child._select = counted_topk  # type: ignore[method-assign]
        _make_traceable(child)


def _as_cached(features_BXD: Tensor) -> Tensor:
    """Through half precision, as features are cached (models/dual_encoder.py)."""
    return features_BXD.half().float()
