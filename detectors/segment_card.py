"""The model card of a trained segmenter: what it learned from, what was measured, whose names it owes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detectors.segment import MEAN, STD, WORKING_PIXEL_SIZE_UM
from detectors.segment_data import PUBLIC_SOURCES, LabelledCell, images_mark

EMA_DECAY = 0.995  # of the average of the weights that is kept
SEGMENTATION_WBC = "segmentation_WBC (Zheng 2018), GPL-3.0"
CLASSES = ("background", "red_cell", "cytoplasm", "nucleus")


def segmenter_card(
    name: str,
    data_dir: Path,
    recipe: dict[str, Any],
    train: list[LabelledCell],
    extra: list[LabelledCell],
    test: list[LabelledCell],
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """The card of a package `name` trained on `train` and `extra` cells; `metrics` are of `test`."""
    counts = {
        part: {s: sum(c.source == s for c in cells) for s in sorted({c.source for c in cells})}
        for part, cells in (("train", train), ("pseudo-labelled", extra), ("test", test))
    }
    cells = [*train, *test]
    sources = sorted({c.source for c in cells})
    marks = {s: images_mark(c.image for c in cells if c.source == s) for s in sources}
    public = [s for s in sources if marks[s] in PUBLIC_SOURCES]
    given = f"{data_dir.resolve().name}: {len(cells)} leukocytes with masks"
    if not public:
        given += " of the user's own"
    else:  # who trains on them owes their authors the name and the licence
        given += (
            f", {'all' if public == sources else 'those of ' + ' and '.join(public)} of {SEGMENTATION_WBC}"
        )
    pseudo = (
        f"{len(extra)} cells of boxed smears, labelled by the first stage where it agreed with their boxes"
        " (sources named by image size)",
    ) * bool(extra)
    return {
        "name": name,
        "version": "1",
        "task": "segmenter",
        "architecture": "unet",
        "weights": "safetensors",
        "sha256": "",
        "licence": "AGPL-3.0-or-later",
        "pixel_size_um": WORKING_PIXEL_SIZE_UM,
        "intended_use": "Labels background, red cells, cytoplasm and nucleus of leukocytes in"
        " Romanowsky-stained smears, for measurements and drawings. For research use only.",
        "modalities": ("brightfield",),
        "stains": ("MGG",),
        "specimens": ("blood",),
        "classes": CLASSES,
        "normalisation": {"mean": (MEAN,), "std": (STD,)},
        "training_data": (
            f"{given}; used {json.dumps(counts)}",
            *pseudo,
        ),
        "training": {
            **recipe,
            "split": "per source and class, near-duplicates (correlation over 0.97) together",
            "augmentation": "scale 0.6-1.6, any rotation, flips, stain transfer, OD mixing, hue, tint, uneven"
            " light, blur, noise, JPEG, pasted neighbours",
            "weights": f"exponential average, {EMA_DECAY}",
            "red_cells": "pseudo-labels by thresholding (thesis 4.4.4), never checked by a person",
        },
        "metrics": metrics,
        "limits": (
            "Red-cell labels are learned from thresholds; no figure for them is claimed.",
            "Not trained on marrow, on Perls or on DIC.",
            "Smudge cells and precipitate may be labelled as leukocytes.",
        ),
        "parameters": {"widths": recipe["widths"]},
    }
