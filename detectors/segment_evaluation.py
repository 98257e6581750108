"""How well a segmenter's labels agree with masks: Dice per source, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detectors.base import Segmenter
from detectors.data_scale import scales_of
from detectors.segment import segment_image
from detectors.segment_data import LabelledCell, images_mark, read_labelled_cells, split_cells
from pipeline.errors import BadInput
from storage.tables import write_table
from storage.whole_files import write_json

COLUMNS = ("dice_cell", "dice_nucleus")
TARGETS = {"cell": 2, "nucleus": 3}  # the lowest label that counts; cell = cytoplasm + nucleus


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient 2|A∩B| / (|A| + |B|) of two boolean masks; 1 where both are empty (Dice 1945)."""
    total = int(predicted.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2 * int((predicted & truth).sum()) / total


def dice_of(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two boolean masks; NaN where the truth is empty: there is nothing to be right about."""
    return dice(predicted, truth) if truth.any() else float("nan")


def bootstrap_mean(
    values: np.ndarray, groups: np.ndarray, seed: int = 1, draws: int = 2000
) -> tuple[float, float]:
    """95 % percentile interval of the mean, drawing whole groups (near-duplicates are not independent)."""
    names = np.unique(groups)
    sums = np.array([values[groups == g].sum() for g in names])
    counts = np.array([(groups == g).sum() for g in names])
    pick = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    low, high = np.percentile(sums[pick].sum(axis=1) / counts[pick].sum(axis=1), (2.5, 97.5))
    return float(low), float(high)


def evaluate_cells(
    segmenter: Segmenter,
    cells: list[LabelledCell],
    rows: list[dict[str, Any]] | None = None,
    pixel_size_um: float | None = None,
) -> dict[str, Any]:
    """Dice per source of cell and nucleus: {source: {n, cell: {mean, ci_low, ci_high, p5}, nucleus: …}}.

    Cells of which the truth shows nothing count in no mean; figures of no cell at all are None.  The
    segmenter is told no pixel size but one that is given for all: the scale is read off each image, as on a
    file from elsewhere.
    """
    scores: dict[str, list[tuple[int, float, float]]] = {}
    for cell in cells:
        labels = segment_image(segmenter, cell.image, pixel_size_um)
        known = cell.labels <= 3
        pair = [dice_of((labels >= low) & known, (cell.labels >= low) & known) for low in TARGETS.values()]
        scores.setdefault(cell.source or "unnamed", []).append((cell.group, *pair))
        if rows is not None:
            said = (None if np.isnan(v) else v for v in pair)
            rows.append({"image": cell.name, "source": cell.source} | dict(zip(COLUMNS, said, strict=True)))
    out: dict[str, Any] = {}
    for source, found in sorted(scores.items()):
        table = np.array(found, float)
        out[source] = {"n": len(found)}
        for column, target in enumerate(TARGETS, start=1):
            out[source][target] = _figures(*table[~np.isnan(table[:, column])][:, [column, 0]].T)
    return out


def _figures(values: np.ndarray, groups: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(("mean", "ci_low", "ci_high", "p5"))
    low, high = bootstrap_mean(values, groups)
    found = (float(values.mean()), low, high, float(np.percentile(values, 5)))
    return {k: round(v, 4) for k, v in zip(("mean", "ci_low", "ci_high", "p5"), found, strict=True)}


def evaluate_segmenter(
    segmenter: Segmenter,
    data_dir: Path,
    out_dir: Path,
    held_out: Mapping[str, Any] | None = None,
    pixel_size_um: float | None = None,
) -> dict[str, Any]:
    """Measure a segmenter on the cells of a folder (as `read_labelled_cells` takes it).

    `held_out`, what the model's card says of its training, keeps to the part that the training held out;
    without it every cell is measured, which is honest only for a folder that the model never saw.
    `pixel_size_um` is that of every image, where given.

    Writes segmentation.json (the returned values) and segmentation.csv (one row a cell) to `out_dir`.
    Raises BadInput where `held_out` is asked for and the folder is not the one that was trained on.
    """
    rows: list[dict[str, Any]] = []
    cells = read_labelled_cells(data_dir, pixel_size_um)
    part = "all cells"
    if held_out is not None:
        cells = held_out_cells(data_dir, cells, held_out)
        part = f"held out by split seed {held_out['seed']}"
    result = {
        "segmenter": segmenter.name,
        "part": part,
        "pixel_size_from": scales_of(cells),
        "sources": evaluate_cells(segmenter, cells, rows, pixel_size_um),
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / "segmentation.json", result)
    write_table(out_dir / "segmentation.csv", list(rows[0]), rows)
    return result


def held_out_cells(
    data_dir: Path, cells: list[LabelledCell], training: Mapping[str, Any]
) -> list[LabelledCell]:
    """Of the cells that a segmenter was trained on, the part that its card's `training` held out.

    Raises BadInput where the card does not say which they are, or they are not among `cells`.
    """
    seed, mark = training.get("seed"), training.get("held_out_sha256")
    if seed is None or mark is None:
        raise BadInput(
            "the model's card does not say which cells its training held out; leave out --held-out."
        )
    test = split_cells(cells, int(seed))[1]
    if images_mark(c.image for c in test) != mark:
        raise BadInput(
            f"{data_dir} is not the folder that the model was trained on, or was changed since; name that, "
            "or leave out --held-out to measure all cells of a folder that the model never saw."
        )
    return test
