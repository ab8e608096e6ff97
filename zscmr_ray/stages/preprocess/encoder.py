"""The model half of preprocess: frozen backbones over one chunk of decoded rows, to rows of `pairs`.

An image-only corpus has empty lists of captions and tokens, a text-only one null features of images; the backbone of the
absent side is not loaded.

Legend: B rows, H W pixels, R regions, L tokens, D channels, C teacher classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from zscmr_ray.config import PreprocessSection
from zscmr_ray.models.backbones import ImageBackbone, TextBackbone, load_image_backbone, load_text_backbone
from zscmr_ray.models.backbones.frozen import run_all_in
from zscmr_ray.schema import RejectCode, pairs_schema
from zscmr_ray.stages.plane.chunks import EncodedChunk, RejectedRow
from zscmr_ray.stages.shards.pixels import bring_pixels

# Captions of one pass through the text backbone: 64 tokens x 384 channels in fp32 are 25 MB.
_CAPTION_ROWS = 256


Modality = Literal["pairs", "image", "text"]


@dataclass(frozen=True)
class BuildPairEncoder:
    """Builds the encoder inside an actor."""

    section: PreprocessSection
    provenance: dict[str, Any]
    modality: Modality = "pairs"

    def __call__(self) -> PairEncoder:
        """Load the backbones on the actor's device."""
        section = self.section
        image, text = load_backbones(section, self.modality)
        run_all_in(section.precision, image, text, compiled=section.compile)
        return PairEncoder(image, text, section, self.provenance)


def load_backbones(
    section: PreprocessSection, modality: Modality = "pairs"
) -> tuple[ImageBackbone | None, TextBackbone | None]:
    """Load the backbones of the sides there are on this process's device: a GPU where the configuration says so."""
    device = "cuda" if section.encoder_gpus else "cpu"
    image = load_image_backbone(section.image_backbone, device=device) if modality != "text" else None
    if modality == "image":
        return image, None
    return image, load_text_backbone(section.text_backbone, device=device, max_tokens=section.max_tokens)


def describe_backbones(section: PreprocessSection, modality: Modality = "pairs") -> dict[str, Any]:
    """What the pairs' manifest says about the backbones: identity, shapes, how pixels are made, the teacher.

    Loads them on the CPU; raises ConfigError when the teacher has no classes or the grid is too fine. What belongs to
    a side that the corpus lacks is None, its shapes 0.
    """
    image, text = load_backbones(section.model_copy(update={"encoder_gpus": 0.0}), modality)
    teacher = _describe_teacher(section, image)
    return {
        "modality": modality,
        "image_backbone": _describe_image(image, section),
        "text_backbone": None if text is None else _identity(text) | {"max_tokens": section.max_tokens},
        "teacher": teacher,
        "num_classes": teacher["num_classes"] if teacher else None,
        "region_grid": section.region_grid if image else None,
        "num_regions": section.region_grid**2 if image else 0,
        "image_channels": image.num_channels if image else 0,
        "token_channels": text.num_channels if text else 0,
        "max_tokens": section.max_tokens,
    }


def _identity(backbone: ImageBackbone | TextBackbone) -> dict[str, Any]:
    names = ("id", "weights_sha256", "num_channels", "trained_on")
    return {name: getattr(backbone, name) for name in names}


def _describe_image(image: ImageBackbone | None, section: PreprocessSection) -> dict[str, Any] | None:
    if image is None:
        return None
    # No rows: only the check of the grid, before any worker starts.
    size = image.spec.size_px
    image(torch.zeros(0, size, size, 3, dtype=torch.uint8), region_grid=section.region_grid)
    # As JSON gives it back: the first run's result and a later one's are equal.
    return _identity(image) | {"spec": json.loads(json.dumps(asdict(image.spec)))}


def _describe_teacher(section: PreprocessSection, image: ImageBackbone | None) -> dict[str, Any] | None:
    if section.teacher != "image_backbone" or image is None or image.num_classes is None:
        return None
    return {
        "id": image.id,
        "weights_sha256": image.weights_sha256,
        "num_classes": image.num_classes,
        "class_names": list(image.class_names) if image.class_names else None,
    }


class PairEncoder:
    """Turns decoded rows into pairs; a `plane.chunks.Encoder`. A backbone is None where its side is absent."""

    def __init__(
        self,
        image: ImageBackbone | None,
        text: TextBackbone | None,
        section: PreprocessSection,
        provenance: dict[str, Any],
    ) -> None:
        self.image, self.text, self.grid = image, text, section.region_grid
        num_classes = None if image is None else image.num_classes
        self.has_teacher = section.teacher == "image_backbone" and num_classes is not None
        self.schema = pairs_schema(
            region_bytes=None if image is None else 2 * section.region_grid**2 * image.num_channels,
            num_classes=num_classes if self.has_teacher else None,
            metadata=provenance,
        )

    def bring(self, table: pa.Table) -> torch.Tensor | None:
        """The pixels of the rows where the image backbone is; None without one."""
        return None if self.image is None else bring_pixels(table, self.image)

    def encode(self, table: pa.Table, brought: torch.Tensor | None = None) -> EncodedChunk:
        """Encode images and captions; rows whose features are not finite in f16 are rejected."""
        finite_B = np.ones(table.num_rows, bool)
        made: dict[str, pa.Array] = {"regions": pa.nulls(table.num_rows)}
        logits_BC = None
        if self.image is not None:
            pixels_BHW3 = bring_pixels(table, self.image) if brought is None else brought
            regions_BRD, logits_BC = self._images(self.image, pixels_BHW3)
            finite_B &= np.isfinite(regions_BRD).all((1, 2))
            made["regions"] = _fixed_binary(regions_BRD)
        if logits_BC is not None:
            finite_B &= np.isfinite(logits_BC).all(1)
        tokens = list(self._captions(table["captions"].to_pylist()))
        finite_B &= np.array([all(np.isfinite(part).all() for part in row) for row in tokens], bool)
        made["tokens"] = pa.array([[part.tobytes() for part in row] for row in tokens], pa.list_(pa.binary()))
        made["prior_logits"] = _fixed_list(logits_BC, table.num_rows)
        columns = [made[name] if name in made else table[name] for name in self.schema.names]
        rows = pa.table(columns, schema=self.schema)
        captions = [caption for row in table["captions"].to_pylist() for caption in row]
        tally = {} if self.text is None else self.text.count_words(captions)
        if finite_B.all():
            return EncodedChunk({"": rows}, tally=tally)
        return EncodedChunk({"": rows.filter(pa.array(finite_B))}, _not_finite(rows, finite_B), tally)

    def _images(
        self, image: ImageBackbone, pixels_BHW3: torch.Tensor
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16] | None]:
        features = image(pixels_BHW3, region_grid=self.grid)
        logits_BC = features.logits_BC if self.has_teacher else None
        return _half(features.regions_BRD), None if logits_BC is None else _half(logits_BC)

    def _captions(self, captions: list[list[str]]) -> Iterator[list[npt.NDArray[np.float16]]]:
        """Token vectors [true length, D] of every caption, by row."""
        flat = [caption for row in captions for caption in row]
        encoded: list[npt.NDArray[np.float16]] = []
        for start in range(0, len(flat), _CAPTION_ROWS):
            assert self.text is not None, "captions without a text backbone"
            features = self.text(flat[start : start + _CAPTION_ROWS])
            tokens_BLD, lengths = _half(features.tokens_BLD), features.lengths_B.tolist()
            encoded += [row_LD[:length] for row_LD, length in zip(tokens_BLD, lengths, strict=True)]
        rest = iter(encoded)
        for row in captions:
            yield [next(rest) for _ in row]


def _half(tensor: torch.Tensor) -> npt.NDArray[np.float16]:
    return tensor.to(torch.float16).cpu().contiguous().numpy()


def _fixed_binary(values_BRD: npt.NDArray[np.float16]) -> pa.Array:
    width = 2 * int(np.prod(values_BRD.shape[1:]))
    little_endian = np.ascontiguousarray(values_BRD, "<f2")
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(values_BRD), [None, pa.py_buffer(little_endian)]
    )


def _fixed_list(values_BC: npt.NDArray[np.float16] | None, num_rows: int) -> pa.Array:
    if values_BC is None:
        return pa.nulls(num_rows)
    return pa.FixedSizeListArray.from_arrays(pa.array(values_BC.ravel()), values_BC.shape[1])


def _not_finite(rows: pa.Table, finite_B: npt.NDArray[np.bool_]) -> tuple[RejectedRow, ...]:
    reason = "features that are not finite in half precision"
    return tuple(
        RejectedRow(
            rows["id"][row].as_py(),
            rows["source_shard"][row].as_py(),
            rows["source_offset"][row].as_py(),
            "encode",
            RejectCode.NON_FINITE,
            reason,
        )
        for row in np.flatnonzero(~finite_B).tolist()
    )
