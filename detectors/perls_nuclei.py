"""What is measured of every nucleus in a Perls field, and a small network that knows erythroblasts by it.

Nuclei are found by colour and cut at their necks as `detectors.segment_perls` does; each is then a row of
figures that a person would name too: size, outline, chromatin at three scales, how dense and how wide the
cytoplasm is around it, other nuclei near.  Iron is none of them: what is to be measured must not decide
who is counted.  Figures are in micrometres or in units of the field's own stain, so that neither scanner
nor stain strength decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from detectors.boxes import suppress
from detectors.segment import check_patches
from detectors.segment_colour import background_colour, optical_density
from detectors.segment_perls import (
    MIN_CONTRAST,
    WORKING_PIXEL_SIZE_UM,
    fast_red_amount,
    nuclear_relief,
    nuclei_level,
    split_nuclei,
    windows,
)
from pipeline.errors import BadModelPackage
from storage.images_info import check_pixel_size

if TYPE_CHECKING:
    from storage.packages import ModelPackage

DIAMETER_UM = (2.6, 19.0)  # of anything that is measured, lobes and giant nuclei included
RINGS_UM = ((0.5, 1.2), (1.2, 2.0), (2.0, 3.0), (3.0, 4.5))  # outside the nucleus
MARGIN_UM = (0.8, 2.6)  # of cytoplasm beyond the nucleus that a box may hold
FEATURES: tuple[str, ...] = (
    *("diameter", "roundness", "solidity", "aspect", "contrast", "spread", "fine", "middle", "coarse"),
    *("pale", "dark", "rim", "cell", "cell_aspect", "offset", "share", "hue"),
    *(f"ring{i}" for i in range(len(RINGS_UM))),
    *("grain", "sector_low", "sector_high"),
    *("gap", "neighbour", "crowd", "edge"),
)


@dataclass(frozen=True)
class Nuclei:
    """Rows of FEATURES (N, F) float32 and boxes of the cells (N, 4) float32, in pixels of the image."""

    features: np.ndarray
    boxes: np.ndarray


def measure_nuclei(image: np.ndarray, pixel_size_um: float) -> Nuclei:
    """Every nucleus of a Perls image (H, W, 3) uint8, whatever its kind."""
    check_patches(image[None])
    check_pixel_size("a Perls image", pixel_size_um)
    glass = background_colour(image)
    features, boxes = [], []
    for left, top, part in windows(image, pixel_size_um):
        rows, found = _window(part, pixel_size_um, glass)
        features += rows
        boxes += [(x0 + left, y0 + top, x1 + left, y1 + top) for x0, y0, x1, y1 in found]
    return Nuclei(
        np.array(features, np.float32).reshape(-1, len(FEATURES)), np.array(boxes, np.float32).reshape(-1, 4)
    )


def _window(image: np.ndarray, pixel_size_um: float, glass: np.ndarray) -> tuple[list[Any], list[Any]]:
    px = WORKING_PIXEL_SIZE_UM
    scale = pixel_size_um / px
    if scale != 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    density = optical_density(image, glass)
    pink = fast_red_amount(density)
    relief = nuclear_relief(pink, px)
    level = nuclei_level(relief)
    if level is None:
        return [], []
    pieces = split_nuclei(relief > level, px)
    areas = np.bincount(pieces.ravel())
    diameters = 2 * np.sqrt(areas / np.pi) * px
    usable = [i for i in range(1, len(areas)) if DIAMETER_UM[0] <= diameters[i] <= DIAMETER_UM[1]]
    if not usable:
        return [], []
    # The unit of all densities: the nuclei of this field.
    inside = relief[np.isin(pieces, usable)]
    strength = max(MIN_CONTRAST, float(np.median(inside)))
    field = _Field(pieces, relief / strength, pink / strength, density / strength)
    rows, boxes = [], []
    from scipy.ndimage import find_objects

    places = find_objects(pieces)
    centres = {
        i: (np.add(*_span(places[i - 1][1])) / 2, np.add(*_span(places[i - 1][0])) / 2) for i in usable
    }
    for index in usable:
        others = [(np.hypot(centres[j][0] - centres[index][0], centres[j][1] - centres[index][1]) * px, j)
                  for j in usable if j != index]  # fmt: skip
        near = min(others, default=(99.0, index))
        crowd = sum(d < 9 for d, _ in others)
        row, box = field.measure(index, places[index - 1], float(diameters[near[1]]), near[0], crowd)
        rows.append(row)
        boxes.append([v / scale for v in box])
    return rows, boxes


def _span(part: slice) -> tuple[int, int]:
    return int(part.start), int(part.stop)


@dataclass(frozen=True)
class _Field:
    """One window at the working scale, densities in units of its nuclei."""

    pieces: np.ndarray
    relief: np.ndarray
    pink: np.ndarray
    density: np.ndarray

    def measure(
        self, index: int, place: tuple[slice, slice], neighbour_um: float, gap_um: float, crowd: int
    ) -> tuple[list[float], tuple[float, float, float, float]]:
        """FEATURES of one nucleus, and the box of its cell in pixels of the window."""
        px = WORKING_PIXEL_SIZE_UM
        height, width = self.pieces.shape
        room = round(6.0 / px)
        (y0, y1), (x0, x1) = _span(place[0]), _span(place[1])
        window = np.s_[max(0, y0 - room) : min(height, y1 + room), max(0, x0 - room) : min(width, x1 + room)]
        top, left = window[0].start, window[1].start
        own = self.pieces[window] == index
        others = (self.pieces[window] > 0) & ~own
        contour = max(
            cv2.findContours(own.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0],
            key=cv2.contourArea,
        )
        area, length = cv2.contourArea(contour), cv2.arcLength(contour, True)
        hull = max(cv2.contourArea(cv2.convexHull(contour)), 1.0)
        sides = sorted(cv2.minAreaRect(contour)[1])
        outside = cv2.distanceTransform((~own).astype(np.uint8), cv2.DIST_L2, 5) * px
        inside = cv2.distanceTransform(own.astype(np.uint8), cv2.DIST_L2, 5) * px
        pink, green = self.pink[window], self.density[window][..., 1]
        free = ~own & ~others
        glass = float(np.percentile(green[free], 8)) if free.any() else 0.0
        core = pink[own]
        mean = max(float(core.mean()), 1e-6)
        blurred = [cv2.GaussianBlur(pink, (0, 0), s / px) for s in (0.35, 0.8, 1.6)]
        rim = own & (inside < 0.8)
        middle = own & (inside >= 0.8)
        rings = [free & (outside > a) & (outside <= b) for a, b in RINGS_UM]
        around = [float(np.median(green[r])) - glass if r.any() else 0.0 for r in rings]
        cell = self._cell(own, others, outside, green - glass, around[0])
        cy, cx = np.argwhere(own).mean(0)
        ys, xs = np.nonzero(cell)
        cell_um = 2 * float(np.sqrt(cell.sum() / np.pi)) * px
        cell_sides = (int(xs.max()) - int(xs.min()) + 1, int(ys.max()) - int(ys.min()) + 1)
        offset = float(np.hypot(ys.mean() - cy, xs.mean() - cx)) * px
        cytoplasm = cell & ~own & (outside > 0.5)
        colour = self.density[window][rings[0]].mean(0) if rings[0].any() else np.zeros(3)
        sectors = self._sectors(rings[0] | rings[1], green - glass, cx, cy)
        smooth = cv2.GaussianBlur(green, (0, 0), 0.5 / px)
        diameter = 2 * float(np.sqrt(own.sum() / np.pi)) * px
        row = [
            diameter,
            min(1.2, 4 * float(np.pi) * area / max(length, 1e-6) ** 2),
            area / hull,
            sides[1] / max(sides[0], 1.0),
            float(np.median(self.relief[window][own])),
            float(core.std()) / mean,
            float((pink - blurred[0])[own].std()) / mean,
            float((blurred[0] - blurred[1])[own].std()) / mean,
            float((blurred[1] - blurred[2])[middle].std()) / mean if middle.any() else 0.0,
            float(np.percentile(core, 10)) / mean,
            float(np.percentile(core, 90)) / mean,
            float(pink[rim].mean()) / float(pink[middle].mean()) if middle.any() and rim.any() else 1.0,
            cell_um,
            max(cell_sides) / max(1, min(cell_sides)),
            offset,
            diameter / max(cell_um, 1e-6),
            float(colour[0] / max(colour[1], 0.02)),
            *around,
            float((green - smooth)[cytoplasm].std()) if cytoplasm.any() else 0.0,
            float(sectors.min()),
            float(sectors.max()),
            min(gap_um, 20.0),
            neighbour_um / max(diameter, 1e-6) if gap_um < 12 else 0.0,
            float(min(crowd, 6)),
            float(y0 == 0 or x0 == 0 or y1 == height or x1 == width),
        ]
        # A red cell that touches would widen the cell on its side, pale cytoplasm would lose it.
        low, high = MARGIN_UM[0] / px, MARGIN_UM[1] / px
        box = (
            float(np.clip(left + xs.min(), x0 - high, x0 - low)),
            float(np.clip(top + ys.min(), y0 - high, y0 - low)),
            float(np.clip(left + xs.max() + 1, x1 + low, x1 + high)),
            float(np.clip(top + ys.max() + 1, y1 + low, y1 + high)),
        )
        return row, box

    def _cell(
        self, own: np.ndarray, others: np.ndarray, outside: np.ndarray, green: np.ndarray, cytoplasm: float
    ) -> np.ndarray:
        """Mask of the cell around a nucleus: what is half as dense as the cytoplasm beside the nucleus.

        At least 0.9 and at most 5 µm of it; nearer another nucleus is that one's.
        """
        smooth = cv2.GaussianBlur(green, (0, 0), 0.3 / WORKING_PIXEL_SIZE_UM)
        dense = smooth > max(0.5 * cytoplasm, 0.04)
        body = ((dense & (outside < 5.0)) | (outside < 0.9)) & ~others
        if others.any():
            body &= outside <= cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, 5) * 0.2 + 0.4
        body = cv2.morphologyEx(body.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)) > 0
        count, parts = cv2.connectedComponents((body | own).astype(np.uint8))
        return np.asarray(parts == parts[own][0]) if count > 1 else own

    def _sectors(self, ring: np.ndarray, green: np.ndarray, cx: float, cy: float) -> np.ndarray:
        """Mean density of the ring in eight directions, over the whole ring's; ones where nothing shows."""
        ys, xs = np.nonzero(ring)
        if len(ys) < 24:
            return np.ones(8)
        sector = ((np.arctan2(ys - cy, xs - cx) + np.pi) / (2 * np.pi) * 8).astype(int) % 8
        values = green[ys, xs]
        sums, counts = np.bincount(sector, values, minlength=8), np.bincount(sector, minlength=8)
        mean = max(float(values.mean()), 0.02)
        return np.where(counts > 2, sums / np.maximum(counts, 1), mean) / mean


class PerlsNucleiFinder:
    """Erythroblasts of Perls fields, told from other nuclei by a small network on their figures."""

    def __init__(self, package: ModelPackage) -> None:
        card = package.card
        state = {k: v.double().numpy() for k, v in package.state_dict().items()}
        self.name = card.name
        names = tuple(card.parameters.get("features", ()))
        layers = int(card.parameters.get("layers", 0))
        wanted = {f"{kind}{i}" for i in range(layers) for kind in ("weight", "bias")} | {"centre", "scale"}
        if names != FEATURES or set(state) != wanted or len(state["centre"]) != len(FEATURES):
            raise BadModelPackage(
                f"{package.folder}: the card's features or layers are not those of 'perls-nuclei'; "
                "restore the package or retrain it."
            )
        self._centre, self._scale = state["centre"], state["scale"]
        self._layers = [(state[f"weight{i}"], state[f"bias{i}"]) for i in range(layers)]
        self.sharpness = float(card.parameters.get("sharpness", 1.0))

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, 4) float32 and scores (N,) float32 of (H, W, 3) or (H, W) uint8; see `Detector`."""
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        nuclei = measure_nuclei(image, pixel_size_um)
        score = self.score(nuclei.features)
        kept = suppress(nuclei.boxes, score, 0.4, 0.6)
        kept = kept[score[kept] > 0.02]
        height, width = image.shape[:2]
        boxes = np.clip(nuclei.boxes[kept], 0, np.array([width, height] * 2, np.float32))
        return boxes.astype(np.float32), score[kept]

    def score(self, features: np.ndarray) -> np.ndarray:
        """How surely each row of FEATURES is an erythroblast (N,) float32 in [0, 1]; even odds score 0.4."""
        x = np.clip((squashed(features) - self._centre) / self._scale, -5, 5)
        for i, (weight, bias) in enumerate(self._layers):
            x = x @ weight.T + bias
            if i + 1 < len(self._layers):
                x = np.maximum(x, 0)
        p = 1 / (1 + np.exp(-np.clip(x[:, 0], -30, 30)))
        return (p**self.sharpness).astype(np.float32)


def squashed(features: np.ndarray) -> np.ndarray:
    """Features (N, F) with the long tails of ratios and densities taken in."""
    return np.sign(features) * np.log1p(np.abs(np.asarray(features, np.float64)))


def build(package: ModelPackage | None) -> Any:
    """Builder for the registry."""
    if package is None:
        raise BadModelPackage("architecture 'perls-nuclei' needs a model package.")
    return PerlsNucleiFinder(package)
