"""CycleGAN: two stains without pairs (Zhu et al., ICCV 2017), as both stain papers use it.

Two generators, two discriminators, least-squares adversarial losses, cycle consistency and identity, an
image pool, a learning rate that falls linearly over the second half.  Source and target cells are paired at
random or by their class (the RS-conditioned data set of Hernandez-Abad et al., section 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stainers.cell_sets import DrawOptions, Sampler, StainSet
from stainers.gan_losses import ImagePool, least_squares
from stainers.gan_networks import DiscriminatorOptions, GeneratorOptions, MultiScale, build
from stainers.gan_training import Batch, GanRun, Progress, RunOptions, Score, fit, to_batch, total_steps
from stainers.picture_data import DataOptions


@dataclass(frozen=True)
class CycleLosses:
    """Weights.  `identity` is a share of `cycle`, and needs domains of the same channels."""

    adversarial: float = 1.0
    cycle: float = 10.0
    identity: float = 0.5


@dataclass(frozen=True)
class CycleGanRecipe:
    """Everything that a CycleGAN is made of, but the data and the place for its results."""

    architecture: str = "cyclegan"
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    discriminator: DiscriminatorOptions = field(default_factory=DiscriminatorOptions)
    losses: CycleLosses = field(default_factory=CycleLosses)
    data: DataOptions = field(default_factory=DataOptions)
    draw: DrawOptions = field(default_factory=DrawOptions)
    run: RunOptions = field(default_factory=RunOptions)
    pool: int = 50


class CycleGanRun(GanRun):
    """Generators `forward` (source to target) and `backward`, a discriminator of each domain."""

    generators = ("forward", "backward")

    def __init__(
        self, recipe: CycleGanRecipe, channels: tuple[int, int], total: int, device: torch.device
    ) -> None:
        super().__init__(recipe, recipe.run, total, device)
        a, b = channels
        self.same = a == b
        self.nets = {
            "forward": build(recipe.generator, a, b),
            "backward": build(recipe.generator, b, a),
            "judge_source": MultiScale(a, recipe.discriminator),
            "judge_target": MultiScale(b, recipe.discriminator),
        }
        self.pools = {
            "source": ImagePool(recipe.pool, recipe.run.seed * 2 + 1),
            "target": ImagePool(recipe.pool, recipe.run.seed * 2 + 2),
        }
        self.ready()

    def passes(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        weights, call = self.recipe.losses, self.call
        a, b = batch.source, batch.target
        if self.same and weights.identity > 0:
            # the real images of both domains in one pass each: half the calls, the same result
            fake_b, same_b = call["forward"](torch.cat([a, b])).split([len(a), len(b)])
            fake_a, same_a = call["backward"](torch.cat([b, a])).split([len(b), len(a)])
        else:
            fake_b, fake_a = call["forward"](a), call["backward"](b)
        parts = {
            "adversarial": least_squares(call["judge_target"](fake_b), True)
            + least_squares(call["judge_source"](fake_a), True),
            "cycle": F.l1_loss(call["backward"](fake_b), a) + F.l1_loss(call["forward"](fake_a), b),
        }
        total = weights.adversarial * parts["adversarial"] + weights.cycle * parts["cycle"]
        if self.same and weights.identity > 0:
            parts["identity"] = F.l1_loss(same_b, b) + F.l1_loss(same_a, a)
            total = total + weights.cycle * weights.identity * parts["identity"]
        yield "generators", total, parts
        shown_b = self.pools["target"].exchange(fake_b.detach(), self.step)
        shown_a = self.pools["source"].exchange(fake_a.detach(), self.step)
        judged = {}
        for name, real, fake in (("judge_target", b, shown_b), ("judge_source", a, shown_a)):
            seen = least_squares(call[name](real), True) + least_squares(call[name](fake), False)
            judged[name] = 0.5 * seen
        yield "discriminators", judged["judge_target"] + judged["judge_source"], judged

    @torch.no_grad()
    def validate(self, data: StainSet) -> float:
        """Cycle error both ways, with the judges' verdict on the averages: lower is better.

        The judges look in evaluation mode: in training a look moves the estimates of their spectral norms.
        """
        judges = [self.nets[name].eval() for name in ("judge_source", "judge_target")]
        try:
            return self._validate(data)
        finally:
            for judge in judges:
                judge.train()

    def _validate(self, data: StainSet) -> float:
        draw = DrawOptions(crop_px=self.recipe.draw.crop_px, zoom=0.0)
        sampler = Sampler(data, draw, seed=0)
        forward, backward = self.averages["forward"], self.averages["backward"]
        values = []
        for i in range(min(max(len(data.source), len(data.target)), 32)):
            batch = to_batch([sampler.draw(i)], self.device)
            fake_b, fake_a = forward(batch.source), backward(batch.target)
            cycle = F.l1_loss(backward(fake_b), batch.source) + F.l1_loss(forward(fake_a), batch.target)
            fooled = least_squares(self.nets["judge_target"](fake_b), True) + least_squares(
                self.nets["judge_source"](fake_a), True
            )
            values.append(self.recipe.losses.cycle * cycle + self.recipe.losses.adversarial * fooled)
        return float(torch.stack(values).mean())


def make_run(recipe: CycleGanRecipe, data: StainSet) -> CycleGanRun:
    """A run at step 0 on the best device there is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = total_steps(recipe.run, len(data.part("train").source))
    return CycleGanRun(recipe, (data.source.channels, data.target.channels), steps, device)


def train(
    data: StainSet,
    out_dir: Path,
    recipe: CycleGanRecipe,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    scores: Mapping[str, Score] | None = None,
    keep_every: int = 0,
    progress: Progress | None = None,
) -> CycleGanRun:
    """Train on the part `train` of `data`; `scores` by generator name (`forward`, `backward`) choose
    checkpoints by a downstream measure beside the loss.  See `gan_training.fit`."""
    run = make_run(recipe, data)
    sampler = Sampler(data.part("train"), recipe.draw, recipe.run.seed, data.classes)
    options: dict[str, Any] = {"resume": resume, "stop_at": stop_at, "scores": scores, "progress": progress}
    fit(run, data, sampler, out_dir, keep_every=keep_every, **options)
    return run
