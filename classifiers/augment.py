"""Augmentation of cell views on tensors: geometry, stain, optics.  All randomness comes from a generator.

Labelled cells are few and come from one laboratory; what makes a classifier hold on another stain and
scanner is that it never sees the same colours twice.  Stain is varied in optical density, where dye
amounts add (Ruifrok & Johnston 2001), and by lending an image the colour statistics of another
(Reinhard et al. 2001).  Brightfield only: DIC shadows have a direction, so `flips` must be off there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Strengths; zero switches a part off."""

    scale: tuple[float, float] = (0.75, 1.35)  # side of the view, relative to the normal one
    shift: float = 0.08  # of the view's side
    squeeze: float = 0.1  # anisotropic stretch
    rotation: bool = True
    flips: bool = True
    stain_mix: float = 0.12  # sd of the mixing of optical-density channels
    stain_gain: float = 0.3  # log range of dye amount
    transfer: float = 0.3  # probability of another image's colour statistics
    hue: float = 0.08
    grey: float = 0.05  # probability
    brightness: float = 0.12
    blur: float = 0.3  # probability
    noise: float = 0.02
    erase: float = 0.2  # probability

    @classmethod
    def none(cls) -> Augmentation:
        """The plain central view."""
        return cls((1.0, 1.0), 0, 0, False, False, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _chosen(n: int, p: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) < p


def geometry(
    images: Tensor, side_px: int, view: Tensor, strength: Augmentation, generator: torch.Generator
) -> Tensor:
    """Cut views (B, 3, side_px, side_px) from images (B, 3, S, S) by one resampling.

    `view` (B,) is the normal view's side as a share of the image's side.
    """
    n = len(images)
    log_low, log_high = (torch.tensor(s).log().item() for s in strength.scale)
    side = view * _uniform(n, log_low, log_high, generator).exp()
    squeeze = _uniform(n, -strength.squeeze, strength.squeeze, generator).exp()
    angle = _uniform(n, -torch.pi, torch.pi, generator) * float(strength.rotation)
    mirror = torch.where(_chosen(n, 0.5 * float(strength.flips), generator), -1.0, 1.0)
    sx, sy = side * squeeze.sqrt(), side / squeeze.sqrt()
    cos, sin = angle.cos(), angle.sin()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos * sx * mirror, -sin * sy
    theta[:, 1, 0], theta[:, 1, 1] = sin * sx * mirror, cos * sy
    theta[:, :, 2] = (torch.rand(n, 2, generator=generator) * 2 - 1) * 2 * strength.shift * side[:, None]
    grid = F.affine_grid(theta, [n, 3, side_px, side_px], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def stain(images: Tensor, strength: Augmentation, generator: torch.Generator) -> Tensor:
    """Vary dyes and light of images (B, 3, H, W) in [0, 1]."""
    n = len(images)
    density = -(images.clamp(1 / 255, 1)).log()
    if strength.transfer > 0:
        other = density[torch.randperm(n, generator=generator)]
        mean, sd = density.mean((2, 3), keepdim=True), density.std((2, 3), keepdim=True) + 0.02
        mean2, sd2 = other.mean((2, 3), keepdim=True), other.std((2, 3), keepdim=True) + 0.02
        # Bounded, for a view without a nucleus would else stretch the background's noise.
        lent = (density - mean) * (sd2 / sd).clamp(0.5, 2.0) + mean2
        share = _uniform(n, 0.3, 1.0, generator) * _chosen(n, strength.transfer, generator)
        density = torch.lerp(density, lent, share[:, None, None, None]).clamp(0, 5.6)
    mix = torch.eye(3) + torch.randn(n, 3, 3, generator=generator) * strength.stain_mix
    # Rows that keep their sum change the hue of the dyes without changing how dark the cell is.
    mix = mix / mix.sum(2, keepdim=True).clamp(min=0.4)
    gain = (_uniform(n, -strength.stain_gain, strength.stain_gain, generator)).exp()
    channel = (torch.randn(n, 3, generator=generator) * strength.stain_mix).exp()
    density = torch.einsum("bij,bjhw->bihw", mix, density) * (gain[:, None] * channel)[:, :, None, None]
    light = _uniform(n, -strength.brightness, strength.brightness, generator)[:, None]
    tint = torch.randn(n, 3, generator=generator) * strength.brightness / 3
    image = (-(density + (light + tint)[:, :, None, None])).exp().clamp(0, 1)
    image = _rotate_hue(image, _uniform(n, -strength.hue, strength.hue, generator) * 2 * torch.pi)
    grey = image.mean(1, keepdim=True).expand_as(image)
    return torch.where(_chosen(n, strength.grey, generator)[:, None, None, None], grey, image)


def _rotate_hue(image: Tensor, angle: Tensor) -> Tensor:
    """Rotate colours around the grey axis (Rodrigues), (B, 3, H, W) by (B,) radians."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    k = 1 / 3**0.5
    cross = torch.tensor([[0, -k, k], [k, 0, -k], [-k, k, 0]])
    rotation = cos * torch.eye(3) + sin * cross + (1 - cos) * torch.full((3, 3), 1 / 3)
    return torch.einsum("bij,bjhw->bihw", rotation, image).clamp(0, 1)


def optics(images: Tensor, strength: Augmentation, generator: torch.Generator) -> Tensor:
    """Defocus or a coarser scanner, sensor noise, and an erased square.

    How coarse and how blurred is drawn once a batch, relative to the side of the view: down to about 32
    pixels across, and to a blur of a sixtieth of the side.
    """
    n, _, h, w = images.shape
    kinds = torch.rand(n, generator=generator)
    if strength.blur > 0:
        least, most = 0.5, max(0.8, h / 60)
        across = max(8, int(h / float(_uniform(1, 1.5, max(2.0, h / 32), generator))))
        sigma = float(_uniform(1, least, most, generator))
        rough = torch.nonzero(kinds < strength.blur / 2).flatten()
        soft = torch.nonzero((kinds >= strength.blur / 2) & (kinds < strength.blur)).flatten()
        images = images.clone()
        if len(rough):
            coarse = F.interpolate(
                images[rough], (across, across), mode="bilinear", align_corners=False, antialias=True
            )
            images[rough] = F.interpolate(coarse, (h, w), mode="bilinear", align_corners=False)
        if len(soft):
            images[soft] = _blurred(images[soft], sigma)
    if strength.noise > 0:
        level = _uniform(n, 0, strength.noise, generator)[:, None, None, None]
        images = images + torch.randn(images.shape, generator=generator) * level
    if strength.erase > 0:
        erased = _chosen(n, strength.erase, generator)
        size = (_uniform(n, 0.12, 0.35, generator) * h).int().tolist()
        top = (torch.rand(n, 2, generator=generator) * h).int().tolist()
        images = images.clone()
        for i in torch.nonzero(erased).flatten().tolist():
            y, x = top[i]
            square = images[i, :, y : y + size[i], x : x + size[i]]
            square[:] = square.mean((1, 2), keepdim=True)
    return images.clamp(0, 1)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (B, C, H, W) after a Gaussian of `sigma` pixels."""
    reach = max(1, int(3 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    line = (line / line.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, line[:, :, None, :], groups=images.shape[1])
    return F.conv2d(rows, line[:, :, :, None], groups=images.shape[1])


def augment(
    images: Tensor, side_px: int, view: Tensor, strength: Augmentation, generator: torch.Generator
) -> Tensor:
    """Random views (B, 3, side_px, side_px) in [0, 1] of images (B, 3, S, S) in [0, 1]."""
    views = geometry(images, side_px, view, strength, generator)
    if strength == Augmentation.none():
        return views
    return optics(stain(views, strength, generator), strength, generator)
