"""pix2pixHD with a class head: paired staining that is told what cell it stains (blood-cell thesis, 8.2).

Multi-scale discriminators and feature matching (Wang et al., CVPR 2018); the discriminators also name the
cell's class, and the generator is trained until its image is named as the real one is (AC-GAN).  The items of
a batch are of different classes where there are as many classes as items (the thesis has 12 for 6), else they
come by the classes' frequency; in the last fifth of the training all classes are drawn alike often.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import BadInput
from stainers.cell_sets import DrawOptions, Sampler, StainSet, as_planes
from stainers.gan_losses import class_loss, feature_matching, least_squares
from stainers.gan_networks import DiscriminatorOptions, GeneratorOptions, MultiScale, build
from stainers.gan_training import Batch, GanRun, Progress, RunOptions, Score, fit, total_steps
from stainers.picture_data import DataOptions


@dataclass(frozen=True)
class PairLosses:
    """Weights; `l1`, the absolute difference from the real stain, stands in for pix2pixHD's perceptual loss,
    which needs a network trained on other images."""

    adversarial: float = 1.0
    features: float = 10.0
    classes: float = 1.0
    l1: float = 10.0


@dataclass(frozen=True)
class Pix2PixHdRecipe:
    """Everything that the training is made of, but the data and the place for its results."""

    architecture: str = "pix2pixhd-ac"
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    discriminator: DiscriminatorOptions = field(default_factory=lambda: DiscriminatorOptions(scales=2))
    losses: PairLosses = field(default_factory=PairLosses)
    data: DataOptions = field(default_factory=DataOptions)
    draw: DrawOptions = field(default_factory=lambda: DrawOptions(pairing="paired", class_per_item=True))
    run: RunOptions = field(default_factory=lambda: RunOptions(batch=6))


class Pix2PixHdRun(GanRun):
    """A generator `forward` and a judge that sees source and stain together."""

    generators = ("forward",)

    def __init__(
        self,
        recipe: Pix2PixHdRecipe,
        channels: tuple[int, int],
        n_classes: int,
        total: int,
        device: torch.device,
    ) -> None:
        super().__init__(recipe, recipe.run, total, device)
        self.nets = {
            "forward": build(recipe.generator, channels[0], channels[1]),
            "judge": MultiScale(sum(channels), recipe.discriminator, n_classes),
        }
        self.ready()

    def passes(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        weights, judge = self.recipe.losses, self.call["judge"]
        fake = self.call["forward"](batch.source)
        seen_fake = judge(torch.cat([batch.source, fake], dim=1))
        seen_real = judge(torch.cat([batch.source, batch.target], dim=1))
        parts = {
            "adversarial": least_squares(seen_fake, True),
            "features": feature_matching(seen_fake, seen_real),
            "classes": class_loss(seen_fake, batch.target_label),
            "l1": F.l1_loss(fake, batch.target),
        }
        yield (
            "generators",
            sum((getattr(weights, k) * v for k, v in parts.items()), fake.new_zeros(())),
            parts,
        )
        seen_fake = judge(torch.cat([batch.source, fake.detach()], dim=1))
        seen_real = judge(torch.cat([batch.source, batch.target], dim=1))
        judged = {
            "judge": 0.5 * (least_squares(seen_real, True) + least_squares(seen_fake, False)),
            "judge_classes": class_loss(seen_real, batch.target_label),
        }
        yield "discriminators", judged["judge"] + weights.classes * judged["judge_classes"], judged

    @torch.no_grad()
    def validate(self, data: StainSet) -> float:
        """Mean absolute difference from the real stain."""
        apply = self.virtual("forward")
        values = [
            abs(as_planes(apply([s])[0]) - as_planes(t)).mean()
            for s, t in zip(data.source.images[:32], data.target.images[:32], strict=True)
        ]
        return float(sum(values) / len(values))


def train(
    data: StainSet,
    out_dir: Path,
    recipe: Pix2PixHdRecipe,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    scores: Mapping[str, Score] | None = None,
    keep_every: int = 0,
    progress: Progress | None = None,
) -> Pix2PixHdRun:
    """Train on the pairs of the part `train`; see `gan_training.fit`.  Cells need classes."""
    if not data.paired:
        raise BadInput("pix2pixhd-ac learns from pairs of the same cells; use cyclegan where there are none.")
    if len(data.classes) < 2 and recipe.losses.classes > 0:
        raise BadInput(
            "pix2pixhd-ac needs cells of two classes or more; name a labeller, or set classes to 0."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    part = data.part("train")
    steps = total_steps(recipe.run, len(part.source))
    channels = (data.source.channels, data.target.channels)
    run = Pix2PixHdRun(recipe, channels, len(data.classes), steps, device)
    sampler = Sampler(part, recipe.draw, recipe.run.seed, data.classes)
    options: dict[str, Any] = {"resume": resume, "stop_at": stop_at, "scores": scores, "progress": progress}
    fit(run, data, sampler, out_dir, keep_every=keep_every, **options)
    return run
