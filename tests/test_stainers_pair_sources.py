"""Where pairs of DIC and stain come from: folders, lists, cases; and how what is wrong with them is said."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from pipeline.errors import BadInput
from stainers.pair_sources import find_pairs
from tests.stainer_scenes import (
    TARGETS,
    dic_patches,
    write_folder,
)

torch = pytest.importorskip("torch")


def test_a_folder_of_pairs_is_matched_by_name(tmp_path):
    found = find_pairs(write_folder(tmp_path), TARGETS)
    assert [p.source for p in found.pairs] == ["c0", "c1", "c2"]
    assert {p.target for p in found.pairs} == {"bccd"}
    np.testing.assert_array_equal(found.pairs[1].dic, dic_patches(3)[1])
    assert "folder" in found.measured_on


def test_a_file_without_its_partner_is_named(tmp_path):
    root = write_folder(tmp_path)
    (root / "dic" / "c1.png").unlink()
    with pytest.raises(BadInput, match="'c1'"):
        find_pairs(root, TARGETS)


def test_a_pair_of_two_sizes_is_refused_with_both(tmp_path):
    from PIL import Image

    root = write_folder(tmp_path)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "stained" / "c0.png")
    with pytest.raises(BadInput, match="30 x 20"):
        find_pairs(root, TARGETS)


def test_a_list_gives_target_class_and_source(tmp_path):
    root = write_folder(tmp_path)
    table = root / "pairs.csv"
    with table.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["dic", "stained", "target", "class", "source"])
        rows.writerow(["dic/c0.png", "stained/c0.png", "raabin", "lymphocyte", "slide-1"])
        rows.writerow(["dic/c1.png", "stained/c1.png", "", "", ""])
    for place in (root, table):
        a, b = find_pairs(place, TARGETS).pairs
        assert (a.target, a.label, a.source) == ("raabin", "lymphocyte", "slide-1")
        assert (b.target, b.label) == ("bccd", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a,b\n1,2\n", "dic and stained"), ("", "dic and stained"), ("dic,stained,target\nx,y,z\n", "x")],
)
def test_a_list_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises((BadInput, OSError), match=said):
        find_pairs(tmp_path, TARGETS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dic,stained,class\ndic/c0.png\n", r"pairs\.csv: line 2 has fewer cells than the header"),
        ("dic,stained\ndic/c0.png,stained/c0.png,x\n", r"pairs\.csv: line 2 has more cells"),
        ("dic,stained\n\n,stained/c0.png\n", r"pairs\.csv: line 3 says no dic"),
        ("dic,stained\n\xe9,b\n", r"pairs\.csv: the table is not in UTF-8"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line(tmp_path, text, said):
    write_folder(tmp_path)
    (tmp_path / "pairs.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=said):
        find_pairs(tmp_path, TARGETS)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"brightfield_to_dic": [[1, 0]], "leukocytes_xyxy": []}, "field 'F1' needs a matrix of 2 x 3"),
        ({"brightfield_to_dic": np.eye(3).tolist(), "leukocytes_xyxy": []}, "it has 3 x 3 numbers"),
        ({"brightfield_to_dic": [[1, 0, 0], [0, 1, float("nan")]], "leukocytes_xyxy": []}, "no table of n"),
        ({"brightfield_to_dic": np.eye(3)[:2].tolist()}, r"as leukocytes_xyxy \(there is none\)"),
        ({"brightfield_to_dic": np.eye(3)[:2].tolist(), "leukocytes_xyxy": [[1, 2, 3]]}, "boxes of four"),
        ({"brightfield_to_dic": np.eye(3)[:2].tolist(), "leukocytes_xyxy": [[1, 2], [3]]}, "boxes of four"),
        (["x"], "needs a matrix of 2 x 3"),
    ],
)
def test_a_truth_that_states_no_matrix_or_box_names_its_field(tmp_path, field, said):
    rows = "s,F1,brightfield,MGG,bf.png,0.1\ns,F1,dic,unstained,dic.png,0.1\n"
    (tmp_path / "manifest.csv").write_text("slide,field,modality,stain,file,pixel_size_um\n" + rows)
    (tmp_path / "truth.json").write_text(json.dumps({"fields": {"F1": field}}))
    with pytest.raises(BadInput, match=said) as found:
        find_pairs(tmp_path, TARGETS)
    assert "truth.json" in str(found.value)


def test_an_unknown_target_is_refused_with_those_that_exist(tmp_path):
    with pytest.raises(BadInput, match="bccd, raabin"):
        find_pairs(write_folder(tmp_path), TARGETS, target="perls")


def test_a_case_is_cut_along_its_known_matrix(tmp_path):
    """The DIC was moved by the matrix: patches of the two sides show the same cell again."""
    import cv2

    size, side = 420, 256
    y, x = np.mgrid[:size, :size]
    cell = np.hypot(y - 210, x - 205) < 50
    stained = np.full((size, size, 3), 220, np.uint8)
    stained[cell] = (120, 60, 140)
    grey = np.where(cell, 180, 120).astype(np.uint8)
    matrix = np.asarray([[1.001, -0.002, 6.0], [0.002, 1.001, -4.0]])
    moved = cv2.warpAffine(grey, matrix, (size + 30, size + 30), borderValue=120)
    cv2.imwrite(str(tmp_path / "bf.png"), stained[..., ::-1])
    cv2.imwrite(str(tmp_path / "dic.png"), moved)
    (tmp_path / "manifest.csv").write_text(
        "slide,field,modality,stain,file,pixel_size_um\ns,F1,brightfield,MGG,bf.png,0.1\ns,F1,dic,unstained,dic.png,0.1\n"
    )
    boxes = [[155, 160, 255, 260], [0, 0, 40, 40]]  # the second lies at the border and is left out
    truth = {"fields": {"F1": {"leukocytes_xyxy": boxes, "brightfield_to_dic": matrix.tolist()}}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (pair,) = find_pairs(tmp_path, TARGETS).pairs
    assert pair.stained.shape == (side, side, 3)
    dark, bright = pair.stained[..., 1] < 150, pair.dic[..., 0] > 150
    assert (dark & bright).sum() / (dark | bright).sum() > 0.97


def test_a_case_without_a_known_matrix_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_text("slide,field,modality,stain,file,pixel_size_um\n")
    with pytest.raises(BadInput, match=r"truth\.json"):
        find_pairs(tmp_path, TARGETS)


# the whole evaluation


def test_who_says_the_target_of_pairs_is_kept(tmp_path):
    root = write_folder(tmp_path)
    assert find_pairs(root, TARGETS).target_from == "the stainer's first"
    assert find_pairs(root, TARGETS, target="raabin").target_from == "--target"
    (root / "pairs.csv").write_text("dic,stained,target\ndic/c0.png,stained/c0.png,raabin\n")
    assert find_pairs(root, TARGETS).target_from == "the data"
    (root / "pairs.csv").write_text("dic,stained\ndic/c0.png,stained/c0.png\n")
    assert find_pairs(root, TARGETS).target_from == "the stainer's first"
