"""Limits on headers: what breaks one, and that usual files are nowhere near."""

from __future__ import annotations

import struct
import warnings

import pytest
from PIL import Image

from tests.data.mutation_bombs import jpeg_of_scans, tiff
from tests.data.mutation_pictures import encoded, pictures, scene
from zscmr_ray.data.decode import FORMATS, load_rgb
from zscmr_ray.data.image_limits import MAX_JPEG_SCANS, excess_of
from zscmr_ray.data.records import ImageRejected
from zscmr_ray.schema import RejectCode


def test_usual_files_break_none() -> None:
    for name, specimen in pictures().items():
        assert excess_of(specimen.data, max_pixels=1_000_000) is None, name


def test_scans_are_counted_to_the_end_of_the_image_and_not_behind_it() -> None:
    progressive = encoded(scene(), "JPEG", progressive=True)
    for data in (
        encoded(scene(), "JPEG") * 200,
        progressive * 50,
        encoded(scene(), "JPEG", progressive=True, comment=b"\xff\xda" * 300),
        progressive + b"\xff\xda" * 300,
        b"\xff\xd8",
        b"\xff\xd8\xff",
    ):
        assert excess_of(data, max_pixels=1) is None
    again = progressive[progressive.rindex(b"\xff\xda") : -2]
    assert "scans" in (excess_of(progressive[:-2] + again * 99 + progressive, max_pixels=1) or "")


@pytest.mark.parametrize(("num", "is_refused"), [(MAX_JPEG_SCANS - 20, False), (MAX_JPEG_SCANS, True)])
def test_too_many_scans(num: int, is_refused: bool) -> None:
    assert (excess_of(jpeg_of_scans(num), max_pixels=1) is not None) == is_refused


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ((322, 4, 1, 5000), None),
        ((322, 4, 1, 50_000), "tiles of 50000 x 4000"),
        ((322, 5, 1, 50), "a tile size of type 5"),
        ((322, 4, 2, 50), "a tile size of type 4, 2 times"),
        ((273, 4, 70_000, 8), "70000 strips"),
        ((324, 4, 70_000, 8), "70000 strips"),
    ],
)
def test_tiff_directories(order: str, entry: tuple[int, int, int, int], reason: str | None) -> None:
    entries = [(323, 4, 1, 4000), entry, (256, 4, 1, 10)]
    body = b"".join(struct.pack(f"{order}HHII", *values) for values in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    found = excess_of(head + body + bytes(4), max_pixels=64_000_000)
    assert (found is None) if reason is None else (found or "").startswith(reason)


def test_the_largest_of_a_repeated_tag_counts_and_a_cut_directory_is_no_matter() -> None:
    twice = tiff([(322, 4, 1, 10), (322, 4, 1, 90_000), (323, 4, 1, 9000)], b"")
    assert "90000 x 9000" in (excess_of(twice, max_pixels=64_000_000) or "")
    for length in range(len(twice)):
        excess_of(twice[:length], max_pixels=64_000_000)
    endless = b"II*\0" + struct.pack("<IH", 8, 60_000)
    assert "60000" in (excess_of(endless, max_pixels=1) or "")


def test_a_big_tiff_is_looked_at_too() -> None:
    entries = [(322, 4, 1, 90_000), (323, 4, 1, 90_000)]
    body = b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
    data = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(entries)) + body + bytes(8)
    assert "90000" in (excess_of(data, max_pixels=64_000_000) or "")


def test_only_web_and_camera_formats_are_opened() -> None:
    """PostScript, Photoshop, PDF, icons ... have parsers of their own in PIL, and one runs a program."""
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"}
    others = [
        encoded(scene(), name)
        for name in ("PPM", "ICO", "PCX", "TGA", "ICNS", "SGI", "JPEG2000", "PDF", "EPS")
    ]
    for data in (*others, b"8BPS\0\1" + bytes(64), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        with pytest.raises(ImageRejected) as caught:
            load_rgb(data, max_pixels=1_000_000)
        assert caught.value.code is RejectCode.NOT_AN_IMAGE


def test_a_long_message_of_a_decoder_is_cut() -> None:
    values = struct.pack("<H", 1) * 60_000
    data = tiff([(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 60_000, 8), (262, 3, 1, 2), (277, 3, 1, 3)], values)
    with warnings.catch_warnings(), pytest.raises(ImageRejected) as caught:
        warnings.simplefilter("ignore")
        load_rgb(data, max_pixels=1_000_000)
    assert len(caught.value.reason) <= 300


def test_a_side_that_is_too_long() -> None:
    with pytest.raises(ImageRejected, match="on a side") as caught:
        load_rgb(encoded(Image.new("1", (1, (1 << 20) + 1)), "PNG"), max_pixels=1 << 30)
    assert caught.value.code is RejectCode.TOO_MANY_PIXELS
