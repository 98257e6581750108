"""Leukocytes that an edge cuts: how often the shipped classifier names what is left of them.

    python -m benchmarks.classification_edges [--cells 150] [--docs PAGE]

Held-out leukocytes of the smears; everything right of a line through the cell is taken away, and the patch is
cut about the middle of what is left of its box, as for a case.  Beyond the new edge stands its mirror image
(`patches.border_fill: reflect`) or the image's median colour (`background`).  `classification.min_seen` was
set on these figures.  Intervals: Wilson.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.classification_cells import DATA, write_section
from classifiers.evaluation import held_out_samples
from classifiers.readers import read_cells
from classifiers.sources import Sample, to_level
from pipeline.patches import crop_patches
from pipeline.statistics import wilson
from storage.images import read_rgb

MODEL = "leukocyte-classes"
SHARES = (1.0, 0.7, 0.5, 0.45, 0.4, 0.35, 0.3)
FILLS = ("reflect", "background")
PATCH_PX, PATCH_UM = 256, 0.1
LEUKOCYTE_UM = 12.5  # the smears state no pixel size


def held_leukocytes(classes: Sequence[str], count: int) -> list[Sample]:
    """Held-out leukocytes of the smears, drawn with a fixed seed."""
    held = [
        s
        for s in held_out_samples(MODEL, read_cells(DATA, "project"))
        if s.source.startswith("smears") and to_level(s.label) in set(classes) - {"platelet"}
    ]
    chosen = np.random.default_rng(0).permutation(len(held))[:count]
    return [held[i] for i in chosen]


def what_is_left(sample: Sample, image: np.ndarray, share: float, fill: Any) -> np.ndarray:
    """The patch (1, 256, 256, 3) of a cell whose box is cut to `share` of its breadth from the right."""
    assert sample.x is not None
    assert sample.y is not None
    assert sample.side is not None
    left = sample.x - sample.side / 2
    edge = image.shape[1] if share == 1 else min(max(8, round(left + share * sample.side)), image.shape[1])
    middle = (left + min(edge, left + sample.side)) / 2
    return crop_patches(
        image[:, :edge],
        [(middle, sample.y)],
        size_px=PATCH_PX,
        pixel_size_um=LEUKOCYTE_UM / sample.side,
        target_pixel_size_um=PATCH_UM,
        fill=fill,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=150)
    parser.add_argument("--docs", type=Path, default=None, help="Page whose table is written again.")
    options = parser.parse_args()
    from storage.registry import load

    torch.set_num_threads(1)
    classifier: Any = load("classifier", MODEL)
    cells = held_leukocytes(classifier.classes, options.cells)
    named: dict[tuple[float, str], list[tuple[bool, float]]] = {}
    for sample in cells:
        image = read_rgb(sample.path)
        for share in SHARES:
            for fill in FILLS:
                p = classifier.classify(what_is_left(sample, image, share, fill), PATCH_UM).probabilities[0]
                right = classifier.classes[int(p.argmax())] == to_level(sample.label)
                named.setdefault((share, fill), []).append((right, float(p.max())))
    lines = [
        f"`python -m benchmarks.classification_edges`, {date.today()}, {len(cells)} cells.",
        "",
        "| seen of the cell | named right, mirrored beyond the edge | mean confidence | named right, the"
        " median colour there |",
        "|---|---|---|---|",
    ]
    for share in SHARES:
        right, sure = np.array(named[share, "reflect"], float).T
        low, high = wilson(int(right.sum()), len(right))
        flat = np.mean([r for r, _ in named[share, "background"]])
        lines.append(
            f"| {share:g} | {right.mean():.2f} ({low:.2f}-{high:.2f}) | {sure.mean():.2f} | {flat:.2f} |"
        )
    print("\n".join(lines))
    if options.docs is not None:
        write_section(options.docs, "edges", "\n".join(lines))


if __name__ == "__main__":
    main()
