"""One small picture in every encoding that PIL and cameras write, for the mutation tests: name -> bytes, places."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.data import mutate


@dataclass(frozen=True, slots=True)
class Specimen:
    """A valid file, the offsets that mean something in it, and what puts its checksums right."""

    data: bytes
    places: Sequence[int]
    repair: Callable[[bytes], bytes] | None = None


def scene(width: int = 40, height: int = 28) -> Image.Image:
    """A picture with gradients and an edge."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (x * 255 // width, y * 255 // height, (x * y) % 251)
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    """Save a picture to bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *, interlace: int = 0) -> bytes:
    """A PNG of raw rows (each with its filter byte), whatever it says about them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    chunks = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows, 9)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def pictures() -> dict[str, Specimen]:
    """Every encoding, by name."""
    image = scene()
    grey = image.convert("L")
    alpha = image.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)], "duration": 40}
    exif = Image.Exif()
    exif[0x0112] = 6
    colour16 = b"".join(b"\0" + np.asarray(image, np.uint16)[y].byteswap().tobytes() for y in range(28))
    found = {
        "jpeg": (encoded(image, "JPEG", exif=exif, comment=b"hello"), mutate.jpeg_places, None),
        "jpeg_progressive": (encoded(image, "JPEG", progressive=True), mutate.jpeg_places, None),
        "jpeg_cmyk": (encoded(image.convert("CMYK"), "JPEG"), mutate.jpeg_places, None),
        "png_8": (encoded(image, "PNG", exif=exif), mutate.png_places, mutate.repair_png),
        "png_16": (png(40, 28, 16, 2, colour16), mutate.png_places, mutate.repair_png),
        "png_grey_16": (encoded(deep, "PNG"), mutate.png_places, mutate.repair_png),
        "png_palette": (
            encoded(image.convert("P"), "PNG", transparency=3),
            mutate.png_places,
            mutate.repair_png,
        ),
        "png_alpha": (encoded(alpha, "PNG"), mutate.png_places, mutate.repair_png),
        "png_animated": (encoded(image, "PNG", **frames), mutate.png_places, mutate.repair_png),
        "webp_lossy": (encoded(image, "WEBP", quality=60, exif=exif), mutate.riff_places, None),
        "webp_lossless": (encoded(alpha, "WEBP", lossless=True), mutate.riff_places, None),
        "webp_animated": (encoded(image, "WEBP", **frames), mutate.riff_places, None),
        "gif": (encoded(image, "GIF"), mutate.gif_places, None),
        "gif_animated": (encoded(image, "GIF", **frames), mutate.gif_places, None),
        "bmp": (encoded(image, "BMP"), lambda data: list(range(70)), None),
        "bmp_palette": (encoded(image.convert("P"), "BMP"), lambda data: list(range(70)), None),
        "bmp_rle": (bmp_rle(), lambda data: list(range(70)), None),
    }
    for name, source, options in (
        ("raw", image, {}),
        ("lzw", image, {"compression": "tiff_lzw"}),
        ("deflate", alpha, {"compression": "tiff_adobe_deflate"}),
        ("jpeg", image, {"compression": "jpeg"}),
        ("packbits", image, {"compression": "packbits"}),
        ("fax", grey.convert("1"), {"compression": "group4"}),
        ("float", Image.fromarray(np.asarray(grey, np.float32) / 255), {}),
        ("frames", image, frames),
    ):
        found[f"tiff_{name}"] = (encoded(source, "TIFF", **options), mutate.tiff_places, None)
    return {name: Specimen(data, places(data), repair) for name, (data, places, repair) in found.items()}


def bmp_rle() -> bytes:
    """A run-length encoded BMP of 16 x 4 pixels, which PIL reads but does not write."""
    palette = b"".join(bytes((i, 255 - i, i // 2, 0)) for i in range(256))
    body = (
        b"\x10\x05\0\0" + b"\0\x04abcd\x0c\x09\0\0" + b"\x08\x01\x08\x02\0\0" + b"\0\x02\x04\0\x0c\x07\0\x01"
    )
    offset = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, 16, 4, 1, 8, 1, len(body), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + palette + body
