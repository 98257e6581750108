"""Inputs that a stainer cannot stain: what its confidence has to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stainers.pair_sources import Pair

Array = np.ndarray[Any, Any]


def black_square(dic: Array, rng: np.random.Generator, side: int = 50) -> Array:
    """A square of 50 x 50 px blacked out (thesis, section 7.3); it lies where the cell is."""
    spoilt = dic.copy()
    height, width = spoilt.shape[:2]
    low, high = 0.2, 0.8
    y = int(rng.uniform(low * height, max(high * height - side, low * height + 1)))
    x = int(rng.uniform(low * width, max(high * width - side, low * width + 1)))
    spoilt[y : y + side, x : x + side] = 0
    return spoilt


def defocus(dic: Array, rng: np.random.Generator, low: float = 5.0, high: float = 10.0) -> Array:
    """Gaussian blur of 0.5 to 1 µm: no nucleus can be told from its cytoplasm any more."""
    import cv2

    return cv2.GaussianBlur(dic[..., 0], (0, 0), float(rng.uniform(low, high)))[..., None]


def wrong_modality(pair: Pair) -> Array:
    """The brightfield image itself, grey, as if it were DIC."""
    return np.round(pair.stained.astype(np.float32).mean(axis=-1)).astype(np.uint8)[..., None]


SPOILS: dict[str, Callable[[Pair, np.random.Generator], Array]] = {
    "black_square_50px": lambda pair, rng: black_square(pair.dic, rng),
    "defocus": lambda pair, rng: defocus(pair.dic, rng),
    "wrong_modality": lambda pair, rng: wrong_modality(pair),
}


def spoil_for_calibration(pair: Pair, rng: np.random.Generator) -> Array:
    """Rectangles of any level, defocus, or a brightfield image, as DIC (H, W, 1) uint8."""
    import cv2

    kind = rng.integers(3)
    if kind == 0:
        spoilt = pair.dic.copy()
        height, width = spoilt.shape[:2]
        h, w = (int(v) for v in rng.integers(32, 100, 2))
        y, x = int(rng.integers(0, max(1, height - h // 2))), int(rng.integers(0, max(1, width - w // 2)))
        spoilt[y : y + h, x : x + w] = 0 if rng.random() < 0.4 else rng.integers(256)
        return spoilt
    if kind == 1:
        return cv2.GaussianBlur(pair.dic[..., 0], (0, 0), float(rng.uniform(4, 12)))[..., None]
    channel = int(rng.integers(4))
    grey = pair.stained.mean(axis=-1) if channel == 3 else pair.stained[..., channel]
    return np.round(grey).astype(np.uint8)[..., None]
