"""The embed stage: rows of a plan through the model, parts, the manifest last."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from zscmr_ray.claim import Update
from zscmr_ray.config import Config
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.stages.plane.directory import run_directory

if TYPE_CHECKING:
    from zscmr_ray.stages.embed.plan import EmbedPlan
    from zscmr_ray.stages.plane.forecast import Probe
    from zscmr_ray.stages.plane.run import PlaneJob

STAGE = "embed"


def run_embed(
    config: Config, *, overwrite: bool = False, update: Update | None = None, probe: Probe | None = None
) -> StageResult:
    """Embed the run's pairs, or raw shards where it has none, with `embed.model`, resuming by part.

    `update` adds new parts to complete embeddings, or does those with rejected rows or changed pairs again; the end
    says how far off an estimate from `probe` was. Needs a running Ray unless everything is there already. Raises
    RefusedError, with both hashes, when cached features come from other backbones than the model's and no image was
    kept; DataError naming shards that could not be read.
    """
    # Here and not above: torch costs seconds, and decode workers import this package too.
    from zscmr_ray.stages.embed.plan import plan_embed

    plan = plan_embed(config)
    store = stage_store(config, STAGE)
    spec = plan.facts.spec
    info = plan.describe() | {
        "model": plan.place.name,
        "sides": list(plan.sides),
        # What of a picture the model sees: where region weights lie.
        "crop": {"fit": spec.fit, "fraction": spec.crop_fraction},
    }

    def prepare() -> PlaneJob:
        print(f"{STAGE}: {plan.said}", file=sys.stderr)
        return replace(embed_job(config, plan), probe=probe)

    manifest, skipped = run_directory(store, plan.key, prepare, info=info, overwrite=overwrite, update=update)
    return StageResult(STAGE, store.uri, skipped=skipped, counts=manifest.counts, info=manifest.info)


def embed_job(config: Config, plan: EmbedPlan) -> PlaneJob:
    """The plan as work for the plane, into the run's own directory; needs a Ray where classes are capped."""
    from zscmr_ray.stages.embed.encoder import IMAGE, BuildVectorEncoder
    from zscmr_ray.stages.plane.run import PlaneJob

    section, shards = config.embed, plan.shards
    if plan.raw is not None and config.data.max_items_per_class is not None:
        from zscmr_ray.stages.shards.cap import cap_classes

        shards = cap_classes(plan.raw, config.data, shards, stage=STAGE, cpus=section.decode_cpus)
    provenance = {"stage": STAGE, "config_hash": plan.key.config_hash} | plan.describe()
    return PlaneJob(
        stage=STAGE,
        store=stage_store(config, STAGE),
        shards=shards,
        source=plan.source,
        build_encoder=BuildVectorEncoder(
            plan.place, plan.facts.fingerprint, plan.sides, section, plan.cached, provenance
        ),
        plane=section,
        item_output=IMAGE if IMAGE in plan.sides else plan.sides[0],
        max_encoders=plan.max_encoders,
        # Parts of pairs are known by their checksums, raw shards by their ETag or time only.
        redo_changed=plan.raw is None,
        autoscales=config.ray.autoscales,
    )
