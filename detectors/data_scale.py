"""The physical scale of labelled images: what the file states, its labels measure or its cells show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from detectors.datasets import LEUKOCYTE, LEUKOCYTE_UM, Sample, image_scale_um, sides_px
from pipeline.errors import BadInput
from storage.images import image_info, read_rgb


class Scaled(Protocol):
    """A labelled image that knows its scale and where it is from."""

    @property
    def pixel_size_um(self) -> float: ...
    @property
    def scale_from(self) -> str: ...


def own_scale_um(
    path: Path, given: float | None, boxes: np.ndarray, classes: np.ndarray, width: int, height: int
) -> tuple[float, str]:
    """The pixel size that an image states or shows by its labelled red cells, and which; 0 for none."""
    for scale, where in (
        (given, "given"),
        (image_info(path).pixel_size_um, "the file"),
        (image_scale_um(boxes, classes, width, height), "labelled red cells"),
    ):
        if scale:
            return scale, where
    return 0.0, ""


def with_scales(samples: list[Sample]) -> list[Sample]:
    """The samples, each with a scale; where an image has none of its own, the next best (`read_yolo_folder`).

    Raises BadInput where there is none to be had.
    """
    known = defaultdict(list)
    for s in samples:
        if s.pixel_size_um:
            known[s.source].append(s.pixel_size_um)
    out = []
    for s in samples:
        white = s.of(LEUKOCYTE)
        if not s.pixel_size_um and known[s.source]:
            scale = float(np.median(known[s.source]))
            s = replace(s, pixel_size_um=scale, scale_from="other images of its size")
        elif not s.pixel_size_um and len(white):
            scale = float(LEUKOCYTE_UM / np.median(sides_px(white)))
            s = replace(s, pixel_size_um=scale, scale_from="labelled leukocytes")
        out.append(s)
    stated = [s.pixel_size_um for s in out if s.pixel_size_um]
    return [s if s.pixel_size_um else _inferred(s, stated) for s in out]


def _inferred(sample: Sample, others_um: list[float]) -> Sample:
    from detectors.scale import infer_pixel_size_um

    try:
        scale = infer_pixel_size_um(read_rgb(sample.path)).pixel_size_um
    except BadInput:  # it shows no cell
        if not others_um:
            raise BadInput(
                f"{sample.path}: neither the file nor its labels nor its cells say how large a pixel is; "
                "give --pixel-size in µm."
            ) from None
        scale = float(np.median(others_um))
        return replace(sample, pixel_size_um=scale, scale_from="other images of the folder")
    return replace(sample, pixel_size_um=scale, scale_from="inferred from the image")


def scales_of(samples: Sequence[Scaled]) -> dict[str, dict[str, float]]:
    """How many images have their pixel size from what, and its median in µm."""
    by = defaultdict(list)
    for s in samples:
        by[s.scale_from or "given"].append(s.pixel_size_um)
    return {
        k: {"n_images": len(v), "median_um": round(float(np.median(v)), 5)} for k, v in sorted(by.items())
    }
