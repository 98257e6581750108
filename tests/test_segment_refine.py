"""Red cells that touch a leukocyte are told from it by the image's own colours, and only where these tell."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from detectors.base import BACKGROUND, CYTOPLASM, NUCLEUS, RED_CELL
from detectors.segment_evaluation import dice
from detectors.segment_refine import part_touching_cells

GLASS, RED, BLUE, VIOLET = (245, 235, 225), (225, 165, 160), (185, 180, 220), (90, 50, 140)
PIXEL_SIZE_UM = 0.2


def scene(cytoplasm=BLUE, free: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, truth and the labels of a network that takes most of a touching red cell for cytoplasm."""
    image = np.full((160, 160, 3), GLASS, np.uint8)
    truth = np.zeros((160, 160), np.uint8)

    def disc(x: int, y: int, radius: int, colour: tuple[int, int, int], label: int) -> None:
        cv2.circle(image, (x, y), radius, colour, -1, cv2.LINE_AA)
        cv2.circle(truth, (x, y), radius, label, -1)

    if free:
        disc(25, 25, 18, RED, RED_CELL)
        disc(130, 30, 18, RED, RED_CELL)
    disc(122, 84, 18, RED, RED_CELL)  # touches
    disc(80, 80, 30, cytoplasm, CYTOPLASM)
    disc(80, 80, 16, VIOLET, NUCLEUS)
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    image = np.clip(cv2.GaussianBlur(image, (0, 0), 0.8) + noise, 0, 255).astype(np.uint8)
    labels = truth.copy()
    wrong = cv2.circle(np.zeros_like(truth), (122, 84), 18, 1, -1) > 0
    wrong[:, 132:] = False
    labels[wrong & (truth == RED_CELL)] = CYTOPLASM
    return image, truth, labels


def doubt(labels: np.ndarray) -> np.ndarray:
    """Log-odds of a network that is a little sure of its labels."""
    return np.where(labels >= CYTOPLASM, 1.0, -1.0).astype(np.float32)


def test_a_touching_red_cell_is_parted_from_the_leukocyte():
    image, truth, labels = scene()
    before = labels.copy()
    found = part_touching_cells(labels, doubt(labels), image, PIXEL_SIZE_UM)
    assert dice(labels >= CYTOPLASM, truth >= CYTOPLASM) < 0.92
    assert dice(found >= CYTOPLASM, truth >= CYTOPLASM) > 0.98
    assert np.array_equal(labels, before)  # what was handed in stays
    for same in (NUCLEUS, BACKGROUND):
        assert np.array_equal(found == same, labels == same)


def test_cytoplasm_that_was_taken_for_a_red_cell_comes_back():
    image, truth, labels = scene()
    labels = truth.copy()
    labels[(truth == CYTOPLASM) & (np.arange(160)[None, :] > 98)] = RED_CELL
    found = part_touching_cells(labels, doubt(labels), image, PIXEL_SIZE_UM)
    assert dice(labels >= CYTOPLASM, truth >= CYTOPLASM) < 0.95
    assert dice(found >= CYTOPLASM, truth >= CYTOPLASM) > 0.98


@pytest.mark.parametrize("change", ["no free red cell", "no nucleus", "no leukocyte"])
def test_where_colour_cannot_tell_the_labels_stay(change):
    image, _, labels = scene(free=change != "no free red cell")
    if change == "no nucleus":
        labels[labels == NUCLEUS] = CYTOPLASM
    if change == "no leukocyte":
        labels[labels >= CYTOPLASM] = RED_CELL
    found = part_touching_cells(labels, doubt(labels), image, PIXEL_SIZE_UM)
    assert np.array_equal(found, labels)


def test_cytoplasm_of_the_colour_of_red_cells_is_not_eaten():
    image, truth, labels = scene(cytoplasm=RED)
    found = part_touching_cells(labels, doubt(labels), image, PIXEL_SIZE_UM)
    assert (found >= CYTOPLASM)[truth >= CYTOPLASM].mean() > 0.97


def test_each_leukocyte_is_parted_as_if_it_were_alone():
    image, _, labels = scene()
    two, both = np.hstack([image, image]), np.hstack([labels, labels])
    alone = part_touching_cells(labels, doubt(labels), image, PIXEL_SIZE_UM) >= CYTOPLASM
    found = part_touching_cells(both, doubt(both), two, PIXEL_SIZE_UM) >= CYTOPLASM
    for side in (found[:, :160], found[:, 160:]):
        assert dice(side, alone) > 0.995


@pytest.mark.parametrize("pixel_size_um", [0.01, 0.6, 2.0])
@pytest.mark.parametrize("size", [8, 40])
def test_any_size_and_scale_ends_without_a_warning(pixel_size_um, size, recwarn):
    image, _, labels = scene()
    image, labels = (cv2.resize(a, (size, size), interpolation=cv2.INTER_NEAREST) for a in (image, labels))
    found = part_touching_cells(labels, doubt(labels), image, pixel_size_um)
    assert found.shape == labels.shape
    assert set(np.unique(found)) <= {BACKGROUND, RED_CELL, CYTOPLASM, NUCLEUS}
    assert len(recwarn) == 0
