"""Kinds of slides: what a file is taken for, what it states, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from phantoms.slides import write_pyramid, write_repeated_pyramid
from phantoms.smears import simulate_smear
from pipeline.errors import BadInput
from pipeline.intake import declare, read_case, refuse_unusable_slides
from pipeline.settings import FieldPosition, IntakeSettings
from pipeline.slide_fields import Candidate, Chosen
from pipeline.slide_picture import draw_choice
from storage.slides import SlideField, SlideReader, is_slide

Array = np.ndarray[Any, np.dtype[Any]]
SETTINGS = IntakeSettings(field_width_px=400, field_height_px=300, slide_pixel_size_um=0.5)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Array:
    path = tmp_path_factory.mktemp("kinds") / "s.svs"
    simulate_smear(
        path, seed=4, plan=[["monolayer"]], block_width_px=900, block_height_px=700, n_leukocytes=2
    )
    return np.asarray(tifffile.imread(path))


def _tiff(path: Path, image: Array, *, levels: int = 2, **more: Any) -> Path:
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for i in range(levels):
            first = more if i == 0 else {"subfiletype": 1}
            writer.write(image[:: 4**i, :: 4**i].copy(), **{**options, **first})
    return path


def _case(folder: Path, um: str = "") -> Path:
    (folder / "manifest.csv").write_text(
        f"slide,field,modality,stain,file,pixel_size_um\nS,,brightfield,MGG,s.tif,{um}\n"
    )
    return folder


def _as_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.slides.MIN_PYRAMID_PX", 1000)  # so that a small file is one


def test_a_pyramid_of_more_than_eight_fields_is_a_slide_and_a_camera_s_field_is_none(tmp_path: Path) -> None:
    pattern = np.full((1024, 1024, 3), 230, np.uint8)
    path = write_repeated_pyramid(tmp_path / "s.tif", pattern, 6000, 0.25, levels=2)
    path.write_bytes(path.read_bytes().replace(b"Aperio Image", b"Another Scan"))
    assert is_slide(path, max_pixels=400_000_000)
    assert declare(tmp_path, IntakeSettings()).sources[0].kind == "slide"  # without manifest, too
    flat = write_repeated_pyramid(tmp_path / "flat.tif", pattern, 6000, 0.25, levels=1)
    flat.write_bytes(flat.read_bytes().replace(b"Aperio Image", b"Another Scan"))
    assert not is_slide(flat, max_pixels=400_000_000)
    small = write_pyramid(tmp_path / "small.tif", pattern, 0.25, 2, vendor="generic")
    assert not is_slide(small, max_pixels=400_000_000)


def test_the_pixel_size_of_ome_xml_is_that_of_the_slide(
    tmp_path: Path, image: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tifffile.TiffWriter(tmp_path / "s.tif", ome=True) as writer:
        sizes = {f"PhysicalSize{a}{k}": v for a in "XY" for k, v in (("", 0.5), ("Unit", "µm"))}
        options: Any = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib"}
        writer.write(image, subifds=1, metadata={"axes": "YXS", **sizes}, **options)
        writer.write(image[::4, ::4].copy(), subfiletype=1, **options)
    with SlideReader(tmp_path / "s.tif") as reader:
        assert reader.file_pixel_size_um == 0.5
    settings = SETTINGS.model_copy(update={"max_image_pixels": 1000})
    found = read_case(_case(tmp_path), settings).images[0]
    assert (found.pixel_size_um, found.pixel_size_source) == (0.5, "file")
    assert found.region is not None


def test_pixels_of_a_slide_that_are_not_square_are_called_so(
    tmp_path: Path, image: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_slides(monkeypatch)
    _tiff(tmp_path / "s.tif", image, resolution=(20000, 18000), resolutionunit="CENTIMETER")
    with pytest.raises(BadInput, match=r"s\.tif: its pixels are 0\.5 x 0\.5556 µm, not square"):
        refuse_unusable_slides(tmp_path, declare(_case(tmp_path), SETTINGS), SETTINGS)
    case = read_case(tmp_path, SETTINGS, pixel_size_um=0.5)
    assert ["not square" in p.message for p in case.problems] == [True]
    assert case.problems[0].code == "FILE_NOTE"


@pytest.mark.parametrize(
    ("what", "um", "match"),
    [
        ("12 bits", "0.5", "holds 10- to 14-bit data in 16 bits"),
        ("grey", "0.5", "is declared as MGG brightfield but carries no colour"),
        ("small", "0.5", "has only 40 x 40 pixels"),
        ("coarse", "1.5", "at 1.5 µm a pixel the slide shows no nucleus"),
    ],
)
def test_a_slide_that_cannot_be_counted_is_refused_in_one_sentence(
    tmp_path: Path, image: Array, monkeypatch: pytest.MonkeyPatch, what: str, um: str, match: str
) -> None:
    _as_slides(monkeypatch)
    if what == "12 bits":
        image = image.astype(np.uint16) * 16
    elif what == "grey":
        image = np.repeat(image[..., 1:2], 3, axis=2)
    elif what == "small":
        image = image[:40, :40]
    _tiff(tmp_path / "s.tif", image)
    with pytest.raises(BadInput, match=rf"s\.tif:? {match}"):
        read_case(_case(tmp_path, um), SETTINGS)


def test_a_slide_of_full_16_bits_is_read(
    tmp_path: Path, image: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_slides(monkeypatch)
    _tiff(tmp_path / "s.tif", image.astype(np.uint16) * 257)
    assert read_case(_case(tmp_path, "0.5"), SETTINGS).images


def test_a_field_named_at_the_rim_is_moved_inwards_and_whole(
    tmp_path: Path, image: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_slides(monkeypatch)
    _tiff(tmp_path / "s.tif", image)
    named = (FieldPosition(x_px=899, y_px=699), FieldPosition(x_px=100, y_px=50))
    case = read_case(_case(tmp_path, "0.5"), SETTINGS.model_copy(update={"slide_fields": named}))
    assert [(i.region.x_px, i.region.y_px) for i in case.images if i.region] == [(100, 50), (500, 400)]
    assert {(i.width_px, i.height_px) for i in case.images} == {(400, 300)}


def test_frames_of_small_fields_leave_the_slide_to_be_seen() -> None:
    fields = [SlideField(x, y, 1200, 900, 1200, 900, 0.25, 1.0) for x in (1000, 2200) for y in (1000, 1900)]
    candidates = tuple(Candidate(f, 0.1, None, 0.5) for f in fields)
    overview = np.full((500, 1000, 3), 240, np.uint8)
    picture = draw_choice(Chosen(tuple(fields), candidates, overview, "monolayer", True), 100_000, 50_000)
    shown = (picture[10:28, 10:34] != (255, 150, 0)).any(axis=-1) & picture[10:28, 10:34].any(axis=-1)
    assert shown.mean() > 0.35  # fields of 12 x 9 px
