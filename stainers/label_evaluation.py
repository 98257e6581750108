"""A transfer between stains without pairs: what a classifier makes of labelled cells before and after.

Intervals are 95 % of a bootstrap over images, near-duplicates together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.cell_sets import Cells, read_cells
from stainers.evaluation import Expects
from stainers.intervals import interval, without_interval
from storage.tables import read_table
from storage.whole_files import write_json, write_png

Array = np.ndarray[Any, Any]
PICTURED = 12


def labelled_sources(data: Path, targets: Sequence[str]) -> list[str]:
    """The sources of `data`/labels.csv that are none of the stainer's targets."""
    rows = read_table(data / "labels.csv", ("image", "source", "class"), filled=("image",))
    return sorted({r["source"] for r in rows} - set(targets))


def evaluate_transfer(
    stainer: Any,
    data: Path,
    out_dir: Path,
    *,
    classify: Callable[[Array], Sequence[str]],
    expects: Expects = str,
    target: str | None = None,
    limit: int = 60,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a stainer on the labelled cells of `data` that are not of its target; at most `limit` a source.

    `classify` takes (N, H, W, 3) uint8 to class names; a cell is right that has the one which `expects` makes
    of its label, and one of which that makes none is counted in `n_not_judged` alone.  Writes
    metrics.json and pictures.png (as it is, virtual) into `out_dir`; returns what metrics.json holds: figures
    of each source and, within it, class.
    """
    import cv2

    sources = labelled_sources(data, stainer.targets)
    if not sources:
        raise BadInput(f"{data}: every cell is of the stainer's own target; give cells of another stain.")
    report: dict[str, Any] = {
        "measured_on": "labelled cells without pairs",
        "labels": "of labels.csv",
        "per_source": {},
    }
    pictures: list[Array] = []
    for source in sources:
        cells = _some(read_cells(data, source), limit, seed)
        columns: dict[str, list[float]] = {"right_before": [], "right_after": [], "confidence": []}
        for image, label in zip(cells.images, cells.labels, strict=True):
            made = stainer.stain(image[None], target)
            wanted = expects(label)
            for when, shown in (("before", image[None]), ("after", made.image)):
                right = np.nan if wanted is None else float(classify(shown)[0] == wanted)
                columns[f"right_{when}"].append(right)
            columns["confidence"].append(float(made.confidence[0]))
            if len(pictures) < PICTURED:
                pictures.append(cv2.resize(np.hstack([image, made.image[0]]), (256, 128)))
        values = {k: np.asarray(v) for k, v in columns.items()}
        values["gain"] = values["right_after"] - values["right_before"]
        labels = np.asarray(cells.labels)
        report["per_source"][source] = {
            **_row(values, cells.groups, np.ones(len(cells), bool)),
            "per_class": {c: _row(values, cells.groups, labels == c) for c in cells.classes},
        }
    rows = {
        name if of is None else f"{name}, class {of}": row
        for name, found in report["per_source"].items()
        for of, row in ((None, found), *found["per_class"].items())
    }
    reasons = ["image errors, outlines and features: there are no pairs", *without_interval(rows)]
    report["not_measured"] = "; ".join(reasons)
    write_json(out_dir / "metrics.json", report)
    write_png(out_dir / "pictures.png", np.vstack(pictures))
    return report


def _row(values: Mapping[str, Array], groups: Sequence[str], chosen: Array) -> dict[str, Any]:
    """The number of the chosen cells (N,) bool, and each figure of theirs with its interval."""
    those = [g for g, c in zip(groups, chosen, strict=True) if c]
    not_judged = int(np.isnan(values["right_after"][chosen]).sum())
    spans = {"gain": (-1.0, 1.0)}
    figures = {k: interval(v[chosen], those, span=spans.get(k, (0.0, 1.0))) for k, v in values.items()}
    return {"n": int(chosen.sum()), "n_not_judged": not_judged, **figures}


def _some(cells: Cells, limit: int, seed: int) -> Cells:
    known = [i for i, label in enumerate(cells.labels) if label]
    if not known:
        raise BadInput(f"cells of '{cells.domain}' have no class to compare with; fill the column class.")
    order = np.random.default_rng([seed, 23]).permutation(known)
    return cells.take([int(i) for i in (order[:limit] if limit else order)])
