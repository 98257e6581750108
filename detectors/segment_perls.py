"""Candidate erythroblasts in Perls-stained fields: colour, size and roundness of the nucleus, no weights.

Prussian blue with nuclear fast red leaves little but nuclei to see.  A leukocyte detector trained on
Romanowsky stains does not know this look, hence a finder of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from detectors.segment import check_patches
from detectors.segment_colour import background_colour, optical_density
from detectors.windows import starts
from storage.images_info import check_pixel_size

WORKING_PIXEL_SIZE_UM = 0.2
WINDOW_UM, OVERLAP_UM = 240.0, 30.0
# Unit densities of nuclear fast red and Prussian blue (medians of EIPH_WSI photographs).
FAST_RED = np.array((0.22, 0.83, 0.51), np.float32)
IRON = np.array((0.83, 0.49, 0.26), np.float32)
DIAMETER_UM = (3.6, 15.0)  # of a nucleus, orthochromatic to proerythroblast
MIN_CONTRAST = 0.05
USUAL_CONTRAST = 0.28  # of nuclei, at which the figures for cytoplasm were set
MARGIN_UM = 1.6  # of cytoplasm, hardly stained by Perls, added around the nucleus


class PerlsErythroblastFinder:
    """Detector of erythroblasts in brightfield Perls fields; boxes hold the cell, not the nucleus alone."""

    name = "perls-classical"

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, 4) float32 and scores (N,) float32 of (H, W, 3) or (H, W) uint8; see `Detector`."""
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        return find_erythroblasts_perls(image, pixel_size_um)


def find_erythroblasts_perls(image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) float32 in pixels of (H, W, 3) uint8 and scores (N,) float32, highest first.

    The score is the product of how far outline, size, chromatin, cytoplasm and solitude are those of an
    erythroblast; 0.4 is a fair cut.  Its figures were set on phantoms of marrow, as no public Perls
    marrow exists.
    """
    check_patches(image[None])
    check_pixel_size("a Perls image", pixel_size_um)
    glass = background_colour(image)
    rows: list[tuple[float, float, float, float, float]] = []
    for left, top, part in windows(image, pixel_size_um):
        rows += [
            (x0 + left, y0 + top, x1 + left, y1 + top, score)
            for x0, y0, x1, y1, score in _window(part, pixel_size_um, glass)
        ]
    table = np.array(rows, np.float32).reshape(-1, 5)
    table = _once(table[np.argsort(-table[:, 4], kind="stable")])
    return table[:, :4].copy(), table[:, 4].copy()


def windows(image: np.ndarray, pixel_size_um: float) -> Iterator[tuple[int, int, np.ndarray]]:
    """(left, top, part) of overlapping windows over an image, so that a slide takes bounded memory."""
    window, overlap = round(WINDOW_UM / pixel_size_um), round(OVERLAP_UM / pixel_size_um)
    for top in starts(image.shape[0], window, overlap):
        for left in starts(image.shape[1], window, overlap):
            yield left, top, image[top : top + window, left : left + window]


def nuclear_relief(pink: np.ndarray, pixel_size_um: float) -> np.ndarray:
    """Amounts of fast red (H, W) smoothed and freed of what varies slower than nuclei: light, plasma."""
    smooth = cv2.GaussianBlur(pink, (0, 0), 0.35 / pixel_size_um)
    opened = cv2.morphologyEx(smooth, cv2.MORPH_OPEN, _disc(9 / pixel_size_um))
    floor = cv2.GaussianBlur(opened, (0, 0), 3 / pixel_size_um)
    return np.asarray(smooth - np.minimum(floor, smooth))


def _window(image: np.ndarray, pixel_size_um: float, glass: np.ndarray) -> list[tuple[float, ...]]:
    px = WORKING_PIXEL_SIZE_UM
    scale = pixel_size_um / px
    if scale != 1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=method)
    density = optical_density(image, glass)
    pink = fast_red_amount(density)
    relief = nuclear_relief(pink, px)
    level = nuclei_level(relief)
    if level is None:
        return []
    pieces = split_nuclei(relief > level, px)
    nuclei = [_measure(pieces, i, relief, pink, density, px) for i in range(1, int(pieces.max()) + 1)]
    usable = [n for n in nuclei if n is not None]
    if not usable:
        return []
    # A stronger stain makes everything denser: cytoplasm is judged against the nuclei of the same field.
    strength = float(np.median([n.contrast for n in usable])) / USUAL_CONTRAST
    return [(*(v / scale for v in n.box), n.score(strength)) for n in usable]


def fast_red_amount(density: np.ndarray) -> np.ndarray:
    """Amount (H, W) float32 of nuclear fast red in a density (H, W, 3), iron taken apart by least squares."""
    basis = np.stack([FAST_RED / np.linalg.norm(FAST_RED), IRON / np.linalg.norm(IRON)])
    amounts = density @ np.linalg.pinv(basis).astype(np.float32)
    alone = density @ basis[0].astype(np.float32)
    return np.maximum(np.where(amounts[..., 1] < 0, alone, amounts[..., 0]), 0).astype(np.float32)


def nuclei_level(relief: np.ndarray) -> float | None:
    """Threshold half way between nuclei and the rest; None where nothing stands out."""
    top = float(np.percentile(relief, 99.7))
    if top < MIN_CONTRAST:
        return None
    scaled = np.clip(relief / top * 255, 0, 255).astype(np.uint8)
    otsu = float(cv2.threshold(scaled, 0, 255, cv2.THRESH_OTSU)[0]) / 255 * top
    body = relief[relief > otsu]
    return float(np.median(body)) / 2 if body.size and float(np.median(body)) > MIN_CONTRAST else None


def _disc(radius_px: float) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(radius_px) + 1,) * 2)


def split_nuclei(stained: np.ndarray, pixel_size_um: float) -> np.ndarray:
    """Numbered nuclei (H, W) int: filled, freed of crumbs, touching ones cut at their necks."""
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    # Opening takes crumbs away; closing fills the notches that pale chromatin leaves in an outline.
    opened = cv2.morphologyEx(stained.astype(np.uint8), cv2.MORPH_OPEN, _disc(0.5 / pixel_size_um))
    kernel = _disc(0.8 / pixel_size_um)
    room = kernel.shape[0]
    closed = cv2.morphologyEx(np.pad(opened, room), cv2.MORPH_CLOSE, kernel)[room:-room, room:-room]
    filled = ndimage.binary_fill_holes(closed)
    distance = np.rint(ndimage.distance_transform_edt(filled) * pixel_size_um * 1000)
    flooded = reconstruction(np.maximum(distance - 400, 0), distance, method="dilation")
    markers, _ = ndimage.label(local_maxima(flooded.astype(np.int32)) & filled, np.ones((3, 3)))
    return np.asarray(watershed(-distance, markers, mask=filled))


@dataclass(frozen=True)
class _Nucleus:
    """What is measured of one nucleus at the working scale; densities in OD, lengths in µm."""

    box: tuple[float, float, float, float]
    diameter_um: float
    roundness: float
    solidity: float
    contrast: float
    coarseness: float  # spread of fast red over its mean: clumped chromatin is coarse
    cytoplasm: float  # green density just outside: haemoglobin and ribosomes make it dense
    lone: bool  # no other piece of nucleus near, as lobes have

    def score(self, strength: float) -> float:
        """How far this is an erythroblast's nucleus, in [0, 1]."""
        shape = _ramp(self.roundness, 0.7, 0.82) * _ramp(self.solidity, 0.9, 0.95)
        size = _ramp(self.diameter_um, 0.8 * DIAMETER_UM[0], DIAMETER_UM[0]) * _ramp(
            -self.diameter_um, -1.2 * DIAMETER_UM[1], -DIAMETER_UM[1]
        )
        look = _ramp(self.coarseness, 0.28, 0.35) * _ramp(self.cytoplasm / strength, 0.012, 0.035)
        seen = _ramp(self.contrast, MIN_CONTRAST, 2.5 * MIN_CONTRAST)
        return shape * size * seen * look * (1.0 if self.lone else 0.2)


def _measure(
    pieces: np.ndarray, index: int, relief: np.ndarray, pink: np.ndarray, density: np.ndarray, px: float
) -> _Nucleus | None:
    """Measure one nucleus; None for what is far too small or large."""
    ys, xs = np.nonzero(pieces == index)
    diameter = 2 * float(np.sqrt(len(ys) / np.pi)) * px
    if not DIAMETER_UM[0] * 0.8 <= diameter <= DIAMETER_UM[1] * 1.2:
        return None
    room = round(6.0 / px)
    y0, x0 = max(0, int(ys.min()) - room), max(0, int(xs.min()) - room)
    window = (slice(y0, int(ys.max()) + room + 1), slice(x0, int(xs.max()) + room + 1))
    own = pieces[window] == index
    others = (pieces[window] > 0) & ~own
    contour = max(
        cv2.findContours(own.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0],
        key=cv2.contourArea,
    )
    area, length = cv2.contourArea(contour), cv2.arcLength(contour, True)
    hull = cv2.contourArea(cv2.convexHull(contour))
    if length == 0 or hull == 0:
        return None
    outside = cv2.distanceTransform((~own).astype(np.uint8), cv2.DIST_L2, 5) * px
    ring = (outside > 0.6) & (outside < 1.3) & ~others
    amount = pink[ys, xs]
    # Light and haze differ over the field, so cytoplasm is judged against the palest glass near by.
    green = density[window][..., 1]
    near_glass = float(np.percentile(green[~own & ~others], 10)) if (~own & ~others).any() else 0.0
    margin = MARGIN_UM / px
    height, width = pieces.shape
    return _Nucleus(
        box=(
            max(0.0, float(xs.min()) - margin),
            max(0.0, float(ys.min()) - margin),
            min(float(width), float(xs.max()) + 1 + margin),
            min(float(height), float(ys.max()) + 1 + margin),
        ),
        diameter_um=diameter,
        roundness=min(1.0, 4 * float(np.pi) * area / length**2),
        solidity=area / hull,
        contrast=float(np.median(relief[ys, xs])),
        coarseness=float(amount.std() / max(float(amount.mean()), 1e-6)),
        cytoplasm=float(np.median(green[ring])) - near_glass if ring.any() else 0.0,
        lone=not bool(((outside < 1.5) & others).any()),
    )


def _ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


def _once(table: np.ndarray) -> np.ndarray:
    """A nucleus seen in two windows is one: a box whose centre lies in a better box's inner half goes."""
    kept: list[Any] = []
    for row in table:
        cx, cy = (row[0] + row[2]) / 2, (row[1] + row[3]) / 2
        if row[4] > 0.02 and not any(
            abs(cx - (k[0] + k[2]) / 2) < (k[2] - k[0]) / 4
            and abs(cy - (k[1] + k[3]) / 2) < (k[3] - k[1]) / 4
            for k in kept
        ):
            kept.append(row)
    return np.array(kept, np.float32).reshape(-1, 5)
