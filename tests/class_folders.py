"""Class folders of drawn cells, as a laboratory would label its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def class_folders(root: Path) -> Path:
    """Red cells and blue ones on glass in `root`, six of each, under the names of two classes."""
    random = np.random.default_rng(0)
    for name, colour in (("eosinophil", (200, 60, 60)), ("lymphocyte", (60, 60, 200))):
        (root / name).mkdir()
        for i in range(6):
            image = np.full((48, 48, 3), 235, np.uint8)
            y, x = np.mgrid[:48, :48]
            image[np.hypot(y - 24, x - 24) < random.uniform(9, 14)] = colour
            noise = random.normal(0, 8, image.shape)
            noise += np.kron(random.normal(0, 25, (8, 8, 1)), np.ones((6, 6, 1)))  # no two cells are copies
            Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root
