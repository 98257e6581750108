"""The classifier of erythroblasts on MGG marrow: what it is trained on, and what it may not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from classifiers.base import Classifier
from classifiers.erythroblasts import CLASSES, RANKS, ErythroblastClassifier, energy, unfamiliar
from classifiers.erythroblasts_training import confusion_of, erythroid_set, label_of
from classifiers.sideroblasts_cnn import IronNet
from phantoms.marrow_fields import ERYTHROID_RECIPES, RECIPES, training_fields
from phantoms.marrow_sets import FieldSet
from storage.registry import load


@pytest.fixture(scope="module")
def fields() -> FieldSet:
    drawn = tuple(training_fields(5, "MGG", side_um=40.0, n_cells=5, n_stainings=1))
    return FieldSet(np.stack([f.image for f in drawn]), drawn)


def test_the_iron_of_a_cell_plays_no_part_in_what_it_is_called() -> None:
    for recipe in RECIPES:
        names = {CLASSES[label_of(recipe, iron)] for iron in (-1, 0, 1, 2, 3)}
        assert names == {
            "proerythroblast"
            if recipe == "proerythroblast"
            else "erythroblast"
            if recipe in ERYTHROID_RECIPES
            else "other"
        }


def test_training_shows_every_whole_cell_and_places_without_one(fields: FieldSet) -> None:
    data = erythroid_set(fields, 2, 0)
    whole = sum(int((f.visible >= 0.98).sum()) for f in fields.fields)
    assert whole <= len(data.labels) <= whole + 2
    assert data.labels.max() < len(CLASSES)


def test_an_erythroblast_of_any_age_counts_as_one() -> None:
    p = np.array([[0.3, 0.3, 0.4], [0.0, 0.9, 0.1], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]])
    found = confusion_of(p, np.array([0, 1, 1, 2]))
    assert (found["n_erythroblasts"], found["recall"], found["precision"]) == (3, 0.6667, 0.6667)
    assert found["true_then_named"]["proerythroblast"]["other"] == 1


def test_what_speaks_for_no_class_is_unfamiliar() -> None:
    familiar = np.linspace(1.0, 9.0, RANKS)
    ood = unfamiliar(np.array([[9.5, 0, 0], [5.0, -9, -9], [0.0, 0, 0]]), familiar)
    assert ood[0] == 0
    assert ood[1] == pytest.approx(0.5, abs=0.02)
    assert ood[2] > 0.9
    assert energy(np.zeros((1, 3)))[0] == pytest.approx(np.log(3))


def test_without_a_pixel_size_a_patch_is_taken_to_be_25_um_wide() -> None:
    torch.manual_seed(0)
    net = ErythroblastClassifier("untrained", IronNet((4, 4, 4), len(CLASSES)), torch.zeros(RANKS))
    assert isinstance(net, Classifier)
    patch = np.random.default_rng(0).integers(0, 255, (1, 128, 128, 3)).astype(np.uint8)
    assert np.array_equal(net.classify(patch, None).probabilities, net.classify(patch, 0.2).probabilities)


def test_the_shipped_one_tells_drawn_erythroblasts_from_other_cells_and_from_glass() -> None:
    shipped = load("classifier", "marrow-erythroblasts")
    right = total = 0
    for seed in (900_001, 900_004):
        (field,) = training_fields(seed, "MGG", side_um=48.0, n_cells=8, n_stainings=1, max_nuisances=0.5)
        for (x0, y0, x1, y1), recipe, visible in zip(field.boxes, field.recipes, field.visible, strict=True):
            if visible < 0.98:
                continue
            x, y = int(x0 + x1) // 2, int(y0 + y1) // 2
            padded = np.pad(field.image, ((102, 102), (102, 102), (0, 0)), "reflect")
            p = shipped.classify(padded[None, y : y + 204, x : x + 204], 0.125).probabilities[0]
            right += (p[2] < 0.5) == (RECIPES[recipe] in ERYTHROID_RECIPES)
            total += 1
    assert total >= 5
    assert right >= 0.8 * total
    glass = np.clip(np.random.default_rng(1).normal(240, 2, (1, 256, 256, 3)), 0, 255).astype(np.uint8)
    assert shipped.classify(glass, 0.1).probabilities[0, 2] > 0.5
