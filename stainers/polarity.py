"""Which way round a DIC image is: the sign of its shear, learned.

The axis of the shear is measured (`dic_input.estimate_shear`); its sign is a question of what cells look
like, since the negative of a relief is a relief lit from the other side.  A very small network reads the
integrated image; see `networks.PolarityNet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stainers.data import Smear, window
from stainers.dic_input import Shear, estimate_shear, integrate, measure_scale, normalise, to_grey
from stainers.networks import PolarityNet

Array = np.ndarray[Any, Any]

SHRINK = 4  # 0.1 -> 0.4 µm a pixel


def polarity_input(path: Array) -> Array:
    """Integrated image (H, W) -> (1, h, w) float32 at a quarter of the size, median 0, unit spread."""
    height, width = (max(SHRINK, n // SHRINK * SHRINK) for n in path.shape)
    if path.shape[0] < height or path.shape[1] < width:
        path = np.pad(
            path, ((0, max(0, height - path.shape[0])), (0, max(0, width - path.shape[1]))), mode="edge"
        )
    blocks = path[:height, :width].reshape(height // SHRINK, SHRINK, width // SHRINK, SHRINK)
    small = blocks.mean(axis=(1, 3))
    small = small - small.mean()
    return (small / (small.std() + 1e-6))[None].astype(np.float32)


@torch.no_grad()
def upright_logit(net: PolarityNet, path: Array) -> float:
    """Log odds that an integrated image (H, W) is upright: negative where the shear points the other way.

    The mean over the image's four quarter turns and their mirror images, which are upright alike: a single
    view was wrong on 4 of 90 test patches, their mean on none (docs/staining.md).
    """
    small = polarity_input(path)[0]
    views = [np.rot90(side, quarter) for side in (small, small[::-1]) for quarter in range(4)]
    device = next(net.parameters()).device
    if small.shape[0] == small.shape[1]:
        found = net(torch.from_numpy(np.stack(views)[:, None]).to(device))
        return float(found.mean())
    return float(np.mean([float(net(torch.from_numpy(v[None, None].copy()).to(device))) for v in views]))


def find_shear(net: PolarityNet, grey: Array) -> Shear:
    """Shear of one patch or field (H, W) grey levels; `polarity` is the probability of its sign."""
    normalised = normalise(grey, measure_scale(grey))
    # a field is judged by its central part, which holds enough cells
    top, left = (max(0, (n - 1024) // 2) for n in normalised.shape)
    part = normalised[top : top + 1024, left : left + 1024]
    guess = estimate_shear(part)
    logit = upright_logit(net, integrate(part, guess.angle_deg))
    angle = guess.angle_deg if logit >= 0 else (guess.angle_deg + 180.0) % 360.0
    return Shear(angle, guess.anisotropy, float(1 / (1 + np.exp(-abs(logit)))))


def draw_path(smears: Sequence[Smear], seed: int, number: int, size_px: int = 256) -> tuple[Array, float]:
    """Integrated DIC of a random crop along its measured axis, and 1.0 where it is upright, else 0.0."""
    rng = np.random.default_rng([seed, 77, number])
    smear = smears[rng.integers(len(smears))]
    if len(smear.leukocytes) and rng.random() < 0.6:
        box = smear.leukocytes[rng.integers(len(smear.leukocytes))]
        centre = np.asarray([box[0] + box[2], box[1] + box[3]]) / 2
    else:
        centre = rng.uniform(0.2, 0.8, 2) * smear.image.shape[1::-1]
    stained = window(smear.image, centre, size_px)
    dic, optics = smear.computed_dic(stained, rng)
    grey = to_grey(dic)
    normalised = normalise(grey, measure_scale(grey))
    angle = estimate_shear(normalised).angle_deg + (180.0 if rng.random() < 0.5 else 0.0)
    path = integrate(normalised, angle)
    upright = np.cos(np.deg2rad(angle - optics.shear_angle_deg)) > 0
    quarter, mirror = rng.integers(4), rng.integers(2)
    path = np.rot90(path[::-1] if mirror else path, quarter)
    return polarity_input(path), float(upright)


def train_polarity(smears: Sequence[Smear], steps: int, seed: int, batch: int = 16) -> PolarityNet:
    """Train on random optics; half a minute to two on one core."""
    torch.manual_seed(seed)
    net = PolarityNet()
    usable = [s for s in smears if s.split == "train"]
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(steps, 2))
    net.train()
    pool: list[tuple[Array, float]] = []
    for step in range(steps):
        rng = np.random.default_rng([seed, 5, step])
        # pairs are dearer than steps: each is used again, until it leaves a rolling pool
        for n in range(batch // 2):
            pool.append(draw_path(usable, seed, step * batch // 2 + n))
        pool = pool[-2048:]
        chosen = [pool[i] for i in rng.integers(len(pool), size=batch * 2)]
        paths = torch.from_numpy(np.stack([c[0] for c in chosen]))
        upright = torch.tensor([c[1] for c in chosen])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(paths), upright)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def polarity_accuracy(net: PolarityNet, smears: Sequence[Smear], n: int, seed: int) -> tuple[int, int]:
    """(right, asked) on fresh crops of the given smears."""
    right = 0
    for number in range(n):
        path, upright = draw_path(smears, seed, number)
        right += int((float(net(torch.from_numpy(path)[None])) > 0) == bool(upright))
    return right, n
