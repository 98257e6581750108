"""The benchmark of virtual Perls measures what it says: its judge, its error rates, its training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import virtual_perls
from benchmarks.virtual_perls import as_markdown, correlation, table, transfer
from benchmarks.virtual_perls_data import CONFIGURATIONS, reduced_recipe, side_px
from benchmarks.virtual_perls_judge import Judge, judge_realism
from benchmarks.virtual_perls_labelled import LabelledRun, train_labelled
from stainers.cell_sets import Cells, Sampler, StainSet
from stainers.cyclegan import make_run
from stainers.gan_training import to_batch
from stainers.recipes import read_recipe


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(n: int, level: int, seed: int, side: int = 32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(level, 30, (n, side, side, 3)), 0, 255).astype(np.uint8)


def test_the_judge_tells_what_differs_apart_and_cannot_tell_what_does_not():
    real, alike, other = noise(40, 120, 1), noise(40, 120, 2), noise(40, 170, 3)
    as_real, fooled = judge_realism(real, other, steps=25)
    assert as_real.mean() > 0.9
    assert fooled.mean() < 0.1
    as_real, fooled = judge_realism(real, alike, steps=25)
    assert abs(as_real.mean() - fooled.mean()) < 0.35


def test_readings_that_do_not_depend_on_the_type_are_no_better_than_the_mean():
    rng = np.random.default_rng(0)
    positive = rng.random(400) < 0.3
    blind = transfer(positive, np.where(rng.random(400) < 0.3, "3", "0"))
    assert blind["fnr"]["value"] + blind["fpr"]["value"] == pytest.approx(1, abs=0.12)
    assert blind["rs_error"]["all"] >= blind["rs_error"]["of_the_mean"]
    right = transfer(positive, np.where(positive, "3", "0"))
    assert right["rs_error"]["all"] == 0
    assert right["fnr"]["value"] == right["fpr"]["value"] == 0


def test_what_misses_hurts_at_high_and_what_hallucinates_at_low_percentages():
    positive = np.arange(200) < 100
    misses = transfer(positive, np.where(positive & (np.arange(200) % 2 == 0), "3", "0"))["rs_error"]
    makes_up = transfer(positive, np.where(positive | (np.arange(200) % 4 == 0), "3", "0"))["rs_error"]
    assert misses["high"] > 3 * misses["low"]
    assert makes_up["low"] > makes_up["high"]


def test_the_correlation_needs_rows():
    assert correlation({})["r"] is None


def two_stains(side: int, n: int = 6) -> StainSet:
    def cells(domain: str, level: int, seed: int) -> Cells:
        images = tuple(noise(n, level, seed, side))
        labels = tuple("positive" if i % 2 else "negative" for i in range(n))
        splits = tuple("validation" if i < 2 else "train" for i in range(n))
        return Cells(domain, images, labels, tuple(str(i) for i in range(n)), splits)

    return StainSet(cells("MGG", 100, 1), cells("Perls", 150, 2))


@pytest.mark.parametrize("number", CONFIGURATIONS)
def test_a_reduced_configuration_keeps_what_the_rows_differ_in_and_can_be_trained(number):
    paper, recipe = read_recipe(f"perls-{number}"), reduced_recipe(number, 10)
    assert recipe.draw.pairing == paper.draw.pairing
    assert recipe.generator.kind == paper.generator.kind
    assert recipe.generator.blocks == paper.generator.blocks
    assert recipe.discriminator.layers == paper.discriminator.layers
    recipe = replace(recipe, run=replace(recipe.run, batch=1))
    data = two_stains(side_px(recipe))
    run = make_run(recipe, data)
    sampler = Sampler(data.part("train"), recipe.draw, 0, data.classes)
    before = [p.clone() for p in run.nets["forward"].parameters()]
    parts = run.train_step(to_batch(sampler.batch(0, 1), torch.device("cpu")))
    assert all(np.isfinite(v) for v in parts.values())
    changed = zip(before, run.nets["forward"].parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in changed)


def test_a_labelled_run_asks_each_judge_for_the_label_of_what_it_saw_first(tmp_path, monkeypatch):
    recipe = reduced_recipe("3", 2, width=4)
    recipe = replace(recipe, run=replace(recipe.run, batch=2))
    data = two_stains(64)
    seen = []
    import benchmarks.virtual_perls_labelled as labelled

    def watch(judged, labels):
        seen.append(labels.tolist())
        return judged[0].real.mean() * 0

    monkeypatch.setattr(labelled, "class_loss", watch)
    run = LabelledRun(labelled.labelled_recipe(recipe), 2, 2, None, torch.device("cpu"))
    sampler = Sampler(data.part("train"), labelled.labelled_recipe(recipe).draw, 0, data.classes)
    batch = to_batch(sampler.batch(0, 2), torch.device("cpu"))
    assert sorted(batch.source_label.tolist()) == [0, 1]
    target = batch.target_label.clone().flip(0)  # so that a mix-up would show
    run.train_step(replace(batch, target_label=target))
    s, t = batch.source_label.tolist(), target.tolist()
    assert seen == [t, s, s, t]


def test_a_labelled_run_goes_on_from_a_plain_one(tmp_path):
    from stainers import cyclegan

    recipe = reduced_recipe("3", 1, width=4)
    recipe = replace(recipe, run=replace(recipe.run, batch=1))
    data = two_stains(64)
    plain = cyclegan.train(data, tmp_path / "plain", recipe)
    run = LabelledRun(recipe, 1, 2, tmp_path / "plain" / "checkpoint.pt", torch.device("cpu"))
    mine, theirs = (r.nets["forward"].state_dict() for r in (run, plain))
    assert all(torch.equal(v, theirs[k]) for k, v in mine.items())
    done = train_labelled(data, tmp_path / "labelled", recipe, start=tmp_path / "plain" / "checkpoint.pt")
    assert done.step == 1
    assert (tmp_path / "labelled" / "checkpoint.pt").is_file()


def test_the_table_measures_a_trained_configuration_and_is_kept_row_by_row(tmp_path, monkeypatch):
    def drawn(stain, split, cache, **_):
        n, level = (14, 120) if stain == "MGG" else (10, 170)
        types = np.where(np.arange(n) % 2, 3, 0)
        return {"images": noise(n, level, n, 64), "types": types, "patients": np.zeros(n, int)}

    def bright(images):
        return np.where(images.mean((1, 2, 3)) > 150, "3", "0")

    monkeypatch.setattr(virtual_perls, "drawn", drawn)
    monkeypatch.setattr(virtual_perls, "readers", lambda: {"bright": bright})
    monkeypatch.setattr(virtual_perls, "generator_of", lambda run, name: (lambda images: images, 7))
    monkeypatch.setattr("benchmarks.virtual_perls_judge.train_judge", lambda *a, **k: Judge().eval())
    (tmp_path / "config-2").mkdir()
    (tmp_path / "config-2" / "checkpoint.pt").touch()
    found = table(tmp_path, ["1", "2"])
    assert list(found["rows"]) == ["2"]
    assert found["rows"]["2"]["steps"] == 7
    (distance,) = found["rows"]["2"]["distance"].values()
    assert distance > 0
    assert found["rows"]["2"]["readers"]["bright"]["fnr"]["value"] == 1  # MGG is darker than 150
    assert found["reference"]["bright"]["fpr"]["value"] == 1  # and every Perls patch lighter
    text = as_markdown(found)
    assert "| 2 | label | resnet | 3 | 7 |" in text
    monkeypatch.setattr(virtual_perls, "measure", lambda *a: pytest.fail("a kept row is measured again"))
    assert table(tmp_path, ["2"])["rows"] == found["rows"]
