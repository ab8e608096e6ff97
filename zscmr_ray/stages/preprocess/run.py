"""The preprocess stage: what is read, what it depends on, what its manifest says."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zscmr_ray.claim import Update
from zscmr_ray.config import Config
from zscmr_ray.manifest import TALLY, Manifest, StageKey, input_fingerprint
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.stages.plane.chunks import EncoderBuilder, Shard, Source
from zscmr_ray.stages.plane.directory import run_directory
from zscmr_ray.stages.preprocess import features
from zscmr_ray.stages.preprocess.coverage import coverage_line
from zscmr_ray.stages.shards.inputs import find_input, find_listed
from zscmr_ray.stages.shards.source import PixelSpec, ShardSource
from zscmr_ray.storage import Store

if TYPE_CHECKING:
    from zscmr_ray.stages.plane.forecast import Probe
    from zscmr_ray.stages.plane.run import PlaneJob

STAGE = "preprocess"


@dataclass(frozen=True)
class PreprocessPlan:
    """The shards of a run, what its backbones are, and its key."""

    input: Store
    shards: list[Shard]
    info: dict[str, Any]
    key: StageKey


def run_preprocess(
    config: Config, *, overwrite: bool = False, update: Update | None = None, probe: Probe | None = None
) -> StageResult:
    """Turn the shards of `data.input_uri` into pairs with cached features, resuming by shard.

    `update` adds new shards to complete pairs, or does those with rejected rows again; the end says how far off an
    estimate from `probe` was. Needs a running Ray unless everything is there already. Raises DataError naming shards
    that could not be read, after all others were committed; RefusedError when the directory belongs to other settings
    or input, or to another driver.
    """
    plan, store = plan_preprocess(config), stage_store(config, STAGE)

    def prepare() -> PlaneJob:
        return replace(preprocess_job(config, plan), probe=probe)

    manifest, skipped = run_directory(
        store, plan.key, prepare, info=plan.info, overwrite=overwrite, update=update
    )
    if not skipped:
        _print_rejects(manifest)
        if config.data.caption_classes != "none":
            print(f"{STAGE}: {coverage_line(store, manifest)}", file=sys.stderr)
        _print_unknown_words(manifest)
    return _result(store, manifest, skipped=skipped)


def plan_preprocess(config: Config) -> PreprocessPlan:
    """Find the shards and describe the backbones; raises DataError and ConfigError for what is missing."""
    # Here and not above: torch costs seconds, and decode workers import this package too.
    from zscmr_ray.stages.preprocess.encoder import describe_backbones

    store, files = find_input(config.data.input_uri)
    found = find_listed(files, config.data, store=store)
    _print_layout(found.facts)
    is_features = config.data.format == features.FORMAT
    info = (
        features.describe_features(config.data)
        if is_features
        else describe_backbones(config.preprocess, config.data.modality)
    )
    key = StageKey(
        stage=STAGE,
        config=config.stage_config("data", STAGE)
        | {name: info[name]["weights_sha256"] for name in ("image_backbone", "text_backbone") if info[name]},
        input_fingerprint=input_fingerprint(files),
    )
    return PreprocessPlan(store, found.shards, info | found.facts, key)


def preprocess_job(config: Config, plan: PreprocessPlan) -> PlaneJob:
    """The plan as work for the plane, into the run's own directory; needs a Ray where classes are capped."""
    from zscmr_ray.stages.plane.run import PlaneJob
    from zscmr_ray.stages.preprocess.encoder import BuildPairEncoder

    section, shards, info = config.preprocess, plan.shards, plan.info
    if config.data.max_items_per_class is not None:
        from zscmr_ray.stages.shards.cap import cap_classes

        shards = cap_classes(plan.input, config.data, shards, stage=STAGE, cpus=section.decode_cpus)
    provenance = {"stage": STAGE, "config_hash": plan.key.config_hash} | _provenance(info)
    build: EncoderBuilder = BuildPairEncoder(section, provenance, config.data.modality)
    source: Source = _pixel_source(config, plan)
    if config.data.format == features.FORMAT:
        source, build = (
            features.FeatureSource(plan.input, config.data),
            features.BuildFeaturePairs(provenance),
        )
    return PlaneJob(
        stage=STAGE,
        store=stage_store(config, STAGE),
        shards=shards,
        source=source,
        build_encoder=build,
        plane=section,
        autoscales=config.ray.autoscales,
    )


def _pixel_source(config: Config, plan: PreprocessPlan) -> ShardSource:
    section, image = config.preprocess, plan.info["image_backbone"]
    spec = image["spec"] if image else None
    return ShardSource(
        input=plan.input,
        data=config.data,
        pixels=PixelSpec(spec["size_px"], spec["crop_fraction"], spec["interpolation"]) if spec else None,
        chunk_rows=section.chunk_rows,
        thumbnail_px=section.thumbnail_px,
        keep_images=section.keep_images,
    )


def _provenance(info: dict[str, object]) -> dict[str, object]:
    """The manifest's facts that also stand in every file: all but the long list of class names and a layout's counts."""
    info = {name: value for name, value in info.items() if name != "layout"}
    teacher = info["teacher"]
    if isinstance(teacher, dict):
        teacher = {name: value for name, value in teacher.items() if name != "class_names"}
    return info | {"teacher": teacher}


def _print_layout(facts: dict[str, Any]) -> None:
    if not facts:
        return
    layout = facts["layout"]
    listed = ", ".join(f"{count} in {group}" for group, count in layout["rows"].items())
    print(f"{STAGE}: {layout['name']}: {listed}", file=sys.stderr)
    for reason, count in layout["left_out"].items():
        print(f"{STAGE}: {layout['name']}: left out {count}: {reason}", file=sys.stderr)
    for remark in layout["remarks"]:
        print(f"{STAGE}: {layout['name']}: {remark}", file=sys.stderr)


def _print_rejects(manifest: Manifest) -> None:
    codes = {
        name.removeprefix("rejected_"): count
        for name, count in manifest.counts.items()
        if name.startswith("rejected_")
    }
    if codes:
        listed = ", ".join(f"{count} {code}" for code, count in codes.items())
        print(f"{STAGE}: rejected {listed} (reasons in rejected/)", file=sys.stderr)


def _print_unknown_words(manifest: Manifest) -> None:
    words, unknown = (manifest.counts.get(f"{TALLY}{name}", 0) for name in ("words", "words_unknown"))
    if unknown:
        share = f"{unknown} of {words} caption words ({100 * unknown / words:.1f}%)"
        print(f"{STAGE}: {share} have no word vector and share the mean of all", file=sys.stderr)


def _result(store: Store, manifest: Manifest, *, skipped: bool) -> StageResult:
    return StageResult(STAGE, store.uri, skipped=skipped, counts=manifest.counts, info=manifest.info)
