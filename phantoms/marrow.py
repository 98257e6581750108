"""Marrow with exact truth about iron: erythroblasts at all stages among myeloid cells, stained by
May-Grünwald-Giemsa (MGG) or Perls.

Types follow the IWGM-MDS consensus (Mufti et al., Haematologica 93, 1712, 2008): 0 no granule; 1 fewer
than five; 2 five or more, not perinuclear; 3, a ring sideroblast: five or more, perinuclear, covering at
least a third of the nuclear circumference.  `type_of` is that rule as arithmetic; the drawn granules
satisfy it, and a test recomputes it from the truth.

No public set of Perls-stained marrow exists: what is measured on these phantoms is to be called so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from phantoms.blood import Layers, TrueCell, draw
from phantoms.fields import Drawer, FieldView, render_field
from phantoms.shapes import Grid, Rng, dots, grain
from phantoms.stains import StainStyle, develop, random_perls_style

Array = np.ndarray[Any, Any]
MarrowStain = Literal["MGG", "Perls"]

PERINUCLEAR_UM = 0.9  # from the nuclear edge to a granule's centre
BRIDGE_UM = 1.5  # a gap along the nuclear edge up to this long does not break a ring
RING_FRACTION = 1 / 3
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


@dataclass(frozen=True)
class Iron:
    """The iron of one erythroblast: granules (N, 2) in um from the cell's centre, and their radii."""

    points_um: Array
    radii_um: Array
    perinuclear: Array  # (N,) bool
    arc_fraction: float  # of the nuclear circumference
    rs_type: int


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


def nuclear_outline(nuclear_distance: Array, grid: Grid, n_angles: int = 180) -> tuple[Array, Array]:
    """Centroid (2,) in um and edge radius (n_angles,) of a star-shaped nucleus from signed distances."""
    inside = nuclear_distance < 0
    weight = max(int(inside.sum()), 1)
    centre = np.array([float(grid.x[inside].sum()) / weight, float(grid.y[inside].sum()) / weight])
    p = grid.pixel_size_um
    reach = np.arange(0.0, 0.5 * (grid.shape[0] * p), 0.5 * p)
    angles = np.arange(n_angles) * (2 * np.pi / n_angles)
    cols = (centre[0] + np.outer(np.cos(angles), reach) - grid.x[0, 0]) / p + 0.5
    rows = (centre[1] + np.outer(np.sin(angles), reach) - grid.y[0, 0]) / p + 0.5
    h, w = grid.shape
    along = nuclear_distance[np.clip(rows.astype(int), 0, h - 1), np.clip(cols.astype(int), 0, w - 1)]
    outside = along >= 0
    first = np.where(outside.any(axis=1), outside.argmax(axis=1), len(reach) - 1)
    return centre, reach[first]


def arc_covered(points_um: Array, radii_um: Array, centre_um: Array, edge_um: Array) -> float:
    """Share of the nuclear circumference that granules cover, in [0, 1].

    A granule covers its own diameter, seen from the nucleus; a gap of at most BRIDGE_UM along the edge
    to the next granule is covered too.
    """
    if len(points_um) == 0:
        return 0.0
    away = points_um - centre_um
    angle = np.mod(np.arctan2(away[:, 1], away[:, 0]), 2 * np.pi)
    edge = edge_um[np.round(angle / (2 * np.pi) * len(edge_um)).astype(int) % len(edge_um)]
    half = radii_um / np.maximum(edge, 0.5)
    order = np.argsort(angle)
    angle, half, edge = angle[order], half[order], edge[order]
    covered = np.zeros(720, dtype=bool)
    step = 2 * np.pi / covered.size

    def paint(start: float, stop: float) -> None:
        cells = np.arange(int(np.floor(start / step)), int(np.ceil(stop / step)))
        covered[np.mod(cells, covered.size)] = True

    for i in range(len(angle)):
        paint(angle[i] - half[i], angle[i] + half[i])
        if len(angle) > 1:
            j = (i + 1) % len(angle)
            following = angle[j] + (2 * np.pi if j == 0 else 0.0)
            gap = (following - half[j]) - (angle[i] + half[i])
            if 0 < gap * 0.5 * (edge[i] + edge[j]) <= BRIDGE_UM:
                paint(angle[i] + half[i], following - half[j])
    return float(covered.mean())


def type_of(n_granules: int, n_perinuclear: int, arc_fraction: float) -> int:
    """The sideroblast type by the consensus rule."""
    if n_granules == 0:
        return 0
    if n_granules < 5:
        return 1
    return 3 if n_perinuclear >= 5 and arc_fraction >= RING_FRACTION else 2


def place_iron(cell: TrueCell, layers: Layers) -> Iron:
    """Granules that make a drawn erythroblast the type it is said to be.

    Types 2 and 3 keep clear of the limit (arcs under 0.28 or over 0.38), so that the truth is not a
    matter of a pixel.  Raises RuntimeError where no such placement is found.
    """
    rng = np.random.default_rng([cell.seed & 0xFFFFFFFF, cell.seed >> 32, 3])
    nuclear, body = layers.truth["nuclear_distance"], layers.truth["body_distance"]
    centre, edge = nuclear_outline(nuclear, layers.grid)
    wanted = int(cell.rs_type or 0)
    for _ in range(400):
        points, radii = _granules(wanted, rng, centre, edge)
        rows, cols = _pixels(points, layers.grid)
        fits = (body[rows, cols] < -0.12) & (nuclear[rows, cols] > 0.02)
        points, radii = points[fits], radii[fits]
        away = nuclear[rows[fits], cols[fits]]
        near = away <= PERINUCLEAR_UM
        arc = arc_covered(points[near], radii[near], centre, edge)
        iron = Iron(points, radii, near, arc, type_of(len(points), int(near.sum()), arc))
        clear = arc >= 0.38 if wanted == 3 else (arc <= 0.28 or wanted < 2)
        if iron.rs_type == wanted and clear:
            return iron
    raise RuntimeError(f"no place for iron of type {wanted} in cell {cell.number} ({cell.kind})")


def _granules(wanted: int, rng: Rng, centre: Array, edge: Array) -> tuple[Array, Array]:
    """A draw of granules around a nucleus; the caller keeps those that fit."""
    if wanted == 0:
        return np.zeros((0, 2)), np.zeros(0)
    start = rng.uniform(0, 2 * np.pi)
    if wanted == 1:
        n = int(rng.integers(1, 5))
        angles, away = rng.uniform(0, 2 * np.pi, n), rng.uniform(0.2, 2.0, n)
        radii = rng.uniform(0.14, 0.28, n)
    elif wanted == 2:
        n = int(rng.integers(6, 13))
        angles, away = start + rng.uniform(-0.6, 0.6, n), rng.uniform(0.3, 2.4, n)
        radii = rng.uniform(0.14, 0.3, n)
    else:
        n = int(rng.integers(7, 18))
        extent = rng.uniform(0.45, 1.0) * 2 * np.pi
        angles = start + np.linspace(0, extent, n, endpoint=False) + rng.normal(0, 0.08, n)
        away, radii = rng.uniform(0.15, 0.6, n), rng.uniform(0.18, 0.36, n)
    index = np.round(np.mod(angles, 2 * np.pi) / (2 * np.pi) * len(edge)).astype(int) % len(edge)
    r = edge[index] + away
    return centre + np.stack([r * np.cos(angles), r * np.sin(angles)], axis=1), radii


def _pixels(points_um: Array, grid: Grid) -> tuple[Array, Array]:
    p = grid.pixel_size_um
    cols = ((points_um[:, 0] - grid.x[0, 0]) / p + 0.5).astype(int)
    rows = ((points_um[:, 1] - grid.y[0, 0]) / p + 0.5).astype(int)
    h, w = grid.shape
    return np.clip(rows, 0, h - 1), np.clip(cols, 0, w - 1)


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
            return _with_iron(cell, layers, iron)
        return _with_correlate(cell, layers, correlate)

    return draw_it


def _with_iron(cell: TrueCell, layers: Layers, iron: Iron) -> Layers:
    rng = np.random.default_rng([cell.seed & 0xFFFFFFFF, 4])
    spots = dots(layers.grid, iron.points_um, iron.radii_um)
    uneven = 1 + 0.2 * grain(layers.grid.shape, 0.3, layers.grid.pixel_size_um, rng)
    layers.dyes["iron"] = spots * np.clip(uneven, 0.5, 1.5) * np.float32(rng.uniform(0.8, 1.4))
    return layers


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
        x_um, y_um = view.stage_um(pixel_size_um)
        whole = [s for s in layers.seen if s[2] >= 0.5]
        for cell, *_ in whole:
            where.setdefault(cell.number, []).append(view.name)
        entry = {
            "stain": "Perls",
            "x_um": round(x_um, 4),
            "y_um": round(y_um, 4),
            "leukocytes_xyxy": [list(map(float, s[1])) for s in whole],
            "classes": [s[0].kind for s in whole],
            "cell_ids": [s[0].number for s in whole],
            "visible": [round(s[2], 3) for s in whole],
            "cut_xyxy": [list(map(float, s[1])) for s in layers.seen if s[2] < 0.5],
            "sideroblasts": [
                iron_truth(cell, drawn, view, pixel_size_um)
                for cell, _, _, drawn in whole
                if "iron" in drawn.truth
            ],
        }
        yield view, develop(density, pixel_size_um, light, field_rng, bits=bits), layers.labels, entry


def iron_truth(cell: TrueCell, layers: Layers, view: FieldView, pixel_size_um: float) -> dict[str, Any]:
    """What a person would have to find: granules as [x, y, radius] in pixels of the field."""
    iron: Iron = layers.truth["iron"]
    x = (cell.x_um + iron.points_um[:, 0]) / pixel_size_um - view.left_px - 0.5
    y = (cell.y_um + iron.points_um[:, 1]) / pixel_size_um - view.top_px - 0.5
    radii = iron.radii_um / pixel_size_um
    return {
        "cell_id": cell.number,
        "rs_type": iron.rs_type,
        "n_granules": len(iron.points_um),
        "n_perinuclear": int(iron.perinuclear.sum()),
        "arc_fraction": round(iron.arc_fraction, 4),
        "granules_px": [[round(float(v), 2) for v in g] for g in zip(x, y, radii, strict=True)],
    }


__all__ = [
    "NORMAL_MARROW",
    "Iron",
    "add_nuisances",
    "arc_covered",
    "assign_types",
    "iron_truth",
    "marrow_drawer",
    "nuclear_outline",
    "perls_fields",
    "place_iron",
    "type_of",
]
