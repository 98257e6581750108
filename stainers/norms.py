"""Norms of styled generators: AdaIN and SPADE that train as instance norm and stain as a fixed scale and
shift.

Instance norm, AdaIN and SPADE divide a map by its own mean and deviation.  At inference that would tie every
pixel to the whole tile: the same cell would be stained otherwise in another tile, and neighbouring tiles
would not meet.  `SettledNorm` uses the statistics of each map while a network learns its style, keeps their
running mean, and once settled (`settle`, the last part of a training; always in evaluation mode) uses these
for every map.  The last part of the training runs settled, so that what is trained is what stains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-5


def map_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C, 1, 1) of each map of x (B, C, H, W), float32 whatever x."""
    x = x.float()  # in mixed precision maps come in half, whose digits are too few to be averaged
    mean = x.mean(dim=(2, 3), keepdim=True)
    return mean, (x.var(dim=(2, 3), keepdim=True, unbiased=False) + EPSILON).sqrt()


class SettledNorm(nn.Module):
    """(B, C, H, W) -> the same, each channel with mean 0 and deviation 1 by its map, or by what was seen."""

    mean: Tensor
    square: Tensor

    def __init__(self, width: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum, self.settled = momentum, False
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.settled:
            mean, deviation = map_statistics(x)
            self._follow(mean.detach(), deviation.detach())
            return (x - mean) / deviation
        mean = self.mean[:, None, None]
        return (x - mean) / (self.square[:, None, None] - mean**2).clamp(min=1e-4).sqrt()

    @torch.no_grad()
    def _follow(self, mean: Tensor, deviation: Tensor) -> None:
        # mean and mean square over maps: the deviation of all pixels together, not the mean of deviations
        self.mean.lerp_(mean.mean(dim=0).flatten(), self.momentum)
        self.square.lerp_((mean**2 + deviation**2).mean(dim=0).flatten(), self.momentum)


def settle(module: nn.Module, settled: bool = True) -> None:
    """Fix, or free, the statistics of every SettledNorm of a network."""
    for part in module.modules():
        if isinstance(part, SettledNorm):
            part.settled = settled


class StyledNorm(nn.Module):
    """AdaIN (Huang and Belongie, ICCV 2017): each map gets the deviation and the mean that an affine layer
    reads from a style code (B, style); its own statistics are taken out by `SettledNorm`."""

    def __init__(self, width: int, style: int) -> None:
        super().__init__()
        self.norm = SettledNorm(width)
        self.affine = nn.Linear(style, 2 * width)
        nn.init.normal_(self.affine.weight, std=0.1 / style**0.5)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.affine(style)[:, :, None, None].chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class SpatialNorm(nn.Module):
    """SPADE: scale and shift of every pixel read from a structure map (Park et al., CVPR 2019).

    The structure map (B, structure, h, w) is brought to the size of x.
    """

    def __init__(self, width: int, structure: int, hidden: int = 32) -> None:
        super().__init__()
        self.norm = SettledNorm(width)
        self.shared = nn.Sequential(nn.Conv2d(structure, hidden, 3, 1, 1), nn.SiLU())
        self.scale = nn.Conv2d(hidden, width, 3, 1, 1)
        self.shift = nn.Conv2d(hidden, width, 3, 1, 1)

    def forward(self, x: Tensor, structure: Tensor) -> Tensor:
        if structure.shape[2:] != x.shape[2:]:
            structure = nn.functional.interpolate(structure, size=x.shape[2:], mode="nearest")
        h = self.shared(structure)
        return self.norm(x) * (1 + self.scale(h)) + self.shift(h)
