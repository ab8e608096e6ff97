"""From `data.input_uri` to a store, its files and the shards to read."""

from __future__ import annotations

from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from zscmr_ray.config import DataSection
from zscmr_ray.data.readers import list_shards
from zscmr_ray.data.records import ShardSpec
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.schema import part_name
from zscmr_ray.stages.plane.chunks import Shard
from zscmr_ray.storage import FileInfo, Store

_WILDCARDS = "*?["


def find_input(uri: str) -> tuple[Store, list[FileInfo]]:
    """Resolve a folder, a file or a glob to a store and the files meant, keys relative to it.

    `*` stays inside one folder, `**` crosses folders. Raises ConfigError when no input is set, DataError when
    nothing is there.
    """
    if not uri:
        raise ConfigError(
            "no input", got="data.input_uri=''", remedy="--set data.input_uri=<folder, file or glob>"
        )
    if any(character in uri for character in _WILDCARDS):
        root, pattern = _split_glob(uri)
        files = [info for info in root.list() if _matches(info.key, pattern)]
    elif Store(uri).is_file():
        folder, _, name = uri.rpartition("/")
        root = Store(folder or ("/" if uri.startswith("/") else "."))
        files = [root.info(name)]
    else:
        root = Store(uri)
        files = root.list() if root.exists() else []
    if not files:
        raise DataError(
            "there is nothing to read",
            got=f"data.input_uri={uri}: {'an empty folder' if root.exists() else 'no such path'}",
            expected="a folder, file or glob of tar, parquet, jsonl or csv shards, or of images",
            remedy="check the path; quote globs on the command line",
        )
    return root, files


def find_shards(files: list[FileInfo], data: DataSection) -> list[Shard]:
    """The shards among the files, in key order, each with the part it becomes."""
    specs = list_shards(files, format=data.format)
    shards = [
        Shard(part_name(spec.key), spec.key, spec.size_bytes, detail=asdict(spec)) for spec in sorted(specs)
    ]
    if len({shard.part for shard in shards}) != len(shards):
        raise DataError("two shards have one name", got=", ".join(sorted(shard.key for shard in shards)))
    return shards


def spec_of(shard: Shard) -> ShardSpec:
    """The reader's view of a shard."""
    names = ("key", "size_bytes", "version", "format")
    return ShardSpec(**{name: shard.detail[name] for name in names}, files=tuple(shard.detail["files"]))


def _split_glob(uri: str) -> tuple[Store, str]:
    parts = uri.split("/")
    first = next(number for number, part in enumerate(parts) if any(c in part for c in _WILDCARDS))
    return Store("/".join(parts[:first]) or ("/" if uri.startswith("/") else ".")), "/".join(parts[first:])


def _matches(key: str, pattern: str) -> bool:
    if "**" in pattern:
        return fnmatchcase(key, pattern.replace("**/", "*").replace("**", "*"))
    names, wanted = PurePosixPath(key).parts, PurePosixPath(pattern).parts
    return len(names) == len(wanted) and all(map(fnmatchcase, names, wanted))
