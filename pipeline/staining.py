"""Stage: stain the DIC patches of a shard virtually.

Which stainer it is makes no difference here; what it states about its own reliability does: patches
whose confidence is under the card's threshold are marked, and are not to be counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import BadInput
from pipeline.settings import StainingSettings
from stainers.base import Stainer


@dataclass(frozen=True)
class VirtualPatches:
    """N virtually stained patches.

    image: (N, H, W, 3) uint8; uncertainty: (N, H, W) float32, expected absolute error in [0, 1] or the
    model's own scale; confidence: (N,) float32 in [0, 1]; target: the stain domain; min_confidence: below
    it a cell is not to be counted.
    """

    image: np.ndarray
    uncertainty: np.ndarray
    confidence: np.ndarray
    target: str
    min_confidence: float

    def __len__(self) -> int:
        return len(self.image)


def stain_patches(
    patches: np.ndarray,
    stainer: Stainer,
    settings: StainingSettings,
    *,
    shear_angle_deg: Sequence[float | None] | None = None,
) -> VirtualPatches:
    """Stain DIC patches (N, H, W, 1) uint8 at 0.1 µm a pixel; RGB-stored grey (N, H, W, 3) is taken too.

    `shear_angle_deg`, one a patch, is used by a stainer that asks for it (`uses_shear`); it comes from a
    registration or from the whole field, which know it better than one patch.  N may be 0.  Raises
    BadInput for another shape or type, or for a target that the stainer does not have.
    """
    patches = np.asarray(patches)
    if patches.ndim != 4 or patches.shape[-1] not in (1, 3) or patches.dtype != np.uint8:
        raise BadInput(
            f"patches to stain are {patches.shape} {patches.dtype}; a stainer takes (N, H, W, 1) uint8 DIC."
        )
    target = settings.target or stainer.targets[0]
    if target not in stainer.targets:
        raise BadInput(
            f"stainer '{stainer.name}' has no target '{target}'; set staining.target to one of: "
            f"{', '.join(stainer.targets)}."
        )
    if shear_angle_deg is not None and getattr(stainer, "uses_shear", False):
        stained = stainer.stain(patches, target, shear_angle_deg=shear_angle_deg)  # type: ignore[call-arg]
    else:
        stained = stainer.stain(patches, target)
    return VirtualPatches(
        image=stained.image,
        uncertainty=stained.uncertainty,
        confidence=stained.confidence,
        target=target,
        min_confidence=min_stain_confidence(stainer, settings.min_confidence),
    )


def min_stain_confidence(stainer: Stainer, given: float | None = None) -> float:
    """The threshold that is given, else the one that the model's card states, else 0: none is known."""
    if given is not None:
        return given
    return float(getattr(stainer, "min_confidence", 0.0))
