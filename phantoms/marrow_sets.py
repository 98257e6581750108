"""Fields of marrow phantoms kept on disk for training: drawn once, read by finder and reader alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from phantoms.marrow import MarrowStain
from phantoms.marrow_fields import TrainingField, training_fields
from pipeline.errors import BadInput

PIXEL_SIZE_UM = 0.125
FIRST_SEED = 100_000  # of training marrows; validation begins at FIRST_VALIDATION_SEED
FIRST_VALIDATION_SEED = 200_000


@dataclass(frozen=True)
class FieldSet:
    """Fields of one stain at PIXEL_SIZE_UM: images (N, H, W, 3) uint8, and the cells of each."""

    images: np.ndarray
    fields: tuple[TrainingField, ...]

    def __len__(self) -> int:
        return len(self.fields)


def require_enough(recipe: object, steps: int, n_marrows: int, n_validation: int) -> None:
    """Raise BadInput where a recipe has too few steps or marrows to teach, or to measure, anything."""
    if steps < 1 or n_marrows < 2 or n_validation < 1:
        raise BadInput(
            f"{type(recipe).__name__}: {steps} steps on {n_marrows} marrows, {n_validation} to validate, "
            "train nothing; give at least 1 step, 2 marrows and 1 to validate."
        )


def field_set(
    folder: Path,
    stain: MarrowStain,
    n_marrows: int,
    *,
    first_seed: int = FIRST_SEED,
    n_stainings: int = 3,
    max_nuisances: float = 1.2,
    max_spread: float = 1.8,
    report: Callable[[str], None] = lambda line: None,
) -> FieldSet:
    """Fields of `n_marrows` marrows, drawn where the folder does not hold them yet (one file a marrow)."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[TrainingField] = []
    for seed in range(first_seed, first_seed + n_marrows):
        path = folder / f"{stain}-{seed}-{n_stainings}.npz"
        if not path.is_file():
            drawn = list(
                training_fields(
                    seed,
                    stain,
                    pixel_size_um=PIXEL_SIZE_UM,
                    n_stainings=n_stainings,
                    max_nuisances=max_nuisances,
                    max_spread=max_spread,
                )
            )
            _write(path, drawn)
            number = seed - first_seed + 1
            if number % 10 == 0 or number == n_marrows:
                report(f"{stain} marrow {number}/{n_marrows} drawn")
        found += _read(path)
    images = np.stack([f.image for f in found])
    return FieldSet(images, tuple(replace(f, image=images[i]) for i, f in enumerate(found)))


class Amounts(Protocol):
    """How much a recipe draws."""

    @property
    def n_marrows(self) -> int: ...
    @property
    def n_stainings(self) -> int: ...
    @property
    def n_validation(self) -> int: ...


def field_sets(
    work: Path, stain: MarrowStain, recipe: Amounts, report: Callable[[str], None] = lambda line: None
) -> tuple[FieldSet, FieldSet]:
    """Fields to learn from and fields to measure on, kept in `work`/fields.

    The latter are of other marrows, each in one staining, no farther from the usual than a case may be.
    """
    folder = work / "fields"
    return (
        field_set(folder, stain, recipe.n_marrows, n_stainings=recipe.n_stainings, report=report),
        field_set(
            folder,
            stain,
            recipe.n_validation,
            first_seed=FIRST_VALIDATION_SEED,
            n_stainings=1,
            max_nuisances=1.0,
            max_spread=1.0,
            report=report,
        ),
    )


def _write(path: Path, drawn: list[TrainingField]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for i, f in enumerate(drawn):
        arrays |= {f"image{i}": f.image, f"boxes{i}": f.boxes, f"recipes{i}": f.recipes}
        arrays |= {f"rs_types{i}": f.rs_types, f"visible{i}": f.visible}
    part = path.with_suffix(".part.npz")  # complete or absent
    np.savez(part, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def _read(path: Path) -> list[TrainingField]:
    with np.load(path, allow_pickle=False) as data:
        n = sum(name.startswith("image") for name in data.files)
        names = ("image", "boxes", "recipes", "rs_types", "visible")
        return [TrainingField(*(data[f"{name}{i}"] for name in names)) for i in range(n)]
