"""Leukocytes in DIC of worse pictures: the network alone, and with the painted picture, in one run.

    python -m benchmarks.detection_spoilt [--docs PAGE]

The whole fields of SMEARFLOW_DATA/cases, spoilt as cameras, optics and files do, the same for both; truth as
read again by eye (benchmarks.detection_truth).  Thresholds are those of `THRESHOLDS`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.classification_cells import write_section
from benchmarks.detection_accuracy import ROOT
from benchmarks.detection_truth import field_boxes, judged, read_fields

THRESHOLDS = {"the network alone": 0.5, "both, fused": 0.4}

Image = np.ndarray


def to_bytes(image: Image) -> Image:
    return np.clip(image, 0, 255).astype(np.uint8)


def contrast(factor: float) -> Callable[[Image], Image]:
    return lambda image: to_bytes((image - np.median(image)) * factor + np.median(image))


def blurred(px: float) -> Callable[[Image], Image]:
    return lambda image: cv2.GaussianBlur(image, (0, 0), px)


def noisy(levels: float) -> Callable[[Image], Image]:
    def spoil(image: Image) -> Image:
        noise = np.random.default_rng(0).normal(0, levels, image.shape[:2])
        return to_bytes(image + noise[..., None])

    return spoil


def packed(quality: int) -> Callable[[Image], Image]:
    def spoil(image: Image) -> Image:
        coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))

    return spoil


def uneven(image: Image) -> Image:
    return to_bytes(image * np.linspace(0.5, 1.4, image.shape[1])[None, :, None])


# What is done, and in how many of the file's pixels a pixel of it is then as long.
SPOILT: dict[str, tuple[Callable[[Image], Image], float]] = {
    "as it is": (lambda image: image, 1.0),
    "0.4 of the contrast": (contrast(0.4), 1.0),
    "twice the contrast": (contrast(2.0), 1.0),
    "shear the other way (negative)": (lambda image: 255 - image, 1.0),
    "blur of 0.2 µm": (blurred(2.0), 1.0),
    "blur of 0.4 µm": (blurred(4.0), 1.0),
    "noise of 10 levels": (noisy(10.0), 1.0),
    "JPEG of quality 20": (packed(20), 1.0),
    "light from 0.5 to 1.4 across the field": (uneven, 1.0),
    "pixels of 0.2 µm": (lambda image: image, 2.0),
    "pixels of 0.28 µm": (lambda image: image, 2.8),
}


def found(detector: Any, image: Image, pixel_size_um: float) -> dict[str, tuple[Image, Image]]:
    seen = detector.alone.detect(image, pixel_size_um)
    both = detector.fuse(seen, detector.read_painted(image, pixel_size_um))
    return dict(zip(THRESHOLDS, (seen, both), strict=True))


def measure(
    detector: Any,
    data: Path,
    read: dict[tuple[str, str], np.ndarray],
    spoil: Callable[[Image], Image],
    coarser: float,
) -> dict[str, Image]:
    """(right, found, true) leukocytes of all fields, by how they were looked for."""
    from detectors.evaluation import match
    from detectors.yolo_onnx import check_image
    from storage.images import read_rgb

    out = {way: np.zeros(3, int) for way in THRESHOLDS}
    for folder in sorted((data / "cases").iterdir()):
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        for name, entry in truth["fields"].items():
            image = np.ascontiguousarray(check_image(read_rgb(folder / f"{name}_DIC.tif"), "benchmark"))
            there = field_boxes(entry, "dic", image.shape, read[folder.name, name])
            spoilt = spoil(image)
            if coarser > 1:
                spoilt = cv2.resize(
                    spoilt, None, fx=1 / coarser, fy=1 / coarser, interpolation=cv2.INTER_AREA
                )
            for way, (boxes, scores) in found(detector, spoilt, truth["pixel_size_um"] * coarser).items():
                cut, sure = judged(entry, "dic", image.shape, boxes * coarser, scores)
                keep = sure >= THRESHOLDS[way]
                right = match(cut[keep], sure[keep], there, 0.5)
                out[way] += np.array([right.sum(), keep.sum(), len(there)])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path)
    asked = parser.parse_args()
    from storage.registry import load

    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    detector, read = load("detector", "leukocyte-dic"), read_fields(data)
    lines = ["| picture | looked at by | precision | recall | F1 | count |", "|---|---|---|---|---|---|"]
    for what, (spoil, coarser) in SPOILT.items():
        for way, (right, n, true) in measure(detector, data, read, spoil, coarser).items():
            lines.append(
                f"| {what} | {way} | {right / n:.3f} | {right / true:.3f} | {2 * right / (n + true):.3f} | "
                f"{100 * (n / true - 1):+.1f} % |"
            )
            print(lines[-1], flush=True)
    if asked.docs is not None:
        said = (
            f"`python -m benchmarks.detection_spoilt`, {datetime.date.today()}, 12 fields, {true} leukocytes."
        )
        write_section(asked.docs, "detection-spoilt", said + "\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
