"""Folders of labelled cells for the segmenter: what is read, what is refused, what is said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from detectors.segment_data import read_labelled_cells
from detectors.segment_evaluation import evaluate_cells
from pipeline.errors import BadInput
from tests.test_segment import ByColour, draw_mask, write_set


def recoded(folder: Path, values: tuple[int, int, int], name: str = "1_mask.png") -> Path:
    """The folder with one mask in other values for rest, cytoplasm and nucleus."""
    mask = cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
    table = np.zeros(256, np.uint8)
    table[[0, 128, 255]] = values
    cv2.imwrite(str(folder / name), table[mask])
    return folder


@pytest.mark.parametrize(
    ("values", "held"),
    [((0, 1, 2), "no nucleus .*0, 1, 2"), ((0, 128, 128), "no nucleus"), ((0, 85, 170), "values 0, 85, 170")],
)
def test_a_mask_of_another_coding_or_without_a_nucleus_is_refused_by_name(tmp_path, values, held):
    folder = recoded(write_set(tmp_path / "set", 2), values)
    with pytest.raises(BadInput, match=rf"1_mask\.png .*{held}.* 255 for the nucleus"):
        read_labelled_cells(folder)


def test_masks_of_whole_cells_alone_are_refused(tmp_path):
    folder = write_set(tmp_path / "set", 2)
    for name in ("0_mask.png", "1_mask.png"):
        recoded(folder, (0, 255, 255), name)
    with pytest.raises(BadInput, match="none of its 2 masks has cytoplasm"):
        read_labelled_cells(folder)


def test_masks_that_an_editor_wrote_a_little_off_are_read_as_they_are_meant(tmp_path):
    folder = write_set(tmp_path / "set", 2)
    before = read_labelled_cells(folder)[1].labels
    assert np.array_equal(read_labelled_cells(recoded(folder, (0, 127, 254)))[1].labels, before)
    smooth = cv2.resize(draw_mask(192, 52, 30), (96, 96), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / "1_mask.png"), smooth)
    assert (read_labelled_cells(folder)[1].labels == 3).any()


def test_dice_of_a_cell_of_which_the_truth_shows_nothing_is_null(tmp_path):
    cell = read_labelled_cells(write_set(tmp_path / "set", 2))[0]
    empty = replace(cell, labels=np.zeros_like(cell.labels), image=np.full_like(cell.image, 240))
    rows: list[dict] = []
    figures = evaluate_cells(ByColour(), [empty], rows)["drawn"]
    assert figures["nucleus"] == {"mean": None, "ci_low": None, "ci_high": None, "p5": None}
    assert rows[0]["dice_cell"] is None
    both = evaluate_cells(ByColour(), [empty, cell])["drawn"]
    assert both["n"] == 2
    assert both["cell"]["mean"] > 0.8


def test_a_table_is_read_as_other_tables_are(tmp_path):
    folder = write_set(tmp_path / "set", 2)
    table = folder / "labels.csv"
    text = table.read_text()
    table.write_text(text, encoding="utf-8-sig")
    assert len(read_labelled_cells(folder)) == 2
    table.write_text(text + "0.png\n")
    with pytest.raises(BadInput, match=r"labels\.csv: line 4 has fewer cells"):
        read_labelled_cells(folder)
    table.write_text("image,mask\n")
    with pytest.raises(BadInput, match=r"labels\.csv has no rows"):
        read_labelled_cells(folder)
    table.write_text("picture,mask\n0.png,0_mask.png\n")
    with pytest.raises(BadInput, match="columns image and mask are needed"):
        read_labelled_cells(folder)
