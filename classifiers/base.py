"""What a classifier is to everyone who uses one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import torch


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


@dataclass(frozen=True)
class AttributionInput:
    """What an explanation is computed from.

    `view` (3, S, S) in [0, 1] is what the network reads of the patch, `frame` its centre x, y and its side
    in pixels of the patch; `probabilities` takes views (B, 3, S, S) to the reported, calibrated (B, K) and
    can be differentiated; `layers` are, of each network, the last stage still finer than the cell.
    """

    view: torch.Tensor
    frame: tuple[float, float, float]
    probabilities: Callable[[torch.Tensor], torch.Tensor]
    layers: tuple[torch.nn.Module, ...]


@runtime_checkable
class Explainable(Classifier, Protocol):
    """A classifier whose probabilities can be attributed to pixels (`classifiers.explaining`)."""

    def attribution_input(self, patch: np.ndarray, pixel_size_um: float | None) -> AttributionInput:
        """The view of a patch (H, W, 3) uint8, and how its probabilities come about."""
        ...
