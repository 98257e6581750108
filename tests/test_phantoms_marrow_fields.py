"""Training fields of marrow: the same from the same seed, true to their truth, drawn once and kept."""

from __future__ import annotations

import numpy as np
import pytest

from phantoms.marrow_fields import (
    ERYTHROID_RECIPES,
    MIN_VISIBLE,
    RECIPES,
    perls_marrow,
    random_composition,
    training_fields,
)
from phantoms.marrow_sets import field_set

SMALL = {"side_um": 40.0, "pixel_size_um": 0.25, "n_cells": 5}


def test_a_seed_gives_the_same_fields_and_its_stainings_show_the_same_cells() -> None:
    first, again = (list(training_fields(7, "Perls", n_stainings=2, **SMALL)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.image, b.image)
    one, other = first
    assert np.array_equal(one.boxes, other.boxes)
    assert np.array_equal(one.rs_types, other.rs_types)
    assert np.abs(one.image.astype(int) - other.image).mean() > 2  # another stain


@pytest.mark.parametrize("stain", ["MGG", "Perls"])
def test_boxes_lie_in_the_field_and_only_erythroblasts_have_a_type(stain) -> None:
    for seed in range(3):
        field = next(training_fields(seed, stain, n_stainings=1, **SMALL))
        height, width = field.image.shape[:2]
        assert (field.boxes[:, :2] >= 0).all()
        assert (field.boxes[:, 2:] <= (width, height)).all()
        assert ((field.visible >= MIN_VISIBLE) & (field.visible <= 1)).all()
        erythroid = np.isin(field.recipes, [RECIPES.index(r) for r in ERYTHROID_RECIPES])
        assert np.array_equal(field.rs_types >= 0, erythroid)


def test_compositions_add_to_one_or_are_normal_marrow_and_know_every_recipe() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(30):
        shares = random_composition(rng)
        assert set(shares) <= set(RECIPES)
        assert min(shares.values()) >= 0
        seen |= {k for k, v in shares.items() if v > 0.05}
    assert set(ERYTHROID_RECIPES) <= seen  # proerythroblasts too, which are one in a hundred in marrow


def test_a_perls_marrow_has_the_share_of_rings_that_was_asked_for() -> None:
    fields = perls_marrow(5, 0.5, n_fields=2, side_px=500, n_cells_per_field=6, pixel_size_um=0.1)
    types = [s["rs_type"] for _, truth in fields for s in truth["sideroblasts"]]
    assert types.count(3) == int(np.floor(0.5 * len(types) + 0.5))
    for image, truth in fields:
        assert image.shape == (500, 500, 3)
        assert len(truth["recipes"]) == len(truth["cell_ids"])


def test_a_set_is_drawn_once_and_read_again(tmp_path, monkeypatch) -> None:
    drawn = []

    def few(seed, stain, **more):
        drawn.append(seed)
        return training_fields(seed, stain, side_um=30.0, pixel_size_um=0.25, n_cells=3, n_stainings=1)

    monkeypatch.setattr("phantoms.marrow_sets.training_fields", few)
    first = field_set(tmp_path, "Perls", 2, first_seed=1, n_stainings=1)
    again = field_set(tmp_path, "Perls", 2, first_seed=1, n_stainings=1)
    assert drawn == [1, 2]
    assert len(first) == len(again) == 2
    assert np.array_equal(first.images, again.images)
