"""The losses of thesis chapter 5, by equation number, on tensors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def domain_loss(logits: Tensor, domain: Tensor) -> Tensor:
    """5.2 and 5.4: cross-entropy of the domain classifier, logits (B, n), domain (B,)."""
    return F.cross_entropy(logits, domain)


def cycle_loss(source: Tensor, back: Tensor) -> Tensor:
    """5.3: mean absolute difference of the input and its translation there and back."""
    return (source - back).abs().mean()


def cell_class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """5.5: cross-entropy over the cells whose class is known (label >= 0); 0 where none is."""
    known = labels >= 0
    if not bool(known.any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[known], labels[known])


def pair_loss(translated: Tensor, partner: Tensor, paired: Tensor) -> Tensor:
    """5.6: mean absolute difference from the same cell in the target domain, over the items (B,) bool that
    have one; 0 where none has."""
    if not bool(paired.any()):
        return translated.sum() * 0.0
    return (translated[paired] - partner[paired]).abs().mean()


def segment_loss(logits: Tensor, labels: Tensor, ignore: int = 255) -> Tensor:
    """5.7: cross-entropy of every pixel with a known label; logits (B, 4, h, w), labels (B, H, W) are
    thinned to their size."""
    thin = labels.shape[1] // logits.shape[2]
    labels = labels[:, ::thin, ::thin]
    if not bool((labels != ignore).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits, labels, ignore_index=ignore)
