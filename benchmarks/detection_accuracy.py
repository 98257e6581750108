"""Accuracy of the leukocyte detectors on held-out real images: one command, ours and the peer.

    python benchmarks/detection_accuracy.py [--out DIR] [--detector NAME ...] [--json FILE]

Parts: the test part of `smears` (near-duplicates kept away from training) as labelled, as read again by eye
(benchmarks.detection_truth), and with an edge laid through every leukocyte; held-out single cells of
`wbc-masks`; DIC computed from the test part (phantoms.optics, random optics); and the whole fields of `cases`
in both modalities (their DIC comes from another optical model; their pieces may be smears that were trained
on), by their truth as it is and as read again on the brightfield (some photographs lack labels).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.detection_truth import detect_field, field_boxes, read_fields, read_smears

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261121


def whole_fields(
    detector, data: Path, modality: str, threshold: float, read: dict[tuple[str, str], np.ndarray]
) -> dict:
    """Rows of each case's fields and of all, by the truth as it is and as read again."""
    from detectors.evaluation import _figures
    from storage.images import read_rgb

    out, everything, again = {}, ([], [], []), []
    for folder in sorted((data / "cases").iterdir()):
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        mine: tuple[list, list, list] = ([], [], [])
        began = time.perf_counter()
        for name, entry in truth["fields"].items():
            file = folder / f"{name}_{'BF' if modality == 'brightfield' else 'DIC'}.tif"
            image = read_rgb(file, modality=modality)
            boxes, scores = detect_field(detector, image, truth["pixel_size_um"], entry, modality)
            again.append(field_boxes(entry, modality, image.shape, read[folder.name, name]))
            for collected in (mine, everything):
                collected[0].append(boxes)
                collected[1].append(scores)
                collected[2].append(field_boxes(entry, modality, image.shape))
        row = _figures(*mine, threshold)
        row["seconds_a_field"] = round((time.perf_counter() - began) / len(truth["fields"]), 2)
        out[f"{folder.name} {modality}"] = row
        fields = len(mine[0])
        out[f"{folder.name} {modality}, truth read again"] = _figures(*mine[:2], again[-fields:], threshold)
    out[f"all fields {modality}"] = _figures(*everything, threshold)
    out[f"all fields {modality}, truth read again"] = _figures(*everything[:2], again, threshold)
    return out


def average_precisions(r: dict) -> str:
    """Cells of a row: AP50 with its interval, AP50-95; a dash for what nobody could measure."""
    if r["ap50"] is None:
        return "- | -"
    interval = "" if r["ap50_ci95"] is None else " ({:.3f}-{:.3f})".format(*r["ap50_ci95"])
    return f"{r['ap50']:.3f}{interval} | {r['ap50_95']:.3f}"


def accuracy(r: dict) -> str:
    """The same with precision and recall."""
    return f"{average_precisions(r)} | {r['precision'] or 0:.3f} | {r['recall'] or 0:.3f}"


def table(rows: dict[str, dict]) -> str:
    lines = ["| part | images | cells | AP50 (95 %) | AP50-95 | precision | recall | found / true |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, r in rows.items():
        lines.append(
            f"| {name} | {r['n_images']} | {r['n_leukocytes']} | {accuracy(r)} | "
            f"{r['n_found'] / max(1, r['n_leukocytes']):.3f} |"
        )
    return "\n".join(lines)


def cut_on_purpose(samples: list, folder: Path) -> list:
    """Images with an edge laid through a leukocyte, twice for each: 8 to 40 % of its box are left.

    Images that would be narrower than 10 µm are left out; a leukocyte keeps its box down to 5 %.
    """
    import cv2

    from detectors.datasets import LEUKOCYTE
    from storage.images import read_rgb

    rng = np.random.default_rng(SEED)
    out = []
    for number, sample in enumerate(samples):
        image = read_rgb(sample.path)
        height, width = image.shape[:2]
        whole = sample.of(LEUKOCYTE)
        whole = whole[(whole[:, :2] > 2).all(1) & (whole[:, 2:] < [width - 2, height - 2]).all(1)]
        for twice, (x0, y0, x1, y1) in enumerate(whole.repeat(2, axis=0)):
            seen, side = rng.uniform(0.08, 0.4), rng.integers(4)
            left, top, right, bottom = 0, 0, width, height
            if side == 0:
                right = int(x0 + seen * (x1 - x0))
            elif side == 1:
                left = int(x1 - seen * (x1 - x0))
            elif side == 2:
                bottom = int(y0 + seen * (y1 - y0))
            else:
                top = int(y1 - seen * (y1 - y0))
            if min(right - left, bottom - top) * sample.pixel_size_um < 10:
                continue
            path = folder / f"{number}-{twice}.png"
            cv2.imwrite(str(path), image[top:bottom, left:right, ::-1])
            moved = sample.boxes - np.array([left, top, left, top], np.float32)
            kept = np.clip(moved, 0, np.array([right - left, bottom - top] * 2, np.float32))
            share = np.prod(kept[:, 2:] - kept[:, :2], 1) / np.prod(moved[:, 2:] - moved[:, :2], 1)
            stay = share > np.where(sample.classes == LEUKOCYTE, 0.05, 0.3)
            out.append(
                replace(
                    sample,
                    path=path,
                    width_px=right - left,
                    height_px=bottom - top,
                    boxes=kept[stay],
                    classes=sample.classes[stay],
                )
            )
    return out


def measure(
    name: str,
    data: Path,
    parts: dict,
    cells: dict,
    read: list,
    fields: dict[tuple[str, str], np.ndarray],
    out: Path | None,
) -> dict[str, dict]:
    """All rows of one detector."""
    from detectors.evaluation import evaluate_detector
    from detectors.training import dic_look
    from storage.registry import load

    detector = load("detector", name)
    threshold = getattr(detector, "threshold", 0.3)
    rows: dict[str, dict] = {}
    for modality in detector.modalities:
        look = dic_look if modality == "dic" else None
        folder = out / f"{name}-{modality}" if out else None
        report = evaluate_detector(detector, parts["test"], folder, threshold, look=look)
        label = "computed DIC of smears" if look else "smears"
        rows[f"{label}, test, as labelled"] = report["all"]
        rows |= {f"{label} {k}": v for k, v in report["sources"].items() if v["n_images"] > 5}
        again = evaluate_detector(detector, read, None, threshold, look=look)
        rows[f"{label}, test, truth read again"] = again["all"]
        with tempfile.TemporaryDirectory() as temporary:
            cut = cut_on_purpose(parts["test"], Path(temporary))
            report = evaluate_detector(detector, cut, None, threshold, look=look)
        rows[f"{label}, test, cut on purpose"] = report["all"]
        if look is None:
            for source, samples in cells.items():
                rows[source] = evaluate_detector(detector, samples, None, threshold)["all"]
        rows |= whole_fields(detector, data, modality, threshold, fields)
    return rows


def single_cells(data: Path) -> dict[str, dict[str, list]]:
    """The cells of the two stains of `wbc-masks`, by stain and part (`train`, `test`)."""
    from detectors.datasets import read_masked_cells, split

    return {
        n: split(read_masked_cells(data / "wbc-masks" / n, n), {"train": 0.7, "test": 0.3}, SEED)
        for n in ("tecom", "cellavision")
    }


def held_out_cells(data: Path) -> dict[str, list]:
    """Those that training does not see, by the name of their row."""
    return {f"wbc-masks {n}, 30 % kept back": parts["test"] for n, parts in single_cells(data).items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for curves and galleries of errors")
    parser.add_argument(
        "--detector", nargs="*", default=["leukocyte-brightfield", "leukocyte-dic", "classical"]
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from detectors.datasets import read_yolo_folder, split
    from detectors.training import FRACTIONS

    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    parts = split(read_yolo_folder(data / "smears"), FRACTIONS, SEED)
    cells, read, fields = held_out_cells(data), read_smears(parts["test"]), read_fields(data)
    everything = {}
    for name in arguments.detector:
        everything[name] = measure(name, data, parts, cells, read, fields, arguments.out)
        print(f"\n### {name} ({time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores)\n")
        print(table(everything[name]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
