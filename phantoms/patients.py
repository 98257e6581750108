"""Phantom patients: bags of drawn single cells whose composition is known.

A patient is one film (one stain style, one light) and a composition drawn around a pattern: a Dirichlet law
around its mean shares, so that patients of one pattern differ as people do.  The patterns name what a
differential shows, never a disease.  Shares of normal blood: Bain, *Blood Cells*; the others are made up for
the purpose of being told apart, some by many cells (lymphocytosis) and some by few (blasts).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from phantoms.blood import TrueCell, random_diameter
from phantoms.fields import NORMAL_BLOOD, FieldView, render_field
from phantoms.stains import StainStyle, develop, random_style

Array = np.ndarray[Any, Any]

PATCH_PX = 128
PIXEL_SIZE_UM = 0.2
CONCENTRATION = 60.0  # of the Dirichlet law: 10 % cells vary by about 4 points between patients

PATTERNS: Mapping[str, Mapping[str, float]] = {
    "unremarkable": NORMAL_BLOOD,
    "left_shift": {
        "neutrophil_segmented": 0.52, "neutrophil_band": 0.15, "metamyelocyte": 0.06, "myelocyte": 0.04,
        "promyelocyte": 0.01, "lymphocyte": 0.14, "monocyte": 0.06, "eosinophil": 0.015, "basophil": 0.005,
    },
    "lymphocytosis": {
        "lymphocyte": 0.60, "lymphocyte_reactive": 0.06, "neutrophil_segmented": 0.26,
        "neutrophil_band": 0.01, "monocyte": 0.05, "eosinophil": 0.015, "basophil": 0.005,
    },
    "eosinophilia": {
        "eosinophil": 0.22, "neutrophil_segmented": 0.45, "neutrophil_band": 0.03, "lymphocyte": 0.23,
        "monocyte": 0.06, "basophil": 0.01,
    },
    "blasts": {
        "blast": 0.15, "neutrophil_segmented": 0.42, "neutrophil_band": 0.04, "lymphocyte": 0.27,
        "monocyte": 0.08, "eosinophil": 0.03, "basophil": 0.01,
    },
}  # fmt: skip


@dataclass(frozen=True)
class PhantomPatient:
    """One patient: the pattern, the shares that were drawn, and the cells.

    patches: (n, 128, 128, 3) uint8 at 0.2 µm a pixel; kinds: the n true classes, in the order of patches.
    """

    pattern: str
    composition: dict[str, float]
    patches: Array
    kinds: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        return dict(Counter(self.kinds))


def draw_composition(pattern: str, rng: np.random.Generator) -> dict[str, float]:
    """Shares of a patient of a pattern, by a Dirichlet law; raises KeyError for an unknown pattern."""
    means = PATTERNS[pattern]
    shares = rng.dirichlet(CONCENTRATION * np.array(list(means.values())) / sum(means.values()))
    return dict(zip(means, (float(s) for s in shares), strict=True))


def cell_patch(
    kind: str,
    rng: np.random.Generator,
    style: StainStyle,
    *,
    size_px: int = PATCH_PX,
    pixel_size_um: float = PIXEL_SIZE_UM,
) -> Array:
    """One cell of a class in the middle of a patch (size, size, 3) uint8, red cells around it."""
    view = FieldView("patch", 5_000, 5_000, size_px, size_px)
    middle = (5_000 + size_px / 2) * pixel_size_um
    centre = TrueCell(
        0, kind, middle + float(rng.uniform(-0.5, 0.5)), middle + float(rng.uniform(-0.5, 0.5)),
        int(rng.integers(2**62)), random_diameter(kind, rng),
    )  # fmt: skip
    cells = [centre]
    reach = 0.5 * size_px * pixel_size_um + 3.0
    for _ in range(int(rng.poisson(6))):
        size = random_diameter("red_cell", rng)
        angle, distance = (
            rng.uniform(0, 2 * np.pi),
            rng.uniform(0.5 * (centre.diameter_um + size), reach * 1.2),
        )
        x, y = centre.x_um + distance * np.cos(angle), centre.y_um + distance * np.sin(angle)
        if all((x - c.x_um) ** 2 + (y - c.y_um) ** 2 > (0.48 * (size + c.diameter_um)) ** 2 for c in cells):
            seed = int(rng.integers(2**62))
            cells.append(TrueCell(len(cells), "red_cell", float(x), float(y), seed, size))
    layers = render_field(cells, view, pixel_size_um, style)
    return develop(layers.density, pixel_size_um, style, rng)


def phantom_patient(
    pattern: str, n_cells: int, rng: np.random.Generator, *, style: StainStyle | None = None
) -> PhantomPatient:
    """A patient of a pattern with `n_cells` cells, drawn at random from its own composition."""
    composition = draw_composition(pattern, rng)
    style = random_style(rng) if style is None else style
    names = list(composition)
    kinds = tuple(names[i] for i in rng.choice(len(names), n_cells, p=list(composition.values())))
    patches = np.stack([cell_patch(kind, rng, style) for kind in kinds]) if n_cells else _no_patches()
    return PhantomPatient(pattern, composition, patches, kinds)


def _no_patches() -> Array:
    return np.zeros((0, PATCH_PX, PATCH_PX, 3), np.uint8)
