"""One segment of an index from its embedding parts: written below a scratch folder, tuned, measured, then put in place.

What it is: plain work without Ray, the same in the driver's process and in a task. What it is not: the choice of
segments (run.py). Memory: one embedding part, the ids, labels and captions of the segment's rows, and for inverted
lists their quantised vectors.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.config import IndexSection
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import PartRecord, part_record
from zscmr_ray.progress import Progress
from zscmr_ray.retrieval.exact import ExactIndex, FloatArray, RowArray, recall_at_k
from zscmr_ray.retrieval.gallery import LISTS, Gallery, gallery_files, write_facts
from zscmr_ray.retrieval.gallery_write import write_gallery
from zscmr_ray.retrieval.index_kind import IndexPlan, choose_index
from zscmr_ray.retrieval.ivf import load_ivf
from zscmr_ray.retrieval.ivf_build import build_lists, write_lists
from zscmr_ray.retrieval.ivf_tuning import AskingRows, tune
from zscmr_ray.retrieval.scoring import LABEL, has_block, weigh_query
from zscmr_ray.stages.index.record import SIDES, SegmentRecord, VectorFacts, segment_folder
from zscmr_ray.storage import Store

RECALL_K = 10
# Even over the rows, so that the sample is the same on every machine. A flat index is only checked with them; of lists,
# one half tunes and the other measures (a standard error of .005 at a recall of .96).
FLAT_QUERIES, LIST_QUERIES = 100, 400
# A flat index has no favourite: both blocks in play.
_FLAT_LABEL_WEIGHT = 0.5


@dataclass(frozen=True)
class SegmentJob:
    """What a segment is made of. `caption_parts` are the text parts in which its images' captions are found."""

    source: Store
    target: Store
    number: int
    parts: Mapping[str, Sequence[PartRecord]]
    caption_parts: Sequence[PartRecord]
    facts: VectorFacts
    section: IndexSection

    @property
    def num_rows(self) -> int:
        """Rows of both sides."""
        return sum(part.rows for parts in self.parts.values() for part in parts)

    @property
    def sources(self) -> dict[str, str]:
        """The embedding parts by name, with their checksums."""
        return {part.name: part.sha256 for side in SIDES for part in self.parts[side]}


def build_segment(job: SegmentJob, *, quiet: bool = False) -> SegmentRecord:
    """Write, tune and measure a segment, and put its files in place.

    Raises DataError for torn parts, ids that occur twice and lost rows; RefusedError when the recall is too low.
    """
    with tempfile.TemporaryDirectory(prefix="zscmr-index-") as folder:
        scratch = Path(folder)
        with Progress(
            "index",
            total=None if quiet else job.num_rows,
            unit="rows",
            stream=io.StringIO() if quiet else None,
        ) as progress:
            rows, plans = _write_sides(job, scratch, progress)
        recall = measure_sides(scratch, plans, job.facts, job.section)
        return put_segment(
            job.target, job.number, scratch, plans, sources=job.sources, rows=rows, recall=recall
        )


def put_segment(
    target: Store,
    number: int,
    scratch: Path,
    plans: Mapping[str, IndexPlan],
    *,
    sources: Mapping[str, str],
    rows: Mapping[str, int],
    recall: Mapping[str, Mapping[str, float]],
) -> SegmentRecord:
    """Copy the written sides to their place below `target` and describe them."""
    records = []
    for side in plans:
        for name in sorted(gallery_files(scratch / side)):
            key = f"{segment_folder(side, number)}/{name}"
            target.put_file(key, scratch / side / name)
            records.append(part_record(target, key, rows=rows[side]))
    return SegmentRecord(
        number=number,
        sources=dict(sources),
        rows=dict(rows),
        kinds={
            side: {"kind": plan.kind, "quantizer": plan.quantizer, "num_lists": plan.num_lists}
            for side, plan in plans.items()
        },
        recall_at_10={direction: dict(by_weight) for direction, by_weight in recall.items()},
        parts=records,
    )


def plan_side(num_rows: int, dimension: int, section: IndexSection) -> IndexPlan:
    """The kind of index that so many rows get under the settings; ConfigError when nothing meets the bounds."""
    return choose_index(
        num_rows,
        dimension,
        kind=section.kind,
        quantizer=section.quantizer,
        max_memory_bytes=section.max_memory_bytes,
        max_latency_ms=section.max_latency_ms,
    )


def measure_sides(
    scratch: Path, plans: Mapping[str, IndexPlan], facts: VectorFacts, section: IndexSection
) -> dict[str, dict[str, float]]:
    """Build the lists of the sides that get some, and measure recall@10 per direction and label weight.

    Raises RefusedError, naming the direction, below `index.min_recall`.
    """
    galleries = {side: Gallery(scratch / side) for side in plans}
    recall: dict[str, dict[str, float]] = {}
    for answered, plan in plans.items():
        index = galleries[answered].index
        if plan.kind == "flat":
            found = {asked: _check_flat(galleries[asked].index, index, facts) for asked in plans}
        else:
            asking = {asked: _asking(galleries[asked].index, own=asked == answered) for asked in plans}
            found = _make_lists(scratch / answered, index, plan, asking, facts, section)
        recall |= {f"{asked}->{answered}": by_weight for asked, by_weight in found.items()}
    for direction, by_weight in recall.items():
        _refuse_low(direction, by_weight, section)
    return recall


def _make_lists(
    folder: Path,
    index: ExactIndex,
    plan: IndexPlan,
    asking: Mapping[str, AskingRows],
    facts: VectorFacts,
    section: IndexSection,
) -> dict[str, dict[str, float]]:
    own = np.unique(np.concatenate([rows.own_rows_Q for rows in asking.values()]))
    lists = build_lists(
        index.vectors_ND, num_lists=plan.num_lists, quantizer=plan.quantizer, left_out=own[own >= 0]
    )
    write_lists(folder / LISTS, lists)
    del lists
    tuning = tune(
        load_ivf(folder / LISTS, index, quantizer=plan.quantizer),
        asking,
        facts.blocks,
        target=section.target_recall,
    )
    write_facts(folder, quantizer=plan.quantizer, tuning=tuning)
    return {
        side: {f"{weight:g}": recall for weight, recall in by_weight.items()}
        for side, by_weight in tuning.recall.items()
    }


def _refuse_low(direction: str, by_weight: Mapping[str, float], section: IndexSection) -> None:
    weight = min(by_weight, key=lambda name: by_weight[name])
    if by_weight[weight] < section.min_recall:
        raise RefusedError(
            "the index finds too few of the true neighbours",
            got=f"recall@10 {by_weight[weight]:.4f} of {direction} at label weight {weight}",
            expected=f"index.min_recall={section.min_recall:g}",
            remedy="a finer quantiser (--set index.quantizer=sq8, or none), a higher index.target_recall, or "
            "--set index.kind=flat",
        )


def _check_flat(asked: ExactIndex, answered: ExactIndex, facts: VectorFacts) -> dict[str, float]:
    weight = _FLAT_LABEL_WEIGHT if has_block(facts.blocks, LABEL) else 0.0
    vectors_QD = _rows(asked, _even_rows(asked.num_rows, FLAT_QUERIES))
    queries_QD = weigh_query(vectors_QD, facts.blocks, label_weight=weight)
    return {f"{weight:g}": recall_at_k(answered, queries_QD, k=RECALL_K)}


def _asking(index: ExactIndex, *, own: bool) -> AskingRows:
    rows = _even_rows(index.num_rows, LIST_QUERIES)
    return AskingRows(_rows(index, rows), rows if own else np.full(len(rows), -1))


def _even_rows(num_rows: int, num: int) -> RowArray:
    return np.unique(np.linspace(0, num_rows - 1, min(num, num_rows)).astype(np.int64))


def _rows(index: ExactIndex, rows: RowArray) -> FloatArray:
    return np.array(index.vectors_ND[rows], np.float32)


def _write_sides(
    job: SegmentJob, scratch: Path, progress: Progress
) -> tuple[dict[str, int], dict[str, IndexPlan]]:
    rows: dict[str, int] = {}
    plans: dict[str, IndexPlan] = {}
    captions: dict[str, list[str]] = {}
    # Texts first: an image's captions are shown beside it and live in the text table only.
    for side in reversed(SIDES):
        parts = job.parts[side]
        if not parts:
            continue
        expected = sum(part.rows for part in parts)
        plans[side] = plan_side(expected, job.facts.dimension, job.section)
        if side == "image" and list(job.caption_parts) != list(job.parts["text"]):
            captions = _captions_of(job)
        tables = _tables(job.source, parts, captions if side == "text" else None, progress)
        rows[side] = write_gallery(
            scratch / side,
            tables,
            dimension=job.facts.dimension,
            captions=captions,
            half=plans[side].kind == "ivf",
        )
        if rows[side] != expected:
            raise DataError(
                f"rows of {side} were lost",
                got=rows[side],
                expected=f"{expected} (embeddings/manifest.json)",
            )
    return {side: rows.get(side, 0) for side in SIDES}, {side: plans[side] for side in SIDES if side in plans}


def _captions_of(job: SegmentJob) -> dict[str, list[str]]:
    """The captions of the segment's images, from text parts that are another segment's."""
    wanted: set[str] = set()
    for part in job.parts["image"]:
        wanted.update(
            pq.read_table(io.BytesIO(_verified(job.source, part)), columns=["id"])["id"].to_pylist()
        )
    captions: dict[str, list[str]] = {}
    with Progress("index", total=None, unit="captions", stream=io.StringIO()) as progress:
        for _ in _tables(job.source, job.caption_parts, captions, progress, wanted=wanted):
            pass
    return captions


def _tables(
    source: Store,
    parts: Sequence[PartRecord],
    captions: dict[str, list[str]] | None,
    progress: Progress,
    *,
    wanted: set[str] | None = None,
) -> Iterator[pa.Table]:
    """Each part's table, checksum verified; captions are collected by item on the way, in the order of their number."""
    numbered: dict[str, list[tuple[int, str]]] = {}
    for part in parts:
        table = pq.read_table(io.BytesIO(_verified(source, part)))
        if captions is not None:
            columns = (table.column(name).to_pylist() for name in ("id", "item_id", "caption"))
            for row_id, item_id, caption in zip(*columns, strict=True):
                if wanted is None or item_id in wanted:
                    numbered.setdefault(item_id, []).append((int(row_id.rpartition("#")[2]), caption))
        yield table
        progress.advance(table.num_rows)
    if captions is not None:
        captions.update({item: [text for _, text in sorted(pairs)] for item, pairs in numbered.items()})


def _verified(source: Store, part: PartRecord) -> bytes:
    data = source.read_bytes(part.name)
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise DataError(
            "a part is not the one its manifest describes",
            got=f"{source.uri}/{part.name}",
            expected=f"sha256 {part.sha256[:12]}",
            remedy="run `zscmr embed --overwrite`",
        )
    return data
