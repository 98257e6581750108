"""Training of the locator: where the cell in the middle of a crop lies, and how large it is.

A crop of unknown scale is cut to the cell before the cell is named; the locator learns this from boxed
cells of several stains, shown in views in which the cell fills from a twelfth to nine tenths of the side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from classifiers.augment import Augmentation, optics, stain
from classifiers.networks import Locator
from classifiers.sources import Sample, split_by_group, with_copies_together
from classifiers.views import LOCATOR_PX, balance, crop_square, white_point
from pipeline.errors import BadInput
from storage.checkpoints import keep_earlier, read_checkpoint, require_same, tensors_mark, write_checkpoint
from storage.images import read_rgb
from storage.whole_files import write_json, write_output

CACHED_PX = 128
MARGIN = {"platelet": 8.0, "other": 3.6}  # side of what is cached, in sides of the box; cells: 3.4
STEPS = 2600
HOLDOUT = 0.15  # as classifiers hold out
WEIGHTS, NOTES = "locator.safetensors", "locator.json"
SMALL = 0.2  # below this share of the cached side a box is a platelet's, shown small as crops show it


def cached(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Crops (N, 3, 128, 128) uint8 around boxed samples, and the box's share of their side (N,)."""
    crops, share = [], []
    for sample in samples:
        if sample.side is None or sample.x is None or sample.y is None:
            continue
        image = read_rgb(sample.path)
        margin = MARGIN.get(sample.label, 3.4)
        crop = crop_square(image, sample.x, sample.y, margin * sample.side, CACHED_PX)
        crops.append((balance(crop, white_point(image)) * 255).byte())
        share.append(1 / margin)
    if not crops:
        raise BadInput("no sample has a box; the locator learns from boxed cells (columns x, y, side).")
    return torch.stack(crops), torch.tensor(share)


def views(
    images: Tensor, share: Tensor, generator: torch.Generator, strength: Augmentation | None
) -> tuple[Tensor, Tensor]:
    """Random views (B, 3, 64, 64) of cached crops, and where the cell is in them, (B, 3) as `Locator`."""
    n = len(images)

    def between(low: float, high: float) -> Tensor:
        return (torch.rand(n, generator=generator) * (math.log(high) - math.log(low)) + math.log(low)).exp()

    seen = torch.where(share < SMALL, between(0.08, 0.22), between(0.25, 0.9))
    side = (share / seen).clamp(max=1.25)
    offset = (torch.rand(n, 2, generator=generator) * 2 - 1) * 0.08
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    turn = torch.randint(0, 4, (n,), generator=generator) * torch.pi / 2
    cos, sin = turn.cos(), turn.sin()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos * side * mirror, -sin * side
    theta[:, 1, 0], theta[:, 1, 1] = sin * side * mirror, cos * side
    theta[:, :, 2] = -(theta[:, :, :2] @ (2 * offset)[:, :, None])[:, :, 0]
    grid = F.affine_grid(theta, [n, 3, LOCATOR_PX, LOCATOR_PX], align_corners=False)
    view = F.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)
    if strength is not None:
        view = optics(stain(view, strength, generator), strength, generator)
    return view, torch.cat([offset, (share / side).log()[:, None]], 1)


def train_locator(
    samples: Sequence[Sample],
    *,
    steps: int = STEPS,
    batch: int = 48,
    learning_rate: float = 4e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Locator:
    """Train a locator on samples with boxes; raises BadInput where none has one."""
    images, share = cached(samples)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = Locator()
    now = {
        "recipe": {"steps": steps, "batch": batch, "learning_rate": learning_rate},
        "data": tensors_mark({"images": images, "share": share}),
        "start": tensors_mark(net.state_dict()),
    }
    optimiser = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=max(2, steps))
    start = 0
    if resume and checkpoint is not None and checkpoint.is_file():
        state = read_checkpoint(checkpoint, "net", "optimiser", "schedule", "generator", "step")
        require_same(checkpoint, state, now, *now)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        start = int(state["step"])
    strength = Augmentation(stain_mix=0.15, erase=0.0)
    weight = torch.tensor([4.0, 4.0, 1.0])
    end = min(steps, stop_after or steps)
    for step in range(start, end):
        chosen = torch.randint(0, len(images), (batch,), generator=generator)
        view, truth = views(images[chosen], share[chosen], generator, strength)
        loss = F.smooth_l1_loss(net(view) * weight, truth * weight, beta=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            report(f"step {step}/{steps} loss {float(loss.detach()):.4f}")
        if checkpoint is not None and ((step + 1) % 200 == 0 or step + 1 == end):
            state = {
                "net": net.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "step": step + 1,
                **now,
            }
            write_checkpoint(checkpoint, state)
    return net.eval()


def errors_of(net: Locator, samples: Sequence[Sample], *, seed: int = 0) -> dict[str, Any]:
    """How far off a locator is on samples with boxes, each in one view: medians of the centre's distance from
    the truth, in sides of the cell, and of the factor by which the side is wrong, minus 1."""
    images, share = cached(samples)
    view, truth = views(images, share, torch.Generator().manual_seed(seed), None)
    with torch.inference_mode():
        found = net(view)
    away = (found[:, :2] - truth[:, :2]).norm(dim=1) / truth[:, 2].exp()
    factor = (found[:, 2] - truth[:, 2]).abs().exp() - 1
    return {
        "n": len(images),
        "centre_error_sides": round(float(away.median()), 4),
        "side_error": round(float(factor.median()), 4),
    }


def write_locator(
    data: Path,
    out_dir: Path,
    *,
    reader: str = "folders",
    steps: int = STEPS,
    seed: int = 0,
    holdout: float = HOLDOUT,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train on the boxed cells that `reader` finds in `data`, for `train classifier --locator OUT_DIR`.

    The cells that a classifier trained on the same data with the same seed holds out are held out here, too,
    and measured.  Writes weights and notes; returns the notes.  Raises BadInput where there are no
    boxes, or `out_dir` holds a checkpoint and `resume` is not asked for.
    """
    from safetensors.torch import save

    from classifiers.readers import read_cells

    checkpoint = out_dir / "checkpoint.pt"
    keep_earlier(resume, checkpoint)
    samples = with_copies_together(read_cells(data, reader), report)
    parts = ([samples[i] for i in part] for part in split_by_group(samples, holdout, seed))
    learned, held = ([s for s in part if s.side is not None] for part in parts)
    out_dir.mkdir(parents=True, exist_ok=True)
    net = train_locator(learned, steps=steps, seed=seed, checkpoint=checkpoint, resume=resume, report=report)
    notes = {
        "seed": seed,
        "steps": steps,
        "holdout": holdout,
        "cells": dict(sorted(Counter(s.source for s in learned).items())),
        "held_out": errors_of(net, held) if held else None,
    }
    write_output(out_dir / WEIGHTS, save({k: v.contiguous() for k, v in net.state_dict().items()}))
    write_json(out_dir / NOTES, notes)
    return notes


def read_locator(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder of `write_locator`; raises BadInput where they cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from classifiers.timm_classifier import load_strictly

    file = folder / WEIGHTS
    try:
        state = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file}: no locator ({error}); `smearflow train locator` makes one.") from error
    load_strictly(Locator(), state, str(file))
    return state
