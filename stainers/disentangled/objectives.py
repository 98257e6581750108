"""The losses of thesis chapter 6, by equation number, on tensors (B, C, H, W)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from stainers.perceptual import white_of

RED_CELL = 1  # labels up to here are background and red cells, above are cytoplasm and nucleus
IGNORE = 255


def style_loss(wanted: Tensor, *found: Tensor) -> Tensor:
    """6.2: mean absolute difference of the style asked for and the styles (B, S) read off the pictures; a
    sum."""
    return sum(((wanted - f).abs().mean() for f in found), wanted.new_zeros(()))


def structure_loss(logits: Tensor, labels: Tensor, surroundings_only: bool = False) -> Tensor:
    """6.3, one term: cross-entropy of the segmentation of a picture from that of its input.

    logits (B, 4, h, w), labels (B, h, w) with 255 where nothing is known.  With `surroundings_only` the
    pixels of background and red cells count alone: the leukocyte was given another structure.
    """
    wanted = labels.clone()
    if surroundings_only:
        wanted[labels > RED_CELL] = IGNORE
    if not bool((wanted != IGNORE).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits, wanted, ignore_index=IGNORE)


def diversity_loss(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """6.4 as something to lower: minus the sum of mean absolute differences of pictures of two codes.

    The second picture of a pair carries no gradient (as in StarGAN v2): one step is taken, not two.
    """
    return sum((-(a - b.detach()).abs().mean() for a, b in pairs), pairs[0][0].new_zeros(()))


def cycle_loss(source: Tensor, *back: Tensor) -> Tensor:
    """6.5: the sum of mean absolute differences of the input and its translations there and back."""
    return sum(((source - b).abs().mean() for b in back), source.new_zeros(()))


class FrozenSegmenter(nn.Module):
    """A trained network that outlines cells in stained pictures; gradients pass through it, none reach it.

    Pictures (B, 3, H, W) in [0, 1] at half its pixel size -> logits (B, 4, H / 2, W / 2); it sees
    transmission, as `network` was trained to: the picture over its white, by mean and std.
    """

    def __init__(self, network: nn.Module, mean: float = 0.75, std: float = 0.25) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.mean, self.std = mean, std

    def train(self, mode: bool = True) -> FrozenSegmenter:
        """A frozen network stays in evaluation mode whatever its surroundings do."""
        del mode
        return super().train(False)

    def forward(self, picture: Tensor) -> Tensor:
        small = F.avg_pool2d(picture, 2)
        light = (small / white_of(picture)).clamp(max=1.2)
        return self.network((light - self.mean) / self.std)
