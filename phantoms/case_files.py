"""The files of a phantom case: images as cameras write them, masks, and the manifest."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import numpy as np

from phantoms.fields import FieldView

Array = np.ndarray[Any, Any]
Format = Literal["tiff", "ome-tiff", "png", "jpeg"]
SUFFIX = {"tiff": ".tif", "ome-tiff": ".ome.tif", "png": ".png", "jpeg": ".jpg"}


def manifest_row(
    slide: str, view: FieldView, modality: str, stain: str, file: str, pixel_size_um: float
) -> dict[str, Any]:
    """The line of the manifest that an image has."""
    x_um, y_um = view.stage_um(pixel_size_um)
    return {
        "slide": slide,
        "field": view.name,
        "modality": modality,
        "stain": stain,
        "file": file,
        "pixel_size_um": f"{pixel_size_um:g}",
        "x_um": f"{x_um:.3f}",
        "y_um": f"{y_um:.3f}",
    }


def write_manifest(path: Path, rows: list[dict[str, Any]], stage_positions: bool) -> None:
    """Write the manifest, with or without where the stage stood."""
    columns = ["slide", "field", "modality", "stain", "file", "pixel_size_um"]
    if stage_positions:
        columns += ["x_um", "y_um"]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_image(path: Path, image: Array, pixel_size_um: float, format: str) -> None:
    """Write an image (H, W[, 3]) of 8 or 16 bits with its pixel size, where the format has a place for it."""
    if format in ("png", "jpeg"):
        import cv2

        bgr = image[..., ::-1] if image.ndim == 3 else image
        options = [cv2.IMWRITE_JPEG_QUALITY, 92] if format == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
        if not cv2.imwrite(str(path), np.ascontiguousarray(bgr), options):
            raise OSError(f"{path} could not be written")
        return
    import tifffile

    per_cm = 1e4 / pixel_size_um
    more: dict[str, Any] = {"metadata": None}
    if format == "ome-tiff":
        more = {
            "ome": True,
            "metadata": {
                "axes": "YXS" if image.ndim == 3 else "YX",
                "PhysicalSizeX": pixel_size_um,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": pixel_size_um,
                "PhysicalSizeYUnit": "µm",
            },
        }
    tifffile.imwrite(
        path,
        image,
        photometric="rgb" if image.ndim == 3 else "minisblack",
        compression="zlib",
        compressionargs={"level": 1},
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        **more,
    )


def write_mask(path: Path, labels: Array) -> None:
    """Write labels (H, W) uint8 as PNG."""
    import cv2

    path.parent.mkdir(exist_ok=True)
    if not cv2.imwrite(str(path), labels):
        raise OSError(f"{path} could not be written")
