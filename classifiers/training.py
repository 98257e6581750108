"""Training of cell classifiers: a recipe, labelled cells, and a resumable loop that ends in a package.

Every random choice comes from one generator whose state is in the checkpoint, so that a resumed run ends
with the weights of an uninterrupted one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from classifiers.cell_set import CellSet, batches, cell_set, view_px
from classifiers.networks import CellNet, build_backbone
from classifiers.recipes import Recipe
from classifiers.sources import Sample, level_classes
from pipeline.errors import BadInput
from storage.averages import follow
from storage.checkpoints import keep_earlier, read_checkpoint, require_same, tensors_mark, write_checkpoint

if TYPE_CHECKING:
    from classifiers.readers import Reader

STATE = ("network", "average", "optimiser", "schedule", "generator", "global", "epoch")


def class_loss(out: Tensor, labels: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Weighted cross-entropy or focal loss (Lin et al. 2017) over the classes and, last, none."""
    each = F.cross_entropy(out, labels, reduction="none", label_smoothing=recipe.smoothing)
    if recipe.loss == "focal":
        p = out.softmax(1).gather(1, labels[:, None])[:, 0]
        each = each * (1 - p) ** recipe.focal_gamma
    return (each * weights).sum() / weights.sum()


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
    now = {
        "recipe": asdict(recipe),
        "data": cells.mark() + f" seed {seed}",
        "start": tensors_mark(network.state_dict()),
    }
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
        state = read_checkpoint(checkpoint, *STATE)
        require_same(checkpoint, state, now, *now)
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
            follow(average, network, min(recipe.ema, step / (step + 9)))  # young averages forget fast
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
                **now,
            }
            write_checkpoint(checkpoint, state)
    network.load_state_dict(average.state_dict())


def checkpoint_of(out_dir: Path) -> Path:
    """Where the training of the package `out_dir` keeps its state; an ensemble's others are numbered."""
    return out_dir.parent / f".{out_dir.name}.checkpoint.pt"


def said_of(reader: Reader, recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Stains and specimens of a card, as far as a reader says them of its set; DIC is of unstained cells."""
    stains = ("unstained",) if recipe.modality == "dic" else reader.stains
    said = {"stains": stains, "specimens": reader.specimens}
    return {key: values for key, values in said.items() if values}


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
    stain: str | None = None,
    specimen: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train on labelled cells and write a model package to `out_dir`; returns its folder.

    `data`: a folder that `reader` (default: the recipe's) takes, or samples.  `holdout` is the share of
    groups (patients where they are known; copies of one image are together) kept from training, on which
    temperature, familiarity and metrics are computed.  Classes of the level without a cell are said, marked
    on the card and never named.  `stain` and `specimen` of the cells stand on the card; without them, what
    the reader says of its set, else unknown.  `locator` are a trained locator's weights, `start` a pretrained
    backbone (`classifiers.pretraining`, `classifiers.imagenet`).  Raises BadInput where the data cannot be
    used, or where an earlier training's checkpoint is there and `resume` is not asked for.
    """
    from classifiers.calibration import finish_package, require_held_out
    from classifiers.evaluation import held_out_mark
    from classifiers.pretraining import how_pretrained
    from classifiers.readers import read_cells, reader_of
    from classifiers.sources import split_by_group, with_copies_together
    from classifiers.tallies import tally
    from classifiers.timm_classifier import go_on_from, own_locator
    from storage.packages import find_package

    checkpoint = checkpoint_of(out_dir)
    keep_earlier(resume, checkpoint)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if epochs is not None:
        recipe = recipe.with_epochs(epochs)
    name_of_reader = reader or recipe.reader
    samples = read_cells(data, name_of_reader) if isinstance(data, Path) else list(data)
    if held_out is None:
        samples = with_copies_together(samples, report)
        train, held = split_by_group(samples, holdout, seed)
        learned, held_out = [samples[i] for i in train], [samples[i] for i in held]
        share: float | None = holdout
        mark: str | None = held_out_mark(held_out)
    else:
        learned, share, mark = samples, None, None  # no share that the card could state, to be drawn again
    counted = tally(learned, held_out, recipe.level)
    counted.require_two_classes()
    require_held_out(held_out, recipe)
    for line in counted.lines():
        report(line)
    classes = level_classes(recipe.level)
    before = None if start is None else find_package(str(start))
    if before is not None and locator is None:
        locator = own_locator(before)
    backbone = start if before is None else None
    net = new_net(recipe, locator=locator is not None, seed=seed, backbone=backbone)
    if net.locator is not None and locator is not None:
        net.locator.load_state_dict(locator)
    if before is not None:
        go_on_from(net, before, classes)
    elif recipe.start_share:
        raise BadInput("recipe: start_share is of a classifier to go on from; name one with --start.")
    begun = copy.deepcopy(net.members) if recipe.start_share else ()
    cells = cell_set(learned, recipe, net)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
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
        follow(network, first, 1 - recipe.start_share)
    training = {
        "seed": seed,
        "recipe": asdict(recipe),
        "trained_cells": len(cells.labels),
        "holdout": share,
        "held_out_mark": mark,
        **counted.on_card(),
        "pretrained": None if start is None else how_pretrained(start),
    }
    if isinstance(data, Path):
        source = reader_of(name_of_reader)
        stated = f"{source.citation}; licence: {source.licence}; {counted}"
        card = {"training_data": (stated,), **said_of(source, recipe), **(card or {})}
    given = {"stains": stain, "specimens": specimen}
    card = {**(card or {}), **{key: (value,) for key, value in given.items() if value is not None}}
    finish_package(net, cells, held_out, recipe, out_dir, name or out_dir.name, training, card)
    return out_dir
