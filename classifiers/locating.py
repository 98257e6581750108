"""Training of the locator: where the cell in the middle of a crop lies, and how large it is.

A crop of unknown scale is cut to the cell before the cell is named; the locator learns this from boxed
cells of several stains, shown in views in which the cell fills from a twelfth to nine tenths of the side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from classifiers.augment import Augmentation, optics, stain
from classifiers.networks import Locator
from classifiers.sources import Sample
from classifiers.views import LOCATOR_PX, balance, crop_square, white_point
from pipeline.errors import BadInput
from storage.images import read_rgb

CACHED_PX = 128
MARGIN = {"platelet": 8.0, "other": 3.6}  # side of what is cached, in sides of the box; cells: 3.4
SMALL = 0.2  # below this share of the cached side a box is a platelet's, shown small as crops show it


def cached(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Crops (N, 3, 128, 128) uint8 around boxed samples, and the box's share of their side (N,)."""
    crops, share = [], []
    for sample in samples:
        if sample.side is None or sample.x is None or sample.y is None:
            continue
        image = read_rgb(sample.path)
        margin = MARGIN.get(sample.label, 3.4)
        crop = crop_square(image, sample.x, sample.y, margin * sample.side, CACHED_PX)
        crops.append((balance(crop, white_point(image)) * 255).byte())
        share.append(1 / margin)
    if not crops:
        raise BadInput("no sample has a box; the locator learns from boxed cells (columns x, y, side).")
    return torch.stack(crops), torch.tensor(share)


def views(
    images: Tensor, share: Tensor, generator: torch.Generator, strength: Augmentation | None
) -> tuple[Tensor, Tensor]:
    """Random views (B, 3, 64, 64) of cached crops, and where the cell is in them, (B, 3) as `Locator`."""
    n = len(images)

    def between(low: float, high: float) -> Tensor:
        return (torch.rand(n, generator=generator) * (math.log(high) - math.log(low)) + math.log(low)).exp()

    seen = torch.where(share < SMALL, between(0.08, 0.22), between(0.25, 0.9))
    side = (share / seen).clamp(max=1.25)
    offset = (torch.rand(n, 2, generator=generator) * 2 - 1) * 0.08
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    turn = torch.randint(0, 4, (n,), generator=generator) * torch.pi / 2
    cos, sin = turn.cos(), turn.sin()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos * side * mirror, -sin * side
    theta[:, 1, 0], theta[:, 1, 1] = sin * side * mirror, cos * side
    theta[:, :, 2] = -(theta[:, :, :2] @ (2 * offset)[:, :, None])[:, :, 0]
    grid = F.affine_grid(theta, [n, 3, LOCATOR_PX, LOCATOR_PX], align_corners=False)
    view = F.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)
    if strength is not None:
        view = optics(stain(view, strength, generator), strength, generator)
    return view, torch.cat([offset, (share / side).log()[:, None]], 1)


def train_locator(
    samples: Sequence[Sample],
    *,
    steps: int = 2600,
    batch: int = 48,
    learning_rate: float = 4e-3,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Locator:
    """Train a locator on samples with boxes; raises BadInput where none has one."""
    images, share = cached(samples)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = Locator()
    optimiser = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=max(2, steps))
    strength = Augmentation(stain_mix=0.15, erase=0.0)
    weight = torch.tensor([4.0, 4.0, 1.0])
    for step in range(steps):
        chosen = torch.randint(0, len(images), (batch,), generator=generator)
        view, truth = views(images[chosen], share[chosen], generator, strength)
        loss = F.smooth_l1_loss(net(view) * weight, truth * weight, beta=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            report(f"step {step}/{steps} loss {float(loss.detach()):.4f}")
    return net.eval()
