"""Case folders as laboratories hand them in: whole, damaged and contradictory."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline import intake
from pipeline.errors import BadInput
from pipeline.intake import assemble_case, declare, inspect_source, read_case, read_field
from storage.fingerprint import fingerprint
from tests.case_folders import S, colour, grey, make_case, manifest_rows, the_problem, write_manifest


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    return make_case(tmp_path / "C1")


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
    np.testing.assert_array_equal(read_field(paired, image, S), colour(1))


@pytest.mark.parametrize(
    ("kept", "mode"), [("brightfield", "brightfield"), ("dic", "dic")], ids=["brightfield", "dic"]
)
def test_the_mode_is_what_the_images_allow(paired: Path, kept: str, mode: str) -> None:
    write_manifest(paired, *(r for r in manifest_rows(paired) if f",{kept}," in r))
    case = read_case(paired, S)
    assert case.mode == mode
    assert case.problems == ()


def test_mgg_and_perls_are_a_mode_of_their_own(paired: Path) -> None:
    write_manifest(paired, "a,F1,brightfield,MGG,F1_BF.tif,0.1", "b,F1,brightfield,Perls,F2_BF.tif,0.1")
    assert read_case(paired, S).mode == "mgg_perls"


def test_the_bits_of_the_camera_are_those_of_its_brightest_field(tmp_path: Path) -> None:
    rows = []
    for name, light in (("F1", 15.0), ("F2", 15.0), ("F3", 3.5)):  # 12 bits, of which the third uses 10
        field = colour(int(name[1])).astype(np.float32) * light
        tifffile.imwrite(tmp_path / f"{name}.tif", field.astype(np.uint16), photometric="rgb")
        rows.append(f"s1,{name},brightfield,MGG,{name}.tif,0.1")
    tifffile.imwrite(tmp_path / "dic.tif", grey(1).astype(np.uint16) * 3)  # of another camera
    tifffile.imwrite(tmp_path / "perls.tif", colour(9), photometric="rgb")
    write_manifest(
        tmp_path, *rows, "s1,F1,dic,unstained,dic.tif,0.1", "s2,F1,brightfield,Perls,perls.tif,0.1"
    )
    found = {i.file: i.camera_bits for i in read_case(tmp_path, S).images}
    assert found == {"F1.tif": 12, "F2.tif": 12, "F3.tif": 12, "dic.tif": 10, "perls.tif": None}


def test_an_underexposed_field_is_named_and_the_white_of_a_dim_case_is_that_of_its_brightest(
    tmp_path: Path,
) -> None:
    lights = {"F1": 0.4, "F2": 0.3}
    for name, light in lights.items():
        dim = (colour(int(name[1])).astype(np.float32) * light).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"{name}.tif", dim, photometric="rgb")
    tifffile.imwrite(tmp_path / "perls.tif", colour(9), photometric="rgb")
    rows = [f"s1,{name},brightfield,MGG,{name}.tif,0.1" for name in lights]
    write_manifest(tmp_path, *rows, "s2,F1,brightfield,Perls,perls.tif,0.1")
    case = read_case(tmp_path, S)
    white = {i.file: i.brightest for i in case.images}
    assert white["F1.tif"] == white["F2.tif"]
    assert white["F1.tif"] == pytest.approx(0.4 * colour(1).max() / 255, abs=0.05)
    assert white["perls.tif"] is None
    assert [(p.code, p.file, p.fatal_for_field) for p in case.problems] == [
        ("UNDEREXPOSED", "F1.tif", False),
        ("UNDEREXPOSED", "F2.tif", False),
    ]


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
    problem = the_problem(case, "UNREADABLE")
    assert problem.file == "F1_DIC.tif"
    assert "F1_DIC.tif" in problem.message
    assert str(paired) not in problem.message  # a folder's path carries identity
    assert not problem.fatal_for_field
    assert "counted from its brightfield image" in problem.message
    assert len(case.images) == 3
    assert not any(p.code == "NO_PARTNER" for p in case.problems)  # it had one; the message above says it


def test_a_missing_file_costs_its_field_only(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 3, paired=False)
    (folder / "F2_BF.tif").unlink()
    case = read_case(folder, S)
    problem = the_problem(case, "MISSING_FILE")
    assert (problem.field, problem.fatal_for_field) == ("F2", True)
    assert [i.field for i in case.images] == ["F1", "F3"]
    assert case.n_fields_declared == 3


def test_a_grey_brightfield_is_left_out_and_its_dic_still_counts(paired: Path) -> None:
    tifffile.imwrite(paired / "F1_BF.tif", np.repeat(grey(9)[..., None], 3, 2), photometric="rgb")
    tifffile.imwrite(paired / "F2_BF.tif", grey(8))
    case = read_case(paired, S)
    colourless = [p for p in case.problems if p.code == "GREY_BRIGHTFIELD"]
    assert [p.field for p in colourless] == ["F1", "F2"]
    assert all("no colour" in p.message and not p.fatal_for_field for p in colourless)
    assert case.mode == "dic"


def test_a_field_without_partner_is_counted_in_its_own_modality(paired: Path) -> None:
    write_manifest(paired, *manifest_rows(paired)[:-1])
    case = read_case(paired, S)
    problem = the_problem(case, "NO_PARTNER")
    assert (problem.field, problem.fatal_for_field) == ("F2", False)
    assert "brightfield alone" in problem.message
    assert len(case.images) == 3


def test_the_same_line_twice_is_used_once(paired: Path) -> None:
    write_manifest(paired, *manifest_rows(paired), manifest_rows(paired)[0])
    case = read_case(paired, S)
    problem = the_problem(case, "DUPLICATE_FIELD")
    assert "lines 2, 6" in problem.message
    assert not problem.fatal_for_field
    assert len(case.images) == 4


def test_two_files_for_one_image_leave_it_out(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 3, paired=False)
    write_manifest(folder, *manifest_rows(folder), "s1,F1,brightfield,MGG,F3_BF.tif,0.1")
    case = read_case(folder, S)
    problem = the_problem(case, "DUPLICATE_FIELD")
    assert problem.fatal_for_field
    assert "none is used" in problem.message
    assert [i.field for i in case.images] == ["F2", "F3"]


def test_one_picture_under_two_names_does_not_count_twice(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 2, paired=False)
    shutil.copy(folder / "F1_BF.tif", folder / "F2_BF.tif")
    case = read_case(folder, S)
    assert [i.field for i in case.images] == ["F1"]
    assert "same contents as F1_BF.tif" in the_problem(case, "DUPLICATE_IMAGE").message


def test_a_16_bit_field_is_taken_and_keeps_its_depth(paired: Path) -> None:
    tifffile.imwrite(paired / "F1_BF.tif", colour(1).astype(np.uint16) * 16, photometric="rgb")
    case = read_case(paired, S)
    image = case.image("s1", "F1", "brightfield")
    assert image is not None
    assert image.bits == 16
    assert case.problems == ()


def test_a_colour_dic_is_read_as_its_luminance(paired: Path) -> None:
    tifffile.imwrite(paired / "F1_DIC.tif", np.repeat(grey(1)[..., None], 3, 2), photometric="rgb")
    image = read_case(paired, S).image("s1", "F1", "dic")
    assert image is not None
    np.testing.assert_array_equal(read_field(paired, image, S), grey(1))


def test_a_stained_image_declared_as_dic_is_left_out_and_the_field_counts_from_its_brightfield(
    paired: Path,
) -> None:
    Image.fromarray(colour(7)).save(paired / "F1_DIC.jpg", quality=80)
    write_manifest(paired, *(row.replace("F1_DIC.tif", "F1_DIC.jpg") for row in manifest_rows(paired)))
    case = read_case(paired, S)
    problem = the_problem(case, "COLOURED_DIC")
    assert (problem.field, problem.fatal_for_field) == ("F1", False)
    assert "F1_DIC.jpg" in problem.message
    assert "counted from its brightfield image" in problem.message
    assert case.image("s1", "F1", "dic") is None
    assert case.image("s1", "F2", "dic") is not None


def test_a_dic_with_the_colour_noise_of_jpeg_or_of_its_camera_is_taken(paired: Path) -> None:
    noise = np.random.default_rng(3).normal(0, 6, (96, 128, 3))
    rgb = np.clip(grey(1)[..., None] * np.array([0.95, 1.0, 0.85]) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(rgb).save(paired / "F1_DIC.jpg", quality=70)
    write_manifest(paired, *(row.replace("F1_DIC.tif", "F1_DIC.jpg") for row in manifest_rows(paired)))
    assert read_case(paired, S).problems == ()


def test_the_pixel_size_comes_from_the_line_then_the_manifest_then_the_file(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 2, paired=False)
    tifffile.imwrite(
        folder / "F1_BF.tif",
        colour(1),
        photometric="rgb",
        resolution=(1e5, 1e5),
        resolutionunit="CENTIMETER",
    )
    write_manifest(folder, "s1,F1,brightfield,MGG,F1_BF.tif,", "s1,F2,brightfield,MGG,F2_BF.tif,0.2")
    first, second = read_case(folder, S).images
    assert (first.pixel_size_um, first.pixel_size_source) == (pytest.approx(0.1), "file")
    assert (second.pixel_size_um, second.pixel_size_source) == (0.2, "manifest")
    given_case = read_case(folder, S, pixel_size_um=0.25)
    assert {(i.pixel_size_um, i.pixel_size_source) for i in given_case.images} == {(0.25, "command line")}
    conflicts = [p for p in given_case.problems if p.code == "PIXEL_SIZE_CONFLICT"]
    assert {p.field for p in conflicts} == {"F1", "F2"}
    assert not any(p.fatal_for_field for p in conflicts)


def test_a_missing_pixel_size_refuses_the_case(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 1, paired=False)
    write_manifest(folder, "s1,F1,brightfield,MGG,F1_BF.tif,")
    with pytest.raises(
        BadInput, match=r"F1_BF\.tif: neither the manifest nor the file states the pixel size;"
    ):
        read_case(folder, S)
    assert read_case(folder, S, pixel_size_um=0.1).images[0].pixel_size_source == "command line"


def test_no_folder_no_manifest_and_nothing_usable_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such case folder"):
        read_case(tmp_path / "none", S)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no manifest\.csv and no whole-slide file"):
        read_case(tmp_path / "empty", S)
    folder = make_case(tmp_path / "C", 2, paired=False)
    for path in folder.glob("*.tif"):
        _truncate(path)
    with pytest.raises(BadInput, match=r"C: no field can be used: F1_BF\.tif: the image .* \(1 more"):
        read_case(folder, S)


def test_a_picture_too_small_to_hold_a_cell_is_left_out(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 2, paired=False)
    tifffile.imwrite(folder / "F1_BF.tif", colour(1)[:1, :1], photometric="rgb")
    assert the_problem(read_case(folder, S), "TOO_SMALL").field == "F1"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_disk_that_fails_is_no_verdict_on_the_image(
    paired: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source = declare(paired, S).sources[0]

    def failing(path: Path, max_bytes: int) -> bytes:
        raise OSError(number, "of the machine")

    monkeypatch.setattr(intake, "read_regular_file", failing)
    with pytest.raises(OSError, match="of the machine"):
        inspect_source(paired, source, S)

    def forbidden(path: Path, max_bytes: int) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(intake, "read_regular_file", forbidden)
    assert [p.code for p in inspect_source(paired, source, S).problems] == ["UNREADABLE"]
