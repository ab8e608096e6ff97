"""Seeded damage to bytes: the mutators of every malformed-input test, in one place.

A mutant is a pure function of (data, seed, number). `touched` is the span of the original that it changed, and
`shift` by how many bytes what follows moved, so that a test can say which rows must have survived.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    (1 << 63) - 1,
)
_PACKS = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")
_JUNK = (
    b"\0" * 16,
    b"\xff" * 16,
    b'"',
    b"\n",
    b",",
    b"\\",
    b"{",
    b"\xed\xa0\x80",
    b"\xff\xfe",
    b"../" * 4,
    b"%s%n\r\n",
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """Damaged bytes, how they were damaged, and where: [start, stop) of the original became something else."""

    data: bytes
    how: str
    start: int
    stop: int


def mutants(
    data: bytes,
    num: int,
    *,
    seed: int,
    places: Sequence[int] = (),
    repair: Callable[[bytes], bytes] | None = None,
) -> Iterator[Mutant]:
    """Yield `num` mutants: cuts at the interesting places first, then every kind of damage in turn.

    `places` are byte offsets that mean something in the format. `repair` puts checksums right again, so that damage
    gets past them; it is applied to every second mutant that is not a cut.
    """
    cuts = sorted(
        {place + d for place in (*places, 0, len(data)) for d in (-1, 0, 1)} & set(range(len(data)))
    )
    random.Random(seed).shuffle(cuts)
    cuts = cuts[: num // 4]
    for number in range(num):
        rng = random.Random(seed * 1_000_003 + number)
        if number < len(cuts):
            yield Mutant(data[: cuts[number]], "cut", cuts[number], len(data))
            continue
        how = _KINDS[number % len(_KINDS)]
        mutant = how(rng, data, _place(rng, data, places))
        if repair is not None and number // len(_KINDS) % 2:
            mutant = Mutant(repair(mutant.data), mutant.how + " repaired", 0, len(data))
        yield mutant


def _place(rng: random.Random, data: bytes, places: Sequence[int]) -> int:
    """An interesting place, one near it, one in the head, or anywhere."""
    last = len(data) - 1
    match rng.randrange(4):
        case 0 if places:
            return min(last, rng.choice(places))
        case 1 if places:
            return min(last, max(0, rng.choice(places) + rng.randrange(-4, 9)))
        case 2:
            return min(last, rng.randrange(64))
    return rng.randrange(len(data))


def _splice(data: bytes, start: int, stop: int, new: bytes, how: str) -> Mutant:
    stop = min(stop, len(data))
    return Mutant(data[:start] + new + data[stop:], how, start, stop)


def _flip(rng: random.Random, data: bytes, place: int) -> Mutant:
    return _splice(data, place, place + 1, bytes([data[place] ^ 1 << rng.randrange(8)]), "flip")


def _set_byte(rng: random.Random, data: bytes, place: int) -> Mutant:
    return _splice(data, place, place + 1, bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))]), "set")


def _number(rng: random.Random, data: bytes, place: int) -> Mutant:
    pack = rng.choice(_PACKS)
    size = struct.calcsize(pack)
    value = rng.choice((*_NUMBERS, len(data), rng.randrange(1 << 16))) % (1 << 8 * size)
    return _splice(data, place, place + size, struct.pack(pack, value), f"number {pack} {value}")


def _scramble(rng: random.Random, data: bytes, place: int) -> Mutant:
    size = rng.randint(1, 32)
    return _splice(data, place, place + size, rng.randbytes(size), "scramble")


def _delete(rng: random.Random, data: bytes, place: int) -> Mutant:
    return _splice(data, place, place + rng.choice((1, 1, 2, 3, 4, 8, 64, 512)), b"", "delete")


def _insert(rng: random.Random, data: bytes, place: int) -> Mutant:
    return _splice(data, place, place, rng.choice((*_JUNK, rng.randbytes(rng.randint(1, 64)))), "insert")


def _zero(rng: random.Random, data: bytes, place: int) -> Mutant:
    size = min(rng.choice((4, 16, 64, 512, 4096)), len(data) - place)
    return _splice(data, place, place + size, bytes(size), "zero")


def _repeat(rng: random.Random, data: bytes, place: int) -> Mutant:
    block = data[place : place + rng.choice((1, 4, 64, 512, 1024))]
    return _splice(data, place, place, block * rng.choice((1, 1, 2, 20)), "repeat")


def _swap(rng: random.Random, data: bytes, place: int) -> Mutant:
    size, other = rng.choice((1, 4, 16, 512)), rng.randrange(len(data))
    first, second = sorted((place, other))
    a, b = data[first : first + size], data[second : second + size]
    if first + size > second:
        return _scramble(rng, data, place)
    middle = data[first + size : second]
    return _splice(data, first, second + size, b + middle + a, "swap")


def _cut(rng: random.Random, data: bytes, place: int) -> Mutant:
    return Mutant(data[:place], "cut", place, len(data))


def _append(rng: random.Random, data: bytes, place: int) -> Mutant:
    return _splice(
        data, len(data), len(data), rng.choice((*_JUNK, data[:place], rng.randbytes(700))), "append"
    )


_KINDS = (
    _flip,
    _set_byte,
    _number,
    _scramble,
    _delete,
    _insert,
    _zero,
    _repeat,
    _swap,
    _number,
    _cut,
    _append,
)


# -- where formats keep what matters, and their checksums ----------------------------------------------------


def jpeg_places(data: bytes) -> list[int]:
    """Every marker, and the length behind it."""
    found = [at for at in range(len(data) - 1) if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)]
    return [place for at in found for place in (at, at + 2, at + 4, at + 5)]


def png_chunks(data: bytes) -> list[tuple[int, int]]:
    """(offset, length of the contents) of each chunk whose length can be believed."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        chunks.append((at, length))
        at += 12 + length
    return chunks


def png_places(data: bytes) -> list[int]:
    """Length, kind, contents and checksum of every chunk, and each byte of the header chunk."""
    return [at + d for at, length in png_chunks(data) for d in (0, 4, 8, 8 + length)] + list(range(16, 29))


def repair_png(data: bytes) -> bytes:
    """Put every chunk's checksum right."""
    fixed = bytearray(data)
    for at, length in png_chunks(data):
        end = at + 8 + length
        fixed[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
    return bytes(fixed)


def riff_places(data: bytes) -> list[int]:
    """Kind, size and first bytes of every RIFF chunk."""
    places, at = [0, 4, 8], 12
    while at + 8 <= len(data):
        places += [at, at + 4, *range(at + 8, at + 20)]
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return places


def gif_places(data: bytes) -> list[int]:
    """Screen, and what follows every extension or image separator."""
    marks = [at for at in range(13, len(data)) if data[at] in b"!,;"]
    return [*range(14), *(at + d for at in marks[:60] for d in (0, 1, 2, 5, 9))]


def tiff_places(data: bytes) -> list[int]:
    """Every field of every entry of the first directory (classic TIFF, little-endian)."""
    first = int.from_bytes(data[4:8], "little")
    num = int.from_bytes(data[first : first + 2], "little")
    entries = [first + 2 + 12 * entry for entry in range(min(num, 64))]
    return [0, 2, 4, first, *(at + d for at in entries for d in (0, 2, 4, 8))]


def tar_places(data: bytes) -> list[int]:
    """The fields of every block: name, mode, size, checksum, kind, link, magic, prefix."""
    return [
        at + d for at in range(0, len(data), 512) for d in (0, 1, 99, 100, 124, 135, 148, 156, 157, 257, 345)
    ]


def repair_tar(data: bytes) -> bytes:
    """Put the checksum of every block right that says it is a header."""
    fixed = bytearray(data)
    for at in range(0, len(data) - 511, 512):
        block = fixed[at : at + 512]
        if block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 8 * 32
            fixed[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(fixed)


def text_places(data: bytes) -> list[int]:
    """Every line end, quote, comma, brace and backslash."""
    return [at for at, byte in enumerate(data) if byte in b'\n\r",{}[]\\:']
