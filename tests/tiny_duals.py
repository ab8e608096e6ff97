"""Random CLIP and SigLIP models of a few KB with processor and tokenizer on disk: no network, every part the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "an", "picture", "photo", "of", "kind", "b", "c", "number", "two", "words", "three", "more")
THINGS = ("red", "green", "blue", "square", "dog", "cat", ".", "##s")
NUMBERS = [str(number) for number in range(50)]
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZE_PX, DIM, MAX_TOKENS = 32, 8, 16
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIZE_PX,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": MAX_TOKENS,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def write_clip(folder: Path, *, seed: int = 0) -> Path:
    """A CLIP whose processor resizes the short side to 40 and cuts 32; its projection has 8 columns."""
    import transformers as hf

    config = hf.CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=DIM)
    processor = hf.CLIPImageProcessorPil(
        size={"shortest_edge": 40},
        crop_size={"height": SIZE_PX, "width": SIZE_PX},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )
    return _write(folder, hf.CLIPModel, config, processor, seed)


def write_siglip(folder: Path, *, seed: int = 0) -> Path:
    """A SigLIP: squashes pictures to 32 x 32, and reads texts padded to 16 tokens."""
    import transformers as hf

    config = hf.SiglipConfig(text_config=_TEXT, vision_config=_VISION)
    processor = hf.SiglipImageProcessorPil(size={"height": SIZE_PX, "width": SIZE_PX})
    return _write(folder, hf.SiglipModel, config, processor, seed)


def _write(folder: Path, kind: Any, config: Any, processor: Any, seed: int) -> Path:
    import transformers as hf

    verbosity = hf.logging.get_verbosity()
    hf.logging.set_verbosity_error()
    torch.manual_seed(seed)
    model = kind(config)
    # The libraries' initial weights are so small that every picture gets nearly the same vector.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate([*MARKS, *WORDS, *THINGS, *NUMBERS])}
    assert len(vocabulary) <= _TEXT["vocab_size"]
    hf.BertTokenizer(vocab=vocabulary, model_max_length=MAX_TOKENS).save_pretrained(folder)
    hf.logging.set_verbosity(verbosity)
    return folder
