"""The index stage: embeddings to segments, in this process or, above `index.shard_rows`, one Ray task a segment.

What it is: the check that all parts are of one model and every id occurs once, the choice of segments, the manifest
last. Segments follow from the embeddings and the settings alone, so that it does not matter where they were built.
Appending adds segments of the new embedding parts and touches no older one.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.claim import Claim, Update, open_stage
from zscmr_ray.config import Config
from zscmr_ray.errors import DataError, RefusedError, ZscmrError
from zscmr_ray.manifest import Manifest, PartRecord, StageKey, read_manifest, require_manifest
from zscmr_ray.retrieval.gallery import ITEMS
from zscmr_ray.schema import provenance_of
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.stages.index.opening import read_deleted
from zscmr_ray.stages.index.record import (
    DELETED,
    SIDES,
    IndexedBlock,
    SegmentRecord,
    VectorFacts,
    index_manifest,
    segment_folder,
    segments_of,
)
from zscmr_ray.stages.index.segment import SegmentJob, build_segment
from zscmr_ray.stages.verify_ids import IdPartitions, hash_ids
from zscmr_ray.storage import Store

STAGE = "index"
# A segment that is built, until the manifest is there: a killed build goes on behind it.
BUILT = "_segments"
_NAMED_IDS = 5


def run_index(config: Config, *, overwrite: bool = False, update: Update | None = None) -> StageResult:
    """Build the index of a run's embeddings, or add segments of new parts (`update` append), or return at once.

    Needs a running Ray when `needs_ray` says so. Raises DataError for missing or torn embeddings and for ids that occur
    twice; RefusedError when parts come from different models (naming both), when the directory holds another index, and
    when the recall is below `index.min_recall`.
    """
    source, target = stage_store(config, "embed"), stage_store(config, STAGE)
    embeddings = require_manifest(source, "embed")
    key = StageKey(stage=STAGE, config=config.stage_config("index"), input_fingerprint=embeddings.fingerprint)
    replaced = read_manifest(target) if overwrite else None
    with open_stage(target, key, overwrite=overwrite, update=update) as claim:
        if claim.complete is not None:
            # Also after a kill between the manifest and the deletion below.
            target.delete_tree(BUILT)
            return index_result(target, claim.complete, skipped=True)
        manifest = _build(config, source, embeddings, claim)
        claim.finish(manifest)
        target.delete_tree(BUILT)
    if replaced is not None and (said := _returned(replaced, manifest)) is not None:
        print(f"{STAGE}: {said}", file=sys.stderr)
    return index_result(target, manifest, skipped=False)


def needs_ray(config: Config) -> bool:
    """Whether the stage has more than one segment to build, and so wants tasks."""
    embeddings = read_manifest(stage_store(config, "embed"))
    if embeddings is None:
        return False
    before = read_manifest(stage_store(config, STAGE))
    done = {name for one in (before.info.get("segments", []) if before else []) for name in one["sources"]}
    parts = [part for part in embeddings.parts if _side(part) in SIDES and part.name not in done]
    return len(split_parts(parts, config.index.shard_rows)) > 1


def index_result(target: Store, manifest: Manifest, *, skipped: bool) -> StageResult:
    """What the stage reports of a finished index."""
    return StageResult(
        stage=STAGE,
        directory=target.uri,
        skipped=skipped,
        counts=manifest.counts,
        info=manifest.info | {"index_version": manifest.fingerprint},
    )


def split_parts(parts: Sequence[PartRecord], shard_rows: int) -> list[list[PartRecord]]:
    """Cut parts into segments of at most `shard_rows` rows (one part at least), both sides of a shard together.

    >>> def part(name, rows): return PartRecord(name=name, rows=rows, size_bytes=0, sha256="")
    >>> parts = [part("image/a", 2), part("image/b", 2), part("text/a", 4), part("image/c", 1), part("text/c", 1)]
    >>> [[one.name for one in group] for group in split_parts(parts, 6)]
    [['image/a', 'text/a'], ['image/b', 'image/c', 'text/c']]
    """
    shards: dict[str, list[PartRecord]] = {}
    for part in parts:
        if part.rows:
            shards.setdefault(part.name.rpartition("/")[2], []).append(part)
    groups: list[list[PartRecord]] = []
    for name in sorted(shards):
        rows = sum(part.rows for part in shards[name])
        if groups and sum(part.rows for part in groups[-1]) + rows <= shard_rows:
            groups[-1] += shards[name]
        else:
            groups.append(list(shards[name]))
    return groups


def _build(config: Config, source: Store, embeddings: Manifest, claim: Claim) -> Manifest:
    parts = [part for part in embeddings.parts if _side(part) in SIDES and part.rows]
    kept = segments_of(claim.before) if claim.before is not None else []
    new = _new_parts(parts, kept)
    facts = _one_model(source, parts)
    jobs = _jobs(config, source, claim.store, facts, parts, new, first=_next_number(kept))
    segments = [*kept, *_run(jobs, claim)]
    former = claim.before.parts if claim.before else []
    deleted = [part for part in former if part.name.startswith(f"{DELETED}/")]
    if len(segments) > 1:
        _refuse_repeated(claim, segments)
    return index_manifest(
        claim.key,
        segments,
        facts,
        source=embeddings.info,
        deleted=deleted[0] if deleted else None,
        num_deleted=claim.before.info["deleted"] if claim.before else None,
    )


def _returned(replaced: Manifest, built: Manifest) -> str | None:
    """What became of the rows that were deleted from the index that this one replaces; None where there were none."""
    if replaced.key.input_fingerprint == built.key.input_fingerprint:
        # Of the same embeddings: also rows whose deletion a compaction made final.
        rows = sum(max(0, built.counts[side] - replaced.counts[side]) for side in SIDES)
        return f"{rows} deleted rows are back: the embeddings hold them" if rows else None
    rows = sum(replaced.info["deleted"].values())
    return (
        f"{rows} rows were deleted from the index before; those that the embeddings hold are back"
        if rows
        else None
    )


def _jobs(
    config: Config,
    source: Store,
    target: Store,
    facts: VectorFacts,
    parts: Sequence[PartRecord],
    new: Sequence[PartRecord],
    *,
    first: int,
) -> list[SegmentJob]:
    names = {side: {p.name.rpartition("/")[2] for p in parts if _side(p) == side} for side in SIDES}
    # Where texts lie in parts of other names than their images (imported ones), captions may be anywhere.
    texts = [part for part in parts if _side(part) == "text"]
    jobs = []
    for number, group in enumerate(split_parts(new, config.index.shard_rows), start=first):
        sides = {side: [part for part in group if _side(part) == side] for side in SIDES}
        captions = sides["text"] if names["text"] <= names["image"] else texts
        jobs.append(SegmentJob(source, target, number, sides, captions, facts, config.index))
    return jobs


def _run(jobs: Sequence[SegmentJob], claim: Claim) -> list[SegmentRecord]:
    """Build what was not built before a kill; in tasks when there are several."""
    found = {job.number: _built_before(job, claim) for job in jobs}
    todo = [job for job in jobs if found[job.number] is None]
    for job, outcome in _outcomes(todo):
        if isinstance(outcome, ZscmrError):
            raise outcome
        found[job.number] = outcome
        note = {"key": claim.key.model_dump(), "record": outcome.model_dump()}
        claim.store.write_json(f"{BUILT}/{job.number:05d}.json", note)
    return [record for record in found.values() if record is not None]


def _outcomes(jobs: Sequence[SegmentJob]) -> Iterable[tuple[SegmentJob, SegmentRecord | ZscmrError]]:
    if len(jobs) < 2:
        return [(job, build_segment(job)) for job in jobs]
    from zscmr_ray.stages.index.on_ray import build_on_ray

    return build_on_ray(jobs)


def _built_before(job: SegmentJob, claim: Claim) -> SegmentRecord | None:
    name = f"{BUILT}/{job.number:05d}.json"
    if not claim.store.exists(name):
        return None
    note: Any = claim.store.read_json(name)
    record = SegmentRecord.model_validate(note["record"])
    is_same = note["key"] == claim.key.model_dump() and record.sources == job.sources
    return record if is_same and all(claim.store.exists(part.name) for part in record.parts) else None


def _next_number(kept: Sequence[SegmentRecord]) -> int:
    return max((one.number for one in kept), default=-1) + 1


def _new_parts(parts: Sequence[PartRecord], kept: Sequence[SegmentRecord]) -> list[PartRecord]:
    """The parts that no segment holds yet; RefusedError when one that a segment was made of is gone or another."""
    now = {part.name: part.sha256 for part in parts}
    before = {name: sha256 for one in kept for name, sha256 in one.sources.items()}
    changed = [name for name in sorted(before) if now.get(name) != before[name]]
    if changed:
        raise RefusedError(
            "--append would leave rows of embeddings that are not there any more",
            got=f"{len(changed)} parts changed or removed: {', '.join(changed[:_NAMED_IDS])}",
            expected="the parts that the index was built of, and new ones",
            remedy="--overwrite to build it anew",
        )
    return [part for part in parts if part.name not in before]


def _side(part: PartRecord) -> str:
    return part.name.partition("/")[0]


def _one_model(source: Store, parts: Sequence[PartRecord]) -> VectorFacts:
    """The one fingerprint and block layout of all parts, from their metadata."""
    if not parts:
        raise DataError(
            "there is nothing to index",
            got=f"no image or text part in {source.uri}",
            remedy="run `zscmr embed` on a corpus with rows",
        )
    first: VectorFacts | None = None
    for part in parts:
        facts = _facts(source, part)
        if first is not None and facts.fingerprint != first.fingerprint:
            raise RefusedError(
                "the embeddings come from different models and cannot be searched together",
                got=f"{part.name}: {facts.fingerprint}",
                expected=f"{parts[0].name}: {first.fingerprint}",
                remedy="embed again into one directory with one checkpoint (`zscmr embed --overwrite`)",
            )
        first = first or facts
    assert first is not None
    return first


def _facts(source: Store, part: PartRecord) -> VectorFacts:
    try:
        with source.open(part.name) as file:
            provenance: Mapping[str, Any] = provenance_of(pq.read_schema(file))
        blocks = tuple(IndexedBlock(b["name"], int(b["start"]), int(b["stop"])) for b in provenance["blocks"])
        return VectorFacts(fingerprint=str(provenance["fingerprint"]), blocks=blocks)
    except pa.ArrowInvalid as error:
        raise DataError(
            "a part is damaged",
            got=f"{source.uri}/{part.name}: {error}",
            remedy="`zscmr verify` names all; embed again with --overwrite",
        ) from error
    except (KeyError, TypeError) as error:
        raise DataError(
            "a part does not say which model made it",
            got=f"{source.uri}/{part.name}: no fingerprint or blocks in its metadata",
            remedy="run `zscmr embed --overwrite`",
        ) from error


def _refuse_repeated(claim: Claim, segments: Sequence[SegmentRecord]) -> None:
    """Ids occur once within a segment; over several they are compared by their hashes, deleted rows left out."""
    for side in SIDES:
        mine = [one for one in segments if one.rows.get(side)]
        with tempfile.TemporaryDirectory(prefix="zscmr-index-ids-") as scratch:
            ids = IdPartitions(Path(scratch))
            deleted = _deleted(claim)
            for place, one in enumerate(mine):
                gone = set(deleted.get((side, one.number), ()))
                names = _ids(claim.store, side, one.number)
                ids.add(hash_ids([name for name in names if name not in gone], part=place, first_row=0))
            repeated = [places for places, _ in zip(ids.repeated(), range(_NAMED_IDS), strict=False)]
        if repeated:
            raise DataError(
                "ids occur more than once",
                got=f"{side} rows of segments "
                + ", ".join(f"{mine[a[0]].number} and {mine[b[0]].number}" for a, b in repeated),
                expected="every id once over all segments",
                remedy="delete the old rows first (`zscmr index --delete`), or set data.columns.id to a unique column",
            )


def _deleted(claim: Claim) -> dict[tuple[str, int], list[str]]:
    return {} if claim.before is None else read_deleted(claim.store, claim.before)


def _ids(store: Store, side: str, number: int) -> list[str]:
    with (
        store.local_copy(f"{segment_folder(side, number)}/{ITEMS}") as path,
        pa.memory_map(str(path)) as file,
    ):
        names: list[str] = pa.ipc.open_file(file).read_all().column("id").to_pylist()
    return names
