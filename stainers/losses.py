"""Losses and image metrics on (B, C, H, W) tensors in [0, 1]."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


@lru_cache(maxsize=4)
def _gaussian(size: int, sigma: float) -> Tensor:
    x = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    line = torch.exp(-0.5 * (x / sigma) ** 2)
    return line / line.sum()


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per pixel and channel (Wang et al., IEEE TIP 2004): 11 px Gaussian, sigma 1.5,
    range 1, over the windows that lie inside the image."""
    channels = a.shape[1]
    line = _gaussian(11, 1.5).to(a)

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, line.view(1, 1, 11, 1).expand(x.shape[1], 1, 11, 1), groups=x.shape[1])
        return F.conv2d(x, line.view(1, 1, 1, 11).expand(x.shape[1], 1, 1, 11), groups=x.shape[1])

    moments = blur(torch.cat([a, b, a * a, b * b, a * b], dim=1)).split(channels, dim=1)
    mean_a, mean_b, aa, bb, ab = moments
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    upper = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return upper / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM per image, (B,)."""
    return ssim_map(a, b).mean(dim=(1, 2, 3))


def gradient_loss(a: Tensor, b: Tensor, levels: int = 3) -> Tensor:
    """Mean absolute difference of the gradients at `levels` scales."""
    total = a.new_zeros(())
    for level in range(levels):
        if level:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        d = a - b
        total = (
            total + (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
        )
    return total / levels


def expected_error_loss(log_scale: Tensor, error: Tensor) -> Tensor:
    """Negative log likelihood of the absolute error (B, 1, H, W) under a Laplace law of that scale.

    The error carries no gradient: the image is learned by its own losses and this only learns to
    foretell how far off it is.
    """
    log_scale = log_scale.clamp(-6, 1)
    return (log_scale + error.detach() * torch.exp(-log_scale)).mean()
