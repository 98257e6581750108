"""A stained cell in the look of another stain, so that a generator learns its target apart from its source.

Each smear was stained once, so pairs show every DIC image with the stain of its own source alone, and a
generator that is asked for another has never seen that.  Here the colours of glass, nuclei and cytoplasm
of one source become those of another (`stainers.landmarks`); forms and names stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stainers.landmarks import landmarks_apply, landmarks_measure

if TYPE_CHECKING:
    from stainers.data import Smear

Array = np.ndarray[Any, Any]

CELLS = 60  # of each domain that its look is measured on
WINDOW_PX = 224


def measure_looks(smears: Sequence[Smear], seed: int = 0) -> dict[str, Array]:
    """Glass and densities (see `landmarks_measure`) of each domain: medians over some of its leukocytes."""
    from stainers.data import leukocyte_windows

    looks = {}
    for domain in sorted({s.domain for s in smears}):
        mine = [s for s in smears if s.domain == domain]
        windows = leukocyte_windows(mine, WINDOW_PX)
        if not windows:
            continue
        chosen = np.random.default_rng([seed, 77]).permutation(len(windows))[:CELLS]
        look = np.nanmedian([landmarks_measure(windows[i][1]) for i in chosen], axis=0)
        look[:3] = np.median([s.background_rgb for s in mine], axis=0)
        looks[domain] = look
    return looks


def in_look(stained: Array, background_rgb: Sequence[float], source: Array, target: Array) -> Array:
    """A crop (H, W, 3) uint8 of a smear on `background_rgb`, of the look `source`, in the look `target`."""
    own = source.copy()
    own[:3] = background_rgb
    return np.asarray(np.rint(np.clip(landmarks_apply(stained, own, target), 0, 1) * 255), np.uint8)
