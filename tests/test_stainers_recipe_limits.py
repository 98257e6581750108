"""Promises of a stainer's recipe: a value that makes no sense is one sentence that names file and key."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import click
import pytest
from click.testing import CliRunner

from flows.cli import group
from pipeline.errors import BadInput
from stainers.families import FAMILIES, family
from stainers.recipes import read_recipe
from stainers.recipes.limits import limit_of

torch = pytest.importorskip("torch")

NAMES = {"architecture", "source", "target", "labeller", "chooser", "start", "judge", "domains"}


def read(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


@pytest.mark.parametrize(
    ("architecture", "text", "said"),
    [
        ("cyclegan", "run: {steps: -5}", "run: 'steps' must be 0 or more, not -5"),
        ("cyclegan", "run: {epochs: -2}", "run: 'epochs' must be 1 or more, not -2"),
        ("cyclegan", "run: {batch: 0}", "'batch' must be 1 or more, not 0"),
        ("cyclegan", "run: {batch: -3}", "'batch' must be 1 or more"),
        ("cyclegan", "run: {checkpoint_every: 0}", "'checkpoint_every' must be 1 or more"),
        ("cyclegan", "run: {sample_every: 0}", "'sample_every' must be 1 or more"),
        ("cyclegan", "run: {seed: -1}", "'seed' must be from 0 to"),
        ("cyclegan", "run: {seed: 99999999999999999999}", "'seed' must be from 0 to"),
        ("cyclegan", "run: {learning_rate: .nan}", "'learning_rate' must be a finite number"),
        ("cyclegan", "run: {learning_rate: .inf}", "'learning_rate' must be a finite number"),
        ("cyclegan", f"run: {{learning_rate: 1{'0' * 400}}}", "'learning_rate' must be a finite number"),
        ("cyclegan", "run: {precision: fp8}", "'precision' must be one of auto"),
        ("cyclegan", "draw: {crop_px: -3}", "'crop_px' must be 1 or more"),
        ("cyclegan", "draw: {crop_px: 0}", "'crop_px' must be 1 or more"),
        ("cyclegan", "draw: {crop_px: 30}", "'crop_px' must be a multiple of 4"),
        ("cyclegan", "draw: {crop_px: 20}", "24 or more"),
        ("cyclegan", "generator: {width: 0}", "generator: 'width' must be 1 or more"),
        ("cyclegan", "generator: {kind: foo}", "'kind' must be one of resnet, unet, not 'foo'"),
        ("cyclegan", "discriminator: {layers: 0}", "'layers' must be from 1 to 10"),
        ("cyclegan", "pool: -1", "'pool' must be 0 or more"),
        ("cyclegan", "data: {source_scale: -1.0}", "'source_scale' must be above 0"),
        ("cyclegan", "data: {size_px: -80}", "'size_px' must be 0 or more, not -80"),
        ("cyclegan", "data: {train_share: 0.9, validation_share: 0.1}", "leave cells to test on"),
        ("reinhard", "data: {kind: films}", "'kind' must be one of domains, computed-dic"),
        ("unet-film", "steps: 0", "'steps' must be 1 or more"),
        ("unet-film", "network: {widths: [4, 0, 4, 4]}", "'widths' must be 1 or more"),
        ("unet-film", "network: {widths: [4, 4]}", "four numbers"),
        ("unet-film", "pairs: {crop_px: 208}", "'crop_px' 208 is more than 'context_px' 192"),
        ("multidomain", "data: {cells: 0}", "'cells' must be 1 or more"),
        ("disentangled", "settle_from: 2", "'settle_from' must be from 0 to 1"),
        ("disentangled", "losses: {structure: -1}", "'structure' must be 0 or more"),
    ],
)
def test_a_value_out_of_range_is_one_sentence_with_the_file_and_the_key(tmp_path, architecture, text, said):
    with pytest.raises(BadInput) as caught:
        read(tmp_path, f"architecture: {architecture}\n{text}\n")
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.yaml'}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def recipe_classes():
    found = {}

    def add(recipe):
        found[type(recipe).__name__] = recipe
        for f in fields(recipe):
            if is_dataclass(getattr(recipe, f.name)):
                add(getattr(recipe, f.name))

    for name in FAMILIES:
        add(family(name).get("recipe")())
    return found


@pytest.mark.parametrize("name", sorted(recipe_classes()))
def test_every_number_and_choice_of_a_recipe_has_a_limit(name):
    recipe = recipe_classes()[name]
    plain = {f.name for f in fields(recipe) if not is_dataclass(getattr(recipe, f.name))}
    free = {f for f in plain if isinstance(getattr(recipe, f), bool)} | NAMES
    assert [f for f in plain - free if limit_of(name, f) is None] == []


@pytest.mark.parametrize("run", [{"steps": -5}, {"epochs": -2}, {"epochs": 0}])
def test_a_run_of_no_steps_is_refused_whoever_asks_for_it(run):
    from stainers.gan_training import RunOptions, total_steps

    with pytest.raises(BadInput, match="train nothing"):
        total_steps(RunOptions(**run), 20)


@pytest.mark.parametrize("name", ["multidomain", "disentangled"])
def test_the_epochs_of_several_domains_are_counted_in_their_pictures(name, tmp_path, monkeypatch):
    from stainers import domain_package
    from tests.domain_scenes import domain_set
    from tests.test_stainers_disentangled import TinyOutline

    monkeypatch.setattr(domain_package, "frozen_outline", lambda _: TinyOutline())
    data = domain_set()
    recipe = read(tmp_path, f"architecture: {name}\nrun: {{epochs: 2, batch: 4}}\n")
    assert domain_package.make_run(recipe, data).total == 2 * -(-len(data.cells) // 4)


def test_a_run_that_ends_before_the_generators_first_turn_is_refused(tmp_path):
    from stainers import domain_package
    from tests.domain_scenes import domain_set

    recipe = read(tmp_path, "architecture: multidomain\nphases: {critic_steps: 5}\nrun: {steps: 4}\n")
    with pytest.raises(BadInput, match="trains no generator"):
        domain_package.make_run(recipe, domain_set())


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_a_seed_that_no_generator_takes_is_refused_by_every_command(seed):
    def walk(command, words):
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                yield from walk(command.get_command(click.Context(command), name), [*words, name])
        elif any("--seed" in p.opts for p in command.params):
            yield words

    found = list(walk(group, []))
    assert len(found) >= 8
    for words in found:
        done = CliRunner().invoke(group, [*words, "--seed", seed])
        assert done.exit_code == 2
        assert "--seed" in done.output, words


def test_the_largest_seed_trains(tmp_path):
    from flows.console import SEEDS
    from stainers.gan_losses import ImagePool
    from stainers.seeds import LARGEST_SEED, step_seed

    assert SEEDS.max == LARGEST_SEED  # one figure, which NumPy and torch take too
    torch.Generator().manual_seed(step_seed(LARGEST_SEED, 10**6))
    pool = ImagePool(2, 2 * LARGEST_SEED + 2)
    for step in range(4):
        pool.exchange(torch.zeros(1, 1, 1, 1), step)
    assert step_seed(20261121, 7) == 20261121 * 1_000_003 + 7  # runs of before are repeated
