"""The seven recipes of virtual Perls are the seven columns of the paper's table 2."""

from __future__ import annotations

from pathlib import Path

import pytest

import stainers.recipes
from stainers.recipes import read_recipe

# Hernández-Abad et al., table 2: data set class, generator, discriminator layers.
TABLE_2 = {
    1: ("random", "resnet", 3),
    2: ("label", "resnet", 3),
    3: ("label", "unet", 3),
    4: ("label", "resnet", 2),
    5: ("label", "resnet", 5),
    6: ("label", "unet", 2),
    7: ("label", "unet", 5),
}


@pytest.mark.parametrize("number", TABLE_2)
def test_a_recipe_is_its_column_of_the_papers_table(number):
    recipe = read_recipe(f"perls-{number}")
    pairing, kind, layers = TABLE_2[number]
    assert (recipe.draw.pairing, recipe.generator.kind, recipe.discriminator.layers) == (
        pairing,
        kind,
        layers,
    )
    assert (recipe.generator.blocks if kind == "resnet" else 9) == 9
    assert recipe.generator.levels == (2 if kind == "resnet" else 8)
    assert (recipe.run.epochs, recipe.run.learning_rate, recipe.run.decay_from) == (200, 2e-4, 0.5)
    assert (recipe.draw.crop_px, recipe.data.source, recipe.data.target) == (256, "MGG", "Perls")


@pytest.mark.parametrize("name", [*(f"perls-{n}" for n in TABLE_2), "cyclegan"])
def test_no_recipe_of_a_cyclegan_ships_the_step_of_its_lowest_loss(name):
    assert read_recipe(name).data.chooser == "last"


@pytest.mark.parametrize("number", TABLE_2)
def test_a_recipe_cites_its_column(number):
    text = (Path(stainers.recipes.__file__).parent / f"perls-{number}.yaml").read_text(encoding="utf-8")
    assert f"table 2, column {number}" in text


@pytest.mark.parametrize("number", TABLE_2)
def test_the_networks_of_a_recipe_take_a_patch_of_the_paper(number):
    import torch

    from stainers.gan_networks import MultiScale, build

    recipe = read_recipe(f"perls-{number}")
    with torch.device("meta"):
        generator = build(recipe.generator, 3, 3)
        judge = MultiScale(3, recipe.discriminator)
        patch = torch.zeros(1, 3, 256, 256)
        assert generator(patch, torch.zeros(1, dtype=torch.long)).shape == (1, 3, 256, 256)
        assert judge(patch)[0].real.shape[-1] >= 1
    assert recipe.discriminator.smallest_px() <= recipe.draw.crop_px
