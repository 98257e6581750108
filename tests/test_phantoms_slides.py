"""Whole-slide phantoms are what OpenSlide reads, with known content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest

from phantoms.slides import simulate_slide, write_pyramid
from pipeline.errors import BadInput


def blocks(height: int = 700, width: int = 1100) -> np.ndarray:
    """Every 50 px square has its own colour, so that a misplaced tile shows."""
    y, x = np.mgrid[0:height, 0:width] // 50
    return np.stack([x * 9 % 256, y * 13 % 256, (x + y) * 5 % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("vendor", ["aperio", "generic"])
def test_openslide_reads_every_pixel_and_the_pixel_size(tmp_path: Path, vendor: Any) -> None:
    image = blocks()
    path = write_pyramid(tmp_path / "s.tif", image, 0.23, 2, vendor=vendor)
    with openslide.OpenSlide(str(path)) as slide:
        assert slide.dimensions == (1100, 700)
        assert slide.level_dimensions == ((1100, 700), (275, 175))
        assert abs(float(slide.properties["openslide.mpp-x"]) - 0.23) < 1e-4
        read = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
        small = np.asarray(slide.read_region((0, 0), 1, (275, 175)).convert("RGB"))
    assert np.array_equal(read, image)
    expected = image[: 175 * 4, : 275 * 4].reshape(175, 4, 275, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - expected).max() <= 1


@pytest.mark.parametrize("vendor", ["aperio", "generic"])
def test_a_slide_can_be_without_a_pixel_size(tmp_path: Path, vendor: Any) -> None:
    path = write_pyramid(tmp_path / "s.tif", blocks(), None, 2, vendor=vendor)
    with openslide.OpenSlide(str(path)) as slide:
        assert "openslide.mpp-x" not in slide.properties


def test_a_slide_phantom_has_its_cells_where_its_truth_says(tmp_path: Path) -> None:
    truth = simulate_slide(tmp_path / "p.svs", seed=2, width_px=1200, height_px=500, n_leukocytes=5, levels=2)
    assert len(truth["leukocytes_xyxy"]) == 5
    with openslide.OpenSlide(str(tmp_path / "p.svs")) as slide:
        image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).astype(float)
    x0, y0, x1, y1 = truth["regions"]["glass"]
    glass = image[y0:y1, x0 + 60 : x1, 1]
    x0, y0, x1, y1 = truth["regions"]["thick"]
    thick = image[y0 + 70 : y1 - 70, x0 + 70 : x1 - 70, 1]
    m0, _, m1, _ = truth["regions"]["monolayer"]
    mono = image[70:-70, m0 + 70 : m1 - 70, 1]
    assert glass.mean() > mono.mean() > thick.mean()
    for a, b, c, d in np.asarray(truth["leukocytes_xyxy"]).astype(int):
        assert m0 <= a < c <= m1
        assert image[b:d, a:c, 1].min() < 0.6 * np.median(glass)


def test_too_many_levels_and_wrong_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="levels"):
        write_pyramid(tmp_path / "s.tif", blocks(100, 100), 0.25, 9)
    with pytest.raises(BadInput, match="uint8"):
        write_pyramid(tmp_path / "s.tif", blocks(100, 100)[..., 0], 0.25, 1)


def test_a_slide_of_repeated_tiles_is_small_and_reads_as_its_pattern_everywhere(tmp_path: Path) -> None:
    from phantoms.slides import write_repeated_pyramid

    pattern = np.repeat(np.repeat(blocks(2048, 1024)[::16, ::16], 16, 0), 16, 1)[:1024, :1024]
    pattern = np.tile(pattern, (1024 // pattern.shape[0] + 1, 1024 // pattern.shape[1] + 1, 1))[:1024, :1024]
    path = write_repeated_pyramid(tmp_path / "r.svs", pattern, 20_000, 0.25, levels=2, quality=95)
    assert path.stat().st_size < 3_000_000
    with openslide.OpenSlide(str(path)) as slide:
        assert slide.level_dimensions == ((20_000, 20_000), (5_000, 5_000))
        assert slide.properties["openslide.mpp-x"] == "0.25"
        for x, y in ((0, 0), (1024 * 17, 1024 * 3), (1024 * 18 + 100, 1024 * 18 + 60)):
            read = np.asarray(slide.read_region((x, y), 0, (300, 200)).convert("RGB")).astype(int)
            i, j = x % 1024, y % 1024
            assert np.abs(read - pattern[j : j + 200, i : i + 300]).mean() < 4
        small = np.asarray(slide.read_region((1024 * 5, 1024 * 7), 1, (256, 256)).convert("RGB")).astype(int)
        mean = pattern.reshape(256, 4, 256, 4, 3).mean(axis=(1, 3))
        assert np.abs(small - mean).mean() < 4
    with pytest.raises(BadInput, match="multiples of 1024"):
        write_repeated_pyramid(tmp_path / "q.svs", pattern[:700], 20_000, 0.25, levels=2)
