"""Transfer by landmarks: structures are found, their colours met; what differs between cells stays."""

from __future__ import annotations

import numpy as np
import pytest

from stainers.landmarks import density, landmark_map, landmarks_apply, landmarks_measure
from stainers.normalizers import NormalizerStainer, fit

GLASS = (245.0, 240.0, 235.0)
NUCLEUS, CYTOPLASM, RED_CELL = (0.4, 0.75, 0.2), (0.12, 0.2, 0.08), (0.05, 0.16, 0.12)
OTHER_GLASS = (250.0, 245.0, 180.0)
OTHER = np.array([[0.9, 0.1, 0.2], [0.1, 0.7, 0.1], [0.0, 0.3, 0.8]])  # what another dye makes of a density


def cell(seed: int = 0, dye: np.ndarray | None = None, glass=GLASS, cytoplasm=CYTOPLASM) -> np.ndarray:
    """(96, 96, 3) uint8: a cell of 50 px with a nucleus of 26 px, and a red cell in the corner."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96]
    cx, cy = rng.uniform(44, 52, 2)
    dense = np.zeros((96, 96, 3))
    dense[(x - 12) ** 2 + (y - 12) ** 2 < 81] = RED_CELL
    dense[(x - cx) ** 2 + (y - cy) ** 2 < 625] = cytoplasm
    dense[(x - cx) ** 2 + (y - cy) ** 2 < 169] = NUCLEUS
    dense = dense * rng.normal(1, 0.05, (96, 96, 1))
    if dye is not None:
        dense = dense @ dye
    return np.clip(np.asarray(glass) * 10**-dense, 0, 255).astype(np.uint8)


def test_the_colours_of_glass_nucleus_and_surroundings_are_found():
    found = landmarks_measure(cell())
    np.testing.assert_allclose(found[:3], GLASS, atol=2)
    np.testing.assert_allclose(found[3:6], NUCLEUS, atol=0.02)
    np.testing.assert_allclose(found[6:], CYTOPLASM, atol=0.02)


def test_what_is_of_one_density_is_a_nucleus_and_glass_is_nothing():
    flat = landmarks_measure(cell(cytoplasm=NUCLEUS))
    np.testing.assert_allclose(flat[3:6], NUCLEUS, atol=0.03)
    assert np.isnan(flat[6:]).all()
    assert np.isnan(landmarks_measure(np.full((40, 40, 3), 230, np.uint8))[3:]).all()


def test_the_map_meets_both_landmarks_and_is_near_gains_elsewhere():
    theirs = np.concatenate([OTHER_GLASS, np.array(NUCLEUS) @ OTHER, np.array(CYTOPLASM) @ OTHER])
    mine = np.concatenate([GLASS, NUCLEUS, CYTOPLASM])
    found = landmark_map(theirs, mine)
    np.testing.assert_allclose(theirs[3:].reshape(2, 3) @ found, mine[3:].reshape(2, 3), atol=0.02)
    np.testing.assert_allclose(landmark_map(mine, mine), np.eye(3), atol=1e-6)
    unknown = np.concatenate([GLASS, np.full(6, np.nan)])
    np.testing.assert_array_equal(landmark_map(unknown, mine), np.eye(3))
    only = theirs.copy()
    only[6:] = np.nan
    np.testing.assert_allclose(theirs[3:6] @ landmark_map(only, mine), mine[3:6])


def test_another_stain_becomes_the_target_and_a_paler_cell_stays_paler():
    mine = [cell(i) for i in range(4)]
    theirs = [cell(i, OTHER, OTHER_GLASS) for i in range(4)]
    stainer = NormalizerStainer("landmarks", fit("landmarks", theirs, mine), name="n", targets=("mine",))
    before = np.abs(theirs[0].astype(int) - mine[0]).mean()
    result = stainer.stain(theirs[0][None])
    assert np.abs(result.image[0].astype(int) - mine[0]).mean() < 0.25 * before
    assert result.confidence[0] > 0.5
    pale = stainer.stain(cell(0, OTHER, OTHER_GLASS, tuple(0.6 * c for c in CYTOPLASM))[None]).image[0]
    made = landmarks_measure(pale)
    assert made[6:] == pytest.approx(0.6 * np.array(CYTOPLASM), abs=0.03)


def test_the_glass_of_each_image_is_its_own():
    mine, theirs = [cell(i) for i in range(3)], [cell(i, OTHER, OTHER_GLASS) for i in range(3)]
    stainer = NormalizerStainer("landmarks", fit("landmarks", theirs, mine), name="n", targets=("mine",))
    dim = cell(0, OTHER, tuple(0.8 * g for g in OTHER_GLASS))
    plain, made = (stainer.stain(i[None]).image[0].astype(int) for i in (theirs[0], dim))
    assert np.abs(plain - made).mean() < 4
    wanted = landmarks_apply(
        dim, np.concatenate([0.8 * np.array(OTHER_GLASS), np.full(6, np.nan)]), stainer.fitted.target
    )
    assert np.isfinite(wanted).all()


def test_density_is_that_of_the_glass():
    assert density(np.array([[24.0]]), np.array([249.0]))[0, 0] == pytest.approx(1.0)
