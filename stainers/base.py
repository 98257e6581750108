"""What a stainer is to everyone who uses one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Stained:
    """Virtually stained patches.

    image: (N, H, W, 3) uint8; uncertainty: (N, H, W) float32, 0 = certain, comparable between
    patches of one model; confidence: (N,) float32 in [0, 1].
    """

    image: np.ndarray
    uncertainty: np.ndarray
    confidence: np.ndarray


@runtime_checkable
class Stainer(Protocol):
    """Turns patches of one modality or stain into another's look."""

    name: str
    targets: tuple[str, ...]  # domains it can stain for; the first is the default

    def stain(self, patches: np.ndarray, target: str | None = None) -> Stained:
        """Stain patches (N, H, W, C) uint8, C = 1 for DIC and 3 for brightfield, at 0.1 µm a pixel.

        The result for a patch is the same whatever else is in the batch.
        """
        ...
