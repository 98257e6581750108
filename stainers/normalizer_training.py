"""Fitting of the classical normalizers: no steps, two measures, the same package and command as the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stainers.cell_sets import StainSet
from stainers.dic_sets import DicSet
from stainers.normalizers import METHODS, MIN_CONFIDENCE, Fit, NormalizerStainer, fit, images_of
from stainers.picture_data import DataOptions, read_set
from stainers.picture_stainer import rgb_uint8
from storage.packages import ModelPackage, write_package

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FitOptions:
    """Nothing is drawn; the seed is kept so that every recipe has one, `steps` likewise."""

    steps: int = 0
    seed: int = 0


@dataclass(frozen=True)
class NormalizerRecipe:
    """Which normalizer, and the two stains."""

    architecture: str = "reinhard"
    data: DataOptions = field(default_factory=DataOptions)
    run: FitOptions = field(default_factory=FitOptions)


def train_set(
    data: StainSet, out_dir: Path, recipe: NormalizerRecipe, *, backward: bool = True, **_: Any
) -> ModelPackage:
    """Fit on the part `train` and write `out_dir`/package, and package-backward where both are stains."""
    part = data.part("train")
    if isinstance(data, DicSet):
        source: Sequence[Array] = [p.dic for p in data.pairs_of("train")]
    else:
        source = images_of(part.source)
    ends = (data.source.domain, data.target.domain)
    target = images_of(part.target)
    first = _write(recipe, fit(recipe.architecture, source, target), ends, data, out_dir / "package")
    if backward and data.source.modality != "dic":
        back = fit(recipe.architecture, target, source)
        _write(recipe, back, ends[::-1], data, out_dir / "package-backward")
    return first


def _write(
    recipe: NormalizerRecipe, fitted: Fit, ends: tuple[str, str], data: StainSet, folder: Path
) -> ModelPackage:
    dic = data.source.modality == "dic"
    counts = {c.domain: len(c.part("train")) for c in (data.source, data.target)}
    stainer = NormalizerStainer(recipe.architecture, fitted, name="", targets=ends[1:])
    held_out = images_of((data.source if ends[0] == data.source.domain else data.target).part("test"))
    usual = stainer.confidence(
        np.stack([METHODS[recipe.architecture].measure(rgb_uint8(i)) for i in held_out])
    )
    card = {
        "name": f"{ends[0]}-to-{ends[1]}-{recipe.architecture}",
        "version": "1",
        "task": "stainer",
        "architecture": recipe.architecture,
        "weights": "safetensors",
        "licence": "AGPL-3.0-or-later",
        "intended_use": f"The colours of {ends[1]} for cells seen in {ends[0]}; a baseline. Research only.",
        "modalities": ("dic",) if dic else ("brightfield",),
        "stains": ("unstained",) if dic else ("MGG",),
        "pixel_size_um": None,
        "channels": 1 if dic else 3,
        "training_data": tuple(f"{n} images of {domain}" for domain, n in counts.items()),
        "training": {"fitted_to": "train", "parameters": METHODS[recipe.architecture].size},
        "metrics": {
            "usual_share_of_test_images": float((usual >= MIN_CONFIDENCE).mean()),
            "n": len(held_out),
        },
        "limits": (
            "Changes colours by one rule for the whole image; what differs between cells is left as it is.",
            "An image without stained pixels, or without colour, has no stain of its own to be measured.",
        ),
        "parameters": {
            "targets": ends[1:],
            "farthest": fitted.farthest,
            "min_confidence": MIN_CONFIDENCE,
        },
    }
    names = ("target", "source_mean", "source_std")
    state = {name: torch.from_numpy(np.asarray(getattr(fitted, name), np.float32)) for name in names}
    return write_package(folder, card, state)


def train_folder(
    data_dir: Path, out_dir: Path, *, recipe: NormalizerRecipe, resume: bool = False, progress: Any = None
) -> dict[str, Any]:
    """Read the recipe's data set from a folder, fit, write `out_dir`/package; returns its metrics."""
    return train_set(read_set(data_dir, recipe.data), out_dir, recipe).card.metrics
