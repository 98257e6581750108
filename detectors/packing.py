"""Canvases for training: pieces of several images, at one physical scale, laid side by side.

Every image is resampled to the detector's pixel size first, so that small canvases hold many cells and
an epoch costs a third of what a resize of each image to the canvas would.  The pieces meet in seams, as
fields of stitched slides do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from detectors.augment import Rng, degrade, precipitate, restain, shift_colours
from detectors.datasets import LEUKOCYTE, Sample
from storage.images import read_rgb

LEAST_SLIVER = 0.06  # of a leukocyte's box: labels of real fields go down to this at the edges
ALREADY_DIC = "dic"  # the tag of a sample that is DIC as it is: no computed look is laid over it
CUT_SHARE = 0.7  # of the windows about a leukocyte have their edge through it

Look = Callable[[np.ndarray, float, Rng], np.ndarray]  # (RGB image, its pixel size in µm, rng) -> RGB image


@lru_cache(maxsize=4096)
def _at_scale(path: Path, factor: float, modality: str) -> np.ndarray:
    """An image resampled once (at twice the canonical resolution or less) and kept: 1,300 take 200 MB."""
    return resample(read_rgb(path, modality=modality), factor)


def resample(image: np.ndarray, factor: float) -> np.ndarray:
    """Resize by a factor: area averages when shrinking (no aliasing), bilinear when growing."""
    import cv2

    height, width = image.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size == (width, height):
        return image
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=how)


def _layout(size: int, rng: Rng) -> list[tuple[int, int, int, int]]:
    """Areas x0, y0, x1, y1 that fill a canvas: one, two or four."""
    kind = rng.random()
    cx, cy = (int(v) for v in rng.uniform(0.38, 0.62, 2) * size)
    if kind < 0.03:
        return [(0, 0, size, size)]
    if kind < 0.07:
        return [(0, 0, cx, size), (cx, 0, size, size)]
    if kind < 0.11:
        return [(0, 0, size, cy), (0, cy, size, size)]
    if kind < 0.62:  # ragged: the seam of the upper half is not that of the lower
        other = int(rng.uniform(0.35, 0.65) * size)
        return [(0, 0, cx, cy), (cx, 0, size, cy), (0, cy, other, size), (other, cy, size, size)]
    return [(0, 0, cx, cy), (cx, 0, size, cy), (0, cy, cx, size), (cx, cy, size, size)]


def _turn(image: np.ndarray, boxes: np.ndarray, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """One of the 8 orientations."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        image = image[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    if rng.random() < 0.5:
        image = image[::-1]
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1)
    if rng.random() < 0.5:
        image = image.transpose(1, 0, 2)
        boxes = boxes[:, [1, 0, 3, 2]]
    return np.ascontiguousarray(image), boxes


def scale_jitter(rng: Rng, strength: float = 1.0) -> float:
    """Mostly near 1, sometimes anywhere in 0.55-1.7: a wrong pixel size must not lose the cells."""
    if rng.random() < 1 - 0.3 * strength:
        return float(np.clip(np.exp(rng.normal(0, 0.14 * strength)), 0.6, 1.6))
    return float(np.exp(rng.uniform(np.log(0.55), np.log(1.7))))


def pack(
    samples: Iterator[Sample],
    size: int,
    pixel_size_um: float,
    rng: Rng,
    look: Look | None = None,
    strength: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One canvas (size, size, 3) uint8 RGB with its boxes (N, 4) px and classes (N,).

    `strength` is the share of random changes of look and scale that are made; the other pieces stay as
    they are, from which the exact boxes of the known sources are learnt.  `look` turns each stained
    piece into another modality (DIC); the stain is then left as it is.
    """
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = rng.integers(0, 256, 3) if rng.random() < 0.3 else rng.integers(150, 256, 3)
    all_boxes, all_classes = [], []
    for x0, y0, x1, y1 in _layout(size, rng):
        sample = next(samples)
        factor = sample.pixel_size_um / pixel_size_um
        cached = round(min(1.0, factor * 2), 5)
        image = _at_scale(sample.path, cached, "dic" if ALREADY_DIC in sample.tags else "brightfield")
        full = factor * scale_jitter(rng, strength)
        # Before the resize, so that blur and noise have their physical size.
        if look is not None and ALREADY_DIC not in sample.tags:
            image = look(image, sample.pixel_size_um / cached, rng)
        image = resample(image, full / cached)
        shrink = (image.shape[1] / sample.width_px, image.shape[0] / sample.height_px)
        boxes = sample.boxes * np.tile(shrink, 2)
        image, boxes = _turn(image, boxes, rng)
        if look is None:
            if rng.random() < 0.8 * strength:
                image = restain(image, rng)
            if rng.random() < 0.5 * strength:
                image = shift_colours(image, rng)
            if rng.random() < 0.06 * strength:
                image = precipitate(image, rng)
        piece, left, top = _crop(image, boxes, sample.classes, x1 - x0, y1 - y0, rng)
        height, width = piece.shape[:2]
        at_x, at_y = _place(x0, x1, width, rng), _place(y0, y1, height, rng)
        canvas[at_y : at_y + height, at_x : at_x + width] = piece
        moved = boxes - np.tile([left, top], 2)
        clipped = np.clip(moved, 0, np.tile([width, height], 2))
        area = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
        left_over = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
        # The real labels box slivers of leukocytes at the images' edges, so slivers count here too.
        least = np.where(sample.classes == LEUKOCYTE, LEAST_SLIVER, 0.3)
        keep = left_over > least * np.maximum(area, 1e-6)
        all_boxes.append(clipped[keep] + np.tile([at_x, at_y], 2))
        all_classes.append(sample.classes[keep])
    if rng.random() < strength:
        canvas = degrade(canvas, rng)
    return canvas, np.concatenate(all_boxes).astype(np.float32), np.concatenate(all_classes)


def _place(start: int, end: int, length: int, rng: Rng) -> int:
    """Where a piece of `length` begins in start..end: at one end or the other, or anywhere."""
    free = end - start - length
    return start + int(rng.choice([0, free, rng.integers(0, free + 1)]))


def _crop(
    image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, width: int, height: int, rng: Rng
) -> tuple[np.ndarray, int, int]:
    """A window of at most (height, width); mostly with a leukocyte whole, sometimes with a sliver of one."""
    h, w = image.shape[:2]
    wide, high = min(w, width), min(h, height)
    left, top = int(rng.integers(0, w - wide + 1)), int(rng.integers(0, h - high + 1))
    right, bottom = left + wide, top + high
    white = boxes[classes == LEUKOCYTE]
    if len(white) and rng.random() < 0.8:
        x0, y0, x1, y1 = white[rng.integers(len(white))]
        if x1 - x0 <= width and y1 - y0 <= height:
            left, right = _around(x0, x1, wide, w, rng)
            top, bottom = _around(y0, y1, high, h, rng)
            if rng.random() < CUT_SHARE:
                # Thin slivers are the hard ones.
                seen = LEAST_SLIVER + (0.5 - LEAST_SLIVER) * rng.random() ** 2
                if rng.random() < 0.5:
                    left, right = _through(x0, x1, seen, wide, w, rng)
                else:
                    top, bottom = _through(y0, y1, seen, high, h, rng)
    return image[top:bottom, left:right], left, top


def _around(start: float, end: float, length: int, whole: int, rng: Rng) -> tuple[int, int]:
    """First pixel, and the one after the last, of a window of `length` in `whole` that holds start..end."""
    low, high = max(0, int(np.ceil(end - length))), min(whole - length, int(start))
    first = int(rng.integers(low, high + 1)) if high >= low else int(rng.integers(0, whole - length + 1))
    return first, first + length


def _through(start: float, end: float, seen: float, length: int, whole: int, rng: Rng) -> tuple[int, int]:
    """The same for a window that shows the share `seen` of start..end, at one of its ends.

    It is shorter than `length` where `whole` ends before: photographs are hardly larger than the pieces of
    a canvas, and a window moved back inside would show the cell whole.
    """
    side = seen * (end - start)
    if rng.random() < 0.5:
        first = min(max(0, round(end - side)), whole - 2)
        return first, min(whole, first + length)
    last = max(min(whole, round(start + side)), 2)
    return max(0, last - length), last


def endless(samples: list[Sample], rng: Rng) -> Iterator[Sample]:
    """Samples in random order for ever, each once before any twice."""
    while True:
        for index in rng.permutation(len(samples)):
            yield samples[int(index)]
