"""Image bytes to pixels: one decode gives the model's crop and the thumbnail.

Exact unless asked otherwise: decoding a JPEG at a fraction of its size shifts pixels (`scaled_jpeg`; docs/embed.md has by
how much). Pixel counts are checked from the header before anything is decompressed. Colour profiles are ignored;
normalisation is the model's, on its device.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

from zscmr_ray.data.image_limits import MAX_SIDE_PX, TIFF_MAGIC, excess_of
from zscmr_ray.data.jpeg import WHOLE, Needed, decode_common_jpeg
from zscmr_ray.data.records import ImageRejected
from zscmr_ray.data.upright import is_on_its_side, upright_rgb
from zscmr_ray.errors import ConfigError
from zscmr_ray.schema import RejectCode

Fit = Literal["crop", "squash"]

# Decoders for web and camera formats only: PIL would also run PostScript, or parse rarely tested formats.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
THUMBNAIL_QUALITY = 90
_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF", *TIFF_MAGIC)
# PIL's messages may quote the file, and a file may have a tag of a million values.
_MAX_REASON_CHARS = 300
# A small source JPEG is its own thumbnail unless metadata (a profile, a maker note) make it heavy.
_MAX_REUSED_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """The upright 8-bit RGB picture, its full size and by what it was divided; whether the bytes were an upright RGB JPEG."""

    image: Image.Image
    width_px: int
    height_px: int
    divisor: int
    is_upright_rgb_jpeg: bool


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """What a row's image becomes: `pixels_HW3` uint8 [size, size, 3] RGB, a JPEG thumbnail, the upright size."""

    pixels_HW3: npt.NDArray[np.uint8]
    thumbnail_jpeg: bytes | None
    width_px: int
    height_px: int


def decode_image(
    data: bytes,
    *,
    size_px: int,
    crop_fraction: float,
    interpolation: str,
    max_pixels: int,
    thumbnail_px: int | None,
    fit: Fit = "crop",
    scaled_jpeg: bool = False,
) -> DecodedImage:
    """Decode, turn upright, resize the short side to size_px / crop_fraction and crop the centre.

    With `fit` squash both sides are resized to that length, whatever the picture's proportions (SigLIP's processor).
    `crop_fraction` in (0, 1]; `interpolation` is nearest, bilinear, bicubic, lanczos or box; an image of more than
    `max_pixels` is refused from its header; `thumbnail_px` is the longest side of the thumbnail, None for none.
    Palettes, CMYK, greys, 16-bit samples and alpha (on white) become 8-bit RGB; of an animation the first frame.
    With `scaled_jpeg` a JPEG is decoded at 1/2, 1/4 or 1/8 where crop and thumbnail need no more: other pixels, sooner.

    Raises ImageRejected for bytes that are no usable image, ConfigError for an unknown interpolation.
    """
    # Before the decoding: an unknown name is the configuration's fault, whatever the bytes are.
    resampling = _resampling(interpolation)
    needed = Needed(round(size_px / crop_fraction), thumbnail_px or 0) if scaled_jpeg else WHOLE
    loaded = load_rgb(data, max_pixels=max_pixels, needed=needed)
    width, height, divisor = loaded.width_px, loaded.height_px, loaded.divisor
    left, top, right, bottom = crop_box(width, height, size_px=size_px, crop_fraction=crop_fraction, fit=fit)
    box = (left / divisor, top / divisor, right / divisor, bottom / divisor)
    crop = loaded.image.resize((size_px, size_px), resampling, box=box)
    thumbnail = None
    if thumbnail_px is not None:
        is_small = max(width, height) <= thumbnail_px and len(data) <= _MAX_REUSED_BYTES
        is_reused = is_small and loaded.is_upright_rgb_jpeg
        thumbnail = data if is_reused else _thumbnail(loaded.image, thumbnail_px)
    return DecodedImage(np.asarray(crop), thumbnail, width, height)


def crop_pixels(
    image: Image.Image, *, size_px: int, crop_fraction: float, interpolation: str, fit: Fit = "crop"
) -> npt.NDArray[np.uint8]:
    """Return the pixels [size, size, 3] that `decode_image` gives for the file this picture was opened from.

    Raises ImageRejected for a picture that cannot be loaded, ConfigError for an unknown interpolation.
    """
    resampling = _resampling(interpolation)
    try:
        upright = upright_rgb(image)
    except (ImageRejected, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS]
        raise ImageRejected(RejectCode.UNDECODABLE_IMAGE, reason) from error
    box = crop_box(*upright.size, size_px=size_px, crop_fraction=crop_fraction, fit=fit)
    return np.asarray(upright.resize((size_px, size_px), resampling, box=box))


def crop_box(
    width_px: int, height_px: int, *, size_px: int, crop_fraction: float, fit: Fit = "crop"
) -> tuple[float, float, float, float]:
    """Return the source rectangle (left, top, right, bottom) that the centre crop shows.

    Resizing this box alone gives the pixels of resize-then-crop, whole-pixel rounding of the resized image and of
    the crop's corner included, at a fraction of the work.

    >>> crop_box(512, 256, size_px=224, crop_fraction=0.875)
    (144.0, 16.0, 368.0, 240.0)
    """
    short = round(size_px / crop_fraction)
    scale = short / min(width_px, height_px)
    squash = fit == "squash"
    resized_width = short if squash or width_px <= height_px else max(short, int(width_px * scale))
    resized_height = short if squash or height_px <= width_px else max(short, int(height_px * scale))
    left, top = round((resized_width - size_px) / 2), round((resized_height - size_px) / 2)
    x, y = width_px / resized_width, height_px / resized_height
    # The clamp only takes off rounding errors: PIL refuses a box outside the image by any amount.
    right, bottom = min((left + size_px) * x, width_px), min((top + size_px) * y, height_px)
    return (left * x, top * y, right, bottom)


def load_rgb(data: bytes, *, max_pixels: int, needed: Needed = WHOLE) -> LoadedImage:
    """Return the upright 8-bit RGB image, a JPEG no larger than needed. Raises ImageRejected."""
    if not data:
        raise ImageRejected(RejectCode.EMPTY_IMAGE, "zero bytes")
    excess = excess_of(data, max_pixels=max_pixels)
    if excess:
        raise ImageRejected(RejectCode.TOO_MANY_PIXELS, excess)
    common = decode_common_jpeg(data, max_pixels=max_pixels, needed=needed)
    if common is not None:
        return LoadedImage(*common, is_upright_rgb_jpeg=True)
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRejected(
            RejectCode.TOO_MANY_PIXELS, f"{width} x {height} = {width * height} pixels, at most {max_pixels}"
        )
    if max(width, height) > MAX_SIDE_PX:
        raise ImageRejected(
            RejectCode.TOO_MANY_PIXELS, f"{width} x {height}, at most {MAX_SIDE_PX} on a side"
        )
    is_jpeg = image.format == "JPEG"
    was_upright_rgb_jpeg = is_jpeg and image.mode == "RGB"
    divisor = needed.divisor(width, height) if is_jpeg else 1
    if divisor > 1 and image.draft(None, (width // divisor, height // divisor)) is None:
        divisor = 1
    # Hostile or broken bytes raise nearly anything inside the decoders, SyntaxError and struct.error included.
    try:
        upright = upright_rgb(image)
    except (ImageRejected, MemoryError):
        raise
    except Exception as error:
        _reject_undecodable(data, error)
    if divisor == 1:
        width, height = upright.size
    elif is_on_its_side(image):
        width, height = height, width
    return LoadedImage(upright, width, height, divisor, was_upright_rgb_jpeg and upright is image)


def _resampling(interpolation: str) -> Image.Resampling:
    if interpolation not in _INTERPOLATIONS:
        raise ConfigError("unknown interpolation", got=interpolation, expected=", ".join(_INTERPOLATIONS))
    return _INTERPOLATIONS[interpolation]


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRejected(RejectCode.TOO_MANY_PIXELS, str(error)) from error
    except MemoryError:
        raise
    except Exception as error:
        if data.startswith(_MAGIC):
            _reject_undecodable(data, error)
        raise ImageRejected(RejectCode.NOT_AN_IMAGE, f"not an image: {_looks_like(data)}") from error


def _reject_undecodable(data: bytes, error: Exception) -> NoReturn:
    reason = f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS]
    is_cut = "truncated" in str(error).lower() or isinstance(error, EOFError) or _lacks_its_end(data)
    code = RejectCode.TRUNCATED_IMAGE if is_cut else RejectCode.UNDECODABLE_IMAGE
    raise ImageRejected(code, reason) from error


def _lacks_its_end(data: bytes) -> bool:
    """Whether the bytes stop before the format's own end: no JPEG end marker, no PNG IEND, a short RIFF."""
    if data.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in data[-64:]
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-64:]
    if data.startswith(b"RIFF"):
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return data.startswith(b"GIF8") and b"\x3b" not in data[-64:]


def _looks_like(data: bytes) -> str:
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html")) or b"<html" in head:
        return "an HTML page"
    if head.startswith(b"<"):
        return "XML or SVG text"
    return f"{len(data)} bytes beginning {data[:16]!r}"


def _thumbnail(image: Image.Image, longest_px: int) -> bytes:
    """A JPEG whose longest side is longest_px, or up to a quarter less where whole-pixel averaging gets there.

    Averaging n x n pixels costs a third of a resize: 1.0 ms less on a 500 x 375 photo, a sixth of the whole decode.
    """
    longest = max(image.size)
    factor = math.ceil(longest / longest_px)
    if factor > 1 and longest / factor >= 0.75 * longest_px:
        image = image.reduce(factor)
    elif factor > 1:
        scale = longest_px / longest
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()
