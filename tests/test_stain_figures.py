"""What stands behind a figure of a stainer: what is drawn again for its interval, and where there is none."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.statistics import clopper_pearson
from stainers.data import Smear
from stainers.intervals import interval
from stainers.pair_sources import Pair

pytest.importorskip("torch")


def test_cells_of_one_source_have_no_interval_and_it_is_said(tmp_path):
    from stainers.evaluation import evaluate_pairs
    from stainers.reliability import correlations
    from tests.stainer_scenes import FakeStainer, pairs_of

    mean, low, high = interval(np.r_[np.ones(10), np.zeros(10)], ["a"] * 20)
    assert mean == 0.5
    assert np.isnan([low, high]).all()
    rng = np.random.default_rng(0)
    r, low, high = correlations(rng.random(30), rng.random(30), ["a"] * 30)["pearson"]
    assert np.isfinite(r)
    assert np.isnan([low, high]).all()
    pairs = [replace(p, source="f") if p.target == "bccd" else p for p in pairs_of(6)]
    pairs = [replace(p, label="") for p in pairs]
    found = evaluate_pairs(FakeStainer(), pairs, spoilt_inputs=False)
    assert found["not_measured"] == "intervals of target bccd: the cells are of one source image"
    assert np.isfinite(found["per_target"]["raabin"]["rmse"]).all()
    assert np.isfinite(found["all"]["rmse"]).all()


def test_what_all_cells_answer_alike_has_an_interval_of_the_width_that_so_many_sources_leave():
    sources = list("abcde") * 2
    mean, low, high = interval(np.ones(10), sources)
    assert (mean, high) == (1, 1)
    assert low == pytest.approx(clopper_pearson(5, 5)[0])  # by hand: 0.025 ** (1 / 5)
    assert low == pytest.approx(0.025**0.2)
    assert interval(np.zeros(10), sources) == pytest.approx((0, 0, 1 - low))
    assert interval(np.zeros(10), sources, span=(-1, 1)) == pytest.approx((0, low - 1, 1 - low))


def test_distances_of_sets_are_of_every_target_and_class_that_has_enough_pairs(monkeypatch):
    from stainers import evaluation, feature_metrics
    from tests.stainer_scenes import FakeClassifier, FakeStainer, pairs_of

    monkeypatch.setattr(evaluation, "MIN_FOR_FRECHET_OF_PART", 4)
    pairs = [replace(p, label="a" if i < 5 else "b") for i, p in enumerate(pairs_of(8))]

    def made():
        return feature_metrics.Encoder(FakeClassifier(), 0.1)

    found = evaluation.evaluate_pairs(FakeStainer(), pairs, encoder=made, spoilt_inputs=False)
    targets = [p.target for p in pairs]
    assert {t: targets.count(t) for t in ("bccd", "raabin")} == {"bccd": 4, "raabin": 4}
    of_target = {t: found["per_target"][t]["encoder_frechet"] for t in ("bccd", "raabin")}
    assert of_target["bccd"] != of_target["raabin"]
    painted = evaluation.measure(FakeStainer(), pairs, [p.dic for p in pairs]).images
    own = [i for i, t in enumerate(targets) if t == "bccd"]
    by_hand = feature_metrics.frechet(made(), [painted[i] for i in own], [pairs[i].stained for i in own])
    assert of_target["bccd"] == pytest.approx(by_hand)
    assert found["per_class"]["a"]["encoder_frechet"] > 0
    assert "encoder_frechet" not in found["per_class"]["b"]
    assert found["not_measured"] == "Fréchet distances of class b: fewer than 4 pairs"


def smear_of(file: str, split: str, seed: int) -> Smear:
    """A field (600, 600, 3) of blotches that no other field has."""
    import cv2

    noise = np.random.default_rng(seed).uniform(0, 255, (600, 600, 3)).astype(np.float32)
    image = np.clip(128 + 12 * (cv2.GaussianBlur(noise, (0, 0), 9) - 128), 0, 255).astype(np.uint8)
    none = np.zeros((0, 4), np.float32)
    return Smear(file, "bccd", split, image, none, none, (230.0, 230.0, 230.0), 0.1)


def test_cells_of_cases_are_of_the_photograph_they_were_cut_from_and_none_of_it_was_trained_on(tmp_path):
    from benchmarks.stain_confidence import not_trained_on

    smears = [
        smear_of(f, s, i) for i, (f, s) in enumerate((("a", "train"), ("b", "test"), ("c", "validation")))
    ]

    def cell(smear: Smear, y: int, x: int, source: str) -> Pair:
        part = smear.image[y : y + 256, x : x + 256]
        return Pair(part[..., :1], part, "bccd", source)

    a, b, c = smears
    cut = [cell(a, 0, 0, "S1/0"), cell(b, 9, 90, "S1/1"), cell(c, 200, 30, "S1/2"), cell(b, 300, 200, "S1/3")]
    held = not_trained_on(cut, smears, tmp_path / "smears.json")
    assert [p.source for p in held] == ["b", "c", "b"]
    assert json.loads((tmp_path / "smears.json").read_text())["S1/0"] == "a"
    blank = [replace(s, image=np.zeros_like(s.image)) for s in smears]
    assert [p.source for p in not_trained_on(cut, blank, tmp_path / "smears.json")] == ["b", "c", "b"]
