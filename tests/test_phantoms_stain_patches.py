"""The phantom patch data set of virtual Perls: the paper's numbers, its imbalance, its patients."""

from __future__ import annotations

import numpy as np
import pytest

from phantoms.stain_patches import (
    TABLE_1,
    draw_patches,
    paper_counts,
    paper_patches,
    patch_case,
    patient_styles,
)
from pipeline.errors import BadInput


def test_the_preset_has_the_numbers_of_table_1():
    assert TABLE_1 == {
        ("MGG", "train"): (1527, 110),
        ("MGG", "test"): (140, 65),
        ("Perls", "train"): (791, 499),
        ("Perls", "test"): (63, 65),
    }
    assert sum(paper_counts("MGG", "train")) == 1637
    assert sum(paper_counts("Perls", "train")) == 1290
    assert sum(paper_counts("MGG", "test")) + sum(paper_counts("MGG", "train")) == 1842
    with pytest.raises(BadInput, match="no validation patches"):
        paper_counts("MGG", "validation")


def test_a_small_preset_keeps_the_imbalance_and_is_the_same_for_a_seed():
    small = [
        paper_patches("MGG", "train", scale=0.02, seed=s, size_px=32, pixel_size_um=0.4) for s in (1, 1, 2)
    ]
    assert len(small[0]) == sum(paper_counts("MGG", "train", 0.02)) == 33
    assert int(small[0].positive.sum()) == 2
    assert np.array_equal(small[0].images, small[1].images)
    assert not np.array_equal(small[0].images, small[2].images)
    assert np.array_equal(small[0].positive, small[0].rs_types == 3)


def test_patients_of_the_test_are_none_of_the_training():
    styles = [patient_styles(p, s, 0)["MGG"] for s in ("train", "test") for p in range(3)]
    assert len({repr(s) for s in styles}) == 6


def test_without_a_correlate_an_mgg_patch_does_not_depend_on_its_type():
    style = patient_styles(0, "train", 0)["MGG"]
    kinds = {"size_px": 48, "pixel_size_um": 0.25, "nuisances": 0.0}
    three, zero = (draw_patches(np.array([t]), "MGG", style, (5,), correlate=0.0, **kinds) for t in (3, 0))
    assert np.array_equal(three, zero)
    three, zero = (draw_patches(np.array([t]), "MGG", style, (5,), correlate=1.0, **kinds) for t in (3, 0))
    assert not np.array_equal(three, zero)


def test_a_case_has_the_share_that_was_asked_for():
    case = patch_case(3, 0.25, n_cells=8, size_px=32, pixel_size_um=0.4)
    assert case.rs_pct == 25.0
    assert case.images.shape == (8, 32, 32, 3)
