"""What an embedding run does before it does it: which model, which rows, from cached features or from pixels.

Everything that can be refused is refused here, in the driver, before a worker starts. Not the run: that is run.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from zscmr_ray.config import Config
from zscmr_ray.config.operator import OWN_CHECKPOINT
from zscmr_ray.engine.checkpoint import CheckpointMeta
from zscmr_ray.engine.vector_model import ModelFacts, ModelPlace, find_model, read_facts
from zscmr_ray.errors import ConfigError, DataError, RefusedError
from zscmr_ray.manifest import Manifest, StageKey, input_fingerprint, require_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed.encoder import IMAGE, TEXT, FeatureShapes
from zscmr_ray.stages.embed.source import COLUMNS, ROW_COLUMNS, FeatureSource, shards_of
from zscmr_ray.stages.plane.chunks import Shard, Source
from zscmr_ray.stages.shards.inputs import find_input, find_shards
from zscmr_ray.stages.shards.source import PixelSpec, ShardSource
from zscmr_ray.storage import Store

STAGE = "embed"
SIDES = {"pairs": (IMAGE, TEXT), "image": (IMAGE,), "text": (TEXT,)}
# Work that is worth one more encoder, whose start costs seconds: cached rows (a CPU embeds thousands of them a second),
# else bytes of shards with images or of texts alone.
_ROWS_PER_ENCODER, _BYTES_PER_ENCODER, _TEXT_BYTES_PER_ENCODER = 20_000, 32 << 20, 1 << 20


@dataclass(frozen=True)
class EmbedPlan:
    """A run's model, rows and key; `cached` = how the features lie in the rows, None = they hold pixels."""

    place: ModelPlace
    facts: ModelFacts
    sides: tuple[str, ...]
    shards: list[Shard]
    source: Source
    cached: FeatureShapes | None
    key: StageKey
    max_encoders: int
    raw: Store | None
    said: str

    def describe(self) -> dict[str, Any]:
        """What every file says of its vectors: the model's facts, and whether features came from the cache."""
        return self.facts.provenance() | {"features": "cached" if self.cached else "computed"}


def plan_embed(config: Config) -> EmbedPlan:
    """Decide model and rows. Raises DataError or ConfigError for what is missing, RefusedError for what does not fit."""
    own = stage_store(config, "train")
    place = find_model(config.embed.model, own=own)
    reads_pairs = _reads_pairs(config)
    if place.name == OWN_CHECKPOINT:
        require_manifest(own, "train")
    facts = read_facts(place)
    if config.embed.regions and facts.pair_regions is None:
        raise ConfigError(
            "this model has no regions to keep",
            got=f"embed.regions=true, method {facts.meta.architecture['method'] if facts.meta else place.name}",
            expected="a checkpoint of IMFA (method inn with fused attention), whose second stage reads them",
            remedy="--set embed.regions=false",
        )
    return _from_pairs(config, place, facts) if reads_pairs else _from_shards(config, place, facts)


def _reads_pairs(config: Config) -> bool:
    """Whether pairs are embedded: as `embed.source` says, and by itself when the run has them, finished or begun."""
    source, pairs = config.embed.source, stage_store(config, "preprocess")
    if source != "auto":
        return source == "pairs"
    if pairs.exists():
        return True
    if config.data.input_uri:
        return False
    raise DataError(
        "there is nothing to embed",
        got=f"no pairs in {pairs.uri}, and data.input_uri is empty",
        expected="the output of `zscmr preprocess`, or raw shards",
        remedy="zscmr embed --input <shards>, or run `zscmr preprocess` first",
    )


def _from_pairs(config: Config, place: ModelPlace, facts: ModelFacts) -> EmbedPlan:
    store, section = stage_store(config, "preprocess"), config.embed
    pairs = require_manifest(store, "preprocess")
    _check_input(config, pairs)
    sides, shards = SIDES[pairs.info.get("modality", "pairs")], shards_of(pairs)
    misfit = find_misfit(pairs.info, facts.meta, sides) if facts.meta else _no_cache(pairs, facts, sides)
    keeps_images = bool(pairs.key.config.get("preprocess", {}).get("keep_images"))
    if misfit is not None and IMAGE in sides and not keeps_images:
        raise misfit
    has_thumbnails = section.thumbnails and IMAGE in sides
    thumbnail = ("thumbnail",) if has_thumbnails else ()
    if misfit is None:
        cached = FeatureShapes(
            pairs.info["num_regions"],
            pairs.info["token_channels"],
            facts.region_grid if IMAGE in sides else None,
        )
        source = FeatureSource(store, (*COLUMNS, *thumbnail), section.chunk_rows)
        said = "features cached by preprocess are reused (backbone weights match)"
    else:
        cached = None
        image = ("image",) if IMAGE in sides else ()
        source = FeatureSource(
            store,
            (*ROW_COLUMNS, *image, *thumbnail),
            section.chunk_rows,
            pixels=_pixels(facts) if image else None,
            max_pixels=int(pairs.key.config["data"]["max_pixels"]) if image else 0,
            scaled_jpeg=bool(pairs.key.config["data"].get("scaled_jpeg")) if image else False,
        )
        said = "captions and kept images of the pairs are encoded anew (their features are another model's)"
    key = StageKey(
        stage=STAGE,
        config=config.stage_config(STAGE)
        | {"model": facts.fingerprint, "features": "cached" if cached else "computed"},
        input_fingerprint=pairs.fingerprint,
    )
    rows = sum(shard.num_rows or 0 for shard in shards)
    size_bytes = sum(shard.size_bytes for shard in shards)
    work = rows / _ROWS_PER_ENCODER if cached else size_bytes / _bytes_per_encoder(sides)
    return EmbedPlan(
        place, facts, sides, shards, source, cached, key, max(1, math.ceil(work)), raw=None, said=said
    )


def _from_shards(config: Config, place: ModelPlace, facts: ModelFacts) -> EmbedPlan:
    section, sides = config.embed, SIDES[config.data.modality]
    store, files = find_input(config.data.input_uri)
    shards = find_shards(files, config.data, store=store)
    thumbnail_px = config.preprocess.thumbnail_px if section.thumbnails and IMAGE in sides else None
    source = ShardSource(
        input=store,
        data=config.data,
        pixels=_pixels(facts) if IMAGE in sides else None,
        chunk_rows=section.chunk_rows,
        thumbnail_px=thumbnail_px,
    )
    key = StageKey(
        stage=STAGE,
        config=config.stage_config("data", STAGE)
        | {"model": facts.fingerprint, "features": "computed", "thumbnail_px": thumbnail_px},
        input_fingerprint=input_fingerprint(files),
    )
    work = sum(shard.size_bytes for shard in shards) / _bytes_per_encoder(sides)
    said = f"raw shards of {config.data.input_uri} are decoded and encoded (no pairs are needed)"
    return EmbedPlan(
        place, facts, sides, shards, source, None, key, max(1, math.ceil(work)), raw=store, said=said
    )


def find_misfit(info: dict[str, Any], meta: CheckpointMeta, sides: tuple[str, ...]) -> RefusedError | None:
    """Why the pairs' cached features are not those the checkpoint was trained on, naming both; None when they are."""
    for side in sides:
        name, record = f"{side}_backbone", getattr(meta, f"{side}_backbone")
        if info[name]["weights_sha256"] != record.weights_sha256:
            return _misfit(
                f"the pairs' features come from another {side} backbone than the checkpoint's",
                got=f"{info[name]['id']} {info[name]['weights_sha256']} (pairs)",
                expected=f"{record.id} {record.weights_sha256} (checkpoint)",
            )
    # A larger cached grid is pooled to the checkpoint's, as its training did.
    fits = {
        "region_grid": IMAGE not in sides or info["region_grid"] >= meta.region_grid,
        "max_tokens": TEXT not in sides or info["max_tokens"] == meta.max_tokens,
    }
    wrong = [name for name, does_fit in fits.items() if not does_fit]
    if not wrong:
        return None
    return _misfit(
        f"the pairs' {wrong[0]} is not the checkpoint's",
        got=f"{info[wrong[0]]} (pairs)",
        expected=f"{getattr(meta, wrong[0])} (checkpoint)",
    )


def _no_cache(pairs: Manifest, facts: ModelFacts, sides: tuple[str, ...]) -> RefusedError:
    side = f"{sides[0]}_backbone"
    return _misfit(
        "the pairs' features are not the model's, and their images were not kept",
        got=f"{pairs.info[side]['id']} {pairs.info[side]['weights_sha256']} (pairs)",
        expected=f"{facts.image_backbone.id} {facts.image_backbone.weights_sha256} (embed.model)",
    )


def _misfit(message: str, *, got: str, expected: str) -> RefusedError:
    return RefusedError(
        message,
        got=got,
        expected=expected,
        remedy="embed the raw shards (--set embed.source=shards --input <shards>), or preprocess the corpus into another "
        "run with the model's backbones, or with preprocess.keep_images=true",
    )


def _check_input(config: Config, pairs: Manifest) -> None:
    """Refuse to embed pairs for a user who named other shards; shards that are gone since are no matter."""
    if config.embed.source != "auto" or not config.data.input_uri:
        return
    try:
        _, files = find_input(config.data.input_uri)
    except DataError:
        return
    if input_fingerprint(files) != pairs.key.input_fingerprint:
        raise ConfigError(
            "the run has pairs, and they are not of data.input_uri",
            got=f"data.input_uri={config.data.input_uri}: other files than the pairs were made of",
            expected="the pairs' own input, or a choice",
            remedy="--set embed.source=shards with another --run to embed these shards; --set embed.source=pairs to "
            "embed the pairs",
        )


def _pixels(facts: ModelFacts) -> PixelSpec:
    spec = facts.spec
    return PixelSpec(spec.size_px, spec.crop_fraction, spec.interpolation, spec.fit)


def _bytes_per_encoder(sides: tuple[str, ...]) -> int:
    return _BYTES_PER_ENCODER if IMAGE in sides else _TEXT_BYTES_PER_ENCODER
