"""Stand-ins without weights for the models of a case: what a fault does to a night does not depend on them.

Each follows its Protocol and its answer follows from the pixels alone, so that two stores can be compared
byte for byte; they are registered like any other model, where `register_all` is called: importing this
registers nothing, since contract tests run over whatever is registered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from classifiers.base import Classified
from stainers.base import Stained
from storage import registry

CLASSES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "erythroblast")
SIZE_PX = 96

SETTINGS: dict[str, Any] = {
    "detection": {
        "brightfield_detector": "fault-finder",
        "dic_detector": "fault-finder",
        "threshold": 0.3,
        "dic_threshold": 0.05,
    },
    "patches": {"sizes_px": [SIZE_PX], "chunk": 2, "shard": 4},
    "staining": {"dic_stainer": "fault-stainer", "size_px": SIZE_PX},
    "classification": {
        "classifier": "fault-classes",
        "virtual_classifier": None,
        "segmenter": "fault-segmenter",
        "patch_px": SIZE_PX,
    },
    "patients": {"model": None},
    "counting": {"bootstrap_draws": 20},
    "night": {"canary": False},
}


class Finder:
    """A box around the most varied place of each tile of the image."""

    name = "fault-finder"
    tile_px, half_px = 120, 35

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        grey = image.astype(np.float32).reshape(*image.shape[:2], -1).mean(axis=2)
        steep = np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
        boxes, scores = [], []
        for y0 in range(0, grey.shape[0] - self.tile_px + 1, self.tile_px):
            for x0 in range(0, grey.shape[1] - self.tile_px + 1, self.tile_px):
                tile = steep[y0 : y0 + self.tile_px, x0 : x0 + self.tile_px]
                y, x = np.unravel_index(int(tile.argmax()), tile.shape)
                boxes.append(
                    [
                        x0 + x - self.half_px,
                        y0 + y - self.half_px,
                        x0 + x + self.half_px,
                        y0 + y + self.half_px,
                    ]
                )
                scores.append(float(np.clip(tile.mean() / 10.0, 0, 1)))
        order = np.argsort(-np.array(scores), kind="stable")
        found = np.array(boxes, np.float32).reshape(-1, 4)[order]
        return np.clip(found, 0, [[*grey.shape[::-1], *grey.shape[::-1]]]).astype(np.float32), np.array(
            scores, np.float32
        )[order]


class PatchStainer:
    """The patch in violet."""

    name, targets, min_confidence = "fault-stainer", ("A",), 0.0

    def stain(self, patches: np.ndarray, target: str | None = None) -> Stained:
        grey = patches[..., 0].astype(np.float32)
        image = np.stack([0.8 * grey, 0.6 * grey, grey], axis=-1).astype(np.uint8)
        return Stained(
            image=image,
            uncertainty=np.abs(grey - grey.mean(axis=(1, 2), keepdims=True)) / 255.0,
            confidence=np.clip(grey.std(axis=(1, 2)) / 64.0, 0, 1).astype(np.float32),
        )


class Namer:
    """A class from the patch's mean colour."""

    name, classes, min_confidence = "fault-classes", CLASSES, 0.3

    def classify(self, patches: np.ndarray, pixel_size_um: float | None) -> Classified:
        means = patches.reshape(len(patches), -1).astype(np.float64).mean(axis=1)
        phase = means[:, None] / 7.0 + np.arange(len(CLASSES))[None]
        scores = np.exp(2.0 * np.sin(phase))
        return Classified(
            probabilities=(scores / scores.sum(axis=1, keepdims=True)).astype(np.float32),
            ood=np.clip(means / 255.0, 0, 1).astype(np.float32),
        )


class Rings:
    """A disc of cytoplasm with a nucleus in the middle."""

    name = "fault-segmenter"

    def segment(self, patches: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
        from detectors.base import CYTOPLASM, NUCLEUS

        n, height, width = patches.shape[:3]
        y, x = np.mgrid[:height, :width]
        away = np.hypot(y - height / 2, x - width / 2)
        labels = np.zeros((n, height, width), np.uint8)
        labels[:, away < 0.4 * height] = CYTOPLASM
        labels[:, away < 0.25 * height] = NUCLEUS
        return labels


MODELS: tuple[tuple[Any, Any], ...] = (
    ("detector", Finder),
    ("stainer", PatchStainer),
    ("classifier", Namer),
    ("segmenter", Rings),
)


def register_all() -> None:
    """Register the stand-ins in this process, once."""
    for task, model in MODELS:
        if (task, model.name) not in registry._ENTRIES:
            registry.register(
                task,
                model.name,
                licence="AGPL-3.0-or-later",
                summary="a stand-in of the fault suite",
                needs_package=False,
            )(lambda package, model=model: model())


@contextmanager
def registered() -> Iterator[None]:
    """The stand-ins are registered in this process inside of the `with` alone."""
    register_all()
    try:
        yield
    finally:
        for task, model in MODELS:
            registry._ENTRIES.pop((task, model.name))
