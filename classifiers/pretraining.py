"""Learning from cells that nobody named: contrastive pretraining of a backbone (SimCLR, Chen et al. 2020).

Two augmented views of one cell are pulled together and pushed away from the other cells of the batch.  The
augmentation is that of the supervised training: another stain, light and angle of the same cell, which is
what a classifier must not be misled by.  Every random draw comes from one generator kept in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifiers.augment import Augmentation, augment
from classifiers.cell_set import MEAN, STD, cell_set
from classifiers.networks import BACKBONES, build_backbone
from classifiers.recipes import Recipe
from classifiers.sources import Sample, boxed_cells
from pipeline.errors import BadInput, BadModelPackage
from storage.checkpoints import keep_earlier, read_checkpoint, require_same, tensors_mark, write_checkpoint

WEIGHTS, NOTES = "backbone.safetensors", "pretraining.json"


@dataclass(frozen=True)
class Pretraining:
    """One run: `crops` cells at most, drawn evenly from sources and kinds; `projection` is the width of the
    head that is thrown away afterwards; `temperature` that of the contrastive loss."""

    backbone: str = "resnet18_slim"
    input_px: int = 64
    cached_px: int = 96
    crops: int = 4000
    epochs: int = 12
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    temperature: float = 0.2
    projection: int = 64
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(
            scale=(0.7, 1.3), stain_mix=0.12, stain_gain=0.3, transfer=0.4, hue=0.06, grey=0.1, erase=0.0
        )
    )

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise BadInput(f"backbone '{self.backbone}' is not one of {', '.join(BACKBONES)}.")
        if self.batch < 2:
            raise BadInput("a contrastive batch needs at least 2 cells; raise `batch`.")


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, eq. 1) of projections (B, D) twice.

    Each of the 2 B views has one partner and 2 B - 2 strangers.
    """
    z = F.normalize(torch.cat([first, second]), dim=1)
    likeness = z @ z.T / temperature
    likeness.fill_diagonal_(float("-inf"))
    n = len(first)
    partner = torch.cat([torch.arange(n) + n, torch.arange(n)])
    return F.cross_entropy(likeness, partner)


class _Projected(nn.Module):
    """A backbone without classes, and the two layers whose output is compared."""

    def __init__(self, backbone: str, width: int) -> None:
        super().__init__()
        self.network = build_backbone(backbone, 0)
        features = int(self.network.num_features)
        self.head = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, width)
        )

    def forward(self, views: Tensor) -> Tensor:
        return self.head(self.network(views))


def crops_of(samples: Sequence[Sample], run: Pretraining) -> tuple[Tensor, Tensor]:
    """Cached crops (N, 3, S, S) uint8 of samples with a place, and the share of their side that a view takes.

    Labels are not looked at: a red cell is a cell like any other here.
    """
    from dataclasses import replace

    recipe = Recipe(
        backbone=run.backbone,
        input_px=run.input_px,
        cached_px=run.cached_px,
        augmentation=run.augmentation,
    )
    cells = cell_set([replace(s, label="other") for s in samples], recipe)
    return cells.images, cells.view


def pretrain(
    images: Tensor,
    view: Tensor,
    run: Pretraining,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Tensor]:
    """Train on crops (N, 3, S, S) uint8 and `view` (N,) as `crops_of` gives them; the backbone's weights.

    Raises BadInput where there are fewer crops than two.
    """
    if len(images) < 2:
        raise BadInput(f"{len(images)} unlabelled cells are too few to learn from; give at least 2.")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = _Projected(run.backbone, run.projection).to(memory_format=torch.channels_last)
    now = {
        "recipe": asdict(run),
        "data": tensors_mark({"images": images, "view": view}),
        "start": tensors_mark(net.state_dict()),
    }
    batch = min(run.batch, len(images))
    per_epoch = max(1, len(images) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), run.learning_rate, weight_decay=run.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, run.learning_rate, total_steps=max(2, per_epoch * run.epochs), pct_start=0.2
    )
    start = 0
    if resume and checkpoint is not None and checkpoint.is_file():
        state = read_checkpoint(checkpoint, "net", "optimiser", "schedule", "generator", "epoch")
        require_same(checkpoint, state, now, *now)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        start = int(state["epoch"])
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    net.train()
    for epoch in range(start, min(run.epochs, stop_after or run.epochs)):
        total = 0.0
        order = torch.randperm(len(images), generator=generator)
        for step in range(per_epoch):
            chosen = order[step * batch : (step + 1) * batch]
            x = images[chosen].float() / 255
            pair = [
                augment(x, run.input_px, view[chosen].float(), run.augmentation, generator) for _ in range(2)
            ]
            z = net(((torch.cat(pair) - mean) / std).contiguous(memory_format=torch.channels_last))
            loss = nt_xent(z[: len(chosen)], z[len(chosen) :], run.temperature)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        report(f"epoch {epoch + 1}/{run.epochs} loss {total / per_epoch:.4f}")
        if checkpoint is not None:
            state = {
                "net": net.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "epoch": epoch + 1,
                **now,
            }
            write_checkpoint(checkpoint, state)
    return {k: v.detach().clone() for k, v in net.network.state_dict().items()}


def start_from(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Give a backbone with classes the weights of one without; only its last layer keeps its own.

    Raises BadModelPackage where the weights are of another architecture.
    """
    own = network.state_dict()
    last = {f"{name}." for name, module in network.named_modules() if module is network.get_classifier()}
    needed = {k for k in own if not any(k.startswith(p) for p in last)}
    wrong = sorted(k for k in needed ^ state.keys() if k in needed or k in state)
    wrong += sorted(k for k in needed & state.keys() if own[k].shape != state[k].shape)
    if wrong:
        raise BadModelPackage(
            f"{where}: tensor '{wrong[0]}' does not fit the recipe's backbone; pretrain with the same one."
        )
    network.load_state_dict({**own, **state})


def pretrain_backbone(
    data: Path,
    out_dir: Path,
    run: Pretraining | None = None,
    *,
    seed: int = 0,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Pretrain on the boxed cells of a smears folder (YOLO format) and write `backbone.safetensors`.

    Beside it stands `pretraining.json`: settings, seed, cells by source.  Raises BadInput where the folder
    holds no boxes, or `out_dir` a checkpoint and `resume` is not asked for.
    """
    from collections import Counter

    checkpoint = out_dir / "checkpoint.pt"
    keep_earlier(resume, checkpoint)
    run = run or Pretraining()
    samples = boxed_cells(data, run.crops, seed)
    images, view = crops_of(samples, run)
    out_dir.mkdir(parents=True, exist_ok=True)
    state = pretrain(images, view, run, seed=seed, checkpoint=checkpoint, resume=resume, report=report)
    notes = {
        "method": "SimCLR (Chen et al. 2020), no labels used",
        "seed": seed,
        "cells": dict(sorted(Counter(s.source for s in samples).items())),
        "run": asdict(run),
    }
    write_backbone(out_dir, state, notes)
    return notes


def write_backbone(out_dir: Path, state: dict[str, Tensor], notes: dict[str, Any]) -> None:
    """Write a folder that `train classifier --start` goes on from: weights, and how they came about."""
    import json

    from safetensors.torch import save_file

    out_dir.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, str(out_dir / WEIGHTS))
    (out_dir / NOTES).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    (out_dir / WEIGHTS).chmod((out_dir / NOTES).stat().st_mode)  # safetensors writes for its owner alone


def how_pretrained(path: Path) -> dict[str, Any] | str:
    """What the notes of a pretraining folder say; a classifier's package with its version; else the name."""
    import json

    from storage.packages import find_package

    if (package := find_package(str(path))) is not None:
        card = package.card
        return {"package": card.name, "version": card.version, "sha256": card.sha256}

    notes = path / NOTES
    return json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else path.name


def read_backbone(path: Path) -> dict[str, Tensor]:
    """The weights of a pretraining folder or file; raises BadInput where there are none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / WEIGHTS if path.is_dir() else path
    try:
        return load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"{file}: no pretrained backbone ({error}); `smearflow train backbone` makes one."
        ) from error
