"""Training of the disentangled stainer (thesis, section 6.1): equations 6.1 to 6.5.

A step is a pass of the discriminator and one of everything else.  Pairs are used for one thing alone: the
mask of a stained cell is that of its DIC.  In the last part of the training the statistics of AdaIN and
SPADE are settled (`stainers.norms`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stainers.disentangled.networks import Discriminator, DisentangledNetwork, DisentangledStain
from stainers.disentangled.objectives import cycle_loss, diversity_loss, structure_loss, style_loss
from stainers.domain_sets import DomainOptions
from stainers.domain_training import DomainBatch, DomainRun
from stainers.gan_training import RunOptions
from stainers.norms import settle
from stainers.wasserstein import critic_loss, generator_loss, gradient_penalty


@dataclass(frozen=True)
class DisentangledLosses:
    """Weights; `diversity` is the thesis's lambda (3 in table 6.1, for images in [-1, 1])."""

    adversarial: float = 1.0
    penalty: float = 10.0
    style: float = 1.0
    structure: float = 1.0
    diversity: float = 1.0
    cycle: float = 10.0


@dataclass(frozen=True)
class DisentangledRecipe:
    """Everything that a disentangled stainer is made of, but the data and the place for its results."""

    architecture: str = "disentangled"
    generator: DisentangledNetwork = field(default_factory=DisentangledNetwork)
    losses: DisentangledLosses = field(default_factory=DisentangledLosses)
    data: DomainOptions = field(default_factory=DomainOptions)
    run: RunOptions = field(default_factory=RunOptions)
    settle_from: float = 0.5  # share of the steps after which the statistics of the norms are fixed


class Codes(NamedTuple):
    """Codes of the pictures themselves, and two of each kind mapped from noise."""

    background: Tensor
    structure: Tensor
    style: Tensor
    styles: tuple[Tensor, Tensor]  # of the target domain
    structures: tuple[Tensor, Tensor]


class DisentangledRun(DomainRun):
    """All but the discriminator (`stain`), and the discriminator (`judge`); `outline` is frozen."""

    def __init__(
        self, recipe: DisentangledRecipe, outline: nn.Module, total: int, device: torch.device
    ) -> None:
        super().__init__(recipe, recipe.run, total, device)
        stain, judge = DisentangledStain(recipe.generator), Discriminator(recipe.generator)
        self.nets = {"stain": stain, "judge": judge}
        self.outline = outline.to(device)
        self.dic = len(recipe.generator.domains) - 1
        self.ready_for({"discriminators": [judge], "generators": [stain]})

    def train_step(self, batch: DomainBatch) -> dict[str, float]:
        settle(self.nets["stain"], self.step >= self.recipe.settle_from * self.total)
        return super().train_step(batch)

    def show(self, picture: Any, target: int) -> Tensor:
        average: Any = self.averages["stain"]
        average.remember_styles()
        return super().show(picture, target)

    def passes(self, batch: DomainBatch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        yield ("discriminators", *self.judged(batch))
        yield ("generators", *self.translated(batch))

    def codes(self, batch: DomainBatch) -> Codes:
        """Codes of a batch; z_s and z_t are drawn from a normal distribution by the step's own seed."""
        net: Any = self.nets["stain"]
        x, width = batch.picture, self.recipe.generator.noise

        def noise() -> Tensor:
            return torch.randn(len(x), width, generator=self.random).to(x)

        structure = net.structure(x)
        size = (structure.shape[2], structure.shape[3])
        return Codes(
            net.background(x),
            structure,
            net.style(x),
            (net.style_mapping(noise(), batch.target), net.style_mapping(noise(), batch.target)),
            (net.structure_mapping(noise(), size), net.structure_mapping(noise(), size)),
        )

    def judged(self, batch: DomainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """6.1 for the discriminator, as Wasserstein with penalty, on the three kinds of pictures.

        A picture is weighed against a real one by the same head, and the slope is held to one between the
        two: a head that met more made than real pictures in a batch would gain by a constant verdict.
        """
        net: Any = self.nets["stain"]
        judge = self.call["judge"]
        with torch.no_grad():
            made = three_kinds(net, self.codes(batch))
        there = batch.real_targets()
        compared = list(zip((there, batch.picture, there), made, domains_of_kinds(batch), strict=True))
        verdicts = [critic_loss(judge(r, d), judge(g, d)) for r, g, d in compared]
        slopes = [gradient_penalty(lambda x, d=d: judge(x, d), r, g, self.random) for r, g, d in compared]
        parts = {"critic": torch.stack(verdicts).mean(), "penalty": torch.stack(slopes).mean()}
        return parts["critic"] + self.recipe.losses.penalty * parts["penalty"], parts

    def translated(self, batch: DomainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """6.1 to 6.5 for everything but the discriminator."""
        weights, net = self.recipe.losses, self.nets["stain"]
        code = self.codes(batch)
        made = three_kinds(net, code)
        both, _, other_style = made
        other = three_kinds(net, code, 1)
        judge = self.call["judge"]
        parts = {
            "adversarial": torch.stack(
                [generator_loss(judge(g, d)) for g, d in zip(made, domains_of_kinds(batch), strict=True)]
            ).sum(),
            "style": style_loss(code.styles[0], *(net.style(g) for g in (other_style, both))),
            "structure": self.outlined(batch, other_style, both),
            "diversity": diversity_loss(*zip(made, other, strict=True)),
            "cycle": cycle_loss(
                batch.picture,
                *(net.generator(net.background(g), code.style, code.structure) for g in made),
            ),
        }
        total = sum((getattr(weights, k) * v for k, v in parts.items()), batch.picture.new_zeros(()))
        return total, parts

    def outlined(self, batch: DomainBatch, other_style: Tensor, both: Tensor) -> Tensor:
        """6.3, over the items that are given a stain, for the segmenter reads stains alone."""
        stained = batch.target != self.dic
        if not bool(stained.any()):
            return other_style.sum() * 0.0
        first, second = self.outline(other_style[stained]), self.outline(both[stained])
        thin = batch.mask.shape[1] // first.shape[2]
        labels = batch.mask[stained][:, ::thin, ::thin]
        return structure_loss(first, labels) + structure_loss(second, labels, surroundings_only=True)


def domains_of_kinds(batch: DomainBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Which domain each of the `three_kinds` is to look like."""
    return batch.target, batch.domain, batch.target


def three_kinds(net: Any, code: Codes, which: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """G(x, s~, t~), G(x, s, t~) and G(x, s~, t) with the first or second of the mapped codes."""
    style, structure = code.styles[which], code.structures[which]
    return (
        net.generator(code.background, style, structure),
        net.generator(code.background, code.style, structure),
        net.generator(code.background, style, code.structure),
    )
