"""Folders of images with YOLO labels: both layouts, what is no image, rows that are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from classifiers.sources import boxed_cells
from detectors.datasets import read_yolo_folder
from pipeline.errors import BadInput
from stainers.data import load_smears
from storage.image_folders import is_image, label_path, read_rows, yolo_images
from tests.stainer_scenes import smear_folder, smear_name


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> tuple[Path, Path]:
    """The same smears as images/train, labels/train and as train/images, train/labels."""
    one = smear_folder(tmp_path_factory.mktemp("one"), 1)
    other = tmp_path_factory.mktemp("other")
    for kind in ("images", "labels"):
        shutil.copytree(one / kind / "train", other / "train" / kind)
    return one, other


def test_detectors_stainers_and_classifiers_read_both_layouts_alike(layouts):
    detected, smears, cells = [], [], []
    for place in layouts:
        assert [p.name for p in yolo_images(place)] == [
            f"{smear_name(size, 0)}.jpg" for size in (364, 416, 575)
        ]
        detected.append([(s.path.name, s.boxes.tolist()) for s in read_yolo_folder(place)])
        smears.append([(s.file, s.domain, s.leukocytes.tolist()) for s in load_smears(place)])
        cells.append([(s.path.name, s.x, s.y, s.side) for s in boxed_cells(place, 100)])
    for first, second in (detected, smears, cells):
        assert first
        assert first == second


def test_what_a_mac_leaves_beside_images_is_no_image(tmp_path):
    assert is_image(tmp_path / "A.JPG")
    assert not is_image(tmp_path / "._A.JPG")
    assert not is_image(tmp_path / "A.txt")


def test_labels_lie_in_the_nearest_folder_called_images_or_beside_the_image():
    assert label_path(Path("/d/images/x/images/a.png")) == Path("/d/images/x/labels/a.txt")
    assert label_path(Path("/d/a.png")) == Path("/d/a.txt")


def test_labels_that_are_no_text_are_one_sentence_and_a_mark_of_the_encoding_is_no_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0 0.5 0.5 0.1 0.2\n# \xe9\xff\n")
    with pytest.raises(BadInput, match=r"a\.txt: the labels cannot be read \(it is not UTF-8 text\); export"):
        read_rows(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.1 0.2\r\n")
    assert read_rows(tmp_path / "a.txt") == [(0, 0.5, 0.5, 0.1, 0.2)]


def test_a_line_that_is_no_box_is_named_and_an_absent_file_is_an_empty_field(tmp_path):
    assert read_rows(tmp_path / "none.txt") == []
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.2 0.9\n\n1 0.5 half 0.1 0.1\n")
    with pytest.raises(BadInput, match=r"a\.txt, line 3: '1 0\.5 half"):
        read_rows(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1\n")
    with pytest.raises(BadInput, match=r"a\.txt, line 1: .* \(4 values\)"):
        read_rows(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.2 0.9\n")  # a confidence at the end
    np.testing.assert_allclose(read_rows(tmp_path / "a.txt"), [(0, 0.5, 0.5, 0.1, 0.2)])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 184.0 201.5 60.0 58.0", "not in shares of the image"),
        ("0 0.5 0.5 -0.1 0.1", "not in shares of the image"),
        ("0 0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6", "9 values, as of a polygon"),
        ("0 nan 0.5 0.1 0.1", "not finite"),
        ("0 0.5 0.5 inf 0.1", "not finite"),
        ("0.5 0.5 0.5 0.1 0.1", "no whole number"),
    ],
)
def test_labels_of_another_format_are_refused_and_never_read_as_other_boxes(tmp_path, line, problem):
    (tmp_path / "a.txt").write_text(f"1 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(
        BadInput, match=rf"a\.txt, line 2: '{line}.*{problem}.*; export YOLO boxes or correct"
    ):
        read_rows(tmp_path / "a.txt")


def test_rounding_at_the_edge_is_no_error(tmp_path):
    (tmp_path / "a.txt").write_text("0 1.0000005 -0.0000005 1.000001 0.2\n")
    assert len(read_rows(tmp_path / "a.txt")) == 1


@pytest.mark.real
def test_every_label_of_the_public_smears_is_read(real_data):
    rows = [read_rows(p) for p in sorted((real_data / "smears" / "labels").rglob("*.txt"))]
    assert len(rows) == 1296
    assert sum(len(r) for r in rows) == 23950
