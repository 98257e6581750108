"""The judges of stain transfer: classifiers that know one stain of wbc-masks alone, and what they see.

A judge sees a cell cut out by its box (from the data set's masks, as a detector would give it).  Its training
turns, resizes and blurs cells, but changes no colour: it is to know its own stain and nothing else of stains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stainers.cell_sets import Cells, as_planes, read_cells

Array = np.ndarray[Any, Any]

STAINS = ("tecom", "cellavision")
CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")  # three basophils in all are left out
SHARES = (0.6, 0.1)
VIEW_PX = 64
MARGIN = 1.2  # of a view, in sides of the cell's box
NETS = {"test_resnet": 220, "resnet10t": 160}  # timm architectures, without weights, and their steps


@dataclass(frozen=True)
class Boxed:
    """Cells of a stain with the centre and longer side (x, y, side) of each, in pixels of its image."""

    cells: Cells
    boxes: tuple[tuple[float, float, float], ...]

    def part(self, *splits: str) -> Boxed:
        chosen = [i for i, s in enumerate(self.cells.splits) if s in splits]
        return Boxed(self.cells.take(chosen), tuple(self.boxes[i] for i in chosen))


def stained_cells(data: Path, scale: dict[str, float] | None = None, size_px: int = 0) -> dict[str, Cells]:
    """Both stains with the four classes, at their own scale or another; splits by image, the same always."""
    found = {}
    for stain in STAINS:
        cells = read_cells(data, stain, scale=scale[stain] if scale else 1.0, size_px=size_px, shares=SHARES)
        found[stain] = cells.take([i for i, label in enumerate(cells.labels) if label in CLASSES])
    return found


def boxed_cells(data: Path) -> dict[str, Boxed]:
    """Both stains at their own scale, with boxes."""
    from storage.images import read_grey
    from storage.tables import read_table

    needed = ("source", "mask", "class")
    rows = [r for r in read_table(data / "labels.csv", needed) if r["class"] in CLASSES]
    found = {}
    for stain, cells in stained_cells(data).items():
        boxes = []
        for row in (r for r in rows if r["source"] == stain):
            ys, xs = np.nonzero(read_grey(data / row["mask"]) > 60)
            side = float(max(np.ptp(xs), np.ptp(ys)) + 1)
            boxes.append((float(xs.min() + xs.max()) / 2, float(ys.min() + ys.max()) / 2, side))
        found[stain] = Boxed(cells, tuple(boxes))
    return found


def view(image: Array, box: tuple[float, float, float], rng: np.random.Generator | None = None) -> Array:
    """(64, 64, 3) uint8 around a cell; with `rng` turned, resized, moved, mirrored and blurred at random."""
    import cv2

    x, y, side = box
    scale, angle, move = VIEW_PX / (MARGIN * side), 0.0, np.zeros(2)
    if rng is not None:
        angle, move = float(rng.uniform(0, 360)), rng.uniform(-3, 3, 2)
        scale *= float(np.exp(rng.uniform(-0.2, 0.2)))
    matrix = cv2.getRotationMatrix2D((x, y), angle, scale)
    matrix[:, 2] += VIEW_PX / 2 - np.asarray([x, y]) + move
    if scale < 1:
        image = cv2.GaussianBlur(image, (0, 0), 0.45 / scale)
    seen = cv2.warpAffine(image, matrix, (VIEW_PX, VIEW_PX), borderMode=cv2.BORDER_REFLECT)
    if rng is not None:
        seen = seen[:, ::-1] if rng.random() < 0.5 else seen
        blur = float(rng.uniform(0, 1.5))
        seen = cv2.GaussianBlur(seen, (0, 0), blur) if blur > 0.3 else seen
    return seen


def _batch(views: Sequence[Array]) -> torch.Tensor:
    return (torch.from_numpy(np.stack([as_planes(v) for v in views])) - 0.7) / 0.25


def train_classifier(stain: Boxed, net_name: str, seed: int, path: Path) -> torch.nn.Module:
    """A classifier of one stain's training part, classes drawn alike often; kept at `path`."""
    import timm

    torch.manual_seed(seed)
    net = timm.create_model(net_name, num_classes=len(CLASSES), pretrained=False)
    if path.is_file():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    part, steps = stain.part("train"), NETS[net_name]
    labels = torch.tensor([CLASSES.index(label) for label in part.cells.labels])
    share = 1.0 / np.bincount(labels, minlength=len(CLASSES))[labels]
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    rng = np.random.default_rng([seed, 5])
    net.train()
    for _ in range(steps):
        chosen = rng.choice(len(labels), 16, p=share / share.sum())
        seen = _batch([view(part.cells.images[i], part.boxes[i], rng) for i in chosen])
        loss = torch.nn.functional.cross_entropy(net(seen), labels[chosen], label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path)
    return net.eval()


@torch.no_grad()
def right(net: torch.nn.Module, images: Sequence[Array], of: Boxed) -> Array:
    """(n,) 1.0 where the classifier names the class of the cells `of`, shown as `images`."""
    named = net(_batch([view(i, b) for i, b in zip(images, of.boxes, strict=True)])).argmax(dim=1).numpy()
    return (named == np.asarray([CLASSES.index(label) for label in of.cells.labels])).astype(float)
