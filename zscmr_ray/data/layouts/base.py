"""What every dataset layout shares: the listing it looks things up in, the rows it makes, and how they become shards.

A layout reads its lists and annotations once, in the driver, and names files; pictures and texts are opened by the
workers (`reading.py`). Not the layouts themselves: one small file each.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from zscmr_ray.data.layouts.texts import decode_legacy
from zscmr_ray.data.readers.images import is_image_name
from zscmr_ray.data.records import LayoutRow, OpenFile, ShardSpec
from zscmr_ray.errors import DataError
from zscmr_ray.storage import FileInfo

# Rows of one shard: at 125 KB of features an item, a part of 64 MB.
SHARD_ROWS = 512
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """The rows of a dataset in its lists' order, what was left out of them by reason, and remarks for the reader.

    `group` names the list that a row came from; shards do not cross it. `left_out` are items that the dataset lists and
    that the layout by its definition does not use: they are not rows, and counted here only.
    """

    rows: Mapping[str, Sequence[LayoutRow]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """The rows of all groups."""
        return sum(map(len, self.rows.values()))


class Listing:
    """The files of a dataset's folder, and looking them up as its lists name them."""

    def __init__(self, name: str, files: Iterable[FileInfo], open_file: OpenFile) -> None:
        self.name = name
        self.files = {info.key: info for info in files}
        self._open = open_file
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for key in self.files:
            self._by_name[PurePosixPath(key).name].append(key)

    def __contains__(self, key: object) -> bool:
        return key in self.files

    def below(self, folder: str) -> Iterator[str]:
        """The keys below a folder, in key order."""
        return (key for key in sorted(self.files) if key.startswith(f"{folder}/"))

    def named(self, *names: str) -> list[str]:
        """The keys of files with one of the names, in any folder."""
        return sorted(key for name in names for key in self._by_name.get(name, ()))

    def matching(self, test: Callable[[str], bool]) -> list[str]:
        """The keys whose file name passes a test."""
        return sorted(key for name, keys in self._by_name.items() if test(name) for key in keys)

    def one(self, *names: str) -> str:
        """The key of the one file with one of the names, in whatever folder; raises DataError for none or several."""
        found = self.named(*names)
        if len(found) != 1:
            raise self.error(
                f"no single file {' or '.join(names)}",
                got=some(found) if found else self.summary(),
                expected=f"one {' or '.join(names)}",
            )
        return found[0]

    def at_root(self, name: str) -> str:
        """The key of a file that lies in the dataset's folder itself; raises DataError, saying where it is instead."""
        if name in self:
            return name
        deeper = self.named(name)
        folder = str(PurePosixPath(deeper[0]).parent) if deeper else None
        raise self.error(
            f"no {name} in the input folder",
            got=f"it is in {folder}/" if folder else self.summary(),
            expected=name,
            remedy=f"point data.input_uri at {folder}/ below it" if folder else None,
        )

    def image(self, name: str, *, folders: Sequence[str]) -> str:
        """The key of a picture by its file name: in the folders in turn, else the one of that name anywhere.

        A picture that is not there gets the key where it should be: its row is then rejected as missing.
        """
        candidates = [f"{folder}/{name}" if folder else name for folder in folders]
        for key in candidates:
            if key in self:
                return key
        anywhere = self._by_name.get(PurePosixPath(name).name, [])
        return anywhere[0] if len(anywhere) == 1 else candidates[0]

    def image_folders(self, *usual: str) -> tuple[str, ...]:
        """Those of the usual folders of pictures that are there; all of them where none is."""
        there = tuple(folder for folder in usual if next(self.below(folder), None) is not None)
        return there or usual

    def lines(self, key: str) -> list[str]:
        """The lines of a list file, trailing white space and a byte-order mark taken off, blank ones left out."""
        with self._open(key) as file:
            text = decode_legacy(file.read())
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def json(self, key: str, *, keep: Sequence[str] | None = None) -> Any:
        """Parse a JSON file; with `keep`, of every object only these fields (polygons would take gigabytes)."""
        kept = None if keep is None else frozenset(keep)

        def hook(value: dict[str, Any]) -> dict[str, Any]:
            return value if kept is None else {name: value[name] for name in value.keys() & kept}

        try:
            with self._open(key) as file:
                return json.load(file, object_hook=hook)
        except ValueError as error:
            raise self.error(
                f"{key} is not JSON", got=str(error), expected="the dataset's own file"
            ) from error

    def version(self, rows: Sequence[LayoutRow]) -> tuple[int, str]:
        """Size and version of the files that some rows name, as one; files that are missing count as nothing."""
        digest, size_bytes = hashlib.sha256(), 0
        for row in rows:
            for key in (row.image, row.text):
                info = self.files.get(key) if key is not None else None
                if info is not None:
                    size_bytes += info.size_bytes
                    digest.update(f"{info.key}\0{info.size_bytes}\0{info.version}\n".encode())
        return size_bytes, digest.hexdigest()

    def error(self, what: str, *, got: object, expected: object, remedy: str | None = None) -> DataError:
        """The error of a folder that is not in this layout."""
        return DataError(
            f"data.format={self.name}: {what}",
            got=got,
            expected=expected,
            remedy=remedy or f"check data.input_uri; docs/datasets.md shows the layout of {self.name}",
        )

    def summary(self) -> str:
        """The first things in the folder, for errors."""
        tops = Counter(f"{key.split('/')[0]}/" if "/" in key else key for key in self.files)
        return f"{len(self.files)} files: {some(sorted(tops))}"


def cut_shards(plan: LayoutPlan, listing: Listing) -> list[ShardSpec]:
    """Cut each group's rows into shards of `SHARD_ROWS`, named `<group>-<number>`."""
    shards = []
    for group in sorted(plan.rows):
        rows = plan.rows[group]
        for number, start in enumerate(range(0, len(rows), SHARD_ROWS)):
            part = tuple(rows[start : start + SHARD_ROWS])
            size_bytes, version = listing.version(part)
            shards.append(ShardSpec(f"{group}-{number:05d}", size_bytes, version, listing.name, rows=part))
    if not shards:
        raise listing.error("no rows", got=listing.summary(), expected="at least one listed item")
    return shards


def images_below(listing: Listing, folder: str) -> dict[str, str]:
    """Pictures below a folder as {path below it without extension: key}."""
    return {
        str(PurePosixPath(key).relative_to(folder).with_suffix("")): key
        for key in listing.below(folder)
        if is_image_name(key)
    }


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + rest
