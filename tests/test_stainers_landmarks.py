"""Transfer by landmarks: structures are found, their colours met; what differs between cells stays."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stainers.cell_structures import density, find_structures, other_cells, softness
from stainers.landmarks import OTHERS, SIZE, SOFTNESS, landmark_map, landmarks_apply, landmarks_measure
from stainers.normalizers import NormalizerStainer, fit

GLASS = (245.0, 240.0, 235.0)
NUCLEUS, CYTOPLASM, RED_CELL = (0.4, 0.75, 0.2), (0.12, 0.2, 0.08), (0.05, 0.16, 0.12)
OTHER_GLASS = (250.0, 245.0, 180.0)
OTHER = np.array([[0.9, 0.1, 0.2], [0.1, 0.7, 0.1], [0.0, 0.3, 0.8]])  # what another dye makes of a density


def cell(
    seed: int = 0, dye: np.ndarray | None = None, glass=GLASS, cytoplasm=CYTOPLASM, red_cells: int = 1
) -> np.ndarray:
    """(96, 96, 3) uint8: a cell of 50 px with a nucleus of 26 px, and red cells in so many corners."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96]
    cx, cy = rng.uniform(44, 52, 2)
    dense = np.zeros((96, 96, 3))
    for corner in [(12, 12), (84, 12), (12, 84), (84, 84)][:red_cells]:
        dense[(x - corner[0]) ** 2 + (y - corner[1]) ** 2 < 81] = RED_CELL
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
    np.testing.assert_allclose(found[6:9], CYTOPLASM, atol=0.02)


def test_what_is_of_one_density_is_a_nucleus_and_glass_is_nothing():
    flat = landmarks_measure(cell(cytoplasm=NUCLEUS))
    np.testing.assert_allclose(flat[3:6], NUCLEUS, atol=0.03)
    assert np.isnan(flat[6:9]).all()
    assert np.isnan(landmarks_measure(np.full((40, 40, 3), 230, np.uint8))[3:]).all()


def test_the_map_meets_both_landmarks_and_is_near_gains_elsewhere():
    scene = [0.03, 0.01]
    theirs = np.concatenate([OTHER_GLASS, np.array(NUCLEUS) @ OTHER, np.array(CYTOPLASM) @ OTHER, scene])
    mine = np.concatenate([GLASS, NUCLEUS, CYTOPLASM, scene])
    found = landmark_map(theirs, mine)
    np.testing.assert_allclose(theirs[3:9].reshape(2, 3) @ found, mine[3:9].reshape(2, 3), atol=0.02)
    np.testing.assert_allclose(landmark_map(mine, mine), np.eye(3), atol=1e-6)
    unknown = np.concatenate([GLASS, np.full(SIZE - 3, np.nan)])
    np.testing.assert_array_equal(landmark_map(unknown, mine), np.eye(3))
    only = theirs.copy()
    only[6:9] = np.nan
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
    assert made[6:9] == pytest.approx(0.6 * np.array(CYTOPLASM), abs=0.03)


def test_the_glass_of_each_image_is_its_own():
    mine, theirs = [cell(i) for i in range(3)], [cell(i, OTHER, OTHER_GLASS) for i in range(3)]
    stainer = NormalizerStainer("landmarks", fit("landmarks", theirs, mine), name="n", targets=("mine",))
    dim = cell(0, OTHER, tuple(0.8 * g for g in OTHER_GLASS))
    plain, made = (stainer.stain(i[None]).image[0].astype(int) for i in (theirs[0], dim))
    assert np.abs(plain - made).mean() < 4
    wanted = landmarks_apply(
        dim, np.concatenate([0.8 * np.array(OTHER_GLASS), np.full(SIZE - 3, np.nan)]), stainer.fitted.target
    )
    assert np.isfinite(wanted).all()


def test_density_is_that_of_the_glass():
    assert density(np.array([[24.0]]), np.array([249.0]))[0, 0] == pytest.approx(1.0)


def truth(red_cells: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(96, 96) bool each: the leukocyte of `cell`, and its red cells."""
    y, x = np.mgrid[:96, :96]
    cx, cy = np.random.default_rng(seed).uniform(44, 52, 2)
    white = (x - cx) ** 2 + (y - cy) ** 2 < 625
    corners = [(12, 12), (84, 12), (12, 84), (84, 84)][:red_cells]
    return white, np.any([(x - a) ** 2 + (y - b) ** 2 < 81 for a, b in corners], axis=0)


@pytest.mark.parametrize("zoom", [1, 2, 3])
def test_red_cells_are_told_from_a_leukocyte_whatever_the_size_of_a_pixel(zoom):
    picture = cv2.resize(cell(red_cells=4), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    white, red = (np.kron(m, np.ones((zoom, zoom))) > 0 for m in truth(4))
    found = other_cells(find_structures(picture))
    assert (found & red).sum() > 0.97 * red.sum()
    assert (found & white).sum() < 0.02 * white.sum()
    assert landmarks_measure(picture)[OTHERS] == pytest.approx(red.mean(), abs=0.02)


def test_a_leukocyte_alone_has_no_other_cells_beside_it():
    assert not other_cells(find_structures(cell(red_cells=0))).any()


@pytest.mark.parametrize("blur_px", [2.0, 3.0, 4.0, 6.0])  # enlarging blurs by one pixel itself
def test_the_blur_of_a_nucleus_is_measured_in_roots_of_its_area(blur_px):
    picture = cv2.GaussianBlur(cv2.resize(cell(), None, fx=2, fy=2), (0, 0), blur_px)
    found = find_structures(picture)
    assert found.root == pytest.approx(np.sqrt(np.pi) * 26, rel=0.1)
    assert softness(found) * found.root == pytest.approx(blur_px, rel=0.25)


def test_red_cells_are_cleared_for_a_stain_that_lyses_them_and_never_drawn_for_one_that_does_not():
    mine = [cell(i, red_cells=0) for i in range(4)]
    theirs = [cell(i, OTHER, OTHER_GLASS, red_cells=4) for i in range(4)]
    white, red = truth(4)
    to_mine = NormalizerStainer("landmarks", fit("landmarks", theirs, mine), name="n", targets=("mine",))
    cleared = to_mine.stain(theirs[0][None]).image[0].astype(int)
    assert np.abs(cleared - mine[0])[red].mean() < 6  # glass, and not the 70 grey levels of a red cell
    assert np.abs(cleared - mine[0])[white].mean() < 8
    back = NormalizerStainer("landmarks", fit("landmarks", mine, theirs), name="n", targets=("theirs",))
    drawn = back.stain(mine[0][None]).image[0].astype(int)
    assert np.abs(drawn - OTHER_GLASS)[red].mean() < 6


def test_a_sharper_picture_is_softened_to_the_target_and_a_softer_one_stays_as_it_is():
    sharp = [cv2.resize(cell(i), None, fx=2, fy=2) for i in range(4)]
    soft = [cv2.GaussianBlur(i, (0, 0), 3.0) for i in sharp]
    softened = NormalizerStainer("landmarks", fit("landmarks", sharp, soft), name="n", targets=("soft",))
    made = landmarks_measure(softened.stain(sharp[0][None]).image[0])
    assert made[SOFTNESS] == pytest.approx(landmarks_measure(soft[0])[SOFTNESS], rel=0.2)
    back = NormalizerStainer("landmarks", fit("landmarks", soft, sharp), name="n", targets=("sharp",))
    same = landmarks_measure(back.stain(soft[0][None]).image[0])
    assert same[SOFTNESS] == pytest.approx(landmarks_measure(soft[0])[SOFTNESS], rel=0.05)
