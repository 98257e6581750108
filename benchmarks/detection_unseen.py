"""Leukocytes of a stain and scanner never seen, in images of 256 px whose pixel size nobody gives.

    python -m benchmarks.detection_unseen PACKAGE [--json FILE]

PACKAGE is a detector that was trained on `smears` alone (the first stage of benchmarks/detection_weights.py,
written by it to OUT/first-stage); the stains are the two of `wbc-masks`, every cell of them.  Each image is
brought to 256 px, its scale is inferred (`detectors.scale`), and the box around the mask is the truth.
Beside it stands the same with the scale of the set given, so that what the inference costs can be read.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIDE_PX = 256


def measure(detector: Any, samples: list[Any], given: bool) -> dict[str, Any]:
    """AP of one stain; an image whose scale cannot be inferred counts as one without a box."""
    from detectors.evaluation import _figures
    from detectors.packing import resample
    from detectors.scale import infer_pixel_size_um
    from pipeline.errors import BadInput
    from storage.images import read_rgb

    boxes, scores, truth, errors, refused = [], [], [], [], 0
    for sample in samples:
        image = read_rgb(sample.path)
        factor = SIDE_PX / max(image.shape[:2])
        image, true_um = resample(image, factor), sample.pixel_size_um / factor
        truth.append(sample.of(0) * factor)
        try:
            um = true_um if given else infer_pixel_size_um(image, detector=detector).pixel_size_um
            found = detector.detect(image, um)
            errors.append(abs(um / true_um - 1))
        except BadInput:
            found, refused = (np.zeros((0, 4)), np.zeros(0)), refused + 1
        boxes.append(found[0])
        scores.append(found[1])
    figures = _figures(boxes, scores, truth, getattr(detector, "threshold", 0.4))
    return figures | {"refused": refused, "scale_error": float(np.median(errors))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from benchmarks.detection_accuracy import average_precisions
    from detectors.datasets import read_masked_cells
    from storage.registry import load

    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    detector = load("detector", str(arguments.package))
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores\n")
    print("| stain | scale | images | AP50 (95 %) | AP50-95 | recall | refused | scale off by, median |")
    print("|---|---|---|---|---|---|---|---|")
    rows = {}
    for stain in ("tecom", "cellavision"):
        samples = read_masked_cells(data / "wbc-masks" / stain, stain)
        for given in (True, False):
            name = f"{stain}, scale {'given' if given else 'inferred'}"
            r = rows[name] = measure(detector, samples, given)
            print(
                f"| {stain} | {'given' if given else 'inferred'} | {r['n_images']} | "
                f"{average_precisions(r)} | {r['recall'] or 0:.3f} | {r['refused']} | "
                f"{100 * r['scale_error']:.0f} % |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
