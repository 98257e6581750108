"""The moving average of a network's weights, which is what a training keeps of it."""

from __future__ import annotations

import torch
from torch import nn


def follow(average: nn.Module, network: nn.Module, keep: float) -> None:
    """Move an average in place: `keep` of it stays, the rest is the network's; counts are copied."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)
