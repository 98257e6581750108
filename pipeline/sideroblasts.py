"""Reading the iron of erythroblasts in Perls patches, and drawing what was read."""

from __future__ import annotations

import numpy as np

from classifiers.sideroblasts import SideroblastReader, SideroblastReading
from pipeline.reader_error import ReaderErrors
from storage.packages import ModelPackage
from storage.registry import describe

__all__ = [
    "SideroblastReader",
    "SideroblastReading",
    "confidence_of",
    "draw_reading",
    "measured_errors",
    "read_sideroblasts",
]

OUTLINE, GRANULE = (20, 140, 60), (235, 120, 0)


def read_sideroblasts(
    patches: np.ndarray, pixel_size_um: float, reader: SideroblastReader
) -> list[SideroblastReading]:
    """One reading per patch (N, H, W, 3) uint8 centred on an erythroblast, Perls stain, known pixel size.

    A patch that cannot be read is `indeterminate` with a reason, never type 0.
    """
    readings = reader.read(patches, pixel_size_um)
    if len(readings) != len(patches):
        raise ValueError(f"reader '{reader.name}' gave {len(readings)} readings for {len(patches)} patches")
    return readings


def confidence_of(score: float, reading: SideroblastReading, second: SideroblastReading | None) -> float:
    """How sure a reading is, in [0, 1]: the finder's score, or the second reader's share for it if lower.

    The share is its probability of ring, or of another type, whichever the reading says.
    """
    if second is None or second.probabilities is None or reading.type == "indeterminate":
        return score
    ring = second.probabilities[3]
    return min(score, ring if reading.type == "3" else 1.0 - ring)


def measured_errors(finder: str, reader: str) -> ReaderErrors | None:
    """What finder and reader together got wrong on cells of known type, from the finder's card.

    None where the two were never measured together.  Raises UnknownName for a finder that is none.
    """
    found = describe("detector", finder)
    if not isinstance(found, ModelPackage):
        return None
    measured = found.card.metrics.get("read_by", {}).get(reader)
    return None if measured is None else ReaderErrors(**measured)


def draw_reading(patch: np.ndarray, reading: SideroblastReading) -> np.ndarray:
    """Picture (H, W, 3) uint8 of a patch with the nuclear outline (green) and each granule (orange ring)."""
    import cv2

    picture = np.ascontiguousarray(patch).copy()
    if reading.nucleus_contour is not None and len(reading.nucleus_contour) > 2:
        points = np.rint(reading.nucleus_contour * 16).astype(np.int32)[:, None]
        cv2.polylines(picture, [points], True, OUTLINE, 1, cv2.LINE_AA, shift=4)
    for x, y, radius in reading.granules_px:
        centre = (round(float(x) * 16), round(float(y) * 16))
        # The ring stands clear of the granule, so that the granule itself can be judged.
        cv2.circle(picture, centre, round((float(radius) + 2) * 16), GRANULE, 1, cv2.LINE_AA, shift=4)
    return picture
