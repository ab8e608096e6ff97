"""A trained model for use in Python: pictures and texts to vectors, saved and loaded as Hugging Face's models are.

    model = ZeroShotRetriever.from_pretrained("runs/mine")          a run, its checkpoint/, an exported folder, s3://...
    model = ZeroShotRetriever.from_pretrained("hf:owner/name", revision="v1")
    scores_QN = model.similarity(model.encode_texts(["a red shoe"]), model.encode_images(pictures))

`huggingface_hub.ModelHubMixin` gives the vocabulary (`save_pretrained`, `push_to_hub`); its PyTorch variant is not used:
it falls back to a pickle, and looks any unknown name up on the network. Here an id has `hf:` before it, everything else
is a place that must exist, and of a repository only safetensors, JSON and tokenizer files are fetched.

Vectors are those that `zscmr embed` writes, before their rounding to half precision. No Ray, no service, no index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from PIL import Image

from zscmr_ray.config import Config, DataSection
from zscmr_ray.config.base import without_places
from zscmr_ray.data.captions import clean_captions
from zscmr_ray.data.decode import crop_pixels, decode_image
from zscmr_ray.data.records import ImageRejected
from zscmr_ray.engine.checkpoint import META, CheckpointMeta, save_checkpoint
from zscmr_ray.engine.vector_model import (
    ModelFacts,
    ModelPlace,
    VectorModel,
    find_checkpoint,
    find_model,
    load_model,
)
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.models.backbones import HUGGING_FACE_PREFIX, ImageSpec
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.models.dual_encoder import DualEncoder
from zscmr_ray.retrieval.scoring import Block, weigh_query
from zscmr_ray.storage import Store

FloatArray = npt.NDArray[np.float32]

CARD = "README.md"
# Weights, descriptions, vocabularies: all that a model of ours or a dual encoder of transformers is made of.
FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model", CARD)
# The sections of a configuration that made the model.
PUBLISHED = ("data", "split", "preprocess", "model", "loss", "optim", "train", "evaluate")
# Rows at a time, as embed takes them (a chunk, and the captions in it).
_IMAGE_ROWS, _TEXT_ROWS = 64, 256
_MAX_PIXELS = DataSection().max_pixels


class ZeroShotRetriever(
    ModelHubMixin, library_name="zscmr_ray", tags=["zero-shot-retrieval", "image-text-retrieval"]
):
    """A dual encoder of images and texts in one space; make it with `from_pretrained`."""

    def __init__(self, model: VectorModel, facts: ModelFacts, *, card: str | None = None) -> None:
        """Wrap a loaded model; `card` is the README.md it came with."""
        self.model, self.facts = model, facts
        self._card = card

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        device: str = "cpu",
        **model_kwargs: Any,
    ) -> Self:
        """Load a run, checkpoint or exported folder (local or s3://), or `hf:OWNER/NAME` at a revision of the hub.

        Only an id touches the network. Raises ConfigError for a place without a model and for an id that cannot be
        fetched, and what `load_model` raises: DataError for damaged files, RefusedError for another model's.
        """
        name = str(pretrained_model_name_or_path)
        if model_kwargs:
            raise ConfigError("unknown arguments of from_pretrained", got=", ".join(sorted(model_kwargs)))
        if _is_hub_id(name):
            fetched = _fetch(
                name.removeprefix(HUGGING_FACE_PREFIX),
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                token=token,
            )
            place = find_model(
                str(fetched) if (fetched / META).is_file() else f"hf:{fetched}", own=Store(fetched)
            )
        elif revision is not None:
            raise ConfigError(
                "only a model of the hub has revisions",
                got=f"{name}, revision={revision}",
                remedy=f"{HUGGING_FACE_PREFIX}OWNER/NAME, or leave revision out",
            )
        else:
            place = _local(name)
        model, facts = load_model(place, device=device)
        store = place.checkpoint
        card = store.read_bytes(CARD).decode() if store is not None and store.exists(CARD) else None
        return cls(model, facts, card=card)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write what `write_pretrained` does; raises ConfigError for a model that Hugging Face's library saves."""
        meta, model = self.facts.meta, self.model
        if meta is None or not isinstance(model, DualEncoder):
            raise ConfigError(
                "this model is Hugging Face's own, as it is",
                got=self.facts.image_backbone.id,
                expected="a model trained by `zscmr train`",
                remedy="save it with transformers",
            )
        # Here and not above: the card tells the run's story, and only writing needs it.
        from zscmr_ray.stages.export.card import model_card

        write_pretrained(Store(save_directory), model.model, meta, card=self._card or model_card(meta))

    @property
    def fingerprint(self) -> str:
        """The sha256 (64 hex) of all that decides a vector."""
        return self.facts.fingerprint

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The unit-norm parts of a vector, in order."""
        return self.facts.blocks

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.facts.dimension

    @property
    def label_weight(self) -> float:
        """The weight of label distributions (lambda) that training chose, 0 where there are none."""
        return self.facts.label_weight

    def encode_images(
        self, images: Sequence[Image.Image | bytes], *, max_pixels: int = _MAX_PIXELS
    ) -> FloatArray:
        """Encode pictures, opened or as the bytes of a file, to float32 [N, D] of unit blocks.

        Raises DataError naming the first picture that cannot be used; bytes of more than `max_pixels` are refused
        before they are decoded.
        """
        _check_list(images, kinds=(Image.Image, bytes), call="encode_images([picture])")
        backbone = self.model.image_backbone
        assert backbone is not None, "load_model loads both sides"
        spec, device = backbone.spec, backbone.device

        def encoded() -> Iterator[torch.Tensor]:
            for start in range(0, len(images), _IMAGE_ROWS):
                rows = enumerate(images[start : start + _IMAGE_ROWS], start)
                pixels = [
                    _pixels(image, spec, number=number, max_pixels=max_pixels) for number, image in rows
                ]
                yield self.model.encode_images(torch.from_numpy(np.stack(pixels)).to(device))[0]

        return self._join(encoded())

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts to float32 [N, D] of unit blocks, cleaned as captions are. Raises DataError for an empty one."""
        _check_list(texts, kinds=(str,), call="encode_texts([text])")
        cleaned = [_clean(text, number) for number, text in enumerate(texts)]
        return self._join(
            self.model.encode_texts(cleaned[start : start + _TEXT_ROWS])[0]
            for start in range(0, len(cleaned), _TEXT_ROWS)
        )

    def similarity(
        self, queries_QD: FloatArray, gallery_ND: FloatArray, *, label_weight: float | None = None
    ) -> FloatArray:
        """Score every query with every gallery vector, [Q, N]: what the index and the service rank by.

        `label_weight` (lambda) in [0, 1]; default: the one that training chose.
        """
        weight = self.label_weight if label_weight is None else label_weight
        scores_QN: FloatArray = weigh_query(queries_QD, self.blocks, label_weight=weight) @ gallery_ND.T
        return scores_QN

    def _join(self, parts: Iterable[torch.Tensor]) -> FloatArray:
        arrays = [part.float().cpu().numpy() for part in parts]
        return np.concatenate([np.empty((0, self.dimension), np.float32), *arrays])


def write_pretrained(
    store: Store, model: AlignmentModel, meta: CheckpointMeta, *, card: str
) -> CheckpointMeta:
    """Write model.safetensors, meta.json, config.json, split.json and README.md; equal models give equal bytes.

    Of the configuration what made the model, without its places: whose folders these were is nobody's business.
    """
    config = {name: value for name, value in meta.config.items() if name in PUBLISHED}
    public = meta.model_copy(update={"config": without_places(config, Config)})
    signed = save_checkpoint(store, model, public)
    store.write_bytes(CARD, card.encode())
    return signed


def _is_hub_id(name: str) -> bool:
    source = name.removeprefix(HUGGING_FACE_PREFIX)
    return source != name and not Path(source).is_dir()


def _local(name: str) -> ModelPlace:
    if name.startswith(HUGGING_FACE_PREFIX):
        return find_model(name, own=Store(name.removeprefix(HUGGING_FACE_PREFIX)))
    store = find_checkpoint(name)
    if store is None:
        raise ConfigError(
            "no such model",
            got=f"{name}: no {META} in it, nor in checkpoint/ below it",
            expected="a run, its checkpoint/ or an exported folder, local or s3://",
            remedy=f"a model of the hub has {HUGGING_FACE_PREFIX} before its id: {HUGGING_FACE_PREFIX}OWNER/NAME",
        )
    return ModelPlace(store.uri, store)


def _fetch(repo_id: str, **options: Any) -> Path:
    """The folder of a repository's snapshot in Hugging Face's cache. Raises ConfigError."""
    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(FETCHED), **options))
    # No network, no such id or revision, no permission: errors of the hub's, of HTTP's and of the system's.
    except Exception as error:
        raise ConfigError(
            f"cannot fetch the model hf:{repo_id}",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="the id and revision of a repository that may be read",
            remedy="check id, revision and network; without network, local_files_only=True and a fetched copy",
        ) from error


def _pixels(
    image: Image.Image | bytes, spec: ImageSpec, *, number: int, max_pixels: int
) -> npt.NDArray[np.uint8]:
    """The model's crop of a picture, uint8 [size, size, 3]."""
    crop: dict[str, Any] = {
        name: getattr(spec, name) for name in ("size_px", "crop_fraction", "interpolation", "fit")
    }
    try:
        if isinstance(image, Image.Image):
            return crop_pixels(image, **crop)
        return decode_image(image, max_pixels=max_pixels, thumbnail_px=None, **crop).pixels_HW3
    except ImageRejected as error:
        raise DataError(
            "a picture cannot be used",
            got=f"number {number}: {error.code}: {error.reason}",
            expected=f"a whole JPEG, PNG, WebP, GIF, BMP or TIFF of at most {max_pixels} pixels",
        ) from error


def _check_list(values: Any, *, kinds: tuple[type, ...], call: str) -> None:
    """A single text is a sequence of texts to Python: it would be encoded letter by letter."""
    is_list = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    wrong = next((type(v).__name__ for v in values if not isinstance(v, kinds)), None) if is_list else None
    if not is_list or wrong is not None:
        raise ConfigError(
            "a list is needed",
            got=f"{wrong} in the list" if is_list else type(values).__name__,
            expected=f"a list of {' or '.join(kind.__name__ for kind in kinds)}",
            remedy=call,
        )


def _clean(text: str, number: int) -> str:
    cleaned = clean_captions([text])
    if not cleaned:
        raise DataError(
            "a text is empty", got=f"number {number}: {text[:80]!r}", expected="at least one word"
        )
    return cleaned[0]
