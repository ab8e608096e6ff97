"""From `data.input_uri` to a store, its files and the shards to read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from zscmr_ray.config import DataSection
from zscmr_ray.data.layouts import LAYOUTS, LayoutPlan, plan_layout
from zscmr_ray.data.readers import list_shards
from zscmr_ray.data.records import LayoutRow, ShardSpec
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


@dataclass(frozen=True, slots=True)
class FoundShards:
    """The shards of an input, and what a dataset's own lists say of it: counts, items left out, remarks."""

    shards: list[Shard]
    facts: dict[str, Any] = field(default_factory=dict)


def find_shards(files: list[FileInfo], data: DataSection, *, store: Store | None = None) -> list[Shard]:
    """The shards among the files, in key order, each with the part it becomes; `store` as in `find_listed`."""
    return find_listed(files, data, store=store).shards


def find_listed(files: list[FileInfo], data: DataSection, *, store: Store | None = None) -> FoundShards:
    """The shards among the files and the facts of their layout; `store` is where a layout's lists are read."""
    if data.format not in LAYOUTS:
        return FoundShards(_as_shards(list_shards(files, format=data.format)))
    assert store is not None, "a layout's lists are read where its shards are found"
    specs, plan = plan_layout(data.format, files, store.open)
    return FoundShards(_as_shards(specs), {"layout": _layout_facts(data.format, plan)})


def spec_of(shard: Shard) -> ShardSpec:
    """The reader's view of a shard."""
    names = ("key", "size_bytes", "version", "format")
    rows = tuple(
        LayoutRow(**{**row, "captions": tuple(row["captions"]), "labels": tuple(row["labels"])})
        for row in shard.detail.get("rows", ())
    )
    return ShardSpec(
        **{name: shard.detail[name] for name in names}, files=tuple(shard.detail["files"]), rows=rows
    )


def _as_shards(specs: list[ShardSpec]) -> list[Shard]:
    shards = [_as_shard(spec) for spec in sorted(specs, key=lambda spec: spec.key)]
    if len({shard.part for shard in shards}) != len(shards):
        raise DataError("two shards have one name", got=", ".join(sorted(shard.key for shard in shards)))
    return shards


def _as_shard(spec: ShardSpec) -> Shard:
    # Rows are noted only where there are any: the fingerprints of all other shards stay what they were.
    detail = {name: value for name, value in asdict(spec).items() if name != "rows" or value}
    return Shard(part_name(spec.key), spec.key, spec.size_bytes, len(spec.rows) or None, detail)


def _layout_facts(name: str, plan: LayoutPlan) -> dict[str, Any]:
    return {
        "name": name,
        "rows": {group: len(rows) for group, rows in sorted(plan.rows.items())},
        "left_out": dict(sorted(plan.left_out.items())),
        "remarks": list(plan.remarks),
    }


def _split_glob(uri: str) -> tuple[Store, str]:
    parts = uri.split("/")
    first = next(number for number, part in enumerate(parts) if any(c in part for c in _WILDCARDS))
    return Store("/".join(parts[:first]) or ("/" if uri.startswith("/") else ".")), "/".join(parts[first:])


def _matches(key: str, pattern: str) -> bool:
    if "**" in pattern:
        return fnmatchcase(key, pattern.replace("**/", "*").replace("**", "*"))
    names, wanted = PurePosixPath(key).parts, PurePosixPath(pattern).parts
    return len(names) == len(wanted) and all(map(fnmatchcase, names, wanted))
