"""A checkpoint of every family can be chosen by what its pictures are good for, as well as by its loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import BadInput, UnknownName
from stainers import domain_package, downstream, training
from storage.packages import read_package
from tests.domain_scenes import domain_set
from tests.stainer_scenes import tiny_recipe
from tests.test_stainers_multidomain import make_run as make_multidomain
from tests.test_stainers_multidomain import recipe as domain_recipe  # noqa: F401  (a fixture)
from tests.test_stainers_training import folder, smears  # noqa: F401  (fixtures)

torch = pytest.importorskip("torch")


@pytest.fixture
def first_is_best(monkeypatch):
    """A classifier `judge` that likes every later look less; the looks that it was asked for."""
    asked: list[float] = []

    def score_of(classifier, cells):
        assert classifier == "judge"

        def score(paint):
            given, target, real = cells[0]
            assert paint(given, target).shape == real.shape
            asked.append(1 / (1 + len(asked)))
            return asked[-1]

        return score

    monkeypatch.setattr(downstream, "agreement_score", score_of)
    return asked


def test_the_score_is_the_share_of_cells_named_painted_as_in_the_real_stain(monkeypatch):
    def name(pictures):
        return ["dark" if p.mean() < 128 else "light" for p in pictures]

    monkeypatch.setattr(downstream, "namer", lambda classifier, pixel_size_um: name)
    real = [np.full((4, 4, 3), grey, np.uint8) for grey in (50, 60, 200, 210)]
    score = downstream.agreement_score("judge", [(r[..., :1], 0, r) for r in real])
    assert score(lambda given, target: given.repeat(3, 2)) == 1
    assert score(lambda given, target: np.zeros((4, 4, 3), np.uint8)) == 0.5
    with pytest.raises(BadInput, match="held-out pairs"):
        downstream.agreement_score("judge", [])


def test_the_step_that_a_classifier_names_best_is_shipped_of_the_dic_stainer(
    folder, smears, first_is_best, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(training, "load_smears", lambda *_, **__: smears)
    recipe = replace(tiny_recipe(4), chooser="judge", choose_every=2)
    training.train_stainer(folder, tmp_path, recipe=recipe, cells_per_domain=1)
    assert len(first_is_best) == 2
    said = read_package(tmp_path / "package").card.training
    assert (said["steps_done"], said["checkpoint_step"]) == (4, 2)
    assert said["checkpoint"] == "most held-out cells named like the real ones by judge"
    kept = torch.load(tmp_path / "best-forward.pt", weights_only=True)["averages"]["forward"]
    shipped = read_package(tmp_path / "package").state_dict()
    assert all(torch.equal(v, shipped[f"generator.{k}"]) for k, v in kept.items() if v.ndim)


def test_looks_change_nothing_that_is_learned_and_a_resumed_run_looks_as_an_uninterrupted_one(
    smears, tmp_path  # noqa: F811
):  # fmt: skip
    recipe = replace(tiny_recipe(4), chooser="loss", choose_every=2)
    whole = training.train_generator(smears, tmp_path / "whole", recipe)
    plain = training.train_generator(smears, tmp_path / "plain", tiny_recipe(4))
    training.train_generator(smears, tmp_path / "parts", recipe, stop_at=2)
    training.train_generator(smears, tmp_path / "parts", recipe, resume=True)
    for key, value in whole.average.state_dict().items():
        assert torch.equal(value, plain.average.state_dict()[key])
    assert not (tmp_path / "plain" / "choice.csv").exists()  # the last needs no look
    tables = [(tmp_path / name / "choice.csv").read_text() for name in ("whole", "parts")]
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 3


def test_the_step_that_a_classifier_names_best_is_shipped_of_a_multi_domain_stainer(
    domain_recipe, first_is_best, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    plan = replace(domain_recipe, data=replace(domain_recipe.data, chooser="judge"))
    runs = []
    monkeypatch.setattr(domain_package, "load_smears", lambda _: [])
    monkeypatch.setattr(domain_package, "domains_of", lambda *_: domain_set())
    monkeypatch.setattr(domain_package, "make_run", lambda recipe, _: make_multidomain(recipe))
    monkeypatch.setattr(domain_package, "polarity_net", lambda *_: None)
    monkeypatch.setattr("stainers.pair_sources.computed_pairs", lambda *_, **__: [])

    def export(net, polarity, recipe, text, place, **_):
        runs.append((text.training, {k: v.clone() for k, v in net.state_dict().items()}))
        return type("Package", (), {"card": type("Card", (), {"metrics": {}})})

    monkeypatch.setattr(domain_package, "export_dic", export)
    domain_package.train_folder(tmp_path, tmp_path / "run", recipe=plan)
    assert len(first_is_best) == 2
    said, shipped = runs[0]
    assert (said["steps_done"], said["checkpoint_step"]) == (8, 4)
    assert said["checkpoint"] == "most held-out cells named like the real ones by judge"
    kept = torch.load(tmp_path / "run" / "best-stain.pt", weights_only=True)["averages"]["stain"]
    assert all(torch.equal(v, shipped[k]) for k, v in kept.items())


def test_a_chooser_that_there_is_none_of_is_refused_before_training(smears, tmp_path):  # noqa: F811
    recipe = replace(tiny_recipe(4), chooser="no-such-classifier")
    with pytest.raises(UnknownName, match="no-such-classifier"):
        training.train_generator(smears, tmp_path, recipe)
    assert not (tmp_path / "losses.csv").exists()


def test_who_chooses_is_in_the_mark_of_a_recipe_only_where_it_is_not_as_ever(domain_recipe):  # noqa: F811
    from stainers.data_marks import mark_of_recipe

    assert mark_of_recipe(domain_recipe) == repr(domain_recipe)
    assert "chooser" not in repr(domain_recipe)
    plan = replace(domain_recipe, data=replace(domain_recipe.data, chooser="last"))
    assert mark_of_recipe(plan) == repr(domain_recipe) + " chooser='last'"


def test_a_set_of_pairs_in_memory_is_not_chosen_from_without_a_word(tmp_path):
    from stainers import dic_sets, film_sets
    from tests.test_stainers_adversarial import cells

    data = dic_sets.DicSet(cells("dic", (90, 90), channels=2), cells("bccd", (200, 40, 60)), True)
    with pytest.raises(BadInput, match="chooser to last"):
        film_sets.train_set(data, tmp_path, replace(tiny_recipe(2), chooser="loss"), polarity=None)
