"""Pairs of brightfield and computed DIC with a known transform, from real stained smears.

Fields are laid out of the photographs in SMEARFLOW_DATA/smears; the DIC is computed by
phantoms.optics with a microscope drawn anew for each pair, the specimen moved and bent before it is
imaged.  What is measured on them is measured on computed DIC.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from phantoms.computed_dic import compute_dic
from phantoms.geometry import random_deformation, similarity
from phantoms.optics import DicOptics, random_optics

WIDTH, HEIGHT, MARGIN = 2064, 1544, 330
# Width in px of a source's photographs, and how much they are enlarged to about 0.1 µm a pixel.
SOURCES = {"raabin": ((575,), 1.0), "barcelona": ((360, 363, 366, 369), 1.0), "bccd": ((640, 416), 1.25)}


@dataclass(frozen=True)
class Pair:
    """One made pair; matrix (2, 3) takes a brightfield pixel to its DIC pixel."""

    name: str
    dic: np.ndarray
    brightfield: np.ndarray
    matrix: np.ndarray
    shift_px: float
    rotation_deg: float
    deformation_px: float
    patches: int  # 0: dense; else the field is empty glass but for so many patches
    shear_angle_deg: float
    optics: DicOptics | None = None


def photographs(data: Path, split: str = "train") -> dict[str, list[Path]]:
    """The smear photographs by source, told apart by their width."""
    found: dict[str, list[Path]] = {name: [] for name in SOURCES}
    for file in sorted((data / "smears" / "images" / split).iterdir()):
        head = cv2.imread(str(file), cv2.IMREAD_REDUCED_COLOR_8)
        if head is None:
            continue
        for name, (widths, _) in SOURCES.items():
            if any(abs(head.shape[1] - w / 8) <= 1 for w in widths):
                found[name].append(file)
                break
    return {name: files for name, files in found.items() if len(files) > 20}


def lay_out(files: list[Path], zoom: float, rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A field (height, width, 3) uint8 RGB of random photographs, blended where they meet."""
    canvas = np.zeros((height, width, 3), np.float32)
    total = np.zeros((height, width, 1), np.float32)
    y = -int(rng.integers(0, 150))
    while y < height:
        x, low = -int(rng.integers(0, 150)), height
        while x < width:
            tile = cv2.imread(str(files[int(rng.integers(len(files)))]))[..., ::-1]
            tile = cv2.resize(tile, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
            tile = np.rot90(tile, int(rng.integers(4)))
            if rng.random() < 0.5:
                tile = tile[:, ::-1]
            h, w = tile.shape[:2]
            ramp = [np.minimum(1, (np.minimum(np.arange(n), np.arange(n)[::-1]) + 1) / 32) for n in (h, w)]
            weight = np.outer(*ramp).astype(np.float32)[..., None]
            a, b, c, d = max(0, y), min(height, y + h), max(0, x), min(width, x + w)
            if b > a and d > c:
                part = weight[a - y : b - y, c - x : d - x]
                canvas[a:b, c:d] += part * tile[a - y : b - y, c - x : d - x]
                total[a:b, c:d] += part
            x += w - 40
            low = min(low, h)
        y += low - 40
    return np.clip(canvas / np.maximum(total, 1e-3), 0, 255).astype(np.uint8)


def thin_out(field: np.ndarray, patches: int, rng: np.random.Generator) -> np.ndarray:
    """The field with only round patches of about a cell or two left, the rest painted as empty glass."""
    height, width = field.shape[:2]
    stay = np.zeros((height, width), np.uint8)
    for _ in range(patches):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(stay, centre, int(rng.integers(45, 80)), 255, -1)
    weight = cv2.GaussianBlur(stay, (0, 0), 6).astype(np.float32)[..., None] / 255
    glass = np.percentile(field[::4, ::4].reshape(-1, 3), 85, axis=0)
    grain = rng.normal(0, 1.2, field.shape)
    return np.clip(field * weight + (glass + grain) * (1 - weight), 0, 255).astype(np.uint8)


def make_pair(data: Path, seed: int, split: str = "train") -> Pair:
    """One pair, the same for a seed: everything that the goals name is drawn from its range."""
    rng = np.random.default_rng(seed)
    by_source = photographs_once(data, split)
    source = sorted(by_source)[seed % len(by_source)]
    full_w, full_h = WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN
    field = lay_out(by_source[source], SOURCES[source][1] * rng.uniform(0.9, 1.15), rng, full_w, full_h)
    patches = 0
    if rng.random() < 0.3:
        patches = int(rng.choice([40, 80, 160]))
        field = thin_out(field, patches, rng)

    length, direction = rng.uniform(0, 250), rng.uniform(0, 2 * np.pi)
    shift = (length * np.cos(direction), length * np.sin(direction))
    rotation, scale = rng.uniform(-3, 3), 1 + rng.uniform(-0.01, 0.01)
    matrix = np.asarray(similarity(shift, rotation, scale, ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)))
    from_full = matrix.copy()
    from_full[:, 2] -= matrix[:, :2] @ [MARGIN, MARGIN]
    bend = float(rng.uniform(0, 0.5))
    displacement = random_deformation((HEIGHT, WIDTH), bend, float(rng.uniform(200, 700)), rng)
    optics = random_optics(rng)
    bits = 16 if rng.random() < 0.3 else 8
    seen = field
    if rng.random() < 0.5:  # a camera that is not green only
        seen = np.repeat(cv2.cvtColor(field, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    dic = compute_dic(
        seen, 0.1, optics, rng, matrix=from_full, shape=(HEIGHT, WIDTH), displacement=displacement, bits=bits
    )
    if bits == 16:
        dic = (dic >> 4) + np.uint16(rng.integers(0, 200))  # a 12-bit camera with an offset
    bf = field[MARGIN:-MARGIN, MARGIN:-MARGIN].astype(np.float32)
    if rng.random() < 0.5:
        bf = cv2.GaussianBlur(bf, (0, 0), rng.uniform(0.5, 2.0))
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
    bf *= (
        1
        + rng.uniform(-0.15, 0.15) * x
        + rng.uniform(-0.15, 0.15) * y
        - rng.uniform(0, 0.15) * (x * x + y * y)
    )[..., None]
    bf += rng.normal(0, rng.uniform(0.5, 4), bf.shape).astype(np.float32)
    if rng.random() < 0.2:
        bf = (np.clip(bf, 0, 255) * 16).astype(np.uint16)
    else:
        bf = np.clip(bf, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        bf = cv2.cvtColor(bf, cv2.COLOR_RGB2GRAY)
    name = f"{source}-{seed}"
    return Pair(name, dic, bf, matrix, length, rotation, bend, patches, optics.shear_angle_deg, optics)


_FOUND: dict[tuple[str, str], dict[str, list[Path]]] = {}


def photographs_once(data: Path, split: str) -> dict[str, list[Path]]:
    key = (str(data), split)
    if key not in _FOUND:
        _FOUND[key] = photographs(data, split)
    return _FOUND[key]


def grid_error(found: np.ndarray, truth: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> float:
    """Mean distance between two matrices' images of a grid over the brightfield, DIC pixels."""
    x, y = np.meshgrid(np.linspace(0, width - 1, 21), np.linspace(0, height - 1, 16))
    points = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    return float(np.hypot(*(np.asarray(found) @ points - np.asarray(truth) @ points)).mean())


def case_pairs(data: Path) -> Iterator[Pair]:
    """The pairs of SMEARFLOW_DATA/cases with their exact matrices."""
    import json

    import tifffile

    for truth_file in sorted((data / "cases").glob("*/truth.json")):
        truth = json.loads(truth_file.read_text())
        for field, value in sorted(truth["fields"].items()):
            matrix = np.asarray(value["brightfield_to_dic"])
            yield Pair(
                f"{truth['case']}-{field}",
                tifffile.imread(truth_file.parent / f"{field}_DIC.tif"),
                tifffile.imread(truth_file.parent / f"{field}_BF.tif"),
                matrix,
                float(np.hypot(*matrix[:, 2])),
                float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))),
                float("nan"),
                0,
                float("nan"),
            )
