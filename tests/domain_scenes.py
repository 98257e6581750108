"""A made-up set of four domains for the tests of the multi-domain stainers."""

from __future__ import annotations

import numpy as np

from stainers.domain_sets import DIC, NO_PARTNER, DomainCell, DomainSet

COLOURS = ((150, 60, 110), (60, 60, 160), (170, 90, 60))
STAINS = ("barcelona", "bccd", "raabin")


def domain_set(n: int = 12, size: int = 24, seed: int = 0) -> DomainSet:
    """Discs: two thirds of the cells are pairs of a stain and DIC, the rest stain or DIC alone."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    cells: list[DomainCell] = []
    for i in range(n):
        stain = i % 3
        centre, radius = rng.uniform(size * 0.4, size * 0.6, 2), rng.uniform(size * 0.2, size * 0.35)
        distance = np.hypot(y - centre[0], x - centre[1]) / radius
        colour = np.full((size, size, 3), 225, np.uint8)
        colour[distance < 1] = COLOURS[stain]
        mask = np.where(distance < 0.5, 3, np.where(distance < 1, 2, 0)).astype(np.uint8)
        slope = np.clip(128 + 60 * np.gradient((distance < 1).astype(float), axis=1), 0, 255)
        dic = np.stack([slope, np.where(distance < 1, 170, 120)], axis=-1).astype(np.uint8)
        label = ("lymphocyte", "neutrophil")[i % 2]
        if i % 6 == 4:
            cells.append(DomainCell(colour, stain, label, mask))
        elif i % 6 == 5:
            cells.append(DomainCell(dic, len(STAINS)))
        else:
            place = len(cells)
            cells.append(DomainCell(colour, stain, label, mask, place + 1))
            cells.append(DomainCell(dic, len(STAINS), label, mask, place))
    assert any(c.partner == NO_PARTNER for c in cells)
    return DomainSet((*STAINS, DIC), tuple(cells), ("lymphocyte", "neutrophil"), 0)
