"""Embedding pictures and texts with a CLIP on one GPU: samples/s, peak memory, model FLOP utilisation.

Our own encoder (models/pretrained_dual.py) with random weights in ViT-B/32 and ViT-L/14 shapes: uint8 pictures in pinned
host memory, copied, normalised and encoded in bf16, attention by torch's SDPA; eager and compiled. No Ray, no decoding:
what an encoding actor can reach at best. Texts are full-width token ids through the text tower.

value = FLOP/s of ViT-L/14 pictures, compiled, over one large bf16 matrix product's in the same run (bar 0.17: published
embedders run at 2 to 17% of a datacentre GPU's peak). Without a GPU it says so and ends well. `--smoke` runs every line
with a tiny shape on the CPU.
"""

from __future__ import annotations

import gc
import json
from typing import Any

import torch
from contract import report
from gpu_shapes import (
    SMOKE,
    VIT_B_32,
    VIT_L_14,
    Shape,
    device_facts,
    fitting,
    measured,
    parse,
    random_ids,
    report_without_gpu,
)

from zscmr_ray.models.backbones import ImageSpec
from zscmr_ray.models.pretrained_dual import PretrainedDualEncoder

NAME, BAR = "gpu_embed", 0.17
UNIT = "model FLOP/s of encoding ViT-L/14 pictures over one large bf16 matrix product's, same device and run"
BATCHES = {VIT_B_32.name: 2048, VIT_L_14.name: 512, SMOKE.name: 4}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "something")


def build_encoder(shape: Shape, *, device: str) -> PretrainedDualEncoder:
    """The encoder that `embed` uses, around random weights."""
    import transformers as hf

    tokenizer = hf.BertTokenizer(
        vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=shape.text.tokens
    )
    spec = ImageSpec(shape.size_px, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return PretrainedDualEncoder(shape.name, shape.build("cpu"), tokenizer, spec).to(device)


def measure(
    shape: Shape, *, compiled: bool, device: str, facts: dict[str, object]
) -> dict[str, dict[str, object]]:
    """The rows of pictures and of texts."""
    encoder = build_encoder(shape, device=device)
    clip: Any = encoder.image_backbone.model
    if compiled:
        # On the CPU the graph is traced and run as it is: compiling it would want a C++ compiler and a minute.
        backend = "eager" if device == "cpu" else "inductor"
        for name in ("get_image_features", "get_text_features"):
            setattr(clip, name, torch.compile(getattr(clip, name), backend=backend))

    def images(batch: int) -> dict[str, object]:
        pixels_BHW3 = torch.randint(0, 256, (batch, shape.size_px, shape.size_px, 3), dtype=torch.uint8)
        pixels_BHW3 = pixels_BHW3 if device == "cpu" else pixels_BHW3.pin_memory()

        def step() -> None:
            with torch.autocast(device, torch.bfloat16):
                encoder.encode_images(pixels_BHW3)

        return measured(step, device=device, batch=batch, flops=shape.image_flops, facts=facts)

    def texts(batch: int) -> dict[str, object]:
        ids_BL = random_ids(batch, shape.text.tokens, device=device)

        def step() -> None:
            with torch.autocast(device, torch.bfloat16), torch.inference_mode():
                clip.get_text_features(input_ids=ids_BL)

        return measured(step, device=device, batch=batch, flops=shape.text.forward_flops, facts=facts)

    try:
        return {
            "images": fitting(images, batch=BATCHES[shape.name]),
            "texts": fitting(texts, batch=BATCHES[shape.name]),
        }
    finally:
        torch.compiler.reset()
        gc.collect()


def main() -> None:
    smoke = parse(__doc__ or "").smoke
    if not smoke and not torch.cuda.is_available():
        report_without_gpu(NAME, bar=BAR, unit=UNIT)
        return
    device = "cpu" if smoke else "cuda"
    torch.set_float32_matmul_precision("high")
    facts = device_facts(device)
    shapes = (SMOKE,) if smoke else (VIT_B_32, VIT_L_14)
    rows = {
        shape.name: {
            how: measure(shape, compiled=how == "compiled", device=device, facts=facts)
            for how in ("eager", "compiled")
        }
        for shape in shapes
    }
    if smoke:
        print(json.dumps({"name": NAME, "smoke": rows, **facts}))
        return
    share = float(str(rows[VIT_L_14.name]["compiled"]["images"]["share_of_product"]))
    report(
        name=NAME,
        value=share,
        bar=BAR,
        holds=share >= BAR,
        unit=UNIT,
        detail={**facts, **rows, "precision": "bf16 autocast"},
    )


if __name__ == "__main__":
    main()
