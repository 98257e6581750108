"""What registration promises: sub-pixel on true pairs, a typed refusal on everything else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadInput
from pipeline.registration import (
    inverse_transform_box,
    local_residuals,
    quality_picture,
    register,
    transform_box,
)
from pipeline.settings import RegistrationSettings
from pipeline.types import Registration
from tests.registration_fields import grid_error, pair

PIXEL_UM = 0.2
W, H = 640, 480


@pytest.fixture(scope="module")
def true_pair():
    return pair(3, shift=(23.3, -14.6), rotation_deg=1.3, scale=1.004)


@pytest.fixture(scope="module")
def aligned(true_pair) -> Registration:
    dic, brightfield, _ = true_pair
    return register(dic, brightfield, RegistrationSettings(), pixel_size_um=PIXEL_UM)


def test_a_true_pair_is_aligned_within_a_tenth_of_a_pixel_with_its_evidence(true_pair, aligned):
    assert aligned.status == "ok"
    assert aligned.reason == ""
    assert grid_error(aligned.matrix, true_pair[2], W, H) < 0.1
    assert aligned.residual_px < 0.3
    assert aligned.residual_px <= aligned.residual_p95_px
    assert aligned.residual_um == pytest.approx(aligned.residual_px * PIXEL_UM)
    assert aligned.forward_backward_px < 0.1
    assert aligned.p_false_accept < 1e-3
    assert aligned.ecc > 0.4
    assert aligned.seconds > 0


@pytest.mark.parametrize(
    "made",
    [
        {"shift": (-40.0, 31.0), "rotation_deg": -2.8, "scale": 0.991, "shear_deg": 200.0},
        {"shift": (60.0, 10.0), "rotation_deg": 3.0, "scale": 1.01, "shear_deg": 310.0, "bits": 16},
        {"shift": (5.0, 5.0), "shear_deg": 90.0, "grey": True},
        {"shift": (10.0, -20.0), "rotation_deg": 1.0, "n": 60},
        {"shift": (15.0, 4.0), "noise": 0.05, "shear_deg": 130.0},
        {"shift": (150.0, -110.0), "rotation_deg": -1.0, "shear_deg": 250.0},
    ],
    ids=["opposite shear", "16 bit at the range's edge", "grey brightfield", "sparse", "noisy", "far off"],
)
def test_any_shear_depth_and_density_of_cells_is_aligned(made):
    dic, brightfield, truth = pair(5, **made)
    found = register(dic, brightfield, pixel_size_um=PIXEL_UM)
    assert found.status == "ok"
    assert grid_error(found.matrix, truth, W, H) < 0.25


def test_the_shear_direction_is_where_growing_path_is_bright(aligned):
    assert aligned.shear_angle_deg == pytest.approx(40.0, abs=3.0)


def test_a_small_field_is_aligned_too():
    dic, brightfield, truth = pair(3, 256, 256, shift=(12.0, -9.0), rotation_deg=1.0, n=150)
    found = register(dic, brightfield, pixel_size_um=PIXEL_UM)
    assert grid_error(found.matrix, truth, 256, 256) < 0.25


@pytest.mark.parametrize("dic_scale", [0.7, 1.6])
def test_a_dic_camera_with_other_pixels_becomes_part_of_the_matrix(dic_scale):
    dic, brightfield, truth = pair(3, dic_scale=dic_scale, shift=(20.0, 10.0), rotation_deg=-0.7)
    found = register(dic, brightfield, pixel_size_um=PIXEL_UM, dic_pixel_size_um=PIXEL_UM / dic_scale)
    assert grid_error(found.matrix, truth, W, H) < 0.25 * dic_scale


def test_images_of_different_sizes_are_aligned():
    dic, brightfield, truth = pair(3, dic_shape=(420, 560), shift=(-30.0, -20.0))
    assert grid_error(register(dic, brightfield, pixel_size_um=PIXEL_UM).matrix, truth, W, H) < 0.1


def test_sixteen_bits_read_as_eight_do(true_pair, aligned):
    dic, brightfield, truth = pair(3, shift=(23.3, -14.6), rotation_deg=1.3, scale=1.004, bits=16)
    assert dic.dtype == np.uint16
    assert dic.max() < 4096, "twelve bits in a 16-bit file are the case that reads as black"
    found = register(dic, brightfield, pixel_size_um=PIXEL_UM)
    assert grid_error(found.matrix, truth, W, H) < 0.1
    assert grid_error(found.matrix, np.asarray(aligned.matrix), W, H) < 0.1


@pytest.mark.parametrize("other", [4, 5, 6, 7])
def test_a_pair_of_different_fields_is_refused_without_a_matrix(true_pair, other):
    _, brightfield, _ = pair(other)
    found = register(true_pair[0], brightfield, pixel_size_um=PIXEL_UM)
    assert found.status == "failed"
    assert found.matrix is None
    assert "do not agree" in found.reason
    assert found.p_false_accept > 1e-3
    assert json.loads(found.model_dump_json())["matrix"] is None


def test_a_mirrored_field_is_refused(true_pair):
    dic, brightfield, _ = true_pair
    found = register(np.ascontiguousarray(dic[:, ::-1]), brightfield, pixel_size_um=PIXEL_UM)
    assert found.status == "failed"


def test_a_shift_beyond_the_settings_is_refused():
    dic, brightfield, truth = pair(3, shift=(40.0, -60.0))
    wide, tight = RegistrationSettings(max_shift_px=64), RegistrationSettings(max_shift_px=30)
    assert grid_error(register(dic, brightfield, wide, pixel_size_um=PIXEL_UM).matrix, truth, W, H) < 0.1
    assert register(dic, brightfield, tight, pixel_size_um=PIXEL_UM).status == "failed"


def test_a_rotation_beyond_the_settings_is_refused(true_pair):
    dic, brightfield, _ = pair(3, rotation_deg=2.5)
    tight = RegistrationSettings(max_rotation_deg=0.5)
    assert register(dic, brightfield, tight, pixel_size_um=PIXEL_UM).status == "failed"


@pytest.mark.parametrize("which", ["dic", "brightfield", "both"])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_image_is_a_failed_alignment_with_a_reason(true_pair, which, value):
    dic, brightfield, _ = true_pair
    dic = np.full_like(dic, value) if which != "brightfield" else dic
    brightfield = np.full_like(brightfield, value) if which != "dic" else brightfield
    found = register(dic, brightfield, pixel_size_um=PIXEL_UM)
    assert (found.status, found.matrix) == ("failed", None)
    assert "blank" in found.reason


def test_pixel_sizes_that_cannot_belong_together_are_a_failed_alignment(true_pair):
    dic, brightfield, _ = true_pair
    found = register(dic, brightfield, pixel_size_um=0.1, dic_pixel_size_um=100.0)
    assert found.status == "failed"
    assert "100" in found.reason


def test_noise_is_no_alignment():
    rng = np.random.default_rng(0)
    dic = rng.integers(0, 255, (H, W), dtype=np.uint8)
    brightfield = rng.integers(0, 255, (H, W, 3), dtype=np.uint8)
    assert register(dic, brightfield, pixel_size_um=PIXEL_UM).status == "failed"


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (64, 64), (127, 640)])
def test_a_tiny_image_is_a_failed_alignment_with_a_reason(shape):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, shape, dtype=np.uint8)
    found = register(image, image, pixel_size_um=PIXEL_UM)
    assert found.status == "failed"
    assert "too small" in found.reason


@pytest.mark.parametrize(
    ("dic", "brightfield", "pixel_size_um", "said"),
    [
        (np.zeros((200, 200), np.float32), np.zeros((200, 200, 3), np.uint8), 0.1, "DIC image is float32"),
        (
            np.zeros((200, 200), np.uint8),
            np.zeros((200, 200, 4), np.uint8),
            0.1,
            "brightfield image has the shape",
        ),
        (np.zeros((0, 200), np.uint8), np.zeros((200, 200, 3), np.uint8), 0.1, "DIC image has the shape"),
        (np.zeros((200, 200), np.uint8), None, 0.1, "brightfield image is NoneType"),
        (np.zeros((200, 200), np.uint8), np.zeros((200, 200), np.uint8), 0.0, "pixel size"),
        (np.zeros((200, 200), np.uint8), np.zeros((200, 200), np.uint8), float("nan"), "pixel size"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(dic, brightfield, pixel_size_um, said):
    with pytest.raises(BadInput, match=said):
        register(dic, brightfield, pixel_size_um=pixel_size_um)


def test_the_same_inputs_give_the_same_bits(true_pair, aligned):
    dic, brightfield, _ = true_pair
    again = register(dic.copy(), brightfield.copy(), pixel_size_um=PIXEL_UM)
    same = {"seconds": 0.0}
    assert again.model_copy(update=same) == aligned.model_copy(update=same)


def test_the_inputs_are_left_as_they_were(true_pair):
    dic, brightfield, _ = true_pair
    before = dic.copy(), brightfield.copy()
    register(dic, brightfield, pixel_size_um=PIXEL_UM)
    assert np.array_equal(dic, before[0])
    assert np.array_equal(brightfield, before[1])


def test_a_stage_position_narrows_the_search_and_a_wrong_one_does_no_harm(true_pair):
    dic, brightfield, truth = true_pair
    for expected in (tuple(truth[:, 2]), (-250.0, 200.0)):
        found = register(dic, brightfield, pixel_size_um=PIXEL_UM, expected_shift_px=expected)
        assert grid_error(found.matrix, truth, W, H) < 0.1


def test_a_box_travels_to_the_dic_and_back(aligned):
    box = (100.0, 80.0, 160.0, 150.0)
    there = transform_box(box, aligned)
    back = inverse_transform_box(there, aligned)
    matrix = np.asarray(aligned.matrix)
    centre = matrix @ [130 - 0.5, 115 - 0.5, 1]
    assert np.allclose([(there[0] + there[2]) / 2 - 0.5, (there[1] + there[3]) / 2 - 0.5], centre)
    assert back[0] <= box[0] + 1e-6
    assert back[1] <= box[1] + 1e-6
    assert back[2] >= box[2] - 1e-6
    assert back[3] >= box[3] - 1e-6
    assert np.allclose(back, box, atol=6.0), "a box only grows by what the rotation turns outward"


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-50, 2000), st.floats(-50, 2000), st.floats(0.5, 400), st.floats(0.5, 400), st.integers(1, 9)
)
def test_a_pure_shift_and_scale_moves_boxes_exactly(x, y, w, h, zoom):
    moved = Registration(
        status="ok", matrix=((zoom, 0.0, 0.5 * zoom - 0.5 + 7), (0.0, zoom, 0.5 * zoom - 0.5))
    )
    there = transform_box((x, y, x + w, y + h), moved)
    assert np.allclose(there, (zoom * x + 7, zoom * y, zoom * (x + w) + 7, zoom * (y + h)))
    assert np.allclose(inverse_transform_box(there, moved), (x, y, x + w, y + h))


def test_no_box_is_carried_by_a_failed_registration():
    with pytest.raises(BadInput, match="failed"):
        transform_box((0, 0, 1, 1), Registration(status="failed", reason="blank"))


def test_the_quality_picture_is_small_and_shows_a_misalignment(true_pair, aligned):
    dic, brightfield, _ = true_pair
    picture = quality_picture(dic, brightfield, aligned)
    assert picture.dtype == np.uint8
    assert picture.shape[1] <= 1000
    assert picture.shape[2] == 3
    wrong = aligned.model_copy(update={"matrix": tuple((a, b, c + 3.0) for a, b, c in aligned.matrix)})
    _, right_shifts = local_residuals(dic, brightfield, aligned)
    _, wrong_shifts = local_residuals(dic, brightfield, wrong)
    assert np.median(np.hypot(*right_shifts.T)) < 0.3
    assert np.median(wrong_shifts[:, 0]) == pytest.approx(-3.0, abs=0.3)
    assert not np.array_equal(quality_picture(dic, brightfield, wrong), picture)


def test_the_quality_picture_draws_no_edge_along_the_frame_of_the_dic():
    from pipeline.registration_picture import _edges

    rng = np.random.default_rng(0)
    dic = np.repeat(rng.integers(118, 139, (300, 400, 1), dtype=np.uint8), 3, axis=2)
    cover = np.zeros((300, 400), bool)
    cover[:280, :340] = True
    drawn = _edges(np.full_like(dic, 240), np.where(cover[..., None], dic, 0).astype(np.uint8), cover)
    edges = (drawn == (200, 0, 160)).all(-1)
    assert not edges[~cover].any()
    assert edges[100:250, 300:335].mean() == pytest.approx(edges[100:250, 100:135].mean(), abs=0.04)


def test_the_quality_picture_of_a_failed_pair_shows_both_images(true_pair):
    dic, brightfield, _ = true_pair
    failed = Registration(status="failed", reason="The two images do not agree.")
    picture = quality_picture(dic, brightfield.astype(np.uint16) * 16, failed)
    assert picture.shape[1] == 1000
    assert picture.dtype == np.uint8


@pytest.mark.real
def test_a_field_of_a_real_case_is_aligned_within_its_truth(real_data):
    import tifffile

    folder = real_data / "cases" / "S002"
    truth = json.loads((folder / "truth.json").read_text())
    dic = tifffile.imread(folder / "F004_DIC.tif")
    brightfield = tifffile.imread(folder / "F004_BF.tif")
    found = register(dic, brightfield, pixel_size_um=truth["pixel_size_um"])
    matrix = np.asarray(truth["fields"]["F004"]["brightfield_to_dic"])
    assert found.status == "ok"
    assert grid_error(found.matrix, matrix, 2064, 1544) < 0.3
    other = tifffile.imread(folder / "F001_DIC.tif")
    assert register(other, brightfield, pixel_size_um=0.1).status == "failed"
