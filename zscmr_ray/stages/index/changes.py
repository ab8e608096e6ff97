"""Changes to a finished index that need no embeddings: rows deleted, segments compacted. The manifest last, each time.

Deletion writes a list of ids beside the segments; nothing else changes, and whoever has the index open goes on with the
version it opened. Compaction writes one new segment of the rows that are left, switches the manifest, then deletes the
files of the old segments (which a process that has them mapped keeps until it closes them).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from zscmr_ray.claim import Claim, Update, open_stage
from zscmr_ray.config import Config
from zscmr_ray.errors import DataError
from zscmr_ray.manifest import Manifest, PartRecord, StageKey, part_record, require_manifest
from zscmr_ray.retrieval.gallery_write import write_gallery
from zscmr_ray.retrieval.side_index import SideIndex
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.stages.index.opening import open_sides, read_deleted
from zscmr_ray.stages.index.record import (
    DELETED,
    DELETED_SCHEMA,
    SIDES,
    SegmentRecord,
    facts_of,
    index_manifest,
    segments_of,
)
from zscmr_ray.stages.index.run import STAGE, index_result
from zscmr_ray.stages.index.segment import measure_sides, plan_side, put_segment
from zscmr_ray.storage import Store

_NAMED_IDS = 5


def delete_rows(config: Config, ids: Collection[str]) -> StageResult:
    """Delete items (with their captions) and single captions from a finished index, by id.

    Ids deleted before are no error. Raises DataError for ids that the index never had, changing nothing.
    """
    target = stage_store(config, STAGE)
    key = require_manifest(target, STAGE).key
    with open_stage(target, key, update=Update.DELETE) as claim, contextlib.ExitStack() as scratch:
        before = _before(claim)
        segments = segments_of(before)
        sides = open_sides(target, before, scratch)
        gone = read_deleted(target, before)
        found = _find_rows(sides, segments, ids=set(ids), gone=gone)
        if not any(found.values()):
            return index_result(target, before, skipped=True)
        for place, names in found.items():
            gone.setdefault(place, []).extend(names)
        record = _write_deleted(target, gone)
        num = {side: sum(len(names) for (of, _), names in gone.items() if of == side) for side in SIDES}
        manifest = index_manifest(
            key, segments, facts_of(before), source=before.info, deleted=record, num_deleted=num
        )
        claim.finish(manifest)
    return index_result(target, manifest, skipped=False)


def compact_index(config: Config) -> StageResult:
    """Make one segment of all, without the deleted rows; nothing to do when that is what there is.

    The kind of index is chosen again for what is left. Raises RefusedError when the settings are not those it was built
    with, or when the recall is below `index.min_recall`.
    """
    target = stage_store(config, STAGE)
    built = require_manifest(target, STAGE).key
    key = StageKey(
        stage=STAGE, config=config.stage_config("index"), input_fingerprint=built.input_fingerprint
    )
    with open_stage(target, key, update=Update.COMPACT) as claim, contextlib.ExitStack() as scratch:
        before = _before(claim)
        segments = segments_of(before)
        if len(segments) == 1 and not any(before.info["deleted"].values()):
            return index_result(target, before, skipped=True)
        sides = open_sides(target, before, scratch)
        folder = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="zscmr-index-")))
        facts = facts_of(before)
        plans = {
            side: plan_side(index.num_rows, facts.dimension, config.index)
            for side, index in sides.items()
            if index.num_rows
        }
        captions = _captions(sides["image"]) if "image" in plans else {}
        rows = {
            side: write_gallery(
                folder / side,
                (
                    table
                    for number, gallery in enumerate(sides[side].segments)
                    for table in gallery.tables(sides[side].alive(number), is_text=side == "text")
                ),
                dimension=facts.dimension,
                captions=captions,
                half=plan.kind == "ivf",
            )
            for side, plan in plans.items()
        }
        new = put_segment(
            target,
            max(one.number for one in segments) + 1,
            folder,
            plans,
            sources={name: sha256 for one in segments for name, sha256 in one.sources.items()},
            rows=rows,
            recall=measure_sides(folder, plans, facts, config.index),
        )
        manifest = index_manifest(key, [new], facts, source=before.info)
        claim.finish(manifest)
        for part in before.parts:
            target.delete(part.name)
    return index_result(target, manifest, skipped=False)


def _before(claim: Claim) -> Manifest:
    assert claim.before is not None, "an update of a finished index starts from it"
    return claim.before


def _find_rows(
    sides: Mapping[str, SideIndex],
    segments: Sequence[SegmentRecord],
    *,
    ids: set[str],
    gone: Mapping[tuple[str, int], list[str]],
) -> dict[tuple[str, int], list[str]]:
    """The ids of the rows to delete by side and segment: those named, and every caption of a named item."""
    found: dict[tuple[str, int], list[str]] = {}
    unknown = set(ids)
    values = sorted(ids)
    for side, index in sides.items():
        # A side lacks the segments in which it has no rows.
        numbers = [one.number for one in segments if one.rows.get(side)]
        for number, gallery in zip(numbers, index.segments, strict=True):
            before = set(gone.get((side, number), ()))
            named = gallery.mask({"id": values})
            owned = gallery.mask({"item_id": values})
            assert named is not None and owned is not None
            rows = (named | owned).nonzero()[0].tolist()
            names = [gallery.id_of(row) for row in rows]
            unknown -= set(names) | {gallery.item_id_of(row) for row in rows}
            found[side, number] = [name for name in names if name not in before]
    if unknown:
        shown = sorted(unknown)[:_NAMED_IDS]
        raise DataError(
            "ids to delete are not in the index; nothing was deleted",
            got=f"{len(unknown)} of {len(ids)}: {', '.join(shown)}{' ...' if len(unknown) > len(shown) else ''}",
            expected="ids of items or captions of this index, one a line",
        )
    return found


def _write_deleted(target: Store, gone: Mapping[tuple[str, int], list[str]]) -> PartRecord:
    rows = sorted((side, number, name) for (side, number), names in gone.items() for name in set(names))
    table = pa.table(
        {
            "side": [row[0] for row in rows],
            "id": [row[2] for row in rows],
            "segment": [row[1] for row in rows],
        },
        schema=DELETED_SCHEMA,
    )
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, DELETED_SCHEMA) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    # A name of its own: readers of the version before keep theirs.
    name = f"{DELETED}/{hashlib.sha256(data).hexdigest()[:16]}.arrow"
    target.write_bytes(name, data)
    return part_record(target, name, rows=len(rows))


def _captions(images: SideIndex) -> dict[str, tuple[str, ...]]:
    return {
        images.segments[number].id_of(row): images.segments[number].captions_of(row)
        for number in range(len(images.segments))
        for row in images.alive(number).nonzero()[0].tolist()
    }
