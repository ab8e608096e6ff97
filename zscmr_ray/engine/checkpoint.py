"""Self-describing checkpoints: the trained weights and everything needed to use them, in one directory.

    model.safetensors   the alignment network's weights, and the trained ones of its backbones where some are (frozen
                        weights are named and hashed, never saved)
    meta.json           CheckpointMeta: method, architecture, fingerprint, backbones, score settings, selection
    config.json         the configuration that trained it
    split.json          the class split it was trained on (null: trained without classes)

The fingerprint (DESIGN 2, Hashes) is recomputed from what was read: one wrong byte of weights, or a meta.json edited
by hand, is refused. Not the resume state of a training in progress: that is engine/resume.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import hash_json
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.models.build import build_model
from zscmr_ray.schema import SCHEMA_VERSION
from zscmr_ray.storage import Store

if TYPE_CHECKING:
    from zscmr_ray.models.dual_encoder import DualEncoder

WEIGHTS = "model.safetensors"
META = "meta.json"
CONFIG = "config.json"
SPLIT = "split.json"
FILES = (WEIGHTS, META, CONFIG, SPLIT)


class BackboneRecord(BaseModel):
    """A network that is not in the checkpoint: where it comes from and the sha256 its weights must have.

    Of one whose last `trained_blocks` were trained the checkpoint holds these: `weights_sha256` is then that of the trained
    network, `untrained_sha256` that of the one that is installed and that cached features came from.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    weights_sha256: str
    num_channels: int
    trained_on: str = ""
    trained_blocks: int | str | None = None
    untrained_sha256: str | None = None

    @property
    def installed_sha256(self) -> str:
        """The hash of the weights that are installed, before any training here."""
        return self.untrained_sha256 or self.weights_sha256


class BlockRecord(BaseModel):
    """A named range of a vector's columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    start: int
    stop: int


class CheckpointMeta(BaseModel):
    """What a checkpoint says about itself. `config` and `split` live in files of their own beside meta.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    zscmr_schema: int = SCHEMA_VERSION
    architecture: dict[str, Any]
    fingerprint: str = ""
    blocks: tuple[BlockRecord, ...]
    label_temperature: float
    label_weight: float
    image_backbone: BackboneRecord
    text_backbone: BackboneRecord
    teacher: dict[str, Any] | None
    preprocessing: dict[str, Any]
    region_grid: int
    max_tokens: int
    selection: dict[str, Any]
    recipe: str
    config: dict[str, Any]
    split: dict[str, Any] | None

    @property
    def method(self) -> str:
        """The alignment method's name."""
        return str(self.architecture["method"])


def model_fingerprint(tensors: dict[str, Tensor], meta: CheckpointMeta) -> str:
    """Return the sha256 (64 hex) of all that decides a vector: preprocessing, backbones, head tensors, blocks, tau.

    `label_weight` is left out: it sits on the query, and one index serves every value of it.
    """
    return hash_json(
        {
            "preprocessing": meta.preprocessing,
            "backbones": [
                [record.id, record.weights_sha256] for record in (meta.image_backbone, meta.text_backbone)
            ],
            "region_grid": meta.region_grid,
            "max_tokens": meta.max_tokens,
            "architecture": meta.architecture,
            "tensors": {name: _describe(tensor) for name, tensor in tensors.items()},
            "blocks": [block.model_dump() for block in meta.blocks],
            "label_temperature": meta.label_temperature,
        }
    )


def save_checkpoint(store: Store, model: AlignmentModel, meta: CheckpointMeta) -> CheckpointMeta:
    """Write the four files, weights first; returns the meta with its fingerprint filled in.

    The bytes depend on the weights and the meta only.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    signed = meta.model_copy(update={"fingerprint": model_fingerprint(tensors, meta)})
    store.write_bytes(WEIGHTS, safetensors.torch.save(tensors))
    store.write_json(CONFIG, signed.config)
    store.write_json(SPLIT, signed.split)
    store.write_json(META, signed.model_dump(mode="json", exclude={"config", "split"}))
    return signed


def read_meta(store: Store) -> CheckpointMeta:
    """Read what a checkpoint says about itself, weights unread; DataError when it is missing or unreadable."""
    values = store.read_json(META) | {"config": store.read_json(CONFIG), "split": store.read_json(SPLIT)}
    try:
        return CheckpointMeta.model_validate(values)
    except ValidationError as error:
        raise DataError(
            "unreadable checkpoint",
            got=f"{store.uri}/{META}: {error.errors()[0]['msg']} at {error.errors()[0]['loc']}",
            expected=f"the files written by `zscmr train`, schema {SCHEMA_VERSION}",
            remedy="train again with --overwrite",
        ) from error


def load_checkpoint(store: Store, *, device: str = "cpu") -> tuple[AlignmentModel, CheckpointMeta]:
    """Load a trained alignment network in eval mode, and its meta.

    Raises DataError when files are missing or torn, RefusedError when the weights are not those that were saved.
    """
    meta = read_meta(store)
    try:
        tensors = safetensors.torch.load(store.read_bytes(WEIGHTS))
    except safetensors.SafetensorError as error:
        raise DataError(
            "unreadable weights",
            got=f"{store.uri}/{WEIGHTS}: {error}",
            expected="a whole safetensors file",
            remedy="restore the file, or train again with --overwrite",
        ) from error
    found = model_fingerprint(tensors, meta)
    if found != meta.fingerprint:
        raise RefusedError(
            "the checkpoint is not the one that was saved: its fingerprint differs",
            got=found[:12],
            expected=f"{meta.fingerprint[:12]} (meta.json of {store.uri})",
            remedy="restore the directory as `zscmr train` wrote it, or train again with --overwrite",
        )
    model = build_model(meta.architecture)
    model.load_state_dict(tensors)
    model.label_temperature = model.network.label_temperature = meta.label_temperature
    return model.to(device).eval(), meta


def load_dual_encoder(
    store: Store, *, device: str = "cpu", sides: Collection[str] = ("image", "text")
) -> tuple[DualEncoder, CheckpointMeta]:
    """Load a checkpoint with the frozen backbones it names, from pixels and captions to vectors.

    A backbone whose side is not among `sides` is left out (cached features need none).

    Raises as `load_checkpoint`, and RefusedError when an installed backbone has other weights than in training.
    """
    # Imported here: training reads and writes checkpoints too, and need not pay for the backbones' libraries.
    from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
    from zscmr_ray.models.dual_encoder import DualEncoder
    from zscmr_ray.models.tuned import TunedModel

    model, meta = load_checkpoint(store, device=device)
    image, text = model.served_backbones() if isinstance(model, TunedModel) else (None, None)
    if "image" in sides and image is None:
        image = load_image_backbone(meta.image_backbone.id, device=device)
        check_backbone(image.weights_sha256, meta.image_backbone)
    if "text" in sides and text is None:
        text = load_text_backbone(meta.text_backbone.id, device=device, max_tokens=meta.max_tokens)
        check_backbone(text.weights_sha256, meta.text_backbone)
    return DualEncoder(image, text, model, region_grid=meta.region_grid), meta


def check_backbone(weights_sha256: str, record: BackboneRecord) -> None:
    """Refuse a backbone whose weights differ from those the checkpoint (or the cached features) came from."""
    if weights_sha256 != record.weights_sha256:
        raise RefusedError(
            f"the installed backbone {record.id} has other weights than in training",
            got=f"sha256 {weights_sha256[:12]}",
            expected=f"sha256 {record.weights_sha256[:12]}",
            remedy="install the backbone the checkpoint was trained with, or train again",
        )


def _describe(tensor: Tensor) -> dict[str, Any]:
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
