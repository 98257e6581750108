"""Small synthetic pairs with a known transform, for the registration tests.

Discs and rings on glass; the DIC is the difference of their path over half a shear to either side,
evaluated analytically at the moved places, so that the truth is exact.
"""

from __future__ import annotations

import numpy as np

from phantoms.geometry import similarity, transform_points


def field(seed: int, width: int, height: int, n: int, margin: int = 120) -> np.ndarray:
    """Cells (N, 4): x, y, radius, thickness, placed over the field and a margin around it."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            rng.uniform(-margin, width + margin, n),
            rng.uniform(-margin, height + margin, n),
            rng.uniform(9, 22, n),
            rng.uniform(0.4, 1.2, n),
        ],
        axis=1,
    )


def path(cells: np.ndarray, width: int, height: int, blur: float = 1.5) -> np.ndarray:
    """Optical path (H, W) float64 of cells with soft rims and a pale middle."""
    out = np.zeros((height, width))
    for x, y, radius, thickness in cells:
        reach = int(radius + 8)
        x0, x1 = max(0, int(x) - reach), min(width, int(x) + reach + 1)
        y0, y1 = max(0, int(y) - reach), min(height, int(y) + reach + 1)
        if x1 <= x0 or y1 <= y0:
            continue
        r = np.hypot(np.arange(x0, x1)[None] - x, np.arange(y0, y1)[:, None] - y)
        rim = 0.5 - 0.5 * np.tanh((r - radius) / blur)
        out[y0:y1, x0:x1] += thickness * rim * (1 - 0.4 * np.exp(-((r / (0.5 * radius)) ** 2)))
    return out


def pair(
    seed: int,
    width: int = 640,
    height: int = 480,
    *,
    shift: tuple[float, float] = (0.0, 0.0),
    rotation_deg: float = 0.0,
    scale: float = 1.0,
    shear_deg: float = 40.0,
    n: int = 420,
    bits: int = 8,
    grey: bool = False,
    dic_scale: float = 1.0,
    dic_shape: tuple[int, int] | None = None,
    noise: float = 0.01,
    absorption: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dic, brightfield, matrix (2, 3)).

    `dic_scale` enlarges the DIC's pixel grid; `absorption` is twice the DIC's absorbance of a path of one.
    """
    rng = np.random.default_rng(seed + 1000)
    cells = field(seed, width, height, n)
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrix = np.asarray(similarity(shift, rotation_deg, scale, centre))
    stretch = np.array(
        [[dic_scale, 0, 0.5 * dic_scale - 0.5], [0, dic_scale, 0.5 * dic_scale - 0.5], [0, 0, 1]]
    )
    matrix = (stretch @ np.vstack([matrix, [0, 0, 1]]))[:2]
    dic_height, dic_width = dic_shape or (round(height * dic_scale), round(width * dic_scale))
    moved = cells.copy()
    moved[:, :2] = transform_points(matrix, cells[:, :2])
    moved[:, 2] *= scale * dic_scale

    half = 1.2 * dic_scale * np.array([np.cos(np.radians(shear_deg)), np.sin(np.radians(shear_deg))])
    ahead, behind = moved.copy(), moved.copy()
    ahead[:, :2] -= half
    behind[:, :2] += half
    dic = 0.45 + 0.35 * (path(ahead, dic_width, dic_height) - path(behind, dic_width, dic_height))
    if absorption:
        dic *= np.exp(-0.5 * absorption * path(moved, dic_width, dic_height))
    dic += rng.normal(0, noise, dic.shape)
    density = path(cells, width, height)
    rgb = 0.85 * np.exp(-density[..., None] * np.array([0.25, 0.6, 0.35]))
    rgb += rng.normal(0, noise, rgb.shape)
    if grey:
        rgb = rgb.mean(axis=2)
    top, kind = (255, np.uint8) if bits == 8 else (4095, np.uint16)
    return (
        (np.clip(dic, 0, 1) * top).astype(kind),
        (np.clip(rgb, 0, 1) * top).astype(kind),
        matrix,
    )


def grid_error(found: object, truth: np.ndarray, width: int, height: int) -> float:
    """Mean distance between where two matrices put a grid over the brightfield, DIC pixels."""
    x, y = np.meshgrid(np.linspace(0, width - 1, 12), np.linspace(0, height - 1, 9))
    points = np.stack([x.ravel(), y.ravel()], 1)
    return float(
        np.hypot(*(transform_points(np.asarray(found), points) - transform_points(truth, points)).T).mean()
    )
