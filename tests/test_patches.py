"""Patches: the cell in the middle, at the stated scale, whatever the field's edge does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.patches import crop_patches, patch_centres


def _dots(
    points: list[tuple[float, float]], shape: tuple[int, int] = (400, 500), sigma: float = 4.0
) -> np.ndarray:
    """A dark field with a bright Gaussian dot at each (x, y), in corner coordinates."""
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    image = np.full(shape, 20.0)
    for x, y in points:
        image += 200 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _centroid(patch: np.ndarray) -> tuple[float, float]:
    weight = np.clip(patch.astype(float) - 40, 0, None)
    ys, xs = np.mgrid[: patch.shape[0], : patch.shape[1]] + 0.5
    return float((xs * weight).sum() / weight.sum()), float((ys * weight).sum() / weight.sum())


@pytest.mark.parametrize("size", [63, 64, 256])
@pytest.mark.parametrize(
    ("pixel_um", "target_um", "tolerance"),
    [(0.1, 0.1, 0.51), (0.1, 0.07, 0.1), (0.25, 0.1, 0.1), (0.1, 0.25, 0.1)],
)
def test_a_bright_dot_sits_in_the_middle_of_its_patch(
    size: int, pixel_um: float, target_um: float, tolerance: float
) -> None:
    points = [(200.3, 180.8), (251.0, 199.5)]
    for point in points:
        patch = crop_patches(
            _dots([point], sigma=5),
            [point],
            size_px=size,
            pixel_size_um=pixel_um,
            target_pixel_size_um=target_um,
        )[0, ..., 0]
        x, y = _centroid(patch)
        assert abs(x - size / 2) <= tolerance
        assert abs(y - size / 2) <= tolerance


@pytest.mark.parametrize("target_um", [0.05, 0.2, 0.33])
def test_a_patch_has_the_physical_scale_it_states(target_um: float) -> None:
    image = _dots([(200, 200), (260, 200)], sigma=6)  # 6 µm apart
    size = 2 * round(8.0 / target_um)  # 16 µm: both dots
    patch = crop_patches(image, [(230, 200)], size_px=size, pixel_size_um=0.1, target_pixel_size_um=target_um)
    half = size // 2
    distance = _centroid(patch[0, :, half:, 0])[0] + half - _centroid(patch[0, :, :half, 0])[0]
    assert distance * target_um == pytest.approx(6.0, abs=0.1)


def test_at_the_field_s_own_scale_pixels_are_copied_not_blurred() -> None:
    image = np.random.default_rng(0).integers(0, 255, (100, 120, 3), dtype=np.uint8)
    patch = crop_patches(image, [(60, 50)], size_px=32, pixel_size_um=0.1005, target_pixel_size_um=0.1)
    np.testing.assert_array_equal(patch[0], image[34:66, 44:76])


def test_at_the_edge_the_cell_stays_in_the_middle_and_the_policy_fills_the_rest() -> None:
    image = _dots([(3.0, 2.0)])
    mirrored, filled = (
        crop_patches(image, [(3, 2)], size_px=64, pixel_size_um=0.1, target_pixel_size_um=0.1, fill=fill)[
            0, ..., 0
        ]
        for fill in ("reflect", "background")
    )
    for patch in (mirrored, filled):
        np.testing.assert_array_equal(patch[30:, 29:], image[:34, :35])
    np.testing.assert_array_equal(mirrored[29], mirrored[30])  # about the edge: the edge row twice
    np.testing.assert_array_equal(mirrored[28], mirrored[31])
    assert (filled[:30] == np.median(image)).all()


def test_a_patch_is_the_same_whatever_else_is_cut() -> None:
    image = np.random.default_rng(1).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    centres = [(10.2, 80.7), (45.0, 45.0), (88.0, 3.3)]
    kwargs = {"size_px": 40, "pixel_size_um": 0.13, "target_pixel_size_um": 0.1}
    together = crop_patches(image, centres, **kwargs)
    for centre, patch in zip(centres, together, strict=True):
        np.testing.assert_array_equal(crop_patches(image, [centre], **kwargs)[0], patch)


def test_making_smaller_does_not_alias() -> None:
    stripes = np.zeros((300, 300), np.uint8)
    stripes[:, ::2] = 255
    patch = crop_patches(stripes, [(150, 150)], size_px=64, pixel_size_um=0.1, target_pixel_size_um=0.3)
    assert abs(float(patch.mean()) - 127.5) < 3
    assert patch.std() < 12


def test_no_cells_give_no_patches_and_nonsense_is_refused() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    kwargs = {"size_px": 16, "pixel_size_um": 0.1, "target_pixel_size_um": 0.1}
    assert crop_patches(image, [], **kwargs).shape == (0, 16, 16, 3)
    with pytest.raises(TypeError):
        crop_patches(image.astype(np.float32), [(1, 1)], **kwargs)
    with pytest.raises(ValueError, match="not a number"):
        crop_patches(image, [(float("nan"), 1)], **kwargs)
    with pytest.raises(ValueError, match="must be positive"):
        crop_patches(image, [(1, 1)], **{**kwargs, "pixel_size_um": 0.0})
    np.testing.assert_array_equal(patch_centres([(0, 0, 10, 4)]), [[5, 2]])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 30), width=st.integers(1, 30), channels=st.sampled_from([0, 1, 3]),
    size=st.integers(1, 50), scale=st.sampled_from([0.1, 0.1004, 0.05, 0.37]),
    x=st.floats(-40, 70), y=st.floats(-40, 70), fill=st.sampled_from(["reflect", "background"]),
)  # fmt: skip
def test_any_field_and_any_centre_give_a_patch_of_its_own_values(
    height: int, width: int, channels: int, size: int, scale: float, x: float, y: float, fill: str
) -> None:
    shape = (height, width, channels) if channels else (height, width)
    image = np.full(shape, 77, np.uint8)
    patch = crop_patches(
        image,
        [(x, y)],
        size_px=size,
        pixel_size_um=scale,
        target_pixel_size_um=0.1,
        fill=fill,  # type: ignore[arg-type]
    )
    assert patch.shape == (1, size, size, channels or 1)
    assert (patch == 77).all()
