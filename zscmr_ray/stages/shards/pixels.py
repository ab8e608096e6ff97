"""Decoded images as one Arrow column and back, without a copy on the way. Not decoding: data/decode.py.

A 224-pixel image has 150 KB: one needless copy of it costs 1-2% of what decoding it cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zscmr_ray.stages.plane.encode import on_device

if TYPE_CHECKING:
    from torch import Tensor

    from zscmr_ray.models.backbones import ImageBackbone

PIXELS = "pixels"


def pixels_column(pixels_BHW3: npt.NDArray[np.uint8]) -> pa.Array:
    """Images as fixed-size binaries over the same memory."""
    rows, width = len(pixels_BHW3), int(np.prod(pixels_BHW3.shape[1:]))
    buffer = pa.py_buffer(pixels_BHW3)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), rows, [None, buffer])


def pixels_array(table: pa.Table, *, size_px: int) -> npt.NDArray[np.uint8]:
    """The images of a chunk, uint8 [B, size, size, 3], read-only where the chunk lies in shared memory."""
    chunks = table[PIXELS].chunks
    column = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks or [pa.array([], pa.binary(1))])
    width = size_px * size_px * 3
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    start = column.offset * width
    return data[start : start + len(column) * width].reshape(-1, size_px, size_px, 3)


def bring_pixels(table: pa.Table, backbone: ImageBackbone) -> Tensor:
    """The images of a chunk where the backbone is, of the size it wants: uint8 [B, size, size, 3]."""
    return on_device(pixels_array(table, size_px=backbone.spec.size_px), backbone.device)
