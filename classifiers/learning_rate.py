"""The learning-rate range test (Smith 2017, section 3.3): what the 1cycle policy's peak should be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

LOW, HIGH, STEPS = 1e-6, 1.0, 80
SMOOTHING, DIVERGED = 0.9, 4.0
MARGIN = 10.0  # the peak lies a factor below the rate of least loss, as the policy's author advises


@dataclass(frozen=True)
class RangeTest:
    """Rates (N,), the smoothed losses (N,) met at them, and the rate that is suggested."""

    rates: np.ndarray
    losses: np.ndarray
    suggested: float


def range_test(
    network: nn.Module,
    batches: Callable[[], tuple[Tensor, Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    weight_decay: float = 0.0,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
) -> RangeTest:
    """Raise the rate from `low` to `high` step by step on a copy of the network, until its loss diverges.

    `batches()` draws views, labels and weights; `loss(out, labels, weights)` is the training's own.  The
    network itself is left as it is.
    """
    net = copy.deepcopy(network).train()
    optimiser = torch.optim.AdamW(net.parameters(), low, weight_decay=weight_decay)
    rates = np.geomspace(low, high, steps)
    kept: list[float] = []
    mean = 0.0
    for step, rate in enumerate(rates):
        for group in optimiser.param_groups:
            group["lr"] = float(rate)
        views, labels, weights = batches()
        value = loss(net(views), labels, weights)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        mean = SMOOTHING * mean + (1 - SMOOTHING) * float(value.detach())
        kept.append(mean / (1 - SMOOTHING ** (step + 1)))  # without the pull of the start at 0
        if not np.isfinite(kept[-1]) or kept[-1] > DIVERGED * min(kept):
            break
    losses = np.array(kept)
    finite = np.where(np.isfinite(losses), losses, np.inf)
    # The first steps' losses are noise of a single batch; the least is looked for behind them.
    first = min(len(finite) - 1, steps // 10)
    best = first + int(finite[first:].argmin())
    return RangeTest(rates[: len(losses)], losses, float(np.clip(rates[best] / MARGIN, low, 0.1)))
