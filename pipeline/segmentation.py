"""From labels to measures: how large a cell is, how its nucleus is shaped, how strongly it is stained."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from detectors.base import CYTOPLASM, NUCLEUS
from detectors.segment import central_cell
from detectors.segment_colour import background_colour, optical_density
from pipeline.errors import BadInput
from pipeline.types import CellMeasures

MIN_CELL_UM2 = 12.0  # a platelet's size; what is smaller is no leukocyte
MIN_LOBE_UM2 = 1.5  # smaller pieces of nucleus are crumbs of the labelling
LOBE_DEPTH_UM = 0.35  # how much a neck must be narrower than both lobes that it joins


def measure_cells(labels: np.ndarray, patches: np.ndarray, pixel_size_um: float) -> list[CellMeasures]:
    """Measure the central cell of each patch; every measure is None where there is none.

    labels (N, H, W) uint8 as in detectors.base, patches (N, H, W, 3) uint8, pixel_size_um of both.
    """
    if labels.shape != patches.shape[:3]:
        raise BadInput(f"labels {labels.shape} do not fit patches {patches.shape}; segment the same patches.")
    if not (math.isfinite(pixel_size_um) and pixel_size_um > 0):
        raise BadInput(f"a pixel size of {pixel_size_um} µm cannot be; give a positive one.")
    return [_measure(label, patch, pixel_size_um) for label, patch in zip(labels, patches, strict=True)]


def _measure(labels: np.ndarray, patch: np.ndarray, pixel_size_um: float) -> CellMeasures:
    from skimage.measure import regionprops

    pixel_um2 = pixel_size_um**2
    cell = central_cell(labels)
    area = float(cell.sum()) * pixel_um2
    if area < MIN_CELL_UM2:
        return CellMeasures()
    nucleus = cell & (labels == NUCLEUS)
    cytoplasm = cell & (labels == CYTOPLASM)
    nucleus_area = float(nucleus.sum()) * pixel_um2
    whole: Any = regionprops(cell.astype(np.uint8))[0]
    core: Any = regionprops(nucleus.astype(np.uint8))[0] if nucleus_area >= MIN_LOBE_UM2 else None
    density = optical_density(patch, background_colour(patch))
    edge = np.concatenate([cell[0], cell[-1], cell[:, 0], cell[:, -1]])
    return CellMeasures(
        area_um2=area,
        nucleus_area_um2=nucleus_area,
        cytoplasm_area_um2=area - nucleus_area,
        nc_ratio=nucleus_area / area,
        lobes=count_lobes(nucleus, pixel_size_um),
        eccentricity=float(whole.eccentricity),
        nucleus_eccentricity=None if core is None else float(core.eccentricity),
        nucleus_solidity=None if core is None else float(core.solidity),
        perimeter_um=float(whole.perimeter_crofton) * pixel_size_um,
        od_nucleus=_mean_density(density, nucleus),
        od_cytoplasm=_mean_density(density, cytoplasm),
        cut_by_patch=bool(edge.any()),
    )


def rounded_measures(measures: CellMeasures) -> dict[str, Any]:
    """The measures as plain values of four decimals, for a record that is compared byte by byte."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(plain(v) for v in value)
        if isinstance(value, float):
            return round(value, 4) if math.isfinite(value) else None
        return value

    return {key: plain(value) for key, value in measures.model_dump().items()}


def _mean_density(density: np.ndarray, where: np.ndarray) -> tuple[float, float, float] | None:
    if not where.any():
        return None
    red, green, blue = (float(v) for v in density[where].mean(axis=0))
    return red, green, blue


def count_lobes(nucleus: np.ndarray, pixel_size_um: float) -> int:
    """Lobes of a nucleus mask (H, W) bool: connected pieces, cut at their necks.

    Each piece is split where its distance transform has separate maxima, a watershed whose saddles
    lie at least LOBE_DEPTH_UM below both maxima, so that a bean or a band stays one lobe.
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import label
    from skimage.morphology import local_maxima, reconstruction, remove_small_objects

    keep = remove_small_objects(nucleus, max_size=max(1, int(MIN_LOBE_UM2 / pixel_size_um**2)))
    if not keep.any():
        return 0
    # Whole nanometres: on floats a ridge splits at rounding errors.  (h_maxima marks the peaks of one
    # lobe apart where they are equally high; the reconstruction joins them.)
    distance = np.rint(distance_transform_edt(np.pad(keep, 1)) * pixel_size_um * 1000)[1:-1, 1:-1]
    flooded = reconstruction(np.maximum(distance - LOBE_DEPTH_UM * 1000, 0), distance, method="dilation")
    peaks = label(local_maxima(flooded.astype(np.int32)) & keep, connectivity=2)
    return max(int(peaks.max()), int(label(keep, connectivity=2).max()))
