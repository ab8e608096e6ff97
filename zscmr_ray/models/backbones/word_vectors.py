"""Reads word vectors: GloVe text, word2vec and fastText text (with a header), word2vec binary (`.bin`), each also as `.gz`.

What it is: a checked reader that keeps the first MAX_WORDS words (such files are ordered by frequency) in half precision,
which is what the pairs keep of them. What it is not: the backbone that looks words up (`words.py`).
Legend: N words, D channels.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from zscmr_ray.errors import ConfigError, DataError

MAX_WORDS = 400_000  # all of GloVe 6B; 240 MB at 300 channels
MAX_CHANNELS = 4096
_MAX_LINE_BYTES = 1 << 17
_MAX_WORD_BYTES = 1 << 10
_BATCH_LINES = 2048
_READ_BYTES = 1 << 20

Half = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class WordVectors:
    """Words in the file's order, the first of equal ones kept, and their vectors."""

    words: list[str]
    vectors_ND: Half


def read_word_vectors(path: Path, *, max_words: int = MAX_WORDS) -> WordVectors:
    """Read a file of word vectors, at most its first `max_words` words.

    `.bin` (before a `.gz`) is word2vec's binary format, anything else text: `word v1 ... vD` a line, with or without a
    first line `words channels`. Raises ConfigError for a missing file, DataError for one that is damaged or no such file.
    """
    if not path.is_file():
        raise ConfigError("no such file of word vectors", got=str(path), expected="words:<file>")
    try:
        with path.open("rb") as start:
            packed = start.read(2) == b"\x1f\x8b"
        with path.open("rb") as plain:
            file: IO[bytes] = cast("IO[bytes]", gzip.GzipFile(fileobj=plain)) if packed else plain
            binary = path.name.removesuffix(".gz").endswith(".bin")
            return _collect(_binary_rows(file, max_words) if binary else _text_rows(file, max_words))
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(path, error) from error
    except _FormatError as error:
        raise _damaged(path, error) from error


class _FormatError(Exception):
    """What is wrong with the file, without its name."""


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        "cannot read the word vectors",
        got=f"{path.name}: {error or type(error).__name__}",
        expected="GloVe or word2vec text, or word2vec binary named .bin; each may be a .gz",
    )


def _collect(rows: Iterator[tuple[list[bytes], npt.NDArray[np.float32]]]) -> WordVectors:
    place: dict[str, int] = {}
    kept: list[Half] = []
    for names, values_nD in rows:
        with np.errstate(over="ignore"):
            half_nD = values_nD.astype(np.float16)
        if not np.isfinite(half_nD).all():
            bad = names[int(np.flatnonzero(~np.isfinite(half_nD).all(axis=1))[0])]
            raise _FormatError(f"a value of {bad[:40]!r} is not finite in half precision")
        new = []
        for row, name in enumerate(names):
            word = name.decode("utf-8", errors="replace")
            if word not in place:
                place[word] = len(place)
                new.append(row)
        kept.append(half_nD[new])
    if not place:
        raise _FormatError("no words")
    return WordVectors(list(place), np.concatenate(kept))


def _header(line: bytes) -> tuple[int, int] | None:
    """(words, channels) where a first line is word2vec's header, else None."""
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() and len(field) < 12 for field in fields):
        return None
    return int(fields[0]), _channels(int(fields[1]))


def _channels(number: int) -> int:
    if not 2 <= number <= MAX_CHANNELS:
        raise _FormatError(f"{number} values a word, expected 2 to {MAX_CHANNELS}")
    return number


def _text_rows(file: IO[bytes], max_words: int) -> Iterator[tuple[list[bytes], npt.NDArray[np.float32]]]:
    first = _line(file)
    header = _header(first)
    declared, channels = header if header is not None else (None, _channels(len(first.split()) - 1))
    pending = [] if header is not None else [first]
    number = 0
    while number < max_words:
        while len(pending) < min(_BATCH_LINES, max_words - number) and (line := _line(file)):
            pending.append(line)
        if not pending:
            break
        yield _parse_lines(pending, channels, first_number=number + 1 + (header is not None))
        number += len(pending)
        pending = []
    if declared is not None and number < min(declared, max_words):
        raise _FormatError(f"{number} words where its first line says {declared}")


def _line(file: IO[bytes]) -> bytes:
    line = file.readline(_MAX_LINE_BYTES)
    if len(line) == _MAX_LINE_BYTES:
        raise _FormatError(f"a line of more than {_MAX_LINE_BYTES} bytes")
    return line


def _parse_lines(
    lines: list[bytes], channels: int, *, first_number: int
) -> tuple[list[bytes], npt.NDArray[np.float32]]:
    names, texts = [], []
    for line in lines:
        line = line.rstrip()
        # From the right: some of GloVe's words hold spaces.
        one = line.count(b" ") == channels
        name = line.partition(b" ")[0] if one else line.rsplit(b" ", channels)[0]
        names.append(name)
        texts.append(line[len(name) + 1 :])
    if not all(names):
        raise _FormatError(f"line {first_number + names.index(b'')}: no word")
    return names, _parse_numbers(texts, channels, first_number=first_number)


def _parse_numbers(texts: list[bytes], channels: int, *, first_number: int) -> npt.NDArray[np.float32]:
    """The numbers of each line; pyarrow parses them in less than half of the time, Python names a bad line."""
    columns = [str(number) for number in range(channels)]
    try:
        table = csv.read_csv(
            pa.py_buffer(b"\n".join(texts)),
            read_options=csv.ReadOptions(column_names=columns, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.float32()), null_values=[]
            ),
        )
        if table.num_rows == len(texts):
            return np.stack([table[name].to_numpy() for name in columns], axis=1)
    except pa.ArrowInvalid:
        pass
    values_nD = np.empty((len(texts), channels), np.float32)
    for row, text in enumerate(texts):
        fields = text.split(b" ")
        try:
            if len(fields) != channels:
                raise ValueError(f"{len(fields)} values")
            values_nD[row] = [float(field) for field in fields]
        except ValueError as error:
            where = f"line {first_number + row}"
            raise _FormatError(f"{where}: {error}, expected a word and {channels} numbers") from error
    return values_nD


def _binary_rows(file: IO[bytes], max_words: int) -> Iterator[tuple[list[bytes], npt.NDArray[np.float32]]]:
    header = _header(_line(file))
    if header is None:
        raise _FormatError("its first line is not `words channels`")
    declared, channels = header
    left, width, buffer = min(declared, max_words), 4 * channels, b""
    while left:
        more = file.read(_READ_BYTES)
        buffer += more
        names, blobs, start = [], [], 0
        while left and (space := buffer.find(b" ", start, start + _MAX_WORD_BYTES)) >= 0:
            if len(buffer) < space + 1 + width:
                break
            # Some writers end each vector with a line feed, which then stands before the next word.
            names.append(buffer[start:space].lstrip(b"\n"))
            blobs.append(buffer[space + 1 : space + 1 + width])
            start, left = space + 1 + width, left - 1
        if not names and (not more or len(buffer) > _MAX_WORD_BYTES + width):
            raise _FormatError(f"it ends or is damaged {left} words before the {declared} of its first line")
        buffer = buffer[start:]
        if names:
            values = np.frombuffer(b"".join(blobs), "<f4").astype(np.float32)
            yield names, values.reshape(len(names), channels)
