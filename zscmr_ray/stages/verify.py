"""Is a run what its manifests say? One pass over every finished stage; nothing is changed.

Per directory: no part missing or stray, every part's checksum, rows, schema version and configuration; rows in = out +
rejected + filtered, per shard and in total, and as many in the files; ids that occur once; vectors finite, in unit
blocks, of one model. Between directories: embeddings and index of the checkpoint's fingerprint and blocks. What is
merely out of date or unfinished is a note. What it does not do: read the raw input, or encode anything again.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from zscmr_ray.config.operator import OWN_CHECKPOINT
from zscmr_ray.errors import DataError
from zscmr_ray.lease import read_lease
from zscmr_ray.manifest import TALLY, Manifest, ShardRecord, read_manifest
from zscmr_ray.schema import SCHEMA_VERSION
from zscmr_ray.stages import stage_directories
from zscmr_ray.stages.verify_ids import IdPartitions
from zscmr_ray.stages.verify_parts import PartCheck, check_part
from zscmr_ray.storage import Store

# Hashing and reading parquet leave the interpreter free.
_PARTS_AT_ONCE = 4
_REPEATED_IDS_NAMED = 5


@dataclass
class StageReport:
    """What was checked of one directory, what is wrong with it, and what is worth knowing."""

    stage: str
    directory: str
    num_parts: int = 0
    num_rows: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_run(uri: str) -> list[StageReport]:
    """Verify every finished stage of a run directory, or the one stage directory; raises DataError when it is neither."""
    stores = stage_directories(uri)
    manifests: dict[str, Manifest] = {}
    reports = []
    for stage, store in stores.items():
        report = StageReport(stage, store.uri)
        reports.append(report)
        try:
            manifest = read_manifest(store)
        except DataError as error:
            report.violations.append(str(error))
            continue
        if manifest is None:
            report.notes.append("not complete: nothing to verify")
            continue
        manifests[stage] = manifest
        started_s = time.monotonic()
        _verify_stage(store, manifest, report)
        report.seconds = time.monotonic() - started_s
    _verify_models(stores, manifests, {report.stage: report for report in reports})
    return reports


def report_lines(report: StageReport) -> list[str]:
    """A report in words: one line when all is well, else one more per violation and note."""
    verdict = f"{len(report.violations)} VIOLATIONS" if report.violations else "ok"
    if not report.num_parts and not report.violations:
        verdict = "-"
    facts = f"{report.num_parts} parts, {report.num_rows:,} rows, {report.size_bytes / 1e6:.1f} MB, {report.seconds:.1f} s"
    lines = [f"{report.stage:<11}{verdict:<4} {facts if report.num_parts else ''}".rstrip()]
    lines += [f"{'':<11}violation: {text}" for text in report.violations]
    return lines + [f"{'':<11}note: {text}" for text in report.notes]


def _verify_stage(store: Store, manifest: Manifest, report: StageReport) -> None:
    report.num_parts = len(manifest.parts)
    report.size_bytes = sum(part.size_bytes for part in manifest.parts)
    if manifest.config_hash != manifest.key.config_hash:
        _find(report, "manifest.json: config_hash", manifest.config_hash, manifest.key.config_hash)
    if manifest.key.zscmr_schema != SCHEMA_VERSION:
        _find(report, "manifest.json: schema version", manifest.key.zscmr_schema, SCHEMA_VERSION)
    _check_listing(store, manifest, report)
    with tempfile.TemporaryDirectory(prefix="zscmr-verify-") as folder:
        sides: dict[str, IdPartitions] = {}
        rows: dict[str, int] = {}
        for check in _check_parts(store, manifest):
            report.violations += check.findings
            rows[check.record.name] = check.record.rows
            report.num_rows += check.record.rows
            if check.side not in sides:
                scratch = Path(folder) / f"side-{len(sides)}"
                scratch.mkdir()
                sides[check.side] = IdPartitions(scratch)
            for records in check.ids:
                sides[check.side].add(records)
        for ids in sides.values():
            _check_ids(store, manifest, ids, report)
    _check_conservation(manifest, rows, report)


def _check_parts(store: Store, manifest: Manifest) -> Iterator[PartCheck]:
    """Every part's check in order, a few at a time and never more waiting than that."""
    numbers = (number for number, _ in enumerate(manifest.parts))
    waiting: deque[Future[PartCheck]] = deque()
    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        for number in numbers:
            waiting.append(pool.submit(check_part, store, manifest, number))
            if len(waiting) > _PARTS_AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _check_listing(store: Store, manifest: Manifest, report: StageReport) -> None:
    # Missing parts are found when they are opened.
    listed = {part.name for part in manifest.parts}
    keys = {info.key for info in store.list()}
    strays = [
        key
        for key in sorted(keys - listed)
        if PurePosixPath(key).name.startswith("part-") and not key.startswith("_")
    ]
    lease = read_lease(store)
    if lease is not None and (lease.error is not None or not lease.ended):
        # Of an update that runs or did not come to its end; the state before it is what the manifest describes.
        report.notes.append(
            f"an update is unfinished ({len(strays)} new parts so far): its command goes on with it"
        )
    else:
        report.violations += [f"{key}: a part that is not in the manifest" for key in strays]


def _check_ids(store: Store, manifest: Manifest, ids: IdPartitions, report: StageReport) -> None:
    num_repeated = 0
    for later, earlier in ids.repeated():
        num_repeated += 1
        if num_repeated <= _REPEATED_IDS_NAMED:
            name = _read_id(store, manifest, later)
            report.violations.append(
                f"{manifest.parts[later[0]].name}: id {name!r} in row {later[1]} is also in row {earlier[1]} of "
                f"{manifest.parts[earlier[0]].name}"
            )
    if num_repeated > _REPEATED_IDS_NAMED:
        report.violations.append(f"{num_repeated - _REPEATED_IDS_NAMED} more rows have ids that occur before")


def _read_id(store: Store, manifest: Manifest, place: tuple[int, int]) -> str:
    number, row = place
    with store.local_copy(manifest.parts[number].name) as path:
        return str(pq.read_table(path, columns=["id"])["id"][row])


def _check_conservation(manifest: Manifest, rows: Mapping[str, int], report: StageReport) -> None:
    """Rows in = out + rejected + filtered for every shard, the files hold as many, and the totals are their sums."""
    totals: Counter[str] = Counter()
    named: set[str] = set()
    for shard in manifest.shards:
        totals.update(shard.counts)
        totals.update({f"rejected_{code}": count for code, count in shard.rejected.items()})
        if "in" not in shard.counts:
            continue
        _check_shard(shard, rows, named, report)
    if not manifest.shards:
        return
    if named:
        for name in sorted(rows.keys() - named):
            report.violations.append(f"{name}: a part of no shard in the manifest")
    expected = {name: count for name, count in manifest.counts.items() if name != "shards"}
    if dict(totals) != {**dict.fromkeys(totals, 0), **expected}:
        _find(
            report,
            "manifest.json: counts",
            manifest.counts,
            f"the shards' sums {dict(sorted(totals.items()))}",
        )
    if manifest.counts.get("shards") != len(manifest.shards):
        _find(report, "manifest.json: shards", manifest.counts.get("shards"), len(manifest.shards))


def _check_shard(shard: ShardRecord, rows: Mapping[str, int], named: set[str], report: StageReport) -> None:
    counts = shard.counts
    accounted = counts["out"] + counts["rejected"] + counts["filtered"]
    if counts["in"] != accounted:
        _find(
            report,
            f"shard {shard.key}: rows",
            f"{counts['in']} in",
            f"{accounted} out, rejected and filtered",
        )
    if sum(shard.rejected.values()) != counts["rejected"]:
        _find(report, f"shard {shard.key}: rejected by code", shard.rejected, f"{counts['rejected']} in all")
    sides = {
        name: count
        for name, count in counts.items()
        if name not in {"in", "out", "rejected", "filtered"} and not name.startswith(TALLY)
    }
    wanted = {f"{side}/{shard.part}": count for side, count in sides.items()} or {shard.part: counts["out"]}
    if counts["rejected"]:
        wanted[f"rejected/{shard.part}"] = counts["rejected"]
    for name, count in wanted.items():
        named.add(name)
        if rows.get(name) != count:
            _find(report, f"{name}: rows of shard {shard.key}", rows.get(name, "no such part"), count)


def _verify_models(
    stores: Mapping[str, Store], manifests: Mapping[str, Manifest], reports: Mapping[str, StageReport]
) -> None:
    """Embeddings and index against the checkpoint they name, and what is older than its input."""
    checkpoint: dict[str, Any] = {}
    if "train" in manifests:
        checkpoint = stores["train"].read_json("meta.json")
        _compare(
            reports["train"], "manifest.json: fingerprint", manifests["train"].info, checkpoint, "fingerprint"
        )
    embeddings, index = manifests.get("embed"), manifests.get("index")
    for stage in ("embed", "index"):
        made = manifests.get(stage)
        if made is not None and checkpoint and made.info.get("model", OWN_CHECKPOINT) == OWN_CHECKPOINT:
            for name in ("fingerprint", "blocks"):
                _compare(reports[stage], f"manifest.json: {name}", made.info, checkpoint, name)
    if index is not None and embeddings is not None:
        _compare(reports["index"], "manifest.json: fingerprint", index.info, embeddings.info, "fingerprint")
    for stage, before in (("train", "preprocess"), ("embed", "preprocess"), ("index", "embed")):
        made, source = manifests.get(stage), manifests.get(before)
        if made is not None and source is not None and made.key.input_fingerprint != source.fingerprint:
            reports[stage].notes.append(f"made of another state of {before} than the one that is there now")


def _compare(
    report: StageReport, what: str, info: Mapping[str, Any], source: Mapping[str, Any], name: str
) -> None:
    if info.get(name) != source.get(name):
        _find(report, what, info.get(name), source.get(name))


def _find(report: StageReport, what: str, got: object, expected: object) -> None:
    report.violations.append(f"{what}: got {got}, expected {expected}")
