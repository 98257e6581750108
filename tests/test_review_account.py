"""What a result says of its review: which corrections still have their cell, and how many changed a class."""

from __future__ import annotations

from pipeline.review import ReviewState, placed_labels, review_part
from tests.report_cases import BLOOD, cells_of


def test_a_correction_without_a_place_passes_to_no_cell():
    cells, _ = cells_of(BLOOD)
    labels = {c.cell_id: "blast" for c in cells[:3]}
    boxes = {c.cell_id: c.bbox_px for c in cells[:2]}
    found = placed_labels(ReviewState(labels=labels, boxes=boxes), cells)
    assert found == {c.cell_id: "blast" for c in cells[:2]}


def test_a_cell_that_no_model_named_and_a_person_calls_unidentified_is_not_reclassified():
    cells, classes = cells_of(BLOOD)
    said = {c.cell_id: "unidentified" for c in cells[-2:]}
    account = review_part(ReviewState(labels=said, boxes={}), said, classes[:-2], len(cells))
    assert (account.n_reclassified, account.pct_reviewed) == (0, 1.0)
    assert review_part(ReviewState(labels=said, boxes={}), said, classes, len(cells)).n_reclassified == 2
