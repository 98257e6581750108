"""Case folders that try to make intake read elsewhere, wait for ever, or run something."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import tifffile

from flows.cluster import Workers
from pipeline.errors import BadInput, UnreadableImage
from pipeline.intake import declare, read_case, read_field
from pipeline.intake_files import sha256_slide
from storage.slides import SlideReader
from storage.slides_companions import companions
from tests.case_folders import ROW, S, colour, make_case, the_problem, write_manifest


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 2, paired=False)
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
    folder, other = make_case(tmp_path / "C", 1, paired=False), make_case(tmp_path / "D", 1, paired=False)
    (folder / "sub").symlink_to(other)
    write_manifest(folder, ROW.replace("F1_BF.tif", "sub/F1_BF.tif"))
    with pytest.raises(BadInput, match="outside the case folder"):
        read_case(folder, S)
    (folder / "loop.tif").symlink_to(folder / "loop.tif")
    write_manifest(folder, ROW.replace("F1_BF.tif", "loop.tif"))
    with pytest.raises(BadInput, match="loop"):
        read_case(folder, S)
    (folder / "manifest.csv").unlink()
    (folder / "manifest.csv").symlink_to(other / "manifest.csv")
    with pytest.raises(BadInput, match="outside the case folder"):
        read_case(folder, S)


def test_a_file_swapped_for_a_link_after_intake_is_not_followed(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 1, paired=False)
    image = read_case(folder, S).images[0]
    (folder / "F1_BF.tif").rename(tmp_path / "out.tif")
    (folder / "F1_BF.tif").symlink_to(tmp_path / "out.tif")
    with pytest.raises(BadInput, match="outside"):
        read_field(folder, image, S)


def test_a_field_that_changed_since_intake_is_refused(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 1, paired=False)
    image = read_case(folder, S).images[0]
    tifffile.imwrite(folder / "F1_BF.tif", colour(5), photometric="rgb")
    with pytest.raises(UnreadableImage, match="was changed while the case was read"):
        read_field(folder, image, S)


def test_a_pipe_in_place_of_an_image_does_not_block(tmp_path: Path) -> None:
    folder = make_case(tmp_path / "C", 2, paired=False)
    (folder / "F1_BF.tif").unlink()
    os.mkfifo(folder / "F1_BF.tif")
    case = read_case(folder, S)
    assert the_problem(case, "UNREADABLE").field == "F1"
    assert declare(folder, S).sources[0].hash_file(folder) == "IsADirectoryError"


def test_a_link_in_the_inbox_to_another_folder_is_no_case_of_the_night(tmp_path: Path) -> None:
    from flows.nightly import _Cases, cases_of

    make_case(tmp_path / "elsewhere" / "P-1", 1, paired=False)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "A-1").symlink_to(tmp_path / "elsewhere" / "P-1")
    night = _Cases(cases_of(inbox), str(tmp_path / "store"), None)
    with Workers() as workers:
        night.process(night.look(), workers)
    (row,) = night.in_order()
    assert row["status"] == "failed"
    assert "is a link to outside the inbox" in row["error"]
    assert not (tmp_path / "store").exists() or list((tmp_path / "store").iterdir()) == []


def _mrxs(folder: Path, named: str = "Data0000.dat") -> Path:
    """The outside of an MRXS slide: a picture, and a folder with an index that names its data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a").mkdir()
    (folder / "a" / "Slidedat.ini").write_text(
        f"[GENERAL]\nSLIDE_VERSION=01.02\n[HIERARCHICAL]\nINDEXFILE=Index.dat\n[DATAFILE]\nFILE_COUNT=1\nFILE_0={named}\n"
    )
    for name in ("Index.dat", "Data0000.dat"):
        (folder / "a" / name).write_bytes(b"01.02" + bytes(100))
    (folder / "a.mrxs").write_bytes(b"\xff\xd8\xff\xe0")
    return folder / "a.mrxs"


@pytest.mark.parametrize("named", ["../../B/Data0000.dat", "/etc/passwd", "..\\b.dat", ".."])
def test_a_slide_of_many_files_names_none_outside_its_folder(tmp_path: Path, named: str) -> None:
    path = _mrxs(tmp_path / "C", named)
    with pytest.raises(UnreadableImage, match="names files outside its own folder"):
        SlideReader(path)


def test_a_slide_of_many_files_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    path = _mrxs(tmp_path / "C")
    assert [p.name for p in companions(path)] == ["Data0000.dat", "Index.dat", "Slidedat.ini"]
    (tmp_path / "secret.dat").write_bytes(b"x")
    (tmp_path / "C" / "a" / "Data0000.dat").unlink()
    (tmp_path / "C" / "a" / "Data0000.dat").symlink_to(tmp_path / "secret.dat")
    with pytest.raises(UnreadableImage, match="leads out of its folder"):
        SlideReader(path)
    shutil.rmtree(tmp_path / "C" / "a")
    _mrxs(tmp_path / "D")
    (tmp_path / "C" / "a").symlink_to(tmp_path / "D" / "a")
    with pytest.raises(UnreadableImage, match="leads out of its folder"):
        SlideReader(path)


def test_a_virtual_microscope_index_and_a_dicom_series_stay_in_their_folder(tmp_path: Path) -> None:
    index = tmp_path / "a.vms"
    index.write_text("[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=../b/image.jpg\n")
    with pytest.raises(UnreadableImage, match="names files outside its own folder"):
        SlideReader(index)
    shutil.copy(index, tmp_path / "a.tif")  # known by its contents, not its name
    with pytest.raises(UnreadableImage, match="names files outside its own folder"):
        SlideReader(tmp_path / "a.tif")
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / "1.dcm").write_bytes(b"\0" * 200)
    (tmp_path / "S" / "2.dcm").symlink_to(index)
    with pytest.raises(UnreadableImage, match="leads out of its folder"):
        SlideReader(tmp_path / "S" / "1.dcm")


def test_a_change_in_any_file_of_a_slide_changes_its_hash(tmp_path: Path) -> None:
    path = _mrxs(tmp_path / "C")
    before = sha256_slide(path)
    assert sha256_slide(path) == before
    (tmp_path / "C" / "a" / "Data0000.dat").write_bytes(b"01.02" + bytes(99) + b"\1")
    assert sha256_slide(path) != before


@pytest.mark.parametrize(
    "name",
    ["a\nb.tif", "a;rm -rf x.tif", "<script>.tif", "=cmd().tif", "$(id).tif", "a\x1b[2J.tif", "'--.tif"],
)
def test_hard_file_names_are_read_as_names_or_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    folder = make_case(tmp_path / "C", 2, paired=False)
    (folder / "F1_BF.tif").rename(folder / name)
    quoted = '"' + name.replace('"', '""') + '"'
    write_manifest(folder, ROW.replace("F1_BF.tif", quoted), "s1,F2,brightfield,MGG,F2_BF.tif,0.1")
    if name.isprintable():
        assert name in [i.file for i in read_case(folder, S).images]
        return
    with pytest.raises(BadInput) as caught:
        read_case(folder, S)
    assert str(caught.value).isprintable()
