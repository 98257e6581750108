"""What an alignment is held to: ranges on both sides, residuals that were held out, the weaker witness."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.registration_align import Alignment, WorkPair
from pipeline.registration_checks import checks, out_of_range
from pipeline.registration_evidence import NULL_AGREEMENT, Evidence, held_out, p_agreement, p_false_accept
from pipeline.registration_prepare import WorkImage
from pipeline.registration_refine import Tiles
from pipeline.settings import RegistrationSettings

SHAPE, DIC_SHAPE = (1000, 1400), (900, 1300)
S = RegistrationSettings(max_shift_px=100, max_rotation_deg=2, max_scale_change=0.01)


def moved(degrees=0.0, scale=1.0, shift=(0.0, 0.0), pixel_ratio=1.0):
    """The matrix of a DIC of `pixel_ratio` pixels a brightfield pixel, moved about both centres."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    full = np.eye(3)
    full[:2, :2] = pixel_ratio * scale * np.array([[c, -s], [s, c]])
    centre, middle = ((np.array(x[::-1]) - 1) / 2 for x in (SHAPE, DIC_SHAPE))
    full[:2, 2] = middle + pixel_ratio * np.array(shift) - full[:2, :2] @ centre
    return full


@pytest.mark.parametrize("ratio", [1.0, 0.8])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"shift": (124, -124)}, ""),
        ({"shift": (126, 0)}, "shift is 126"),
        ({"shift": (0, -126)}, "shift is 126"),
        ({"degrees": 2.15}, ""),
        ({"degrees": 2.25}, "rotation"),
        ({"degrees": -2.25}, "rotation"),
        ({"scale": 1.019}, ""),
        ({"scale": 1.021}, "scale is off by 2.1 %"),
        ({"scale": 0.979}, "scale is off by 2.1 %"),
    ],
)
def test_shift_rotation_and_scale_are_held_to_their_range_on_both_sides(change, said, ratio):
    found = out_of_range(moved(pixel_ratio=ratio, **change), SHAPE, DIC_SHAPE, ratio, S)
    assert said in found
    assert bool(found) is bool(said)


def tiles_of(shifts):
    """Tiles of a grid of 8 by 6 with these shifts (48, 2)."""
    x, y = np.meshgrid(np.arange(8) * 64.0, np.arange(6) * 64.0)
    centres = np.stack([x.ravel(), y.ravel()], 1)
    return Tiles(centres, np.asarray(shifts, float), np.full(48, 30.0), np.eye(2) * 4, 0.6)


def test_a_tile_is_judged_by_the_transform_that_the_others_give():
    x, y = np.meshgrid(np.arange(8), np.arange(6))
    own = np.where((x + y).ravel()[:, None] % 2 == 0, 0.0, 3.0) * np.ones((48, 2))
    found = held_out(tiles_of(own))  # each half agrees with itself and not with the other
    assert found.residuals == pytest.approx(np.full(48, np.hypot(3, 3)), abs=0.05)
    assert (found.agreement, found.n_tiles) == (0.0, 48)
    assert held_out(tiles_of(np.full((48, 2), 2.0))).agreement == 1.0


def test_the_chance_of_a_false_acceptance_is_that_of_the_weaker_witness():
    agreed, astray = Evidence(np.zeros(40), 1.0, 40), Evidence(np.zeros(40), 0.1, 40)
    assert p_false_accept(20.0, agreed) < 1e-9
    assert p_false_accept(20.0, astray) > 0.1
    assert p_false_accept(3.0, agreed) > 0.1


@pytest.mark.parametrize(("agreeing", "n"), [(10, 40), (5, 12), (3, 30)])
def test_two_tiles_that_fix_a_similarity_speak_for_nothing(agreeing, n):
    found = p_agreement(Evidence(np.zeros(n), agreeing / n, n))
    assert found == pytest.approx(binom.sf(agreeing - 3, n - 2, NULL_AGREEMENT))


def first_two(monkeypatch, settings, *, score=20.0, ecc=0.7, factor=2.0, absorbed=0.0):
    monkeypatch.setattr("pipeline.registration_checks._correlations", lambda *_: (ecc, 0.0))
    work = WorkImage(np.zeros((384, 512), np.float32), np.eye(3))
    shifts = np.random.default_rng(3).normal(0, 0.3, (48, 2))
    found = Alignment(np.eye(3), 0.6, score, tiles_of(shifts), absorbed)
    pair = WorkPair(work, work, factor, factor)
    return list(islice(checks(pair, [], found, settings, pixel_size_um=0.1, out_of_range=""), 2))


def test_residuals_are_told_in_full_pixels_and_in_micrometres(monkeypatch):
    one, _ = first_two(monkeypatch, S)
    fine = first_two(monkeypatch, S, factor=1.0)[0].measured
    found = one.measured
    assert one.refused == ""
    for name in ("residual", "residual_p95"):
        assert found[f"{name}_px"] == pytest.approx(2 * fine[f"{name}_px"])
        assert found[f"{name}_um"] == pytest.approx(0.1 * found[f"{name}_px"])
    assert 0.3 < found["residual_px"] < found["residual_p95_px"]


def test_the_expected_error_is_in_full_pixels_and_holds_that_of_the_absorption(monkeypatch):
    def error(**change):
        return first_two(monkeypatch, S, **change)[1].measured["expected_error_px"]

    assert 0 < error() == pytest.approx(2 * error(factor=1.0))
    assert error(absorbed=0.2) == pytest.approx(np.hypot(error(), 0.4))


def test_each_limit_of_the_settings_is_held_to_the_point(monkeypatch):
    one, two = first_two(monkeypatch, S)
    limits = {
        "max_residual_px": (0, one.measured["residual_px"], "left over"),
        "max_uncertainty_px": (1, two.measured["expected_error_px"], "too little"),
        "max_p_false_accept": (0, one.measured["p_false_accept"], "do not agree"),
    }
    for name, (which, value, said) in limits.items():
        at = first_two(monkeypatch, S.model_copy(update={name: value}))[which]
        under = first_two(monkeypatch, S.model_copy(update={name: value * 0.999}))[which]
        assert at.refused == "", name
        assert said in under.refused


def test_the_reason_that_comes_first_is_told(monkeypatch):
    assert "do not agree" in first_two(monkeypatch, S, score=2.0, ecc=0.0)[0].refused
    assert "no relief" in first_two(monkeypatch, S, ecc=0.05)[0].refused
