"""Training of the classifier of erythroblasts on MGG on phantom marrows; a few minutes of one core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classifiers.erythroblasts import CLASSES, RANKS, energy
from classifiers.sideroblasts_cnn import INPUT_PX, PIXEL_SIZE_UM
from classifiers.sideroblasts_training import (
    IronSet,
    ReaderRecipe,
    cells_shown,
    learn_from_phantoms,
)
from phantoms.marrow_fields import ERYTHROID_RECIPES
from phantoms.marrow_sets import FieldSet
from storage.packages import ModelPackage, write_package

OTHER = CLASSES.index("other")
WEIGHTS = (0.7, 1.3, 1.6)  # of what is shown, by class: other cells are the many kinds
RECIPE = ReaderRecipe(steps=400, n_marrows=100, gain=0.2, mix=0.08)


def label_of(recipe: str, _iron: int) -> int:
    """The output that a drawn cell is to have; its iron plays no part."""
    if recipe not in ERYTHROID_RECIPES:
        return OTHER
    return CLASSES.index("proerythroblast" if recipe == "proerythroblast" else "erythroblast")


def erythroid_set(fields: FieldSet, n_empty: int, seed: int) -> IronSet:
    """Every cell of MGG fields that is seen whole, and places without one."""
    return cells_shown(fields, label_of, OTHER, n_empty, seed)


def confusion_of(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How cells of known class were named; an erythroblast of any age counts as one."""
    named = probabilities.argmax(1)
    is_one, said = labels != OTHER, 1 - probabilities[:, OTHER] > 0.5
    return {
        "n_erythroblasts": int(is_one.sum()),
        "n_others": int((~is_one).sum()),
        "true_then_named": {
            a: {b: int(((labels == i) & (named == j)).sum()) for j, b in enumerate(CLASSES)}
            for i, a in enumerate(CLASSES)
        },
        "recall": round(float(said[is_one].mean()), 4) if is_one.any() else None,
        "precision": round(float(is_one[said].mean()), 4) if said.any() else None,
    }


def train_erythroblasts(
    out_dir: Path,
    work: Path | None = None,
    recipe: ReaderRecipe = RECIPE,
    *,
    seed: int = 0,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> ModelPackage:
    """Train as `classifiers.sideroblasts_training.learn_from_phantoms` says, and write the package."""
    found = learn_from_phantoms(
        out_dir,
        work,
        recipe,
        "MGG",
        erythroid_set,
        len(CLASSES),
        WEIGHTS,
        seed=seed,
        resume=resume,
        report=report,
    )
    metrics = confusion_of(found.probabilities, found.labels)
    report(f"temperature {found.temperature} {metrics}")
    card = _card(out_dir.name, recipe, seed, found.data, found.n_fields, metrics, found.temperature)
    familiar = np.percentile(energy(found.logits.astype(np.float64)), np.linspace(0, 100, RANKS))
    return write_package(
        out_dir, card, {**found.packed(), "familiar": torch.tensor(familiar, dtype=torch.float32)}
    )


def _card(
    name: str,
    recipe: ReaderRecipe,
    seed: int,
    data: IronSet,
    n_fields: int,
    metrics: dict[str, Any],
    temperature: float,
) -> dict[str, Any]:
    counts = dict(zip(CLASSES, np.bincount(data.labels, minlength=len(CLASSES)).tolist(), strict=True))
    return {
        "name": name,
        "version": "1.0.0",
        "task": "classifier",
        "architecture": "erythroid-net",
        "weights": "safetensors",
        "licence": "AGPL-3.0-or-later",
        "intended_use": (
            "Telling erythroblasts from other nucleated cells of MGG marrow, for the denominator of virtual "
            "Perls. No differential count is made of it. Research only."
        ),
        "modalities": ["brightfield"],
        "stains": ["MGG"],
        "specimens": ["bone_marrow"],
        "pixel_size_um": PIXEL_SIZE_UM,
        "input_px": [INPUT_PX, INPUT_PX],
        "classes": list(CLASSES),
        "training_data": [
            f"Phantom marrows (phantoms.marrow_fields): {n_fields} MGG fields of {recipe.n_marrows} marrows, "
            f"cells by class {counts}, empty places among the others. No photograph."
        ],
        "training": {"seed": seed, "recipe": asdict(recipe), "weights": list(WEIGHTS)},
        "metrics": {
            "measured_on": "validation phantoms, centred by truth; temperature and ranks were fitted on them",
            **metrics,
        },
        "limits": [
            "Trained and calibrated on drawn cells only; on photographs it is not to be relied on.",
            "Megakaryocytes, fat, stroma and crushed cells are not in the phantoms.",
            "Without a pixel size a patch is taken to be 25.6 µm wide.",
        ],
        "parameters": {"widths": list(recipe.widths), "temperature": temperature, "min_confidence": 0.5},
    }
