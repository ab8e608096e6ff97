"""A strict streaming tar parser: ustar, pax and GNU long names; every damage is an error.

Library readers stop silently where an archive is cut off between members, and skip past what they do not know. Here
an archive must end with its end-of-archive block and nothing but zeros after it. Knows members, not samples (that is
`webdataset.py`). Format: POSIX.1-2001 pax interchange format; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from zscmr_ray.data.readers.quoting import shown
from zscmr_ray.errors import DataError

BLOCK_BYTES = 512
_ZEROS = bytes(BLOCK_BYTES)
_MAX_EXTENSION_BYTES = 1 << 20
# Beyond it no file system would seek; nor is there such a picture.
_MAX_MEMBER_BYTES = 1 << 40
_COPY_BYTES = 1 << 20
_MAX_LENGTH_DIGITS = 10
_SKIPPED = {b"K", b"D", b"V"}  # long link names, directory dumps, volume labels: no file contents
_UNSUPPORTED = {b"S": "a sparse file", b"M": "a multi-volume archive", b"N": "an old long-name table"}
_NO_CONTENTS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
}


@dataclass(frozen=True, slots=True)
class TarMember:
    """One file of an archive; `position` is the byte where its header begins, `problem` why it has no contents."""

    name: str
    size_bytes: int
    position: int
    problem: str | None


class TarStream:
    """Iterate over the members of an archive; `read()` gives the current member's contents, unread ones are skipped.

    `where` names the archive in errors. Raises DataError for truncation, a damaged header, and kinds of member that
    cannot be read faithfully.
    """

    def __init__(self, stream: BinaryIO, *, where: str) -> None:
        self._stream = stream
        self._where = where
        self._position = 0
        self._unread = 0
        self._padding = 0

    def read(self) -> bytes:
        """Read the rest of the current member; raises DataError when the archive ends inside it."""
        data = self._take(self._unread, "inside a member")
        self._unread = 0
        return data

    def __iter__(self) -> Iterator[TarMember]:
        while (member := self._next_member()) is not None:
            yield member

    def _next_member(self) -> TarMember | None:
        overrides: dict[str, str] = {}
        while True:
            self._skip_unread()
            block = self._header()
            if block is None:
                return None
            position = self._position - BLOCK_BYTES
            kind = block[156:157]
            self._enter(self._size(self._number(block[124:136], position), position))
            if kind in _UNSUPPORTED:
                self._damaged(position, _UNSUPPORTED[kind])
            elif kind in {b"x", b"X", b"g"}:
                # Global headers hold comments and defaults; a path or size in one would name every member the same.
                records = self._pax_records(position)
                overrides.update(records if kind != b"g" else {})
            elif kind == b"L":
                overrides["path"] = _text(self._extension(position).split(b"\0")[0])
            elif kind == b"5":
                self._enter(0)
                overrides = {}
            elif kind not in _SKIPPED:
                member = self._member(block, position, overrides)
                if not member.name.endswith("/"):
                    return member
                overrides = {}

    def _member(self, block: bytes, position: int, overrides: dict[str, str]) -> TarMember:
        problem = _NO_CONTENTS.get(block[156:157])
        if problem:
            self._enter(0)
        elif "size" in overrides:
            digits = overrides["size"]
            if not digits.isdecimal() or len(digits) > len(str(_MAX_MEMBER_BYTES)):
                self._damaged(position, f"a pax size {shown(digits)}")
            self._enter(self._size(int(digits), position))
        name = overrides.get("path") or _ustar_name(block)
        return TarMember(name, self._unread, position, problem)

    def _header(self) -> bytes | None:
        """The next header block, None at a proper end of the archive."""
        padding, self._padding = self._padding, 0
        block = self._take(padding + BLOCK_BYTES, "without its end-of-archive block")[padding:]
        if block == _ZEROS:
            self._require_only_zeros()
            return None
        position = self._position - BLOCK_BYTES
        expected = self._number(block[148:156], position)
        found = _sum(block) - sum(block[148:156]) + 8 * 0x20
        if found != expected:
            self._damaged(position, f"checksum {found} where the header says {expected}")
        return block

    def _require_only_zeros(self) -> None:
        while data := self._stream.read(_COPY_BYTES):
            if data.strip(b"\0"):
                raise DataError(
                    f"{self._where}: data after the end of the archive",
                    got=f"bytes that are not zero after byte {self._position}",
                    expected="one archive",
                    remedy="concatenated archives must be joined with `tar --concatenate`, or kept apart",
                )

    def _pax_records(self, position: int) -> dict[str, str]:
        """The records that matter here; others are checked and passed over, as there may be a million of them."""
        data, records, at = self._extension(position).rstrip(b"\0"), {}, 0
        while at < len(data):
            blank = data.find(b" ", at, at + _MAX_LENGTH_DIGITS)
            digits = data[at:blank]
            end = at + int(digits) if blank > 0 and digits.isdigit() else 0
            name, equals, value = data[blank + 1 : end].partition(b"=")
            if end <= blank or not equals or not value.endswith(b"\n"):
                self._damaged(position, "a pax header that does not parse")
            if name.startswith(b"GNU.sparse"):
                self._damaged(position, "a sparse file")
            if name in {b"path", b"size"}:
                records[name.decode()] = _text(value[:-1])
            at = end
        return records

    def _extension(self, position: int) -> bytes:
        if self._unread > _MAX_EXTENSION_BYTES:
            self._damaged(position, f"an extended header of {self._unread} bytes")
        return self.read()

    def _number(self, field: bytes, position: int) -> int:
        if field[0] == 0x80:  # GNU base-256, for sizes of 8 GiB and more
            return int.from_bytes(field[1:], "big")
        digits = field.partition(b"\0")[0].strip(b" ")
        if digits.strip(b"01234567"):
            self._damaged(position, f"a number field {field!r}")
        return int(digits or b"0", 8)

    def _size(self, size_bytes: int, position: int) -> int:
        if size_bytes > _MAX_MEMBER_BYTES:
            self._damaged(position, f"a member of {size_bytes} bytes")
        return size_bytes

    def _enter(self, size_bytes: int) -> None:
        self._unread = size_bytes
        self._padding = -size_bytes % BLOCK_BYTES

    def _skip_unread(self) -> None:
        # The padding is read with the header after it.
        num_bytes, self._unread = self._unread, 0
        # A seek past the end is not noticed here, but no end-of-archive block can follow it.
        if num_bytes > _COPY_BYTES and self._stream.seekable():
            self._stream.seek(num_bytes, 1)
            self._position += num_bytes
            return
        while num_bytes > 0:
            num_bytes -= len(self._take(min(num_bytes, _COPY_BYTES), "inside a member"))

    def _take(self, num_bytes: int, where_it_ends: str) -> bytes:
        """Read exactly so many bytes: a raw or unzipping stream may give fewer at a time."""
        pieces, missing = [], num_bytes
        while missing > 0 and (piece := self._stream.read(min(missing, 64 * _COPY_BYTES))):
            if len(piece) == num_bytes:
                self._position += num_bytes
                return piece
            pieces.append(piece)
            missing -= len(piece)
        self._position += num_bytes - missing
        if missing:
            raise DataError(
                f"{self._where} is truncated",
                got=f"the archive ends at byte {self._position}, {where_it_ends}",
                expected="a complete tar archive",
                remedy="copy or write the shard again",
            )
        return b"".join(pieces)

    def _damaged(self, position: int, what: str) -> NoReturn:
        raise DataError(
            f"{self._where}: cannot read the tar header at byte {position}",
            got=what,
            expected="a plain ustar, pax or GNU tar header",
            remedy="write the shard again (for sparse files: without --sparse)",
        )


def _sum(block: bytes) -> int:
    """The sum of a block's 512 bytes; 256 of them are below Adler-32's modulus, and it adds in C: 1 us in the place of 5."""
    low, high = zlib.adler32(block[:256]), zlib.adler32(block[256:])
    return (low & 0xFFFF) + (high & 0xFFFF) - 2


def _ustar_name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    # GNU tar ends its magic with blanks and uses the prefix field for other things.
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(data: bytes) -> str:
    # Names that are not UTF-8 stay distinct; surrogates are what the row builder then rejects.
    return data.decode("utf-8", "surrogateescape")
