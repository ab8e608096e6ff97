"""The clip-retrieval layout to an embeddings directory that `zscmr index` takes: a part per numbered file.

Vectors become unit blocks in half precision; rows that cannot (zero or not finite vectors, missing or repeated ids)
are in `rejected/` with their reason. Columns that our tables have no place for are named in the manifest. One numbered
file is `part_import.py`, one row `incoming.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from zscmr_ray.claim import open_stage
from zscmr_ray.manifest import Manifest, StageKey
from zscmr_ray.progress import Progress
from zscmr_ray.schema import part_name
from zscmr_ray.stages import StageResult
from zscmr_ray.stages.convert.foreign import SourceFacts, read_source
from zscmr_ray.stages.convert.layout import NumberedFiles, find_files
from zscmr_ray.stages.convert.part_import import STAGE, PartImport, Shape
from zscmr_ray.stages.plane.chunks import Shard
from zscmr_ray.stages.plane.commit import valid_commits
from zscmr_ray.stages.plane.finish import clear_bookkeeping, finish_stage
from zscmr_ray.storage import Store


def import_clip_retrieval(
    source: Store,
    target: Store,
    *,
    model_name: str | None = None,
    id_column: str | None = None,
    overwrite: bool = False,
) -> StageResult:
    """Write embeddings from a clip-retrieval directory, resuming by part.

    `id_column` names the metadata column with the ids; without it `item_id`, `id`, `image_path`, else the row's number.
    Raises DataError for a broken layout, ConfigError when no model is named, RefusedError when the target holds
    something else.
    """
    files = find_files(source)
    shape = Shape(source, files[0], id_column=id_column)
    facts = read_source(source, files, model_name=model_name, dimension=shape.dimension)
    config = {
        "from": "clip-retrieval",
        "fingerprint": facts.vectors["fingerprint"],
        "id_column": shape.id_column,
    }
    key = StageKey(stage=STAGE, config=config, input_fingerprint=facts.contents)
    with open_stage(target, key, overwrite=overwrite) as claim:
        if claim.complete is not None:
            clear_bookkeeping(target)
            return _result(target, claim.complete, skipped=True)
        shards = _shards(files, facts)
        commits = valid_commits(target, shards)
        with Progress(STAGE, total=None, unit="rows") as progress:
            for numbered, shard in zip(files, shards, strict=True):
                if shard.part not in commits:
                    commits[shard.part] = PartImport(source, claim, numbered, shard, shape, facts).write()
                progress.advance(commits[shard.part].counts["in"])
        info = facts.vectors | {
            "model": facts.model,
            "layout": "clip-retrieval",
            "id_column": shape.id_column,
            "left_out": shape.unused_columns,
            "source_contents": facts.contents,
        }
        return _result(target, finish_stage(claim, commits.values(), info=info), skipped=False)


def _shards(files: Sequence[NumberedFiles], facts: SourceFacts) -> list[Shard]:
    """A part per number: named as in the export it came from, else after the number."""
    shards = []
    for place, numbered in enumerate(files):
        ours = facts.part_names
        part = ours[place] if ours else part_name(numbered.number)
        shards.append(Shard(part, numbered.number, numbered.size_bytes))
    return shards


def _result(target: Store, manifest: Manifest, *, skipped: bool) -> StageResult:
    return StageResult(STAGE, target.uri, skipped=skipped, counts=manifest.counts, info=manifest.info)
