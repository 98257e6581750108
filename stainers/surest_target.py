"""Which of its targets a stainer paints cells of DIC in most like what a classifier of virtual cells knows.

A stainer paints each laboratory's look as a target of its own.  Towards the look that a case would really
have its cells are painted most like what the classifier has learned, so it is surest of them
(docs/virtual-naming.md has how often that finds the right one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stainers.virtual_cells import Painter

Array = np.ndarray[Any, Any]

LEAST, MOST = 20, 60  # cells: fewer say too little, more say hardly more


def spread(n: int) -> list[int]:
    """Which of n cells to try the targets on, spread evenly; none where they are too few."""
    return [] if n < LEAST else [int(i) for i in np.linspace(0, n - 1, min(MOST, n)).round()]


def confidence_by_target(
    stainer: Any,
    classifier: Any,
    dic: Array,
    pixel_size_um: float,
    shear_angles_deg: Sequence[float] | None = None,
) -> dict[str, float]:
    """How sure (0 to 1) the classifier is of each target, on the mean of cells (N, H, W, 1) uint8.

    The shear of each cell is found in its patch where it is not given (degrees).
    """

    def painted(look: str) -> Array:
        if isinstance(stainer, Painter) and shear_angles_deg is not None:
            each = zip(dic, shear_angles_deg, strict=True)
            return np.stack([stainer.paint(patch, look, shear_angle_deg=angle) for patch, angle in each])
        known = {} if shear_angles_deg is None else {"shear_angle_deg": shear_angles_deg}
        return np.asarray(stainer.stain(dic, look, **known).image)

    sure: dict[str, float] = {}
    for look in stainer.targets:
        probabilities = classifier.classify(painted(look), pixel_size_um).probabilities
        sure[look] = round(float(probabilities.max(axis=1).mean()), 4)
    return sure
