"""Which model makes vectors (`embed.model`), for whoever needs one: embedding the corpus, encoding queries.

    checkpoint            this run's own
    <folder or URI>       another run, or its checkpoint/
    hf:<id or folder>     a pretrained dual encoder of Hugging Face, as it is

Facts first (the driver checks and writes them down), the model later and elsewhere (an actor, a replica); both sides
compare fingerprints. Not the models themselves: models/dual_encoder.py and models/pretrained_dual.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zscmr_ray.config.operator import OWN_CHECKPOINT
from zscmr_ray.engine.checkpoint import (
    META,
    BackboneRecord,
    BlockRecord,
    CheckpointMeta,
    load_dual_encoder,
    read_meta,
)
from zscmr_ray.errors import ConfigError, RefusedError
from zscmr_ray.models.backbones import HUGGING_FACE_PREFIX, ImageSpec
from zscmr_ray.models.build import scores_pairs
from zscmr_ray.models.dual_encoder import DualEncoder
from zscmr_ray.models.pretrained_dual import PretrainedDualEncoder, load_pretrained_dual
from zscmr_ray.storage import Store

SIDES = ("image", "text")
VectorModel = DualEncoder | PretrainedDualEncoder


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is: `name` as a manifest keeps it, and the checkpoint's store unless it is Hugging Face's."""

    name: str
    checkpoint: Store | None

    @property
    def source(self) -> str:
        """The model id or folder of a Hugging Face model."""
        return self.name.removeprefix(HUGGING_FACE_PREFIX)


@dataclass(frozen=True)
class ModelFacts:
    """What has to be known of a model without holding it: its identity, its vectors, how its input is made.

    `region_grid` is None for a model that embeds pictures whole; `meta` is a checkpoint's own description.
    """

    fingerprint: str
    blocks: tuple[BlockRecord, ...]
    label_temperature: float
    label_weight: float
    image_backbone: BackboneRecord
    text_backbone: BackboneRecord
    spec: ImageSpec
    region_grid: int | None
    max_tokens: int
    meta: CheckpointMeta | None

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.blocks[-1].stop

    @property
    def pair_regions(self) -> tuple[int, int] | None:
        """Shape [R, D] of the projected regions that scores of pairs read (IMFA); None for a method without such."""
        if self.meta is None or self.region_grid is None or not scores_pairs(self.meta.architecture):
            return None
        return self.region_grid**2, self.dimension

    def provenance(self) -> dict[str, Any]:
        """What every file of vectors says of its model; free of places."""
        backbones = {"image_backbone": self.image_backbone, "text_backbone": self.text_backbone}
        return {
            "fingerprint": self.fingerprint,
            "blocks": [block.model_dump() for block in self.blocks],
            "dimension": self.dimension,
            "label_temperature": self.label_temperature,
        } | {
            side: {"id": record.id, "weights_sha256": record.weights_sha256}
            for side, record in backbones.items()
        }


def find_model(name: str, *, own: Store) -> ModelPlace:
    """Resolve `embed.model` to a place; `own` is the run's checkpoint directory. Raises ConfigError."""
    if name == OWN_CHECKPOINT:
        return ModelPlace(name, own)
    if name.startswith(HUGGING_FACE_PREFIX):
        folder = Path(name.removeprefix(HUGGING_FACE_PREFIX))
        # Absolute: the index remembers it, and the service may start elsewhere.
        return ModelPlace(f"{HUGGING_FACE_PREFIX}{folder.resolve()}" if folder.is_dir() else name, None)
    store = find_checkpoint(name)
    if store is not None:
        return ModelPlace(store.uri, store)
    raise ConfigError(
        "no such model",
        got=f"embed.model={name}: no {META} in it, nor in checkpoint/ below it",
        expected="`checkpoint`, a run or its checkpoint/ (folder or URI), or hf:<id or folder>",
        remedy="--set embed.model=runs/<run>, or hf:openai/clip-vit-base-patch32",
    )


def find_checkpoint(name: str) -> Store | None:
    """The checkpoint at a folder or URI, or in `checkpoint/` below it."""
    candidates = (Store(name), Store(name).child("checkpoint"))
    return next((store for store in candidates if store.exists(META)), None)


def read_facts(place: ModelPlace) -> ModelFacts:
    """What there is to know of the model: a checkpoint's meta, or a Hugging Face model loaded for its hash."""
    if place.checkpoint is None:
        return _facts_of(load_pretrained_dual(place.source))
    meta = read_meta(place.checkpoint)
    return ModelFacts(
        fingerprint=meta.fingerprint,
        blocks=meta.blocks,
        label_temperature=meta.label_temperature,
        label_weight=meta.label_weight,
        image_backbone=meta.image_backbone,
        text_backbone=meta.text_backbone,
        spec=_spec(meta.preprocessing),
        region_grid=meta.region_grid,
        max_tokens=meta.max_tokens,
        meta=meta,
    )


def load_model(
    place: ModelPlace, *, device: str = "cpu", backbones: Collection[str] = SIDES, expected: str | None = None
) -> tuple[VectorModel, ModelFacts]:
    """Load the model on a device, of a checkpoint with the named backbones only (none for cached features).

    Raises as `load_dual_encoder` and `load_pretrained_dual`, and RefusedError when it is not the `expected` fingerprint.
    """
    model: VectorModel
    if place.checkpoint is None:
        model = load_pretrained_dual(place.source, device=device)
        facts = _facts_of(model)
    else:
        model, _ = load_dual_encoder(place.checkpoint, device=device, sides=backbones)
        facts = read_facts(place)
    if expected is not None and facts.fingerprint != expected:
        raise RefusedError(
            "the model is not the one that was meant",
            got=f"{place.name}: {facts.fingerprint}",
            expected=expected,
            remedy="the same model files on every node, or --overwrite after a change",
        )
    return model, facts


def _facts_of(model: PretrainedDualEncoder) -> ModelFacts:
    record = BackboneRecord(
        id=model.architecture, weights_sha256=model.weights_sha256, num_channels=model.blocks[-1].stop
    )
    return ModelFacts(
        fingerprint=model.fingerprint,
        blocks=tuple(BlockRecord(**asdict(block)) for block in model.blocks),
        label_temperature=1.0,
        label_weight=0.0,
        image_backbone=record,
        text_backbone=record,
        spec=model.image_backbone.spec,
        region_grid=None,
        max_tokens=model.text_backbone.max_tokens,
        meta=None,
    )


def _spec(preprocessing: Mapping[str, Any]) -> ImageSpec:
    """A checkpoint's `preprocessing` as the specification that it was written from."""
    triples = {name: tuple(preprocessing[name]) for name in ("mean", "std")}
    return ImageSpec(**{**preprocessing, **triples})
