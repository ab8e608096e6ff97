"""Which of an input's files are its shards, and in which format.

Works on a listing alone; nothing is opened. Shards come in key order whatever the order of the listing. On a local
disk links to files are followed and links to folders are not: a folder that contains itself would never end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from zscmr_ray.data.readers.images import is_image_name
from zscmr_ray.data.records import ShardSpec
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.storage import FileInfo

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz"),
    "csv": (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
}
FORMATS = (*_SUFFIXES, "folder", "class_folder")
_SHOWN = 5


def list_shards(files: Iterable[FileInfo], format: str = "auto") -> list[ShardSpec]:  # noqa: A002
    """Return an input's shards in key order; `format` is one of FORMATS, or auto.

    auto takes the one container format that is there (manifests win over the images they name, tars over the parquet
    files of the same names that img2dataset writes beside them); of bare images it takes `folder` when any has a
    sidecar text, else `class_folder` when all are in two directories or more, else `folder`.
    Hidden files are left out. Raises DataError when nothing is there, nothing is known or formats are mixed.
    """
    visible = sorted(info for info in files if not _is_hidden(info.key))
    if not visible:
        raise DataError(
            "the input is empty",
            got="no files",
            expected="tar, parquet, jsonl or csv shards, or images",
            remedy="check data.input_uri",
        )
    unprintable = [info.key for info in visible if _is_not_unicode(info.key)]
    if unprintable:
        raise DataError(
            "a file name is not valid Unicode",
            got=repr(unprintable[0]),
            expected="names that UTF-8 can hold: they become part of the rows' ids",
            remedy="rename the file",
        )
    if format == "auto":
        format = _detect(visible)  # noqa: A001
    if format not in FORMATS:
        raise ConfigError("unknown data.format", got=format, expected=", ".join(("auto", *FORMATS)))
    if format in _SUFFIXES:
        shards = [
            ShardSpec(info.key, info.size_bytes, info.version, format) for info in _matching(visible, format)
        ]
    else:
        shards = _folders(visible, format)
    if not shards:
        raise _nothing_known(visible, f"{format} shards")
    return shards


def _detect(files: Sequence[FileInfo]) -> str:
    found = {name: _matching(files, name) for name in _SUFFIXES}
    found = {name: infos for name, infos in found.items() if infos}
    if "webdataset" in found and "parquet" in found:
        tars = {_stem(info.key) for info in found["webdataset"]}
        if all(_stem(info.key) in tars for info in found["parquet"]):
            del found["parquet"]
    if len(found) > 1:
        raise DataError(
            "the input mixes formats",
            got=", ".join(f"{len(infos)} {name}" for name, infos in found.items()),
            expected="shards of one format",
            remedy=f"--set data.format={next(iter(found))} (or another), or move the others away",
        )
    if found:
        return next(iter(found))
    images = [info.key for info in files if is_image_name(info.key)]
    if not images:
        raise _nothing_known(files, "tar, parquet, jsonl or csv shards, or images")
    keys = {info.key for info in files}
    if any(f"{key}.txt" in keys or str(PurePosixPath(key).with_suffix(".txt")) in keys for key in images):
        return "folder"
    parents = {str(PurePosixPath(key).parent) for key in images}
    return "class_folder" if len(parents) > 1 and "." not in parents else "folder"


def _folders(files: Sequence[FileInfo], format_name: str) -> list[ShardSpec]:
    by_folder: dict[str, list[FileInfo]] = {}
    for info in files:
        if is_image_name(info.key) or info.key.endswith(".txt"):
            by_folder.setdefault(str(PurePosixPath(info.key).parent), []).append(info)
    with_images = {
        folder: infos for folder, infos in by_folder.items() if any(is_image_name(info.key) for info in infos)
    }
    if format_name == "class_folder" and "." in with_images:
        raise DataError(
            "images outside any class folder",
            got=f"{with_images['.'][0].key} at the input's root",
            expected="<class>/<image>",
            remedy="--set data.format=folder, or move the images into folders named after their classes",
        )
    return [_folder(folder, with_images[folder], format_name) for folder in sorted(with_images)]


def _folder(folder: str, infos: Sequence[FileInfo], format_name: str) -> ShardSpec:
    digest = hashlib.sha256()
    for info in infos:
        digest.update(f"{info.key}\0{info.size_bytes}\0{info.version}\n".encode())
    size_bytes = sum(info.size_bytes for info in infos)
    return ShardSpec(folder, size_bytes, digest.hexdigest(), format_name, tuple(info.key for info in infos))


def _nothing_known(files: Sequence[FileInfo], expected: str) -> DataError:
    suffixes = Counter(PurePosixPath(info.key).suffix.lower() or "(no extension)" for info in files)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(_SHOWN))
    return DataError(
        "nothing readable in the input",
        got=f"{len(files)} files: {kinds}",
        expected=expected,
        remedy="check data.input_uri and data.format",
    )


def _matching(files: Iterable[FileInfo], format_name: str) -> list[FileInfo]:
    return [info for info in files if info.key.lower().endswith(_SUFFIXES[format_name])]


def _stem(key: str) -> str:
    lower = key.lower()
    suffix = next((s for suffixes in _SUFFIXES.values() for s in suffixes if lower.endswith(s)), "")
    return key[: len(key) - len(suffix)]


def _is_not_unicode(key: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in key)


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(key).parts)
