"""What an image says of named classes: against a loop, and a power that lets the shown classes count for more."""

from __future__ import annotations

import numpy as np
import torch

from zscmr_ray.models.named_images import NamedImages


def rows(num: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, regions = (torch.randn(num, 5, generator=generator) * 4 for _ in range(2))
    return logits, torch.softmax(regions, dim=1)


def test_it_is_the_equation() -> None:
    logits_NC, shares_NC = rows()
    named = NamedImages(5, teacher_temperature=3.0, power=1.5)
    named.fit(logits_NC, shares_NC)
    means = [torch.softmax(logits_NC / 3, dim=1).sqrt().mean(0), shares_NC.sqrt().mean(0)]
    found = named(logits_NC, shares_NC)
    for n in range(len(logits_NC)):
        a, b = torch.softmax(logits_NC[n] / 3, dim=0).sqrt() - means[0], shares_NC[n].sqrt() - means[1]
        both = a / a.norm() + b / b.norm()
        both = both / both.norm()
        powered = np.array([np.sign(float(x)) * abs(float(x)) ** 1.5 for x in both])
        np.testing.assert_allclose(found[n].numpy(), powered / np.linalg.norm(powered), atol=1e-5)


def test_a_power_above_1_gives_more_to_the_largest() -> None:
    found = []
    for power in (1.0, 2.0):
        named = NamedImages(5, teacher_temperature=3.0, power=power)
        named.fit(*rows())
        found.append(named(*rows()).abs().amax(dim=1))
    assert (found[1] > found[0]).all()
