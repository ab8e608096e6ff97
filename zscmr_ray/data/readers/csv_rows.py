"""Lines of a CSV file to rows: strict quoting, and no row lost to a neighbour's stray quote.

A quote that opens and does not close where it should swallows the rows below it. A faulty record of several lines is
therefore one rejected line, and reading goes on at the line after it. Not columns: those are `manifests.py`.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator

from zscmr_ray.errors import DataError

# A line may hold an image of 24 MB in base64; larger ones belong in tars or parquet. A field is parsed in four bytes a
# character.
MAX_LINE_CHARS = 32 << 20
# What may be read twice in one file. Beyond it, quotes are not a slip in some rows but wrong throughout.
_MAX_REREAD_CHARS = 64 << 20
# No caption has so many lines: a quote was left open.
_MAX_RECORD_LINES = 10_000
_SKIP_CHARS = 1 << 20


class CsvRows:
    """Iterate over a file's rows, the header first: a list of as many fields as the header, or why there is none.

    Blank lines are left out. Raises DataError, naming `where`, for a file that ends inside a quoted field and for
    quotes that are wrong throughout.
    """

    def __init__(self, text: io.TextIOWrapper, *, delimiter: str, where: str) -> None:
        self._where = where
        self._lines = _Lines(text)
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_CHARS))
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)

    def __iter__(self) -> Iterator[list[str] | str]:
        num_fields = None
        while True:
            self._lines.begin_record()
            try:
                row = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise self._unpaired("the file ends inside a quoted field") from error
                fault = f"not a CSV row: {error}"
            except _TooLongError:
                fault = f"a row of more than {MAX_LINE_CHARS} characters or {_MAX_RECORD_LINES} lines"
            else:
                if not row:
                    continue
                if num_fields is None or len(row) == num_fields:
                    num_fields = len(row)
                    yield row
                    continue
                fault = f"{len(row)} fields where the header has {num_fields}"
            if self._lines.rewind() > _MAX_REREAD_CHARS:
                raise self._unpaired("quotes do not pair up")
            yield fault

    def _unpaired(self, what: str) -> DataError:
        return DataError(
            f"{self._where}: {what}",
            got=f"a quote that opens in line {self._lines.first_line} and does not close",
            expected="a complete CSV file",
            remedy="write the file again, or double the quotes inside fields",
        )


class _TooLongError(Exception):
    """A line, or the lines of one record, are too long to be held."""


class _Lines:
    """The lines of a text, with a way back to the second line of the present record. None stands for too long a line."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._readline = text.readline
        self._again: deque[str | None] = deque()
        self._num_read = 0
        self._reread_chars = 0
        self._record: list[str | None] = []
        self._record_chars = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line: str | None
        if self._again:
            line = self._again.popleft()
        else:
            line = self._readline(MAX_LINE_CHARS + 1)
            if not line:
                raise StopIteration
            self._num_read += 1
            if len(line) > MAX_LINE_CHARS:
                self._skip(line)
                line = None
        self._record.append(line)
        if line is None:
            raise _TooLongError
        if len(self._record) > 1:
            self._record_chars += len(line)
            if self._record_chars > MAX_LINE_CHARS or len(self._record) > _MAX_RECORD_LINES:
                raise _TooLongError
        return line

    def begin_record(self) -> None:
        """The next line is a record's first."""
        self._record.clear()
        self._record_chars = 0

    @property
    def first_line(self) -> int:
        """The number of the present record's first line."""
        return self._num_read - len(self._again) - len(self._record) + 1

    def rewind(self) -> int:
        """Give the present record's lines but the first once more; returns how many characters that is by now."""
        rest = self._record[1:]
        self._again.extendleft(reversed(rest))
        self._reread_chars += sum(map(len, filter(None, rest)))
        return self._reread_chars

    def _skip(self, line: str) -> None:
        while line and line[-1] not in "\r\n":
            line = self._readline(_SKIP_CHARS)
