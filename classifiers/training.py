"""Training of cell classifiers: a recipe, labelled cells, and a resumable loop that ends in a package.

Every random choice comes from one generator whose state is in the checkpoint, so that a resumed run ends
with the weights of an uninterrupted one.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from classifiers.augment import augment
from classifiers.networks import CellNet, build_backbone
from classifiers.recipes import RECIPES, Recipe
from classifiers.sources import Sample, level_classes, read_image, to_level
from classifiers.timm_classifier import MAX_OFFSET, MAX_SIDE, MAX_VIEW, MIN_SIDE, MIN_VIEW
from classifiers.views import LOCATOR_PX, anchored, balance, crop_square, white_point
from pipeline.errors import BadInput

__all__ = ["MEAN", "RECIPES", "STD", "CellSet", "Recipe", "cell_set", "fit", "train_classifier"]

MEAN, STD = (0.62, 0.55, 0.66), (0.25, 0.27, 0.20)


@dataclass(frozen=True)
class CellSet:
    """Cached cells: images (N, 3, S, S) uint8, white-balanced; view: share of their side; class or -1."""

    images: Tensor
    view: Tensor
    labels: Tensor
    weights: Tensor
    sources: tuple[str, ...]


def cell_set(samples: Sequence[Sample], recipe: Recipe, net: CellNet | None = None) -> CellSet:
    """Cut and cache the cells of samples; the locator of `net` finds those without a place.

    A label outside the recipe's level that no leukocyte can have (`other`, `artefact`) trains "none".
    """
    classes = level_classes(recipe.level)
    margin = recipe.augmentation.scale[1] * 1.05
    images, views, labels, weights, sources = [], [], [], [], []
    last: tuple[Path, np.ndarray, Tensor] | None = None
    for sample in samples:
        label = to_level(sample.label, recipe.level)
        if label not in classes and label not in ("other", "artefact", "smudge"):
            continue
        if last is None or last[0] != sample.path:
            image = read_image(sample.path)
            last = (sample.path, image, white_point(image))
        _, image, white = last
        x, y, view = place(sample, image, white, recipe.zoom, net)
        side = view * margin
        crop = balance(crop_square(image, x, y, side, recipe.cached_px), white)
        if recipe.nuclear_hue is not None:
            crop = anchored(crop, 1 / (recipe.zoom * margin), recipe.nuclear_hue)
        images.append((crop * 255).round().byte())
        views.append(view / side)
        labels.append(classes.index(label) if label in classes else -1)
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
    with torch.inference_mode():
        dx, dy, log_side = net.locator.eval()(small[None])[0].tolist()
    if max(abs(dx), abs(dy)) <= MAX_OFFSET:
        x, y = x + dx * side, y + dy * side
    view = float(np.clip(zoom * np.clip(np.exp(log_side), MIN_SIDE, MAX_SIDE), MIN_VIEW, MAX_VIEW))
    return x, y, view * side


def class_loss(out: Tensor, labels: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Weighted cross-entropy or focal loss (Lin et al. 2017) over the classes and, last, none."""
    each = F.cross_entropy(out, labels, reduction="none", label_smoothing=recipe.smoothing)
    if recipe.loss == "focal":
        p = out.softmax(1).gather(1, labels[:, None])[:, 0]
        each = each * (1 - p) ** recipe.focal_gamma
    return (each * weights).sum() / weights.sum()


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


def new_net(recipe: Recipe, *, locator: bool, seed: int, backbone: Path | None = None) -> CellNet:
    """A network to train by a recipe; each member begins as a single one of `seed`, `seed` + 1, ... would.

    `backbone` holds the weights that all of them begin with but for their last layer (`read_backbone`).
    """
    from classifiers.pretraining import read_backbone, start_from

    classes = len(level_classes(recipe.level))
    torch.manual_seed(seed)
    net = CellNet(
        recipe.backbone,
        classes,
        locator=locator,
        none_output=True,
        drop_rate=recipe.drop_rate,
        weights=recipe.member_weights,
    )
    for number, companion in enumerate(net.companions, 1):
        torch.manual_seed(seed + number)
        alike = build_backbone(recipe.backbone, classes + 1, recipe.drop_rate)
        companion.load_state_dict(alike.state_dict())
    if backbone is not None:
        weights = read_backbone(backbone)
        for network in net.members:
            start_from(network, weights, str(backbone))
    return net


def peak_rate(network: torch.nn.Module, none: int, cells: CellSet, recipe: Recipe, seed: int) -> float:
    """The recipe's learning rate, or the one that a range test suggests."""
    if recipe.learning_rate is not None:
        return recipe.learning_rate
    from classifiers.learning_rate import range_test

    # A generator of its own, so that the training draws the same whether the rate was found or given.
    draw = batches(cells, recipe, none, torch.Generator().manual_seed(seed + 1))
    found = range_test(
        network,
        lambda: draw(recipe.input_px),
        lambda out, labels, weights: class_loss(out, labels, weights, recipe),
        weight_decay=recipe.weight_decay,
    )
    return found.suggested


def fit(
    net: CellNet,
    cells: CellSet,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> CellNet:
    """Train the backbones, each apart; returns the network with the moving averages of their weights.

    Each has a checkpoint of its own.  `stop_after` ends the run of each after that many epochs in all,
    leaving the checkpoint, as a kill would.
    """
    for number, (network, own) in enumerate(zip(net.members, recipe.members, strict=True)):
        kept = checkpoint
        if checkpoint is not None and number:
            kept = checkpoint.with_name(f"{checkpoint.stem}-{number + 1}{checkpoint.suffix}")
        _fit_one(
            network,
            net.classes,
            cells,
            own,
            seed=seed + number,
            checkpoint=kept,
            resume=resume,
            stop_after=stop_after,
            report=report,
        )
    return net.eval()


def _fit_one(
    network: torch.nn.Module,
    none: int,
    cells: CellSet,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path | None,
    resume: bool,
    stop_after: int | None,
    report: Callable[[str], None],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)
    torch.manual_seed(seed)  # dropout draws from the global generator
    rate = peak_rate(network, none, cells, recipe, seed)
    if recipe.learning_rate is None:
        report(f"learning rate {rate:.2g} by a range test")
        torch.manual_seed(seed)
    per_epoch = max(1, (recipe.samples_per_epoch or len(cells.labels)) // recipe.batch)
    parameters = list(network.parameters())
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=max(2, per_epoch * recipe.epochs), pct_start=0.2
    )
    average = copy.deepcopy(network)
    start = 0
    step = 0
    if resume and checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["global"])
        start = int(state["epoch"])
        step = start * per_epoch
    draw = batches(cells, recipe, none, generator)
    for epoch in range(start, min(recipe.epochs, stop_after or recipe.epochs)):
        network.train()
        total = 0.0
        side_px = view_px(recipe, epoch)
        for _ in range(per_epoch):
            x, labels, weights = draw(side_px)
            loss = class_loss(network(x), labels, weights, recipe)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
            step += 1
            _follow(average, network, min(recipe.ema, step / (step + 9)))  # young averages forget fast
        report(f"epoch {epoch + 1}/{recipe.epochs} loss {total / per_epoch:.4f}")
        if checkpoint is not None:
            state = {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "global": torch.get_rng_state(),
                "epoch": epoch + 1,
            }
            temporary = checkpoint.with_suffix(".part")
            torch.save(state, temporary)
            temporary.replace(checkpoint)
    network.load_state_dict(average.state_dict())


def _follow(average: torch.nn.Module, network: torch.nn.Module, share: float) -> None:
    with torch.no_grad():
        for a, b in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if a.is_floating_point():
                a.lerp_(b, 1 - share)
            else:
                a.copy_(b)


def train_classifier(
    data: Path | Sequence[Sample],
    out_dir: Path,
    recipe: Recipe | str | Path = "leukocytes",
    *,
    epochs: int | None = None,
    resume: bool = False,
    seed: int = 0,
    holdout: float = 0.15,
    locator: dict[str, Tensor] | None = None,
    name: str | None = None,
    card: dict[str, Any] | None = None,
    stop_after: int | None = None,
    reader: str | None = None,
    start: Path | None = None,
    held_out: Sequence[Sample] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train on labelled cells and write a model package to `out_dir`; returns its folder.

    `data`: a folder that `reader` (default: the recipe's) takes, or samples.  `holdout` is the share of
    groups (patients where they are known) kept from training, on which temperature, familiarity and metrics
    are computed.  `locator` are a trained locator's weights, `start` a pretrained backbone
    (`classifiers.pretraining`, `classifiers.imagenet`).  Raises BadInput where the data cannot be used.
    """
    from classifiers.calibration import finish_package
    from classifiers.pretraining import how_pretrained
    from classifiers.readers import read_cells, reader_of
    from classifiers.sources import split_by_group
    from classifiers.timm_classifier import go_on_from, own_locator
    from storage.packages import find_package

    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if epochs is not None:
        recipe = recipe.with_epochs(epochs)
    name_of_reader = reader or recipe.reader
    samples = read_cells(data, name_of_reader) if isinstance(data, Path) else list(data)
    if held_out is None:
        train, held = split_by_group(samples, holdout, seed)
        learned, held_out = [samples[i] for i in train], [samples[i] for i in held]
        share: float | None = holdout
    else:
        learned, share = samples, None  # no share that the card could state, to be drawn again
    classes = level_classes(recipe.level)
    before = None if start is None else find_package(str(start))
    if before is not None and locator is None:
        locator = own_locator(before)
    backbone = start if before is None else None
    net = new_net(recipe, locator=locator is not None, seed=seed, backbone=backbone)
    if net.locator is not None and locator is not None:
        net.locator.load_state_dict(locator)
    if before is not None:
        go_on_from(net.members, before, classes)
    elif recipe.start_share:
        raise BadInput("recipe: start_share is of a classifier to go on from; name one with --start.")
    begun = copy.deepcopy(net.members) if recipe.start_share else ()
    cells = cell_set(learned, recipe, net)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out_dir.parent / f".{out_dir.name}.checkpoint.pt"
    net = fit(
        net,
        cells,
        recipe,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
        stop_after=stop_after,
        report=report,
    )
    for network, first in zip(net.members, begun, strict=False):
        _follow(network, first, 1 - recipe.start_share)
    training = {
        "seed": seed,
        "recipe": asdict(recipe),
        "trained_cells": len(cells.labels),
        "holdout": share,
        "pretrained": None if start is None else how_pretrained(start),
    }
    if isinstance(data, Path):
        source = reader_of(name_of_reader)
        stated = f"{source.citation}; licence: {source.licence}; {len(samples)} cells"
        card = {"training_data": (stated,), **(card or {})}
    finish_package(net, cells, held_out, recipe, out_dir, name or out_dir.name, training, card or {})
    return out_dir
