"""Colour from structure: grey in, colour out, adversarial (the standardization paper's ColorizationGAN).

Without pairs the grey is the target's own: the net learns to colour the target stain, and then colours the
grey of any other stain; a random gain and curve of the grey keeps it from reading colour off a stain's
brightness.  With pairs the grey is the source's first map (DIC).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stainers.cell_sets import DrawOptions, Sampler, StainSet, as_planes
from stainers.gan_losses import least_squares
from stainers.gan_networks import DiscriminatorOptions, GeneratorOptions, MultiScale, build
from stainers.gan_training import Batch, GanRun, Progress, RunOptions, Score, fit, total_steps
from stainers.picture_data import DataOptions
from stainers.picture_stainer import grey_picture
from stainers.seeds import step_seed

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ColourLosses:
    """Weights."""

    adversarial: float = 1.0
    l1: float = 20.0


@dataclass(frozen=True)
class ColorizationRecipe:
    """Everything that the training is made of, but the data and the place for its results."""

    architecture: str = "colorization"
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    discriminator: DiscriminatorOptions = field(default_factory=DiscriminatorOptions)
    losses: ColourLosses = field(default_factory=ColourLosses)
    data: DataOptions = field(default_factory=DataOptions)
    draw: DrawOptions = field(default_factory=DrawOptions)
    run: RunOptions = field(default_factory=RunOptions)
    grey_jitter: float = 0.3  # half-width, natural log, of the random gain and exponent of the grey


class ColorizationRun(GanRun):
    """A generator `forward` from grey, and a judge that sees grey and colour together."""

    generators = ("forward",)
    given_kind = "grey"

    def __init__(self, recipe: ColorizationRecipe, total: int, device: torch.device) -> None:
        super().__init__(recipe, recipe.run, total, device)
        self.nets = {"forward": build(recipe.generator, 1, 3), "judge": MultiScale(4, recipe.discriminator)}
        self.ready()

    def given(self, picture: Array) -> Array:
        return grey_picture(picture)

    def jittered(self, grey: Tensor) -> Tensor:
        """Each grey (B, 1, h, w) with a gain and an exponent of its own, by seed and step."""
        generator = torch.Generator().manual_seed(step_seed(self.options.seed, self.step))
        draw = torch.rand((2, len(grey), 1, 1, 1), generator=generator).to(grey) * 2 - 1
        gain, exponent = torch.exp(draw * self.recipe.grey_jitter)
        return (gain * grey**exponent).clamp(0, 1)

    def passes(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        weights, judge = self.recipe.losses, self.call["judge"]
        grey = self.jittered(batch.source)
        fake = self.call["forward"](grey)
        parts = {
            "adversarial": least_squares(judge(torch.cat([grey, fake], dim=1)), True),
            "l1": F.l1_loss(fake, batch.target),
        }
        yield "generators", weights.adversarial * parts["adversarial"] + weights.l1 * parts["l1"], parts
        real = least_squares(judge(torch.cat([grey, batch.target], dim=1)), True)
        false = least_squares(judge(torch.cat([grey, fake.detach()], dim=1)), False)
        yield "discriminators", 0.5 * (real + false), {"judge": 0.5 * (real + false)}

    @torch.no_grad()
    def validate(self, data: StainSet) -> float:
        """Mean absolute difference from the colour that the grey was taken of."""
        apply = self.virtual("forward")
        values = [
            abs(as_planes(apply([s])[0]) - as_planes(t)).mean()
            for s, t in zip(data.source.images[:32], data.target.images[:32], strict=True)
        ]
        return float(sum(values) / len(values))


def structure_set(data: StainSet) -> StainSet:
    """The paired set that is learned from: the source's grey of pairs, else the target's own."""
    seen = data.source if data.paired else data.target
    return StainSet(replace(seen, images=tuple(grey_picture(i) for i in seen.images)), data.target, True)


def train(
    data: StainSet,
    out_dir: Path,
    recipe: ColorizationRecipe,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    scores: Mapping[str, Score] | None = None,
    keep_every: int = 0,
    progress: Progress | None = None,
) -> ColorizationRun:
    """Train on the part `train`; see `gan_training.fit`."""
    learned = structure_set(data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    part = learned.part("train")
    run = ColorizationRun(recipe, total_steps(recipe.run, len(part.source)), device)
    sampler = Sampler(part, replace(recipe.draw, pairing="paired"), recipe.run.seed, data.classes)
    options: dict[str, Any] = {"resume": resume, "stop_at": stop_at, "scores": scores, "progress": progress}
    fit(run, learned, sampler, out_dir, keep_every=keep_every, **options)
    return run
