"""Every nucleus is brought to one density: the amount of dye is no feature of a cell."""

from __future__ import annotations

import pytest
import torch

from classifiers.views import NUCLEAR_DENSITY, anchored

SIZE = 64


def cell(nucleus: tuple[float, float, float], cytoplasm: tuple[float, float, float]) -> torch.Tensor:
    """Optical density (3, 64, 64) of a cell 32 px wide in the middle, its nucleus 16 px."""
    y, x = torch.meshgrid(torch.arange(SIZE) - 31.5, torch.arange(SIZE) - 31.5, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    density = torch.zeros(3, SIZE, SIZE)
    density[:, radius < 16] = torch.tensor(cytoplasm)[:, None]
    density[:, radius < 8] = torch.tensor(nucleus)[:, None]
    return density


@pytest.mark.parametrize("hue", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("amount", [0.6, 1.4])
def test_more_or_less_of_the_same_dye_gives_the_same_view(hue, amount):
    density = cell((0.9, 1.2, 0.6), (0.1, 0.3, 0.2))
    plain, other = (anchored((-d).exp(), 0.5, hue) for d in (density, amount * density))
    assert torch.allclose(plain, other, atol=1e-3)


def test_the_nucleus_gets_its_density_and_glass_stays_white():
    view = anchored((-cell((0.7, 1.0, 0.5), (0.1, 0.3, 0.2))).exp(), 0.5, 1.0)
    assert torch.allclose(-view[:, 32, 32].log(), torch.tensor(NUCLEAR_DENSITY), atol=1e-3)
    assert torch.all(view[:, 0, 0] == 1)


def test_one_gain_for_all_keeps_the_hue_and_each_its_own_turns_it():
    density = cell((0.5, 1.4, 0.5), (0.1, 0.5, 0.1))

    def ratio(view: torch.Tensor) -> float:
        dyed = -view[:, 32, 20].log()
        return float(dyed[1] / dyed[0])

    assert ratio(anchored((-density).exp(), 0.5, 0.0)) == pytest.approx(5, rel=1e-3)
    assert ratio(anchored((-density).exp(), 0.5, 1.0)) < 4


def test_what_has_no_nucleus_is_not_made_one():
    pale = torch.full((3, SIZE, SIZE), 0.02)
    assert -anchored((-pale).exp(), 0.5, 0.0).log().max() < 0.1
    assert torch.isfinite(anchored(torch.zeros(3, SIZE, SIZE), 0.5, 1.0)).all()
