"""What finds: leukocyte detectors and the nucleus / cytoplasm segmenter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.packages import ModelPackage
from storage.registry import register

if TYPE_CHECKING:
    import numpy as np

    from detectors.base import Segmenter


@register("segmenter", "unet", licence="AGPL-3.0-or-later", summary="U-Net, four classes, any patch size")
def _unet(package: ModelPackage | None) -> Any:
    from detectors.segment import build

    return build(package)


def segment_image(segmenter: Segmenter, image: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
    """Labels (H, W) uint8 of an image of any size; see detectors.segment.segment_image."""
    from detectors.segment import segment_image as run

    return run(segmenter, image, pixel_size_um)


@register(
    "detector",
    "yolo-onnx",
    licence="AGPL-3.0-or-later",
    summary="YOLO network of leukocytes, red cells and platelets, run by ONNX Runtime in overlapping windows",
)
def _yolo_onnx(package: ModelPackage | None) -> Any:
    from detectors.yolo_onnx import build

    return build(package)


@register(
    "detector",
    "classical",
    licence="AGPL-3.0-or-later",
    summary="Nuclei by stain separation, leukocytes by watershed; brightfield only, no weights",
    needs_package=False,
)
def _classical(package: ModelPackage | None) -> Any:
    from detectors.classical import ClassicalDetector

    return ClassicalDetector()


@register(
    "detector",
    "perls-classical",
    licence="AGPL-3.0-or-later",
    summary="Erythroblasts in Perls fields by colour, size and roundness of the nucleus; no weights",
    needs_package=False,
)
def _perls_classical(package: ModelPackage | None) -> Any:
    from detectors.segment_perls import PerlsErythroblastFinder

    return PerlsErythroblastFinder()


@register(
    "detector",
    "perls-nuclei",
    licence="AGPL-3.0-or-later",
    summary="Erythroblasts in Perls fields: every nucleus measured, a small network tells which are theirs",
)
def _perls_nuclei(package: ModelPackage | None) -> Any:
    from detectors.perls_nuclei import build

    return build(package)
