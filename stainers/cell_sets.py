"""Data sets of stain transfer: patches of two domains, paired or not, with the classes of their cells.

A domain is a stain or a modality.  Every patch is kept as a picture (H, W, C) uint8 in which 0 to 255
stand for 0 to 1: RGB for a stain (C = 3), the two maps of `dic_picture` for DIC (C = 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.errors import BadInput
from stainers.data import split_of
from storage.image_folders import is_image
from storage.images import read_rgb
from storage.near_duplicates import near_duplicate_groups, thumbnail
from storage.tables import read_table

Array = np.ndarray[Any, Any]
Modality = Literal["brightfield", "dic"]

DIC_GAINS = (1 / 8, 0.15)  # of normalised DIC (within +-4 spreads) and of its integral, into [0, 1]


@dataclass(frozen=True)
class Cells:
    """Patches of one domain.

    images: (H, W, C) uint8 each; labels: class of each cell, "" where it is not known; groups: what must
    not be split, by name; splits: train, validation or test of each.
    """

    domain: str
    images: tuple[Array, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    modality: Modality = "brightfield"

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.groups) == len(self.splits):
            raise ValueError(f"domain '{self.domain}': images, labels, groups and splits differ in number")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return int(self.images[0].shape[2])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels) - {""}))

    def take(self, indices: Sequence[int]) -> Cells:
        def pick(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[i] for i in indices)

        return replace(
            self,
            images=pick(self.images),
            labels=pick(self.labels),
            groups=pick(self.groups),
            splits=pick(self.splits),
        )

    def part(self, split: str) -> Cells:
        return self.take([i for i, s in enumerate(self.splits) if s == split])


@dataclass(frozen=True)
class StainSet:
    """A source and a target domain; `paired` where patches i of both show the same cell."""

    source: Cells
    target: Cells
    paired: bool = False

    def __post_init__(self) -> None:
        if self.paired and len(self.source) != len(self.target):
            raise ValueError("a paired set has as many source as target patches")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({*self.source.classes, *self.target.classes}))

    def part(self, split: str) -> StainSet:
        if self.paired:
            indices = [i for i, s in enumerate(self.source.splits) if s == split]
            return StainSet(self.source.take(indices), self.target.take(indices), True)
        return StainSet(self.source.part(split), self.target.part(split))


def with_labels(cells: Cells, name: Callable[[Array], Sequence[str]]) -> tuple[Cells, int]:
    """Cells without a class get the one that `name` gives their images (N, H, W, 3): pseudo-labels.

    Returns the cells and how many labels were made so.
    """
    missing = [i for i, label in enumerate(cells.labels) if not label]
    labels = list(cells.labels)
    for i in missing:
        labels[i] = str(name(cells.images[i][None])[0])
    return replace(cells, labels=tuple(labels)), len(missing)


def dic_picture(normalised: Array, path: Array) -> Array:
    """Normalised DIC and its integral along the shear (H, W) float -> (H, W, 2) uint8."""
    maps = np.stack([normalised * DIC_GAINS[0], path * DIC_GAINS[1]], axis=-1)
    return (np.clip(maps + 0.5, 0, 1) * 255 + 0.5).astype(np.uint8)


def _listed(folder: Path, domain: str) -> list[tuple[Path, str]]:
    """(file, class) of a domain: rows of labels.csv, class folders, or plain images without a class."""
    table = folder / "labels.csv"
    if table.is_file():
        rows = read_table(table, ("image", "source"), filled=("image",), optional=("class",))
        found = [(folder / r["image"], r.get("class") or "") for r in rows if r["source"] == domain]
        if found:
            return found
    place = folder / domain
    if not place.is_dir():
        raise BadInput(
            f"{folder} has neither a folder '{domain}' nor a labels.csv that names that source; name a "
            "folder that has, or another recipe."
        )
    files = sorted(p for p in place.rglob("*") if is_image(p))
    files = [p for p in files if not p.stem.endswith("_mask")]
    return [(p, "" if p.parent == place else p.parent.name) for p in files]


def read_cells(
    folder: Path,
    domain: str,
    *,
    scale: float = 1.0,
    size_px: int = 0,
    split_seed: int = 0,
    shares: tuple[float, float] = (0.8, 0.08),
) -> Cells:
    """The cells of a domain under `folder`, each image resized by `scale`; near-duplicates in one split.

    With `size_px` an image is cut, or continued by reflection, to a square of that side around its centre.
    `shares` are those of training and validation; the rest tests.  Raises BadInput naming the folder,
    UnreadableImage the file.
    """
    from stainers.data import window

    images, labels, names, thumbnails = [], [], [], []
    for path, label in _listed(folder, domain):
        image = read_rgb(path)
        thumbnails.append(thumbnail(image))
        rgb = resized(image, scale)
        if size_px:
            rgb = window(rgb, (rgb.shape[1] / 2, rgb.shape[0] / 2), size_px)
        images.append(np.ascontiguousarray(rgb))
        labels.append(label)
        inside = path.is_relative_to(folder)  # a table may name images that lie elsewhere
        names.append(str((path.relative_to(folder) if inside else path).with_suffix("")))
    if not images:
        raise BadInput(f"{folder}: no images of '{domain}' to learn from.")
    # cells centred on glass are alike without being the same: only near-identity is a duplicate
    groups = near_duplicate_groups(np.stack(thumbnails), threshold=0.985, turned=False)
    named = tuple(names[g] for g in groups)
    splits = tuple(split_of(name, split_seed, shares) for name in named)
    return Cells(domain, tuple(images), tuple(labels), named, splits)


def resized(image: Array, scale: float) -> Array:
    """(H, W, C) uint8 at `scale` times its size, at least one pixel."""
    import cv2

    if scale == 1.0:
        return np.ascontiguousarray(image)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    parts = [np.ascontiguousarray(image[..., i : i + 3]) for i in range(0, image.shape[2], 3)]  # it takes 4
    done = [cv2.resize(part, size, interpolation=interpolation) for part in parts]
    return np.concatenate([d[..., None] if d.ndim == 2 else d for d in done], axis=2)


@dataclass(frozen=True)
class DrawOptions:
    """How examples are drawn.

    pairing: `paired` (the same cell), `random`, or `label` (another cell of the same class; the
    RS-conditioned pairing of Hernandez-Abad et al. with two classes).  `zoom` is the half-width, natural
    log, of a random resizing before the random crop.  `turns` allows flips and quarter turns; refused for
    DIC, whose relief they would turn as well.  `class_per_item`: the items of a batch differ in class where
    there are classes enough, and cells can be drawn with all classes alike (`Sampler.batch`).
    """

    pairing: str = "random"
    crop_px: int = 64
    zoom: float = 0.1
    turns: bool = False
    class_per_item: bool = False


@dataclass(frozen=True)
class Example:
    """source (C, c, c), target (3, c, c) float32 in [0, 1]; class indices, -1 where no class is known."""

    source: Array
    target: Array
    source_label: int
    target_label: int


class Sampler:
    """Endless examples of a seed; batch number n is the same whenever and wherever it is drawn."""

    def __init__(self, data: StainSet, options: DrawOptions, seed: int, classes: Sequence[str] = ()) -> None:
        if not len(data.source) or not len(data.target):
            raise BadInput("a part of the data set is empty; give more images or another split.")
        if options.pairing not in ("paired", "random", "label"):
            raise BadInput(f"pairing '{options.pairing}' is not known; choose paired, random or label.")
        if options.pairing == "paired" and not data.paired:
            raise BadInput("pairing 'paired' needs pairs of the same cells; choose random or label.")
        if options.turns and "dic" in (data.source.modality, data.target.modality):
            raise BadInput(
                "turns are for stained images alone: a flip or rotation changes the relief of DIC."
            )
        sides = [min(i.shape[:2]) for c in (data.source, data.target) for i in c.images]
        if options.crop_px > min(sides):
            raise BadInput(
                f"crop_px {options.crop_px} is more than the smallest patch, {min(sides)} px; lower it."
            )
        self.data, self.options, self.seed = data, options, seed
        self.classes = tuple(classes) or data.classes
        self.source_labels = _indices(data.source.labels, self.classes)
        self.target_labels = _indices(data.target.labels, self.classes)
        if options.pairing == "label":
            self._require_partners()
        self._epoch: tuple[int, Array] = (-1, np.zeros(0, int))

    def __len__(self) -> int:
        """Examples in an epoch: every source patch once."""
        return len(self.data.source)

    def _require_partners(self) -> None:
        kinds = {"source": self.source_labels, "target": self.target_labels}
        lone = sorted(
            self.classes[k] for k in {*self.source_labels} if k >= 0 and k not in set(self.target_labels)
        )
        if lone or any((labels < 0).any() for labels in kinds.values()):
            why = f"none in the target for: {', '.join(lone)}" if lone else "some patches have none"
            raise BadInput(f"pairing 'label' needs cells of every class in both domains ({why}); use random.")

    def _order(self, epoch: int) -> Array:
        if self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, 11, epoch])
            self._epoch = (epoch, rng.permutation(len(self)))
        return self._epoch[1]

    def draw(self, number: int) -> Example:
        """Example `number`: source patches in a new order every epoch, the target by the pairing."""
        epoch, place = divmod(number, len(self))
        return self._example(int(self._order(epoch)[place]), np.random.default_rng([self.seed, 12, number]))

    def batch(self, step: int, size: int, *, balanced: bool = False) -> list[Example]:
        """Batch `step`: by the order of `draw`, every cell as often as any other.

        With `class_per_item` the items differ in class where there are as many classes as items, drawn
        without replacement by their frequency; of fewer classes such a batch would hold each of them every
        time, so that nothing were left to balance.  `balanced` draws all classes alike.  In both a cell
        without a class has no turn.
        """
        present, counts = np.unique(self.source_labels[self.source_labels >= 0], return_counts=True)
        by_class = self.options.class_per_item and (balanced or size <= len(present))
        if not by_class or not len(present):
            return [self.draw(step * size + i) for i in range(size)]
        rng = np.random.default_rng([self.seed, 13, step])
        share = np.ones(len(present)) if balanced else counts.astype(float)
        chosen: list[int] = []
        while len(chosen) < size:
            n = min(size - len(chosen), len(present))
            chosen += [int(k) for k in rng.choice(present, n, replace=False, p=share / share.sum())]
        examples = []
        for item, kind in enumerate(chosen):
            index = int(rng.choice(np.flatnonzero(self.source_labels == kind)))
            examples.append(self._example(index, np.random.default_rng([self.seed, 14, step, item])))
        return examples

    def _example(self, index: int, rng: np.random.Generator) -> Example:
        options, data = self.options, self.data
        if options.pairing == "paired":
            other = index
        elif options.pairing == "label":
            other = int(rng.choice(np.flatnonzero(self.target_labels == self.source_labels[index])))
        else:
            other = int(rng.integers(len(data.target)))
        views = [data.source.images[index], data.target.images[other]]
        if options.pairing == "paired":
            joined = _augmented(np.concatenate(views, axis=2), options, rng)
            cut = views[0].shape[2]
            source, target = joined[..., :cut], joined[..., cut:]
        else:
            source, target = (_augmented(v, options, rng) for v in views)
        return Example(
            as_planes(source),
            as_planes(target),
            int(self.source_labels[index]),
            int(self.target_labels[other]),
        )


def _indices(labels: Sequence[str], classes: Sequence[str]) -> Array:
    known = {name: i for i, name in enumerate(classes)}
    return np.asarray([known.get(label, -1) for label in labels], dtype=int)


def _augmented(image: Array, options: DrawOptions, rng: np.random.Generator) -> Array:
    """A random resize, crop and, where allowed, turn of (H, W, C) uint8."""
    smallest = options.crop_px / min(image.shape[:2])
    image = resized(image, max(float(np.exp(rng.uniform(-options.zoom, options.zoom))), smallest))
    height, width = image.shape[:2]
    c = options.crop_px
    y, x = (int(rng.integers(max(n - c, 0) + 1)) for n in (height, width))
    part = image[y : y + c, x : x + c]
    if options.turns:
        quarter, mirror = int(rng.integers(4)), bool(rng.integers(2))
        part = np.rot90(part[::-1] if mirror else part, quarter)
    return part


def as_planes(image: Array) -> Array:
    """(H, W, C) uint8 -> (C, H, W) float32 in [0, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
