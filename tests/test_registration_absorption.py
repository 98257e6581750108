"""What the DIC absorbs is no shift: the two are told apart, and a doubt between them is said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft as sfft
from scipy.ndimage import gaussian_filter

from pipeline.registration import register
from pipeline.registration_absorption import BANDS_MEET, PULL_PX, band_gap, pull, shear_shift, tile_weights
from pipeline.settings import RegistrationSettings
from tests.registration_fields import grid_error, pair

SIDE, TILES = 64, 40
KY = np.fft.fftfreq(SIDE)[:, None]
KX = np.abs(np.fft.fftfreq(SIDE)[None, : SIDE // 2 + 1])
SHEAR = 0.7


def spectra(shift, absorption, *, across=0.0, noise=0.0, blur_px=0.0, seed=0):
    """Mean powers and cross spectrum of density tiles and of their DIC, moved along and across the shear."""
    rng = np.random.default_rng(seed)
    density = gaussian_filter(rng.standard_normal((TILES, SIDE, SIDE)), (0, 1.2, 1.2), mode="wrap")
    fb = sfft.rfft2(density / density.std())
    along = KX * np.cos(SHEAR) + KY * np.sin(SHEAR)
    relief = 2j * np.pi * along * np.exp(-2 * (np.pi * blur_px) ** 2 * (KX**2 + KY**2))
    sideways = KY * np.cos(SHEAR) - KX * np.sin(SHEAR)
    fd = fb * (relief + absorption) * np.exp(-2j * np.pi * (along * shift + sideways * across))
    fd += sfft.rfft2(rng.standard_normal((TILES, SIDE, SIDE))) * noise
    powers = [(np.abs(f) ** 2).mean(0) for f in (fb, fd)]
    return (*powers, (np.conj(fb) * fd).mean(0), TILES, KX, KY + 0 * KX, SHEAR)


@pytest.mark.parametrize("blur_px", [0.0, 2.0])
@pytest.mark.parametrize("absorption", [0.0, 0.2, -0.2, 0.6])
@pytest.mark.parametrize("shift", [0.0, 0.4, -1.1])
def test_a_shift_is_found_whatever_is_absorbed(shift, absorption, blur_px):
    found, error = shear_shift(*spectra(shift, absorption, across=-0.3, blur_px=blur_px, noise=0.02))
    assert found == pytest.approx((shift, -0.3), abs=0.05)
    assert (error < 0.2).all()


def test_a_shear_direction_read_a_little_wrong_does_not_turn_absorption_into_a_shift():
    *measured, shear = spectra(0.4, 0.4, across=0.2, noise=0.02)
    turn = np.radians(8)
    found, _ = shear_shift(*measured, shear + turn)
    along, across = 0.4 * np.cos(turn) + 0.2 * np.sin(turn), 0.2 * np.cos(turn) - 0.4 * np.sin(turn)
    assert found == pytest.approx((along, across), abs=0.06)


def test_the_expected_error_grows_where_noise_hides_the_even_part():
    errors = [shear_shift(*spectra(0.3, 0.2, noise=n))[1].max() for n in (0.02, 1.0, 30.0)]
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] > 0.3


@pytest.mark.parametrize("apart", [0.0, 0.8])
def test_coarse_and_fine_structure_at_two_places_are_told_from_one_shift_of_both(apart):
    density, dic, cross, *rest = spectra(0.3, 0.2, noise=0.02)
    along = KX * np.cos(SHEAR) + KY * np.sin(SHEAR)
    cross = cross * np.where(np.hypot(KX, KY) > BANDS_MEET, np.exp(-2j * np.pi * apart * along), 1)
    assert band_gap(density, dic, cross, *rest) == pytest.approx(apart, abs=0.15)


def test_a_phase_that_turns_the_contrast_round_enlarges_the_stated_error():
    dic, brightfield, truth = pair(5, shift=(12.3, -7.6), bits=16, noise=0.004)
    relief = (dic / 4095 - 0.45) / 0.35
    errors, stated = [], []
    for phase in (3.0, 5.0):
        law = (1 - np.cos(1.4 + phase * relief)) / 2
        seen = ((0.1 + 0.8 * law) * 255).astype(np.uint8)
        found = register(seen, brightfield, pixel_size_um=0.2)
        errors.append(grid_error(found.matrix, truth, 640, 480))
        stated.append(found.expected_error_px)
    assert errors[0] < stated[0] < 0.2  # monotone still
    assert errors[1] > 1.0
    assert stated[1] > errors[1] / 3


def test_blank_spectra_move_nothing():
    nothing = np.zeros((SIDE, SIDE // 2 + 1))
    shift, error = shear_shift(nothing, nothing, nothing * 1j, TILES, KX, KY + 0 * KX, SHEAR)
    left, _ = pull(shift, error, np.array([0.4, -0.4]))
    assert np.abs(left).max() < 0.05


def test_a_difference_is_believed_as_far_as_it_was_measured():
    shift, seen = np.array([0.8, 0.3]), np.array([0.1, 0.3])
    sure, sure_error = pull(shift, np.full(2, 0.01), seen)
    unsure, unsure_error = pull(shift, np.array([50.0, 0.01]), seen)
    assert sure == pytest.approx((0.7, 0.0), abs=0.01)
    assert np.abs(unsure).max() < 0.05
    assert sure_error < 0.02
    assert unsure_error == pytest.approx(PULL_PX, rel=0.05)


def test_a_dark_tile_does_not_outvote_the_rest():
    energy = np.array([1.0] * 20 + [100.0])
    shares = tile_weights(energy, energy) * energy
    assert shares[-1] / shares.sum() < 0.15


@pytest.mark.parametrize("absorption", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("shear_deg", [40.0, 250.0])
def test_an_absorbing_dic_is_aligned_as_a_clean_one_is(absorption, shear_deg):
    dic, brightfield, truth = pair(11, shift=(12.3, -7.6), shear_deg=shear_deg, absorption=absorption)
    found = register(dic, brightfield, pixel_size_um=0.2)
    assert found.status == "ok"
    assert grid_error(found.matrix, truth, 640, 480) < 0.18
    assert found.forward_backward_px < 0.18


def test_an_alignment_whose_absorption_is_in_doubt_is_refused_where_that_much_is_not_allowed():
    dic, brightfield, _ = pair(5, shift=(10.0, -20.0), rotation_deg=1.0, n=60, noise=0.05)
    strict = RegistrationSettings(max_uncertainty_px=0.02)
    found = register(dic, brightfield, strict, pixel_size_um=0.2)
    assert found.status == "failed"
    assert "expected error" in found.reason
    assert found.expected_error_px > 0.02


def test_the_expected_error_is_small_on_a_full_field_and_larger_on_a_sparse_one():
    full, sparse = (
        register(*pair(5, shift=(10.0, -20.0), n=n, noise=0.05)[:2], pixel_size_um=0.2) for n in (420, 30)
    )
    assert full.expected_error_px < 0.3
    assert sparse.expected_error_px is None or sparse.expected_error_px > 1.5 * full.expected_error_px
