"""What is no DIC and its brightfield is refused, however well its parts agree; a hard true pair is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import pipeline.registration as registration
from pipeline.registration import register
from pipeline.registration_evidence import MIN_ECC, no_relief
from tests.registration_fields import grid_error, pair

PIXEL_UM = 0.2


@pytest.fixture(scope="module")
def made():
    dic, brightfield, truth = pair(3, shift=(13.0, -7.0), rotation_deg=0.8)
    return dic, brightfield, truth


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def colour_camera(dic: np.ndarray, noise: float = 8.0) -> np.ndarray:
    """The DIC as a colour camera takes it: a cast, noise in each channel, lateral colour."""
    rng = np.random.default_rng(0)
    rgb = np.dstack([np.roll(dic, 1, 1), dic, np.roll(dic, -1, 0)]) * np.array([0.9, 1.0, 0.8])
    return np.clip(rgb + rng.normal(0, noise, rgb.shape), 0, 255).astype(np.uint8)


def refused(dic: np.ndarray, brightfield: np.ndarray, said: str) -> None:
    found = register(dic, brightfield, pixel_size_um=PIXEL_UM)
    assert (found.status, found.matrix) == ("failed", None)
    assert said in found.reason


def test_swapped_images_are_refused_and_the_reason_says_so(made):
    dic, brightfield, _ = made
    refused(brightfield, dic, "swapped")


def test_swapped_images_are_refused_where_the_brightfield_is_grey_too(made):
    dic, brightfield, _ = made
    refused(grey(brightfield), dic, "swapped")


def test_a_stained_image_in_place_of_the_dic_is_refused(made):
    _, brightfield, _ = made
    refused(np.roll(brightfield, 5, 1), brightfield, "coloured")


@pytest.mark.parametrize("which", ["dic", "brightfield"])
@pytest.mark.parametrize("shift", [0, 9])
def test_one_picture_twice_is_refused(made, which, shift):
    image = made[0] if which == "dic" else grey(made[1])
    refused(np.roll(image, shift, (0, 1)), image, "")


def test_the_reason_for_one_picture_twice_is_that_it_is_the_same_picture(made):
    refused(made[0], made[0], "same picture")
    refused(grey(made[1]), made[1], "same picture")


def test_what_is_no_relief_of_the_brightfield_is_refused_by_its_ecc():
    assert "ECC" in no_relief(MIN_ECC - 0.01, 0.0)
    assert no_relief(MIN_ECC, 0.0) == ""


@pytest.mark.parametrize("strong", [{"absorption": 0.8}, {"noise": 0.1}, {"grey": True}, {"n": 30}])
def test_a_true_pair_that_is_hard_to_tell_is_aligned(strong):
    dic, brightfield, truth = pair(3, shift=(9.0, 6.0), **strong)
    found = register(dic, brightfield, pixel_size_um=PIXEL_UM)
    assert found.status == "ok", found.reason
    assert grid_error(found.matrix, truth, 640, 480) < 1.0


def test_an_overexposed_brightfield_is_aligned(made):
    dic, brightfield, truth = made
    white = np.clip(brightfield * 1.6, 0, 255).astype(np.uint8)
    assert grid_error(register(dic, white, pixel_size_um=PIXEL_UM).matrix, truth, 640, 480) < 0.5


def test_a_dic_of_a_colour_camera_is_aligned(made):
    dic, brightfield, truth = made
    for rgb in (np.repeat(dic[..., None], 3, 2), colour_camera(dic)):
        # The red channel lies a pixel off on purpose, and is three tenths of the luminance.
        assert grid_error(register(rgb, brightfield, pixel_size_um=PIXEL_UM).matrix, truth, 640, 480) < 0.4


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_brightfield_with_one_saturated_channel_is_not_blank(made, channel):
    dic, brightfield, truth = made
    saturated = brightfield.copy()
    saturated[..., channel] = 255
    assert grid_error(register(dic, saturated, pixel_size_um=PIXEL_UM).matrix, truth, 640, 480) < 0.2


def test_a_brightfield_of_one_plane_is_read_as_grey(made):
    dic, brightfield, truth = made
    plane = grey(brightfield)[..., None]
    found = register(dic[..., None], plane, pixel_size_um=PIXEL_UM)
    assert grid_error(found.matrix, truth, 640, 480) < 0.2
    assert registration.quality_picture(dic[..., None], plane, found).shape[2] == 3


def test_an_alignment_that_does_not_lead_back_is_refused(made, monkeypatch):
    dic, brightfield, _ = made
    monkeypatch.setattr("pipeline.registration_checks._round_trip", lambda *_: 1.2)
    found = register(dic, brightfield, pixel_size_um=PIXEL_UM)
    assert (found.status, found.matrix) == ("failed", None)
    assert "There and back" in found.reason
    assert found.forward_backward_px == pytest.approx(1.2)
