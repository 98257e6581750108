"""Leukocytes in DIC: by the network alone, in what a stainer paints of it, and by both, in one run.

    python -m benchmarks.detection_painted [--docs PAGE] [--write VERSION]

Parts: computed DIC (phantoms.optics) of the validation and test parts of `smears`, under the optics of
training and under wider ones; the whole fields of `cases`, by another optical model.  Truth: as read again by
eye (benchmarks.detection_truth), of validation as labelled.

The threshold of both together is that of `THRESHOLDS` by which the counts on the validation part come nearest
to the truth under either optics, and of equals the one with the best F1.  `--write` puts it on the card, with
the stainer and the detector of painted pictures, and measures the card's figures anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.classification_cells import write_section
from benchmarks.detection_accuracy import ROOT, SEED, accuracy, held_out_cells, measure
from benchmarks.detection_accuracy import table as accuracy_table
from benchmarks.detection_ship import THRESHOLDS
from benchmarks.detection_truth import field_boxes, judged, read_fields, read_smears

NAME, STAINER, READER = "leukocyte-dic", "dic-to-mgg", "leukocyte-brightfield"
SENTENCE = (
    "from 3.0.0 on an image is looked at once more as dic-to-mgg paints it, by leukocyte-brightfield, and "
    "the boxes of both are fused; no weights were trained for it"
)
WAYS = {"alone": "the network alone", "painted": "the painted picture alone", "both": "both, fused"}

Boxes = tuple[np.ndarray, np.ndarray]
Part = dict[str, Any]  # truth: boxes of every image; a way of WAYS: boxes and scores of every image; seconds


def ways(detector: Any) -> tuple[Callable[[np.ndarray, float], dict[str, Boxes]], dict[str, float]]:
    """What every way finds in an image, and the seconds that each has taken so far."""
    from detectors.yolo_onnx import check_image

    seconds = {"alone": 0.0, "painted": 0.0}

    def find(image: np.ndarray, pixel_size_um: float) -> dict[str, Boxes]:
        image, began = check_image(image, NAME), time.perf_counter()
        seen = detector.alone.detect(image, pixel_size_um)
        between = time.perf_counter()
        read = detector.read_painted(image, pixel_size_um)
        seconds["alone"] += between - began
        seconds["painted"] += time.perf_counter() - between
        return {"alone": seen, "painted": read, "both": detector.fuse(seen, read)}

    return find, seconds


def computed(detector: Any, samples: Sequence[Any], wide: bool, truth: Sequence[Any]) -> Part:
    from detectors.training import dic_look
    from phantoms.computed_dic import compute_dic
    from phantoms.optics import wider_optics
    from storage.images import read_rgb

    find, seconds = ways(detector)
    out: Part = {"truth": [t.of(0) for t in truth], **{way: [] for way in WAYS}}
    for i, sample in enumerate(samples):
        image, rng = read_rgb(sample.path), np.random.default_rng([7, i])
        if wide:
            grey = compute_dic(image, sample.pixel_size_um, wider_optics(rng), rng)
            image = np.repeat(grey[..., None], 3, 2)
        else:
            image = dic_look(image, sample.pixel_size_um, rng)
        for way, found in find(image, sample.pixel_size_um).items():
            out[way].append(found)
    return out | {"seconds": seconds}


def fields(detector: Any, data: Path, read: dict[tuple[str, str], np.ndarray]) -> dict[str, Part]:
    """By case, and of all."""
    from storage.images import read_rgb

    find, seconds = ways(detector)
    everything: Part = {"truth": [], **{way: [] for way in WAYS}, "seconds": seconds}
    out: dict[str, Part] = {}
    for folder in sorted((data / "cases").iterdir()):
        case: Part = {"truth": [], **{way: [] for way in WAYS}}
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        for name, entry in truth["fields"].items():
            image = read_rgb(folder / f"{name}_DIC.tif")
            found = find(image, truth["pixel_size_um"])
            boxes = field_boxes(entry, "dic", image.shape, read[folder.name, name])
            for part in (case, everything):
                part["truth"].append(boxes)
                for way in WAYS:
                    part[way].append(judged(entry, "dic", image.shape, *found[way]))
        out[folder.name] = case
    return out | {"all fields": everything}


def figures(part: Part, way: str, threshold: float) -> dict[str, Any]:
    from detectors.evaluation import _figures

    return _figures([b for b, _ in part[way]], [s for _, s in part[way]], part["truth"], threshold)


def choose(parts: Sequence[Part], way: str) -> float:
    """See the module; prints what each threshold does."""
    from detectors.evaluation import match

    best: list[tuple[float, float, float]] = []
    for threshold in THRESHOLDS:
        miscounts, f1 = [], []
        for part in parts:
            found = [(b[s >= threshold], s[s >= threshold]) for b, s in part[way]]
            right = sum(match(*f, t, 0.5).sum() for f, t in zip(found, part["truth"], strict=True))
            n_found, n_true = (sum(map(len, boxes)) for boxes in ([b for b, _ in found], part["truth"]))
            miscounts.append(abs(n_found / n_true - 1))
            f1.append(2 * right / (n_found + n_true))
        print(f"{WAYS[way]}, {threshold}: counts off by {np.mean(miscounts):.3f}, F1 {np.mean(f1):.4f}")
        best.append((round(float(np.mean(miscounts)), 6), -float(np.mean(f1)), threshold))
    return min(best)[2]


def table(parts: dict[str, Part], thresholds: dict[str, float]) -> str:
    lines = [
        "| part | images | cells | looked at by | AP50 (95 %) | AP50-95 | precision | recall | count |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, part in parts.items():
        for way, words in WAYS.items():
            r = figures(part, way, thresholds[way])
            miscount = r["n_found"] / r["n_leukocytes"] - 1
            lines.append(
                f"| {name} | {r['n_images']} | {r['n_leukocytes']} | {words} | {accuracy(r)} | "
                f"{100 * miscount:+.1f} % |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--write", metavar="VERSION", help="of the card of the shipped DIC detector")
    asked = parser.parse_args()
    from detectors.datasets import read_yolo_folder, split
    from detectors.painted import PAINTED, PaintedDetector, leukocyte_detector, painted_parameter
    from detectors.training import FRACTIONS
    from storage.packages import write_package
    from storage.registry import describe, load

    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    parts = split(read_yolo_folder(data / "smears"), FRACTIONS, SEED)
    read, again = read_fields(data), read_smears(parts["test"])
    alone, package = leukocyte_detector(NAME, painted=False), describe("detector", NAME)
    scale = describe("stainer", STAINER).card.pixel_size_um
    detector = PaintedDetector(alone, load("stainer", STAINER), scale, load("detector", READER))

    found = {
        f"{name}, {optics}": computed(detector, parts[key], optics == "wider optics", truth)
        for key, name, truth in (("val", "validation", parts["val"]), ("test", "test", again))
        for optics in ("optics of training", "wider optics")
    }
    validation = [part for name, part in found.items() if name.startswith("validation")]
    thresholds = {way: choose(validation, way) for way in WAYS}
    found |= fields(detector, data, read)
    taken = found["all fields"]["seconds"]
    count = len(found["all fields"]["truth"])
    text = (
        f"`python -m benchmarks.detection_painted`, {datetime.date.today()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}. Thresholds, from the validation part: "
        + ", ".join(f"{words} {thresholds[way]}" for way, words in WAYS.items())
        + f". A field of 2064 x 1544 px took the network alone {taken['alone'] / count:.1f} s, to paint and "
        f"read the picture {taken['painted'] / count:.1f} s more.\n\n"
    )
    text += table(found, thresholds)
    print(text)
    if asked.docs is not None:
        write_section(asked.docs, "detection-painted", text)
    if asked.write is None:
        return
    card = package.card.model_dump() | {"version": asked.write}
    card["parameters"] |= {"threshold": thresholds["both"], PAINTED: painted_parameter(STAINER, READER)}
    stages = [s for s in card["training"]["stages"] if s != SENTENCE]
    card["training"] = {**card["training"], "stages": [*stages, SENTENCE]}
    folder = write_package(package.folder, card, package.weights_path.resolve()).folder
    rows = measure(str(folder), data, parts, held_out_cells(data), again, read, None)
    write_package(folder, card | {"metrics": rows}, folder / "model.onnx")
    print(accuracy_table(rows))


if __name__ == "__main__":
    main()
