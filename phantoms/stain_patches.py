"""Unpaired MGG and Perls patches of erythroblasts, in the numbers of the virtual Perls paper.

Hernández-Abad et al., table 1: patches of 12 patients to train and 3 to test, negative or positive for
ring sideroblasts, few of them positive in MGG.  Each phantom patient has stains of its own and a share of
positives of its own; the MGG and Perls patches of a patient are of the same marrow but of other cells.
Phantoms: drawn, not photographed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from phantoms.marrow import OTHER_TYPES, MarrowStain
from phantoms.patches import marrow_patch
from phantoms.stains import StainStyle, random_perls_style, random_style
from pipeline.errors import BadInput

Array = np.ndarray[Any, Any]
Split = Literal["train", "validation", "test"]

# (negative, positive) patches, table 1 of the paper.
TABLE_1: Mapping[tuple[MarrowStain, Split], tuple[int, int]] = {
    ("MGG", "train"): (1527, 110),
    ("MGG", "test"): (140, 65),
    ("Perls", "train"): (791, 499),
    ("Perls", "test"): (63, 65),
}
PATIENTS: Mapping[Split, int] = {"train": 12, "test": 3}
SPREAD = {"MGG": 63 / 124, "Perls": 96 / 95}  # standard deviation over mean of a patient's patches


@dataclass(frozen=True)
class PatchSet:
    """Patches of one stain and split: images (N, S, S, 3) uint8, positive (N,) bool, rs_types (N,) 0 to 3,
    patients (N,) int, the same number meaning the same marrow in both stains."""

    stain: MarrowStain
    split: Split
    images: Array
    positive: Array
    rs_types: Array
    patients: Array

    def __len__(self) -> int:
        return len(self.images)


def paper_counts(stain: MarrowStain, split: Split, scale: float = 1.0) -> tuple[int, int]:
    """(negative, positive) patches of table 1, at `scale` of their number but at least one each.

    Raises BadInput where the table has no such row.
    """
    if (stain, split) not in TABLE_1:
        raise BadInput(f"table 1 has no {split} patches of {stain}; its splits are train and test.")
    negative, positive = TABLE_1[stain, split]
    return max(1, round(negative * scale)), max(1, round(positive * scale))


def share_by_patient(total: int, patients: int, spread: float, rng: np.random.Generator) -> list[int]:
    """A total over patients whose numbers vary by `spread` (standard deviation over mean, gamma)."""
    weights = rng.gamma(1 / spread**2, size=patients) + 1e-9
    return [int(n) for n in rng.multinomial(total, weights / weights.sum())]


def patient_styles(patient: int, split: Split, seed: int) -> dict[MarrowStain, StainStyle]:
    """The MGG and the Perls stain of a phantom patient."""
    rng = np.random.default_rng([seed, 101, patient, split == "test"])
    return {"MGG": random_style(rng, spread=0.8), "Perls": random_perls_style(rng, spread=0.8)}


def draw_patches(
    types: Array,
    stain: MarrowStain,
    style: StainStyle,
    seed: tuple[int, ...],
    *,
    correlate: float,
    size_px: int = 64,
    pixel_size_um: float = 0.2,
    nuisances: float = 0.4,
) -> Array:
    """Patches (N, S, S, 3) uint8 of erythroblasts of given types 0 to 3 in one stain of one style."""
    images = [
        marrow_patch(
            np.random.default_rng([*seed, i]),
            int(rs_type),
            stain,
            size_px=size_px,
            pixel_size_um=pixel_size_um,
            style=style,
            correlate=correlate,
            nuisances=nuisances,
        ).image
        for i, rs_type in enumerate(types)
    ]
    return np.stack(images) if images else np.zeros((0, size_px, size_px, 3), np.uint8)


def other_types(n: int, rng: np.random.Generator) -> Array:
    """n iron types of erythroblasts that are no ring sideroblasts."""
    return rng.choice(list(OTHER_TYPES), size=n, p=list(OTHER_TYPES.values()))


def paper_patches(
    stain: MarrowStain,
    split: Split,
    *,
    seed: int = 0,
    correlate: float = 1.0,
    size_px: int = 64,
    pixel_size_um: float = 0.2,
    nuisances: float = 0.4,
    scale: float = 1.0,
) -> PatchSet:
    """The patches of a row of table 1 as phantoms; with `scale` 1 in exactly its numbers.

    `correlate` is how much an MGG patch shows of its type (0: nothing).  Everything follows from the
    seed; test patients are no training patients.  Raises BadInput for a row that the table lacks.
    """
    counts = paper_counts(stain, split, scale)
    n_patients = PATIENTS[split]
    rng = np.random.default_rng([seed, 102, stain == "Perls", split == "test"])
    # Patients differ in their share of positives: the two counts are shared out independently.
    shared = [share_by_patient(n, n_patients, SPREAD[stain], rng) for n in counts]
    images, rs_types, patients = [], [], []
    for patient in range(n_patients):
        types = np.concatenate([other_types(shared[0][patient], rng), np.full(shared[1][patient], 3)])
        key = (seed, 103, patient, int(stain == "Perls"), int(split == "test"))
        images.append(
            draw_patches(
                types,
                stain,
                patient_styles(patient, split, seed)[stain],
                key,
                correlate=correlate,
                size_px=size_px,
                pixel_size_um=pixel_size_um,
                nuisances=nuisances,
            )
        )
        rs_types.append(types)
        patients.append(np.full(len(types), patient))
    types = np.concatenate(rs_types).astype(int)
    return PatchSet(stain, split, np.concatenate(images), types == 3, types, np.concatenate(patients))


@dataclass(frozen=True)
class PatchCase:
    """The erythroblasts of one unseen phantom case: images (N, S, S, 3) uint8, rs_types (N,)."""

    images: Array
    rs_types: Array

    @property
    def rs_pct(self) -> float:
        return 100.0 * float((self.rs_types == 3).mean())


def patch_case(
    number: int,
    rs_fraction: float,
    *,
    n_cells: int = 60,
    seed: int = 0,
    stain: MarrowStain = "MGG",
    correlate: float = 1.0,
    size_px: int = 64,
    pixel_size_um: float = 0.2,
    nuisances: float = 0.4,
) -> PatchCase:
    """Erythroblasts of a case that no training patient is, with the stain of another laboratory day."""
    rng = np.random.default_rng([seed, 104, number])
    style = random_perls_style(rng, spread=0.8) if stain == "Perls" else random_style(rng, spread=0.8)
    rings = round(rs_fraction * n_cells)
    types = np.concatenate([np.full(rings, 3), other_types(n_cells - rings, rng)]).astype(int)
    images = draw_patches(
        types,
        stain,
        style,
        (seed, 105, number),
        correlate=correlate,
        size_px=size_px,
        pixel_size_um=pixel_size_um,
        nuisances=nuisances,
    )
    return PatchCase(images, types)
