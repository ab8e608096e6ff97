"""Decoding: geometry against the plain way, every colour mode, orientation, thumbnails, and bytes that are no image."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from zscmr_ray.data.decode import DecodedImage, crop_box, decode_image
from zscmr_ray.data.records import ImageRejected
from zscmr_ray.errors import ConfigError
from zscmr_ray.schema import RejectCode


def decode(data: bytes, **changes: object) -> DecodedImage:
    settings: dict[str, object] = {
        "size_px": 32,
        "crop_fraction": 0.875,
        "interpolation": "bicubic",
        "max_pixels": 1_000_000,
        "thumbnail_px": None,
    }
    return decode_image(data, **{**settings, **changes})  # type: ignore[arg-type]


def encode(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def scene(width: int = 90, height: int = 60) -> Image.Image:
    """A smooth picture without symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (x * 255 / width, y * 255 / height, (x + 2 * y) % 256 * 0.5)
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def code_of(data: bytes, **changes: object) -> RejectCode:
    with pytest.raises(ImageRejected) as caught:
        decode(data, **changes)
    assert caught.value.reason
    return caught.value.code


def plain(image: Image.Image, size: int, fraction: float) -> npt.NDArray[np.uint8]:
    """Resize the whole picture, then crop."""
    short = round(size / fraction)
    width, height = image.size
    scale = short / min(width, height)
    image = image.resize(
        (short if width <= height else int(width * scale), short if height <= width else int(height * scale)),
        Image.Resampling.BICUBIC,
    )
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    "size", [(90, 60), (60, 90), (64, 64), (500, 375), (375, 500), (33, 200), (20, 16), (1, 1)]
)
@pytest.mark.parametrize("fraction", [1.0, 0.875])
def test_the_crop_box_gives_the_pixels_of_resize_then_crop(size: tuple[int, int], fraction: float) -> None:
    image = scene(*size)
    found = decode(encode(image), crop_fraction=fraction)
    assert found.pixels_HW3.shape == (32, 32, 3) and found.pixels_HW3.dtype == np.uint8
    assert (found.width_px, found.height_px) == size
    difference = np.abs(found.pixels_HW3.astype(int) - plain(image, 32, fraction).astype(int))
    assert difference.mean() < 0.5 and np.percentile(difference, 99) <= 2


@pytest.mark.parametrize("width", [1, 2, 7, 33, 224, 375, 1023])
@pytest.mark.parametrize("height", [1, 3, 31, 224, 500, 4001])
@pytest.mark.parametrize("fraction", [1.0, 0.95, 0.875, 0.5])
def test_the_box_is_inside_the_image(width: int, height: int, fraction: float) -> None:
    left, top, right, bottom = crop_box(width, height, size_px=224, crop_fraction=fraction)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
def test_interpolations_and_an_unknown_one(interpolation: str) -> None:
    assert decode(encode(scene()), interpolation=interpolation).pixels_HW3.std() > 10
    with pytest.raises(ConfigError, match="bicubic"):
        decode(encode(scene()), interpolation=interpolation + "x")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, format_name: str) -> None:
    upright = scene(96, 64)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encode(stored, format_name, exif=exif, quality=95), thumbnail_px=48)
    assert (found.width_px, found.height_px) == (96, 64)
    expected = decode(encode(upright)).pixels_HW3.astype(int)
    assert np.abs(found.pixels_HW3 - expected).mean() < 3
    assert found.thumbnail_jpeg is not None
    assert Image.open(io.BytesIO(found.thumbnail_jpeg)).size == (48, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_reason_to_lose_a_picture() -> None:
    data = encode(scene(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff junk")
    assert decode(data).pixels_HW3.std() > 10


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "LA"])
def test_colour_modes(mode: str) -> None:
    image = scene().convert("L").convert(mode) if mode in {"L", "1", "LA"} else scene().convert(mode)
    format_name = "TIFF" if mode in {"CMYK", "YCbCr"} else "PNG"
    expected = decode(encode(image.convert("RGB"))).pixels_HW3.astype(int)
    assert np.abs(decode(encode(image, format_name)).pixels_HW3 - expected).max() <= 4


def test_a_cmyk_jpeg() -> None:
    flat = Image.new("RGB", (40, 40), (200, 30, 60))
    pixels = decode(encode(flat.convert("CMYK"), "JPEG", quality=95)).pixels_HW3
    assert np.abs(pixels.astype(int) - [200, 30, 60]).max() < 12


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_16_bit_greys_keep_their_high_byte(format_name: str) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = decode(encode(Image.fromarray(ramp), format_name), size_px=64, crop_fraction=1.0).pixels_HW3
    assert np.array_equal(pixels, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_16_bit_colour() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">3H", 0xC8FF, 0x1E00, 0x3C80) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * 8))
        + chunk(b"IEND", b"")
    )
    assert (decode(png).pixels_HW3 == [0xC8, 0x1E, 0x3C]).all()


def test_float_and_wide_integer_samples() -> None:
    unit = Image.fromarray(np.full((8, 8), 0.5, np.float32))
    assert (decode(encode(unit, "TIFF")).pixels_HW3 == 128).all()
    wide = Image.fromarray(np.full((8, 8), 200, np.int32))
    assert (decode(encode(wide, "TIFF")).pixels_HW3 == 200).all()
    assert (
        code_of(encode(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF")) == "undecodable_image"
    )
    assert code_of(encode(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF")) == "undecodable_image"


def test_alpha_is_shown_on_white() -> None:
    layer = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    layer.paste((0, 0, 255, 255), (0, 0, 16, 32))
    layer.paste((0, 0, 0, 128), (16, 16, 32, 32))
    pixels = decode(encode(layer), crop_fraction=1.0).pixels_HW3
    assert (pixels[4, 4] == [0, 0, 255]).all() and (pixels[4, 28] == 255).all()
    assert np.abs(pixels[28, 28].astype(int) - 127).max() <= 1
    keyed = Image.new("RGB", (32, 32), (1, 2, 3))
    assert (decode(encode(keyed, transparency=(1, 2, 3))).pixels_HW3 == 255).all()
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert (decode(encode(palette, transparency=0)).pixels_HW3 == 255).all()


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(format_name: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encode(frames[0], format_name, save_all=True, append_images=frames[1:], duration=50, **options)
    assert (decode(data).pixels_HW3 == [255, 0, 0]).all()


def test_thumbnails_are_small_deterministic_jpegs() -> None:
    for size in ((500, 375), (700, 100), (300, 299), (2000, 3)):
        data = encode(scene(*size))
        first = decode(data, thumbnail_px=256).thumbnail_jpeg
        assert first is not None and first == decode(data, thumbnail_px=256).thumbnail_jpeg
        thumbnail = Image.open(io.BytesIO(first))
        assert thumbnail.format == "JPEG" and thumbnail.mode == "RGB"
        assert 192 <= max(thumbnail.size) <= 256
        assert abs(thumbnail.height - thumbnail.width * size[1] / size[0]) <= 1


def test_a_small_upright_rgb_jpeg_is_its_own_thumbnail() -> None:
    small = encode(scene(), "JPEG", quality=70)
    assert decode(small, thumbnail_px=256).thumbnail_jpeg == small
    for other in (
        encode(scene()),
        encode(scene().convert("L"), "JPEG"),
        encode(scene(), "JPEG", comment=b"x" * 65000),
    ):
        found = decode(other, thumbnail_px=256).thumbnail_jpeg
        assert found is not None and found != other and Image.open(io.BytesIO(found)).size == (90, 60)


def test_bytes_that_are_no_image() -> None:
    assert code_of(b"") == "empty_image"
    with pytest.raises(ImageRejected, match="an HTML page"):
        decode(b"\n<!DOCTYPE html><html><body>404</body></html>")
    with pytest.raises(ImageRejected, match="XML or SVG"):
        decode(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    for data in (b"hello", bytes(1000), b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        assert code_of(data) == "not_an_image"


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated_images(format_name: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, format_name)
    assert code_of(data[: int(len(data) * part)]) == "truncated_image"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_inside_an_image_is_rejected_or_decoded_but_never_a_crash() -> None:
    generator = np.random.default_rng(0)
    for format_name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = bytearray(encode(scene(), format_name))
        for _ in range(60):
            broken = bytearray(data)
            for place in generator.integers(0, len(data), 4):
                broken[place] ^= int(generator.integers(1, 256))
            try:
                decode(bytes(broken), thumbnail_px=32)
            except ImageRejected as rejected:
                assert rejected.code in set(RejectCode) and rejected.reason


def test_the_pixel_cap_is_checked_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb = (
        b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    assert code_of(bomb, max_pixels=10**12) == "too_many_pixels"
    assert code_of(encode(scene(90, 60)), max_pixels=5399) == "too_many_pixels"
    assert decode(encode(scene(90, 60)), max_pixels=5400).width_px == 90


def test_rejections_travel_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(ImageRejected(RejectCode.EMPTY_IMAGE, "zero bytes")))
    assert isinstance(copy, ImageRejected) and (copy.code, copy.reason) == (
        RejectCode.EMPTY_IMAGE,
        "zero bytes",
    )


def test_real_photos(shared_data: Path) -> None:
    with tarfile.open(shared_data / "photos.tar") as archive:
        for member in list(archive)[:12]:
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            found = decode(data, size_px=224, max_pixels=64_000_000).pixels_HW3.astype(int)
            expected = plain(Image.open(io.BytesIO(data)).convert("RGB"), 224, 0.875)
            assert np.abs(found - expected).mean() < 0.5
