"""From a trained network to the shipped detector: threshold, card, 8-bit package, figures on the card.

    python -m benchmarks.detection_ship MODALITY BEST_PT [--stage TEXT …] [--out DIR]

MODALITY is brightfield or dic, BEST_PT the last stage of benchmarks/detection_weights.py, each --stage one
sentence on how it came to be.  The threshold is a round one with the best F1 on the validation
part; the package is then made cheap (benchmarks.detection_compact) and measured on the parts that
neither training nor threshold saw (benchmarks.detection_accuracy), and the figures go to the card.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.detection_accuracy import (
    ROOT,
    SEED,
    held_out_cells,
    measure,
    single_cells,
    table,
)
from benchmarks.detection_compact import convert
from benchmarks.detection_truth import read_fields, read_smears

VERSION = "2.4.0"
THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
SMEARS = (
    "TXL-PBC smears (MIT): 1,036 of 1,296 fields for training, 92 for validation, 168 kept back; "
    "near-duplicates kept together"
)
COCO = "COCO photographs, through ultralytics' published weights of YOLO11n-pose (AGPL-3.0), as the start"
TEXT: dict[str, dict[str, tuple[str, ...]]] = {
    "brightfield": {
        "data": (
            SMEARS,
            "segmentation_WBC (GPL-3.0; Zheng 2018): 168 of 240 rapid-stain and 52 of 75 MGG-like single "
            "cells, boxes from masks",
            COCO,
        ),
        "limits": (
            "Trained on blood of three sources, mostly MGG / Wright-like stains; marrow was never seen: "
            "crowded precursors and megakaryocytes are untried",
            "Boxes follow semi-automatic labels, which leave a few percent of leukocytes unlabelled or boxed "
            "loosely; AP50-95 is bounded by that",
            "Platelet clumps, smudges and stain precipitate were seen in training only as far as the sources "
            "show them (precipitate was drawn in)",
            "A pixel size off by more than a factor of 1.5 loses cells",
        ),
    },
    "dic": {
        "data": (
            SMEARS + "; as DIC computed from them (phantoms.optics, random optics)",
            "360 fields of drawn DIC (phantoms), rich in lymphocytes",
            "segmentation_WBC cellavision (GPL-3.0; Zheng 2018): 52 single cells, likewise",
            COCO,
        ),
        "limits": (
            "Trained on computed and drawn DIC only: no photographed DIC of leukocytes with boxes was had; "
            "validate on the laboratory's own images before use",
            "Small lymphocytes are its hardest cells: in DIC they differ from red cells by the missing "
            "pallor and a fine relief alone",
            "Very weak contrast, strong defocus or a bias near extinction hides cells from it",
            "A leukocyte that an edge of the image cuts to 8 to 40 % is found in three cases of five",
            "What is painted of an image was learned from computed DIC, too: both ways of looking may fail "
            "together on photographed DIC",
            "Blood only; marrow was never seen",
            "A pixel size off by more than a factor of 1.5 loses cells",
        ),
    },
}


def best_threshold(detector: Any, samples: list[Any], dic: bool) -> float:
    """Of `THRESHOLDS` the middle one of those whose F1 on samples is the best, or 0.002 less.

    The known sources hardly depend on it; from the middle it is far to either side, for images unlike them.
    """
    from detectors.evaluation import detect_all, precision_recall
    from detectors.training import dic_look

    boxes, found = detect_all(detector, samples, dic_look if dic else None)
    precision, recall, scores = precision_recall(boxes, found, [s.of(0) for s in samples])
    f1 = {}
    for threshold in THRESHOLDS:
        k = int((scores >= threshold).sum()) - 1
        p, r = precision[k], recall[k]
        f1[threshold] = 2 * p * r / max(p + r, 1e-9)
        print(f"threshold {threshold}: precision {p:.3f}, recall {r:.3f}, F1 {f1[threshold]:.4f}")
    good = [t for t in THRESHOLDS if f1[t] >= max(f1.values()) - 0.002]
    return good[len(good) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modality", choices=sorted(TEXT))
    parser.add_argument("best", type=Path)
    parser.add_argument("--stage", action="append", default=[], help="how a stage was trained")
    parser.add_argument("--threshold", type=float, help="[chosen on the validation part]")
    parser.add_argument("--pixel-size", type=float, help="scale to work at, in µm [that of the training]")
    parser.add_argument("--bits", type=int, choices=(8, 32), default=8, help="8 only where it costs little")
    parser.add_argument("--out", type=Path, default=ROOT / "weights")
    arguments = parser.parse_args()
    import torch

    from detectors.datasets import read_yolo_folder, split
    from detectors.export import detector_card, write_detector_package
    from detectors.training import FRACTIONS, Recipe
    from detectors.yolo_onnx import YoloOnnxDetector
    from storage.packages import read_package, write_package

    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    parts = split(read_yolo_folder(data / "smears"), FRACTIONS, SEED)
    name, text = f"leukocyte-{arguments.modality}", TEXT[arguments.modality]
    recipe = Recipe(**torch.load(arguments.best, weights_only=True)["recipe"])
    training = {"stages": arguments.stage, "split_seed": SEED}
    # Training varies the scale, so that a network can be asked to work at another one than the middle.
    works_at = {} if arguments.pixel_size is None else {"pixel_size_um": arguments.pixel_size}

    def card(threshold: float) -> dict[str, Any]:
        made = detector_card(
            name, recipe, text["data"], {}, text["limits"], VERSION, threshold, training=training
        )
        return made | works_at

    with tempfile.TemporaryDirectory() as temporary:
        plain = write_detector_package(arguments.best, Path(temporary) / name, card(0.4))
        threshold = best_threshold(YoloOnnxDetector(plain), parts["val"], arguments.modality == "dic")
        threshold = threshold if arguments.threshold is None else arguments.threshold
        write_package(plain.folder, card(threshold), plain.weights_path)
        if arguments.modality == "brightfield":  # calibrated on what it was trained on
            parts["train"] += [s for cells in single_cells(data).values() for s in cells["train"]]
        in_8_bits = arguments.bits == 8 and convert(str(plain.folder), arguments.out, parts, to_float=False)
        if not in_8_bits:
            convert(str(plain.folder), arguments.out, parts, to_float=True)
    package = read_package(arguments.out / name)
    truth = held_out_cells(data), read_smears(parts["test"]), read_fields(data)
    rows = measure(str(package.folder), data, parts, *truth, None)
    write_package(package.folder, package.card.model_dump() | {"metrics": rows}, package.weights_path)
    print(table(rows))


if __name__ == "__main__":
    main()
