"""Training both towers of a CLIP end to end on one GPU: samples/s, peak memory, model FLOP utilisation.

ViT-B/32 and ViT-L/14 shapes with random weights, pictures and 77 tokens a pair already on the device, InfoNCE of the
whole batch (losses/contrast.py), bf16 autocast over float32 weights, AdamW, attention by torch's SDPA; eager and
compiled. No Ray, no data loading: what the engine's step can reach at best.

value = FLOP/s of ViT-L/14, compiled, over one large bf16 matrix product's in the same run (bar 0.3, ours).
Without a GPU it says so and ends well. `--smoke` runs every line with a tiny shape on the CPU.
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
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.losses.contrast import info_nce
from zscmr_ray.losses.relations import make_relations

NAME, BAR = "gpu_train", 0.3
UNIT = "model FLOP/s of a ViT-L/14 training step over one large bf16 matrix product's, same device and run"
BATCHES = {VIT_B_32.name: 2048, VIT_L_14.name: 512, SMOKE.name: 4}
TEMPERATURE = 0.07


class Towers(nn.Module):
    """Pixels and token ids to unit vectors."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels_B3HW: Tensor, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch of pairs."""
        image_BD = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels_B3HW).pooler_output)
        text_BD = self.clip.text_projection(self.clip.text_model(input_ids=ids_BL).pooler_output)
        return functional.normalize(image_BD.float(), dim=1), functional.normalize(text_BD.float(), dim=1)


class TrainingStep:
    """One update of all weights from one batch, the same batch always."""

    def __init__(self, shape: Shape, *, batch: int, compiled: bool, device: str) -> None:
        self.device = device
        towers = Towers(shape.build(device)).train()
        is_cuda = device != "cpu"
        self.optimiser = torch.optim.AdamW(towers.parameters(), lr=1e-4, fused=is_cuda)
        # On the CPU the graph is traced and run as it is: compiling it would want a C++ compiler and a minute.
        backend = "inductor" if is_cuda else "eager"
        self.towers: Any = torch.compile(towers, backend=backend) if compiled else towers
        self.pixels_B3HW = torch.randn(batch, 3, shape.size_px, shape.size_px, device=device)
        self.ids_BL = random_ids(batch, shape.text.tokens, device=device)
        self.relations = make_relations(None, num_rows=batch, device=device)

    def __call__(self) -> float:
        """Take the step; returns the loss."""
        with torch.autocast(self.device, torch.bfloat16):
            image_BD, text_BD = self.towers(self.pixels_B3HW, self.ids_BL)
        loss = info_nce(image_BD @ text_BD.T / TEMPERATURE, self.relations)
        torch.autograd.backward(loss)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())


def measure(shape: Shape, *, compiled: bool, device: str, facts: dict[str, object]) -> dict[str, object]:
    """One row of the table."""

    def run(batch: int) -> dict[str, object]:
        step = TrainingStep(shape, batch=batch, compiled=compiled, device=device)
        return measured(step, device=device, batch=batch, flops=3 * shape.pair_flops, facts=facts)

    try:
        return fitting(run, batch=BATCHES[shape.name])
    finally:
        # The next row's peak memory is its own.
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
    share = float(str(rows[VIT_L_14.name]["compiled"]["share_of_product"]))
    report(
        name=NAME,
        value=share,
        bar=BAR,
        holds=share >= BAR,
        unit=UNIT,
        detail={**facts, **rows, "precision": "bf16 autocast, float32 weights"},
    )


if __name__ == "__main__":
    main()
