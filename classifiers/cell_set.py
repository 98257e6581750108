"""Labelled cells as a training draws them: cut once, kept small, and drawn by class and source.

What is random comes from the generator that is given, so that a training can be taken up again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from classifiers.augment import augment
from classifiers.networks import CellNet
from classifiers.recipes import Recipe
from classifiers.sources import Sample, level_classes
from classifiers.tallies import NONE, role_of
from classifiers.views import LOCATOR_PX, anchored, balance, crop_square, white_point
from pipeline.errors import BadInput
from storage.checkpoints import tensors_mark
from storage.fingerprint import fingerprint
from storage.images import read_rgb

MEAN, STD = (0.62, 0.55, 0.66), (0.25, 0.27, 0.20)


@dataclass(frozen=True)
class CellSet:
    """Cached cells: images (N, 3, S, S) uint8, white-balanced; view: share of their side; class or -1."""

    images: Tensor
    view: Tensor
    labels: Tensor
    weights: Tensor
    sources: tuple[str, ...]

    def mark(self) -> str:
        """sha256 of what a training learns from, in its order."""
        pixels = {k: getattr(self, k) for k in ("images", "view", "labels", "weights")}
        return fingerprint(tensors_mark(pixels), self.sources)


def cell_set(samples: Sequence[Sample], recipe: Recipe, net: CellNet | None = None) -> CellSet:
    """Cut and cache the cells of samples; the locator of `net` finds those without a place.

    A label outside the recipe's level that no leukocyte can have (`other`, `artefact`) trains "none".
    """
    classes = level_classes(recipe.level)
    margin = recipe.augmentation.scale[1] * 1.05
    images, views, labels, weights, sources = [], [], [], [], []
    last: tuple[Path, np.ndarray, Tensor] | None = None
    for sample in samples:
        label = role_of(sample.label, recipe.level)
        if label is None:
            continue
        if last is None or last[0] != sample.path:
            image = read_rgb(sample.path)
            last = (sample.path, image, white_point(image))
        _, image, white = last
        x, y, view = place(sample, image, white, recipe.zoom, net)
        side = view * margin
        crop = balance(crop_square(image, x, y, side, recipe.cached_px), white)
        if recipe.nuclear_hue is not None:
            crop = anchored(crop, 1 / (recipe.zoom * margin), recipe.nuclear_hue)
        images.append((crop * 255).round().byte())
        views.append(view / side)
        labels.append(-1 if label == NONE else classes.index(label))
        weights.append(sample.weight)
        sources.append(sample.source)
    if not images:
        raise BadInput(f"no sample has a class of the level '{recipe.level}': {', '.join(classes)}.")
    return CellSet(
        torch.stack(images), torch.tensor(views), torch.tensor(labels), torch.tensor(weights), tuple(sources)
    )


def place(
    sample: Sample, image: np.ndarray, white: Tensor, zoom: float, net: CellNet | None
) -> tuple[float, float, float]:
    """Centre and side, in pixels, of a sample's normal view."""
    if sample.side is not None and sample.x is not None and sample.y is not None:
        return sample.x, sample.y, zoom * sample.side
    height, width = image.shape[:2]
    x, y, side = width / 2, height / 2, float(max(height, width))
    if net is None or net.locator is None:
        return x, y, side
    small = balance(crop_square(image, x, y, side, LOCATOR_PX), white)
    dx, dy, view = net.locator.eval().aim(small, zoom)
    return x + dx * side, y + dy * side, view * side


def sampling_weights(cells: CellSet, recipe: Recipe) -> Tensor:
    """How likely each cell is drawn: classes balanced by `balance`, sources within a class by
    `source_balance`, none at its share."""
    chance = torch.zeros(len(cells.labels), dtype=torch.float64)
    known = cells.labels >= 0
    counts = torch.bincount(cells.labels[known]).double().clamp(min=1)
    chance[known] = (counts**-recipe.balance)[cells.labels[known]]
    pairs = Counter(zip(cells.sources, cells.labels.tolist(), strict=True))
    of_class = Counter(cells.labels.tolist())
    for (source, label), n in pairs.items():
        mine = (cells.labels == label) & torch.tensor([s == source for s in cells.sources])
        chance[mine] *= (n / of_class[label]) ** -recipe.source_balance
    chance[known] /= chance[known].sum()
    if (~known).any():
        chance[~known] = recipe.none_share / max(1e-9, 1 - recipe.none_share) / int((~known).sum())
    return chance


def view_px(recipe: Recipe, epoch: int) -> int:
    """The side of an epoch's views: small ones first cost little and teach the coarse shapes."""
    if recipe.start_px is None:
        return recipe.input_px
    done = min(1.0, epoch / max(1.0, 0.6 * recipe.epochs))
    return min(recipe.input_px, recipe.start_px + int(done * (recipe.input_px - recipe.start_px)) // 8 * 8)


def batches(
    cells: CellSet, recipe: Recipe, none: int, generator: torch.Generator
) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """What draws a batch of views of a side: (B, 3, S, S) normalised, labels with `none` for -1, weights."""
    chance = sampling_weights(cells, recipe)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def draw(side_px: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.multinomial(chance, recipe.batch, replacement=True, generator=generator)
        x = cells.images[chosen].float() / 255
        x = augment(x, side_px, cells.view[chosen].float(), recipe.augmentation, generator)
        labels = cells.labels[chosen]
        labels = torch.where(labels < 0, none, labels)
        x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
        return x, labels, cells.weights[chosen].float()

    return draw
