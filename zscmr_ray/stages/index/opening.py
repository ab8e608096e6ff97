"""The files of a finished index: copied if remote, verified against the manifest, mapped as one SideIndex a side."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from zscmr_ray.errors import DataError
from zscmr_ray.manifest import Manifest, PartRecord
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.retrieval.side_index import SideIndex
from zscmr_ray.stages.index.record import DELETED, SIDES, segment_folder
from zscmr_ray.storage import Store

# Hashing leaves the interpreter free.
_FILES_AT_ONCE = 4


def open_sides(store: Store, manifest: Manifest, scratch: contextlib.ExitStack) -> dict[str, SideIndex]:
    """Open every side that has rows; `scratch` owns the copies of a remote index.

    Raises DataError when a file is missing, torn or not the one of the manifest.
    """
    folder = _local_files(store, manifest, scratch)
    numbers = [int(one["number"]) for one in manifest.info.get("segments", [{"number": 0}])]
    deleted = read_deleted(Store(folder), manifest)
    present = {part.name.rpartition("/")[0] for part in manifest.parts}
    sides = {}
    for side in SIDES:
        mine = [number for number in numbers if segment_folder(side, number) in present]
        if mine:
            sides[side] = SideIndex(
                [Gallery(folder / segment_folder(side, number)) for number in mine],
                [deleted.get((side, number), []) for number in mine],
            )
    return sides


def read_deleted(store: Store, manifest: Manifest) -> dict[tuple[str, int], list[str]]:
    """The deleted ids by side and segment."""
    found: dict[tuple[str, int], list[str]] = {}
    for part in manifest.parts:
        if part.name.startswith(f"{DELETED}/"):
            rows = pa.ipc.open_file(store.read_bytes(part.name)).read_all().to_pylist()
            for row in rows:
                found.setdefault((row["side"], row["segment"]), []).append(row["id"])
    return found


def _local_files(store: Store, manifest: Manifest, scratch: contextlib.ExitStack) -> Path:
    """The folder with the index's files, copied from a remote store; every checksum verified."""
    folder = Path(store.uri)
    if not store.is_local:
        folder = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="zscmr-index-")))
        for part in manifest.parts:
            with store.local_copy(part.name) as copy:
                target = folder / part.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(copy, target)
    local = Store(folder)

    def check(part: PartRecord) -> None:
        if local.sha256(part.name) != part.sha256:
            raise DataError(
                "an index file is not the one its manifest describes",
                got=f"{store.uri}/{part.name}",
                expected=f"sha256 {part.sha256[:12]}",
                remedy="run `zscmr index --overwrite`",
            )

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for _ in pool.map(check, manifest.parts):
            pass
    return folder
