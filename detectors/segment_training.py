"""Training of the nucleus / cytoplasm segmenter; resumable, seeded, one core is enough."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.data_scale import scales_of
from detectors.segment import MEAN, STD
from detectors.segment_augment import training_crop
from detectors.segment_card import EMA_DECAY, segmenter_card
from detectors.segment_colour import background_colour
from detectors.segment_data import (
    IGNORE,
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

STATE = ("model", "optimiser", "schedule", "average", "epoch")


@dataclass(frozen=True)
class SegmenterRecipe:
    """What decides the weights beside the data and the start."""

    epochs: int
    steps_per_epoch: int
    batch: int
    learning_rate: float
    seed: int
    widths: tuple[int, ...]

    def said(self) -> dict[str, Any]:
        """As a checkpoint and a card have it."""
        return {**asdict(self), "widths": list(self.widths)}


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
    recipe = SegmenterRecipe(epochs, steps_per_epoch, batch, learning_rate, seed, tuple(widths))
    now = {
        "data": _digest(train + test + extra),
        "start": "" if teacher is None else find_teacher(teacher).card.sha256,
        "recipe": recipe.said(),
    }
    run = _Run(recipe, teacher)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if resume and checkpoint.is_file():
        state = read_checkpoint(checkpoint, *STATE)
        require_same(checkpoint, state, now, *now)
        run.load(state)
    for epoch in range(run.epoch, epochs):
        loss = run.learn(epoch, train, extra)
        write_checkpoint(checkpoint, {**run.state(), **now})
        say(f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}")
    weights = {k: v.half() if v.is_floating_point() else v for k, v in run.average.items()}
    metrics = _measured(weights, recipe, out_dir.name, test, pixel_size_um)
    said = {
        "data": now["data"],
        "teacher": now["start"] or None,
        "stages": stages,
        "pixel_size_from": scales_of(cells),
        "held_out_sha256": images_mark(c.image for c in test),
    }
    of_card = {**recipe.said(), **{k: v for k, v in said.items() if v is not None}}
    card = segmenter_card(out_dir.name, data_dir, of_card, train, extra, test, metrics)
    from storage.packages import write_package

    write_package(out_dir, card, weights)
    return metrics


class _Run:
    """A training under way: the network, its average and what the optimiser knows, after `epoch` epochs."""

    def __init__(self, recipe: SegmenterRecipe, teacher: str | Path | None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.epoch = recipe, 0
        self.model = UNet(recipe.widths).to(memory_format=torch.channels_last)
        if teacher is not None:
            self.model.load_state_dict(find_teacher(teacher).state_dict(), strict=True)
        self.model.train()
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        total = recipe.epochs * recipe.steps_per_epoch
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=1e-4
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, max_lr=recipe.learning_rate, total_steps=max(total, 2), pct_start=0.15
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average,
            "epoch": self.epoch,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.average, self.epoch = state["average"], state["epoch"]

    def learn(self, epoch: int, train: list[LabelledCell], extra: list[LabelledCell]) -> float:
        """Train through one epoch; returns its mean loss."""
        recipe, losses = self.recipe, []
        strength = float(np.interp(epoch / recipe.epochs, (0.6, 1.0), (1.0, 0.4)))
        for step in range(recipe.steps_per_epoch):
            # The draw depends on the step alone, so a resumed run sees what an unbroken one would.
            rng = np.random.default_rng((recipe.seed, epoch, step))
            images, labels = draw_batch(train, extra, recipe.batch, rng, strength)
            loss = segmentation_loss(self.model(images.to(memory_format=torch.channels_last)), labels)
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimiser.step()
            self.schedule.step()
            done = epoch * recipe.steps_per_epoch + step
            _follow(self.average, self.model.state_dict(), min(EMA_DECAY, (1 + done) / (10 + done)))
            losses.append(float(loss.detach()))
        self.epoch = epoch + 1
        return float(np.mean(losses))


def _measured(
    weights: dict[str, Tensor],
    recipe: SegmenterRecipe,
    name: str,
    test: list[LabelledCell],
    pixel_size_um: float | None,
) -> dict[str, Any]:
    """Metrics on the test part of the network as shipped: half precision on disk, single in use."""
    from detectors.segment import UNetSegmenter
    from detectors.segment_evaluation import evaluate_cells

    trained = UNet(recipe.widths)
    trained.load_state_dict(weights)
    return evaluate_cells(UNetSegmenter(trained.eval(), name), test, pixel_size_um=pixel_size_um)


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
