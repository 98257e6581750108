"""Count error on whole fields, seams included: the same fields read in ever smaller windows.

    python -m benchmarks.detection_counts [--windows 1280 448 320]

The fields of SMEARFLOW_DATA/cases (2064 x 1544 px at 0.1 µm are 832 x 624 px at the detectors' 0.25 µm, one
window) are read whole and in smaller windows, so that cells lie on seams.  Counted is every leukocyte over
the card's threshold.  The error of a case is found over true, less one; its interval a bootstrap over fields.
True is the truth of the case, and again that truth as read again by eye (benchmarks.detection_truth).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection_truth import detect_field, field_boxes, read_fields

ROOT = Path(__file__).resolve().parent.parent


Counts = dict[str, list[tuple[int, int, int]]]


def counts(detector: Any, data: Path, modality: str, read: dict[tuple[str, str], np.ndarray]) -> Counts:
    """(found, true, true as read again) leukocytes of every field, by case."""
    from storage.images import read_rgb

    out: Counts = {}
    for folder in sorted((data / "cases").iterdir()):
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        for name, entry in truth["fields"].items():
            image = read_rgb(folder / f"{name}_{'BF' if modality == 'brightfield' else 'DIC'}.tif")
            _, scores = detect_field(detector, image, truth["pixel_size_um"], entry, modality)
            there = [
                len(field_boxes(entry, modality, image.shape, boxes))
                for boxes in (None, read[folder.name, name])
            ]
            found = int((scores >= detector.threshold).sum())
            out.setdefault(folder.name, []).append((found, *there))
    return out


def count_error(fields: Any) -> tuple[float, float, float]:
    """Found over true (a row a field), less one, with its 95 % interval (bootstrap over fields)."""
    table = np.asarray(fields, float)
    rng = np.random.default_rng(0)
    draws = table[rng.integers(0, len(table), (1000, len(table)))].sum(axis=1)
    low, high = np.percentile(draws[:, 0] / draws[:, 1] - 1, [2.5, 97.5])
    found, there = table.sum(axis=0)
    return float(found / there - 1), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, nargs="*", default=[1280, 448, 320], help="px at 0.25 µm")
    parser.add_argument("--detector", nargs="*", default=["leukocyte-brightfield", "leukocyte-dic"])
    arguments = parser.parse_args()
    from storage.registry import load

    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| detector | window, px | case | fields | truth | true | found | count error (95 %) |")
    print("|---|---|---|---|---|---|---|---|")
    read = read_fields(data)
    for name in arguments.detector:
        for window in arguments.windows:
            detector = load("detector", name).in_windows(window)
            for modality in detector.modalities:
                by_case = counts(detector, data, modality, read)
                for case, fields in [*by_case.items(), ("all", list(chain(*by_case.values())))]:
                    table = np.array(fields)
                    for column, truth in ((1, "as it is"), (2, "read again")):
                        error, low, high = count_error(table[:, [0, column]])
                        print(
                            f"| {name} | {window} | {case} | {len(fields)} | {truth} | "
                            f"{table[:, column].sum()} | {table[:, 0].sum()} | "
                            f"{100 * error:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f}) |",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
