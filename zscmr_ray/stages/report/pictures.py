"""Small pictures for the report: thumbnails made smaller, and region weights laid over what the network saw.

What it is: JPEG bytes in, small JPEG bytes out. What it is not: the decoder of input images (`data/decode.py`);
thumbnails come from our own pairs.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

PICTURE_PX = 112
HEAT_MAP_PX = 168
QUALITY = 72
# Transparent for no weight, then orange to bright yellow: legible on dark and on light pictures.
HEAT_COLOURS = np.array([[120, 20, 10], [214, 69, 20], [250, 150, 30], [255, 235, 110]], np.float32)


def shrink_picture(jpeg: bytes, *, side_px: int = PICTURE_PX) -> bytes:
    """Return the picture as a JPEG whose longer side is at most `side_px` pixels."""
    with Image.open(io.BytesIO(jpeg)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return _jpeg(picture)


def heat_map(
    jpeg: bytes,
    weights_R: npt.NDArray[np.float32],
    *,
    crop_fraction: float,
    side_px: int = HEAT_MAP_PX,
) -> tuple[bytes, bytes]:
    """Return (what the network saw, the same under its region weights) as square JPEGs of `side_px`.

    `weights_R` are a row-major square grid over the centre crop that `crop_fraction` of the shorter side leaves; the
    largest weight is drawn brightest, zero leaves the picture as it is.
    """
    grid = round(len(weights_R) ** 0.5)
    assert grid * grid == len(weights_R), f"{len(weights_R)} regions are no square grid"
    with Image.open(io.BytesIO(jpeg)) as opened:
        seen = centre_crop(opened.convert("RGB"), crop_fraction=crop_fraction).resize(
            (side_px, side_px), Image.Resampling.BICUBIC
        )
    share = np.clip(weights_R.astype(np.float32) / max(float(weights_R.max()), 1e-12), 0.0, 1.0)
    # Drawn as tiles: smoothing would show detail that a region weight does not have.
    tiles = Image.fromarray((255 * share.reshape(grid, grid)).astype(np.uint8)).resize(
        (side_px, side_px), Image.Resampling.NEAREST
    )
    strength = np.asarray(tiles, np.float32)[:, :, None] / 255.0
    picture = np.asarray(seen, np.float32)
    alpha = 0.62 * np.sqrt(strength)
    # What gets no weight is dimmed, so that the selected regions stand out on any picture.
    dimmed = picture * (0.55 + 0.45 * (strength > 0.02))
    mixed = (1.0 - alpha) * dimmed + alpha * _colours(strength[:, :, 0])
    return _jpeg(seen), _jpeg(Image.fromarray(mixed.clip(0, 255).astype(np.uint8)))


def centre_crop(picture: Image.Image, *, crop_fraction: float) -> Image.Image:
    """Return the central square whose side is `crop_fraction` of the shorter side."""
    side = crop_fraction * min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    return picture.crop((round(left), round(top), round(left + side), round(top + side)))


def encode_picture(jpeg: bytes) -> str:
    """Return the bytes as base64 text."""
    return base64.b64encode(jpeg).decode()


def _colours(share_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    steps = np.linspace(0.0, 1.0, len(HEAT_COLOURS))
    channels = [np.interp(share_HW, steps, HEAT_COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=2).astype(np.float32)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
