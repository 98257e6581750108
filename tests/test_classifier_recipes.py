"""Recipes: one for every classification experiment of the papers; each loads, builds and takes steps."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
import torch

from classifiers.augment import Augmentation
from classifiers.cell_set import CellSet
from classifiers.learning_rate import range_test
from classifiers.networks import BACKBONES, CellNet
from classifiers.readers import READERS
from classifiers.recipes import RECIPES, Companion, Recipe, recipe_names
from classifiers.recipes.limits import LIMITS
from classifiers.sources import level_classes
from classifiers.training import fit, new_net, peak_rate
from pipeline.errors import BadInput, UnknownName

# Every experiment of the papers that trains a cell classifier: backbone, loss, data, modality.
EXPERIMENTS = {
    ("inceptionresnetv2-marrow", "inception_resnet_v2", "cross_entropy", "bm-21", "brightfield"),
    ("leukaemia-datasets", "resnext50_32x4d", "cross_entropy", "lmu", "brightfield"),
    ("leukaemia-datasets", "resnext50_32x4d", "cross_entropy", "bm-21", "brightfield"),
    ("stain-standardization-gan", "resnet18", "cross_entropy", "folders", "brightfield"),
    ("stain-standardization-gan", "resnet18", "focal", "folders", "brightfield"),
    ("stain-standardization-gan", "resnet34", "cross_entropy", "folders", "brightfield"),
    ("stain-standardization-gan", "resnet34", "focal", "folders", "brightfield"),
    ("blood-cell-thesis", "resnet18", "cross_entropy", "folders", "brightfield"),
    ("blood-cell-thesis", "resnet18", "cross_entropy", "folders", "dic"),
}


def cells(recipe: Recipe, n: int = 6) -> CellSet:
    """Cached cells of noise, one class after another."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(n, 3, 48, 48, generator=generator) * 255).byte()
    labels = torch.arange(n) % len(level_classes(recipe.level))
    return CellSet(images, torch.full((n,), 0.7), labels, torch.ones(n), ("noise",) * n)


def test_every_experiment_of_the_papers_has_a_recipe():
    found = set()
    for name in recipe_names():
        recipe = Recipe.load(name)
        if recipe.experiment:
            paper = recipe.experiment.split(",")[0]
            found.add((paper, recipe.backbone, recipe.loss, recipe.reader, recipe.modality))
    assert found == EXPERIMENTS


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_its_source_names_a_reader_and_takes_steps(name):
    recipe = Recipe.load(name)
    head = (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    assert head.startswith("# ")
    assert len(head) > 30
    assert recipe.reader in READERS
    small = replace(
        recipe,
        input_px=BACKBONES[recipe.backbone],
        start_px=None,
        epochs=1,
        batch=2,
        samples_per_epoch=4,
        companions=tuple(Companion(1, 4) for _ in recipe.companions),
        learning_rate=1e-3,
    )
    classes = level_classes(recipe.level)
    net = new_net(small, locator=False, seed=0)
    before = [network.get_classifier().weight.detach().clone() for network in net.members]
    net = fit(net, cells(small), small, seed=0)
    for network, weight in zip(net.members, before, strict=True):
        assert not torch.equal(weight, network.get_classifier().weight)
    with torch.inference_mode():
        out = net(torch.zeros(1, 3, small.input_px, small.input_px))
    assert out.shape == (1, len(classes) + 1)
    assert torch.isfinite(out).all()


def test_the_page_lists_every_recipe():
    page = (RECIPES.parents[1] / "docs" / "classification.md").read_text()
    table = page.split("| recipe | experiment |")[1].split("\n\n")[0]
    assert set(re.findall("`([^`]+)`", table)) >= set(recipe_names())


def test_a_recipe_for_dic_may_not_turn_its_shadows():
    with pytest.raises(BadInput, match="direction"):
        Recipe(modality="dic")
    still = Augmentation(rotation=False, flips=False)
    assert Recipe(modality="dic", augmentation=still).views == 1
    assert Recipe().views == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, "vgg"),
        ({"loss": "hinge"}, "hinge"),
        ({"level": "nine"}, "nine"),
        ({"level": ("monocyte",)}, "two"),
        ({"level": ("monocyte", "dragon")}, "dragon"),
        ({"backbone": "inception_resnet_v2", "input_px": 64}, "96"),
        ({"modality": "x-ray"}, "x-ray"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change, message):
    with pytest.raises((BadInput, UnknownName), match=message):
        Recipe(**change)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch: -2", "'batch' must be 2 or more, not -2"),
        ("learning_rate: -1.0", "'learning_rate' must be above 0, not -1.0"),
        ("learning_rate: 1e-3", "'learning_rate' must be a number or null, not '1e-3' (YAML reads"),
        ("balance: abc", "'balance' must be a number, not 'abc'."),
        ("cached_px: 0", "'cached_px' must be 16 or more, not 0"),
        ("epochs: 0", "'epochs' must be 1 or more, not 0"),
        ("epochs: 1.5", "'epochs' must be a whole number, not 1.5"),
        ("epochs: true", "'epochs' must be a whole number, not True"),
        ("samples_per_epoch: 0", "'samples_per_epoch' must be 1 or more, not 0"),
        ("weight_decay: .nan", "'weight_decay' must be a finite number, not nan"),
        ("none_share: 1.0", "'none_share' must be from 0 to below 1, not 1.0"),
        ("zoom: 0", "'zoom' must be above 0, not 0"),
        ("start_px: 16", "'start_px' must be from 32, the least of resnet18_slim, to input_px (96), not 16"),
        ("level: 5", "'level' must be a word or a list of words, not 5"),
        ("augmentation: {blur: 2}", "augmentation: 'blur' must be from 0 to 1, not 2"),
        ("augmentation: {scale: 1.2}", "augmentation: 'scale' must be a list of numbers, not 1.2"),
        ("augmentation: {scale: [0, 1]}", "augmentation: 'scale' must be above 0, not 0"),
        ("augmentation: {scale: [1.2, 0.9]}", "'scale' must be the less and the more"),
        ("augmentation: [1]", "augmentation must hold keys and values"),
        ("companions: [{epochs: 0}]", "companions: 'epochs' must be 1 or more, not 0"),
        ("companions: [{epochs: 1, weight: 0}]", "companions: 'weight' must be above 0, not 0"),
        ("- 1", "must hold keys and values, not list"),
        ("epochs: [", "not a YAML recipe"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_file_and_key(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    with pytest.raises(BadInput, match=re.escape(said)) as refused:
        Recipe.load(tmp_path / "mine.yaml")
    assert str(refused.value).startswith(str(tmp_path / "mine.yaml"))


def test_every_number_and_choice_of_a_recipe_has_a_limit():
    free = {"backbone", "level", "reader", "experiment", "rotation", "flips", "companions", "augmentation"}
    for kind in (Recipe, Companion, Augmentation):
        assert {f.name for f in fields(kind)} - free == LIMITS[kind.__name__].keys() - free


def test_the_levels_of_the_sets_are_their_canonical_classes():
    assert len(level_classes("bm-21")) == 19  # ABE is an eosinophil; LYI and HAC abnormal lymphocytes
    assert len(level_classes("lmu")) == 14  # MYO and MOB are blasts
    assert level_classes(("monocyte", "LYT")) == ("lymphocyte", "monocyte")


class Bowl(torch.nn.Module):
    """Loss is the squared distance of one weight from 3: too large a rate throws it far away."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.5]))

    def forward(self, x):
        return self.weight * x


def bowl_test(net):
    def batch():
        return torch.ones(4, 1), torch.full((4, 1), 3.0), torch.ones(4)

    return range_test(net, batch, lambda out, wanted, _: ((out - wanted) ** 2).mean(), high=100.0)


def test_the_range_test_leaves_the_network_alone_and_stops_where_the_loss_diverges():
    net = Bowl()
    found = bowl_test(net)
    assert net.weight.item() == 2.5
    assert len(found.rates) < 80
    assert found.losses[-1] > 4 * found.losses.min()
    assert 1e-4 < found.suggested < 1.0
    assert bowl_test(Bowl()).suggested == found.suggested


def test_a_recipe_without_a_rate_finds_one_and_training_uses_it():
    recipe = Recipe(
        input_px=32, cached_px=48, batch=2, epochs=1, samples_per_epoch=2, learning_rate=None, none_share=0.0
    )
    torch.manual_seed(0)
    net = CellNet(recipe.backbone, 8, locator=False, none_output=True)
    said: list[str] = []
    fit(net, cells(recipe), recipe, seed=0, report=said.append)
    assert 1e-6 <= float(said[0].split()[2]) <= 0.1
    assert peak_rate(net.network, 8, cells(recipe), replace(recipe, learning_rate=0.03), 0) == 0.03
