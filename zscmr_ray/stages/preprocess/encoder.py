"""The model half of preprocess: frozen backbones over one chunk of decoded rows, to rows of `pairs`.

Legend: B rows, H W pixels, R regions, L tokens, D channels, C teacher classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from zscmr_ray.config import PreprocessSection
from zscmr_ray.models.backbones import ImageBackbone, TextBackbone, load_image_backbone, load_text_backbone
from zscmr_ray.schema import RejectCode, pairs_schema
from zscmr_ray.stages.plane.chunks import EncodedChunk, RejectedRow

# Captions of one pass through the text backbone: 64 tokens x 384 channels in fp32 are 25 MB.
_CAPTION_ROWS = 256


@dataclass(frozen=True)
class BuildPairEncoder:
    """Builds the encoder inside an actor."""

    section: PreprocessSection
    provenance: dict[str, Any]

    def __call__(self) -> PairEncoder:
        """Load the backbones on the actor's device."""
        return PairEncoder(*load_backbones(self.section), self.section, self.provenance)


def load_backbones(section: PreprocessSection) -> tuple[ImageBackbone, TextBackbone]:
    """Load both backbones on this process's device: a GPU where the actor was given one, said in the configuration."""
    device = "cuda" if section.encoder_gpus else "cpu"
    image = load_image_backbone(section.image_backbone, device=device)
    return image, load_text_backbone(section.text_backbone, device=device, max_tokens=section.max_tokens)


def describe_backbones(section: PreprocessSection) -> dict[str, Any]:
    """What the pairs' manifest says about the backbones: identity, shapes, how pixels are made, the teacher.

    Loads them on the CPU; raises ConfigError when the teacher has no classes or the grid is too fine.
    """
    image, text = load_backbones(section.model_copy(update={"encoder_gpus": 0.0}))
    # No rows: only the check of the grid, before any worker starts.
    size = image.spec.size_px
    image(torch.zeros(0, size, size, 3, dtype=torch.uint8), region_grid=section.region_grid)
    teacher = None
    if section.teacher == "image_backbone" and image.num_classes is not None:
        teacher = {
            "id": image.id,
            "weights_sha256": image.weights_sha256,
            "num_classes": image.num_classes,
            "class_names": list(image.class_names) if image.class_names else None,
        }
    return {
        "image_backbone": {
            "id": image.id,
            "weights_sha256": image.weights_sha256,
            "num_channels": image.num_channels,
            "trained_on": image.trained_on,
            # As JSON gives it back: the first run's result and a later one's are equal.
            "spec": json.loads(json.dumps(asdict(image.spec))),
        },
        "text_backbone": {
            "id": text.id,
            "weights_sha256": text.weights_sha256,
            "num_channels": text.num_channels,
            "trained_on": text.trained_on,
            "max_tokens": section.max_tokens,
        },
        "teacher": teacher,
        "num_classes": teacher["num_classes"] if teacher else None,
        "region_grid": section.region_grid,
        "num_regions": section.region_grid**2,
        "image_channels": image.num_channels,
        "token_channels": text.num_channels,
        "max_tokens": section.max_tokens,
    }


class PairEncoder:
    """Turns decoded rows into pairs; a `plane.chunks.Encoder`."""

    def __init__(
        self,
        image: ImageBackbone,
        text: TextBackbone,
        section: PreprocessSection,
        provenance: dict[str, Any],
    ) -> None:
        self.image, self.text, self.grid = image, text, section.region_grid
        self.has_teacher = section.teacher == "image_backbone" and image.num_classes is not None
        self.schema = pairs_schema(
            region_bytes=2 * section.region_grid**2 * image.num_channels,
            num_classes=image.num_classes if self.has_teacher else None,
            metadata=provenance,
        )

    def encode(self, table: pa.Table) -> EncodedChunk:
        """Encode images and captions; rows whose features are not finite in f16 are rejected."""
        regions_BRD, logits_BC = self._images(table)
        captions = table["captions"].to_pylist()
        tokens = list(self._captions(captions))
        finite_B = np.isfinite(regions_BRD).all((1, 2))
        if logits_BC is not None:
            finite_B &= np.isfinite(logits_BC).all(1)
        finite_B &= np.array([all(np.isfinite(part).all() for part in row) for row in tokens], bool)
        made = {
            "regions": _fixed_binary(regions_BRD),
            "tokens": pa.array([[part.tobytes() for part in row] for row in tokens], pa.list_(pa.binary())),
            "prior_logits": _fixed_list(logits_BC, table.num_rows),
        }
        columns = [made[name] if name in made else table[name] for name in self.schema.names]
        rows = pa.table(columns, schema=self.schema)
        if finite_B.all():
            return EncodedChunk({"": rows})
        return EncodedChunk({"": rows.filter(pa.array(finite_B))}, _not_finite(rows, finite_B))

    def _images(self, table: pa.Table) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16] | None]:
        size = self.image.spec.size_px
        column = table["pixels"].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        width = size * size * 3
        data = np.frombuffer(column.buffers()[1] or b"", np.uint8)
        start = column.offset * width
        pixels = data[start : start + len(column) * width].reshape(-1, size, size, 3)
        # A copy: torch would warn that Ray's shared memory is read-only.
        features = self.image(torch.from_numpy(pixels.copy()), region_grid=self.grid)
        logits_BC = features.logits_BC if self.has_teacher else None
        return _half(features.regions_BRD), None if logits_BC is None else _half(logits_BC)

    def _captions(self, captions: list[list[str]]) -> Iterator[list[npt.NDArray[np.float16]]]:
        """Token vectors [true length, D] of every caption, by row."""
        flat = [caption for row in captions for caption in row]
        encoded: list[npt.NDArray[np.float16]] = []
        for start in range(0, len(flat), _CAPTION_ROWS):
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
