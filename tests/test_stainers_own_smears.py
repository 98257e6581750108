"""A stainer for a laboratory's own stain: its smears, its target, a card that says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BadInput
from stainers.data import DOMAINS, load_smears, targets_of
from stainers.pair_sources import find_pairs
from stainers.recipes import NetworkRecipe, Recipe
from storage.image_folders import own_source
from storage.packages import find_package, read_package
from storage.registry import load
from tests.stainer_scenes import dic_patches, smear_folder, tiny_recipe

torch = pytest.importorskip("torch")
RECIPE = tiny_recipe(2)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Six smears of a size that no public source has, and of one that a source has."""
    place = tmp_path_factory.mktemp("data") / "My Lab, 2026"
    return smear_folder(place, 3, sizes=((500, 90), (416, 80)))


@pytest.fixture
def parts(monkeypatch):
    """Drawn smears are few: those numbered 0 teach, 1 validate, 2 test."""
    by_number = dict(zip("012", ("train", "validation", "test"), strict=True))
    monkeypatch.setattr("stainers.data.split_of", lambda name, seed: by_number[name[-1]])


def test_smears_of_another_size_are_one_stain_named_after_their_folder(own, tmp_path):
    found = load_smears(own)
    assert len(found) == 6
    assert {s.domain for s in found} == {"my-lab-2026"} == set(targets_of(found))
    public = load_smears(smear_folder(tmp_path / "public", 1))
    assert targets_of(public) == DOMAINS
    assert targets_of(public[:1]) == (public[0].domain,)  # no target without a smear to learn it from
    assert own_source(Path("/x/---")) == "own"


@pytest.mark.parametrize("folder", ["My lab", "raabin"])
def test_own_smears_of_a_size_that_the_public_set_has_are_not_the_public_set(tmp_path, folder):
    place = smear_folder(tmp_path / folder, 2, sizes=((416, 80),))
    for path in sorted(place.rglob("*-416-*")):
        path.rename(path.with_name(f"lab{path.name}"))
    found = load_smears(place)
    assert targets_of(found) == ({"My lab": "my-lab", "raabin": "own-raabin"}[folder],)


@pytest.mark.real
def test_the_public_smears_are_known_by_their_names(real_data):
    assert targets_of(load_smears(real_data / "smears", limit=60)) == DOMAINS


def test_a_stainer_of_own_smears_paints_their_stain_and_its_card_names_them(own, parts, tmp_path):
    from stainers.training import train_stainer

    train_stainer(own, tmp_path / "run", recipe=RECIPE, cells_per_domain=2)
    card = read_package(tmp_path / "run" / "package").card
    assert card.name == "dic-to-my-lab-2026"
    assert "the user's own: my-lab-2026, 2 images" in card.training_data[0]
    assert set(card.metrics["per_target"]) == {"my-lab-2026"}
    stainer = load("stainer", str(tmp_path / "run" / "package"))
    assert stainer.targets == ("my-lab-2026",)
    assert stainer.stain(dic_patches(1)).image.shape == (1, 64, 64, 3)


def test_going_on_from_the_shipped_stainer_keeps_known_targets_and_begins_others_at_their_mean(own):
    from stainers.training import Run, load_start

    card = find_package("dic-to-mgg").card
    network = NetworkRecipe(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in card.parameters["network"].items()}
    )
    recipe = Recipe(start="dic-to-mgg", network=network)
    run = Run(recipe, torch.device("cpu"), targets=("bccd", "my-lab"))
    before = load_start("dic-to-mgg").generator
    rows = before.embedding.weight
    torch.testing.assert_close(run.generator.embedding.weight, torch.stack([rows[1], rows.mean(0)]))
    torch.testing.assert_close(run.generator.head.weight, before.head.weight)


def test_a_run_is_not_resumed_on_smears_of_another_stain(own, parts, tmp_path):
    from stainers.training import train_generator

    smears = load_smears(own)
    train_generator(smears, tmp_path / "run", RECIPE, stop_at=1)
    other = load_smears(smear_folder(tmp_path / "public", 3))
    with pytest.raises(BadInput, match="made for the stains my-lab-2026, these smears are of barcelona"):
        train_generator(other, tmp_path / "run", RECIPE, resume=True)
    assert train_generator(smears, tmp_path / "run", RECIPE, resume=True).step == 2


def test_too_few_smears_for_every_part_are_refused_before_anything_is_trained(own, tmp_path, monkeypatch):
    from stainers.training import train_stainer

    monkeypatch.setattr("stainers.data.split_of", lambda name, seed: "train")
    with pytest.raises(
        BadInput, match="of its 6 smears none with a boxed leukocyte falls into the validation"
    ):
        train_stainer(own, tmp_path / "run", recipe=RECIPE)
    assert not (tmp_path / "run").exists()


def test_own_smears_are_compared_with_the_target_that_is_named(own, parts):
    pairs = find_pairs(own, DOMAINS, target="raabin").pairs
    assert {p.target for p in pairs} == {"raabin"}
    assert len(pairs) == sum(len(s.leukocytes) for s in load_smears(own) if s.split == "test")
    with pytest.raises(
        BadInput, match=r"my-lab-2026, which are none .* name that to compare with \(--target\)"
    ):
        find_pairs(own, DOMAINS)


def test_smears_may_be_of_any_format_that_is_read(own, tmp_path):
    import shutil

    import cv2

    place = shutil.copytree(own, tmp_path / "png")
    for path in sorted(place.rglob("*.jpg")):
        cv2.imwrite(str(path.with_suffix(".png")), cv2.imread(str(path)))
        path.unlink()
    for a, b in zip(load_smears(own), load_smears(place), strict=True):
        np.testing.assert_array_equal(a.image, b.image)


def test_recipes_that_learn_the_public_stains_say_that_own_smears_are_not_for_them(own, parts):
    from stainers.dic_sets import dic_set
    from stainers.domain_sets import DomainOptions, computed_domains

    smears = load_smears(own)
    with pytest.raises(BadInput, match=r"smears of my-lab-2026: .* unet-film on your own"):
        computed_domains(smears, DomainOptions(), 0)
    with pytest.raises(BadInput, match=r"theirs are: my-lab-2026; set the recipe's data\.target"):
        dic_set(smears, "barcelona")
    assert np.unique([p.target for p in dic_set(smears, "my-lab-2026", limit=1).pairs]) == ["my-lab-2026"]
