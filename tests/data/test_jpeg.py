"""The fast way through a JPEG: Pillow's pixels to the last bit, and whatever is not plainly common left to Pillow."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.data import test_decode
from zscmr_ray.data.decode import DecodedImage, decode_image
from zscmr_ray.data.jpeg import Needed, decode_common_jpeg
from zscmr_ray.data.records import ImageRejected

RNG = np.random.default_rng(0)
encode = partial(test_decode.encode, format_name="JPEG")


def picture(width: int, height: int) -> Image.Image:
    """Soft colours under some grain: every subsampling and rounding shows."""
    soft = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height))
    grain = RNG.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8))


def common(data: bytes, *, max_pixels: int = 1_000_000) -> npt.NDArray[np.uint8] | None:
    found = decode_common_jpeg(data, max_pixels=max_pixels)
    return None if found is None else np.asarray(found[0])


def by_pillow(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"optimize": True, "quality": 30}, {"quality": 100}, {"restart_marker_rows": 1},
     {"icc_profile": b"profile" * 40}, {"comment": b"a comment"}],
    ids=lambda options: next(iter(options), "plain"),
)  # fmt: skip
def test_every_common_kind_has_pillows_pixels(subsampling: str, options: dict[str, object]) -> None:
    for size in ((1, 1), (7, 3), (16, 16), (129, 97), (500, 375)):
        data = encode(picture(*size), subsampling=subsampling, **options)
        assert np.array_equal(common(data), by_pillow(data)), size


def test_colours_stored_as_rgb() -> None:
    data = encode(picture(60, 40), keep_rgb=True)
    assert np.array_equal(common(data), by_pillow(data))


def test_what_is_not_plainly_common_is_pillows() -> None:
    image = picture(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    sound = encode(image)
    for other in (
        encode(image, exif=exif),
        encode(image.convert("L")),
        encode(image.convert("CMYK")),
        sound[: len(sound) // 2],
        sound[:-2],
        sound[:20] + b"\0\0\0" + sound[20:],
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
    ):
        assert common(other) is None
    assert common(sound, max_pixels=60 * 40) is not None
    assert common(sound, max_pixels=60 * 40 - 1) is None


def test_damaged_bytes_are_left_to_pillow_or_give_its_pixels() -> None:
    sound = encode(picture(97, 61))
    num_decoded = 0
    for _ in range(400):
        damaged = bytearray(sound)
        for place in RNG.integers(0, len(sound), RNG.integers(1, 4)):
            damaged[place] ^= int(RNG.integers(1, 256))
        found = common(bytes(damaged))
        if found is not None:
            num_decoded += 1
            assert np.array_equal(found, by_pillow(bytes(damaged)))
    assert 40 < num_decoded < 400


def test_the_crop_and_the_thumbnail_are_those_of_the_same_picture_in_another_container() -> None:
    data = encode(picture(640, 480), quality=95)
    lossless = io.BytesIO()
    Image.open(io.BytesIO(data)).save(lossless, "PNG")

    def decoded(stored: bytes) -> tuple[bytes, bytes | None]:
        found = decode_image(
            stored, size_px=224, crop_fraction=0.875, interpolation="bicubic", max_pixels=1 << 20, thumbnail_px=256
        )  # fmt: skip
        return found.pixels_HW3.tobytes(), found.thumbnail_jpeg

    assert decode_common_jpeg(data, max_pixels=1 << 20) is not None
    assert decoded(data) == decoded(lossless.getvalue())


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_a_fraction_of_the_size_has_pillows_pixels(divisor: int, subsampling: str) -> None:
    for width, height in ((500, 375), (509, 381)):
        data = encode(picture(width, height), subsampling=subsampling)
        needed = Needed(short_px=height // divisor)
        found = decode_common_jpeg(data, max_pixels=1 << 20, needed=needed)
        assert found is not None and found[1:] == (width, height, divisor)
        drafted = Image.open(io.BytesIO(data))
        drafted.draft(None, (width // divisor, height // divisor))
        assert np.array_equal(np.asarray(found[0]), np.asarray(drafted.convert("RGB")))


def crop(data: bytes, *, scaled: bool, thumbnail_px: int | None = None) -> DecodedImage:
    return decode_image(
        data, size_px=48, crop_fraction=0.875, interpolation="bicubic", max_pixels=1 << 20, thumbnail_px=thumbnail_px,
        scaled_jpeg=scaled,
    )  # fmt: skip


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_scaled_crop_is_upright_and_shows_what_the_exact_one_shows(orientation: int) -> None:
    """By Pillow, as there is EXIF; orientation 1 is compared with the same picture without."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(500, 375)
    data = encode(image, exif=exif)
    exact, scaled = crop(data, scaled=False), crop(data, scaled=True)
    assert (scaled.width_px, scaled.height_px) == (exact.width_px, exact.height_px)
    assert (exact.width_px, exact.height_px) == ((375, 500) if orientation >= 5 else (500, 375))
    difference = np.abs(exact.pixels_HW3.astype(int) - scaled.pixels_HW3)
    assert 0 < difference.mean() < 3
    if orientation == 1:
        assert np.array_equal(scaled.pixels_HW3, crop(encode(image), scaled=True).pixels_HW3)


def test_what_is_not_a_large_jpeg_is_exact_also_when_scaled() -> None:
    lossless = io.BytesIO()
    picture(500, 375).save(lossless, "PNG")
    for data in (lossless.getvalue(), encode(picture(100, 75))):
        assert np.array_equal(crop(data, scaled=True).pixels_HW3, crop(data, scaled=False).pixels_HW3)


def test_a_scaled_picture_keeps_the_thumbnails_size_and_is_rejected_as_an_exact_one() -> None:
    data = encode(picture(500, 375))
    exact, scaled = (crop(data, scaled=scaled, thumbnail_px=200) for scaled in (False, True))
    sizes = [Image.open(io.BytesIO(one.thumbnail_jpeg or b"")).size for one in (exact, scaled)]
    assert all(150 <= max(size) <= 200 for size in sizes)
    for bad in (data[: len(data) // 2], data[:300]):
        codes = []
        for is_scaled in (False, True):
            with pytest.raises(ImageRejected) as caught:
                crop(bad, scaled=is_scaled)
            codes.append(caught.value.code)
        assert codes[0] == codes[1]
