"""Promises of a stainer's run folder: a package holds what this run, this recipe and this data made of it."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import BadInput
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


def other_pixel(image):
    changed = image.copy()
    changed[0, 0] ^= 1
    return changed


def without(path, key):
    """A checkpoint as a version wrote it that did not know `key`."""
    state = torch.load(path, weights_only=True)
    del state[key]
    torch.save(state, path)


@pytest.mark.parametrize("what", ["a pixel", "a label", "a name", "a domain"])
def test_a_gan_is_resumed_with_the_data_it_was_made_with_alone(two_stains, recipe, tmp_path, what):  # noqa: F811
    from stainers.cyclegan import train

    train(two_stains, tmp_path, recipe)
    kept = (tmp_path / "losses.csv").read_bytes()
    target = two_stains.target
    changed = {
        "a pixel": {"images": (other_pixel(target.images[0]), *target.images[1:])},
        "a label": {"labels": (*target.labels[:-1], "other")},
        "a name": {"groups": ("renamed", *target.groups[1:])},
        "a domain": {"domain": "green"},
    }[what]
    with pytest.raises(BadInput, match=r"checkpoint.pt was made with other images, labels or pixel sizes"):
        train(replace(two_stains, target=replace(target, **changed)), tmp_path, recipe, resume=True)
    assert (tmp_path / "losses.csv").read_bytes() == kept
    assert train(two_stains, tmp_path, recipe, resume=True).step == 4


def test_several_domains_are_resumed_with_the_data_they_were_made_with_alone(domain_recipe, tmp_path):  # noqa: F811
    data = domain_set()
    fit_multidomain(tmp_path, domain_recipe, data, stop_at=4)
    first = replace(data.cells[0], picture=other_pixel(data.cells[0].picture))
    with pytest.raises(BadInput, match="other images, labels or pixel sizes"):
        fit_multidomain(tmp_path, domain_recipe, replace(data, cells=(first, *data.cells[1:])), resume=True)
    assert fit_multidomain(tmp_path, domain_recipe, data, resume=True).step == 8


def test_the_kept_set_of_several_domains_is_made_anew_where_an_image_changed_under_its_name(
    tmp_path, monkeypatch
):
    from stainers import domain_package
    from stainers.domain_sets import DomainOptions

    made = []
    monkeypatch.setattr(domain_package, "namer", lambda *_: None)
    monkeypatch.setattr(domain_package, "outliner", lambda *_: None)
    monkeypatch.setattr(
        domain_package, "computed_domains", lambda part, *_, **__: made.append(part) or domain_set()
    )
    smears = [smear("a", 1), smear("b", 2)]

    def ask(of):
        domain_package.domains_of(of, "train", DomainOptions(), 0, tmp_path / "pool.npz")
        return len(made)

    assert [ask(smears), ask(smears)] == [1, 1]
    assert ask([replace(smears[0], image=other_pixel(smears[0].image)), smears[1]]) == 2
    assert ask([smears[0], replace(smears[1], leukocytes=smears[1].leukocytes + 1)]) == 3


def smear(name, seed):
    from stainers.data import Smear

    image = np.random.default_rng(seed).integers(90, 230, (160, 160, 3), dtype=np.uint8)
    boxes = np.asarray([[50, 50, 110, 110]], np.float32)
    return Smear(name, "bccd", "train", image, boxes, boxes, (220.0, 220.0, 220.0), 0.2)


def test_the_dic_stainer_is_resumed_with_the_smears_it_was_made_with_alone(tmp_path):
    from stainers.training import train_generator
    from tests.stainer_scenes import tiny_recipe

    plan, smears = tiny_recipe(2), [smear("a", 1), smear("b", 2)]
    train_generator(smears, tmp_path, plan, stop_at=1)
    other = [replace(smears[0], image=other_pixel(smears[0].image)), smears[1]]
    with pytest.raises(BadInput, match="other images, labels or pixel sizes"):
        train_generator(other, tmp_path, plan, resume=True)
    assert train_generator(smears, tmp_path, plan, resume=True).step == 2
    without(tmp_path / "checkpoint.pt", "data")
    with pytest.raises(BadInput, match="does not say with what data it was made"):
        train_generator(smears, tmp_path, plan, resume=True)


def test_a_checkpoint_that_does_not_say_its_data_is_refused(two_stains, recipe, tmp_path):  # noqa: F811
    from stainers.cyclegan import train

    train(two_stains, tmp_path, recipe)
    without(tmp_path / "checkpoint.pt", "data")
    with pytest.raises(BadInput, match=r"does not say with what data it was made \(an earlier version"):
        train(two_stains, tmp_path, recipe, resume=True)


def test_losses_that_begin_in_a_later_phase_are_in_the_table(domain_recipe, tmp_path):  # noqa: F811
    fit_multidomain(tmp_path, domain_recipe)
    found = rows(tmp_path / "losses.csv")
    assert [r["step"] for r in found] == [str(n) for n in range(1, 9)]
    for name in ("cell_class", "segment", "pair"):  # phase 3: the second half, every other step
        assert [bool(r[name]) for r in found] == [False] * 5 + [True, False, True]
    assert all(r["critic"] for r in found)


def test_a_kill_while_a_column_is_added_loses_no_row(tmp_path, monkeypatch):
    from storage.tables import append_rows

    table = tmp_path / "losses.csv"
    append_rows(table, [{"step": 1, "a": 0.5}])
    whole = table.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            append_rows(table, [{"step": 2, "a": 0.4}, {"step": 3, "a": 0.3, "b": 1.0}])
    assert table.read_bytes() == whole
    append_rows(table, [{"step": 2, "a": 0.4}, {"step": 3, "a": 0.3, "b": 1.0}])
    append_rows(table, [{"step": 4, "b": 2.0}])
    assert table.read_text().split() == ["step,a,b", "1,0.5,", "2,0.4,", "3,0.3,1.0", "4,,2.0"]


@pytest.mark.parametrize("resume", [False, True])
def test_the_losses_of_a_dic_stainer_are_those_of_this_run(tmp_path, resume):
    """A second run in the folder begins a new table; a resumed one writes each step once."""
    from stainers.training import train_generator
    from tests.stainer_scenes import tiny_recipe

    plan, smears = tiny_recipe(2), [smear("a", 1), smear("b", 2)]
    train_generator(smears, tmp_path, plan, stop_at=1)
    with (tmp_path / "losses.csv").open("a") as stream:  # a kill came before the next checkpoint
        stream.write("2,9,9,9,9,9\n")
    train_generator(smears, tmp_path, plan, resume=resume)
    found = rows(tmp_path / "losses.csv")
    assert [r["step"] for r in found] == ["1", "2"]
    assert found[1]["l1"] != "9"


def test_choice_csv_holds_the_loss_itself_of_which_the_lowest_is_kept(two_stains, recipe, tmp_path):  # noqa: F811
    from stainers.cyclegan import train

    train(two_stains, tmp_path, recipe)
    found = {int(r["step"]): float(r["loss"]) for r in rows(tmp_path / "choice.csv")}
    assert all(loss > 0 for loss in found.values())
    best = torch.load(tmp_path / "best-loss.pt", weights_only=True)["step"]
    assert found[best] == min(found.values())


@pytest.mark.parametrize(("chosen", "step"), [("forward", 2), ("last", 4), ("backward", 4)])
def test_a_card_names_the_step_whose_weights_it_ships(two_stains, recipe, tmp_path, chosen, step):  # noqa: F811
    """`backward` was never measured: the last weights are shipped, and the card says so."""
    from stainers.picture_training import train_set

    asked = []

    def score(_apply):  # the first look is best
        asked.append(1)
        return 1.0 / len(asked)

    package = train_set(two_stains, tmp_path, recipe, scores={"forward": score}, chosen=chosen)
    said = package.card.training
    assert (said["steps_done"], said["checkpoint_step"]) == (4, step)
    assert said["checkpoint"] == ("forward" if step == 2 else "last")
    if step == 2:
        kept = torch.load(tmp_path / "best-forward.pt", weights_only=True)["averages"]["forward"]
        shipped = package.state_dict()
        assert all(any(torch.equal(v, w) for w in shipped.values()) for v in kept.values())
