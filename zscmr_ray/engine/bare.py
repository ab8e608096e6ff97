"""The bare torch loop's engine: autograd, clipping, AdamW, nothing else. The oracle that DeepSpeed is held against."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from zscmr_ray.config import OptimSection
from zscmr_ray.engine.base import as_floats, check_weights, make_optimizer, set_learning_rate
from zscmr_ray.engine.collectives import world_size
from zscmr_ray.engine.step import AlignmentStep, StepInputs, check_finite

_STATE = "bare.pt"


class BareEngine:
    """Trains `AlignmentStep` with plain torch; gradients are summed over ranks where there are several."""

    def __init__(self, step: AlignmentStep, *, optim: OptimSection, total_steps: int) -> None:
        self.step_module = step.train()
        self.optim, self.total_steps = optim, total_steps
        self.optimizer = make_optimizer(step.model, optim)

    def update(self, inputs: StepInputs) -> dict[str, float]:
        """Do one step; see `Engine`."""
        set_learning_rate(self.optimizer, step=inputs.step, optim=self.optim, total_steps=self.total_steps)
        parts = self.step_module(inputs)
        values = as_floats(parts)
        check_finite(values["total"], inputs)
        parts["total"].backward()
        if world_size() > 1:
            for parameter in self.step_module.parameters():
                dist.all_reduce(parameter.grad)
        if self.optim.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.step_module.parameters(), self.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return values

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's state on the CPU; see `Engine`."""
        check_weights(self.step_module.parameters())
        return {
            name: value.detach().cpu().clone() for name, value in self.step_module.model.state_dict().items()
        }

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state; see `Engine`."""
        check_weights(self.step_module.parameters())
        state = {"model": self.step_module.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, folder / _STATE)

    def load(self, folder: Path, *, num_workers: int) -> None:
        """Read weights and optimiser state; every rank has the whole of both, whatever the number."""
        state = torch.load(folder / _STATE, weights_only=True)
        self.step_module.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
