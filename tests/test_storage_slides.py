"""Whole slides: physical scale, tissue, fields; on made-up pyramids, and on real files where they are."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from pipeline.errors import BadInput, UnreadableImage
from pipeline.intake import read_case, read_field
from pipeline.settings import IntakeSettings
from storage.slide_grid import SlideField, candidate_fields, field_grid, glass_colour, tissue_mask
from storage.slides import SlideReader, _pixel_size

GLASS = (242, 240, 243)
# The discs on these slides are no red cells, so fields are ranked by what is stained.
SMALL = IntakeSettings(
    field_width_px=300,
    field_height_px=200,
    slide_pixel_size_um=0.5,
    field_overlap_um=10,
    slide_field_choice="stained area",
)


def _slide(path: Path, *, mpp: float | None = 0.5, seed: int = 1, tissue: bool = True) -> np.ndarray:
    """An Aperio-like pyramid of 1200 x 900 px: stained discs on the left half of the glass."""
    rng = np.random.default_rng(seed)
    image = np.empty((900, 1200, 3), np.uint8)
    image[:] = GLASS
    if tissue:
        disc = (np.hypot(*np.mgrid[-15:15, -15:15]) < 15)[..., None]
        for _ in range(90):
            x, y = rng.integers(20, 580), rng.integers(20, 880)
            spot = image[y - 15 : y + 15, x - 15 : x + 15]
            spot[:] = np.where(disc, np.uint8((130, 70, 160)), spot)
    image = np.clip(image + rng.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)
    text = "Aperio Image Library v11.2.1\r\n1200x900 [0,0 1200x900] (240x240) Q=70"
    description = text + (f"|AppMag = 20|MPP = {mpp}" if mpp else "|AppMag = 20")
    options = {"photometric": "rgb", "tile": (240, 240), "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, description=description, **options)
        writer.write(image[::4, ::4][:200, :200], photometric="rgb", rowsperstrip=200, metadata=None)
        for step in (2, 4):
            reduced = (
                image.reshape(900 // step, step, 1200 // step, step, 3).mean(axis=(1, 3)).astype(np.uint8)
            )
            writer.write(reduced, description=text, **options)
    return image


@pytest.fixture
def slide(tmp_path: Path) -> tuple[Path, np.ndarray]:
    path = tmp_path / "a.svs"
    return path, _slide(path)


def test_a_region_at_the_slide_s_own_scale_is_its_pixels(slide: tuple[Path, np.ndarray]) -> None:
    path, image = slide
    with SlideReader(path) as reader:
        assert reader.pixel_size_um == 0.5
        found = reader.read_region_px(101, 53, 210, 140, 210, 140)
    np.testing.assert_array_equal(found, image[53:193, 101:311])


@pytest.mark.parametrize("step", [2, 4])
def test_a_region_at_the_scale_of_a_level_is_the_pixels_of_that_level(
    slide: tuple[Path, np.ndarray], step: int
) -> None:
    path, image = slide
    level = image.reshape(900 // step, step, 1200 // step, step, 3).mean(axis=(1, 3)).astype(np.uint8)
    with SlideReader(path) as reader:
        found = reader.read_region_px(20 * step, 10 * step, 60 * step, 40 * step, 60, 40)
    np.testing.assert_array_equal(found, level[10:50, 20:80])


def _edge_um(row: np.ndarray, pixel_um: float) -> float:
    """Where a step from dark to bright lies, in µm from the row's start, at sub-pixel precision."""
    values = row.astype(float)
    level = (values.min() + values.max()) / 2
    first = int(np.argmax(values > level))
    low, high = values[first - 1], values[first]
    return float((first - 1 + (level - low) / (high - low) + 0.5) * pixel_um)


@pytest.mark.parametrize("target_um", [0.5, 0.65, 1.0, 1.3, 2.0, 3.1])
def test_the_physical_scale_is_right_whatever_the_level(tmp_path: Path, target_um: float) -> None:
    path = tmp_path / "a.svs"
    image = np.full((900, 1200, 3), 20, np.uint8)
    image[:, 600:] = 230  # a step at 300 µm
    options = {"photometric": "rgb", "tile": (240, 240), "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, description="Aperio Image\r\n1200x900 (240x240)|AppMag = 20|MPP = 0.5", **options)
        writer.write(image[:100, :100], photometric="rgb", rowsperstrip=100, metadata=None)
        for step in (2, 4):
            writer.write(image[::step, ::step], description="Aperio Image\r\n", **options)
    with SlideReader(path) as reader:
        found = reader.read_region_um(100.5, 50, 400, 100, target_um)
    assert found.shape == (round(100 / target_um), round(400 / target_um), 3)
    # The region's corner is rounded to a whole level-0 pixel, half of which is 0.25 µm.
    assert _edge_um(found[found.shape[0] // 2, :, 0], target_um) == pytest.approx(
        199.5, abs=max(0.3, 0.15 * target_um)
    )


def test_a_long_slide_is_read_at_its_place_whatever_its_levels_are_rounded_to(tmp_path: Path) -> None:
    width, height, period = 40_013, 1_531, 256
    wave = (127 + 100 * np.sin(2 * np.pi * (np.arange(width) + 0.5) / period)).astype(np.uint8)
    path = tmp_path / "long.svs"
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 4, 16):
            # Rounded down, the levels' factors differ along both axes: 16.005 and 16.116.
            w, h = width // factor, height // factor
            level = np.zeros((h, w, 3), np.uint8)  # one wave along the slide, another one across it
            level[..., 0] = cv2.resize(wave[None], (w, 1), interpolation=cv2.INTER_AREA)
            level[..., 1] = cv2.resize(wave[:height, None], (1, h), interpolation=cv2.INTER_AREA)
            text = f"Aperio Image Library v1\r\n{w}x{h} (256x256)" + ("|MPP = 0.1" if factor == 1 else "")
            writer.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                description=text,
                metadata=None,
            )
    with SlideReader(path) as reader:

        def off(found: np.ndarray, first: int, scale: int) -> float:
            at = first + (np.arange(len(found)) + 0.5) * scale
            turns, expected = np.exp(-2j * np.pi * at / period), np.sin(2 * np.pi * at / period)
            ratio = ((found - 127.0) * turns).sum() / (expected * turns).sum()
            return float(np.angle(ratio) * period / 2 / np.pi)

        for x in (0, 20_001, 35_003):
            for scale in (1, 5, 20):
                n = 4096 // scale
                found = reader.read_region_px(x, 256, n * scale, 64 * scale, n, 64)
                assert abs(off(found[32, :, 0], x, scale)) < max(0.5, 0.1 * scale), (x, scale)
        found = reader.read_region_px(20_001, 200, 640, 1280, 32, 64)
        assert abs(off(found[:, 16, 1], 200, 20)) < 2
        ends = reader.thumbnail(2000)[0, :, 0]
    expected = cv2.resize(wave[None], (2000, 1), interpolation=cv2.INTER_AREA)[0]
    assert np.abs(ends.astype(int) - expected).mean() < 8


def test_beyond_the_slide_is_glass(slide: tuple[Path, np.ndarray]) -> None:
    with SlideReader(slide[0]) as reader:
        found = reader.read_region_px(1100, 800, 200, 200, 200, 200)
    assert (found[110:, 110:] == 255).all()


def _fields(
    reader: SlideReader, height_px: int, target_um: float, least: float = 0.05
) -> tuple[SlideField, ...]:
    grid = field_grid(
        reader,
        field_width_px=300,
        field_height_px=height_px,
        target_pixel_size_um=target_um,
        overlap_um=10.0,
    )
    return candidate_fields(reader, grid, reader.overview(), least)


def test_background_is_skipped(slide: tuple[Path, np.ndarray]) -> None:
    with SlideReader(slide[0]) as reader:
        fields = _fields(reader, 200, 0.5)
    assert len(fields) >= 8
    assert max(f.x_px for f in fields) < 600
    assert all(f.tissue_fraction >= 0.05 for f in fields)
    assert all(f.x_px + f.width_px <= 1200 and f.y_px + f.height_px <= 900 for f in fields)
    # Neighbours overlap, so that a cell on a border is whole in one of them.
    columns = sorted({f.x_px for f in fields})
    assert all(b - a <= 300 - 20 for a, b in pairwise(columns))


def test_a_field_with_just_the_least_tissue_is_looked_at_and_one_with_less_is_not(
    slide: tuple[Path, np.ndarray],
) -> None:
    with SlideReader(slide[0]) as reader:
        every = _fields(reader, 200, 0.5, 0.0)
        least = sorted(f.tissue_fraction for f in every)[len(every) * 3 // 4]
        some = _fields(reader, 200, 0.5, least)
    assert 0 < len(some) < len(every)
    assert list(some) == [f for f in every if f.tissue_fraction >= least]


def test_what_the_scanner_did_not_image_is_not_taken_for_glass() -> None:
    overview = np.full((100, 100, 3), (225, 228, 231), np.uint8)
    overview[:60] = 255
    overview[90:, 90:] = (130, 70, 160)
    assert glass_colour(overview) == pytest.approx((225, 228, 231))
    overview[:] = 255
    assert glass_colour(overview) == pytest.approx((255, 255, 255))  # where there is nothing else


def test_an_empty_slide_has_no_tissue_and_no_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    _slide(path, tissue=False)
    with SlideReader(path) as reader:
        assert tissue_mask(reader.overview(), 8.0).mean() < 0.01
        assert _fields(reader, 200, 0.5) == ()


def test_a_slide_stands_in_for_fields(tmp_path: Path) -> None:
    folder = tmp_path / "W1"
    folder.mkdir()
    image = _slide(folder / "patient name.svs")
    case = read_case(folder, SMALL)
    assert case.mode == "brightfield"
    assert case.images[0].field == "R0001"
    assert case.n_fields_declared == len(case.images)
    assert {i.slide for i in case.images} == {"slide-1"}  # the file's name is not spread
    assert [p.code for p in case.problems] == ["STAIN_ASSUMED"]
    for one in case.images[:3]:
        assert one.region is not None
        pixels = read_field(folder, one, SMALL)
        assert pixels.shape == (one.height_px, one.width_px, 3)
        y, x = one.region.y_px, one.region.x_px
        np.testing.assert_array_equal(
            pixels, image[y : y + one.region.height_px, x : x + one.region.width_px]
        )
        assert (one.x_um, one.y_um) == (x * 0.5, y * 0.5)


def test_a_slide_in_a_manifest_lies_beside_fields_and_its_damage_costs_only_itself(tmp_path: Path) -> None:
    folder = tmp_path / "W2"
    folder.mkdir()
    image = _slide(folder / "a.svs")
    tifffile.imwrite(folder / "f.tif", image[:200, :300], photometric="rgb")
    (folder / "bad.svs").write_bytes((folder / "a.svs").read_bytes()[:900])
    (folder / "manifest.csv").write_text(
        "slide,field,modality,stain,file,pixel_size_um\n"
        "one,,brightfield,MGG,a.svs,\n"
        "two,F1,brightfield,MGG,f.tif,0.5\n"
        "three,,brightfield,MGG,bad.svs,0.5\n"
    )
    case = read_case(folder, SMALL)
    assert {i.slide for i in case.images} == {"one", "two"}
    assert [(p.code, p.slide) for p in case.problems] == [("UNREADABLE", "three")]
    assert "bad.svs" in case.problems[0].message
    assert str(folder) not in case.problems[0].message
    assert case.n_fields_declared == len(case.images) + 1


def test_a_slide_without_pixel_size_is_refused_until_one_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "W3"
    folder.mkdir()
    _slide(folder / "a.svs", mpp=None)
    with pytest.raises(BadInput, match=r"a\.svs: neither the manifest nor the file states the pixel size"):
        read_case(folder, SMALL)
    case = read_case(folder, SMALL, pixel_size_um=0.5)
    assert case.images[0].pixel_size_source == "command line"


def test_a_slide_coarser_than_asked_for_is_not_magnified(slide: tuple[Path, np.ndarray]) -> None:
    with SlideReader(slide[0]) as reader:
        fields = _fields(reader, 200, 0.25)
    assert {(f.pixel_size_um, f.width_px, f.out_width_px) for f in fields} == {(0.5, 300, 300)}


@pytest.mark.real
def test_real_slides_are_read_at_their_scale_or_refused(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "wsi"
    for name, size, given_um in [
        ("CMU-1-Small-Region.svs", 0.499, None),
        ("tcga-cr-7395-01a-01-ts1.svs", 0.25, 0.25),
    ]:
        case_dir = tmp_path / name.split(".")[0]
        case_dir.mkdir()
        shutil.copy(folder / name, case_dir / name)
        if given_um is not None:
            with pytest.raises(BadInput, match="states the pixel size"):
                read_case(case_dir, IntakeSettings())
        case = read_case(case_dir, IntakeSettings(), pixel_size_um=given_um)
        assert 1 <= len(case.images) <= 60
        assert {i.pixel_size_um for i in case.images} == {size}
        image = case.images[0]
        assert read_field(case_dir, image, IntakeSettings()).shape == (image.height_px, image.width_px, 3)


@pytest.mark.real
@pytest.mark.parametrize(
    "name", ["broken.svs", "openslide-fixtures/unreadable.svs", "openslide-fixtures/unopenable.tiff"]
)
def test_real_broken_slides_are_refused_with_their_name(real_data: Path, tmp_path: Path, name: str) -> None:
    case_dir = tmp_path / "C"
    case_dir.mkdir()
    target = case_dir / Path(name).name
    shutil.copy(real_data / "wsi" / name, target)
    (case_dir / "manifest.csv").write_text(
        f"slide,field,modality,stain,file,pixel_size_um\ns,F1,brightfield,MGG,{target.name},0.5\n"
    )
    with pytest.raises(BadInput, match=target.name.replace(".", r"\.")):
        read_case(case_dir, IntakeSettings())


def test_what_is_no_slide_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"no slide")
    with pytest.raises(UnreadableImage, match=r"a\.svs: the whole-slide file is damaged.*; copy it again"):
        SlideReader(path)
    with pytest.raises(UnreadableImage, match="does not exist"):
        SlideReader(tmp_path / "none.svs")


def test_the_pixel_size_of_a_slide_is_the_mean_of_both_its_axes() -> None:
    given = {"openslide.mpp-x": "0.2500", "openslide.mpp-y": "0.2504"}
    assert _pixel_size(given) == (pytest.approx(0.2502), ())
    assert _pixel_size({"openslide.mpp-x": "0.25"}) == (None, ())
