"""Case folders as laboratories hand them in: whole, damaged, contradictory and hostile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import BadInput, UnreadableImage
from pipeline.intake import (
    assemble_case,
    check_case_id,
    declare,
    inspect_source,
    read_case,
    read_field,
)
from pipeline.settings import IntakeSettings
from pipeline.types import Case, Problem
from storage.fingerprint import fingerprint

S = IntakeSettings()
HEADER = "slide,field,modality,stain,file,pixel_size_um"


def _colour(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((96, 128, 3), (228, 222, 226), np.uint8)
    image[20:60, 30:70] = (120, 70, 160)
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


def _grey(seed: int) -> np.ndarray:
    return np.random.default_rng(1000 + seed).integers(90, 160, (96, 128)).astype(np.uint8)


def _case(folder: Path, fields: int = 2, *, paired: bool = True, header: str = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for n in range(1, fields + 1):
        tifffile.imwrite(folder / f"F{n}_BF.tif", _colour(n), photometric="rgb", compression="lzw")
        lines.append(f"s1,F{n},brightfield,MGG,F{n}_BF.tif,0.1")
        if paired:
            tifffile.imwrite(folder / f"F{n}_DIC.tif", _grey(n))
            lines.append(f"s1,F{n},dic,unstained,F{n}_DIC.tif,0.1")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _manifest(folder: Path, *rows: str, header: str = HEADER) -> None:
    (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def _rows(folder: Path) -> list[str]:
    return (folder / "manifest.csv").read_text(encoding="utf-8").splitlines()[1:]


def _problem(case: Case, code: str) -> Problem:
    found = [p for p in case.problems if p.code == code]
    assert len(found) == 1, case.problems
    return found[0]


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    return _case(tmp_path / "C1")


def test_a_paired_case_is_read_whole(paired: Path) -> None:
    (paired / "case.yaml").write_text("specimen: bone_marrow\ncollected: 2026-11-01\n")
    case = read_case(paired, S)
    assert (case.case_id, case.mode, case.specimen, case.collected) == (
        "C1",
        "paired",
        "bone_marrow",
        "2026-11-01",
    )
    assert len(case.images) == 4
    assert case.n_fields_declared == 2
    assert case.problems == ()
    image = case.image("s1", "F1", "brightfield")
    assert image is not None
    assert (image.width_px, image.height_px, image.channels, image.bits) == (128, 96, 3, 8)
    assert len(image.sha256) == 64
    np.testing.assert_array_equal(read_field(paired, image, S), _colour(1))


@pytest.mark.parametrize(
    ("kept", "mode"), [("brightfield", "brightfield"), ("dic", "dic")], ids=["brightfield", "dic"]
)
def test_the_mode_is_what_the_images_allow(paired: Path, kept: str, mode: str) -> None:
    _manifest(paired, *(r for r in _rows(paired) if f",{kept}," in r))
    case = read_case(paired, S)
    assert case.mode == mode
    assert case.problems == ()


def test_mgg_and_perls_are_a_mode_of_their_own(paired: Path) -> None:
    _manifest(paired, "a,F1,brightfield,MGG,F1_BF.tif,0.1", "b,F1,brightfield,Perls,F2_BF.tif,0.1")
    assert read_case(paired, S).mode == "mgg_perls"


def test_reading_twice_gives_the_same_case_in_any_order_of_inspection(paired: Path) -> None:
    declared = declare(paired, S)
    inspected = [inspect_source(paired, s, S) for s in declared.sources]
    again = assemble_case(declared, [i.model_dump(mode="json") for i in reversed(inspected)])
    assert again == read_case(paired, S)
    assert fingerprint(again) == fingerprint(read_case(paired, S))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_tiff_costs_its_image_and_is_named(paired: Path) -> None:
    _truncate(paired / "F1_DIC.tif")
    case = read_case(paired, S)
    problem = _problem(case, "UNREADABLE")
    assert problem.file == "F1_DIC.tif"
    assert "F1_DIC.tif" in problem.message
    assert str(paired) not in problem.message  # a folder's path carries identity
    assert not problem.fatal_for_field
    assert "counted from its brightfield image" in problem.message
    assert len(case.images) == 3
    assert not any(p.code == "NO_PARTNER" for p in case.problems)  # it had one; the message above says it


def test_a_missing_file_costs_its_field_only(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 3, paired=False)
    (folder / "F2_BF.tif").unlink()
    case = read_case(folder, S)
    problem = _problem(case, "MISSING_FILE")
    assert (problem.field, problem.fatal_for_field) == ("F2", True)
    assert [i.field for i in case.images] == ["F1", "F3"]
    assert case.n_fields_declared == 3


def test_a_grey_brightfield_is_left_out_and_its_dic_still_counts(paired: Path) -> None:
    tifffile.imwrite(paired / "F1_BF.tif", np.repeat(_grey(9)[..., None], 3, 2), photometric="rgb")
    tifffile.imwrite(paired / "F2_BF.tif", _grey(8))
    case = read_case(paired, S)
    grey = [p for p in case.problems if p.code == "GREY_BRIGHTFIELD"]
    assert [p.field for p in grey] == ["F1", "F2"]
    assert all("no colour" in p.message and not p.fatal_for_field for p in grey)
    assert case.mode == "dic"


def test_a_field_without_partner_is_counted_in_its_own_modality(paired: Path) -> None:
    _manifest(paired, *_rows(paired)[:-1])
    case = read_case(paired, S)
    problem = _problem(case, "NO_PARTNER")
    assert (problem.field, problem.fatal_for_field) == ("F2", False)
    assert "brightfield alone" in problem.message
    assert len(case.images) == 3


def test_the_same_line_twice_is_used_once(paired: Path) -> None:
    _manifest(paired, *_rows(paired), _rows(paired)[0])
    case = read_case(paired, S)
    problem = _problem(case, "DUPLICATE_FIELD")
    assert "lines 2, 6" in problem.message
    assert not problem.fatal_for_field
    assert len(case.images) == 4


def test_two_files_for_one_image_leave_it_out(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 3, paired=False)
    _manifest(folder, *_rows(folder), "s1,F1,brightfield,MGG,F3_BF.tif,0.1")
    case = read_case(folder, S)
    problem = _problem(case, "DUPLICATE_FIELD")
    assert problem.fatal_for_field
    assert "none is used" in problem.message
    assert [i.field for i in case.images] == ["F2", "F3"]


def test_one_picture_under_two_names_does_not_count_twice(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 2, paired=False)
    shutil.copy(folder / "F1_BF.tif", folder / "F2_BF.tif")
    case = read_case(folder, S)
    assert [i.field for i in case.images] == ["F1"]
    assert "same contents as F1_BF.tif" in _problem(case, "DUPLICATE_IMAGE").message


def test_a_16_bit_field_is_taken_and_keeps_its_depth(paired: Path) -> None:
    tifffile.imwrite(paired / "F1_BF.tif", _colour(1).astype(np.uint16) * 16, photometric="rgb")
    case = read_case(paired, S)
    image = case.image("s1", "F1", "brightfield")
    assert image is not None
    assert image.bits == 16
    assert case.problems == ()


def test_a_colour_dic_is_read_as_its_luminance(paired: Path) -> None:
    tifffile.imwrite(paired / "F1_DIC.tif", np.repeat(_grey(1)[..., None], 3, 2), photometric="rgb")
    image = read_case(paired, S).image("s1", "F1", "dic")
    assert image is not None
    np.testing.assert_array_equal(read_field(paired, image, S), _grey(1))


def test_the_pixel_size_comes_from_the_line_then_the_manifest_then_the_file(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 2, paired=False)
    tifffile.imwrite(
        folder / "F1_BF.tif",
        _colour(1),
        photometric="rgb",
        resolution=(1e5, 1e5),
        resolutionunit="CENTIMETER",
    )
    _manifest(folder, "s1,F1,brightfield,MGG,F1_BF.tif,", "s1,F2,brightfield,MGG,F2_BF.tif,0.2")
    first, second = read_case(folder, S).images
    assert (first.pixel_size_um, first.pixel_size_source) == (pytest.approx(0.1), "file")
    assert (second.pixel_size_um, second.pixel_size_source) == (0.2, "manifest")
    given_case = read_case(folder, S, pixel_size_um=0.25)
    assert {(i.pixel_size_um, i.pixel_size_source) for i in given_case.images} == {(0.25, "command line")}
    conflicts = [p for p in given_case.problems if p.code == "PIXEL_SIZE_CONFLICT"]
    assert {p.field for p in conflicts} == {"F1", "F2"}
    assert not any(p.fatal_for_field for p in conflicts)


def test_a_missing_pixel_size_refuses_the_case(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 1, paired=False)
    _manifest(folder, "s1,F1,brightfield,MGG,F1_BF.tif,")
    with pytest.raises(
        BadInput, match=r"F1_BF\.tif: neither the manifest nor the file states the pixel size;"
    ):
        read_case(folder, S)
    assert read_case(folder, S, pixel_size_um=0.1).images[0].pixel_size_source == "command line"


ROW = "s1,F1,brightfield,MGG,F1_BF.tif,0.1"


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([ROW + ",x"], HEADER + ",operator", "unknown column 'operator'"),
        (["s1,F1,brightfield,MGG,0.1"], HEADER.replace("file,", ""), "lacks the column 'file'"),
        ([ROW], HEADER.replace("stain", "slide"), "lacks the column 'stain'"),
        ([ROW.replace("brightfield", "phase")], HEADER, "modality 'phase' is not known"),
        ([ROW.replace("MGG", "Giemsa")], HEADER, "stain 'Giemsa' is not known"),
        ([ROW.replace("F1_BF.tif", "../C2/F1_BF.tif")], HEADER, "leads out of the case folder"),
        ([ROW.replace("F1_BF.tif", "..\\C2\\F1_BF.tif")], HEADER, "leads out of the case folder"),
        ([ROW.replace("F1_BF.tif", "/etc/passwd")], HEADER, "is an absolute path"),
        ([ROW.replace("F1_BF.tif", "C:\\a.tif")], HEADER, "is an absolute path"),
        ([ROW.replace("F1_BF.tif", "a\x07.tif")], HEADER, "is no file name"),
        ([ROW.replace("F1_BF.tif", "")], HEADER, "no file is named"),
        ([ROW.replace("0.1", "0")], HEADER, "pixel size of 0 µm cannot be right"),
        ([ROW.replace("0.1", "-0.1")], HEADER, "cannot be right"),
        ([ROW.replace("0.1", "100")], HEADER, "cannot be right"),
        ([ROW.replace("0.1", "nan")], HEADER, "write a number"),
        ([ROW.replace("0.1", "ten")], HEADER, "write a number"),
        ([ROW + ",5,"], HEADER + ",x_um,y_um", "needs both x_um and y_um"),
        ([ROW + ",5,inf"], HEADER + ",x_um,y_um", "write a number"),
        ([ROW + ",extra"], HEADER, "line 2: it has 7 cells"),
        ([ROW.replace("s1", "<b>")], HEADER, "is no slide name"),
        ([ROW.replace("s1", "=1+1")], HEADER, "is no slide name"),
        ([ROW.replace("F1,", ",", 1)], HEADER, "is no field name"),
        ([], HEADER, "has no rows"),
        (['s1,"F1,brightfield'], HEADER, "is no valid CSV"),
    ],
)
def test_a_manifest_that_cannot_be_understood_refuses_the_case_in_one_sentence(
    tmp_path: Path, rows: list[str], header: str, said: str
) -> None:
    folder = _case(tmp_path / "C", 1, paired=False)
    _manifest(folder, *rows, header=header)
    with pytest.raises(BadInput) as caught:
        read_case(folder, S)
    assert said in str(caught.value)
    assert "manifest.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 2, paired=False)
    outside = tmp_path / "other.tif"
    (folder / "F1_BF.tif").rename(outside)
    (folder / "F1_BF.tif").symlink_to(outside)
    with pytest.raises(BadInput, match="is a link to outside the case folder"):
        read_case(folder, S)
    (folder / "F1_BF.tif").unlink()
    shutil.copy(outside, folder / "real.tif")
    (folder / "F1_BF.tif").symlink_to(folder / "real.tif")
    assert len(read_case(folder, S).images) == 2


def test_a_linked_folder_a_link_to_itself_and_a_linked_manifest_are_refused(tmp_path: Path) -> None:
    folder, other = _case(tmp_path / "C", 1, paired=False), _case(tmp_path / "D", 1, paired=False)
    (folder / "sub").symlink_to(other)
    _manifest(folder, ROW.replace("F1_BF.tif", "sub/F1_BF.tif"))
    with pytest.raises(BadInput, match="outside the case folder"):
        read_case(folder, S)
    (folder / "loop.tif").symlink_to(folder / "loop.tif")
    _manifest(folder, ROW.replace("F1_BF.tif", "loop.tif"))
    with pytest.raises(BadInput, match="loop"):
        read_case(folder, S)
    (folder / "manifest.csv").unlink()
    (folder / "manifest.csv").symlink_to(other / "manifest.csv")
    with pytest.raises(BadInput, match="outside the case folder"):
        read_case(folder, S)


def test_a_file_swapped_for_a_link_after_intake_is_not_followed(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 1, paired=False)
    image = read_case(folder, S).images[0]
    (folder / "F1_BF.tif").rename(tmp_path / "out.tif")
    (folder / "F1_BF.tif").symlink_to(tmp_path / "out.tif")
    with pytest.raises(BadInput, match="outside"):
        read_field(folder, image, S)


def test_a_field_that_changed_since_intake_is_refused(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 1, paired=False)
    image = read_case(folder, S).images[0]
    tifffile.imwrite(folder / "F1_BF.tif", _colour(5), photometric="rgb")
    with pytest.raises(UnreadableImage, match="was changed while the case was read"):
        read_field(folder, image, S)


def test_a_pipe_in_place_of_an_image_does_not_block(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 2, paired=False)
    (folder / "F1_BF.tif").unlink()
    os.mkfifo(folder / "F1_BF.tif")
    case = read_case(folder, S)
    assert _problem(case, "UNREADABLE").field == "F1"
    assert declare(folder, S).sources[0].hash_file(folder) == "IsADirectoryError"


@pytest.mark.parametrize(
    ("encode", "fits"),
    [
        (lambda t: b"\xef\xbb\xbf" + t.encode(), True),
        (lambda t: t.replace("\n", "\r\n").encode(), True),
        (lambda t: t.encode("utf-16"), True),
        (lambda t: t.replace(",", ";").replace("0.1", "0,1").encode(), True),
        (lambda t: t.replace(",", "\t").encode(), True),
        (lambda t: t.replace("slide", " Slide ").replace("MGG", "mgg").encode(), True),
        (lambda t: t.replace("s1", "Pr\xe4parat").encode("latin-1"), False),
        (lambda t: t.encode() + b"\0\0", False),
    ],
    ids=["bom", "crlf", "utf-16", "semicolon", "tab", "case", "latin-1", "nul"],
)
def test_manifests_of_any_spreadsheet_are_read_or_refused(tmp_path: Path, encode: object, fits: bool) -> None:
    folder = _case(tmp_path / "C", 1)
    path = folder / "manifest.csv"
    path.write_bytes(encode(path.read_text(encoding="utf-8")))  # type: ignore[operator]
    if fits:
        case = read_case(folder, S)
        assert len(case.images) == 2
        assert case.images[0].pixel_size_um == 0.1
    else:
        with pytest.raises(BadInput, match=r"manifest\.csv.*save it"):
            read_case(folder, S)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("specimen: liver", "specimen 'liver' is not known; use one of blood, bone_marrow"),
        ("patient: Doe", "unknown key 'patient'"),
        ("- a\n- b", "holds no keys"),
        ("specimen: [", "is no valid YAML"),
        ("collected: yesterday", "write a date"),
        ("!!python/object/apply:os.system ['true']", "is no valid YAML"),
    ],
)
def test_a_case_yaml_is_strict(paired: Path, text: str, said: str) -> None:
    (paired / "case.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_case(paired, S)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_case_yaml_says_nothing(paired: Path) -> None:
    (paired / "case.yaml").write_text("")
    assert read_case(paired, S).specimen is None


def test_no_folder_no_manifest_and_nothing_usable_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such case folder"):
        read_case(tmp_path / "none", S)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no manifest\.csv and no whole-slide file"):
        read_case(tmp_path / "empty", S)
    folder = _case(tmp_path / "C", 2, paired=False)
    for path in folder.glob("*.tif"):
        _truncate(path)
    with pytest.raises(BadInput, match=r"C: no field can be used: F1_BF\.tif: the image .* \(1 more"):
        read_case(folder, S)


@pytest.mark.parametrize(
    "name", ["a b", "../x", "", ".hidden", "x" * 65, "a/b", "<x>", "ä", "a\n", "results.db"]
)
def test_case_ids_that_could_do_harm_are_refused(name: str) -> None:
    with pytest.raises(BadInput):
        check_case_id(name)


@pytest.mark.parametrize("name", ["S001", "2026-11-01_A.b", "-x", "_"])
def test_ordinary_case_ids_are_taken(name: str) -> None:
    assert check_case_id(name) == name


def test_a_picture_too_small_to_hold_a_cell_is_left_out(tmp_path: Path) -> None:
    folder = _case(tmp_path / "C", 2, paired=False)
    tifffile.imwrite(folder / "F1_BF.tif", _colour(1)[:1, :1], photometric="rgb")
    assert _problem(read_case(folder, S), "TOO_SMALL").field == "F1"


_CHARACTERS = list("s1F,;\t\"'\n\r. /\\<>=+-@{}%0159äµ\x00\x1b\ufeff")
junk = st.lists(st.sampled_from([*_CHARACTERS, "..", "dic", "MGG"]), max_size=40).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=junk, where=st.integers(0, 120), mode=st.sampled_from(["replace", "insert"]))
def test_junk_in_a_manifest_ends_in_a_case_or_one_sentence(
    tmp_path: Path, text: str, where: int, mode: str
) -> None:
    folder = tmp_path / "C"
    if not folder.exists():
        _case(folder, 1)
        shutil.copy(folder / "manifest.csv", tmp_path / "whole.csv")
    whole = (tmp_path / "whole.csv").read_text()
    end = where + (len(text) if mode == "replace" else 0)
    (folder / "manifest.csv").write_bytes((whole[:where] + text + whole[end:]).encode())
    try:
        case = read_case(folder, S)
    except BadInput as error:
        _is_one_sentence(str(error))
    else:
        assert case.images


def _is_one_sentence(message: str) -> None:
    assert message
    assert "\n" not in message
    assert "\r" not in message
    assert "\x1b" not in message
    assert len(message) < 1500
