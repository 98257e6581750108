"""What a virtual stain is good for: does a classifier name, and a segmenter outline, the same cell?

Both were trained on real stain; the real image's answer stands for the truth, so that what is measured is the
stain and not the judge.  `before` is the DIC itself, handed over as if it were a stain: what there is to
gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.choice import CHOSEN
from stainers.data import PIXEL_SIZE_UM
from stainers.picture_data import namer

Array = np.ndarray[Any, Any]
Cell = tuple[Array, int, Array]  # what a generator is given, its target, the real stain (H, W, 3) uint8
Paint = Callable[[Array, int], Array]  # the first two -> virtual (H, W, 3) uint8
PaintScore = Callable[[Paint], float]  # of a generator with several targets; higher is better

CYTOPLASM, NUCLEUS = 2, 3  # as segmenters label pixels (thesis 4.4.4)


def dice(a: Array, b: Array) -> float:
    """Twice the overlap over the sum of two masks (equation 2.2); 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def as_rgb(grey: Array) -> Array:
    """(H, W, 1) uint8 as an image that a judge of stains can read."""
    return np.repeat(grey, 3, axis=2)


def outlines(
    segment: Callable[[Array, float], Array],
    stained: Sequence[Array],
    real: Sequence[Array],
    dic: Sequence[Array],
) -> dict[str, Array]:
    """Dice (N,) of nucleus, cytoplasm and whole cell, on the virtual stain (`after`) and the DIC (`before`).

    `segment` takes patches (N, H, W, 3) uint8 and the pixel size to labels (N, H, W).
    """
    table: dict[str, list[float]] = {}
    for virtual, wanted, grey in zip(stained, real, dic, strict=True):
        truth = segment(wanted[None], PIXEL_SIZE_UM)[0]
        for when, picture in (("after", virtual), ("before", as_rgb(grey))):
            labels = segment(picture[None], PIXEL_SIZE_UM)[0]
            for part, chosen in (
                ("nucleus", lambda x: x == NUCLEUS),
                ("cytoplasm", lambda x: x == CYTOPLASM),
                ("cell", lambda x: x >= CYTOPLASM),
            ):
                table.setdefault(f"dice_{part}_{when}", []).append(dice(chosen(labels), chosen(truth)))
    return {k: np.asarray(v) for k, v in table.items()}


def names(
    classify: Callable[[Array], Sequence[str]],
    stained: Sequence[Array],
    truth: Sequence[str],
    dic: Sequence[Array],
    classify_virtual: Callable[[Array], Sequence[str]] | None = None,
    *,
    judged: Array,
    judged_virtual: Array,
) -> dict[str, Array]:
    """Whether (N,) the classifier gives the virtual stain, and the DIC itself, the name that it gives the
    real one (`truth`); and whether the classifier made for this stainer's pictures (`classify_virtual`) gives
    that name, too.  NaN of a cell that is not `judged` (N,) bool, or not by the latter (`judged_virtual`)."""
    found = {
        "after": ([classify(p[None])[0] for p in stained], judged),
        "before": ([classify(as_rgb(p)[None])[0] for p in dic], judged),
    }
    if classify_virtual is not None:
        found["by_virtual_classifier"] = ([classify_virtual(p[None])[0] for p in stained], judged_virtual)
    return {
        f"same_class_{when}": np.where(counts, np.asarray(given) == np.asarray(truth), np.nan)
        for when, (given, counts) in found.items()
    }


def paint_error(paint: Paint, cells: Sequence[Cell]) -> float:
    """Mean absolute error of painted cells in grey levels of [0, 1]."""
    errors = [np.abs(paint(given, target).astype(float) - real).mean() for given, target, real in cells]
    return float(np.mean(errors)) / 255


def agreement_score(classifier: str, cells: Sequence[Cell]) -> PaintScore:
    """The share of cells that a registered classifier names, painted, as it names them in the real stain.

    Raises BadInput where there are none to choose by, UnknownName where there is no such classifier.
    """
    if not cells:
        raise BadInput("choosing a checkpoint by a classifier needs held-out pairs; give more images.")
    name = namer(classifier, PIXEL_SIZE_UM)
    wanted = [name(real[None])[0] for _, _, real in cells]

    def score(paint: Paint) -> float:
        found = [name(paint(given, target)[None])[0] for given, target, _ in cells]
        return float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))

    return score


def scores_of(chooser: str, generator: str, cells: Sequence[Cell]) -> dict[str, PaintScore]:
    """What a recipe's `chooser` asks for beside the loss, by the name of the generator that is judged."""
    return {} if chooser in CHOSEN else {generator: agreement_score(chooser, cells)}
