"""The shipped stainer of virtual Perls: its card is true, and where MGG shows nothing it claims nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phantoms.stain_patches import patch_case
from pipeline.report_inputs import ModelUse
from pipeline.report_text import render_text
from pipeline.settings import CountingSettings, Settings
from pipeline.virtual_perls import METRIC, Evidence, judge, read_virtual
from storage.packages import find_package
from storage.registry import load
from tests.report_cases import a_case, a_result, a_run, both, cells_of

NAME = "mgg-to-perls"


@pytest.fixture(scope="module")
def package():
    found = find_package(NAME)
    if found is None:
        pytest.skip("this installation has no virtual Perls")
    return found


def test_the_card_states_the_gain_over_the_mean_at_every_strength(package):
    by_strength = package.card.metrics[f"{METRIC}_by_correlate"]
    assert set(by_strength) == {"0", "0.5", "1"}
    for found in by_strength.values():
        assert found["n_cases"] >= 20
        assert "phantom" in found["measured_on"]
        assert found["rmse_of_mean_pct"] > 0
        gain = found["gain_over_mean_pct"]
        assert gain["low"] <= gain["value"] <= gain["high"]
    assert package.card.metrics[METRIC] == by_strength[f"{package.card.training['correlate']:g}"]


def test_where_mgg_shows_nothing_the_model_was_not_measured_to_beat_the_mean(package):
    assert package.card.metrics[f"{METRIC}_by_correlate"]["0"]["gain_over_mean_pct"]["low"] <= 0


def test_the_card_says_what_it_is_and_the_package_is_small(package):
    card = package.card
    assert (card.stains, card.specimens, card.channels) == (("MGG",), ("bone_marrow",), 3)
    assert card.input_px is not None
    assert any("never" in limit and "patient" in limit for limit in card.limits)
    assert package.weights_path.stat().st_size < 4_000_000


def test_a_case_whose_mgg_shows_nothing_of_its_many_rings_gets_no_figure_and_is_told_why(package):
    torch.set_num_threads(1)
    case = patch_case(901, 0.6, n_cells=12, seed=3, correlate=0.0)
    px, um = package.card.input_px[0], package.card.pixel_size_um
    read = read_virtual(
        case.images,
        um,
        load("stainer", NAME),
        load("sideroblast-reader", "rule"),
        model_px=px,
        model_um=um,
    )
    types = np.array(read.types)
    parts = [
        cells_of({"erythroblast": int((types == t).sum())}, rs_type=t, start=200 * i)
        for i, t in enumerate(sorted(set(types)), 1)
    ]
    cells, classes = both(cells_of({"neutrophil": 20}), *parts)
    classes = tuple(
        c.model_copy(update={"rs_virtual": c.rs_type is not None, "stain_confidence": 0.8}) for c in classes
    )
    used = ModelUse.of(package, (("brightfield", "MGG"),))
    result = a_result(
        settings=Settings(counting=CountingSettings(bootstrap_draws=0)),
        case=a_case(specimen="bone_marrow"),
        read=(cells, classes),
        run=a_run(models=(used,)),
    )
    assert result.sideroblasts.rs_pct is None
    assert "NOT SUPPORTED BY THE IMAGE" in render_text(result)
    support = judge(
        int((types == "3").sum()), int((types != "indeterminate").sum()), Evidence.from_card(package.card)
    )
    assert not support.supported
