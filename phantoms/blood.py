"""Blood cells with exact truth: what they are made of, drawn in micrometres.

A cell is drawn from its own seed on the slide's pixel grid, so that it is the same cell, pixel for
pixel, in every field that shows it.  Sizes on films: Bain, *Blood Cells*, and Dacie and Lewis,
*Practical Haematology*.  Thickness of red cells: Evans and Fung, Microvasc. Res. 4, 335 (1972).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phantoms import nuclei
from phantoms.shapes import (
    Grid,
    Rng,
    contour,
    coverage,
    dots,
    grain,
    grid_around,
    scatter,
)

Array = np.ndarray[Any, Any]
BACKGROUND, RED_CELL, CYTOPLASM, NUCLEUS = 0, 1, 2, 3


@dataclass(frozen=True)
class TrueCell:
    """A cell of the slide: what it is, where it is, and the seed that draws it."""

    number: int
    kind: str  # canonical class of CLINICAL.md, or red_cell, platelet
    x_um: float
    y_um: float
    seed: int
    diameter_um: float
    stage: str | None = None  # of an erythroblast: basophilic, polychromatic, orthochromatic
    rs_type: int | None = None  # of an erythroblast of a marrow phantom: 0-3


@dataclass
class Layers:
    """A drawn cell: amounts of dye, optical path (a red cell's rim is 1) and labels, on its patch."""

    grid: Grid
    dyes: dict[str, Array]
    path: Array
    labels: Array  # (H, W) uint8: 0 background, 1 red cell, 2 cytoplasm, 3 nucleus
    truth: dict[str, Any] = field(default_factory=dict)

    def box(self) -> tuple[int, int, int, int]:
        """The tight box of the cell's labelled pixels, in slide pixels, upper ends excluded."""
        rows, cols = np.nonzero(self.labels.any(axis=1))[0], np.nonzero(self.labels.any(axis=0))[0]
        g = self.grid
        return (
            g.left + int(cols[0]),
            g.top + int(rows[0]),
            g.left + int(cols[-1]) + 1,
            g.top + int(rows[-1]) + 1,
        )


@dataclass(frozen=True)
class Granules:
    """One kind of granule: dye, how many, how large, and whether they lie over the nucleus too."""

    dye: str
    count: tuple[int, int]
    radius_um: tuple[float, float]
    amount: float
    relief: float  # optical path they add
    over_nucleus: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a class of leukocyte is built; ranges are uniform."""

    diameter_um: tuple[float, float]
    nucleus: nuclei.Builder
    chromatin: tuple[float, float]  # amount of nuclear dye
    clumping: float  # relative contrast of the chromatin
    clump_um: float
    blue: tuple[float, float] = (0.0, 0.1)
    pink: tuple[float, float] = (0.6, 1.1)
    fine: float = 0.0  # contrast of granules too small to draw one by one
    granules: tuple[Granules, ...] = ()
    nucleoli: tuple[int, int] = (0, 0)
    hof: bool = False  # a pale zone beside the nucleus
    outline: float = 0.04
    in_red_units: float = 0.0  # haemoglobin in the cytoplasm
    clump_path: float = 0.07  # relief of the chromatin's clumps in DIC, optical path


_FINE_AZUROPHIL = Granules("azurophil", (0, 14), (0.12, 0.2), 0.8, 0.02)

RECIPES: dict[str, Recipe] = {
    "neutrophil_segmented": Recipe((12, 15), nuclei.segmented, (0.95, 1.25), 0.28, 0.8, fine=0.35),
    "neutrophil_band": Recipe((12, 15), nuclei.band, (0.9, 1.15), 0.24, 0.8, fine=0.35),
    "metamyelocyte": Recipe((13, 16), nuclei.kidney, (0.8, 1.05), 0.24, 0.8, (0.0, 0.2), fine=0.35),
    "myelocyte": Recipe(
        (13, 17), nuclei.rounded((0.60, 0.70), 0.7), (0.75, 0.95), 0.22, 0.7, (0.2, 0.5), (0.4, 0.8),
        fine=0.4, granules=(Granules("azurophil", (5, 25), (0.15, 0.28), 0.9, 0.04),),
    ),
    "promyelocyte": Recipe(
        (15, 21), nuclei.rounded((0.66, 0.76), 0.7), (0.65, 0.85), 0.15, 0.6, (0.7, 1.2), (0.0, 0.3),
        granules=(Granules("azurophil", (40, 120), (0.18, 0.34), 1.2, 0.06, True),),
        nucleoli=(1, 3), hof=True,
    ),
    "blast": Recipe(
        (12, 18), nuclei.rounded((0.78, 0.88), 0.5, 0.06), (0.6, 0.8), 0.10, 0.45, (0.7, 1.3), (0.0, 0.1),
        nucleoli=(1, 4), outline=0.06,
    ),
    "eosinophil": Recipe(
        (12, 16), nuclei.bilobed, (0.9, 1.15), 0.26, 0.8, (0.0, 0.15), (0.4, 0.8),
        granules=(Granules("eosinophil", (110, 170), (0.34, 0.5), 1.0, 0.16),),
    ),
    "basophil": Recipe(
        (10, 14), nuclei.segmented, (0.7, 0.9), 0.2, 0.9, (0.0, 0.2), (0.5, 1.0),
        granules=(Granules("basophil", (25, 60), (0.35, 0.65), 0.9, 0.14, True),), outline=0.07,
    ),
    "monocyte": Recipe(
        (14, 19), nuclei.folded, (0.7, 0.9), 0.22, 1.1, (0.5, 0.9), (0.2, 0.5), fine=0.15,
        granules=(_FINE_AZUROPHIL,), outline=0.09,
    ),
    "lymphocyte": Recipe(
        (8.5, 11.5), nuclei.rounded((0.80, 0.90), 0.5), (0.95, 1.25), 0.2, 1.1, (0.5, 1.1), (0.0, 0.15),
        granules=(Granules("azurophil", (0, 4), (0.15, 0.25), 0.8, 0.03),), outline=0.06,
        clump_path=0.03,  # dense and even: its dome is smooth
    ),
    "lymphocyte_reactive": Recipe(
        (13, 18), nuclei.rounded((0.60, 0.72), 0.8, 0.08), (0.8, 1.0), 0.2, 0.9, (0.8, 1.4), (0.0, 0.1),
        outline=0.12,
    ),
    "plasma_cell": Recipe(
        (11, 16), nuclei.rounded((0.50, 0.58), 1.0), (0.95, 1.2), 0.5, 1.3, (1.3, 1.9), (0.1, 0.3), hof=True,
        outline=0.08,
    ),
    "proerythroblast": Recipe(
        (14, 19), nuclei.rounded((0.74, 0.82), 0.4), (0.65, 0.85), 0.14, 0.5, (1.4, 2.0), (0.0, 0.1),
        nucleoli=(1, 3),
    ),
    "erythroblast": Recipe(
        (8.5, 11.5), nuclei.rounded((0.50, 0.64), 0.6, 0.03), (1.2, 1.6), 0.3, 1.0, (0.1, 0.6), (0.2, 0.6),
        in_red_units=0.7,
    ),
    "erythroblast_basophilic": Recipe(
        (12, 15), nuclei.rounded((0.68, 0.76), 0.4), (0.85, 1.05), 0.24, 0.8, (1.4, 2.0), (0.0, 0.15),
    ),
    "erythroblast_polychromatic": Recipe(
        (10, 13), nuclei.rounded((0.56, 0.66), 0.5, 0.03), (1.0, 1.3), 0.34, 1.0, (0.5, 1.0), (0.2, 0.5),
        in_red_units=0.4,
    ),
    "erythroblast_orthochromatic": Recipe(
        (8.5, 10.5), nuclei.rounded((0.46, 0.56), 0.6, 0.03), (1.35, 1.7), 0.18, 1.0, (0.05, 0.3), (0.2, 0.5),
        in_red_units=0.9,
    ),
    "smudge": Recipe((12, 18), nuclei.smeared, (0.45, 0.7), 0.3, 1.2, (0.0, 0.0), (0.0, 0.0), outline=0.2),
}  # fmt: skip


def draw_leukocyte(cell: TrueCell, pixel_size_um: float) -> Layers:
    """Draw a nucleated cell; see `Layers`."""
    recipe = RECIPES[f"{cell.kind}_{cell.stage}" if cell.stage else cell.kind]
    rng = np.random.default_rng(cell.seed)
    radius = 0.5 * cell.diameter_um
    grid = grid_around(cell.x_um, cell.y_um, 1.45 * radius + 0.6, pixel_size_um)
    bare = cell.kind == "smudge"
    nuclear = recipe.nucleus(grid, radius, rng)
    body = contour(grid, radius, recipe.outline, rng)
    if bare:
        body = nuclear
    else:
        nuclear = np.maximum(nuclear, body + np.float32(0.15))  # a nucleus stays inside its cell
    p = pixel_size_um
    inside, in_nucleus = coverage(body, 0.22), coverage(nuclear, 0.2)
    cytoplasm = inside * (1 - in_nucleus)

    clumps = grain(grid.shape, recipe.clump_um, p, rng) + 0.5 * grain(
        grid.shape, 0.4 * recipe.clump_um, p, rng
    )
    chromatin = np.clip(rng.uniform(*recipe.chromatin) * (1 + recipe.clumping * clumps), 0.3, 2.0)
    rim = np.exp(-np.square((nuclear + 0.25) / 0.25)) * np.float32(0.15)
    nucleoli = _nucleoli(grid, nuclear, recipe, rng)
    chromatin = (chromatin + rim) * (1 - 0.35 * nucleoli)

    cloud = grain(grid.shape, 1.2, p, rng)
    fine = grain(grid.shape, 0.28, p, rng) if recipe.fine else np.zeros(grid.shape, dtype=np.float32)
    pale = np.float32(1.0) - (_hof(grid, nuclear, radius, rng) if recipe.hof else np.float32(0.0))
    blue = rng.uniform(*recipe.blue) * (1 + 0.12 * cloud) * cytoplasm * pale
    pink = rng.uniform(*recipe.pink) * (1 + 0.10 * cloud) * cytoplasm
    dyes = {"nucleus": chromatin * in_nucleus, "blue_cytoplasm": blue, "pink_cytoplasm": pink}
    if recipe.fine:
        dyes["azurophil"] = (
            np.clip(fine - 0.4, 0, 1.5) * np.float32(recipe.fine * rng.uniform(0.4, 1.1)) * cytoplasm
        )
    if recipe.in_red_units:
        dyes["red_cell"] = np.float32(recipe.in_red_units * rng.uniform(0.3, 1.2)) * cytoplasm

    # optical path: a dome, a somewhat denser nucleus, fine structure, granules
    depth = np.clip(-body / np.float32(0.6 * radius), 0.0, 1.0)
    path = np.float32(rng.uniform(0.9, 1.5) * (0.4 if bare else 1.0)) * np.sqrt(depth * (2 - depth))
    rise = np.clip(-nuclear / np.float32(1.2), 0.0, 1.0)
    path += np.float32(rng.uniform(0.15, 0.5)) * np.sqrt(rise * (2 - rise))
    path += (
        np.float32(recipe.clump_path) * clumps * in_nucleus + np.float32(0.04) * (cloud + fine) * cytoplasm
    )
    path += np.float32(0.15) * nucleoli
    for kind in recipe.granules:
        allowed = (body < -0.35) if kind.over_nucleus else ((body < -0.35) & (nuclear > 0.1))
        n = int(rng.integers(kind.count[0], kind.count[1] + 1))
        mean = 0.5 * sum(kind.radius_um)
        points = scatter(grid, allowed, n, 1.3 * mean, rng)
        spots = dots(grid, points, rng.uniform(*kind.radius_um, len(points))) * inside
        dyes[kind.dye] = dyes.get(kind.dye, 0) + np.float32(kind.amount) * spots
        path += np.float32(kind.relief) * spots
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[body < 0] = CYTOPLASM
    labels[nuclear < 0] = NUCLEUS
    return Layers(grid, dyes, path, labels, {"nuclear_distance": nuclear, "body_distance": body})


def _nucleoli(grid: Grid, nuclear: Array, recipe: Recipe, rng: Rng) -> Array:
    n = int(rng.integers(recipe.nucleoli[0], recipe.nucleoli[1] + 1))
    points = scatter(grid, nuclear < -1.2, n, 2.0, rng)
    return dots(grid, points, rng.uniform(0.6, 1.1, len(points)))


def _hof(grid: Grid, nuclear: Array, radius: float, rng: Rng) -> Array:
    """The pale zone of the Golgi, beside the nucleus and towards the middle of the cell."""
    weight = (nuclear < 0).astype(np.float32)
    total = max(float(weight.sum()), 1.0)
    cx, cy = float((weight * grid.x).sum()) / total, float((weight * grid.y).sum()) / total
    away = max(float(np.hypot(cx, cy)), 1e-3)
    hx, hy = -cx / away * 0.25 * radius, -cy / away * 0.25 * radius
    return 0.6 * np.exp(-((grid.x - hx) ** 2 + (grid.y - hy) ** 2) / np.float32((0.3 * radius) ** 2))


def draw_red_cell(cell: TrueCell, pixel_size_um: float) -> Layers:
    """Draw a red cell: a disc by Evans and Fung, more or less flattened by drying."""
    rng = np.random.default_rng(cell.seed)
    radius = 0.5 * cell.diameter_um
    grid = grid_around(cell.x_um, cell.y_um, 1.25 * radius + 0.4, pixel_size_um)
    elongation = abs(rng.normal(0, 0.03)) if rng.random() < 0.8 else rng.uniform(0.05, 0.14)
    body = contour(grid, radius, 0.025, rng, elongation=elongation)
    rho2 = np.square(np.clip(1 + body / np.float32(radius), 0.0, 1.0))
    disc = np.sqrt(np.maximum(1 - rho2, 0)) * (0.81 + 7.83 * rho2 - 4.39 * rho2 * rho2)
    depth = np.clip(-body / np.float32(0.9), 0.0, 1.0)
    flat = np.sqrt(depth * (2 - depth)) * np.float32(2.2)
    mix = np.float32(np.clip(rng.normal(0.2, 0.2), 0.0, 0.9))
    thickness = (mix * flat + (1 - mix) * disc) / np.float32(2.4)
    thickness *= 1 + np.float32(0.02) * grain(grid.shape, 1.0, pixel_size_um, rng)
    amount = np.float32(rng.normal(1.0, 0.10)) * (0.85 * thickness + 0.15 * coverage(body, 0.3))
    labels = np.where(body < 0, RED_CELL, 0).astype(np.uint8)
    return Layers(grid, {"red_cell": amount}, thickness, labels)


def draw_platelet(cell: TrueCell, pixel_size_um: float) -> Layers:
    """Draw a platelet; it bears no label, as the labels know none."""
    rng = np.random.default_rng(cell.seed)
    radius = 0.5 * cell.diameter_um
    grid = grid_around(cell.x_um, cell.y_um, 1.4 * radius + 0.4, pixel_size_um)
    body = contour(grid, radius, 0.12, rng)
    inside = coverage(body, 0.35)
    granular = 1 + 0.5 * grain(grid.shape, 0.35, pixel_size_um, rng)
    depth = np.clip(-body / np.float32(radius), 0, 1)
    dye = np.clip(granular, 0.2, 2.0) * inside * np.float32(rng.uniform(0.6, 1.3))
    path = np.float32(0.5) * np.sqrt(depth * (2 - depth)) * (0.8 + 0.2 * granular)
    return Layers(grid, {"platelet": dye}, path.astype(np.float32), np.zeros(grid.shape, dtype=np.uint8))


def draw(cell: TrueCell, pixel_size_um: float) -> Layers:
    """Draw any cell of the slide."""
    if cell.kind == "red_cell":
        return draw_red_cell(cell, pixel_size_um)
    if cell.kind == "platelet":
        return draw_platelet(cell, pixel_size_um)
    return draw_leukocyte(cell, pixel_size_um)


def split_kind(recipe: str) -> tuple[str, str | None]:
    """Canonical class and stage of a recipe: erythroblast_basophilic is an erythroblast."""
    if recipe.startswith("erythroblast_"):
        return "erythroblast", recipe.removeprefix("erythroblast_")
    return recipe, None


def random_diameter(kind: str, rng: Rng) -> float:
    """A diameter in micrometres, as on a film."""
    if kind == "red_cell":
        return float(np.clip(rng.normal(7.4, 0.5), 5.5, 9.5))
    if kind == "platelet":
        return float(rng.uniform(1.8, 3.6))
    return float(rng.uniform(*RECIPES[kind].diameter_um))
