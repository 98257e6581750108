"""The optical model and the known transforms."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantoms.computed_dic import compute_dic, path_from_brightfield
from phantoms.geometry import (
    deform,
    invert,
    random_similarity,
    similarity,
    transform_box,
    transform_points,
    warp,
)
from phantoms.optics import (
    DicOptics,
    random_optics,
    render_dic,
    wider_optics,
)

QUIET = {
    "shot_electrons": 1e9,
    "read_noise": 0.0,
    "gradient": 0.0,
    "vignette": 0.0,
    "absorption_residue": 0.0,
}


def discs(height: int = 240, width: int = 320, seed: int = 0, dark: bool = True) -> np.ndarray:
    """A stained field in the plainest form: pink discs, a few dark ones, on white."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), (250, 240, 225), dtype=np.uint8)
    for i in range(max(3, height * width // 6000)):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        colour = (70, 40, 110) if dark and i % 5 == 0 else (205, 165, 165)
        cv2.circle(image, centre, int(rng.integers(20, 36)), colour, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(image, (0, 0), 1.5)


@pytest.mark.parametrize("angle", [0.0, 37.0, 130.0, 225.0, 301.0])
@pytest.mark.parametrize("law", ["linear", "sin2"])
def test_a_computed_dic_lies_on_its_source_without_a_shift(angle: float, law: str) -> None:
    optics = DicOptics(
        shear_angle_deg=angle, shear_um=0.6, law=law, bias_rad=np.pi / 2, phase_strength_rad=0.3, **QUIET
    )
    rng = np.random.default_rng(1)
    path, _ = path_from_brightfield(discs(), 0.1, optics, rng)
    dic = render_dic(path, 0.1, optics, rng, bits=16).astype(np.float64)
    a = np.deg2rad(angle)
    gy, gx = np.gradient(path.astype(np.float64))
    slope = np.cos(a) * gx + np.sin(a) * gy  # bright where the path grows along the shear
    smooth = [cv2.GaussianBlur(v, (0, 0), 4)[20:-20, 20:-20] for v in (slope, dic - dic.mean())]
    # a picture moved by a small (dx, dy) is the picture less its gradient along (dx, dy)
    dy, dx = np.gradient(smooth[0])
    design = np.stack([smooth[0].ravel(), dx.ravel(), dy.ravel()], axis=1)
    gain, moved_x, moved_y = np.linalg.lstsq(design, smooth[1].ravel(), rcond=None)[0]
    assert gain > 0
    assert np.hypot(moved_x, moved_y) / gain < 0.1  # an uncentred difference would shift by 3 px
    assert np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1] > 0.97


def test_glass_stays_at_the_background_level() -> None:
    glass = np.full((120, 90, 3), 240, dtype=np.uint8)
    optics = DicOptics(background_level=0.4, **QUIET)
    out = compute_dic(glass, 0.1, optics, np.random.default_rng(0), red_cell_density=0.2)
    assert abs(float(out.mean()) - 0.4 * 255) < 1.0
    assert float(out.std()) < 1.0


def test_the_intensity_follows_the_sine_square_law() -> None:
    # a ramp has the same path difference everywhere: slope times shear
    ramp = np.tile(np.linspace(0, 2, 400, dtype=np.float32), (60, 1))
    optics = DicOptics(shear_angle_deg=0, shear_um=0.5, bias_rad=1.1, phase_strength_rad=8.0, **QUIET)
    out = render_dic(ramp, 0.1, optics, np.random.default_rng(0), bits=16) / 65535
    delta = 8.0 * (2 / 399) * 5
    expected = optics.background_level * np.sin((1.1 + delta) / 2) ** 2 / np.sin(0.55) ** 2
    assert abs(float(np.median(out[:, 50:350])) / expected - 1) < 0.01


def test_noise_is_as_large_as_stated() -> None:
    flat = np.zeros((300, 300), dtype=np.float32)
    quiet = {k: v for k, v in QUIET.items() if k not in ("shot_electrons", "read_noise")}
    optics = DicOptics(background_level=0.5, shot_electrons=2000, read_noise=0.01, **quiet)
    out = render_dic(flat, 0.1, optics, np.random.default_rng(0), bits=16) / 65535
    assert abs(float(out.std()) / np.sqrt(0.5 / 2000 + 0.01**2) - 1) < 0.03


def test_the_same_seed_gives_the_same_image_and_another_seed_another() -> None:
    image = discs()
    draws = [
        compute_dic(image, 0.1, random_optics(np.random.default_rng(s)), np.random.default_rng(s))
        for s in (1, 1, 2)
    ]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_random_optics_covers_directions_and_contrasts() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_optics(rng) for _ in range(200)]
    angles = np.histogram([o.shear_angle_deg for o in drawn], bins=8, range=(0, 360))[0]
    assert angles.min() >= 8
    assert {o.law for o in drawn} == {"sin2", "linear"}
    image = discs()
    spread = [float(compute_dic(image, 0.1, o, rng).std()) for o in drawn[:30]]
    assert max(spread) > 3 * min(spread)
    assert min(spread) > 2


def test_wider_optics_reach_beyond_what_is_measured_on() -> None:
    rng = np.random.default_rng(0)
    drawn = [wider_optics(rng) for _ in range(200)]
    mixes = np.array([o.density_mix for o in drawn])
    assert np.allclose(mixes.sum(axis=1), 1)
    assert (mixes[:, 0] > 0.5).any()
    assert (mixes[:, 2] > 0.5).any()
    assert max(o.nuclear_ceiling for o in drawn) > 6 > 2.2  # random_optics ends at 2.2
    assert min(o.red_cell_path for o in drawn) < 0.75
    assert max(o.red_cell_path for o in drawn) > 1.3


def test_path_follows_the_channel_that_the_mix_names() -> None:
    image = np.full((200, 200, 3), (250, 240, 225), dtype=np.uint8)
    cv2.circle(image, (60, 60), 30, (205, 165, 165), -1)  # a red cell, which all channels show
    cv2.circle(image, (140, 140), 30, (250, 240, 110), -1)  # a yellow grain, which blue light alone shows

    def rise(optics: DicOptics) -> tuple[float, float]:
        path, _ = path_from_brightfield(image, 0.1, optics, np.random.default_rng(0), red_cell_density=0.163)
        return float(path[60, 60]), float(path[140, 140])

    green, blue = rise(DicOptics()), rise(DicOptics(density_mix=(0.0, 0.0, 1.0)))
    assert green[0] > 0.8
    assert blue[0] > 0.8  # a red cell is the unit in whatever channel
    assert green[1] < 0.05
    assert blue[1] > 1.2
    faint = rise(DicOptics(red_cell_path=0.6))
    assert faint[0] < 0.7 * green[0]


def test_a_nucleus_can_be_made_no_thicker_than_a_red_cell() -> None:
    image = np.full((200, 200, 3), (250, 240, 225), dtype=np.uint8)
    cv2.circle(image, (60, 60), 30, (205, 165, 165), -1)
    cv2.circle(image, (140, 140), 30, (70, 40, 110), -1)
    heights = []
    for drop in (0.0, 0.8):
        flat = {"dome_height": 0.0, "chromatin_relief": 0.0, "cytoplasm_texture": 0.0}
        optics = DicOptics(nuclear_drop=drop, nuclear_compression=0.2, **flat)
        path, _ = path_from_brightfield(image, 0.1, optics, np.random.default_rng(0), red_cell_density=0.163)
        heights.append((float(path[60, 60]), float(path[140, 140])))
    (red, nucleus), (red_still, lowered) = heights
    assert nucleus > 1.3 * red
    assert red_still == pytest.approx(red)
    assert lowered < red


@settings(max_examples=25, deadline=None)
@given(
    st.integers(9, 131),
    st.integers(9, 131),
    st.sampled_from([0.05, 0.1, 0.25, 0.5]),
    st.sampled_from([8, 16]),
    st.integers(0, 99),
)
def test_any_size_and_pixel_size_gives_an_image_of_the_same_size(
    height: int, width: int, pixel_size_um: float, bits: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    draw = wider_optics if seed % 2 else random_optics
    optics = draw(np.random.default_rng(seed))
    out = compute_dic(image, pixel_size_um, optics, np.random.default_rng(seed), bits=bits)
    assert out.shape == (height, width)
    assert out.dtype == (np.uint8 if bits == 8 else np.uint16)


def test_sixteen_bits_are_the_same_image_on_a_finer_scale() -> None:
    image = discs()
    low, high = (compute_dic(image, 0.1, DicOptics(), np.random.default_rng(3), bits=b) for b in (8, 16))
    assert np.abs(high / 257.0 - low).max() <= 1.01


def test_a_wrong_kind_of_image_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        compute_dic(np.zeros((5, 5), np.uint8), 0.1, DicOptics(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="bits"):
        render_dic(np.zeros((5, 5), np.float32), 0.1, DicOptics(), np.random.default_rng(0), bits=12)


def test_warp_takes_a_brightfield_point_to_where_the_matrix_says() -> None:
    matrix = random_similarity(np.random.default_rng(4), 300, 200, max_shift_px=20)
    spots = np.array([[60.0, 50.0], [240.0, 60.0], [150.0, 150.0]])
    for spot in spots:
        image = np.zeros((200, 300), dtype=np.float32)
        image[int(spot[1]), int(spot[0])] = 1
        moved = warp(cv2.GaussianBlur(image, (0, 0), 3), matrix, (220, 310), fill=0)
        y, x = np.mgrid[0:220, 0:310]
        found = np.array([(moved * x).sum(), (moved * y).sum()]) / moved.sum()
        assert np.abs(found - transform_points(matrix, spot[None])[0]).max() < 0.06


def test_rotation_turns_x_towards_y_about_the_centre() -> None:
    matrix = similarity((0, 0), 90, 1.0, (10, 20))
    assert np.allclose(transform_points(matrix, np.array([[10, 20], [15, 20]])), [[10, 20], [10, 25]])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_a_matrix_and_its_inverse_cancel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = random_similarity(rng, 2064, 1544)
    points = rng.uniform(0, 2000, (5, 2))
    assert np.allclose(transform_points(invert(matrix), transform_points(matrix, points)), points, atol=1e-8)
    x0, y0, x1, y1 = transform_box(matrix, (10, 10, 20, 30))
    assert x0 < x1
    assert y0 < y1


def test_a_deformation_has_the_stated_size_and_no_mean_shift() -> None:
    image = discs(200, 260)
    out, displacement = deform(image, 1.5, 60, np.random.default_rng(0))
    assert out.shape == image.shape
    assert abs(float(np.sqrt((displacement**2).sum(-1).mean())) - 1.5) < 0.05
    assert np.abs(displacement.mean(axis=(0, 1))).max() < 1e-3
    # deformed(p) = image(p + displacement(p))
    y, x = 100, 130
    dx, dy = displacement[y, x]
    expected = cv2.remap(image, np.float32([[x + dx]]), np.float32([[y + dy]]), cv2.INTER_CUBIC)[0, 0]
    assert np.abs(out[y, x].astype(int) - expected.astype(int)).max() <= 2


def test_moving_the_specimen_moves_the_cells_and_not_the_light() -> None:
    image = discs()
    optics = DicOptics(shot_electrons=1e9, read_noise=0, gradient=0.2, vignette=0)
    here, there = (
        compute_dic(image, 0.1, optics, np.random.default_rng(0), matrix=similarity((dx, 0))).astype(float)
        for dx in (0, 17)
    )
    assert np.corrcoef(here[:, :280].ravel(), there[:, 17:297].ravel())[0, 1] > 0.9
    assert abs(here[:, :40].mean() - there[:, :40].mean()) < 8


@pytest.mark.real
def test_a_real_field_becomes_a_dic_that_shows_its_cells(real_data) -> None:  # type: ignore[no-untyped-def]
    import tifffile

    image = tifffile.imread(real_data / "cases" / "S002" / "F001_BF.tif")[:600, :800]
    rng = np.random.default_rng(0)
    dic = compute_dic(image, 0.1, DicOptics(), rng).astype(float)
    green = image[..., 1].astype(float)
    glass, cells = green > np.percentile(green, 85), green < np.percentile(green, 40)
    detail = np.abs(dic - cv2.GaussianBlur(dic, (0, 0), 15))
    assert detail[cells].mean() > 3 * detail[glass].mean()
