"""Losses of the adversarial stainers, and the pool of earlier images that a discriminator is shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stainers.gan_networks import Judgement
from stainers.seeds import step_seed


def least_squares(judged: Sequence[Judgement], real: bool) -> Tensor:
    """LSGAN (Mao et al., ICCV 2017): squared distance of every judgement from 1 (real) or 0, mean over
    scales."""
    wanted = 1.0 if real else 0.0
    return torch.stack([(j.real - wanted).square().mean() for j in judged]).mean()


def feature_matching(fake: Sequence[Judgement], real: Sequence[Judgement]) -> Tensor:
    """Mean absolute difference of the discriminators' features (pix2pixHD, equation 4)."""
    parts = [
        F.l1_loss(f, r.detach())
        for a, b in zip(fake, real, strict=True)
        for f, r in zip(a.features, b.features, strict=True)
    ]
    return torch.stack(parts).mean()


def class_loss(judged: Sequence[Judgement], labels: Tensor) -> Tensor:
    """Cross-entropy of the class heads over the items whose class is known (label >= 0)."""
    known = labels >= 0
    heads = [j.classes for j in judged if j.classes is not None]
    if not heads or not bool(known.any()):
        return judged[0].real.new_zeros(())
    return torch.stack([F.cross_entropy(h[known], labels[known]) for h in heads]).mean()


class ImagePool:
    """The last `size` generated images; half of the time an earlier one stands in for a new one
    (Shrivastava et al., CVPR 2017).  The draw depends on seed and step alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.kept: list[Tensor] = []

    def exchange(self, fresh: Tensor, step: int) -> Tensor:
        if self.size == 0:
            return fresh
        generator = torch.Generator().manual_seed(step_seed(self.seed, step))
        shown = []
        for image in fresh.detach():
            if len(self.kept) < self.size:
                self.kept.append(image.clone())
                shown.append(image)
                continue
            place = int(torch.randint(self.size, (1,), generator=generator))
            if float(torch.rand(1, generator=generator)) < 0.5:
                shown.append(self.kept[place])
                self.kept[place] = image.clone()
            else:
                shown.append(image)
        return torch.stack(shown)

    def state(self) -> Tensor:
        return torch.stack(self.kept) if self.kept else torch.zeros(0)

    def load(self, state: Tensor) -> None:
        self.kept = list(state) if state.ndim == 4 else []
