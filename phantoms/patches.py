"""Single marrow cells with their surroundings: what readers of sideroblasts are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from phantoms.blood import TrueCell, random_diameter, split_kind
from phantoms.fields import FieldView, populate, render_field, share_out
from phantoms.iron import iron_truth
from phantoms.marrow import (
    NORMAL_MARROW,
    MarrowStain,
    add_nuisances,
    assign_types,
    marrow_drawer,
)
from phantoms.stains import StainStyle, develop, random_perls_style, random_style

Array = np.ndarray[Any, Any]

STAGES: Mapping[str, float] = {k: v for k, v in NORMAL_MARROW.items() if "erythroblast" in k}


@dataclass(frozen=True)
class MarrowPatch:
    """A patch centred on an erythroblast: image (N, N, 3) uint8, labels (N, N) uint8 (0 background, 1 red
    cell, 2 cytoplasm, 3 nucleus), the centre cell's own labels, and its truth."""

    image: Array
    labels: Array
    own_labels: Array
    cell: TrueCell
    truth: dict[str, Any]


def marrow_patch(
    rng: np.random.Generator,
    rs_type: int,
    stain: MarrowStain,
    *,
    size_px: int = 128,
    pixel_size_um: float = 0.1,
    style: StainStyle | None = None,
    correlate: float = 0.5,
    nuisances: float = 0.5,
    neighbours: bool = True,
    stage: str | None = None,
) -> MarrowPatch:
    """Draw an erythroblast of a type in a stain; see `marrow_pair` for both stains of one cell.

    `stage` is a recipe (proerythroblast, erythroblast_basophilic, _polychromatic, _orthochromatic) or
    None to draw one.  The style is drawn at random unless given.
    """
    cells, view = _scene(rng, rs_type, size_px, pixel_size_um, nuisances, neighbours, stage)
    return _render(rng, cells, view, pixel_size_um, stain, style, correlate, nuisances)


def marrow_pair(
    rng: np.random.Generator,
    rs_type: int,
    *,
    size_px: int = 128,
    pixel_size_um: float = 0.1,
    styles: tuple[StainStyle | None, StainStyle | None] = (None, None),
    correlate: float = 0.5,
    nuisances: float = 0.5,
    neighbours: bool = True,
    stage: str | None = None,
) -> tuple[MarrowPatch, MarrowPatch]:
    """The same erythroblast and surroundings in MGG and in Perls."""
    cells, view = _scene(rng, rs_type, size_px, pixel_size_um, nuisances, neighbours, stage)
    mgg = _render(rng, cells, view, pixel_size_um, "MGG", styles[0], correlate, nuisances)
    return mgg, _render(rng, cells, view, pixel_size_um, "Perls", styles[1], correlate, nuisances)


def _scene(
    rng: np.random.Generator,
    rs_type: int,
    size_px: int,
    pixel_size_um: float,
    nuisances: float,
    neighbours: bool,
    stage: str | None,
) -> tuple[list[TrueCell], FieldView]:
    """The centre cell first, then what lies around it."""
    if rs_type not in (0, 1, 2, 3):
        raise ValueError(f"a sideroblast type is 0 to 3, not {rs_type}")
    recipe = stage or str(rng.choice(list(STAGES), p=np.array(list(STAGES.values())) / sum(STAGES.values())))
    kind, named = split_kind(recipe)
    view = FieldView("patch", 10_000, 10_000, size_px, size_px)
    middle = (10_000 + size_px / 2) * pixel_size_um
    jitter = rng.uniform(-0.5, 0.5, 2)
    centre = TrueCell(
        0,
        kind,
        middle + float(jitter[0]),
        middle + float(jitter[1]),
        int(rng.integers(2**62)),
        random_diameter(recipe, rng),
        named,
        rs_type,
    )
    cells = [centre]
    if neighbours:
        around = 8.0
        pad = round(around / pixel_size_um)
        wide = FieldView(
            "around", view.left_px - pad, view.top_px - pad, size_px + 2 * pad, size_px + 2 * pad
        )
        n = int(rng.poisson(0.0035 * (wide.width_px * pixel_size_um) ** 2))
        mix = share_out(max(n, 1), dict(zip(NORMAL_MARROW, rng.dirichlet(np.full(15, 0.4)), strict=True)))
        others = populate(
            [wide], pixel_size_um, rng, composition=mix, n_leukocytes=0, red_cell_cover=rng.uniform(0.0, 0.3)
        )
        for name in (k for k, count in mix.items() for _ in range(count)):
            other, other_stage = split_kind(name)
            size = random_diameter(name, rng)
            for _ in range(20):
                x, y = rng.uniform(0, wide.width_px * pixel_size_um, 2) + wide.left_px * pixel_size_um
                seed = int(rng.integers(2**62))
                spot = TrueCell(0, other, float(x), float(y), seed, size, other_stage)
                air = 1.05 - 0.1 * nuisances
                if all(_apart(spot, c, air) for c in cells):
                    cells.append(spot)
                    break
        cells += [c for c in others if all(_apart(c, d, 0.98) for d in cells)]
    rest = assign_types(cells[1:], rng, float(rng.uniform(0, 0.6)))
    return [replace(c, number=i) for i, c in enumerate([centre, *rest])], view


def _apart(a: TrueCell, b: TrueCell, closeness: float) -> bool:
    reach = closeness * 0.5 * (a.diameter_um + b.diameter_um)
    return (a.x_um - b.x_um) ** 2 + (a.y_um - b.y_um) ** 2 >= reach * reach


def _render(
    rng: np.random.Generator,
    cells: list[TrueCell],
    view: FieldView,
    pixel_size_um: float,
    stain: MarrowStain,
    style: StainStyle | None,
    correlate: float,
    nuisances: float,
) -> MarrowPatch:
    if style is None:
        style = random_perls_style(rng) if stain == "Perls" else random_style(rng)
    layers = render_field(cells, view, pixel_size_um, style, drawer=marrow_drawer(stain, correlate))
    density, light = layers.density, style
    if nuisances > 0:
        density, light = add_nuisances(density, pixel_size_um, style, rng, nuisances, stain)
    image = develop(density, pixel_size_um, light, rng)
    cell, box, _, drawn = next(s for s in layers.seen if s[0].number == 0)
    own = np.zeros_like(layers.labels)
    h, w = drawn.grid.shape
    px, py = drawn.grid.left - view.left_px, drawn.grid.top - view.top_px
    x0, y0 = max(px, 0), max(py, 0)
    x1, y1 = min(px + w, view.width_px), min(py + h, view.height_px)
    own[y0:y1, x0:x1] = drawn.labels[y0 - py : y1 - py, x0 - px : x1 - px]
    truth: dict[str, Any] = {"box": box, "rs_type": cell.rs_type, "class": cell.kind, "stage": cell.stage}
    if "iron" in drawn.truth:
        truth.update(iron_truth(cell, drawn, view, pixel_size_um))
    return MarrowPatch(image, layers.labels, own, cell, truth)
