"""A picture of any colour mode, upright, in 8-bit RGB: palettes, CMYK, greys, 16-bit samples, floats, alpha on white.

Raises ImageRejected for samples that have no such form. Not opening, caps or crops: `decode.py`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from zscmr_ray.data.records import ImageRejected
from zscmr_ray.schema import RejectCode

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Load, convert to 8-bit RGB and turn upright; the image itself where it was so already."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def is_on_its_side(image: Image.Image) -> bool:
    """Whether turning a loaded picture upright exchanges its sides."""
    return _orientation(image) in _ON_ITS_SIDE


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 when there is none; EXIF that cannot be parsed does not make a picture unusable."""
    # Read after load(): PIL turns a TIFF itself while loading, and a PNG may carry its EXIF behind the pixels.
    if "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in {"I", "F"}:
        return _from_deep_grey(image)
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Greys of 16 bits or floats to 8 bits: the high byte, as PIL does for 16-bit colour; floats by their range."""
    values_HW = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(values_HW).all():
            raise ImageRejected(RejectCode.UNDECODABLE_IMAGE, "float samples that are not finite")
        top = float(values_HW.max())
        scale = 255.0 if top <= 1 else 1.0 if top <= 255 else 255 / 65535
        grey_HW = np.clip(np.rint(values_HW * scale), 0, 255)
    else:
        if values_HW.min() < 0 or values_HW.max() > 65535:
            raise ImageRejected(RejectCode.UNDECODABLE_IMAGE, "integer samples of more than 16 bits")
        is_8_bit = image.mode == "I" and values_HW.max() <= 255
        grey_HW = values_HW if is_8_bit else values_HW >> 8
    return Image.fromarray(grey_HW.astype(np.uint8)).convert("RGB")
