"""What is no cell by its shape or its place is no leukocyte; cells at the edges and dark ones stay."""

from __future__ import annotations

import numpy as np

from detectors.artefacts import can_be_cells

UM = 0.2


def glass() -> np.ndarray:
    return np.full((200, 300, 3), 220, np.uint8)


def test_a_line_of_text_is_no_leukocyte_and_a_cell_cut_by_the_edge_is() -> None:
    boxes = np.array([[50, 50, 150, 70], [50, 50, 110, 90], [100, 180, 170, 200]], np.float32)
    assert can_be_cells(glass(), boxes, UM).tolist() == [False, True, True]


def test_the_dark_outside_a_round_field_is_no_leukocyte() -> None:
    image = glass()
    y, x = np.mgrid[:200, :300]
    image[np.hypot(x - 150, y - 100) > 150] = 4
    boxes = np.array([[0, 0, 60, 60], [120, 70, 180, 130]], np.float32)
    assert can_be_cells(image, boxes, UM).tolist() == [False, True]
    grey = np.broadcast_to(image[..., :1], image.shape)  # as a grey image is handed on
    assert can_be_cells(grey, boxes, UM).tolist() == [False, True]


def test_a_dark_cell_and_the_rim_of_a_frame_cost_no_leukocyte() -> None:
    image = glass()
    image[80:120, 80:120] = 10  # not from the edge on
    image[:, 0] = 0
    boxes = np.array([[75, 75, 125, 125], [0, 60, 30, 95]], np.float32)
    assert can_be_cells(image, boxes, UM).all()


def test_no_box_is_no_leukocyte() -> None:
    assert can_be_cells(glass(), np.zeros((0, 4), np.float32), UM).shape == (0,)


def test_the_shape_of_a_box_is_no_sign_in_dic():
    image = np.full((200, 200, 3), 128, np.uint8)
    boxes = np.array([[50.0, 50.0, 110.0, 70.0], [50.0, 100.0, 90.0, 140.0]])
    assert can_be_cells(image, boxes, 0.1).tolist() == [False, True]
    assert can_be_cells(image, boxes, 0.1, stained=False).tolist() == [True, True]
