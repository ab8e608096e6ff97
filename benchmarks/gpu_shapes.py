"""What the GPU benchmarks share: CLIP shapes with random weights, their FLOPs, a device's peak, and timing.

No download: configurations and weights are made here. FLOPs are those of the matrix products of one forward pass, two
per multiply-add, attention counted in full; a training step is three forward passes. Utilisation is these FLOPs over
the rate of one large bf16 matrix product of the same device in the same run, and over its data sheet where it is known.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from contract import report
from torch import Tensor

# Dense bf16 tensor-core rates of the vendors' data sheets, by a part of the device's name; the first that fits.
PEAK_TFLOPS = (
    ("H200", 989.5), ("H100 PCIe", 756.5), ("H100 NVL", 835.5), ("H100", 989.5), ("B200", 2250.0),
    ("A100", 312.0), ("L40S", 362.0), ("L4", 121.0), ("A10G", 70.0), ("A10", 125.0), ("RTX 4090", 165.2),
)  # fmt: skip
PRODUCT_SIDE = 8192
WARM_UP_STEPS, MIN_TIMED_STEPS, MIN_TIMED_S = 5, 10, 5.0


@dataclass(frozen=True)
class Tower:
    """A transformer: width, depth, heads, and how many tokens it sees."""

    width: int
    layers: int
    heads: int
    tokens: int

    @property
    def forward_flops(self) -> float:
        """FLOPs of one sample's forward pass: 24 n d^2 + 4 n^2 d a layer.

        >>> Tower(768, 12, 12, 50).forward_flops / 1e9
        8.5856256
        """
        n, d = self.tokens, self.width
        return float(self.layers * (24 * n * d * d + 4 * n * n * d))


@dataclass(frozen=True)
class Shape:
    """A CLIP of published proportions."""

    name: str
    image: Tower
    text: Tower
    size_px: int
    patch_px: int
    embedding: int

    @property
    def image_flops(self) -> float:
        """One picture's forward pass, patches included."""
        patches = (self.size_px // self.patch_px) ** 2
        return self.image.forward_flops + 2.0 * patches * 3 * self.patch_px**2 * self.image.width

    @property
    def pair_flops(self) -> float:
        """One picture's and one text's forward pass."""
        return self.image_flops + self.text.forward_flops

    def build(self, device: str) -> Any:
        """The model with random weights in float32, attention by torch's scaled_dot_product_attention."""
        import transformers as hf

        def tower(one: Tower) -> dict[str, Any]:
            return {
                "hidden_size": one.width,
                "intermediate_size": 4 * one.width,
                "num_hidden_layers": one.layers,
                "num_attention_heads": one.heads,
                "projection_dim": self.embedding,
            }

        config = hf.CLIPConfig(
            text_config=tower(self.text)
            | {"max_position_embeddings": self.text.tokens, "bos_token_id": 1, "eos_token_id": 2},
            vision_config=tower(self.image) | {"image_size": self.size_px, "patch_size": self.patch_px},
            projection_dim=self.embedding,
            attn_implementation="sdpa",
        )
        torch.manual_seed(0)
        return hf.CLIPModel(config).to(device)


VIT_B_32 = Shape("ViT-B/32", Tower(768, 12, 12, 50), Tower(512, 12, 8, 77), 224, 32, 512)
VIT_L_14 = Shape("ViT-L/14", Tower(1024, 24, 16, 257), Tower(768, 12, 12, 77), 224, 14, 768)
SMOKE = Shape("smoke", Tower(32, 2, 2, 17), Tower(32, 2, 2, 16), 32, 8, 16)


def parse(description: str) -> argparse.Namespace:
    """`--smoke`: a tiny shape on the CPU, to run every line of a benchmark where there is no GPU; nothing is written."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny shape on the CPU; prints, writes nothing"
    )
    return parser.parse_args()


def report_without_gpu(name: str, *, bar: float, unit: str) -> None:
    """Say that there is no GPU; a result that was measured on one is kept."""
    reason = "no CUDA GPU on this machine (torch.cuda.is_available() is False)"
    report(name=name, value=None, bar=bar, holds=False, unit=unit, detail={"reason": reason})


def device_facts(device: str) -> dict[str, object]:
    """The device's name and memory, and its two rates in TFLOP/s."""
    if device == "cpu":
        return {
            "device": "cpu",
            "product_tflops": round(product_tflops(device, side=256), 3),
            "sheet_tflops": None,
        }
    name = torch.cuda.get_device_name()
    sheet = next((value for part, value in PEAK_TFLOPS if part in name), None)
    memory = torch.cuda.get_device_properties(0).total_memory
    return {
        "device": name,
        "memory_gb": round(memory / 1e9, 1),
        "product_tflops": round(product_tflops(device, side=PRODUCT_SIDE), 1),
        "sheet_tflops": sheet,
        "cuda": torch.version.cuda,
    }


def product_tflops(device: str, *, side: int) -> float:
    """The rate of one square bf16 matrix product."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    step_s = seconds_per_step(lambda: one @ other, device=device)
    return 2.0 * side**3 / step_s / 1e12


def seconds_per_step(step: Callable[[], object], *, device: str) -> float:
    """The median of steps timed one by one, after a warm-up."""
    is_cpu = device == "cpu"
    for _ in range(1 if is_cpu else WARM_UP_STEPS):
        step()
    seconds: list[float] = []
    while len(seconds) < (2 if is_cpu else MIN_TIMED_STEPS) or (not is_cpu and sum(seconds) < MIN_TIMED_S):
        synchronise(device)
        began_s = time.perf_counter()
        step()
        synchronise(device)
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds)


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def measured(
    step: Callable[[], object], *, device: str, batch: int, flops: float, facts: dict[str, object]
) -> dict[str, object]:
    """Samples/s, peak memory and utilisation of a step over `batch` samples of `flops` each."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    began_s = time.perf_counter()
    step()
    synchronise(device)
    first_s = time.perf_counter() - began_s
    step_s = seconds_per_step(step, device=device)
    achieved = batch * flops / step_s / 1e12
    sheet = facts["sheet_tflops"]
    return {
        "batch": batch,
        "samples_per_s": round(batch / step_s, 1),
        "ms_per_step": round(1000 * step_s, 3),
        "first_step_s": round(first_s, 2),
        "tflops": round(achieved, 3),
        "share_of_product": round(achieved / float(str(facts["product_tflops"])), 4),
        "share_of_sheet": None if sheet is None else round(achieved / float(str(sheet)), 4),
        "peak_memory_gb": None if device == "cpu" else round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def fitting(run: Callable[[int], dict[str, object]], *, batch: int) -> dict[str, object]:
    """Run with the batch, or half of it as often as the device's memory asks for that."""
    while True:
        try:
            return run(batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            torch.cuda.empty_cache()


def random_ids(batch: int, tokens: int, *, device: str) -> Tensor:
    """Token ids of full width, the end mark last."""
    ids_BL = torch.randint(3, 400, (batch, tokens), device=device)
    ids_BL[:, -1] = 2
    return ids_BL
