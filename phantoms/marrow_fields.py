"""Small fields of marrow, each marrow drawn once and stained many times: what finders are trained on.

Drawing a cell costs far more than staining it, so a scene keeps its drawn cells and lends them to as
many stains, nuisances and exposures as are asked for.  Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from phantoms.blood import Layers, TrueCell
from phantoms.fields import Drawer, FieldView, lay_fields, populate, render_field
from phantoms.marrow import (
    NORMAL_MARROW,
    MarrowStain,
    add_nuisances,
    assign_types,
    marrow_drawer,
    perls_fields,
)
from phantoms.stains import develop, random_perls_style, random_style
from pipeline.errors import BadInput

Array = np.ndarray[Any, Any]

# What the cells of a training field are called: the recipes of marrow, and two that disturb it.
RECIPES: tuple[str, ...] = (*NORMAL_MARROW, "lymphocyte_reactive", "smudge")
ERYTHROID_RECIPES: tuple[str, ...] = tuple(r for r in RECIPES if "erythroblast" in r)


@dataclass(frozen=True)
class TrainingField:
    """A field (H, W, 3) uint8 and the nucleated cells of which at least `MIN_VISIBLE` is seen.

    boxes (N, 4) float32 in pixels of the field, recipes (N,) indices into RECIPES, rs_types (N,) 0 to 3 or
    -1, visible (N,) share of each cell that the field shows.
    """

    image: Array
    boxes: Array
    recipes: Array
    rs_types: Array
    visible: Array


MIN_VISIBLE = 0.1


def recipe_of(cell: TrueCell) -> str:
    """The recipe that drew a cell: its class, with the stage of an erythroblast."""
    return f"{cell.kind}_{cell.stage}" if cell.stage else cell.kind


def random_composition(rng: np.random.Generator) -> dict[str, float]:
    """Shares of the recipes: normal marrow, or as often one in which anything may be frequent.

    The second kind is no marrow that exists; it shows rare stages as often as common ones.
    """
    if rng.random() < 0.4:
        shares = dict(NORMAL_MARROW)
        return {k: v * float(np.exp(rng.normal(0, 0.5))) for k, v in shares.items()}
    weights = rng.dirichlet(np.full(len(RECIPES), 0.5))
    for i, name in enumerate(RECIPES):
        # A third of the cells or more are erythroid, proerythroblasts first among equals.
        weights[i] *= 2.5 if name in ERYTHROID_RECIPES else 0.3 if name == "smudge" else 1.0
    return {k: float(w) for k, w in zip(RECIPES, weights / weights.sum(), strict=True)}


def _remembering(drawer: Drawer) -> Drawer:
    kept: dict[int, Layers] = {}

    def draw_it(cell: TrueCell, pixel_size_um: float) -> Layers:
        if cell.number not in kept:
            kept[cell.number] = drawer(cell, pixel_size_um)
        return kept[cell.number]

    return draw_it


def training_fields(
    seed: int,
    stain: MarrowStain,
    *,
    side_um: float = 64.0,
    pixel_size_um: float = 0.125,
    n_cells: int = 14,
    n_stainings: int = 4,
    max_nuisances: float = 1.2,
    max_spread: float = 1.8,
) -> Iterator[TrainingField]:
    """One marrow of one field, stained `n_stainings` times; cells may be cut by the field's edge.

    Composition, share of ring sideroblasts, correlate, stain, nuisances and focus are drawn anew for each
    marrow or staining, from calm to worse than the phantom cases are.
    """
    rng = np.random.default_rng([seed, 77])
    side_px = round(side_um / pixel_size_um)
    view = FieldView("T001", 4000, 4000, side_px, side_px)
    cells = _scene(rng, view, pixel_size_um, n_cells)
    drawers: dict[float, Drawer] = {}
    for _ in range(n_stainings):
        correlate = 0.0 if stain == "Perls" else float(rng.choice([0.0, 1.0]))
        drawer = drawers.setdefault(correlate, _remembering(marrow_drawer(stain, correlate)))
        spread = float(rng.uniform(0.2, max_spread))
        style = (
            random_perls_style(rng, spread=spread) if stain == "Perls" else random_style(rng, spread=spread)
        )
        layers = render_field(cells, view, pixel_size_um, style, drawer=drawer)
        strength = float(rng.uniform(0, max_nuisances))
        density, light = add_nuisances(layers.density, pixel_size_um, style, rng, strength, stain)
        image = develop(density, pixel_size_um, light, rng)
        seen = [s for s in layers.seen if s[2] >= MIN_VISIBLE]
        yield TrainingField(
            image,
            np.array([s[1] for s in seen], np.float32).reshape(-1, 4),
            np.array([RECIPES.index(recipe_of(s[0])) for s in seen], np.int64),
            np.array([-1 if s[0].rs_type is None else s[0].rs_type for s in seen], np.int64),
            np.array([s[2] for s in seen], np.float32),
        )


# Ring sideroblasts go with erythroid hyperplasia: the erythroid shares of normal marrow, doubled.
ERYTHROID_RICH: dict[str, float] = {
    k: v * (2 if k in ERYTHROID_RECIPES else 1) for k, v in NORMAL_MARROW.items()
}


def perls_marrow(
    seed: int,
    rs_fraction: float,
    *,
    n_fields: int = 3,
    side_px: int = 960,
    n_cells_per_field: int = 27,
    pixel_size_um: float = 0.1,
    composition: Mapping[str, float] = ERYTHROID_RICH,
    nuisances: float = 0.5,
    hard: bool = False,
) -> list[tuple[Array, dict[str, Any]]]:
    """The Perls fields of one marrow of a known share of ring sideroblasts, without an MGG slide.

    Returns (image (H, W, 3) uint8, truth as in `perls_fields`) a field; drawn as `simulate_case` draws
    its Perls slide.
    """
    rng = np.random.default_rng([seed, 0])
    views = lay_fields(n_fields, side_px, side_px, pixel_size_um, 0.0)
    cells = populate(
        views,
        pixel_size_um,
        rng,
        composition=composition,
        n_leukocytes=n_fields * n_cells_per_field,
        red_cell_cover=0.22,
        crowding=nuisances,
    )
    cells = assign_types(cells, rng, rs_fraction)
    stages = {c.number: recipe_of(c) for c in cells}
    out = []
    for _, image, _, truth in perls_fields(
        cells, views, pixel_size_um, seed=seed, bits=8, nuisances=nuisances, hard=hard, where={}
    ):
        out.append((image, {**truth, "recipes": [stages[i] for i in truth["cell_ids"]]}))
    return out


def _scene(rng: np.random.Generator, view: FieldView, pixel_size_um: float, n_cells: int) -> list[TrueCell]:
    composition = random_composition(rng)
    for n in range(n_cells, 2, -2):  # a marrow of large cells holds fewer of them
        try:
            cells = populate(
                [view],
                pixel_size_um,
                rng,
                composition=composition,
                n_leukocytes=n,
                red_cell_cover=float(rng.uniform(0.02, 0.35)),
                cut_cells=bool(rng.random() < 0.7),
                crowding=float(rng.uniform(0, 1)),
            )
        except BadInput:
            continue
        typed = assign_types(cells, rng, float(rng.choice([0.0, rng.uniform(0, 0.7)])))
        if rng.random() < 0.5:  # all four types alike, so that a reader meets the rare ones
            typed = [c if c.rs_type is None else replace(c, rs_type=int(rng.integers(4))) for c in typed]
        return [replace(c, number=i) for i, c in enumerate(typed)]
    raise BadInput(f"a field of {view.width_px} px cannot hold {n_cells} cells; ask for a larger one.")
