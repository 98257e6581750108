"""Training of the multi-domain stainer: three phases and the order of passes of Algorithm 1 (thesis 5.3.2).

Step t is one iteration of Algorithm 1.  Every step is a pass of the discriminators; every fifth is followed
by

* phases 1 and 2, an unsupervised StarGAN: a pass of encoder and generator (5.1, 5.2, 5.3), phase 1 at a
  tenth of the learning rate, against mode collapse;
* phase 3: classifier (5.5), segmenter (5.7), then encoder and generator with the pair-wise loss as well
  (5.1, 5.2, 5.3, 5.6) - in this order, which table 5.1 found best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import BadInput
from stainers.domain_sets import NO_LABEL, NO_MASK, DomainOptions
from stainers.domain_training import DomainBatch, DomainRun
from stainers.gan_training import RunOptions
from stainers.multidomain.networks import (
    CellClassifier,
    Discriminator,
    MultiDomainNetwork,
    MultiDomainStain,
    Segmenter,
)
from stainers.multidomain.objectives import (
    cell_class_loss,
    cycle_loss,
    domain_loss,
    pair_loss,
    segment_loss,
)
from stainers.wasserstein import critic_loss, generator_loss, gradient_penalty


@dataclass(frozen=True)
class MultiDomainLosses:
    """Weights; StarGAN's, with the pair-wise loss weighed as the cycle.

    The slope of a penalised critic is about 1 for a whole picture, that of 10 times an L1 mean over 96 px
    about 0.06: a short training has to weigh `adversarial` down, or the reconstruction is never heard.
    """

    adversarial: float = 1.0
    penalty: float = 10.0
    domain: float = 1.0
    cycle: float = 10.0
    pair: float = 10.0
    cell_class: float = 1.0
    segment: float = 1.0


@dataclass(frozen=True)
class Phases:
    """Shares of the steps (50k, 150k and 100k of 300k in the thesis) and the first phase's learning rate,
    as a share of the others'.  `critic_steps` discriminator passes for one of the generator."""

    first: float = 1 / 6
    second: float = 1 / 2
    first_rate: float = 0.1
    critic_steps: int = 5


@dataclass(frozen=True)
class MultiDomainRecipe:
    """Everything that a multi-domain stainer is made of, but the data and the place for its results."""

    architecture: str = "multidomain"
    generator: MultiDomainNetwork = field(default_factory=MultiDomainNetwork)
    losses: MultiDomainLosses = field(default_factory=MultiDomainLosses)
    phases: Phases = field(default_factory=Phases)
    data: DomainOptions = field(default_factory=DomainOptions)
    run: RunOptions = field(default_factory=RunOptions)


class MultiDomainRun(DomainRun):
    """Encoder and generator (`stain`), discriminators (`judge`), `classifier`, `segmenter`."""

    def __init__(self, recipe: MultiDomainRecipe, n_classes: int, total: int, device: torch.device) -> None:
        if total < recipe.phases.critic_steps:
            raise BadInput(
                f"a run of {total} steps trains no generator, whose turn comes after critic_steps "
                f"{recipe.phases.critic_steps}; give the recipe's run more steps, or its phases fewer."
            )
        super().__init__(recipe, recipe.run, total, device)
        code = 4 * recipe.generator.width
        stain = MultiDomainStain(recipe.generator)
        judge = Discriminator(recipe.generator)
        classifier, segmenter = CellClassifier(code, max(n_classes, 1)), Segmenter(code)
        self.nets = {"stain": stain, "judge": judge, "classifier": classifier, "segmenter": segmenter}
        self.ready_for(
            {
                "discriminators": [judge],
                "classifier": [stain.encoder, classifier],
                "segmenter": [stain.encoder, segmenter],
                "generators": [stain],
            }
        )

    @property
    def phase(self) -> int:
        """1, 2 or 3, by the share of the steps that are done."""
        share, phases = self.step / max(self.total, 1), self.recipe.phases
        return 1 if share < phases.first else 2 if share < phases.first + phases.second else 3

    def learning_rate(self) -> float:
        rate = super().learning_rate()
        return rate * self.recipe.phases.first_rate if self.phase == 1 else rate

    def passes(self, batch: DomainBatch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Algorithm 1, lines 3 to 16.

        A pass of a batch that holds no known class, or no mask, is left out: an Adam moves by its momentum
        where there is nothing to learn from.
        """
        yield ("discriminators", *self.judged(batch))
        if (self.step + 1) % self.recipe.phases.critic_steps:
            return
        if self.phase == 3:
            if bool((batch.label != NO_LABEL).any()):
                yield ("classifier", *self.classified(batch))
            if bool((batch.mask != NO_MASK).any()):
                yield ("segmenter", *self.segmented(batch))
        yield ("generators", *self.translated(batch, pairs=self.phase == 3))

    def judged(self, batch: DomainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Lines 3 and 4: the negative of 5.1 as Wasserstein with penalty, and 5.4 on real images."""
        weights, judge = self.recipe.losses, self.call["judge"]
        with torch.no_grad():
            fake = self.call["stain"](batch.picture, batch.target)
        real_verdict, real_domain = judge(batch.picture)
        parts = {
            "critic": critic_loss(real_verdict, judge(fake)[0]),
            "penalty": gradient_penalty(lambda x: judge(x)[0], batch.picture, fake, self.random),
            "domain_real": domain_loss(real_domain, batch.domain),
        }
        return (
            parts["critic"] + weights.penalty * parts["penalty"] + weights.domain * parts["domain_real"],
            parts,
        )

    def classified(self, batch: DomainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Lines 10 and 11: 5.5."""
        stain: Any = self.nets["stain"]
        loss = cell_class_loss(self.call["classifier"](stain.encoder(batch.picture)), batch.label)
        return self.recipe.losses.cell_class * loss, {"cell_class": loss}

    def segmented(self, batch: DomainBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Lines 12 and 13: 5.7."""
        stain: Any = self.nets["stain"]
        loss = segment_loss(self.call["segmenter"](stain.encoder(batch.picture)), batch.mask)
        return self.recipe.losses.segment * loss, {"segment": loss}

    def translated(self, batch: DomainBatch, pairs: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Lines 7 and 8, or 14 and 15 with `pairs`: 5.1, 5.2, 5.3 and 5.6."""
        weights, stain = self.recipe.losses, self.call["stain"]
        fake = stain(batch.picture, batch.target)
        verdict, named = self.call["judge"](fake)
        parts = {
            "adversarial": generator_loss(verdict),
            "domain_fake": domain_loss(named, batch.target),
            "cycle": cycle_loss(batch.picture, stain(fake, batch.domain)),
        }
        total = (
            weights.adversarial * parts["adversarial"]
            + weights.domain * parts["domain_fake"]
            + weights.cycle * parts["cycle"]
        )
        if pairs:
            parts["pair"] = pair_loss(fake, batch.partner, batch.paired)
            total = total + weights.pair * parts["pair"]
        return total, parts
