"""What an image is to people and models: eight bits of any camera, its white, colour and grey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from storage.images import (
    camera_bits,
    exposure,
    image_info,
    is_grey,
    read_grey,
    read_rgb,
    to_uint8,
    varies_in_colour,
)

RNG = np.random.default_rng(7)
SMOOTH = np.add.outer(np.arange(70), np.arange(90)).astype(np.uint8)  # (70, 90)


@pytest.mark.parametrize(("bits", "white"), [(12, 3900), (14, 15500), (16, 61000), (8, 240)])
def test_brightfield_of_any_camera_depth_looks_alike_in_8_bit(bits: int, white: int) -> None:
    image = np.full((80, 80, 3), white, np.uint16)
    image[20:40, 20:40] = (white // 2, white // 4, white // 2)
    found = to_uint8(image, modality="brightfield")
    assert found.dtype == np.uint8
    assert 225 <= found[0, 0, 0] <= 250
    assert abs(int(found[30, 30, 0]) - int(found[0, 0, 0]) // 2) <= 2
    assert abs(int(found[30, 30, 1]) - int(found[0, 0, 0]) // 4) <= 2


def test_a_dim_16_bit_image_does_not_read_as_black() -> None:
    dim = np.full((60, 60, 3), 20_000, np.uint16)
    dim[10:20, 10:20] = 6_000
    found = to_uint8(dim, modality="brightfield")
    assert found[0, 0, 0] == 240
    assert found[15, 15, 0] == 72
    dic = RNG.normal(30_000, 400, (60, 60)).clip(0, 65535).astype(np.uint16)
    stretched = to_uint8(dic, modality="dic")
    assert stretched.min() == 0
    assert stretched.max() == 255
    assert abs(float(stretched.mean()) - 128) < 12
    assert (to_uint8(np.full((9, 9), 700, np.uint16), modality="dic") == 128).all()


@pytest.mark.parametrize(
    ("options", "bits"), [({"SignificantBits": 12}, 12), ({"SignificantBits": 16}, None)]
)
def test_the_bits_that_a_camera_fills_are_read_where_the_file_states_them(
    tmp_path: Path, options: dict[str, object], bits: int | None
) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, SMOOTH.astype(np.uint16) * 16, photometric="minisblack", metadata={"axes": "YX", **options}
    )
    assert image_info(path).camera_bits == bits


def test_the_bits_that_are_packed_are_those_that_the_camera_fills(tmp_path: Path) -> None:
    path = tmp_path / "packed.tif"
    tifffile.imwrite(path, SMOOTH.astype(np.uint16) * 16, bitspersample=12)
    assert image_info(path).camera_bits == 12


def test_a_depth_that_is_known_holds_until_the_values_pass_it() -> None:
    image = np.full((80, 80), 900, np.uint16)
    assert [camera_bits(image), camera_bits(image, 12), camera_bits(image * 20, 12)] == [10, 12, 16]
    bright = np.full((80, 80, 3), 15_000, np.uint16)
    assert to_uint8(bright, at_least_bits=16)[0, 0, 0] == 240  # under half of the range, not near its end
    assert to_uint8(bright)[0, 0, 0] == 233


def test_colour_that_varies_is_told_from_a_cast_and_from_noise() -> None:
    relief = RNG.normal(120, 20, (256, 320, 1))
    camera = np.clip(relief * [0.9, 1.0, 0.8] + RNG.normal(0, 8, (256, 320, 3)), 0, 255).astype(np.uint8)
    stained = np.full((256, 320, 3), 225, np.uint8)
    stained[40:90, 40:90] = (150, 80, 170)  # one leukocyte
    for image, varies in (
        (camera, False),
        (camera[..., 0], False),
        (camera[..., :1], False),
        (stained, True),
    ):
        assert varies_in_colour(image) is varies
        assert varies_in_colour(image.astype(np.uint16) * 200) is varies


def test_grey_is_told_from_weak_colour() -> None:
    grey = np.repeat(RNG.integers(0, 255, (90, 90, 1), dtype=np.uint8), 3, axis=2)
    noisy = np.clip(grey.astype(int) + RNG.integers(-1, 2, grey.shape), 0, 255).astype(np.uint8)
    pale = np.full((90, 90, 3), 230, np.uint8)
    pale[40:50, 40:50] = (180, 140, 190)  # one stained cell on glass
    assert is_grey(SMOOTH)
    assert is_grey(grey)
    assert is_grey(noisy)
    assert is_grey(grey.astype(np.uint16) * 16)
    assert not is_grey(pale)
    assert not is_grey(pale.astype(np.uint16) * 16)


def test_one_exposure_looks_alike_whether_its_file_has_8_or_16_bits() -> None:
    dim = RNG.integers(10, 50, (60, 60, 3)).astype(np.uint8)
    deep = to_uint8(dim.astype(np.uint16) * 257, at_least_bits=16)
    np.testing.assert_array_equal(to_uint8(dim), deep)
    assert np.percentile(deep, 99.9) == 240
    assert to_uint8(dim, modality="dic") is dim
    bright = np.full((60, 60, 3), 150, np.uint8)
    assert to_uint8(bright) is bright
    assert exposure(dim) == pytest.approx(49 / 255)


def test_the_images_of_a_dim_case_keep_what_they_differ_by_unless_one_is_dim_beside_them() -> None:
    paler, darker, lost = (np.full((40, 40, 3), level, np.uint8) for level in (100, 60, 30))
    of_case = {"brightest": exposure(paler)}
    assert [int(to_uint8(i, **of_case)[0, 0, 0]) for i in (paler, darker, lost)] == [240, 144, 240]


def test_a_frame_of_a_shut_shutter_is_not_stretched() -> None:
    black = RNG.integers(0, 12, (60, 60, 3)).astype(np.uint8)
    np.testing.assert_array_equal(to_uint8(black), black)


def test_a_dim_mask_keeps_its_values_where_a_dim_picture_is_brightened(tmp_path: Path) -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[10:20, 10:20] = 100
    for dtype in (np.uint8, np.uint16):
        tifffile.imwrite(tmp_path / "mask.tif", labels.astype(dtype), photometric="minisblack")
        np.testing.assert_array_equal(read_grey(tmp_path / "mask.tif"), labels)
        assert read_rgb(tmp_path / "mask.tif").max() == 240
