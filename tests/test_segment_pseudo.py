"""Pseudo-labels are taken only where a box that the segmenter never saw agrees."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from detectors.base import CYTOPLASM, NUCLEUS, RED_CELL
from detectors.segment_data import IGNORE
from detectors.segment_pseudo import label_by_box, pseudo_labelled_cells

GLASS, RED, BLUE, VIOLET = (245, 235, 225), (225, 165, 160), (185, 180, 220), (90, 50, 140)
BOX = np.array((34.0, 34.0, 87.0, 87.0))


class ByColour:
    """Labels by fixed colours; takes the red cell for cytoplasm, as networks do."""

    name = "by-colour"

    def segment(self, patches: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
        labels = np.zeros(patches.shape[:3], np.uint8)
        labels[patches[..., 1] < 200] = CYTOPLASM
        labels[patches[..., 0] < 135] = NUCLEUS
        return labels


def crop() -> np.ndarray:
    image = np.full((120, 120, 3), GLASS, np.uint8)
    cv2.circle(image, (60, 98), 15, RED, -1)  # touches the leukocyte from below
    cv2.circle(image, (60, 60), 26, BLUE, -1)
    cv2.circle(image, (60, 60), 15, VIOLET, -1)
    return image


def test_a_touching_red_cell_is_cut_off_by_its_own_box() -> None:
    red = np.array([(45.0, 83.0, 75.0, 113.0)])
    labels = label_by_box(ByColour(), crop(), BOX, red, 0.2)
    assert labels is not None
    assert labels[60, 60] == NUCLEUS
    assert labels[60, 40] == CYTOPLASM
    assert labels[100, 60] == RED_CELL
    assert labels[5, 5] == 0


def test_a_cell_that_does_not_fill_its_box_is_not_taken() -> None:
    none = np.empty((0, 4))
    assert label_by_box(ByColour(), crop(), np.array((20.0, 20.0, 100.0, 100.0)), none, 0.2) is None
    assert label_by_box(ByColour(), np.full((120, 120, 3), 240, np.uint8), BOX, none, 0.2) is None


def test_cells_of_a_folder_come_with_other_leukocytes_left_open(tmp_path: Path) -> None:
    for part in ("images/train", "labels/train"):
        (tmp_path / part).mkdir(parents=True)
    field = np.full((200, 260, 3), GLASS, np.uint8)
    lines = []
    for x in (80, 160):
        cv2.circle(field, (x, 100), 26, BLUE, -1)
        cv2.circle(field, (x, 100), 15, VIOLET, -1)
        lines.append(f"0 {(x + 0.5) / 260} {100.5 / 200} {53 / 260} {53 / 200}")
    cv2.imwrite(str(tmp_path / "images/train/a.png"), field[..., ::-1])
    (tmp_path / "labels/train/a.txt").write_text("\n".join(lines))
    cells = pseudo_labelled_cells(ByColour(), tmp_path)
    assert len(cells) == 2
    assert all((c.labels == NUCLEUS).sum() > 500 for c in cells)
    assert all((c.labels == IGNORE).any() for c in cells)
    assert len({c.source for c in cells}) == 1
