"""Training of the nucleus / cytoplasm segmenter; resumable, seeded, one core is enough."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.data_scale import scales_of
from detectors.segment import MEAN, STD, WORKING_PIXEL_SIZE_UM
from detectors.segment_augment import training_crop
from detectors.segment_colour import background_colour
from detectors.segment_data import (
    IGNORE,
    PUBLIC_SOURCES,
    LabelledCell,
    images_mark,
    read_labelled_cells,
    split_cells,
)
from detectors.segment_unet import DEFAULT_WIDTHS, UNet
from pipeline.errors import BadInput, UnknownName
from storage.checkpoints import (
    checkpoint_beside,
    keep_earlier,
    read_checkpoint,
    require_same,
    write_checkpoint,
)

if TYPE_CHECKING:
    from storage.packages import ModelPackage

EMA_DECAY = 0.995
SEGMENTATION_WBC = "segmentation_WBC (Zheng 2018), GPL-3.0"
CLASSES = ("background", "red_cell", "cytoplasm", "nucleus")


def normalise(images: np.ndarray, glass: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 or float and the glass colour (B, 3) -> network input (B, 3, H, W) float32."""
    light = images.astype(np.float32) / glass[:, None, None, :].astype(np.float32)
    light = np.minimum(light, 1.2)
    return torch.from_numpy(np.ascontiguousarray(((light - MEAN) / STD).transpose(0, 3, 1, 2)))


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice (Milletari 2016) of the nucleus and of the whole cell.

    logits (B, 4, H, W), labels (B, H, W) int64; pixels labelled IGNORE weigh nothing.
    """
    entropy = functional.cross_entropy(logits, labels, ignore_index=IGNORE)
    known = (labels != IGNORE).float()
    probability = logits.softmax(1)
    loss = entropy
    for first in (2, 3):  # cytoplasm + nucleus, nucleus
        p = probability[:, first:].sum(1) * known
        t = (labels >= first).float() * known
        dice = (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        loss = loss + 0.5 * (1 - dice)
    return loss


def draw_batch(
    cells: list[LabelledCell],
    extra: list[LabelledCell],
    size: int,
    rng: np.random.Generator,
    strength: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """A batch of augmented crops; sources are drawn evenly, extra cells (of all kinds) two times in five."""
    by_source: dict[str, list[LabelledCell]] = {}
    for cell in cells:
        by_source.setdefault(cell.source, []).append(cell)
    labelled = sorted(by_source)
    extra_by_source: dict[str, list[LabelledCell]] = {}
    for cell in extra:
        extra_by_source.setdefault(cell.source, []).append(cell)
    added = sorted(extra_by_source)
    images, labels, glass = [], [], []
    for _ in range(size):
        if added and rng.random() < 0.4:
            pool = extra_by_source[added[int(rng.integers(len(added)))]]
        else:
            pool = by_source[labelled[int(rng.integers(len(labelled)))]]
        image, label = training_crop(pool[int(rng.integers(len(pool)))], cells + extra, rng, strength)
        # At inference the glass is read off the whole patch, not off this crop: hence the jitter.
        glass.append(np.minimum(background_colour(image) * np.exp(rng.normal(0, 0.04, 3)), 255))
        images.append(image)
        labels.append(label)
    return normalise(np.stack(images), np.stack(glass)), torch.from_numpy(np.stack(labels).astype(np.int64))


def train_segmenter(
    data_dir: Path,
    out_dir: Path,
    epochs: int = 40,
    resume: bool = False,
    seed: int = 20261121,
    *,
    steps_per_epoch: int = 21,
    batch: int = 12,
    learning_rate: float = 2e-3,
    widths: tuple[int, ...] = DEFAULT_WIDTHS,
    extra_cells: list[LabelledCell] | None = None,
    teacher: str | Path | None = None,
    stages: str | None = None,
    pixel_size_um: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train on the train part of `data_dir`, measure on the test part, write a model package.

    `data_dir` is a folder that `read_labelled_cells` takes; `extra_cells` are added to the train part
    (pseudo-labelled ones, `detectors.segment_pseudo`); `teacher` is a package whose weights are the
    start; `stages` is said on the card; `pixel_size_um` is that of every image of `data_dir`, where given.
    Augmentation is at full strength for 60 % of the epochs and falls
    to 40 %.  The package goes to `out_dir`, the checkpoint to `out_dir`.training/checkpoint.pt, from where
    `resume` goes on; a checkpoint of other data or other figures is refused, and so is one
    that is there where `resume` is not asked for.  Returns the card's metrics.
    """
    say = progress or (lambda text: None)
    checkpoint = checkpoint_beside(out_dir)
    keep_earlier(resume, checkpoint)
    cells = read_labelled_cells(data_dir, pixel_size_um)
    say(json.dumps({"pixel_size_from": scales_of(cells)}, ensure_ascii=False))
    train, test = split_cells(cells, seed)
    if not train or not test:
        raise BadInput(f"{data_dir} holds {len(cells)} cells, too few to train and test; add labelled cells.")
    extra = extra_cells or []
    recipe = {
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
        "widths": list(widths),
    }
    now = {
        "data": _digest(train + test + extra),
        "start": "" if teacher is None else find_teacher(teacher).card.sha256,
        "recipe": recipe,
    }
    torch.manual_seed(seed)
    model = UNet(widths).to(memory_format=torch.channels_last)
    if teacher is not None:
        model.load_state_dict(find_teacher(teacher).state_dict(), strict=True)
    model.train()
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    total = epochs * steps_per_epoch
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=learning_rate, total_steps=max(total, 2), pct_start=0.15
    )
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    start = 0
    if resume and checkpoint.is_file():
        state = read_checkpoint(checkpoint, "model", "optimiser", "schedule", "average", "epoch")
        require_same(checkpoint, state, now, *now)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        average, start = state["average"], state["epoch"]
    for epoch in range(start, epochs):
        losses = []
        strength = float(np.interp(epoch / epochs, (0.6, 1.0), (1.0, 0.4)))
        for step in range(steps_per_epoch):
            # The draw depends on the step alone, so a resumed run sees what an unbroken one would.
            rng = np.random.default_rng((seed, epoch, step))
            images, labels = draw_batch(train, extra, batch, rng, strength)
            loss = segmentation_loss(model(images.to(memory_format=torch.channels_last)), labels)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            done = epoch * steps_per_epoch + step
            _follow(average, model.state_dict(), min(EMA_DECAY, (1 + done) / (10 + done)))
            losses.append(float(loss.detach()))
        state = {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "average": average,
            "epoch": epoch + 1,
            **now,
        }
        write_checkpoint(checkpoint, state)
        say(f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.4f}")
    from detectors.segment import UNetSegmenter
    from detectors.segment_evaluation import evaluate_cells
    from storage.packages import write_package

    trained = UNet(widths)
    average = {k: v.half() if v.is_floating_point() else v for k, v in average.items()}
    trained.load_state_dict(average)  # as shipped: half precision on disk, single in use
    shipped = UNetSegmenter(trained.eval(), out_dir.name)
    metrics = evaluate_cells(shipped, test, pixel_size_um=pixel_size_um)
    said = {
        "data": now["data"],
        "teacher": now["start"] or None,
        "stages": stages,
        "pixel_size_from": scales_of(cells),
        "held_out_sha256": images_mark(c.image for c in test),
    }
    recipe = {**recipe, **{k: v for k, v in said.items() if v is not None}}
    card = _card(out_dir.name, data_dir, recipe, train, extra, test, metrics)
    write_package(out_dir, card, average)
    return metrics


def find_teacher(name: str | Path) -> ModelPackage:
    """The package of a name or folder; raises UnknownName where there is none."""
    from storage.packages import find_package, list_packages

    package = find_package(str(name))
    if package is None:
        raise UnknownName("segmenter", str(name), [p.name for p in list_packages()])
    package.verify()
    return package


def _follow(average: dict[str, Tensor], current: dict[str, Tensor], decay: float) -> None:
    """Move the exponential average of the weights towards the current ones.

    Of states, not of networks as `storage.averages.follow`, and rounded otherwise: earlier trainings are to
    be had again bit by bit.
    """
    for key, value in current.items():
        if value.dtype.is_floating_point:
            average[key].mul_(decay).add_(value.detach(), alpha=1 - decay)
        else:
            average[key].copy_(value)


def _digest(cells: list[LabelledCell]) -> str:
    digest = hashlib.sha256()
    for cell in cells:
        digest.update(cell.name.encode() + cell.image.tobytes() + cell.labels.tobytes())
    return digest.hexdigest()


def _card(
    name: str,
    data_dir: Path,
    recipe: dict[str, Any],
    train: list[LabelledCell],
    extra: list[LabelledCell],
    test: list[LabelledCell],
    metrics: dict[str, Any],
) -> dict[str, Any]:
    counts = {
        part: {s: sum(c.source == s for c in cells) for s in sorted({c.source for c in cells})}
        for part, cells in (("train", train), ("pseudo-labelled", extra), ("test", test))
    }
    cells = [*train, *test]
    sources = sorted({c.source for c in cells})
    marks = {s: images_mark(c.image for c in cells if c.source == s) for s in sources}
    public = [s for s in sources if marks[s] in PUBLIC_SOURCES]
    given = f"{data_dir.resolve().name}: {len(cells)} leukocytes with masks"
    if not public:
        given += " of the user's own"
    else:  # who trains on them owes their authors the name and the licence
        given += (
            f", {'all' if public == sources else 'those of ' + ' and '.join(public)} of {SEGMENTATION_WBC}"
        )
    pseudo = (
        f"{len(extra)} cells of boxed smears, labelled by the first stage where it agreed with their boxes"
        " (sources named by image size)",
    ) * bool(extra)
    return {
        "name": name,
        "version": "1",
        "task": "segmenter",
        "architecture": "unet",
        "weights": "safetensors",
        "sha256": "",
        "licence": "AGPL-3.0-or-later",
        "pixel_size_um": WORKING_PIXEL_SIZE_UM,
        "intended_use": "Labels background, red cells, cytoplasm and nucleus of leukocytes in"
        " Romanowsky-stained smears, for measurements and drawings. For research use only.",
        "modalities": ("brightfield",),
        "stains": ("MGG",),
        "specimens": ("blood",),
        "classes": CLASSES,
        "normalisation": {"mean": (MEAN,), "std": (STD,)},
        "training_data": (
            f"{given}; used {json.dumps(counts)}",
            *pseudo,
        ),
        "training": {
            **recipe,
            "split": "per source and class, near-duplicates (correlation over 0.97) together",
            "augmentation": "scale 0.6-1.6, any rotation, flips, stain transfer, OD mixing, hue, tint, uneven"
            " light, blur, noise, JPEG, pasted neighbours",
            "weights": f"exponential average, {EMA_DECAY}",
            "red_cells": "pseudo-labels by thresholding (thesis 4.4.4), never checked by a person",
        },
        "metrics": metrics,
        "limits": (
            "Red-cell labels are learned from thresholds; no figure for them is claimed.",
            "Not trained on marrow, on Perls or on DIC.",
            "Smudge cells and precipitate may be labelled as leukocytes.",
        ),
        "parameters": {"widths": recipe["widths"]},
    }
