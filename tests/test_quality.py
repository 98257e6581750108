"""Acquisition quality: the figures move as focus, light and saturation do."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
import tifffile

from flows.work import find_cells
from pipeline.errors import BadInput
from pipeline.intake import read_case
from pipeline.quality import focus_quality
from pipeline.settings import Settings
from tests.case_folders import S, write_manifest
from tests.registration_fields import pair


@pytest.fixture(scope="module")
def images():
    dic, brightfield, _ = pair(2, n=300)
    return {"dic": dic, "brightfield": brightfield}


@pytest.mark.parametrize("modality", ["dic", "brightfield"])
def test_defocus_lowers_every_focus_figure(images, modality):
    sharp = focus_quality(images[modality], modality)
    soft = focus_quality(cv2.GaussianBlur(images[modality], (0, 0), 4), modality)
    assert soft.variance < sharp.variance
    assert soft.normalised_variance < sharp.normalised_variance
    assert soft.laplacian_variance < 0.5 * sharp.laplacian_variance


def test_a_dark_corner_shows_in_the_illumination(images):
    flat = images["brightfield"]
    h, w = flat.shape[:2]
    y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j]
    vignetted = (flat * (1 - 0.4 * (x * y) ** 2)[..., None]).astype(np.uint8)
    assert focus_quality(flat, "brightfield").illumination_ratio > 0.95
    assert focus_quality(vignetted, "brightfield").illumination_ratio < 0.8


def test_saturation_is_the_share_of_pixels_at_the_top(images):
    burnt = images["dic"].copy()
    burnt[:48] = 255
    assert focus_quality(images["dic"], "dic").saturation_pct == 0
    assert focus_quality(burnt, "dic").saturation_pct == pytest.approx(10.0, abs=0.1)


def test_twelve_bits_in_a_sixteen_bit_file_give_the_same_figures(images):
    eight = focus_quality(images["brightfield"], "brightfield")
    twelve = focus_quality((images["brightfield"].astype(np.uint16) * 16), "brightfield")
    assert twelve.variance == pytest.approx(eight.variance, rel=0.02)
    # Luminance is rounded to whole grey levels, which is noise of its own in 8 bits.
    assert twelve.laplacian_variance == pytest.approx(eight.laplacian_variance, rel=0.05)
    assert twelve.illumination_ratio == pytest.approx(eight.illumination_ratio, rel=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (40, 40, 3)])
@pytest.mark.parametrize("value", [0, 255])
def test_a_blank_or_tiny_image_has_finite_figures(shape, value):
    quality = focus_quality(np.full(shape, value, np.uint8), "brightfield")
    assert np.isfinite(list(quality.model_dump().values())).all()


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 4), np.uint8), np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8)]
)
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(BadInput, match="Quality is read from"):
        focus_quality(bad, "dic")


def test_a_whole_field_takes_a_fraction_of_a_second():
    field = np.random.default_rng(0).integers(0, 255, (1544, 2064, 3), dtype=np.uint8)
    began = time.process_time()
    focus_quality(field, "brightfield")
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize("modality", ["dic", "brightfield"])
def test_a_field_of_sixteen_bits_has_the_quality_of_its_eight_bit_view(tmp_path, images, modality):
    eight = images[modality]
    kind = {"photometric": "rgb"} if modality == "brightfield" else {}
    tifffile.imwrite(tmp_path / "8.tif", eight, **kind)
    tifffile.imwrite(tmp_path / "16.tif", eight.astype(np.uint16) * 257, **kind)
    stain = "MGG" if modality == "brightfield" else "unstained"
    write_manifest(tmp_path, *(f"s1,F{bits},{modality},{stain},{bits}.tif,0.1" for bits in (8, 16)))
    case = read_case(tmp_path, S)
    found = {
        image.bits: find_cells(str(tmp_path), "", "", image, None, Settings())["quality"]
        for image in case.images
    }
    assert found[16] == pytest.approx(found[8], rel=0.03)
    assert found[16]["saturation_pct"] == found[8]["saturation_pct"]


def test_fields_on_either_side_of_a_power_of_two_have_figures_that_compare(tmp_path, images):
    eight = images["brightfield"].astype(np.float32)
    for name, white in (("F1", 1000), ("F2", 1060), ("F3", 3900)):
        pixels = (eight * (white / eight.max())).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb")
    write_manifest(tmp_path, *(f"s1,F{n},brightfield,MGG,F{n}.tif,0.1" for n in (1, 2, 3)))
    first, second, _ = (
        find_cells(str(tmp_path), "", "", image, None, Settings())["quality"]
        for image in read_case(tmp_path, S).images
    )
    assert first["normalised_variance"] == pytest.approx(second["normalised_variance"], rel=0.1)
    assert first["laplacian_variance"] == pytest.approx(second["laplacian_variance"], rel=0.2)
    assert first["saturation_pct"] == second["saturation_pct"] == 0


def test_a_field_as_bright_as_a_shallower_camera_goes_is_not_saturated(images):
    eight = images["brightfield"].astype(np.uint16)
    assert focus_quality(np.minimum(eight * 5, 1023), "brightfield").saturation_pct > 1
    assert focus_quality(np.minimum(eight * 5, 1023), "brightfield", at_least_bits=12).saturation_pct == 0


def test_a_pixel_is_saturated_where_any_of_its_channels_is(images):
    red = np.minimum(images["brightfield"], 250)
    red[:48, :, 0] = 255
    assert focus_quality(red, "brightfield").saturation_pct == pytest.approx(10.0, abs=0.1)


def test_eight_bits_in_a_sixteen_bit_file_give_the_same_figures(images):
    for modality, image in images.items():
        assert focus_quality(image.astype(np.uint16), modality).model_dump() == pytest.approx(
            focus_quality(image, modality).model_dump(), rel=1e-3
        )
