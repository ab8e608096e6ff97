"""Small pictures that ask for gigabytes or hours, each with the answer it must get, for a child whose memory is watched."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from PIL import Image

from tests.data.mutation_pictures import encoded, png, png_chunk, scene
from tests.data.mutation_shard_bombs import MB, shard_bombs
from zscmr_ray.data.decode import decode_image
from zscmr_ray.data.records import ImageRejected

Case = tuple[str, Callable[[], str]]


def bomb_cases(num: int, seed: int) -> Iterator[Case]:
    """Every bomb; a thunk fails where the answer is another."""
    del num, seed
    # What is decoded comes last: its memory is its own, and would hide that of the others.
    for name, (make, wanted) in _PICTURES.items():
        if wanted != "decoded":
            yield f"bombs {name}", partial(_picture, make, wanted)
    yield from shard_bombs()
    for name, (make, wanted) in _PICTURES.items():
        if wanted == "decoded":
            yield f"bombs {name}", partial(_picture, make, wanted)


def _picture(make: Callable[[], bytes], wanted: str) -> str:
    try:
        decode_image(
            make(),
            size_px=64,
            crop_fraction=0.875,
            interpolation="bicubic",
            max_pixels=16_000_000,
            thumbnail_px=64,
        )
    except ImageRejected as rejected:
        assert rejected.code == wanted, f"{rejected.code}: {rejected.reason}"
        return rejected.code.value
    assert wanted == "decoded", f"decoded, not {wanted}"
    return "decoded"


# -- pictures ---------------------------------------------------------------------------------------------------


def zeros(num_bytes: int) -> bytes:
    """Zlib data that expand to so many zeros, made without holding them."""
    packer = zlib.compressobj(9)
    pieces = [packer.compress(bytes(min(MB, num_bytes - at))) for at in range(0, num_bytes, MB)]
    return b"".join([*pieces, packer.flush()])


def png_of_zeros(width: int, height: int, *, bits: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A complete PNG of black pixels, a thousandth of their size."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zeros((width * bits * channels // 8 + 1) * height)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(entries: list[tuple[int, int, int, int]], blob: bytes) -> bytes:
    """A TIFF of one directory behind its data."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<I", 8 + len(blob))
    return head + blob + struct.pack("<H", len(entries)) + directory + bytes(4)


def tiff_of_one_tile(side: int) -> bytes:
    """Ten pixels square, in a tile of `side`."""
    data = zeros(side * side)
    fields = {
        256: 10,
        257: 10,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        284: 1,
        322: side,
        323: side,
        324: 8,
        325: len(data),
    }
    return tiff([(tag, 4, 1, value) for tag, value in fields.items()], data)


def tiff_of_strips(num: int) -> bytes:
    """One pixel wide, a strip for every row."""
    fields = {256: 1, 257: num, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    entries = [(tag, 4, 1, value) for tag, value in fields.items()]
    return tiff([*entries, (273, 4, num, 8), (279, 4, num, 8)], b"\1\0\0\0" * num)


def jpeg_of_scans(num: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * num + b"\xff\xd9"


def jpeg_with_a_tail() -> bytes:
    """A good JPEG with a video behind it, as phones write: it has the bytes of a thousand scans."""
    return encoded(scene(), "JPEG") + b"\xff\xda\x00\x02" * 1000


def webp_of_size(side: int) -> bytes:
    """An animated WebP whose canvas is said to be larger than its frames."""
    data = bytearray(encoded(scene(), "WEBP", save_all=True, append_images=[scene().rotate(90)]))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


def bmp_of_runs() -> bytes:
    """A run of one pixel, said to be ten million."""
    info = struct.pack("<IiiHHIIiiII", 40, 10_000, 1000, 1, 8, 1, 4, 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078) + info + bytes(1024) + b"\x01\x01\0\0"


_TEXT = png_chunk(b"zTXt", b"k\0\0" + zeros(200 * MB))
_TEXTS = png_chunk(b"zTXt", b"k\0\0" + zeros(MB - 9)) * 90
_PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "png_200_megapixels": (partial(png_of_zeros, 14_143, 14_143, bits=1), "too_many_pixels"),
    "png_100_megapixels": (partial(png_of_zeros, 10_000, 10_000), "too_many_pixels"),
    "png_of_a_column": (partial(png_of_zeros, 1, 15_000_000), "too_many_pixels"),
    "png_of_text": (partial(png_of_zeros, 8, 8, extra=_TEXT), "undecodable_image"),
    "png_of_texts": (partial(png_of_zeros, 8, 8, extra=_TEXTS), "undecodable_image"),
    "png_within_the_cap": (partial(png_of_zeros, 4000, 4000, colour=6), "decoded"),
    "png_that_lies": (lambda: png(4000, 4000, 8, 2, bytes(13)), "truncated_image"),
    "gif_canvas": (lambda: encoded(scene(), "GIF").replace(struct.pack("<HH", 40, 28), b"\xff" * 4, 1), "too_many_pixels"),
    "tiff_of_one_tile": (partial(tiff_of_one_tile, 12_000), "too_many_pixels"),
    "tiff_of_strips": (partial(tiff_of_strips, 1_000_000), "too_many_pixels"),
    "tiff_of_few_strips": (partial(tiff_of_strips, 1000), "decoded"),
    "jpeg_of_scans": (partial(jpeg_of_scans, 50_000), "too_many_pixels"),
    "jpeg_of_few_scans": (partial(jpeg_of_scans, 20), "decoded"),
    "jpeg_with_a_tail": (jpeg_with_a_tail, "decoded"),
    "webp_canvas": (partial(webp_of_size, 13_000), "too_many_pixels"),
    "bmp_of_runs": (bmp_of_runs, "too_many_pixels"),
}  # fmt: skip


SUITES = {"bombs": bomb_cases}
