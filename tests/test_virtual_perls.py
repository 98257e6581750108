"""Virtual Perls: what is claimed of a case follows from what the model is known to be worth."""

from __future__ import annotations

import numpy as np
import pytest

from classifiers.sideroblasts import SideroblastReading
from pipeline.counting_iron import standing
from pipeline.result_counts import Sideroblasts
from pipeline.settings import CountingSettings
from pipeline.virtual_perls import (
    Evidence,
    false_positive_bounds,
    judge,
    middle_view,
    read_virtual,
    with_support,
)
from pipeline.virtual_perls_evidence import measured_evidence, sum_errors
from stainers.base import Stained
from storage.packages import ModelCard

SETTINGS = CountingSettings()


def some_cases(n: int, cells: int, sensitivity: float, made_up: float, seed: int = 0) -> list[dict]:
    """Cases of 0 to 60 % rings whose cells are read as rings with the given probabilities."""
    rng = np.random.default_rng(seed)
    cases = []
    for share in np.linspace(0, 0.6, n):
        truth = np.where(np.arange(cells) < round(share * cells), 3, 0)
        drawn = rng.random(cells) < np.where(truth == 3, sensitivity, made_up)
        cases.append({"truth": truth, "read": np.where(drawn, "3", "0")})
    return cases


def card(**metrics) -> ModelCard:
    return ModelCard(
        name="mgg-to-perls",
        version="1",
        task="stainer",
        architecture="cyclegan",
        weights="safetensors",
        sha256="0",
        licence="x",
        intended_use="x",
        modalities=("brightfield",),
        stains=("MGG",),
        pixel_size_um=0.2,
        training_data=("x",),
        metrics=metrics,
        limits=("x",),
    )


def evidence(sensitivity: float, made_up: float, **options) -> Evidence:
    found = measured_evidence(some_cases(20, 60, sensitivity, made_up, **options), "phantom cases")
    made = Evidence.from_card(card(virtual_perls=found))
    assert made is not None
    return made


def count(positive: int, n: int, kind: str = "virtual_perls") -> Sideroblasts:
    return Sideroblasts(
        evidence=kind,
        n_erythroblasts=n,
        type0=n - positive,
        type1=0,
        type2=0,
        type3=positive,
        indeterminate=0,
        rs_pct=100 * positive / n,
        ci_low=0,
        ci_high=100,
        limits=SETTINGS.rs_limits_pct,
        standings=tuple(standing(positive, n, x, SETTINGS) for x in SETTINGS.rs_limits_pct),
        code="x",
    )


@pytest.mark.parametrize("made_up", [0.05, 0.4])
def test_a_model_that_does_not_see_the_type_is_never_said_to_beat_the_mean(made_up):
    for seed in range(12):
        blind = evidence(made_up, made_up, seed=seed)
        assert not blind.beats_the_mean
        assert blind.gain_low_pct < 0
        for positive in (0, 10, 40, 60):
            support = judge(positive, 60, blind)
            assert not support.supported
            assert "no better than answering without the image" in support.why


def test_a_model_that_sees_the_type_beats_the_mean_and_its_figure_holds_the_truth():
    model = evidence(0.9, 0.05)
    assert model.beats_the_mean
    assert model.rmse_pct < 0.6 * model.rmse_of_mean_pct
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(60):
        rings = 120
        positive = int(rng.binomial(rings, 0.9) + rng.binomial(300 - rings, 0.05))
        found = with_support(count(positive, 300), model, SETTINGS)
        assert found.support.supported
        inside += found.ci_low <= 40 <= found.ci_high
    assert inside >= 55


def test_positives_at_the_rate_that_the_model_makes_up_are_not_supported():
    model = evidence(0.9, 0.15)
    assert model.beats_the_mean
    rng = np.random.default_rng(4)
    wrong = sum(judge(int(rng.binomial(200, 0.15)), 200, model).supported for _ in range(400))
    assert wrong <= 0.025 * 400
    few = judge(30, 200, model)
    assert "draws rings on up to" in few.why
    assert few.positive_low_pct < few.made_up_high_pct
    assert judge(120, 200, model).supported


def test_a_case_without_support_has_no_percentage_and_judges_no_limit():
    found = with_support(count(12, 60), evidence(0.2, 0.2), SETTINGS)
    assert (found.rs_pct, found.ci_low, found.ci_high, found.standings) == (None, 0.0, 100.0, ())
    assert (found.type3, found.n_erythroblasts) == (12, 60)
    assert not found.support.supported


def test_a_card_that_states_no_measurement_supports_nothing():
    assert Evidence.from_card(card()) is None
    found = with_support(count(50, 60), None, SETTINGS)
    assert found.rs_pct is None
    assert "no measurement" in found.support.why


def test_a_damaged_card_is_refused():
    from pipeline.errors import BadModelPackage

    with pytest.raises(BadModelPackage, match="measure the model again"):
        Evidence.from_card(card(virtual_perls={"errors": {}}))


def test_a_real_stain_is_left_as_it_is():
    real = count(12, 60, kind="perls")
    assert with_support(real, None, SETTINGS) is real
    assert real.support is None


def test_counting_more_virtual_cells_is_not_said_to_settle_a_limit():
    found = with_support(count(40, 100), evidence(0.9, 0.05), SETTINGS)
    assert all(s.more_cells is None for s in found.standings if s.standing == "spans")
    assert {s.limit for s in found.standings} == set(SETTINGS.rs_limits_pct)


def test_cases_that_differ_more_than_chance_widen_what_the_model_may_make_up():
    rng = np.random.default_rng(0)
    alike, unlike = [], []
    for i in range(20):
        for cases, rate in ((alike, 0.2), (unlike, (0.0, 0.4)[i % 2])):
            read = np.where(rng.random(50) < rate, "3", "0")
            cases.append({"truth": np.zeros(50, int), "read": read})
    calm, wild = sum_errors(alike), sum_errors(unlike)
    assert calm.overdispersion < 2 < wild.overdispersion
    assert false_positive_bounds(wild)[1] > false_positive_bounds(calm)[1] + 0.03


def test_the_errors_of_a_chain_are_counted_as_they_are():
    cases = [
        {"truth": np.array([3, 3, 3, 0, 1, 2]), "read": np.array(["3", "0", "indeterminate", "3", "0", "1"])}
    ] * 4
    found = sum_errors(cases)
    counts = (found.ring_read, found.ring_missed, found.ring_lost, found.other_wrong, found.other_read)
    assert counts == (4, 4, 4, 4, 8)


# Staining and reading


class Painter:
    """A stainer that hands the image back, sure of all but dark patches."""

    name, targets, min_confidence = "painter", ("Perls",), 0.5

    def stain(self, patches, target=None):
        sure = (patches.mean(axis=(1, 2, 3)) > 50).astype(np.float32)
        return Stained(patches.copy(), np.zeros(patches.shape[:3], np.float32), sure)


class AlwaysRing:
    name = "always"

    def read(self, patches, pixel_size_um):
        assert pixel_size_um == 0.2
        return [SideroblastReading("3") for _ in patches]


def test_a_cell_that_the_stainer_is_not_sure_of_is_indeterminate():
    patches = np.stack([np.full((256, 256, 3), v, np.uint8) for v in (200, 10)])
    found = read_virtual(patches, 0.1, Painter(), AlwaysRing(), model_px=64, model_um=0.2)
    assert found.types == ("3", "indeterminate")
    assert "not sure" in found.reasons[1]
    assert found.images.shape == (2, 64, 64, 3)


def test_the_view_of_the_model_is_the_middle_of_the_patch_at_its_scale():
    patch = np.zeros((1, 256, 256, 3), np.uint8)
    patch[:, 64:192, 64:192] = 200
    assert middle_view(patch, 0.1, 64, 0.2).min() == 200
    assert middle_view(patch[:, 100:156, 100:156], 0.1, 64, 0.2).shape == (1, 64, 64, 3)
