"""What a classifier is to everyone who uses one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Classified:
    """Class probabilities (N, K) float32 that sum to 1, and ood (N,) float32 in [0, 1].

    `ood` is the share of validation cells that looked more familiar: above 0.99 a cell lies beyond
    the 99th percentile.
    """

    probabilities: np.ndarray
    ood: np.ndarray


@runtime_checkable
class Classifier(Protocol):
    """Names the cell in the middle of a patch."""

    name: str
    classes: tuple[str, ...]  # canonical names or parents (CLINICAL.md)

    def classify(self, patches: np.ndarray, pixel_size_um: float | None) -> Classified:
        """Classify patches (N, H, W, 3) uint8 centred on a cell; the same for any batch.

        Without a pixel size the scale is inferred from the patch.
        """
        ...
