"""The preprocess stage: what is read, what it depends on, what its manifest says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from zscmr_ray.claim import Update
from zscmr_ray.config import Config
from zscmr_ray.manifest import Manifest, StageKey, input_fingerprint
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.stages.plane.directory import run_directory
from zscmr_ray.stages.shards.inputs import find_input, find_shards
from zscmr_ray.stages.shards.source import PixelSpec, ShardSource
from zscmr_ray.storage import Store

if TYPE_CHECKING:
    from zscmr_ray.stages.plane.run import PlaneJob

STAGE = "preprocess"


def run_preprocess(config: Config, *, overwrite: bool = False, update: Update | None = None) -> StageResult:
    """Turn the shards of `data.input_uri` into pairs with cached features, resuming by shard.

    `update` adds new shards to complete pairs, or does those with rejected rows again. Needs a running Ray unless
    everything is there already. Raises DataError naming shards that could not be read, after all others were
    committed; RefusedError when the directory belongs to other settings or input, or to another driver.
    """
    # Here and not above: torch costs seconds, and decode workers import this package too.
    from zscmr_ray.stages.preprocess.encoder import BuildPairEncoder, describe_backbones

    section = config.preprocess
    source_store, files = find_input(config.data.input_uri)
    shards = find_shards(files, config.data)
    modality = config.data.modality
    info = describe_backbones(section, modality)
    key = StageKey(
        stage=STAGE,
        config=config.stage_config("data", STAGE)
        | {name: info[name]["weights_sha256"] for name in ("image_backbone", "text_backbone") if info[name]},
        input_fingerprint=input_fingerprint(files),
    )
    store = stage_store(config, STAGE)

    def prepare() -> PlaneJob:
        from zscmr_ray.stages.plane.run import PlaneJob

        all_shards = shards
        if config.data.max_items_per_class is not None:
            from zscmr_ray.stages.shards.cap import cap_classes

            all_shards = cap_classes(source_store, config.data, shards, stage=STAGE, cpus=section.decode_cpus)
        spec = info["image_backbone"]["spec"] if info["image_backbone"] else None
        source = ShardSource(
            input=source_store,
            data=config.data,
            pixels=PixelSpec(spec["size_px"], spec["crop_fraction"], spec["interpolation"]) if spec else None,
            chunk_rows=section.chunk_rows,
            thumbnail_px=section.thumbnail_px,
            keep_images=section.keep_images,
        )
        provenance = {"stage": STAGE, "config_hash": key.config_hash} | _provenance(info)
        return PlaneJob(
            stage=STAGE,
            store=store,
            shards=all_shards,
            source=source,
            build_encoder=BuildPairEncoder(section, provenance, modality),
            plane=section,
        )

    manifest, skipped = run_directory(store, key, prepare, info=info, overwrite=overwrite, update=update)
    if not skipped:
        _print_rejects(manifest)
    return _result(store, manifest, skipped=skipped)


def _provenance(info: dict[str, object]) -> dict[str, object]:
    """The manifest's facts that also stand in every file: all but the long list of class names."""
    teacher = info["teacher"]
    if isinstance(teacher, dict):
        teacher = {name: value for name, value in teacher.items() if name != "class_names"}
    return info | {"teacher": teacher}


def _print_rejects(manifest: Manifest) -> None:
    codes = {
        name.removeprefix("rejected_"): count
        for name, count in manifest.counts.items()
        if name.startswith("rejected_")
    }
    if codes:
        listed = ", ".join(f"{count} {code}" for code, count in codes.items())
        print(f"{STAGE}: rejected {listed} (reasons in rejected/)", file=sys.stderr)


def _result(store: Store, manifest: Manifest, *, skipped: bool) -> StageResult:
    return StageResult(STAGE, store.uri, skipped=skipped, counts=manifest.counts, info=manifest.info)
