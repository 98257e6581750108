"""Made-up inputs for the tests of stainers: DIC of round cells, and a folder of stained smears."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def dic_image(height: int, width: int, n_cells: int, seed: int, noise: float = 2.0) -> np.ndarray:
    """(height, width) uint8: the relief of round cells, lit from one side, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    path = np.zeros((height, width), np.float32)
    for _ in range(n_cells):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(10, 38)
        path += np.sqrt(np.clip(1 - ((x - cx) ** 2 + (y - cy) ** 2) / r**2, 0, 1))
    gy, gx = np.gradient(path)
    dic = 122 + 160 * (0.8 * gx + 0.6 * gy) + rng.normal(0, noise, path.shape)
    return np.clip(dic, 0, 255).astype(np.uint8)


def dic_patches(n: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """(n, size, size, 1) uint8."""
    return np.stack([dic_image(size, size, 4, seed * 1000 + i) for i in range(n)])[..., None]


def smear_folder(root: Path, n_per_domain: int = 3, seed: int = 0) -> Path:
    """A YOLO-format folder of drawn smears in the sizes of the three sources."""
    import cv2

    rng = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (root / name / "train").mkdir(parents=True)
    for size, diameter in ((575, 120), (364, 70), (416, 80)):
        for i in range(n_per_domain):
            image = np.full((size, size, 3), (215, 225, 235), np.uint8)
            rows = []
            for k in range(14):
                x, y = (int(v) for v in rng.uniform(0.15 * size, 0.85 * size, 2))
                white = k >= 11
                colour = (140, 60, 110) if white else (150, 150, 205)
                radius = int(diameter * (0.65 if white else 0.5))
                cv2.circle(image, (x, y), radius, colour, -1)
                if white:
                    cv2.circle(image, (x, y), radius // 2, (110, 20, 60), -1)
                rows.append(
                    f"{0 if white else 1} {x / size} {y / size} {2 * radius / size} {2 * radius / size}"
                )
            stem = f"{size}-{i}"
            cv2.imwrite(str(root / "images" / "train" / f"{stem}.jpg"), image)
            (root / "labels" / "train" / f"{stem}.txt").write_text("\n".join(rows))
    return root
