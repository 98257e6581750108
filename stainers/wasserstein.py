"""The Wasserstein objective with gradient penalty (Gulrajani et al., NeurIPS 2017), as thesis chapters 5
and 6 put it in the place of the logarithmic one (sections 5.3.1 and 6.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What the critic lowers: its mean verdict on generated images less that on real ones."""
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor) -> Tensor:
    """What the generator lowers: the negative of the critic's mean verdict on its images."""
    return -fake.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Mean squared distance from 1 of the norm of the critic's gradient, between real and generated images.

    Images (B, C, H, W); one random point on the line between the two of each pair.  A critic that answers
    with a map counts by the mean of its map for each image.
    """
    share = torch.rand(len(real), 1, 1, 1, generator=generator).to(real)
    between = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    verdict = critic(between).flatten(1).mean(dim=1)
    (slope,) = torch.autograd.grad(verdict.sum(), between, create_graph=True)
    return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
