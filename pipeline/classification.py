"""Stage: name every cell of a shard of patches.

The stage turns a classifier's probabilities into one canonical label a cell; which model it is, and
whether its classes are leaves or parents of the hierarchy, makes no difference here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from classifiers.base import Classifier
from classifiers.taxonomy import LEVELS, children, roll_up
from pipeline.errors import BadInput
from pipeline.settings import ClassificationSettings
from pipeline.types import Cell, CellClass

DEFAULT_MIN_CONFIDENCE = 0.5  # for a classifier that states none


@dataclass(frozen=True)
class ClassifiedPatches:
    """What a classifier says of N patches.

    labels: N canonical names or parents; confidence: (N,) float32, the calibrated probability of the
    label; probabilities: (N, K) float32 over `classes`; ood: (N,) float32 in [0, 1];
    min_confidence: below it a cell is in doubt.
    """

    classes: tuple[str, ...]
    labels: tuple[str, ...]
    confidence: np.ndarray
    probabilities: np.ndarray
    ood: np.ndarray
    min_confidence: float

    def __len__(self) -> int:
        return len(self.labels)

    def cells(
        self,
        cell_ids: Sequence[str],
        *,
        virtual: bool = False,
        stain_confidence: Sequence[float] | None = None,
    ) -> list[CellClass]:
        """One `CellClass` a patch, in order; raises BadInput where the ids do not match the patches."""
        if len(cell_ids) != len(self.labels):
            raise BadInput(f"{len(cell_ids)} cell ids for {len(self.labels)} patches; give one id a patch.")
        return [
            CellClass(
                cell_id=cell_id,
                label=self.labels[i],
                probabilities={c: float(p) for c, p in zip(self.classes, self.probabilities[i], strict=True)},
                confidence=float(self.confidence[i]),
                ood=float(self.ood[i]),
                virtual=virtual,
                stain_confidence=None if stain_confidence is None else float(stain_confidence[i]),
            )
            for i, cell_id in enumerate(cell_ids)
        ]


def without_slivers(
    classes: Sequence[CellClass], cells: Sequence[Cell], min_seen: float
) -> tuple[CellClass, ...]:
    """The classes, but a cell of which the image shows less than `min_seen` is unidentified.

    Its probabilities stay, for a person to see.  Cells of a Perls slide are left as they are: they are read
    for iron.  The default was measured (docs/classification.md, "Cells at an edge").
    """
    slivers = {c.cell_id for c in cells if c.seen < min_seen and c.stain != "Perls"}
    return tuple(
        c.model_copy(update={"label": "unidentified"}) if c.cell_id in slivers else c for c in classes
    )


def choose_label(probabilities: Mapping[str, float], min_child_share: float = 0.6) -> tuple[str, float]:
    """The label of a cell and its probability.

    The branch with the largest summed probability wins first, so that a neutrophil split between band
    and segmented is not lost to a lymphocyte that is likelier than either.  Then the label descends for
    as long as one child holds `min_child_share` of its parent's probability.
    """
    top = roll_up(probabilities, LEVELS["top"])
    label, p = max(top.items(), key=lambda item: item[1])
    while p > 0:
        below = roll_up(probabilities, children(label))
        best = max(children(label), key=lambda c: below.get(c, 0.0), default=None)
        if best is None or below.get(best, 0.0) < min_child_share * p:
            break
        label, p = best, below[best]
    return label, p


def classify_patches(
    patches: np.ndarray,
    pixel_size_um: float | None,
    classifier: Classifier,
    settings: ClassificationSettings,
) -> ClassifiedPatches:
    """Classify patches (N, H, W, 3) uint8 centred on a cell, with `pixel_size_um` if it is known.

    Raises BadInput for another shape or type.  N may be 0.
    """
    patches = np.asarray(patches)
    if patches.ndim != 4 or patches.shape[-1] != 3 or patches.dtype != np.uint8:
        raise BadInput(
            f"patches are {patches.shape} {patches.dtype}; the classifier needs colour, (N, H, W, 3) uint8."
        )
    if pixel_size_um is not None and not pixel_size_um > 0:
        raise BadInput(f"a pixel size of {pixel_size_um} µm is impossible; give one above 0, or none.")
    classes = tuple(classifier.classes)
    if len(patches) == 0:
        none = np.zeros(0, np.float32)
        empty = np.zeros((0, len(classes)), np.float32)
        return ClassifiedPatches(classes, (), none, empty, none, _min_confidence(classifier, settings))
    found = classifier.classify(patches, pixel_size_um)
    chosen = [
        choose_label(dict(zip(classes, map(float, row), strict=True)), settings.min_child_share)
        for row in found.probabilities
    ]
    return ClassifiedPatches(
        classes=classes,
        labels=tuple(label for label, _ in chosen),
        confidence=np.array([p for _, p in chosen], np.float32).clip(0, 1),
        probabilities=np.asarray(found.probabilities, np.float32),
        ood=np.asarray(found.ood, np.float32),
        min_confidence=_min_confidence(classifier, settings),
    )


def _min_confidence(classifier: Classifier, settings: ClassificationSettings) -> float:
    if settings.min_confidence is not None:
        return settings.min_confidence
    return float(getattr(classifier, "min_confidence", DEFAULT_MIN_CONFIDENCE))
