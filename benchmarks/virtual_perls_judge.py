"""An automatic judge of realism: a small network that tells real from virtual patches.

It stands in for the experts of a Visual Turing Test and is named as what it is wherever its figures stand.
It is trained on half of the held-out patches and asked about the other half, and the other way round.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]


class Judge(nn.Module):
    """(B, 3, 64, 64) in [0, 1] -> logit (B,): above 0 it takes the patch for real."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 3 * width, 3 * width]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(2 * x - 1)
        return self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))[:, 0]


def _planes(images: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255


def train_judge(real: Array, virtual: Array, *, steps: int = 150, seed: int = 0) -> Judge:
    """A judge trained on real and virtual patches (N, S, S, 3) uint8, both drawn alike often, turned."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    judge, planes = Judge(), (_planes(real), _planes(virtual))
    optimiser = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        parts = [p[torch.from_numpy(rng.integers(0, len(p), 12))] for p in planes]
        x = torch.rot90(torch.cat(parts), int(rng.integers(4)), (2, 3))
        x = x.flip(3) if rng.random() < 0.5 else x
        wanted = torch.cat([torch.ones(12), torch.zeros(12)])
        loss = nn.functional.binary_cross_entropy_with_logits(judge(x), wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return judge.eval()


@torch.no_grad()
def taken_for_real(judge: Judge, images: Array) -> Array:
    """(N,) bool."""
    return (judge(_planes(images)) > 0).numpy()


def judge_realism(real: Array, virtual: Array, *, seed: int = 0, steps: int = 150) -> tuple[Array, Array]:
    """Whether each real and each virtual patch (N, S, S, 3) uint8 is taken for real, (N,) bool each.

    Two-fold: no patch is judged by a network that was trained on it.
    """
    rng = np.random.default_rng([seed, 5])
    folds = [rng.permutation(len(x)) % 2 for x in (real, virtual)]
    verdicts = np.zeros(len(real), bool), np.zeros(len(virtual), bool)
    for fold in (0, 1):
        judge = train_judge(real[folds[0] != fold], virtual[folds[1] != fold], seed=seed, steps=steps)
        for verdict, images, own in zip(verdicts, (real, virtual), folds, strict=True):
            verdict[own == fold] = taken_for_real(judge, images[own == fold])
    return verdicts
