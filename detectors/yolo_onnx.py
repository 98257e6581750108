"""YOLO detectors as ONNX packages, run by ONNX Runtime on images of any size.

The image is resampled to the package's pixel size window by window, so that a slide of any size takes
bounded memory.  Windows overlap by more than a cell: a box near a window's inner edge is dropped, as the
neighbour sees that cell and its surroundings whole.

A card may ask for several views of an image (`views`: a list of scales, relative to the card's pixel size,
and of axes along which the window is mirrored), whose boxes are fused.  A mirrored DIC image is the DIC image
of another direction of shear.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from detectors.artefacts import can_be_cells
from detectors.boxes import decode, fused, overlapping_pairs, suppress, thin_out, voted
from detectors.windows import spread
from pipeline.errors import BadInput, BadModelPackage
from storage.images_info import check_pixel_size

if TYPE_CHECKING:
    from storage.packages import ModelPackage

LEUKOCYTE, RED_CELL, PLATELET = 0, 1, 2
STRIDE = 32
OTHERS_MIN_SCORE = 0.1
SAME_OBJECT_IOU = 0.7  # boxes of one object, as its several anchors place it
SAME_IN_VIEWS_IOU = 0.55  # boxes of one object in several views; as Solovyev et al. 2021
SEAM_DOUBT_PX = 4
MIRRORS = ("", "x", "y", "xy")


@dataclass(frozen=True)
class Found:
    """Everything a network saw: boxes (N, 4) float32 in pixels of the image, scores, classes."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def of(self, cls: int, minimum: float = 0.0) -> Found:
        return self.at((self.classes == cls) & (self.scores >= minimum))

    def at(self, index: np.ndarray) -> Found:
        """Those of a mask or of indices, in their order."""
        return Found(self.boxes[index], self.scores[index], self.classes[index])


def check_image(image: np.ndarray, who: str) -> np.ndarray:
    """(H, W, 3) view of an (H, W) or (H, W, 3) uint8 image; raises BadInput for anything else."""
    shape = tuple(getattr(image, "shape", ()))
    if getattr(image, "dtype", None) != np.uint8:
        raise BadInput(
            f"{who} reads 8-bit images, not {getattr(image, 'dtype', type(image))}; convert it first."
        )
    if len(shape) == 2:
        return np.broadcast_to(np.asarray(image)[..., None], (*shape, 3))
    if len(shape) == 3 and shape[2] == 3:
        return image
    raise BadInput(f"{who} reads images of shape (H, W) or (H, W, 3), not {shape}; drop other channels.")


def rescale(
    image: np.ndarray, factor: float, max_stretch: float = 0.0
) -> tuple[np.ndarray, tuple[float, float]]:
    """An image (H, W, 3) uint8 at another scale, and the exact factors across and down.

    A side within `max_stretch` of whole strides becomes that: a network works on its padding, too.

    Shrinks by whole pixels first (their mean), then by the little that is left, bilinear: the mean over
    fractional areas is thirty times slower, and half a grey level away.
    """
    import cv2

    image = np.ascontiguousarray(image)
    block = max(1, int(1 / factor + 1e-6))
    if block > 1:
        below, right = -image.shape[0] % block, -image.shape[1] % block
        if below or right:
            image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    height, width = image.shape[:2]
    if block > 1:
        image = cv2.resize(image, (width // block, height // block), interpolation=cv2.INTER_AREA)
    rest = factor * block
    if rest < 0.75:  # no pixel may stand for its neighbours
        image = cv2.GaussianBlur(image, (3, 3), 0.4 / rest)
    size = _side(image.shape[1] * rest, max_stretch), _side(image.shape[0] * rest, max_stretch)
    if size != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return image, (size[0] / width, size[1] / height)


def _side(wanted: float, max_stretch: float) -> int:
    strides = round(wanted / STRIDE) * STRIDE
    return strides if abs(strides - wanted) <= max_stretch * wanted else max(1, round(wanted))


class YoloOnnxDetector:
    """A YOLO network of three classes; `detect` gives its leukocytes, `look` everything it sees."""

    def __init__(self, package: ModelPackage) -> None:
        import onnxruntime

        card = package.card
        if card.pixel_size_um is None or "leukocyte" not in card.classes:
            raise BadModelPackage(
                f"{package.folder}: a yolo-onnx card needs pixel_size_um and a class leukocyte."
            )
        self.name = card.name
        self.pixel_size_um = float(card.pixel_size_um)
        self.modalities = card.modalities
        parameters = card.parameters
        self.window_px = int(parameters.get("window_px", 1280))
        self.overlap_px = int(parameters.get("overlap_px", 160))
        self.min_score = float(parameters.get("min_score", 0.01))
        self.max_iou = float(parameters.get("max_iou", 0.5))
        self.max_inside = float(parameters.get("max_inside", 0.9))
        self.threshold = float(parameters.get("threshold", 0.4))
        self.max_stretch = float(parameters.get("max_stretch", 0.0))
        self.views = _views(parameters.get("views", [[1.0, ""]]), str(package.folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        # Spinning threads and a growing arena are for servers that do nothing else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(package.weights_path), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [i.name for i in self._session.get_inputs()]

    def in_windows(self, window_px: int) -> YoloOnnxDetector:
        """The same network, reading an image in windows of another size (px of its own scale)."""
        other = copy.copy(self)
        other.window_px = window_px
        return other

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Leukocytes: see detectors.base.Detector."""
        boxes, scores = self.candidates(image, pixel_size_um)
        stained = self.modalities != ("dic",)
        keep = can_be_cells(check_image(image, self.name), boxes, pixel_size_um, stained=stained)
        return boxes[keep], scores[keep]

    def candidates(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        """As `detect`, with boxes that no leukocyte can have (`detectors.artefacts`)."""
        found = self._look(image, pixel_size_um, everywhere=False).of(LEUKOCYTE)
        return found.boxes, found.scores

    def look(self, image: np.ndarray, pixel_size_um: float) -> Found:
        """Leukocytes, red cells and platelets, by falling score.

        Raises BadInput for an image that is not uint8 grey or RGB, or an impossible pixel size.
        """
        return self._look(image, pixel_size_um, everywhere=True)

    def _look(self, image: np.ndarray, pixel_size_um: float, *, everywhere: bool) -> Found:
        """`look`; without `everywhere` the red cells and platelets that compete with a leukocyte suffice."""
        image = check_image(image, self.name)
        factor = check_pixel_size(self.name, pixel_size_um) / self.pixel_size_um
        if min(image.shape[:2]) < 1:
            return _nothing()
        views = [self._view(image, factor / scale, mirror, everywhere) for scale, mirror in self.views]
        return views[0] if len(views) == 1 else self._merge(self._fused(views))

    def _view(self, image: np.ndarray, factor: float, mirror: str, everywhere: bool) -> Found:
        """What one view of an image shows, window by window."""
        height, width = image.shape[:2]
        parts = []
        sizes = self.window_px / factor, self.overlap_px / factor, STRIDE / factor
        for y0, y1 in _spans(height, *sizes):
            for x0, x1 in _spans(width, *sizes):
                part = self._window(np.asarray(image[y0:y1, x0:x1]), factor, mirror, everywhere)
                part.boxes[:] += np.array([x0, y0, x0, y0], np.float32)
                parts.append(self._leave_to_neighbours(part, (x0, y0, x1, y1), width, height, factor))
        return self._merge(_concatenated(parts))

    def _fused(self, views: list[Found]) -> Found:
        """The views' boxes, each class by itself, one an object."""
        parts = []
        for c in (LEUKOCYTE, RED_CELL, PLATELET):
            mine = [view.of(c) for view in views]
            boxes, scores = fused([(m.boxes, m.scores) for m in mine], SAME_IN_VIEWS_IOU)
            part = Found(boxes, scores, np.full(len(scores), c, np.int64))
            parts.append(part.of(c, self.min_score))
        return _concatenated(parts)

    def _run(self, image: np.ndarray, everywhere: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, scores and classes of an image (H, W, 3) uint8 at the network's scale, unsuppressed."""
        if "minimum" in self._inputs:  # a compact network: see detectors.compact
            least = np.array([self.min_score, OTHERS_MIN_SCORE, OTHERS_MIN_SCORE])
            rows = self._session.run(
                None,
                {
                    "images": image[None],
                    "minimum": np.log(least / (1 - least)).astype(np.float32),
                    "everywhere": np.array(everywhere),
                },
            )[0]
            boxes, scores, classes = rows[:, :4], rows[:, 4:].max(1), rows[:, 4:].argmax(1)
        else:
            tensor = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
            boxes, scores, classes = decode(
                self._session.run(None, {self._inputs[0]: tensor})[0][0], self.min_score
            )
        # Only the leukocytes need their whole precision-recall curve.
        worth = scores > np.where(classes == LEUKOCYTE, self.min_score, OTHERS_MIN_SCORE)
        return boxes[worth], scores[worth], classes[worth]

    def _window(self, image: np.ndarray, factor: float, mirror: str, everywhere: bool) -> Found:
        """One window, mirrored, through the network; boxes in pixels of the window as it was."""
        import cv2

        small, (across, down) = rescale(_mirrored(image, mirror), factor, self.max_stretch)
        size = (small.shape[1], small.shape[0])
        fill = np.median(small.reshape(-1, 3)[:: max(1, small.size // 6000)], axis=0).astype(np.uint8)
        below, right = -size[1] % STRIDE, -size[0] % STRIDE
        padded = cv2.copyMakeBorder(small, 0, below, 0, right, cv2.BORDER_CONSTANT, value=fill.tolist())
        boxes, scores, classes = self._run(padded, everywhere)
        inside = (boxes[:, :2] + boxes[:, 2:]) / 2 < np.array(size)  # nothing has its centre in the padding
        keep = inside.all(1)
        boxes = np.clip(boxes[keep], 0, np.tile(np.array(size, np.float32), 2))
        boxes *= np.tile(np.array([1 / across, 1 / down], np.float32), 2)
        boxes = np.clip(boxes, 0, np.tile(np.array(image.shape[1::-1], np.float32), 2))
        for axis in (k for k, name in enumerate("xy") if name in mirror):
            boxes[:, [axis, axis + 2]] = image.shape[1 - axis] - boxes[:, [axis + 2, axis]]
        found = Found(boxes.astype(np.float32), scores[keep], classes[keep])
        return _concatenated([_thinned(found.of(c)) for c in (LEUKOCYTE, RED_CELL, PLATELET)])

    def _suppress_each(self, found: Found, max_iou: float, max_inside: float) -> Found:
        parts = []
        for c in (LEUKOCYTE, RED_CELL, PLATELET):
            mine = found.of(c)
            parts.append(
                mine.at(suppress(mine.boxes, mine.scores, max_iou, max_inside if c == LEUKOCYTE else None))
            )
        return _concatenated(parts)

    def _leave_to_neighbours(
        self, part: Found, area: tuple[int, int, int, int], width: int, height: int, factor: float
    ) -> Found:
        """Without the boxes that the neighbouring window sees better.

        Near an inner edge a cell may be cut, and its surroundings are: a box is left to the neighbour if its
        centre lies less than half the overlap from the edge, but for a few pixels in which the two may place
        it differently (what both keep is merged).  A box longer than the overlap may be cut in every window,
        so it stays.
        """
        x0, y0, x1, y1 = area
        near = (self.overlap_px / 2 - SEAM_DOUBT_PX) / factor
        b = part.boxes
        x, y = (b[:, 0] + b[:, 2]) / 2, (b[:, 1] + b[:, 3]) / 2
        theirs = (
            ((x < x0 + near) & (x0 > 0))
            | ((y < y0 + near) & (y0 > 0))
            | ((x > x1 - near) & (x1 < width))
            | ((y > y1 - near) & (y1 < height))
        )
        longest = np.maximum(b[:, 2] - b[:, 0], b[:, 3] - b[:, 1])
        keep = ~theirs | (longest > 2 * near)
        return part.at(keep)

    def _merge(self, found: Found) -> Found:
        """One box a cell over all windows and classes, by falling score."""
        found = self._suppress_each(found, self.max_iou, self.max_inside)
        white = found.classes == LEUKOCYTE
        if white.any() and (~white).any():
            # The same object named twice: the surer name stays.
            whites, others = np.flatnonzero(white), np.flatnonzero(~white)
            keep = np.ones(len(white), bool)
            for i, j, iou, _ in overlapping_pairs(found.boxes[white], found.boxes[~white]):
                a, b = whites[i[iou > 0.6]], others[j[iou > 0.6]]
                surer = found.scores[b] > found.scores[a]
                keep[a[surer]] = False
                keep[b[~surer]] = False
            found = found.at(keep)
        order = np.lexsort((found.boxes[:, 1], found.boxes[:, 0], -found.scores))
        return found.at(order)


def _views(given: Any, where: str) -> tuple[tuple[float, str], ...]:
    """The scales and mirrorings of a card's `views`; raises BadModelPackage for anything else."""
    try:
        views = tuple((float(scale), str(mirror)) for scale, mirror in given)
    except (TypeError, ValueError):
        views = ()
    if not views or any(mirror not in MIRRORS or not 0.25 <= scale <= 4 for scale, mirror in views):
        raise BadModelPackage(
            f'{where}: views {given!r} are no list of [scale of 0.25 to 4, "", "x", "y" or "xy"]; '
            "restore the package or correct its card."
        )
    return views


def _mirrored(image: np.ndarray, mirror: str) -> np.ndarray:
    return image[:: -1 if "y" in mirror else 1, :: -1 if "x" in mirror else 1]


def _thinned(found: Found) -> Found:
    """One class's boxes without those that place a surer one's object again; a leukocyte's are averaged."""
    kept = thin_out(found.boxes, found.scores, SAME_OBJECT_IOU)
    thin = found.at(kept)
    if len(kept) and thin.classes[0] == LEUKOCYTE:
        return replace(thin, boxes=voted(found.boxes, found.scores, kept, SAME_OBJECT_IOU))
    return thin


def _concatenated(parts: list[Found]) -> Found:
    return Found(*(np.concatenate([getattr(p, k) for p in parts]) for k in ("boxes", "scores", "classes")))


def _nothing() -> Found:
    return Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def _spans(length: int, window: float, overlap: float, unit: float = 1.0) -> list[tuple[int, int]]:
    """Starts and ends that cover 0..length in as few equal windows as can be, none longer than `window`.

    They overlap by at least `overlap`, and are no longer than that takes, rounded up to `unit` (what the
    network would be padded to).
    """
    window, overlap = max(2, int(window)), int(np.ceil(overlap))
    if length <= window:
        return [(0, length)]
    count = int(np.ceil((length - overlap) / max(1, window - overlap)))
    needed = (length + (count - 1) * overlap) / count
    window = min(window, int(np.ceil(needed / unit) * unit))
    return [(start, start + window) for start in spread(length, window, count)]


def build(package: ModelPackage | None) -> Any:
    """Builder for the registry."""
    if package is None:
        raise BadModelPackage("architecture 'yolo-onnx' needs a model package.")
    from detectors import painted

    alone = YoloOnnxDetector(package)
    return painted.build(package, alone) if painted.PAINTED in package.card.parameters else alone
