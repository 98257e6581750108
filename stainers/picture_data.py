"""Where a picture generator's data set comes from, as a recipe says it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.cell_sets import StainSet, read_cells, with_labels
from stainers.data import PIXEL_SIZE_UM
from stainers.gan_training import Apply, Score

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DataOptions:
    """kind `domains`: two folders of stained cells, or two sources of a labels.csv, `source` and `target`,
    each resized by its scale so that cells of both are of one size, and cut to `size_px` (0: not at all).
    kind `computed-dic`: stained smears of the domain `target` with DIC computed of them, pairs of `size_px`.

    `limit` leaves so many pairs a split (0: all).  `labeller` is the registered classifier that names cells
    without a class; the card says so.  `chooser` says which checkpoint is kept: `loss`, `last`, or the name
    of a registered classifier, for the best accuracy on the virtual validation cells.
    """

    kind: str = "domains"
    source: str = "source"
    target: str = "target"
    source_scale: float = 1.0
    target_scale: float = 1.0
    size_px: int = 0
    train_share: float = 0.8
    validation_share: float = 0.08
    split_seed: int = 0
    limit: int = 0
    labeller: str = ""
    chooser: str = "loss"


def read_set(data_dir: Path, options: DataOptions) -> StainSet:
    """The set of a folder, labelled as far as the recipe asks.  Raises BadInput naming the folder."""
    if options.kind == "computed-dic":
        from stainers.data import load_smears
        from stainers.dic_sets import dic_set

        found = dic_set(
            load_smears(data_dir, seed=options.split_seed),
            options.target,
            size_px=options.size_px or 256,
            limit=options.limit,
            seed=options.split_seed,
        )
    elif options.kind == "domains":
        known: dict[str, Any] = {
            "size_px": options.size_px,
            "split_seed": options.split_seed,
            "shares": (options.train_share, options.validation_share),
        }
        found = StainSet(
            read_cells(data_dir, options.source, scale=options.source_scale, **known),
            read_cells(data_dir, options.target, scale=options.target_scale, **known),
        )
    else:
        raise BadInput(f"data kind '{options.kind}' is not known; choose domains or computed-dic.")
    return named(found, options.labeller) if options.labeller else found


def check_parts(data: StainSet, data_dir: Path, options: DataOptions) -> None:
    """Raises BadInput where a part is empty: to learn from, to choose a checkpoint by, for DIC to test."""
    held = options if options.kind == "domains" else DataOptions()  # smears are always split so
    shares = {"train": held.train_share, "validation": held.validation_share}
    if data.source.modality == "dic":
        shares["test"] = 1 - sum(shares.values())
    for split, share in shares.items():
        part = data.part(split)
        for cells, here in ((data.target, part.target), (data.source, part.source)):
            if len(here):
                continue
            n = len(set(cells.groups))
            enough = (
                f"give {_surely_one(share)} or more" if 0 < share < 1 else "raise the recipe's share of it"
            )
            raise BadInput(
                f"{data_dir}: of its {n} different images of '{cells.domain}' none falls to the {split} "
                f"part, which takes {100 * share:g} % by the hash of the names; {enough}."
            )


def _surely_one(share: float) -> int:
    """How many draws have one of a `share` in 99 of 100 cases."""
    return math.ceil(math.log(0.01) / math.log(1 - share))


def named(data: StainSet, labeller: str) -> StainSet:
    """The set with a classifier's class for every stained cell that has none; of pairs, for both sides."""
    name = namer(labeller, PIXEL_SIZE_UM if data.paired else None)
    target, _ = with_labels(data.target, name)
    if data.paired:
        return replace(data, source=replace(data.source, labels=target.labels), target=target)
    return StainSet(with_labels(data.source, name)[0], target)


def namer(classifier: str, pixel_size_um: float | None = None) -> Callable[[Array], Sequence[str]]:
    """(N, H, W, 3) uint8 -> class names, by a registered classifier; without a pixel size it infers one."""
    from storage.registry import load

    model = load("classifier", classifier)

    def name(images: Array) -> list[str]:
        found = model.classify(images, pixel_size_um).probabilities
        return [str(model.classes[int(k)]) for k in found.argmax(axis=1)]

    return name


def accuracy_score(classifier: str, data: StainSet, side: str) -> Score:
    """How many of the virtual validation cells of a side a classifier names as their label says."""
    cells = getattr(data.part("validation"), side)
    known = [i for i, label in enumerate(cells.labels) if label]
    if not known:
        raise BadInput("choosing a checkpoint by a classifier needs validation cells with a class.")
    name = namer(classifier)

    def score(apply: Apply) -> float:
        virtual = apply([cells.images[i] for i in known])
        return float(
            np.mean([name(v[None])[0] == cells.labels[i] for v, i in zip(virtual, known, strict=True)])
        )

    return score
