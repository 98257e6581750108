"""A DIC detector that looks at an image a second time, as a stainer paints it.

The network for DIC and the one for brightfield err differently: what is painted is read by a network that has
learned from photographs, and their boxes are fused as those of two views.  A card asks for it by `painted`,
which names the stainer and the detector of what it paints, each by its package and its weights' hash, for
threshold and figures of the card hold for these alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detectors.artefacts import can_be_cells
from detectors.boxes import fused, suppress
from detectors.yolo_onnx import SAME_IN_VIEWS_IOU, Found, YoloOnnxDetector, check_image
from pipeline.errors import BadModelPackage
from storage.fingerprint import fingerprint

if TYPE_CHECKING:
    from storage.packages import ModelPackage

PAINTED = "painted"  # parameter of a card
COARSEST_UM = 0.3  # a stainer that works at 0.1 µm finds nothing to paint from in coarser pixels


class PaintedImage:
    """A DIC image (H, W, 3) uint8 that is painted where it is looked at, so that a slide takes no memory.

    It has what a detector asks of an image: `shape`, `dtype`, and parts by slices.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, image: Any, pixel_size_um: float, stainer: Any, stainer_pixel_size_um: float) -> None:
        self._image, self._stainer = image, stainer
        self._factor = pixel_size_um / stainer_pixel_size_um
        self.shape = tuple(image.shape)

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        part = np.ascontiguousarray(np.asarray(self._image[where])[..., :3])
        height, width = part.shape[:2]
        size = max(1, round(width * self._factor)), max(1, round(height * self._factor))
        painted = np.asarray(self._stainer.paint_field(_resized(part, size)))
        return _resized(painted, (width, height))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) at another (width, height)."""
    import cv2

    height, width = image.shape[:2]
    if size == (width, height):
        return image
    how = cv2.INTER_AREA if size[0] * size[1] < width * height else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how))


class PaintedDetector:
    """Fuses what `alone`, a network for DIC, sees with what `reader` sees of the picture that is painted."""

    def __init__(
        self, alone: YoloOnnxDetector, stainer: Any, stainer_pixel_size_um: float, reader: YoloOnnxDetector
    ) -> None:
        self.alone, self.stainer, self.reader = alone, stainer, reader
        self.stainer_pixel_size_um = stainer_pixel_size_um
        self.name, self.modalities = alone.name, alone.modalities
        self.pixel_size_um, self.threshold = alone.pixel_size_um, alone.threshold

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Leukocytes: see detectors.base.Detector.  An image of pixels over `COARSEST_UM` is not painted."""
        image = check_image(image, self.name)
        seen = self.alone.detect(image, pixel_size_um)
        if pixel_size_um > COARSEST_UM or min(image.shape[:2]) < 1:
            return seen
        boxes, scores = self.fuse(seen, self.read_painted(image, pixel_size_um))
        # What is painted outside a round field is none either.
        keep = can_be_cells(image, boxes, pixel_size_um, stained=False)
        return boxes[keep], scores[keep]

    def read_painted(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and scores of what is painted of an image (H, W, 3) uint8."""
        picture: Any = PaintedImage(image, pixel_size_um, self.stainer, self.stainer_pixel_size_um)
        return self.reader.candidates(picture, pixel_size_um)

    def fuse(self, *views: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """One box a leukocyte of the boxes and scores of several views, by falling score."""
        boxes, scores = fused(views, SAME_IN_VIEWS_IOU)
        worth = scores >= self.alone.min_score
        boxes, scores = boxes[worth], scores[worth]
        keep = suppress(boxes, scores, self.alone.max_iou, self.alone.max_inside)
        boxes, scores = boxes[keep], scores[keep]
        order = np.lexsort((boxes[:, 1], boxes[:, 0], -scores))
        return boxes[order], scores[order]

    def look(self, image: np.ndarray, pixel_size_um: float) -> Found:
        """Everything that the network for DIC sees, red cells and platelets too; nothing is painted."""
        return self.alone.look(image, pixel_size_um)

    def in_windows(self, window_px: int) -> PaintedDetector:
        """The same detector, both of whose networks read an image in windows of another size."""
        alone, reader = self.alone.in_windows(window_px), self.reader.in_windows(window_px)
        return PaintedDetector(alone, self.stainer, self.stainer_pixel_size_um, reader)


def painted_parameter(stainer: str, reader: str) -> dict[str, Any]:
    """What a card states to be read with a stainer and a detector: their names and their weights' hashes."""
    return {
        "stainer": stainer,
        "stainer_sha256": _package("stainer", stainer, "").card.sha256,
        "detector": reader,
        "detector_sha256": _package("detector", reader, "").card.sha256,
    }


def leukocyte_detector(name: str, *, painted: bool = True) -> Any:
    """The detector of a name; without `painted` the network alone of one that would paint, in a fifth of
    the time.

    Raises as `storage.registry.load` does.
    """
    from storage.packages import ModelPackage
    from storage.registry import describe, load

    if painted:
        return load("detector", name)
    found = describe("detector", name)
    if not isinstance(found, ModelPackage) or PAINTED not in found.card.parameters:
        return load("detector", name)
    return _alone(str(found.folder), fingerprint(found.card))


def companions(name: str) -> tuple[tuple[str, str], ...]:
    """Task and name of the models that a detector looks through beside its own network; none for most."""
    from storage.packages import ModelPackage
    from storage.registry import describe

    found = describe("detector", name)
    asked = found.card.parameters.get(PAINTED) if isinstance(found, ModelPackage) else None
    return () if asked is None else tuple((task, str(asked[task])) for task in ("stainer", "detector"))


@cache
def _alone(folder: str, card: str) -> YoloOnnxDetector:
    from storage.packages import read_package

    del card  # another card in the same folder is another network
    package = read_package(Path(folder))
    package.verify()
    return YoloOnnxDetector(package)


def build(package: ModelPackage, alone: YoloOnnxDetector) -> PaintedDetector:
    """The detector of a card with `painted`; raises BadModelPackage where a companion is another."""
    from storage.registry import load

    checked = checked_companions(package)
    asked, where = package.card.parameters[PAINTED], str(package.folder)
    stainer, reader = load("stainer", str(asked["stainer"])), load("detector", str(asked["detector"]))
    scale = checked["stainer"].card.pixel_size_um
    if not hasattr(stainer, "paint_field") or scale is None or not isinstance(reader, YoloOnnxDetector):
        raise BadModelPackage(
            f"{where}: '{asked['stainer']}' paints no fields of a known scale, or '{asked['detector']}' is "
            "no network that reads them; correct the card's 'painted'."
        )
    return PaintedDetector(alone, stainer, scale, reader)


def checked_companions(package: ModelPackage) -> dict[str, ModelPackage]:
    """The packages that a card's `painted` names, by task; none where it names none.

    Raises BadModelPackage where one has other weights than those that the card was measured with.
    """
    if PAINTED not in package.card.parameters:
        return {}
    asked = package.card.parameters[PAINTED]
    where = str(package.folder)
    if not isinstance(asked, Mapping) or not {"stainer", "detector"} <= asked.keys():
        raise BadModelPackage(f"{where}: 'painted' names no stainer and detector; restore the card.")
    found = {}
    for task in ("stainer", "detector"):
        name = str(asked[task])
        found[task] = _package(task, name, where)
        if found[task].card.sha256 != asked.get(f"{task}_sha256"):
            raise BadModelPackage(
                f"{where} was measured with other weights of {task} '{name}' than those at "
                f"{found[task].folder}; restore them, or set detection.dic_painted to false."
            )
    return found


def _package(task: Any, name: str, where: str) -> ModelPackage:
    from storage.packages import ModelPackage
    from storage.registry import describe

    found = describe(task, name)
    if not isinstance(found, ModelPackage):
        raise BadModelPackage(f"{where or name}: {task} '{name}' has no weights, so no card can name it.")
    return found
