"""A CycleGAN whose judges also name the label, so that a virtual image has to keep its source's.

In the paper's configurations nothing asks a positive MGG cell to become a positive Perls one: pairing by
label only balances what the judges see, and misses stay high (its figure 8).  Here each judge has a class
head (AC-GAN, Odena et al., ICML 2017): it learns the label on real images of its stain, and the generators
are to make images that it names as the source was labelled.  Not a configuration of the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stainers.cell_sets import Sampler, StainSet
from stainers.cyclegan import CycleGanRecipe, CycleGanRun
from stainers.gan_losses import class_loss
from stainers.gan_networks import Judgement, MultiScale
from stainers.gan_training import Batch, Progress, fit, total_steps

WEIGHT = 2.0  # of the class loss beside an adversarial weight of 1
CYCLE = 4.0  # a ring that is drawn has to be taken away again: less weight on the way back than 10
JUDGES = ("judge_source", "judge_target")


class Recorder:
    """A judge that keeps what it said since it was last asked for it."""

    def __init__(self, judge: Any) -> None:
        self.judge, self.said = judge, list[list[Judgement]]()

    def __call__(self, picture: Tensor) -> list[Judgement]:
        self.said.append(self.judge(picture))
        return self.said[-1]

    def first(self) -> list[Judgement]:
        said, self.said = self.said, []
        return said[0]


class LabelledRun(CycleGanRun):
    """A CycleGAN run with class heads; `start` is the checkpoint of a plain run to go on from."""

    def __init__(
        self, recipe: CycleGanRecipe, total: int, n_classes: int, start: Path | None, device: torch.device
    ) -> None:
        super().__init__(recipe, (3, 3), total, device)
        for name in JUDGES:
            self.nets[name] = MultiScale(3, recipe.discriminator, n_classes)
        if start is not None:
            nets = torch.load(start, map_location="cpu", weights_only=True)["nets"]
            for name, net in self.nets.items():
                net.load_state_dict(nets[name], strict=name not in JUDGES)
        self.ready()
        self.recorders = {name: Recorder(self.call[name]) for name in JUDGES}
        self.call |= self.recorders

    def passes(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        source, target = batch.source_label, batch.target_label
        # what each judge saw first: in the generators' pass the virtual image, in its own the real one
        wanted = {"generators": (target, source), "discriminators": (source, target)}
        for group, total, parts in super().passes(batch):
            said = [self.recorders[name].first() for name in JUDGES]
            pairs = zip(said, wanted[group], strict=True)
            label = torch.stack([class_loss(judged, labels) for judged, labels in pairs]).sum()
            yield group, total + WEIGHT * label, {**parts, f"label_{group}": label}


def labelled_recipe(recipe: CycleGanRecipe) -> CycleGanRecipe:
    """The recipe with both labels in every batch: by frequency one in fifteen would be positive."""
    return replace(
        recipe,
        draw=replace(recipe.draw, pairing="label", class_per_item=True),
        losses=replace(recipe.losses, cycle=CYCLE),
        run=replace(recipe.run, decay_from=0.7),
    )


def train_labelled(
    data: StainSet,
    out_dir: Path,
    recipe: CycleGanRecipe,
    *,
    start: Path | None = None,
    progress: Progress | None = None,
) -> LabelledRun:
    """Train into `out_dir`, going on from its checkpoint, else from `start`, else from nothing."""
    recipe = labelled_recipe(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = total_steps(recipe.run, len(data.part("train").source))
    run = LabelledRun(recipe, steps, len(data.classes), start, device)
    sampler = Sampler(data.part("train"), recipe.draw, recipe.run.seed, data.classes)
    fit(run, data, sampler, out_dir, resume=True, progress=progress)
    return run
