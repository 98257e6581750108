"""Drawn DIC: what the DIC detector makes of cells of known thickness, and the fields it learned from."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.detection_drawn import SIDE_PX, drawn_field, drawn_samples, write_fields
from detectors.datasets import LEUKOCYTE, RED_CELL
from pipeline.settings import DetectionSettings
from storage.registry import load
from tests.detector_scenes import drawn_dic


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    return drawn_dic(tmp_path_factory.mktemp("drawn"))


def test_domes_without_pallor_are_leukocytes_in_dic_and_red_cells_are_not(field):
    image, boxes, classes = field
    found, scores = load("detector", "leukocyte-dic").detect(image, 0.1)
    found = found[scores >= DetectionSettings().dic_threshold]
    middle, true = (found[:, :2] + found[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    apart = np.linalg.norm(middle[:, None] - true[None], axis=2)
    hit = (apart < 20).any(0)
    assert hit[classes == "neutrophil_segmented"].all()
    # 73 % of 84 such lymphocytes were found when the weights were made; half of 20 is two deviations below.
    assert hit[classes == "lymphocyte"].mean() >= 0.5
    assert (apart.min(1) < 20).all()  # nothing else, of some hundred red cells


def test_a_drawn_training_field_follows_from_its_seed_and_boxes_what_it_shows():
    image, boxes, classes = drawn_field(3)
    again = drawn_field(3)
    assert all(np.array_equal(a, b) for a, b in zip((image, boxes, classes), again, strict=True))
    assert image.shape == (SIDE_PX, SIDE_PX)
    assert boxes.min() >= 0
    assert boxes.max() <= SIDE_PX
    assert (classes == LEUKOCYTE).sum() >= 3
    relief = np.abs(image.astype(float) - np.median(image))
    whole = [b for b in boxes.round().astype(int) if min(b[:2]) > 5 and max(b[2:]) < SIDE_PX - 5]
    inside = np.zeros(image.shape, bool)
    for x0, y0, x1, y1 in boxes.round().astype(int):
        inside[y0:y1, x0:x1] = True
    for x0, y0, x1, y1 in whole:
        assert relief[y0:y1, x0:x1].mean() > 1.5 * relief[~inside].mean()


def test_written_fields_are_read_as_samples_that_are_dic_already(tmp_path):
    write_fields(tmp_path, 2, 3)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    write_fields(tmp_path, 3, 3)  # what is there stays
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    samples = drawn_samples(tmp_path)
    assert len(samples) == 3
    _, boxes, classes = drawn_field(3)
    first = next(s for s in samples if s.path.stem == "drawn-3")
    assert first.tags == ("dic",)
    assert (first.classes == RED_CELL).sum() == (classes == RED_CELL).sum()
    np.testing.assert_allclose(first.boxes, boxes, atol=0.01)
