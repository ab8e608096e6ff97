"""The parts of `best` by name, where the choice of their weights begins, and every hyper-parameter (best.py)."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("named", "semantic", "seen", "contrasted")
DEFAULT_WEIGHTS = (1.0, 0.15, 0.2, 0.25)
"""Where the choice of the weights begins; chosen on pseudo-unseen classes (docs/science.md)."""
EPOCHS = (10, 16)
"""Passes of the towers that a training chooses from on its own pseudo-unseen classes; the first where it has none."""


@dataclass(frozen=True, slots=True)
class BestSettings:
    """Every hyper-parameter; the defaults were chosen on pseudo-unseen classes (docs/science.md)."""

    image_channels: int
    text_channels: int
    num_classes: int = 1000
    teacher_temperature: float = 3.0
    name_temperature: float = 0.035
    name_regularisation: float = 1.0
    synonyms_share: float = 0.2
    first_name_share: float = 0.5
    prompt_share: float = 0.5
    taught_share: float = 0.3
    taught_regularisation: float = 1.0
    named_power: float = 1.25
    named_whitening: float = 20.0
    seen_temperature: float = 0.25
    seen_image_regularisation: float = 1.0
    seen_text_regularisation: float = 0.1
    max_seen_classes: int = 128
    class_share: float = 0.5
    num_landmarks: int = 512
    token_kernel_width: float = 0.2
    contrasted_width: int = 256
    contrasted_pairs: int = 3
    seen_whitening: float = 1.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each part, in the order of PARTS."""
        towers = self.contrasted_width * self.contrasted_pairs
        return (self.num_classes, self.text_channels, self.max_seen_classes, towers)

    @property
    def whitenings(self) -> dict[str, float]:
        """The ridge of each part that is whitened."""
        return {"named": self.named_whitening, "seen": self.seen_whitening}
