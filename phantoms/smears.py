"""Whole smears as slides: regions that a reader would count and regions that no one should.

A plan is a table of kinds, one block of slide each; blocks are drawn apart and laid side by side, so
that the truth of every region is exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from phantoms.blood import Layers, TrueCell, draw
from phantoms.fields import NORMAL_BLOOD, FieldView, populate, render_field
from phantoms.slides import write_pyramid
from phantoms.stains import StainStyle, develop, random_style
from pipeline.errors import BadInput

Array = np.ndarray[Any, Any]
Rng = np.random.Generator
Kind = Literal["thick", "monolayer", "feathered", "glass", "defocus", "precipitate", "pen"]

# (share of the area under red cells, whether they pile up)
COVER: dict[str, tuple[float, bool]] = {
    "thick": (1.5, True),
    "monolayer": (0.38, False),
    "feathered": (0.10, False),
    "defocus": (0.38, False),
    "precipitate": (0.38, False),
}
INKS = ((40, 60, 170), (30, 120, 60), (35, 35, 40), (170, 40, 45))
EDGE_UM = 14.0  # leukocytes keep this far from their block's edge


def simulate_smear(
    path: Path,
    *,
    seed: int,
    plan: Sequence[Sequence[Kind]],
    block_width_px: int = 640,
    block_height_px: int = 480,
    pixel_size_um: float = 0.5,
    n_leukocytes: int = 2,
    levels: int = 2,
    downsample: int = 4,
    defocus_um: float = 1.3,
    style: StainStyle | None = None,
    vendor: Literal["aperio", "generic"] = "aperio",
) -> dict[str, Any]:
    """Write a slide of `plan` (rows of kinds) and `<path>.truth.json`; returns that truth.

    Each block with cells holds `n_leukocytes`.  The truth names every block as kind and (x0, y0, x1, y1)
    in level-0 pixels, and the leukocytes' boxes.  Raises BadInput for a plan that is no table of kinds.
    """
    kinds = {kind for row in plan for kind in row}
    if not plan or {len(row) for row in plan} != {len(plan[0])} or kinds - set(get_args(Kind)):
        raise BadInput(f"a plan is a table of {', '.join(get_args(Kind))}; this one is {plan}.")
    rng = np.random.default_rng([seed, 21])
    style = replace(style or random_style(rng, spread=0.5), gradient=0.0, vignette=0.0)
    h, w = block_height_px, block_width_px
    image = np.empty((h * len(plan), w * len(plan[0]), 3), np.uint8)
    regions: list[dict[str, Any]] = []
    boxes: list[list[float]] = []
    for row, line in enumerate(plan):
        for column, kind in enumerate(line):
            x0, y0 = column * w, row * h
            block, seen = _block(kind, w, h, pixel_size_um, n_leukocytes, style, defocus_um, rng)
            image[y0 : y0 + h, x0 : x0 + w] = block
            regions.append({"kind": kind, "box": [x0, y0, x0 + w, y0 + h]})
            boxes += [[b[0] + x0, b[1] + y0, b[2] + x0, b[3] + y0] for b in seen]
    write_pyramid(path, image, pixel_size_um, levels, downsample=downsample, vendor=vendor)
    truth = {
        "phantom": True,
        "seed": seed,
        "pixel_size_um": pixel_size_um,
        "regions": regions,
        "leukocytes_xyxy": boxes,
    }
    Path(f"{path}.truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return truth


def _block(
    kind: Kind, w: int, h: int, um: float, n_leukocytes: int, style: StainStyle, defocus_um: float, rng: Rng
) -> tuple[Array, list[tuple[float, ...]]]:
    """A block (h, w, 3) uint8 and its leukocytes' boxes."""
    whole = FieldView(kind, 0, 0, w, h)
    cells: list[TrueCell] = []
    if kind in COVER:
        cover, pile = COVER[kind]
        edge = round(EDGE_UM / um)
        room = FieldView(kind, edge, edge, w - 2 * edge, h - 2 * edge)
        cells = populate(
            [room],
            um,
            rng,
            composition=NORMAL_BLOOD,
            n_leukocytes=n_leukocytes,
            red_cell_cover=cover,
            platelets_per_red_cell=0.04,
            red_cells_pile=pile,
        )
    layers = render_field(cells, whole, um, style, drawer=_flat if kind == "feathered" else draw)
    if kind == "precipitate":
        layers.density += _precipitate(w, h, um, rng)[..., None] * style.density("azurophil")
    look = replace(style, blur_um=defocus_um) if kind == "defocus" else style
    block = develop(layers.density, um, look, rng)
    if kind == "pen":
        block = _pen(block, um, rng)
    return block, [tuple(map(float, s[1])) for s in layers.seen]


def _flat(cell: TrueCell, pixel_size_um: float) -> Layers:
    """A red cell of the feathered edge: spread out flat, without a paler middle."""
    if cell.kind != "red_cell":
        return draw(cell, pixel_size_um)
    layers = draw(replace(cell, diameter_um=1.1 * cell.diameter_um), pixel_size_um)
    inside = layers.labels > 0
    dyes = {k: np.where(inside, np.float32(v[inside].mean()), v) for k, v in layers.dyes.items()}
    return replace(layers, dyes=dyes)


def _precipitate(w: int, h: int, um: float, rng: Rng) -> Array:
    """Amount of dye (h, w) in grains of 0.4 to 1.2 µm, some 12,000 a mm²; more of them in heaps."""
    import cv2

    amount = np.zeros((h, w), np.uint8)
    n = round(12_000 * w * h * um**2 * 1e-6)
    heaps = rng.uniform((0, 0), (w, h), (max(3, n // 60), 2))
    for _ in range(n):
        at = heaps[rng.integers(len(heaps))] + rng.normal(0, 14 / um, 2)
        if rng.random() < 0.5:
            at = rng.uniform((0, 0), (w, h))
        radius = rng.uniform(0.4, 1.2) / um
        cv2.circle(
            amount, (round(at[0] * 16), round(at[1] * 16)), round(radius * 16), 255, -1, cv2.LINE_AA, shift=4
        )
    return amount.astype(np.float32) * np.float32(1.3 / 255)


def _pen(block: Array, um: float, rng: Rng) -> Array:
    """Strokes of a felt pen across the block: wide, even, with soft edges and bare glass between."""
    import cv2

    h, w = block.shape[:2]
    mask = np.zeros((h, w), np.uint8)
    ink = np.array(INKS[rng.integers(len(INKS))], np.float32)
    for _ in range(4):
        ends = rng.uniform((-0.1 * w, -0.1 * h), (1.1 * w, 1.1 * h), (3, 2)).astype(np.int32)
        cv2.polylines(mask, [ends], False, 255, max(3, round(60 / um)), cv2.LINE_AA)
    soft = cv2.GaussianBlur(mask, (0, 0), 4 / um).astype(np.float32)[..., None] / 255
    streaks = cv2.GaussianBlur(rng.normal(0, 1, (h, w)).astype(np.float32), (0, 0), 6 / um)[..., None]
    inked = np.clip(ink + 60 * streaks, 0, 255)
    return np.asarray(np.clip(block * (1 - soft) + inked * soft, 0, 255).astype(np.uint8))
