"""Promises of a stainer's run folder: a package holds what this run, this recipe and this data made of it."""

from __future__ import annotations

import csv

import pytest

from stainers.choice import best_of, keep_best
from tests.domain_scenes import domain_set
from tests.test_stainers_adversarial import recipe, two_stains  # noqa: F401  (fixtures)
from tests.test_stainers_multidomain import make_run as make_multidomain
from tests.test_stainers_multidomain import recipe as domain_recipe  # noqa: F401  (a fixture)

torch = pytest.importorskip("torch")


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def fit_multidomain(folder, plan, data=None, **options):
    from stainers.domain_sets import DomainSampler
    from stainers.domain_training import fit_domains

    data, run = data or domain_set(), make_multidomain(plan)
    fit_domains(run, DomainSampler(data, plan.data, plan.run.seed), data, folder, **options)
    return run


def spoilt_folder(folder):
    """A run folder of which the checkpoint alone was taken away: the rest is an earlier run's."""
    folder.mkdir(exist_ok=True)
    for name in ("best-loss.pt", "best-forward.pt", "step-000002.pt"):
        torch.save({"step": 4, "averages": {}}, folder / name)
    (folder / "choice.csv").write_text("step,loss\n2,-9.0\n4,-9.5\n")
    (folder / "losses.csv").write_text("step,old\n1,0.5\n2,0.5\n")


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_begins_ships_nothing_of_an_earlier_one_in_its_folder(domain_recipe, tmp_path, resume):  # noqa: F811
    spoilt_folder(tmp_path)
    run = fit_multidomain(tmp_path, domain_recipe, resume=resume)
    assert {p.name for p in tmp_path.glob("*-*.pt")} == {"best-loss.pt"}
    assert [r["step"] for r in rows(tmp_path / "choice.csv")] == ["4", "8"]
    assert len(rows(tmp_path / "losses.csv")) == 8
    run.take_averages(best_of(tmp_path, "loss"))  # whole, and of this network


def test_a_gan_that_begins_ships_nothing_of_an_earlier_one_in_its_folder(two_stains, recipe, tmp_path):  # noqa: F811
    from stainers.cyclegan import train

    spoilt_folder(tmp_path)
    train(two_stains, tmp_path, recipe)
    assert {p.name for p in tmp_path.glob("*-*.pt")} == {"best-loss.pt"}
    assert [r["step"] for r in rows(tmp_path / "choice.csv")] == ["2", "4"]
    assert best_of(tmp_path, "loss") is not None


def test_a_held_out_error_that_is_no_number_chooses_no_checkpoint(domain_recipe, tmp_path, monkeypatch):  # noqa: F811
    spoilt_folder(tmp_path)
    monkeypatch.setattr("stainers.domain_training.DomainRun.pair_error", lambda *_: float("nan"))
    fit_multidomain(tmp_path, domain_recipe)
    assert best_of(tmp_path, "loss") is None
    assert [r["loss"] for r in rows(tmp_path / "choice.csv")] == ["nan", "nan"]


def test_a_gans_first_look_that_is_no_number_does_not_bar_the_later_ones(tmp_path):
    for step, loss in ((2, float("nan")), (4, 3.0), (6, 2.0), (8, 2.5)):
        keep_best(tmp_path, step, {"loss": loss, "forward": loss}, {"step": step, "averages": {}})
    for name, step in (("loss", 6), ("forward", 4)):  # an error is to be low, a score high
        assert torch.load(best_of(tmp_path, name), weights_only=True)["step"] == step


def test_a_best_checkpoint_whose_step_the_table_does_not_name_is_not_shipped(tmp_path):
    keep_best(tmp_path, 4, {"loss": 1.0}, {"step": 4, "averages": {}})
    assert best_of(tmp_path, "loss") == tmp_path / "best-loss.pt"
    torch.save({"step": 3, "averages": {}}, tmp_path / "best-loss.pt")
    assert best_of(tmp_path, "loss") is None
    assert best_of(tmp_path, "last") is None
