"""The trainings on drawn marrows through the command line: a tiny recipe, whole, and taken up again."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from flows.cli import group
from phantoms import marrow_fields, marrow_sets
from pipeline.errors import BadInput
from storage.packages import read_package
from storage.registry import load

torch = pytest.importorskip("torch")
TASKS = {
    "perls-finder": "detector",
    "perls-reader": "sideroblast-reader",
    "marrow-classifier": "classifier",
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    from classifiers import erythroblasts_training, sideroblasts_training
    from detectors import perls_nuclei_training

    small = partial(marrow_fields.training_fields, side_um=48.0, n_cells=8)
    monkeypatch.setattr(marrow_sets, "training_fields", small)
    few = {"batch": 4, "n_validation": 2, "n_stainings": 2}
    finder = partial(perls_nuclei_training.NucleiRecipe, hidden=(4, 3), members=2, **few)
    monkeypatch.setattr(perls_nuclei_training, "NucleiRecipe", finder)
    few["widths"] = (4, 4, 4)
    reader = partial(sideroblasts_training.ReaderRecipe, **few)
    monkeypatch.setattr(sideroblasts_training, "ReaderRecipe", reader)
    recipe = replace(erythroblasts_training.RECIPE, **few)
    monkeypatch.setattr(erythroblasts_training, "RECIPE", recipe)


def train(what: str, out: Path, *more: object) -> Result:
    line = ["train", what, "--out", out, "--steps", 2, "--marrows", 2, "--seed", 3, *more, "--json"]
    return CliRunner().invoke(group, [str(a) for a in line])


def answer(what: str, package: Path) -> None:
    """Ask a model of drawn marrow; the shape of what it says is checked, not what it is."""
    model = load(TASKS[what], str(package))
    stain = "MGG" if what == "marrow-classifier" else "Perls"
    (field,) = marrow_fields.training_fields(9, stain, side_um=48.0, n_cells=8, n_stainings=1)
    patch = field.image[None, :160, :160]
    if what == "perls-finder":
        boxes, scores = model.detect(field.image, 0.125)
        assert boxes.shape == (len(scores), 4)
    elif what == "perls-reader":
        (reading,) = model.read(patch, 0.125)
        assert reading.type in {"0", "1", "2", "3", "indeterminate"}
    else:
        assert model.classify(patch, 0.125).probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("what", TASKS)
def test_a_training_on_phantoms_ends_in_a_package_that_answers_and_says_what_it_learned_from(what, tmp_path):
    out, work = tmp_path / "mine", tmp_path / "drawn"
    done = train(what, out, "--work", work)
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    card = read_package(out).card
    assert json.loads(done.stdout) == {
        "model": what,
        "out": str(out),
        "package": str(out),
        "metrics": card.metrics,
    }
    assert card.name == "mine"
    assert card.task == TASKS[what]
    assert card.training["seed"] == 3
    assert card.training["recipe"]["steps"] == card.training["recipe"]["n_marrows"] == 2
    assert "Phantom marrows" in card.training_data[0]
    assert "No photograph" in card.training_data[0]
    assert any("drawn cells only" in limit for limit in card.limits)
    assert "marrow 2/2 drawn" in done.stderr
    assert len(list((work / "fields").iterdir())) == 4
    answer(what, out)

    again = train(what, out, "--work", work, "--resume")
    assert again.exit_code == 0, again.output
    assert read_package(out).card.sha256 == card.sha256
    other = train(what, out, "--work", work, "--resume", "--steps", 3)
    assert isinstance(other.exception, BadInput)
    assert "another recipe or other settings" in str(other.exception)


@pytest.mark.parametrize(("option", "value"), [("--steps", 0), ("--marrows", 1)])
def test_a_training_on_phantoms_of_nothing_is_refused(option, value, tmp_path):
    assert train("perls-reader", tmp_path / "out", option, value).exit_code == 2
    from classifiers.sideroblasts_training import ReaderRecipe
    from detectors.perls_nuclei_training import NucleiRecipe

    for recipe in (ReaderRecipe, NucleiRecipe):
        with pytest.raises(BadInput, match="at least 1 step, 2 marrows"):
            recipe(**{"steps" if option == "--steps" else "n_marrows": value})


def test_a_finder_whose_training_was_cut_off_ends_as_one_that_was_not(tmp_path):
    from detectors.perls_nuclei import FEATURES
    from detectors.perls_nuclei_training import NucleiRecipe, fit

    rng = np.random.default_rng(0)
    features, wanted = rng.normal(size=(20, len(FEATURES))), rng.integers(0, 2, 20).astype(float)
    recipe, weight, checkpoint = NucleiRecipe(steps=3), np.ones(20), tmp_path / "checkpoint.pt"
    whole = fit(features, wanted, weight, recipe, 1)

    def killed(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(features, wanted, weight, recipe, 1, checkpoint=checkpoint, report=killed)
    lines: list[str] = []
    resumed = fit(
        features, wanted, weight, recipe, 1, checkpoint=checkpoint, resume=True, report=lines.append
    )
    assert lines == ["network 2/2 trained"]
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    with pytest.raises(BadInput, match="other images, labels"):
        fit(features, 1 - wanted, weight, recipe, 1, checkpoint=checkpoint, resume=True)


def test_nuclei_that_were_measured_of_other_drawings_are_not_taken(tmp_path):
    from detectors.perls_nuclei_training import _measured

    sets = [
        marrow_sets.field_set(tmp_path / "fields", "Perls", 1, first_seed=seed, n_stainings=1)
        for seed in (5, 6)
    ]
    features = [_measured(fields, tmp_path)[0][0].features for fields in sets]
    assert features[0].shape != features[1].shape or not np.array_equal(*features)
