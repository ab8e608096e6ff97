"""Any Hugging Face image or text model as a frozen backbone: `hf:<model id or folder>`.

Image: CLIP and SigLIP vision towers, ViT, DINOv2, ConvNeXt, ResNet and whatever else answers with patch tokens or a
feature map, and VGG (vgg.py); an image classifier also gives its logits, and so can be the teacher. Text: BERT and kin,
CLIP and SigLIP text towers. What a model cannot do is found by encoding one probe when it is loaded, not in the middle of
a corpus.

Weights are read from safetensors only, in float32; a folder is read without network, a model id may be downloaded.
Pictures are cut to a centre square in their own proportions, also for models whose processor squashes them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zscmr_ray.errors import ConfigError, DataError, ZscmrError
from zscmr_ray.models.backbones.base import (
    ImageBackbone,
    ImageSpec,
    TextBackbone,
    Tokenise,
    tensors_sha256,
)
from zscmr_ray.models.backbones.huggingface_blocks import HuggingFaceBlocks

# By Pillow's number.
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box")
# The most special tokens a model may put before its patches (CLS, distillation, DINOv2's registers).
MAX_PREFIX_TOKENS = 16
# ConvNeXt's processor crops below this side and squashes from it on.
CROP_BELOW_PX = 384
# Trained on captions padded to full width, padding attended to: any other width gives other vectors.
FULL_WIDTH_MODELS = ("siglip_text_model", "siglip2_text_model")


class HuggingFaceImage(HuggingFaceBlocks, ImageBackbone):
    """An image model's patch tokens or feature map, and its logits if it classifies."""

    def __init__(self, source: str, model: Any, spec: ImageSpec) -> None:
        """Wrap a loaded model; raises ConfigError when a probe shows that it gives no square grid of regions."""
        super().__init__()
        self.id = f"hf:{source}"
        self.spec = spec
        self.model = model
        self.classifies = type(model).__name__.endswith("ForImageClassification")
        self.weights_sha256 = tensors_sha256(model.state_dict())
        self.trained_on = f"see the model card of {source}"
        self.freeze()
        with torch.inference_mode():
            map_1Dhw, logits_1C = self._encode(torch.zeros(1, 3, spec.size_px, spec.size_px))
        self.num_channels, self.native_grid = map_1Dhw.shape[1], map_1Dhw.shape[2]
        if logits_1C is not None:
            self.num_classes = logits_1C.shape[1]
            self.class_names = tuple(self.model.config.id2label[index] for index in range(self.num_classes))

    def _encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.classifies:
            return self._to_map(self.model(pixel_values=images_B3HW).last_hidden_state), None
        # A classifier keeps its features to itself: they are caught on the way to its head, in the same pass.
        caught: list[Any] = []
        body = self.model.base_model if self.model.base_model is not self.model else self.model.vision_model
        with body.register_forward_hook(lambda _module, _inputs, output: caught.append(output)):
            logits_BC = self.model(pixel_values=images_B3HW).logits
        return self._to_map(caught[0].last_hidden_state), logits_BC

    def _to_map(self, states: Tensor) -> Tensor:
        """Feature maps [B, D, h, h] as they are; tokens [B, prefix + h*h, D] without their prefix, as a map."""
        if states.dim() == 4 and states.shape[2] == states.shape[3]:
            return states
        side = self._side(states.shape[1]) if states.dim() == 3 else 0
        if side == 0:
            raise ConfigError(
                f"{self.id} gives no square grid of regions",
                got=f"{type(self.model).__name__} states of shape {tuple(states.shape)}",
                expected="[B, channels, side, side] or [B, special tokens + side * side, channels]",
            )
        patches_BRD = states[:, states.shape[1] - side**2 :]
        return patches_BRD.transpose(1, 2).reshape(len(states), -1, side, side)

    def _side(self, num_tokens: int) -> int:
        config = self.model.config
        patch_px = getattr(getattr(config, "vision_config", config), "patch_size", None)
        if isinstance(patch_px, int):
            side = self.spec.size_px // patch_px
            if 0 <= num_tokens - side**2 <= MAX_PREFIX_TOKENS:
                return side
        # Hierarchical models (Swin) merge their patches and have no special token.
        side = round(num_tokens**0.5)
        return side if side**2 == num_tokens else 0


class HuggingFaceText(HuggingFaceBlocks, TextBackbone):
    """A text model's last hidden states."""

    def __init__(self, source: str, model: Any, tokenizer: Any, *, max_tokens: int) -> None:
        """Wrap a loaded model; raises ConfigError when `max_tokens` is more than it has positions for."""
        super().__init__()
        self.id = f"hf:{source}"
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.num_positions = num_positions(model, tokenizer)
        self.full_width = self.model.config.model_type in FULL_WIDTH_MODELS
        least = tokenizer.num_special_tokens_to_add() + 1
        if not least <= max_tokens <= self.num_positions:
            raise ConfigError(
                f"max tokens out of range for text backbone {self.id}",
                got=max_tokens,
                expected=f"{least} to {self.num_positions}",
                remedy="set preprocess.max_tokens",
            )
        vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
        self.weights_sha256 = tensors_sha256(model.state_dict(), vocabulary=vocabulary)
        self.trained_on = f"see the model card of {source}"
        self.freeze()
        with torch.inference_mode():
            self.num_channels = self._encode(self.tokenize(["a"]).ids_BL, None).shape[2]

    def static_tokens(self, max_tokens: int) -> tuple[Tensor, Tokenise]:
        """Return the input embeddings and the tokenizer without marks of its own."""

        def tokenize(captions: Sequence[str]) -> list[list[int]]:
            found: list[list[int]] = self.tokenizer(
                list(captions), add_special_tokens=False, truncation=True, max_length=max_tokens
            )["input_ids"]
            return found

        return self.model.get_input_embeddings().weight, tokenize

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        rows = self.tokenizer(list(captions), truncation=True, max_length=self.max_tokens)["input_ids"]
        # A tokenizer without marks of its own gives an empty caption no token; one padding token stands for it.
        return [row or [self._pad_id] for row in rows]

    def _encode(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        if mask_BL is not None:
            ids_BL = ids_BL.where(mask_BL, self._pad_id)
        if self.full_width:
            padded_BP = ids_BL.new_full((len(ids_BL), self.num_positions), self._pad_id)
            padded_BP[:, : ids_BL.shape[1]] = ids_BL
            return self.model(input_ids=padded_BP).last_hidden_state[:, : ids_BL.shape[1]]
        attention_BL = None if mask_BL is None else mask_BL.long()
        return self.model(input_ids=ids_BL, attention_mask=attention_BL).last_hidden_state

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.pad_token_id or 0


def load_huggingface_image(source: str) -> ImageBackbone:
    """Load an image model and the pixel specification of its processor, on the CPU.

    Raises ConfigError for a missing folder, file or model and for an architecture without regions, DataError for a
    checkpoint that lacks weights.
    """
    with loading(source, "image backbone") as place:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

        vgg = _vgg(source, place)
        if vgg is not None:
            return vgg
        config = AutoConfig.from_pretrained(source, **place)
        names = config.architectures or []
        classifies = any(name.endswith("ForImageClassification") for name in names)
        if classifies:
            model = load_weights(AutoModelForImageClassification, source, place)
        else:
            model = _tower(load_weights(AutoModel, source, place), "vision_model")
        processor = AutoImageProcessor.from_pretrained(source, **place)
        return HuggingFaceImage(source, model, processor_spec(processor, name=source))


def _vgg(source: str, place: dict[str, Any]) -> ImageBackbone | None:
    """A VGG, which transformers does not have; None for anything else."""
    from safetensors.torch import load_file
    from transformers.utils.hub import cached_file

    from zscmr_ray.models.backbones.vgg import Vgg, is_vgg

    options = {"local_files_only": place["local_files_only"]}
    config = json.loads(Path(cached_file(source, "config.json", **options)).read_text(encoding="utf-8"))
    if not is_vgg(config):
        return None
    return Vgg(source, load_file(cached_file(source, "model.safetensors", **options)), config)


def load_huggingface_text(source: str, *, max_tokens: int = 64) -> HuggingFaceText:
    """Load a text model and its tokenizer, on the CPU; errors as for `load_huggingface_image`."""
    with loading(source, "text backbone") as place:
        from transformers import AutoModel, AutoTokenizer

        model = _tower(load_weights(AutoModel, source, place), "text_model")
        if model.config.is_encoder_decoder:
            raise ConfigError(f"{source} is an encoder-decoder", expected="a text encoder, such as BERT")
        tokenizer = AutoTokenizer.from_pretrained(source, **place)
        return HuggingFaceText(source, model, tokenizer, max_tokens=max_tokens)


def processor_spec(processor: Any, *, name: str) -> ImageSpec:
    """Read the pixel specification from an image processor. Raises ConfigError where ours cannot say the same."""
    size, crop = processor.size, getattr(processor, "crop_size", None)
    resized_px = size.get("shortest_edge") or size.get("height")
    size_px, crop_fraction = resized_px, 1.0
    if getattr(processor, "do_center_crop", None) and crop is not None:
        size_px = crop.get("height")
        crop_fraction = size_px / resized_px if resized_px else 0.0
        square = crop.get("height") == crop.get("width")
    else:
        square = size.get("shortest_edge") is not None or size.get("height") == size.get("width")
        crop_pct = getattr(processor, "crop_pct", None)
        if crop_pct is not None and size_px is not None and size_px < CROP_BELOW_PX:
            crop_fraction = crop_pct
    rescaled = processor.do_rescale and abs(processor.rescale_factor * 255 - 1) < 1e-6
    if not (square and size_px and 0 < crop_fraction <= 1 and rescaled):
        raise ConfigError(
            f"the image processor of {name} is not one we can follow",
            got=f"size {size}, crop {crop}, rescale {processor.rescale_factor}",
            expected="a square input of fixed size, a crop no larger than the resized picture, rescale 1/255",
        )
    normalises = processor.do_normalize
    return ImageSpec(
        size_px=int(size_px),
        crop_fraction=float(crop_fraction),
        interpolation=INTERPOLATIONS[int(processor.resample)],
        mean=_triple(processor.image_mean) if normalises else (0.0, 0.0, 0.0),
        std=_triple(processor.image_std) if normalises else (1.0, 1.0, 1.0),
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def num_positions(model: Any, tokenizer: Any) -> int:
    """Return how many tokens a text model takes, its tokenizer's marks included."""
    # RoBERTa and kin start counting positions after the padding index, so that many rows are never used.
    offset = 2 if "roberta" in model.config.model_type else 0
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(min(positions - offset, tokenizer.model_max_length))


def _tower(model: Any, name: str) -> Any:
    """One side of a two-sided model (CLIP, SigLIP); any other model is itself."""
    two_sided = hasattr(model.config, "vision_config") and hasattr(model.config, "text_config")
    return getattr(model, name) if two_sided and hasattr(model, name) else model


def load_weights(auto_class: Any, source: str, place: dict[str, Any]) -> Any:
    """Load a model, refusing one that transformers would complete with random weights."""
    model, report = auto_class.from_pretrained(
        source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **place
    )
    # Poolers are absent from many checkpoints and used by nothing here.
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise DataError(f"the checkpoint {source} lacks weights of {type(model).__name__}", got=missing[:5])
    return model


@contextlib.contextmanager
def loading(source: str, what: str) -> Iterator[dict[str, Any]]:
    """Keep transformers quiet and say its errors in our words; gives the arguments that say where it may look."""
    from transformers.utils import logging

    local = Path(source).is_dir()
    if not local and (source.startswith(("/", ".", "~")) or source.count("/") > 1):
        raise ConfigError(f"no such folder for hf: {what}", got=source)
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield {"local_files_only": local, "trust_remote_code": False}
    except ZscmrError:
        raise
    # What transformers raises for a bad folder, a bad id, no network, an unknown type or a shape it cannot run is
    # anything from OSError to AttributeError; all of it means: this model cannot be used here.
    except Exception as error:
        raise ConfigError(
            f"cannot load the {what} hf:{source}",
            got=f"{type(error).__name__}: {error}",
            expected="a folder or model id with config.json, model.safetensors and processor or tokenizer files",
            remedy="check the name; a model id needs network once, or its copy in Hugging Face's cache",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
