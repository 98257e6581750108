"""Mixed precision, compilation and a GPU's memory: every family trains with them, shown without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests import test_stainers_disentangled, test_stainers_multidomain
from tests.domain_scenes import domain_set

torch = pytest.importorskip("torch")

CPU = torch.device("cpu")


def domain_run(architecture: str) -> tuple[Any, Callable[[int], Any]]:
    """A tiny run of four steps, the last of them with every kind of pass, and its batches."""
    from dataclasses import replace

    from stainers.domain_sets import DomainOptions, DomainSampler
    from stainers.domain_training import to_domain_batch
    from stainers.families import family
    from stainers.gan_training import RunOptions
    from tests.test_stainers_domain_package import SMALL

    base = family(architecture).get("recipe")()
    network = replace(base.generator, **SMALL[architecture])
    plan = replace(
        base,
        generator=network,
        data=DomainOptions(crop_px=16, context_px=24),
        run=RunOptions(steps=4, batch=4, seed=3),
    )
    if architecture == "multidomain":
        plan = replace(plan, phases=replace(plan.phases, first=0.25, second=0.25, critic_steps=2))
        run: Any = test_stainers_multidomain.make_run(plan)
    else:
        run = test_stainers_disentangled.make_run(plan)
    sampler = DomainSampler(domain_set(), plan.data, 3)
    return run, lambda step: to_domain_batch(sampler.batch(step, 4), CPU)


def picture_run(architecture: str) -> tuple[Any, Callable[[int], Any]]:
    """A tiny run of four steps of a family of pictures, and its batches."""
    from stainers.cell_sets import Example
    from stainers.colorization import ColorizationRecipe, ColorizationRun
    from stainers.cyclegan import CycleGanRecipe, CycleGanRun
    from stainers.gan_networks import DiscriminatorOptions, GeneratorOptions
    from stainers.gan_training import RunOptions, to_batch
    from stainers.pix2pixhd import Pix2PixHdRecipe, Pix2PixHdRun

    parts: dict[str, Any] = {
        "generator": GeneratorOptions(width=4, blocks=2),
        "discriminator": DiscriminatorOptions(layers=2, width=4),
        "run": RunOptions(steps=4, batch=4),
    }
    if architecture == "cyclegan":
        run: Any = CycleGanRun(CycleGanRecipe(**parts), (3, 3), 4, CPU)
    elif architecture == "pix2pixhd-ac":
        run = Pix2PixHdRun(Pix2PixHdRecipe(**parts), (3, 3), 2, 4, CPU)
    else:
        run = ColorizationRun(ColorizationRecipe(**parts), 4, CPU)
    maps = 1 if architecture == "colorization" else 3

    def batch(step: int) -> Any:
        rng = np.random.default_rng(step)
        source, target = (rng.random((n, 32, 32), np.float32) for n in (maps, 3))
        return to_batch([Example(source, target, k % 2, k % 2) for k in range(4)], CPU)

    return run, batch


def film_run(architecture: str) -> tuple[Any, Callable[[int], Any]]:
    """A tiny run of four steps of the shipped family, with discriminator and noise, and its batches."""
    from dataclasses import replace
    from types import SimpleNamespace

    from stainers.recipes import LossRecipe
    from stainers.training import Run
    from tests.stainer_scenes import tiny_recipe

    losses = LossRecipe(adversarial=0.1, adversarial_from=0.0)
    run = Run(replace(tiny_recipe(4), architecture=architecture, losses=losses, latent_noise=0.3), CPU)

    def batch(step: int) -> Any:
        random = torch.Generator().manual_seed(step)
        source, stained = (torch.rand(2, n, 48, 48, generator=random) for n in (2, 3))
        return source, stained, torch.tensor([0, 2])

    step = SimpleNamespace(
        train_step=lambda given: run.train_step(*given), nets={"forward": run.generator, "judge": run.judge}
    )
    return step, batch


RUNS = {
    "unet-film": film_run,
    **dict.fromkeys(("multidomain", "disentangled"), domain_run),
    **dict.fromkeys(("cyclegan", "pix2pixhd-ac", "colorization"), picture_run),
}


@pytest.fixture
def halved(monkeypatch):
    """`precision: bf16` or `fp16` on the CPU, where a recipe may not ask for it."""
    from stainers import averaged_run

    def ask(kind: Any) -> None:
        monkeypatch.setattr(averaged_run, "speed_options", lambda *_: (kind, False))

    return ask


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", sorted(RUNS))
def test_every_family_trains_in_mixed_precision(architecture, kind, halved):
    halved(kind)
    run, batch = RUNS[architecture](architecture)
    kinds = set()
    for net in run.nets.values():
        for part in net.modules():
            if isinstance(part, torch.nn.Conv2d):
                part.register_forward_hook(lambda _, given, made: kinds.add(made.dtype))
    for step in range(4):
        parts = run.train_step(batch(step))
    assert all(np.isfinite(v) for v in parts.values())
    assert kinds == {kind}
    assert all(torch.isfinite(p).all() for net in run.nets.values() for p in net.parameters())


@pytest.mark.parametrize(
    "architecture", ["disentangled", "multidomain", "pix2pixhd-ac", "unet-film"]
)  # seconds each
def test_a_family_trains_compiled_as_it_does_without(architecture, monkeypatch):
    from stainers import averaged_run

    def trained() -> list[float]:
        run, batch = RUNS[architecture](architecture)
        steps = 4 if architecture == "multidomain" else 1  # whose last has every kind of pass
        return [v for step in range(steps) for v in run.train_step(batch(step)).values()]

    plain, real, compiled = trained(), torch.compile, []
    monkeypatch.setattr(averaged_run, "speed_options", lambda *_: (None, True))
    monkeypatch.setattr(  # every part of a compilation but the machine code
        torch, "compile", lambda code, **_: compiled.append(code) or real(code, backend="aot_eager")
    )
    assert trained() == pytest.approx(plain, rel=1e-3, abs=1e-4)
    assert compiled


def test_the_statistics_of_a_norm_are_float32_in_mixed_precision():
    from stainers.norms import SettledNorm

    norm, x = SettledNorm(3, momentum=1.0).train(), 4 + torch.randn(2, 3, 40, 40).bfloat16()
    norm(x)
    torch.testing.assert_close(norm.mean, x.float().mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_a_pixel_norm_divides_by_more_than_half_precision_holds():
    from stainers.gan_networks import PixelNorm

    made = PixelNorm(4)(torch.full((1, 4, 2, 2), 300.0).half())  # whose square is beyond 65504
    torch.testing.assert_close(made, torch.ones(1, 4, 2, 2))


def test_the_judge_of_the_shipped_recipe_looks_at_pictures_in_a_gpus_memory():
    """The device `meta` has shapes, types and devices alone: a mixture of devices shows without a GPU."""
    from functools import partial

    from classifiers.networks import build_backbone
    from classifiers.views import cut_square, nuclear_gain
    from stainers.perceptual import PerceptualLoss

    how = {"input_px": 48, "mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": 3}
    how |= {"gain_of": partial(nuclear_gain, cell_share=0.6, hue=0.5), "cut": partial(cut_square, out_px=48)}
    judge = PerceptualLoss(build_backbone("resnet18_slim", 4), **how).to("meta")
    judge._frames = lambda stained: [(24.0, 24.0, 40.0)] * len(stained)  # it reads pixels: here are none
    feature, named = judge(*(torch.rand(2, 3, 48, 48, device="meta") for _ in range(2)))
    assert feature.device.type == named.device.type == "meta"


def test_a_generator_that_was_exported_can_still_be_run_where_it_was_trained(tmp_path, monkeypatch):
    """The package of the way back foretells the error of a cycle, which goes through both generators."""
    from stainers import picture_training
    from stainers.cell_sets import DrawOptions, StainSet
    from stainers.cyclegan import CycleGanRecipe
    from stainers.gan_networks import DiscriminatorOptions, GeneratorOptions
    from stainers.gan_training import RunOptions
    from tests.test_stainers_adversarial import cells

    moved, ran = set(), []
    to_cpu, on_picture = torch.nn.Module.cpu, picture_training.run_on_picture
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda net: moved.add(id(net)) or to_cpu(net))

    def run_on_picture(net: Any, *given: Any) -> Any:
        ran.append(net)
        assert id(net) not in moved
        return on_picture(net, *given)

    monkeypatch.setattr(picture_training, "run_on_picture", run_on_picture)
    recipe = CycleGanRecipe(
        generator=GeneratorOptions(width=4, blocks=1),
        discriminator=DiscriminatorOptions(layers=2, width=4),
        draw=DrawOptions(crop_px=24),
        run=RunOptions(steps=1, batch=2),
    )
    data = StainSet(*(cells(name, (200, 40, 60), size=24) for name in ("red", "blue")))
    picture_training.train_set(data, tmp_path, recipe)
    assert (tmp_path / "package-backward").is_dir()
    assert len({id(net) for net in ran}) == 2


def test_a_recipe_of_the_shipped_family_may_ask_for_speed_and_goes_on_with_checkpoints_of_before(tmp_path):
    from dataclasses import replace

    from pipeline.errors import BadInput
    from stainers.data_marks import mark_of_recipe
    from stainers.recipes import read_recipe
    from stainers.training import Run
    from tests.stainer_scenes import tiny_recipe

    asked = tmp_path / "recipe.yaml"
    asked.write_text("architecture: unet-film\nprecision: bf16\ncompile: on\n")
    recipe = read_recipe(asked)
    assert (recipe.precision, recipe.compile) == ("bf16", "on")
    with pytest.raises(BadInput, match="GPU"):
        Run(recipe, CPU)
    usual = tiny_recipe(4)
    assert mark_of_recipe(usual) == repr(usual)  # as it was before there was a choice
    assert "precision" not in repr(usual)
    assert mark_of_recipe(replace(usual, precision="fp32")) == repr(usual) + " precision='fp32'"
