"""The classification stage: labels from probabilities, whatever the model's classes are."""

from __future__ import annotations

import numpy as np
import pytest

from classifiers.base import Classified, Classifier
from pipeline.classification import choose_label, classify_patches, without_slivers
from pipeline.errors import BadInput
from pipeline.settings import ClassificationSettings
from pipeline.types import Cell, CellClass


class Brightness:
    """A classifier whose answer is known: dark patches are lymphocytes, light ones split neutrophils."""

    name = "brightness"
    classes = ("neutrophil_band", "neutrophil_segmented", "lymphocyte")
    min_confidence = 0.7

    def classify(self, patches, pixel_size_um):
        dark = patches.reshape(len(patches), -1).mean(1) < 128
        p = np.where(dark[:, None], [0.1, 0.1, 0.8], [0.33, 0.31, 0.36]).astype(np.float32)
        return Classified(p, np.zeros(len(patches), np.float32))


def test_a_parent_wins_where_its_children_together_are_likelier():
    label, p = choose_label({"neutrophil_band": 0.33, "neutrophil_segmented": 0.31, "lymphocyte": 0.36})
    assert label == "neutrophil"
    assert p == pytest.approx(0.64)


def test_a_child_is_named_where_it_holds_most_of_its_parent():
    assert choose_label({"neutrophil_band": 0.1, "neutrophil_segmented": 0.6, "lymphocyte": 0.3}) == (
        "neutrophil_segmented",
        0.6,
    )


def test_a_class_that_is_a_parent_itself_is_kept():
    assert choose_label({"neutrophil": 0.5, "immature_granulocyte": 0.3, "platelet": 0.2})[0] == "neutrophil"
    assert choose_label({"lymphocyte": 0.5, "lymphocyte_reactive": 0.1, "monocyte": 0.4})[0] == "lymphocyte"


def test_every_patch_becomes_one_typed_cell_in_order():
    patches = np.stack([np.full((20, 30, 3), v, np.uint8) for v in (10, 250)])
    found = classify_patches(patches, 0.1, Brightness(), ClassificationSettings())
    cells = found.cells(["a", "b"], virtual=True, stain_confidence=[0.9, 0.8])
    assert [c.label for c in cells] == ["lymphocyte", "neutrophil"]
    assert cells[1].confidence == pytest.approx(0.64)
    assert sum(cells[0].probabilities.values()) == pytest.approx(1)
    assert cells[0].virtual
    assert cells[1].stain_confidence == pytest.approx(0.8)
    assert found.min_confidence == 0.7
    assert isinstance(Brightness(), Classifier)


def test_a_setting_overrides_the_confidence_of_the_card():
    found = classify_patches(
        np.zeros((0, 8, 8, 3), np.uint8), None, Brightness(), ClassificationSettings(min_confidence=0.2)
    )
    assert found.min_confidence == 0.2


def test_no_patches_give_no_cells():
    found = classify_patches(np.zeros((0, 8, 8, 3), np.uint8), None, Brightness(), ClassificationSettings())
    assert len(found) == 0
    assert found.cells([]) == []


@pytest.mark.parametrize(
    "patches",
    [np.zeros((2, 8, 8), np.uint8), np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)],
)
def test_patches_of_another_shape_are_refused(patches):
    with pytest.raises(BadInput, match="colour"):
        classify_patches(patches, None, Brightness(), ClassificationSettings())


def test_an_impossible_pixel_size_is_refused():
    with pytest.raises(BadInput, match="pixel size"):
        classify_patches(np.zeros((1, 8, 8, 3), np.uint8), 0.0, Brightness(), ClassificationSettings())


def test_a_cell_of_which_an_edge_leaves_too_little_is_not_named_but_keeps_its_probabilities():
    def cell(number, seen, stain="MGG"):
        return Cell(
            cell_id=f"s1/F1/{number:04d}",
            slide="s1",
            field="F1",
            modality="brightfield",
            stain=stain,
            bbox_px=(0.0, 0.0, 10.0, 10.0),
            score=0.9,
            x_um=None,
            y_um=None,
            at_border=True,
            seen=seen,
        )

    cells = [cell(1, 1.0), cell(2, 0.4), cell(3, 0.39), cell(4, 0.2, "Perls")]
    named = [
        CellClass(
            cell_id=c.cell_id, label="monocyte", probabilities={"monocyte": 1.0}, confidence=1.0, ood=0.1
        )
        for c in cells
    ]
    found = without_slivers(named, cells, ClassificationSettings().min_seen)
    assert [c.label for c in found] == ["monocyte", "monocyte", "unidentified", "monocyte"]
    assert [c.probabilities for c in found] == [{"monocyte": 1.0}] * 4


def test_ids_that_do_not_match_are_refused():
    found = classify_patches(np.zeros((1, 8, 8, 3), np.uint8), None, Brightness(), ClassificationSettings())
    with pytest.raises(BadInput, match="one id"):
        found.cells(["a", "b"])
