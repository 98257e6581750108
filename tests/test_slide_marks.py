"""A whole slide that is gone, replaced or named twice while its case is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import work
from flows.execute import execute
from flows.failures import Interrupted
from flows.runs import open_run
from phantoms.slides import write_pyramid
from pipeline.errors import InputChanged, UnreadableImage
from pipeline.intake import declare, inspect_source, read_case, read_field
from pipeline.settings import FieldPosition, IntakeSettings
from storage.fingerprint import fingerprint
from storage.slides import SlideReader
from tests.faults import models

VALUES: dict[str, Any] = {
    "field_width_px": 300,
    "field_height_px": 240,
    "slide_pixel_size_um": 0.5,
    "field_overlap_um": 10,
    "slide_field_choice": "stained area",
}
SMALL = IntakeSettings(**VALUES)
HEAD = "slide,field,modality,stain,file\n"


def draw(path: Path, seed: int = 1) -> Path:
    """A slide of 620 x 500 px, full of violet specks on glass."""
    rng = np.random.default_rng(seed)
    image = rng.integers(236, 244, (500, 620, 3), np.uint8)
    y, x = np.mgrid[:500, :620]
    for row, column in rng.uniform((0, 0), (500, 620), (220, 2)):
        image[np.hypot(y - row, x - column) < 13] = (130, 60, 140)
    return write_pyramid(path, image, 0.5, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "W-1").mkdir()
    draw(tmp_path / "W-1" / "s.svs")
    return tmp_path / "W-1"


class Here:
    """Workers in this process; an error is the item's, as it is on a worker."""

    def map(self, function: Any, calls: Any, **_: Any) -> Any:
        for key, args in calls.items():
            try:
                yield key, function(*args), None
            except Exception as error:
                yield key, None, error


def run_case(folder: Path, **how: Any) -> Any:
    settings = {**models.SETTINGS, "intake": VALUES}
    run = open_run(folder, str(folder.parent / "store"), settings, Here(), **how)  # type: ignore[arg-type]
    with run.store.writing(run.case_id):
        run.ledger.begin(str(folder))
        try:
            return execute(run)
        finally:
            run.end()


def test_a_slide_that_was_gone_for_a_moment_leaves_no_verdict_on_its_fields(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = work.find_cells
    away = folder.parent / "away.svs"

    def without_slide(*args: Any) -> Any:
        shutil.move(folder / "s.svs", away)
        try:
            return find(*args)
        finally:
            shutil.move(away, folder / "s.svs")

    with models.registered():
        monkeypatch.setattr(work, "find_cells", without_slide)
        with pytest.raises(Interrupted, match=r"s\.svs cannot be read any more"):
            run_case(folder)
        monkeypatch.setattr(work, "find_cells", find)
        result = run_case(folder).result
    assert [p["code"] for p in result["problems"]] == ["STAIN_ASSUMED"]
    assert result["differential"]["n_detected"] > 0


def test_a_slide_that_is_gone_within_a_reading_is_read_again_and_not_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = read_case(folder, SMALL)
    whole = read_field(folder, case.images[0], SMALL)
    opened = SlideReader.__init__
    times = 0

    def gone_once(self: SlideReader, path: Path, **how: Any) -> None:
        nonlocal times
        times += 1
        opened(self, folder / "none.svs" if times == 1 else path, **how)

    monkeypatch.setattr(SlideReader, "__init__", gone_once)
    np.testing.assert_array_equal(read_field(folder, case.images[0], SMALL), whole)
    assert times == 2


@pytest.mark.parametrize("how", ["replaced", "in place", "while it is read"])
def test_a_slide_that_was_replaced_during_a_run_is_refused_and_never_a_mixture(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    case = read_case(folder, SMALL)
    path, other = folder / "s.svs", draw(folder.parent / "other.svs", seed=2)
    read_field(folder, case.images[0], SMALL)
    if how == "replaced":
        os.utime(other, ns=(0, path.stat().st_mtime_ns))
        os.replace(other, path)
    elif how == "in place":
        path.write_bytes(other.read_bytes())
    else:
        read = SlideReader.read_region_px

        def replaced(self: SlideReader, *args: int) -> np.ndarray:
            pixels = read(self, *args)
            os.replace(other, path)
            return pixels

        monkeypatch.setattr(SlideReader, "read_region_px", replaced)
    with pytest.raises(InputChanged, match=r"s\.svs was changed while the case was read; run the case again"):
        read_field(folder, case.images[0], SMALL)


def test_a_slide_copied_elsewhere_is_the_same_slide(folder: Path) -> None:
    case = read_case(folder, SMALL)
    before = read_field(folder, case.images[0], SMALL)
    copy = folder.parent / "copy" / "W-1"
    shutil.copytree(folder, copy, copy_function=shutil.copy)
    again = read_case(copy, SMALL)
    assert again.images[0].as_seen != case.images[0].as_seen
    assert fingerprint(again) == fingerprint(case)
    # A worker that sees other times and inodes than intake did goes by the hash.
    np.testing.assert_array_equal(read_field(copy, case.images[0], SMALL), before)
    assert "as_seen" not in case.images[0].model_dump()


def test_a_slide_that_cannot_be_decoded_is_judged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = read_case(folder, SMALL)

    def torn(self: SlideReader, *args: int) -> np.ndarray:
        raise UnreadableImage("s.svs: the whole-slide file is damaged")

    monkeypatch.setattr(SlideReader, "read_region_px", torn)
    with pytest.raises(UnreadableImage, match="damaged") as caught:
        read_field(folder, case.images[0], SMALL)
    assert not isinstance(caught.value, InputChanged)


def test_a_disk_that_fails_under_a_slide_is_no_verdict_on_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import openslide

    case = read_case(folder, SMALL)

    def failing(path: str) -> None:
        raise OSError(errno.EIO, "of the machine")

    monkeypatch.setattr(openslide, "OpenSlide", failing)
    source = declare(folder, SMALL).sources[0]
    for read in (
        lambda: read_field(folder, case.images[0], SMALL),
        lambda: inspect_source(folder, source, SMALL),
    ):
        with pytest.raises(OSError, match="of the machine") as caught:
            read()
        assert caught.value.errno == errno.EIO


def test_a_slide_that_changes_while_intake_looks_at_it_is_no_verdict(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = declare(folder, SMALL).sources[0]

    def torn(self: SlideReader, *args: int) -> np.ndarray:
        (folder / "s.svs").unlink()
        raise UnreadableImage("s.svs: the whole-slide file is damaged")

    monkeypatch.setattr(SlideReader, "thumbnail", torn)
    with pytest.raises(InputChanged):
        inspect_source(folder, source, SMALL)


def test_a_slide_named_twice_is_counted_once(folder: Path) -> None:
    row = ",,brightfield,MGG,s.svs\n"
    (folder / "manifest.csv").write_text(f"{HEAD}slide-1{row}slide-2{row}")
    case = read_case(folder, SMALL)
    assert {i.slide for i in case.images} == {"slide-1"}
    assert [(p.code, p.slide, p.file) for p in case.problems] == [("DUPLICATE_IMAGE", "slide-2", "s.svs")]
    assert "s.svs (slide-2, brightfield MGG) has the same contents as s.svs (slide-1" in (
        case.problems[0].message
    )
    assert case.n_fields_declared == len(case.images) > 1
    assert [c.slide for c in case.slide_choices] == ["slide-1"]
    (folder / "manifest.csv").write_text(f"{HEAD}one{row}one,,brightfield,Perls,s.svs\n")
    assert {i.stain for i in read_case(folder, SMALL).images} == {"MGG"}


def test_a_slide_without_a_named_field_is_not_read_where_others_have_one(folder: Path) -> None:
    draw(folder / "b.svs", seed=2)
    (folder / "manifest.csv").write_text(
        f"{HEAD}slide-1,,brightfield,MGG,s.svs\nslide-2,,brightfield,MGG,b.svs\n"
    )
    by_line = SMALL.model_copy(update={"slide_fields": (FieldPosition(slide="slide-1", x_px=9, y_px=9),)})
    cases = [read_case(folder, by_line)]
    (folder / "slide_fields.csv").write_text("slide,x_px,y_px\nslide-1,9,9\n")
    cases.append(read_case(folder, SMALL))
    for case in cases:
        assert [(i.slide, i.region and i.region.x_px) for i in case.images] == [("slide-1", 9)]
        (note,) = case.problems
        assert (note.code, note.slide, note.fatal_for_field) == ("NO_FIELD_NAMED", "slide-2", False)
        assert case.n_fields_declared == 1
