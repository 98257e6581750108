"""Measures of a cell for the benchmark of unseen hospitals: steady where dye varies, and learnable."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks.classification_measures import CLASSES, as_markdown, measures, scores
from classifiers.metrics import summary
from detectors.base import CYTOPLASM, NUCLEUS, RED_CELL


def drawn(core: int = 16, red: bool = True) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((128, 128), np.uint8)
    if red:
        cv2.circle(labels, (18, 18), 14, RED_CELL, -1)
    cv2.circle(labels, (64, 64), 30, CYTOPLASM, -1)
    cv2.circle(labels, (64, 64), core, NUCLEUS, -1)
    colours = np.array([[0.02, 0.02, 0.02], [0.1, 0.4, 0.35], [0.3, 0.35, 0.15], [1.0, 1.3, 0.6]])
    noise = np.random.default_rng(0).uniform(0.9, 1.1, (128, 128, 1))
    return colours[labels] * noise, labels


def test_the_amount_of_dye_drops_out_of_the_measures():
    density, labels = drawn()
    pale, strong = measures(0.8 * density, labels), measures(1.2 * density, labels)
    assert np.abs(strong - pale).max() < 0.05
    larger = measures(*drawn(core=24))
    assert np.abs(larger - measures(density, labels)).max() > 0.2


@pytest.mark.parametrize("kind", ["no cell", "no nucleus", "no red cell"])
def test_a_cell_that_was_not_segmented_well_is_measured_too(kind):
    density, labels = drawn(red=kind != "no red cell")
    if kind == "no cell":
        labels[:] = 0
    if kind == "no nucleus":
        labels[labels == NUCLEUS] = CYTOPLASM
    found = measures(density, labels)
    assert found.shape == measures(*drawn()).shape
    assert np.isnan(found).sum() in (0, 6)  # what only red cells could tell
    assert np.isnan(found).any() == (kind != "no nucleus")


def test_a_source_is_named_by_what_the_others_taught():
    rng = np.random.default_rng(1)
    y = np.tile(np.arange(5), 24)
    source = np.repeat(["a", "b", "c"], 40)
    x = rng.normal(0, 0.4, (120, 8))
    x[np.arange(120), y] += 3
    x[::7, 5] = np.nan
    test = source == "c"
    told = scores(x, y, source, np.ones(120), test)
    assert (told.argmax(1) == y[test]).mean() > 0.95
    blind = y.copy()
    blind[test] = 0  # the labels of what is tested decide nothing
    assert np.array_equal(told, scores(x, blind, source, np.ones(120), test))


def test_the_table_has_each_source_and_the_mean_of_those_that_decided_nothing():
    m = summary(np.arange(5), np.eye(5) * 0.8 + 0.04, CLASSES)
    none = summary(np.arange(5), np.roll(np.eye(5), 1, 1), CLASSES)
    text = as_markdown({"raabin": {"measures": none}, "tecom": {"measures": m}})
    assert "| raabin (chosen on) | 5 | 0.00" in text
    assert "| mean of the unseen four |" in text
    assert "1.00 / 1.00 |" in text
