"""Marrow with exact truth about iron (`phantoms.iron`): erythroblasts at all stages among myeloid cells,
stained by May-Grünwald-Giemsa (MGG) or Perls.

No public set of Perls-stained marrow exists: what is measured on these phantoms is to be called so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from phantoms.blood import Layers, TrueCell, draw
from phantoms.case_truth import WHOLE, field_truth
from phantoms.fields import Drawer, FieldView, render_field
from phantoms.iron import iron_truth, place_iron, with_iron
from phantoms.shapes import Grid, Rng, dots, grain
from phantoms.stains import StainStyle, develop, random_perls_style

Array = np.ndarray[Any, Any]
MarrowStain = Literal["MGG", "Perls"]

CORRELATE_SHIFT = 3.0  # standard deviations of the hidden trait at full strength
ERYTHROID = ("erythroblast", "proerythroblast")

# Shares of nucleated cells in normal marrow, after Bain, Br. J. Haematol. 94, 206 (1996), rounded.
NORMAL_MARROW: dict[str, float] = {
    "proerythroblast": 0.01,
    "erythroblast_basophilic": 0.04,
    "erythroblast_polychromatic": 0.15,
    "erythroblast_orthochromatic": 0.07,
    "blast": 0.015,
    "promyelocyte": 0.04,
    "myelocyte": 0.13,
    "metamyelocyte": 0.10,
    "neutrophil_band": 0.11,
    "neutrophil_segmented": 0.17,
    "eosinophil": 0.03,
    "basophil": 0.005,
    "monocyte": 0.02,
    "lymphocyte": 0.10,
    "plasma_cell": 0.01,
}
# How erythroblasts that are no ring sideroblasts share out over types 0, 1, 2.
OTHER_TYPES: Mapping[int, float] = {0: 0.6, 1: 0.27, 2: 0.13}


def is_erythroblast(cell: TrueCell) -> bool:
    return cell.kind in ERYTHROID


def assign_types(cells: Sequence[TrueCell], rng: Rng, rs_fraction: float) -> list[TrueCell]:
    """Give every erythroblast a type; the share of type 3 is `rs_fraction`, to the nearest cell."""
    if not 0 <= rs_fraction <= 1:
        from pipeline.errors import BadInput

        raise BadInput(f"the share of ring sideroblasts lies between 0 and 1, not {rs_fraction}.")
    index = [i for i, c in enumerate(cells) if is_erythroblast(c)]
    rings = int(np.floor(rs_fraction * len(index) + 0.5))
    rest = len(index) - rings
    exact = {t: rest * share for t, share in OTHER_TYPES.items()}
    counts = {t: int(v) for t, v in exact.items()}
    for t in sorted(exact, key=lambda t: counts[t] - exact[t])[: rest - sum(counts.values())]:
        counts[t] += 1
    types = np.array([3] * rings + [t for t, n in counts.items() for _ in range(n)], dtype=int)
    out = list(cells)
    for i, t in zip(index, rng.permutation(types), strict=True):
        out[i] = replace(out[i], rs_type=int(t))
    return out


def marrow_drawer(stain: MarrowStain, correlate: float) -> Drawer:
    """A drawer for `render_field`: Perls shows the iron, MGG what `correlate` lets it show.

    In MGG every erythroblast has a hidden trait (stippling, looser chromatin, bluer cytoplasm) that is
    normally distributed; in ring sideroblasts its mean is raised by CORRELATE_SHIFT * `correlate`
    standard deviations.  At 0 an MGG cell does not depend on its type at all; at 1 the trait alone
    tells type 3 from the rest with an area under the curve of 0.98, at 0.5 of 0.86.
    """

    def draw_it(cell: TrueCell, pixel_size_um: float) -> Layers:
        layers = draw(cell, pixel_size_um)
        if cell.rs_type is None:
            return layers
        if stain == "Perls":
            iron = place_iron(cell, layers)
            layers.truth["iron"] = iron
            return with_iron(cell, layers, iron)
        return _with_correlate(cell, layers, correlate)

    return draw_it


def _with_correlate(cell: TrueCell, layers: Layers, correlate: float) -> Layers:
    """Stippling, looser chromatin and bluer cytoplasm, as much as the cell's hidden trait says."""
    rng = np.random.default_rng([cell.seed & 0xFFFFFFFF, 5])
    trait = float(rng.standard_normal()) + (CORRELATE_SHIFT * correlate if cell.rs_type == 3 else 0.0)
    shown = np.float32(1 / (1 + np.exp(-(trait - 1.5))))
    cytoplasm = (layers.labels == 2).astype(np.float32)
    layers.dyes["blue_cytoplasm"] = layers.dyes["blue_cytoplasm"] + np.float32(0.3) * shown * cytoplasm
    stipple = np.clip(grain(layers.grid.shape, 0.35, layers.grid.pixel_size_um, rng) - 1.0, 0, 1.5)
    layers.dyes["azurophil"] = layers.dyes.get("azurophil", 0) + np.float32(0.8) * shown * stipple * cytoplasm
    layers.dyes["nucleus"] = layers.dyes["nucleus"] * (1 - np.float32(0.15) * shown)
    return layers


def add_nuisances(
    density: Array,
    pixel_size_um: float,
    style: StainStyle,
    rng: Rng,
    strength: float,
    stain: MarrowStain,
) -> tuple[Array, StainStyle]:
    """Precipitate and haze onto a density (H, W, 3), and a style of worse focus and light.

    Haze is blue in Perls; precipitate has the colour of iron there and of the nuclear dye in MGG, and
    lies anywhere, cells included.
    """
    height, width = density.shape[:2]
    density = density.copy()
    dye = "iron" if stain == "Perls" else "azurophil"
    vector = style.density(dye)
    area = height * width * pixel_size_um**2
    n = int(rng.poisson(strength * 1.0e-3 * area))
    step = (np.arange(max(height, width)) + 0.5) * pixel_size_um
    x, y = np.meshgrid(step[:width].astype(np.float32), step[:height].astype(np.float32))
    specks = dots(
        Grid(x, y, 0, 0, pixel_size_um),
        np.stack([rng.uniform(0, width, n), rng.uniform(0, height, n)], axis=1) * pixel_size_um,
        rng.uniform(0.12, 0.45, n),
    )
    cloud = grain((height, width), 25.0, pixel_size_um, rng)
    haze = np.float32(strength * rng.uniform(0.0, 0.08)) * np.clip(cloud, 0, 2)
    amount = specks * np.float32(rng.uniform(0.5, 1.2)) + haze
    for channel in range(3):
        density[..., channel] += amount * vector[channel]
    worse = replace(
        style,
        blur_um=style.blur_um * float(1 + strength * abs(rng.normal(0, 0.6))),
        gradient=style.gradient + strength * float(rng.uniform(0, 0.12)),
        vignette=style.vignette + strength * float(rng.uniform(0, 0.1)),
    )
    return density, worse


def perls_fields(
    cells: Sequence[TrueCell],
    views: Sequence[FieldView],
    pixel_size_um: float,
    *,
    seed: int,
    bits: int,
    nuisances: float,
    hard: bool,
    where: dict[int, list[str]],
    style: StainStyle | None = None,
) -> Iterator[tuple[FieldView, Array, Array, dict[str, Any]]]:
    """The Perls slide of a marrow: the same cells in fields named P001…, with the truth of each.

    Yields (view, image, labels, truth).  Truth adds to boxes and classes what each erythroblast holds:
    granules in pixels of the field, how many are perinuclear, the arc covered, the type.
    """
    rng = np.random.default_rng([seed, 2])
    style = style or random_perls_style(rng, spread=1.5 if hard else 0.6)
    drawer = marrow_drawer("Perls", 0.0)
    for i, view in enumerate(views):
        view = replace(view, name="P" + view.name[1:])
        field_rng = np.random.default_rng([seed, 3, i])
        layers = render_field(cells, view, pixel_size_um, style, drawer=drawer)
        density, light = layers.density, style
        if nuisances > 0:
            density, light = add_nuisances(density, pixel_size_um, style, field_rng, nuisances, "Perls")
        entry = {
            "stain": "Perls",
            **field_truth(layers, view, pixel_size_um, where),
            "sideroblasts": [
                iron_truth(cell, drawn, view, pixel_size_um)
                for cell, _, share, drawn in layers.seen
                if share >= WHOLE and "iron" in drawn.truth
            ],
        }
        yield view, develop(density, pixel_size_um, light, field_rng, bits=bits), layers.labels, entry
