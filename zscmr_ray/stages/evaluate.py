"""Evaluate a trained checkpoint on seen and unseen classes, beside chance, CCA and ConSE; write the report.

What it is: reads `pairs/` and `checkpoint/`, encodes the rows of the protocol, calls `retrieval/`, writes report.json,
examples.json and report.html, the manifest last. What it is not: a place where anything is selected: lambda and tau
come from the checkpoint (or the configuration, which the report then says).
"""

from __future__ import annotations

from typing import Any

from zscmr_ray.claim import Claim, open_stage
from zscmr_ray.config import Config
from zscmr_ray.engine.checkpoint import CheckpointMeta, load_checkpoint
from zscmr_ray.errors import RefusedError
from zscmr_ray.manifest import (
    Manifest,
    StageKey,
    hash_json,
    part_record,
    require_manifest,
)
from zscmr_ray.models.base import LABEL
from zscmr_ray.models.build import ENCODERS
from zscmr_ray.retrieval.protocol import ClassGroups, evaluate_method
from zscmr_ray.retrieval.searches import DIRECTIONS, Towers
from zscmr_ray.stages import StageResult, require_images, require_pairs, stage_store
from zscmr_ray.stages.evaluate_examples import make_examples
from zscmr_ray.stages.measure.baselines import Baseline, make_baselines
from zscmr_ray.stages.measure.external import (
    External,
    external_note,
    external_rows,
    find_externals,
    fingerprints,
)
from zscmr_ray.stages.measure.facts import (
    class_groups,
    class_split,
    describe_data,
    describe_model,
    method_name,
    notes,
    selection_note,
)
from zscmr_ray.stages.measure.methods import model_rows, used_label_weight
from zscmr_ray.stages.measure.rows import (
    EncodedRows,
    choose_ids,
    encode_rows,
    read_pairs_table,
    read_thumbnails,
)
from zscmr_ray.stages.measure.unseen import Looks, count_unseen
from zscmr_ray.stages.report import EXAMPLES, REPORT, plain_values, render_report
from zscmr_ray.stages.report.tables import main_method, text_summary
from zscmr_ray.storage import Store


def run_evaluate(config: Config, *, overwrite: bool = False) -> StageResult:
    """Evaluate the run's checkpoint on its pairs and write the report; returns at once when it is there.

    Raises DataError when an earlier stage is missing or no test row is left, RefusedError for an untrained checkpoint or
    one trained on features of other backbones.
    """
    pairs_store, checkpoint_store, store = (
        stage_store(config, stage) for stage in ("preprocess", "train", "evaluate")
    )
    pairs, trained = require_pairs(pairs_store), require_manifest(checkpoint_store, "train")
    externals = find_externals(config.evaluate.embeddings)
    key = StageKey(
        stage="evaluate",
        config=config.stage_config("evaluate"),
        input_fingerprint=hash_json([pairs.fingerprint, trained.fingerprint, *fingerprints(externals)]),
    )
    with open_stage(store, key, overwrite=overwrite) as claim:
        done = claim.complete
        if done is not None:
            return StageResult("evaluate", store.uri, skipped=True, counts=done.counts, info=done.info)
        return _evaluate(config, claim, pairs, externals)


def _evaluate(config: Config, claim: Claim, pairs: Manifest, externals: list[External]) -> StageResult:
    pairs_store, checkpoint_store = (stage_store(config, stage) for stage in ("preprocess", "train"))
    model, meta = load_checkpoint(checkpoint_store)
    check_inputs(pairs, meta)
    require_images(pairs, meta.architecture.get(ENCODERS, ()))
    groups = class_groups(meta)
    split = class_split(meta)
    table = read_pairs_table(pairs_store, pairs, split)
    ids, num_without_group = choose_ids(table, groups)
    rows = encode_rows(
        pairs_store,
        pairs,
        model,
        ids=ids,
        batch_rows=config.evaluate.batch_rows,
        region_grid=meta.region_grid,
        split=split,
    )
    looks = count_unseen(Store(config.data.run_uri), meta.fingerprint) if groups.unseen else Looks(0, 0)
    mine = model_rows(model, meta, rows, config.evaluate)
    others = [
        *make_baselines(rows, groups, pairs.info),
        *external_rows(externals, rows, label_weight=config.evaluate.label_weight),
    ]
    report = make_report(
        config,
        rows=rows,
        groups=groups,
        meta=meta,
        methods=[*mine, *others],
        facts={
            "num_without_group": num_without_group,
            "teacher_names": pairs.info["teacher"] and pairs.info["teacher"]["class_names"],
            "looks": looks,
            "pairs_fingerprint": pairs.fingerprint,
            "notes": external_note(externals),
        },
    )
    towers = next(one.towers for one in mine if one.key == report["main"])
    assert isinstance(towers, Towers), "the main row is one by vector"
    examples = make_examples(
        rows,
        towers,
        groups,
        num_queries=config.evaluate.num_gallery_queries,
        crop_fraction=float(pairs.info["image_backbone"]["spec"]["crop_fraction"]),
        read_thumbnails=lambda names: read_thumbnails(pairs_store, pairs, names),
    )
    return _write(claim, report, examples)


def check_inputs(pairs: Manifest, meta: CheckpointMeta) -> None:
    """Refuse a checkpoint that was never trained, or whose backbones are not those of the cached features."""
    if int(meta.selection.get("steps", 0)) == 0:
        raise RefusedError(
            "the checkpoint is untrained: its numbers would be those of random weights",
            got=f"{meta.fingerprint[:12]} with 0 training steps",
            expected="a checkpoint written by `zscmr train`",
            remedy="train first",
        )
    for side, record in (("image_backbone", meta.image_backbone), ("text_backbone", meta.text_backbone)):
        found = pairs.info[side]["weights_sha256"]
        if found != record.installed_sha256:
            raise RefusedError(
                f"the pairs' features come from another {side.replace('_', ' ')} than the checkpoint's",
                got=f"pairs: {pairs.info[side]['id']} {found}",
                expected=f"checkpoint: {record.id} {record.installed_sha256}",
                remedy="preprocess and train with the same backbones",
            )


def make_report(
    config: Config,
    *,
    rows: EncodedRows,
    groups: ClassGroups,
    meta: CheckpointMeta,
    methods: list[Baseline],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Return report.json: the numbers of every method and everything that says how they came about."""
    section = config.evaluate
    has_labels = LABEL in {block.name for block in meta.blocks}
    report = {
        "title": f"Zero-shot image–text retrieval: {method_name(meta)}",
        "model": describe_model(meta),
        "data": describe_data(
            rows,
            groups,
            meta,
            num_without_group=facts["num_without_group"],
            teacher_names=facts["teacher_names"],
        )
        | {"pairs_fingerprint": facts["pairs_fingerprint"]},
        "settings": {
            "num_resamples": section.bootstrap_resamples,
            "seed": section.seed,
            "label_weight": used_label_weight(meta, section) if has_labels else 0.0,
            "label_temperature": meta.label_temperature,
            "label_weight_from_config": section.label_weight is not None,
        },
        "selection": meta.selection,
        "selection_note": selection_note(meta),
        "unseen_evaluations": facts["looks"].with_model,
        "unseen_evaluations_in_run": facts["looks"].in_all,
        "methods": [
            {"key": one.key, "name": one.name}
            | evaluate_method(
                one.towers,
                rows.corpus,
                groups,
                num_resamples=section.bootstrap_resamples,
                seed=section.seed,
            )
            for one in methods
            if one.towers is not None
        ],
        "not_run": [{"name": one.name, "reason": one.reason} for one in methods if one.towers is None],
        "notes": [*notes(groups), *facts["notes"]],
    }
    report["main"] = main_method(report)["key"]
    return plain_values(report)


def _write(claim: Claim, report: dict[str, Any], examples: dict[str, Any]) -> StageResult:
    """Write the documents, the page, and the manifest last.

    The page is in no checksum: it is rendered again when queries of the service are added to it.
    """
    store, key = claim.store, claim.key
    store.write_json(REPORT, report)
    store.write_json(EXAMPLES, plain_values(examples))
    page_uri = render_report(store)
    conditions = main_method(report)["classes"].values()
    counts = {
        "methods": len(report["methods"]),
        "items": report["data"]["num_items"],
        "queries": sum(
            one[name]["num_queries"]
            for one in conditions
            for name in DIRECTIONS
            if "num_queries" in one[name]
        ),
    }
    info = {"page": page_uri.rsplit("/", 1)[-1], "summary": text_summary(report)}
    manifest = Manifest(
        key=key,
        config_hash=key.config_hash,
        counts=counts,
        parts=[part_record(store, name) for name in (EXAMPLES, REPORT)],
        info=info,
    )
    claim.finish(manifest)
    return StageResult("evaluate", store.uri, skipped=False, counts=counts, info=info)
