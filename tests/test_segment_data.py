"""Folders of labelled cells for the segmenter: what is read, what is refused, what is said of them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from detectors.segment_data import images_mark, read_labelled_cells
from detectors.segment_evaluation import evaluate_cells
from flows.cli import group
from pipeline.errors import BadInput
from storage.packages import find_package, read_package
from tests.test_segment import GLASS, RED, ByColour, draw_cell, draw_mask, write_set


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


def test_the_scale_of_a_cell_is_given_or_its_files_or_read_off_or_said_to_be_assumed(tmp_path):
    from PIL import Image

    folder = write_set(tmp_path / "set", 3)
    with Image.open(folder / "1.png") as picture:
        picture.save(folder / "1.png", dpi=(25400 / 0.11, 25400 / 0.11))
    image = draw_cell(96, 26, 15)
    for at in ((16, 16), (80, 16), (16, 80), (80, 80)):  # whole ones, in place of those at the edge
        cv2.circle(image, at, 15, GLASS, -1)
        cv2.circle(image, at, 10, RED, -1)
    cv2.imwrite(str(folder / "0.png"), image[..., ::-1])
    cells = read_labelled_cells(folder)
    assert cells[0].pixel_size_um == pytest.approx(7.5 / 20, rel=0.06)
    assert [c.scale_from for c in cells] == ["red cells", "the file", "assumed: 32 µm across"]
    assert cells[1].pixel_size_um == pytest.approx(0.11, rel=0.01)
    assert cells[2].pixel_size_um == pytest.approx(32 / 96)
    assert {(c.pixel_size_um, c.scale_from) for c in read_labelled_cells(folder, 0.15)} == {(0.15, "given")}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A package of a set, trained for one step, and its set."""
    from detectors.segment_training import train_segmenter

    monkeypatch.setattr("detectors.segment_data.same_cell_groups", lambda images: list(range(len(images))))
    data, said = write_set(tmp_path / "my cells", 6), []
    figures = {"epochs": 1, "steps_per_epoch": 1, "batch": 2, "widths": (4, 6, 8)}
    train_segmenter(data, tmp_path / "run" / "seg", progress=said.append, **figures)
    return data, tmp_path / "run" / "seg", said


def test_a_card_says_whose_cells_it_learned_from_and_by_what_scale(trained):
    _, package, said = trained
    card = read_package(package).card
    assert card.training_data[0].startswith("my cells: 6 leukocytes with masks of the user's own; used")
    assert "Zheng" not in card.model_dump_json()
    assert card.training["pixel_size_from"]["assumed: 32 µm across"]["n_images"] == 6
    assert '"pixel_size_from": {"assumed' in said[0]


def test_public_cells_are_known_by_their_pixels_whatever_they_are_called(trained, monkeypatch):
    from detectors.segment_card import segmenter_card

    data, _, _ = trained
    cells = read_labelled_cells(data)
    mark = images_mark(c.image for c in cells[::-1])
    monkeypatch.setattr("detectors.segment_data.PUBLIC_SOURCES", {mark: ("drawn", 0.3)})
    monkeypatch.setattr("detectors.segment_card.PUBLIC_SOURCES", {mark: ("drawn", 0.3)})
    cells = read_labelled_cells(data)
    assert {(c.pixel_size_um, c.scale_from) for c in cells} == {(0.3, "the public set")}
    card = segmenter_card("seg", data, {"widths": [4]}, cells[:4], [], cells[4:], {})
    assert (
        "6 leukocytes with masks, all of segmentation_WBC (Zheng 2018), GPL-3.0" in card["training_data"][0]
    )


def test_held_out_measures_the_folder_that_was_trained_on_and_no_other(trained, tmp_path):
    data, package, _ = trained
    line = [
        "evaluate",
        "segmenter",
        str(data),
        "--model",
        str(package),
        "--out",
        str(tmp_path / "e"),
        "--json",
    ]
    done = CliRunner().invoke(group, [*line, "--held-out"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sources"]["drawn"]["n"] == 1
    cell = next(iter(csv.DictReader((tmp_path / "e" / "segmentation.csv").open())))["image"]
    cv2.imwrite(str(data / cell), draw_cell(96, 24, 12)[..., ::-1])
    other = CliRunner().invoke(group, [*line, "--held-out"])
    assert isinstance(other.exception, BadInput)
    assert "is not the folder that the model was trained on" in str(other.exception)
    assert CliRunner().invoke(group, line).exit_code == 0


@pytest.mark.real
def test_the_shipped_segmenter_knows_the_cells_that_its_training_held_out(real_data):
    from detectors.segment_evaluation import held_out_cells

    cells = read_labelled_cells(real_data / "wbc-masks")
    assert {c.scale_from for c in cells} == {"the public set"}
    training = find_package("nucleus-cytoplasm").card.training
    assert len(held_out_cells(real_data, cells, training)) == 63
