"""The fields of slides as they come from scanners: of real size, unevenly lit, partly damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from phantoms.slides import write_pyramid, write_repeated_pyramid
from phantoms.smears import _block, simulate_smear
from phantoms.stains import DOMAINS, develop
from pipeline.errors import UnreadableImage
from pipeline.intake import declare, read_case, read_field, refuse_unusable_slides
from pipeline.settings import IntakeSettings
from pipeline.slide_fields import choose_fields
from storage.slides import SlideReader

Array = np.ndarray[Any, np.dtype[Any]]


def _parts(domain: str, side: int) -> list[Array]:
    """A thick part, a monolayer, and glass: (side, side, 3) uint8 at 0.5 µm."""
    style = DOMAINS[domain]
    rng = np.random.default_rng(3)
    kinds: Any = ("thick", "monolayer", "glass")
    blocks = [_block(kind, side // 2, side // 2, 0.5, 0, style, 0.0, rng)[0] for kind in kinds]
    return [np.tile(block, (2, 2, 1)) for block in blocks]


@pytest.mark.parametrize("domain", sorted(DOMAINS)[:3])
def test_the_monolayer_of_a_slide_of_40_mm_is_found_beside_its_thick_part_in_uneven_light(
    tmp_path: Path, domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thick, layer, glass = _parts(domain, 1024)
    parts: list[tuple[float, Array]] = [(0.3, thick)]
    # The light falls off by 20 % from the thick part's end to the slide's.
    for kind, share, lights in ((layer, 0.4, (1.0, 0.95, 0.9)), (glass, 0.3, (0.87, 0.83, 0.8))):
        parts += [(share / 3, (kind * light).astype(np.uint8)) for light in lights]
    path = write_repeated_pyramid(tmp_path / "s.svs", parts, 80_000, 0.5, height_px=40_000, tile_px=64)
    assert path.stat().st_size < 10_000_000
    monkeypatch.setattr("pipeline.slide_fields.MAX_PROBES", 60)
    with SlideReader(path) as reader:
        chosen = choose_fields(reader, IntakeSettings(max_slide_fields=12))
        middles = np.array([(f.x_px + f.width_px / 2) / reader.width_px for f in chosen.fields])
        seen = np.array([(c.field.x_px + c.field.width_px / 2) / reader.width_px for c in chosen.candidates])
    assert ((seen > 0.31) & (seen < 0.69)).mean() > 0.5
    assert not (seen > 0.72).any()
    assert chosen.monolayer
    assert len(middles) == 12
    assert ((middles > 0.3) & (middles < 0.7)).all()


def test_an_empty_slide_in_uneven_light_is_empty(tmp_path: Path) -> None:
    style = DOMAINS["B"]
    rng = np.random.default_rng(1)
    for number, (w, h) in enumerate(((800, 2600), (1600, 1200))):
        glass = develop(np.zeros((h, w, 3)), 0.25, style, rng).astype(float)
        light = 1 - 0.2 * np.mgrid[:h, :w][number] / (h, w)[number]
        image = np.clip(glass * light[..., None] + rng.normal(0, 3, glass.shape), 0, 255).astype(np.uint8)
        folder = tmp_path / f"E{number}"
        folder.mkdir()
        write_pyramid(folder / "s.svs", image, 0.25, 2)
        with SlideReader(folder / "s.svs") as reader:
            chosen = choose_fields(reader, IntakeSettings())
        assert chosen.fields == ()
        assert not any(c.score for c in chosen.candidates)


SMALL = IntakeSettings(
    field_width_px=220, field_height_px=160, slide_pixel_size_um=0.5, field_overlap_um=10, max_slide_fields=60
)


def _smear(path: Path) -> Path:
    simulate_smear(
        path, seed=4, plan=[["monolayer", "glass"]], block_width_px=900, block_height_px=700, n_leukocytes=1
    )
    return path


def _spoil(path: Path, page: int, places: list[tuple[int, int]]) -> None:
    """Overwrite the tiles of a page that hold the given pixels."""
    with tifffile.TiffFile(path) as file:
        one = file.pages[page]
        across = -(-one.imagewidth // 256)
        at = [y // 256 * across + x // 256 for x, y in places]
        spans = [(one.dataoffsets[k], one.databytecounts[k]) for k in at]
    with path.open("r+b") as stream:
        for offset, count in spans:
            stream.seek(offset)
            stream.write(b"\xff" * count)


def test_a_damaged_tile_costs_its_fields_and_neither_the_slide_nor_the_case(tmp_path: Path) -> None:
    folder = tmp_path / "D1"
    folder.mkdir()
    path = _smear(folder / "s.svs")
    whole = read_case(folder, SMALL)
    _spoil(path, 0, [(900, 350), (500, 300)])  # the slide's middle, which is looked at first
    _spoil(path, 1, [(10, 10)])
    refuse_unusable_slides(folder, declare(folder, SMALL), SMALL)
    by_area = read_case(folder, SMALL.model_copy(update={"slide_field_choice": "stained area"}))
    assert "DAMAGED_SLIDE" in {p.code for p in by_area.problems}
    assert by_area.images
    case = read_case(folder, SMALL)
    (problem,) = [p for p in case.problems if p.code == "DAMAGED_SLIDE"]
    assert not problem.fatal_for_field
    assert "s.svs" in problem.message
    assert 0.4 * len(whole.images) < len(case.images) < len(whole.images)
    read = 0
    for image in case.images:
        try:
            read += read_field(folder, image, SMALL).mean() > 0
        except UnreadableImage:  # damaged beside the piece that was looked at
            continue
    assert read > 0.4 * len(whole.images)


def test_a_slide_of_which_nothing_can_be_decoded_is_refused(tmp_path: Path) -> None:
    path = _smear(tmp_path / "s.svs")
    _spoil(path, 0, [(x, y) for y in range(0, 700, 256) for x in range(0, 1800, 256)])
    with SlideReader(path) as reader:
        with pytest.raises(UnreadableImage, match=r"s\.svs: the whole-slide file is damaged"):
            reader.check()
        with pytest.raises(UnreadableImage, match=r"s\.svs: the whole-slide file is damaged"):
            choose_fields(reader, SMALL)


def test_a_damaged_tile_of_a_reduced_level_is_seen_on_the_finer_one(tmp_path: Path) -> None:
    path = _smear(tmp_path / "s.svs")
    with SlideReader(path) as reader:
        before = reader.overview().astype(int)
    _spoil(path, 1, [(10, 10)])
    with SlideReader(path) as reader:
        after = reader.overview().astype(int)
    assert after.shape == before.shape
    assert np.abs(after - before).mean() < 2
