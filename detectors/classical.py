"""A leukocyte detector without weights: nuclei by stain separation, cells around them by watershed.

Nuclear dye (azure-methylene blue) absorbs red light, which red cells hardly do: the optical density of
the red channel over the background, less what the green channel (eosin, haemoglobin) explains, is high
in nuclei alone.  For stained brightfield images only; it serves as a second opinion and where no model
package can be used.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from detectors.boxes import suppress
from detectors.yolo_onnx import check_image
from pipeline.errors import BadInput
from storage.images import is_blank
from storage.images_info import check_pixel_size

WORK_UM = 0.25  # pixel size worked at
MIN_NUCLEUS_UM2 = 14.0  # a small lymphocyte's nucleus is about 35 µm²; a platelet 3-8 µm²
MAX_NUCLEUS_UM2 = 450.0
LOBE_GAP_UM = 1.6  # lobes of one nucleus lie closer than this
CYTOPLASM_UM = 3.2  # how far from its nucleus a cell reaches at most
MIN_CONTRAST_OD = 0.10  # of nuclei over red cells; below it there is no stained nucleus
WINDOW_UM = 400.0
OVERLAP_UM = 30.0


class ClassicalDetector:
    """Leukocytes of stained brightfield images by optical density."""

    name = "classical"
    modalities = ("brightfield",)

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Leukocytes: see detectors.base.Detector.  Raises BadInput for an image without colour (DIC)."""
        image = check_image(image, self.name)
        factor = check_pixel_size(self.name, pixel_size_um) / WORK_UM
        height, width = image.shape[:2]
        if min(height, width) < 1:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        if is_blank(image):
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        if _is_grey(image):
            raise BadInput(
                "the classical detector separates stains and needs a stained colour image, not DIC or grey; "
                "use a detector of the image's own modality."
            )
        reference = _Reference.of(image, factor)
        found_boxes, found_scores = [], []
        for y0, y1, from_y, to_y in _windows(height, factor):
            for x0, x1, from_x, to_x in _windows(width, factor):
                boxes, scores = _find(np.asarray(image[y0:y1, x0:x1]), factor, reference)
                boxes = boxes + np.array([x0, y0, x0, y0])
                # A cell belongs to the window whose core holds its centre: once, at any seam.
                centre = (boxes[:, :2] + boxes[:, 2:]) / 2
                mine = (
                    (centre[:, 0] >= from_x)
                    & (centre[:, 0] < to_x)
                    & (centre[:, 1] >= from_y)
                    & (centre[:, 1] < to_y)
                )
                found_boxes.append(boxes[mine])
                found_scores.append(scores[mine])
        boxes, scores = np.concatenate(found_boxes), np.concatenate(found_scores)
        keep = suppress(boxes, scores, 0.5, 0.8)
        boxes = np.clip(boxes[keep], 0, [width, height, width, height])
        return boxes.astype(np.float32), scores[keep].astype(np.float32)


class _Reference:
    """Background colour and the thresholds of nuclear density, of the image as a whole."""

    def __init__(self, white: np.ndarray, nucleus: float | None, cytoplasm: float) -> None:
        self.white, self.nucleus, self.cytoplasm = white, nucleus, cytoplasm

    @classmethod
    def of(cls, image: np.ndarray, factor: float) -> _Reference:
        """From a thinned copy: every n-th pixel says as much of the histogram as all do."""
        from skimage.filters import threshold_multiotsu, threshold_otsu

        step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 400_000)))
        thin = np.asarray(image[::step, ::step]).reshape(-1, 3)
        white = np.maximum(np.percentile(thin, 92, axis=0), 30.0)
        density, _ = _densities(thin[None], white)
        values = density[density < np.percentile(density, 99.9)]
        if values.size < 64 or np.ptp(values) < MIN_CONTRAST_OD:
            return cls(white, None, 0.0)
        # Three kinds of pixel: background and red cells, cytoplasm, nucleus.
        try:
            low, high = (float(v) for v in threshold_multiotsu(values, 3, nbins=128))
        except ValueError:
            low, high = 0.5 * float(threshold_otsu(values)), float(threshold_otsu(values))
        above = values[values > high]
        below = values[values <= low]
        if not above.size or np.median(above) - np.median(below) < MIN_CONTRAST_OD:
            return cls(white, None, 0.0)
        return cls(white, high, low)


def _densities(image: np.ndarray, white: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nuclear density and total density (H, W) float32 of an RGB image.

    Natural logarithms, on which the detector's contrasts were set; elsewhere densities are log10.
    """
    od = -np.log(np.maximum(image.astype(np.float32), 1) / white.astype(np.float32))
    od = np.clip(od, 0, 3)
    red, green, blue = od[..., 0], od[..., 1], od[..., 2]
    # Red cells: green and blue absorb, red hardly.  A fifth of the green is what they leave in the red.
    return np.clip(red - 0.25 * np.minimum(green, blue), 0, None) + 0.15 * green, od.mean(-1)


def _find(image: np.ndarray, factor: float, reference: _Reference) -> tuple[np.ndarray, np.ndarray]:
    """Cells of one window: boxes in its pixels and scores."""
    import cv2
    from scipy import ndimage
    from skimage.segmentation import watershed

    none = np.zeros((0, 4)), np.zeros(0)
    if reference.nucleus is None:
        return none
    height, width = image.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=how)
    density, total = _densities(small, reference.white)
    density = cv2.GaussianBlur(density, (0, 0), 0.3 / WORK_UM)
    nuclei = density > reference.nucleus
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    nuclei = cv2.morphologyEx(nuclei.astype(np.uint8), cv2.MORPH_OPEN, disc)
    gap = round(LOBE_GAP_UM / WORK_UM) | 1
    bridge = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap))
    joined = cv2.morphologyEx(nuclei, cv2.MORPH_CLOSE, bridge)
    joined = ndimage.binary_fill_holes(joined)
    seeds = _split_touching(joined)
    count = int(seeds.max())
    if not count:
        return none
    area = np.bincount(seeds.ravel(), nuclei.ravel(), count + 1) * WORK_UM**2
    area[0] = 0
    good = (area >= MIN_NUCLEUS_UM2) & (area <= MAX_NUCLEUS_UM2)
    seeds = np.where(good[seeds], seeds, 0)
    # Cytoplasm: stained more like the nucleus than red cells are, and close to it.
    distance = cv2.distanceTransform((seeds == 0).astype(np.uint8), cv2.DIST_L2, 5) * WORK_UM
    nearby = (distance < CYTOPLASM_UM) & (density > reference.cytoplasm) & (total > 0.05)
    nearby = cv2.morphologyEx(nearby.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)) > 0
    cells = watershed(distance, seeds, mask=nearby | (seeds > 0))
    boxes, scores = [], []
    for index, where in enumerate(ndimage.find_objects(cells), 1):
        if where is None:
            continue
        ys, xs = where
        boxes.append((xs.start, ys.start, xs.stop, ys.stop))
        mean = float(density[where][(seeds[where] == index)].mean())
        strength = (mean - reference.nucleus) / max(reference.nucleus, MIN_CONTRAST_OD)
        big = min(1.0, area[index] / 40.0)
        scores.append(big * (1 - np.exp(-2.5 * max(strength, 0.0))) * 0.9 + 0.05)
    scaled = np.array(boxes, np.float64).reshape(-1, 4)
    return scaled * np.tile([width / size[0], height / size[1]], 2), np.array(scores)


def _split_touching(mask: np.ndarray) -> Any:
    """Labels of nuclei; two round ones that touch are cut at the neck between them."""
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1.2)
    labels, count = ndimage.label(mask)
    area = np.bincount(labels.ravel(), minlength=count + 1) * WORK_UM**2
    # A lobed nucleus has necks too: only what is too big for one nucleus is cut.
    peaks = peak_local_max(depth, min_distance=int(5.0 / WORK_UM), labels=labels * (area[labels] > 130.0))
    if len(peaks) < 2:
        return labels
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    cut = watershed(-depth, markers, mask=area[labels] > 130.0)
    return np.where(cut > 0, cut + count, labels * (area[labels] <= 130.0))


def _is_grey(image: np.ndarray) -> bool:
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 100_000)))
    thin = np.asarray(image[::step, ::step]).astype(np.int16)
    return bool(np.percentile(thin.max(-1) - thin.min(-1), 99.5) <= 3)


def _windows(length: int, factor: float) -> list[tuple[int, int, float, float]]:
    """Windows (start, end) and the core (from, to) of each that no other window shares."""
    window, margin = WINDOW_UM / WORK_UM / factor, OVERLAP_UM / WORK_UM / factor
    count = max(1, int(np.ceil(length / window)))
    edges = np.linspace(0, length, count + 1)
    out = []
    for i, (a, b) in enumerate(pairwise(edges)):
        start, end = max(0, int(a - margin)), min(length, int(np.ceil(b + margin)))
        out.append((start, end, -np.inf if i == 0 else a, np.inf if i == count - 1 else b))
    return out
