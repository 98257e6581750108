"""Losses that look at a stained cell through a frozen classifier: its features, and its name for the cell.

A pixel loss is content with the mean of what a cell may look like; what tells the cell types apart is a
small part of it.  Features of a network that names cells weigh just that part (Johnson, Alahi and Fei-Fei,
ECCV 2016), and the divergence of its class probabilities asks that the stained cell be given the name of the
real one (the class head of thesis chapter 8, with a network instead of expert classes).  The classifier
sees both images in the frame that it would name the real cell in, in the light of the real one, so that the
lamp's colour is not part of the loss, and both with the gain of the dye that the real one needs, so that a
dye too weak is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import BadInput

MIN_WHITE = 0.45  # as classifiers see a patch without background

Frame = tuple[float, float, float]  # centre x, y and side of a square, in pixels
Array = np.ndarray[Any, Any]


def white_of(stained: Tensor) -> Tensor:
    """Brightest colour (B, 3, 1, 1) of stained images (B, 3, H, W) in [0, 1]: the 98th percentile."""
    sample = stained[:, :, ::4, ::4].flatten(2)
    white = torch.quantile(sample.float(), 0.98, dim=2)
    return white.clamp(min=MIN_WHITE)[:, :, None, None]


class PerceptualLoss(nn.Module):
    """Feature and class distances of image pairs under frozen convolutional networks of timm.

    `network` takes views (B, 3, input_px, input_px) normalised by mean and std and gives logits, of which
    the first `classes` are compared; the features are those of its last three stages.  `companions` add to
    the logits, by `shares` of one.  `frame_of` takes a real image (H, W, 3) uint8 to the square that is
    looked at, `cut` an image (3, H, W) and that square to a view; without them it is the whole image.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        input_px: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        classes: int,
        companions: Sequence[nn.Module] = (),
        shares: Sequence[float] = (1.0,),
        gain_of: Callable[[Tensor], Tensor] | None = None,
        frame_of: Callable[[Array], Frame] | None = None,
        cut: Callable[[Tensor, Frame], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.companions = nn.ModuleList(copy.deepcopy(c).eval().requires_grad_(False) for c in companions)
        self.shares = tuple(shares)
        self.input_px, self.classes = input_px, classes
        self.gain_of, self.frame_of, self.cut = gain_of, frame_of, cut
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def train(self, mode: bool = True) -> PerceptualLoss:
        """A frozen judge stays in evaluation mode whatever its surroundings do."""
        del mode
        return super().train(False)

    def _frames(self, stained: Tensor) -> list[Frame] | None:
        """The square in which each real image's cell is named; None: all of the image."""
        if self.frame_of is None or self.cut is None:
            return None
        pixels = (stained.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [self.frame_of(picture) for picture in pixels]

    def _view(self, image: Tensor, white: Tensor, frames: list[Frame] | None) -> Tensor:
        if frames is None or self.cut is None:
            size = (self.input_px, self.input_px)
            view = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
        else:
            view = torch.stack([self.cut(*pair) for pair in zip(image, frames, strict=True)])
        return (view / white).clamp(0, 1.2)

    def _look(self, view: Tensor, gain: Tensor | None) -> tuple[list[Tensor], Tensor]:
        if gain is not None:
            view = (view.clamp(min=1 / 255).log() * gain[..., None, None]).exp()
        view = (view - self.mean) / self.std
        last, stages = self.network.forward_intermediates(view, indices=3)
        logits = self.network.forward_head(last)[:, : self.classes] * self.shares[0]
        for share, companion in zip(self.shares[1:], self.companions, strict=True):
            logits = logits + companion(view)[:, : self.classes] * share
        return stages, logits

    def forward(self, image: Tensor, stained: Tensor) -> tuple[Tensor, Tensor]:
        """(feature distance, class divergence) of images (B, 3, H, W) from stained ones, each a mean.

        The feature distance is the mean absolute difference over each stage's own spread; the divergence
        is that of Kullback and Leibler, in nats, from the real image's classes.
        """
        white = white_of(stained)
        with torch.no_grad():
            frames = self._frames(stained)
            real = self._view(stained, white, frames)
            gain = None if self.gain_of is None else torch.stack([self.gain_of(v) for v in real])
            wanted, logits = self._look(real, gain)
            named = logits.softmax(1)
        found, guesses = self._look(self._view(image, white, frames), gain)
        feature = sum(
            ((a - b).abs().mean() / (b.std() + 1e-6) for a, b in zip(found, wanted, strict=True)),
            image.new_zeros(()),
        ) / len(wanted)
        return feature, F.kl_div(guesses.log_softmax(1), named, reduction="batchmean")


def load_judge(name: str) -> PerceptualLoss:
    """The perceptual loss under a shipped or trained cell classifier.

    Raises UnknownName for a name that there is none of, BadInput for a classifier that cannot judge.
    """
    from storage.registry import load

    classifier = load("classifier", name)
    if not hasattr(classifier, "as_judge"):
        raise BadInput(
            f"classifier {name} cannot judge images in training; name another one as the recipe's judge, or "
            "set losses.feature and losses.named to 0."
        )
    return PerceptualLoss(**classifier.as_judge())
