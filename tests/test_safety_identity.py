"""What leaves the laboratory: no names, no paths, no metadata of images, no label or macro of a slide."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from flows.cli import group
from flows.identity import deidentified, deidentified_text, file_pseudonym, pseudonym
from pipeline.types import Problem
from storage.slides import SlideReader
from tests.corpus import svs
from tests.report_cases import a_case, image

MARK = "DOE^JANE 1970-01-01"
ROOT = Path(__file__).resolve().parent.parent


def _field(folder: Path, name: str = "DOE_JANE.tif") -> Path:
    """A field whose description, author and EXIF name a patient."""
    rng = np.random.default_rng(0)
    pixels = np.full((160, 160, 3), 225, np.uint8)
    cv2.circle(pixels, (80, 80), 30, (120, 60, 150), -1)
    pixels = np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
    path = folder / name
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        description=MARK,
        software=MARK,
        extratags=[(315, "s", 0, MARK, True), (33432, "s", 0, MARK, True)],
        resolution=(1e5, 1e5),
        resolutionunit="CENTIMETER",
    )
    return path


def chunks(png: bytes) -> set[bytes]:
    """The kinds of chunks of a PNG."""
    found, at = set(), 8
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        found.add(name)
        at += 12 + length
    return found


def test_images_that_the_commands_write_carry_pixels_and_nothing_else(tmp_path: Path) -> None:
    source = _field(tmp_path)
    assert MARK.encode() in source.read_bytes()
    out = tmp_path / "out"
    for command in (
        ["segment", str(source), "--out", str(out), "--json"],
        ["stain", str(source), "--out", str(out), "--json"],
        ["align", str(source), str(source), "--picture", str(out), "--json"],
    ):
        done = CliRunner().invoke(group, command)
        assert done.exit_code == 0, done.output
    written = list(out.iterdir())
    assert len(written) == 3
    for path in written:
        data = path.read_bytes()
        assert chunks(data) <= {b"IHDR", b"PLTE", b"IDAT", b"IEND"}, path
        assert MARK.encode() not in data
        assert str(tmp_path).encode() not in data


def test_pictures_in_a_report_carry_pixels_and_nothing_else() -> None:
    from PIL import Image

    from pipeline.report_images import encode_jpeg

    data = encode_jpeg(np.full((40, 60, 3), 200, np.uint8))
    with Image.open(io.BytesIO(data)) as picture:
        assert not picture.getexif()
        assert set(picture.info) <= {
            "jfif",
            "jfif_version",
            "jfif_unit",
            "jfif_density",
            "loop",
            "background",
        }


def test_label_and_macro_images_of_a_slide_are_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openslide

    path = tmp_path / "a.svs"
    path.write_bytes(svs())
    with openslide.OpenSlide(str(path)) as slide:
        assert {"label", "macro"} <= set(slide.associated_images)  # the fixture has them

    def refused(_: object) -> None:
        raise AssertionError("label and macro images carry identity")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(refused))
    monkeypatch.setattr(openslide.AbstractSlide, "associated_images", property(refused))
    monkeypatch.setattr(openslide.AbstractSlide, "get_thumbnail", refused)
    from pipeline.intake import read_case, read_field
    from pipeline.settings import IntakeSettings

    folder = tmp_path / "C-1"
    folder.mkdir()
    path.rename(folder / "a.svs")
    settings = IntakeSettings(field_width_px=300, field_height_px=200, slide_pixel_size_um=0.5)
    case = read_case(folder, settings)
    assert case.images
    for one in case.images[:2]:
        read_field(folder, one, settings)
    with SlideReader(folder / "a.svs") as reader:
        reader.thumbnail(256)
    code = "\n".join(
        p.read_text() for room in ("storage", "pipeline", "flows") for p in (ROOT / room).rglob("*.py")
    )
    assert ".associated_images" not in code


def _named_case() -> Any:
    """A case whose id and file names are a patient's."""
    files = ("DOE_JANE_1.tif", "DOE_JANE_10.tif", "sub/DOE_JANE_2.tif")
    problems = (
        Problem(code="UNREADABLE", message="DOE_JANE_10.tif: the image is damaged.", file="DOE_JANE_10.tif"),
        Problem(code="OTHER", message="DOE-1970: lost.json of sub/DOE_JANE_2.tif", file=None),
    )
    images = tuple(image(f"F{n}", file=f) for n, f in enumerate(files, start=1))
    return a_case(case_id="DOE-1970", images=images, problems=problems, n_fields_declared=3)


def test_without_a_key_names_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMEARFLOW_PSEUDONYM_KEY", raising=False)
    assert deidentified(_named_case()) == _named_case()


def test_with_a_key_case_and_files_are_pseudonyms_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMEARFLOW_PSEUDONYM_KEY", "key")
    hidden = deidentified(_named_case())
    assert "DOE" not in hidden.model_dump_json()
    assert hidden.case_id.startswith("P-")
    assert len({i.file for i in hidden.images}) == 3
    assert all(i.file.endswith(".tif") and "/" not in i.file for i in hidden.images)
    assert hidden.problems[0].file == file_pseudonym("DOE_JANE_10.tif")
    assert hidden.problems[0].file in hidden.problems[0].message
    assert "DOE" not in deidentified_text(_named_case())("UnreadableImage: DOE_JANE_1.tif cannot be read")


def test_a_pseudonym_stands_for_whole_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMEARFLOW_PSEUDONYM_KEY", "key")
    told = deidentified_text(a_case(case_id="12", images=(image("F1", file="1.tif"),)))
    kept = "0.12 µm, 120 px, p 1e-12, 12.5 %, 11.tif, a12, 12µm"
    assert told(kept) == kept
    case, file = pseudonym("12"), file_pseudonym("1.tif")
    assert (
        told("12: 12/1.tif of 12_notes and 12-1.") == f"{case}: {case}/{file} of {case}_notes and {case}-1."
    )


def test_pseudonyms_are_the_same_under_one_key_and_others_under_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMEARFLOW_PSEUDONYM_KEY", "key")
    one, file = pseudonym("DOE-1970"), file_pseudonym("a.tif")
    assert (pseudonym("DOE-1970"), file_pseudonym("a.tif")) == (one, file)
    assert pseudonym("DOE-1971") != one
    assert file_pseudonym("DOE-1970")[2:] != one[2:]  # a case and a file of one name are not linked
    monkeypatch.setenv("SMEARFLOW_PSEUDONYM_KEY", "other")
    assert pseudonym("DOE-1970") != one


def test_a_result_and_page_under_a_key_name_neither_case_nor_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import reporting
    from flows.cluster import Workers
    from flows.findings import gather
    from flows.runs import open_run
    from tests.report_cases import cells_of

    monkeypatch.setenv("SMEARFLOW_PSEUDONYM_KEY", "key")
    monkeypatch.setattr(reporting, "thumbnails", lambda *_: {})
    cells, classes = cells_of({"neutrophil": 30}, 3)
    with Workers() as workers:
        run = open_run(Path("."), str(tmp_path / "store"), None, workers, case_id="DOE-1970")
        result = reporting.report(run, gather(run, _named_case(), cells, classes, {}, {}, {}, {}))
    for name in ("result.json", "report.html"):
        text = (tmp_path / "store" / "DOE-1970" / name).read_text()
        assert "DOE" not in text, name
        assert "key" not in json.dumps(result["case"])
    assert b"DOE" not in (tmp_path / "store" / "DOE-1970" / "cells.parquet").read_bytes()


@pytest.mark.parametrize("variable", ["SMEARFLOW_PSEUDONYM_KEY", "SMEARFLOW_AUDIT_KEY"])
def test_a_key_that_is_set_and_empty_is_refused_and_never_taken_for_none(
    monkeypatch: pytest.MonkeyPatch, variable: str, tmp_path: Path
) -> None:
    from flows.commands.doctor import check_keys
    from pipeline.errors import BadInput
    from storage.audit import AuditLog
    from storage.store import Store

    monkeypatch.delenv("SMEARFLOW_PSEUDONYM_KEY", raising=False)
    monkeypatch.delenv("SMEARFLOW_AUDIT_KEY", raising=False)
    assert [level for level, _ in check_keys()] == ["ok", "ok"]
    assert all(text.startswith("no SMEARFLOW_") for _, text in check_keys())
    monkeypatch.setenv(variable, " ")
    with pytest.raises(BadInput, match=f"{variable}: it is set, but empty"):
        pseudonym("CASE-7") if "PSEUDONYM" in variable else AuditLog(Store(tmp_path), "C").append("run")
    assert next(text for level, text in check_keys() if level == "error").startswith(variable)
    monkeypatch.setenv(variable, "key")
    assert any(text.startswith(f"{variable} is set") for _, text in check_keys())
