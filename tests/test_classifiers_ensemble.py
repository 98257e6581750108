"""Classifiers of several networks: each as if trained alone, one answer, one package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classifiers.augment import Augmentation
from classifiers.cell_set import cell_set
from classifiers.explaining import attribution
from classifiers.recipes import Companion, Recipe
from classifiers.sources import read_samples
from classifiers.timm_classifier import TimmClassifier
from classifiers.training import fit, new_net, train_classifier
from pipeline.errors import BadInput, BadModelPackage
from storage.packages import ModelPackage, read_package, write_package
from tests.class_folders import class_folders

ALONE = Recipe(
    input_px=32,
    cached_px=48,
    epochs=2,
    batch=4,
    samples_per_epoch=8,
    augmentation=Augmentation(rotation=False),
)
TWO = replace(ALONE, companions=(Companion(epochs=1, samples_per_epoch=12, weight=0.5),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def package(folder, tmp_path_factory) -> ModelPackage:
    return read_package(train_classifier(folder, tmp_path_factory.mktemp("run") / "two", TWO, holdout=0.3))


def patches(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.rglob("*.png"))])


def single(package: ModelPackage, member: int, out: Path) -> TimmClassifier:
    """The package of one of its networks alone, which knows nothing of familiarity."""
    prefix = ("network.", "companions.0.")[member]
    own = new_net(ALONE, locator=False, seed=0).state_dict()
    state = {k: v for k, v in own.items() if k.startswith("familiarity.")}
    of_member = {k.removeprefix(prefix): v for k, v in package.state_dict().items() if k.startswith(prefix)}
    state |= {f"network.{k}": v for k, v in of_member.items()}
    card = package.card.model_dump()
    card["parameters"] = {**card["parameters"], "member_weights": [1.0]}
    write_package(out, card, state)
    return TimmClassifier.from_package(read_package(out))


def test_every_network_ends_as_if_trained_alone(folder):
    cells = cell_set(read_samples(folder), TWO)
    both = fit(new_net(TWO, locator=False, seed=5), cells, TWO, seed=5)
    for number, (network, recipe) in enumerate(zip(both.members, TWO.members, strict=True)):
        assert recipe.companions == ()
        own = fit(new_net(recipe, locator=False, seed=5 + number), cells, recipe, seed=5 + number)
        for key, value in own.network.state_dict().items():
            assert torch.equal(value, network.state_dict()[key]), key


def test_a_resumed_ensemble_ends_with_the_weights_of_an_uninterrupted_one(folder, tmp_path):
    cells = cell_set(read_samples(folder), TWO)
    whole = fit(new_net(TWO, locator=False, seed=3), cells, TWO, seed=3)
    kept = {"seed": 3, "checkpoint": tmp_path / "c.pt"}
    fit(new_net(TWO, locator=False, seed=3), cells, TWO, stop_after=1, **kept)
    resumed = fit(new_net(TWO, locator=False, seed=3), cells, TWO, resume=True, **kept)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_the_answer_is_the_weighted_mean_of_the_networks_logits(package, folder, tmp_path):
    both = TimmClassifier.from_package(package)
    assert package.card.parameters["member_weights"] == [1.0, 0.5]
    cells = patches(folder)
    embedding, logits, _ = both.embed(cells, None)
    each = [single(package, i, tmp_path / str(i)).embed(cells, None) for i in range(2)]
    assert not np.allclose(each[0][1], each[1][1], atol=1e-3)
    np.testing.assert_allclose(logits, (2 * each[0][1] + each[1][1]) / 3, atol=1e-5)
    np.testing.assert_allclose(embedding, np.concatenate([e[0] for e in each], 1), atol=1e-5)


def test_patients_are_read_by_the_first_network_alone(package, folder, tmp_path):
    cells = patches(folder)
    of_both = TimmClassifier.from_package(package).bag(cells, None)
    of_first = single(package, 0, tmp_path / "first").bag(cells, None)
    for found, expected in zip(of_both, of_first, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_package_without_its_second_network_is_refused(package, tmp_path):
    state = {k: v for k, v in package.state_dict().items() if not k.startswith("companions.")}
    write_package(tmp_path / "torn", package.card.model_dump(), state)
    with pytest.raises(BadModelPackage, match=r"companions\.0.*missing"):
        TimmClassifier.from_package(read_package(tmp_path / "torn"))


def test_grad_cam_asks_every_network(package, folder):
    patch = patches(folder)[0]
    classifier = TimmClassifier.from_package(package)
    seen = package.card.classes.index("eosinophil")
    given = classifier.attribution_input(patch, None)
    heat = attribution(given, [seen], "grad-cam")
    assert len(given.layers) == 2
    alone = [attribution(replace(given, layers=(layer,)), [seen], "grad-cam") for layer in given.layers]
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(heat, (alone[0] + alone[1]) / 2)


def test_training_goes_on_from_each_network_of_an_ensemble(package, folder, tmp_path):
    still = replace(TWO, learning_rate=1e-9, ema=0.0)
    samples = read_samples(folder)
    again = train_classifier(samples[:8], tmp_path / "two", still, start=package.folder, held_out=samples[8:])
    before, after = package.state_dict(), read_package(again).state_dict()
    heads = [k for k in before if k.endswith("fc.weight")]
    assert len(heads) == 2
    for head in heads:
        np.testing.assert_allclose(after[head].float(), before[head].float(), atol=1e-3)
    one = replace(still, companions=())
    again = train_classifier(samples[:8], tmp_path / "one", one, start=package.folder, held_out=samples[8:])
    alone = read_package(again).state_dict()
    assert not any(k.startswith("companions.") for k in alone)
    np.testing.assert_allclose(
        alone["network.fc.weight"].float(), before["network.fc.weight"].float(), atol=1e-3
    )


def test_epochs_given_by_hand_shorten_every_network():
    recipe = replace(ALONE, epochs=14, companions=(Companion(6, 900),))
    assert [(m.epochs, m.samples_per_epoch) for m in recipe.with_epochs(7).members] == [(7, 8), (3, 900)]
    assert [m.epochs for m in recipe.with_epochs(1).members] == [1, 1]


def test_an_unknown_key_of_a_companion_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("companions:\n  - {epochs: 2, sample_per_epoch: 3}\n")
    with pytest.raises(BadInput, match="sample_per_epoch"):
        Recipe.load(tmp_path / "r.yaml")


@pytest.mark.parametrize("of", ["weight: 0", "weight: -1"])
def test_a_companion_that_weighs_nothing_is_refused(tmp_path, of):
    (tmp_path / "r.yaml").write_text(f"companions:\n  - {{epochs: 2, {of}}}\n")
    with pytest.raises(BadInput, match="companions: 'weight' must be above 0"):
        Recipe.load(tmp_path / "r.yaml")


@pytest.mark.parametrize("companions", ["2", "[3]", "[{samples_per_epoch: 8}]"])
def test_companions_that_are_no_list_of_lengths_are_refused(tmp_path, companions):
    (tmp_path / "r.yaml").write_text(f"companions: {companions}\n")
    with pytest.raises(BadInput, match=r"r\.yaml: companions is no list"):
        Recipe.load(tmp_path / "r.yaml")


@pytest.mark.parametrize("weights", [[], [1.0, 0], [1.0, "half"], 2, [float("nan"), 1.0]])
def test_a_card_whose_networks_weigh_nothing_is_refused(package, tmp_path, weights):
    card = package.card.model_dump()
    card["parameters"] = {**card["parameters"], "member_weights": weights}
    write_package(tmp_path / "odd", card, package.state_dict())
    with pytest.raises(BadModelPackage, match="member_weights"):
        TimmClassifier.from_package(read_package(tmp_path / "odd"))
