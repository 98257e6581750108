"""Finders of nucleated cells in whole fields of marrow, learned on phantoms; Perls and MGG alike.

The image is brought to the card's pixel size and to optical density against its own glass, in units of
its own nuclei, so that neither a strong stain nor a dim lamp is seen by the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detectors.boxes import suppress
from detectors.segment_colour import background_colour
from detectors.yolo_onnx import check_image, check_pixel_size
from pipeline.errors import BadModelPackage

if TYPE_CHECKING:
    from storage.packages import ModelPackage

WINDOW_PX, OVERLAP_PX = 512, 112  # at the working scale; the overlap holds the largest cell
MIN_SCORE = 0.02
MIN_STRENGTH = 0.08  # optical density under which nothing in a field is a stained nucleus


@dataclass(frozen=True)
class MarrowCells:
    """Nucleated cells by falling score: boxes (N, 4) float32 in pixels of the image, kinds (N, K) float32
    probabilities, and how surely each is a nucleated cell at all (N,) float32."""

    boxes: np.ndarray
    found: np.ndarray
    kinds: np.ndarray


class MarrowDetector:
    """Finds the cells whose kind is one of the card's `targets`; `look` gives every nucleated cell."""

    def __init__(self, package: ModelPackage) -> None:
        import torch

        from detectors.marrow_net import MarrowNet

        card, parameters = package.card, package.card.parameters
        self.name = card.name
        self.kinds: tuple[str, ...] = tuple(parameters.get("kinds", ()))
        self.targets: tuple[str, ...] = tuple(parameters.get("targets", ()))
        if card.pixel_size_um is None or not self.targets or set(self.targets) - set(self.kinds):
            raise BadModelPackage(
                f"{package.folder}: a marrow-net card needs pixel_size_um, kinds, and targets among them."
            )
        self.pixel_size_um = float(card.pixel_size_um)
        self.sharpness = float(parameters.get("sharpness", 1.0))
        try:
            net = MarrowNet(len(self.kinds), tuple(parameters.get("widths", ())))
            net.load_state_dict(
                {k: v.float() if v.is_floating_point() else v for k, v in package.state_dict().items()}
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise BadModelPackage(f"{package.folder}: the weights are no such marrow-net: {error}") from error
        self._net = net.eval().to(memory_format=torch.channels_last)

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and scores of the targets: see detectors.base.Detector.

        The score is the probability of a nucleated cell of a target kind, drawn so that 0.4 is the cut
        at which precision and recall were best on validation phantoms.
        """
        seen = self.look(image, pixel_size_um)
        wanted = [self.kinds.index(t) for t in self.targets]
        score = (seen.found * seen.kinds[:, wanted].sum(1)) ** np.float32(self.sharpness)
        keep = score >= MIN_SCORE
        order = np.lexsort((seen.boxes[keep, 1], seen.boxes[keep, 0], -score[keep]))
        return seen.boxes[keep][order], score[keep][order].astype(np.float32)

    def look(self, image: np.ndarray, pixel_size_um: float) -> MarrowCells:
        """Every nucleated cell of an image (H, W, 3) or (H, W) uint8, whatever its kind."""
        image = check_image(image, self.name)
        factor = check_pixel_size(pixel_size_um, self.name) / self.pixel_size_um
        height, width = image.shape[:2]
        if min(height, width) < 1:
            return self._none()
        density = normalised_density(_resized(np.ascontiguousarray(image), factor))
        parts = [
            self._window(density, y, x) for y in _starts(density.shape[0]) for x in _starts(density.shape[1])
        ]
        boxes, found, kinds = (np.concatenate([p[i] for p in parts]) for i in range(3))
        order = np.argsort(-found, kind="stable")
        boxes, found, kinds = boxes[order], found[order], kinds[order]
        kept = suppress(boxes, found, 0.45, 0.8)
        boxes, found, kinds = boxes[kept], found[kept], kinds[kept]
        scale = np.array([width / density.shape[1], height / density.shape[0]] * 2, np.float32)
        boxes = np.clip(boxes * scale, 0, np.array([width, height] * 2, np.float32))
        return MarrowCells(boxes.astype(np.float32), found, kinds)

    def _none(self) -> MarrowCells:
        return MarrowCells(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, len(self.kinds)), np.float32)
        )

    def _window(self, density: np.ndarray, y: int, x: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One window through the network; boxes in pixels of the whole at the working scale.

        A cell whose centre lies in the outer half of an overlap is the neighbour window's.
        """
        import torch

        from detectors.marrow_net import MULTIPLE

        part = density[y : y + WINDOW_PX, x : x + WINDOW_PX]
        height, width = part.shape[:2]
        # Empty glass beyond the edge: half a cell stays half a cell.
        rows, columns = (-(-(n + MULTIPLE) // MULTIPLE) * MULTIPLE for n in (height, width))
        padded = np.zeros((rows, columns, 3), np.float32)
        padded[:height, :width] = part
        tensor = torch.from_numpy(padded.transpose(2, 0, 1)[None].copy())
        with torch.inference_mode():
            heat, box, kinds = self._net(tensor.contiguous(memory_format=torch.channels_last))
        boxes, found, kind = decode(heat[0, 0].numpy(), box[0].numpy(), kinds[0].numpy())
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + np.array([x, y], np.float32)
        low = [0 if v == 0 else v + OVERLAP_PX / 4 for v in (x, y)]
        full = (density.shape[1], density.shape[0])
        high = [
            full[i] if v + WINDOW_PX >= full[i] else v + WINDOW_PX - OVERLAP_PX / 4
            for i, v in enumerate((x, y))
        ]
        mine = ((centre >= low) & (centre < high)).all(1)
        return boxes[mine] + np.array([x, y, x, y], np.float32), found[mine], kind[mine]


def decode(heat: np.ndarray, box: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4), found (N,) and kinds (N, K) of the peaks of one output; logits in, input pixels out."""
    from scipy.ndimage import maximum_filter

    from detectors.marrow_net import STRIDE

    probability = 1 / (1 + np.exp(-heat))
    peak = (maximum_filter(probability, 5) == probability) & (probability >= MIN_SCORE)
    ys, xs = np.nonzero(peak)
    log_w, log_h, dx, dy = box[:, ys, xs]
    cx, cy = (xs + 0.5 + dx) * STRIDE, (ys + 0.5 + dy) * STRIDE
    w, h = (np.exp(np.clip(v, -1.0, 4.0)) * STRIDE for v in (log_w, log_h))
    logits = kinds[:, ys, xs].T
    shares = np.exp(logits - logits.max(1, keepdims=True)) if len(logits) else logits
    shares = shares / shares.sum(1, keepdims=True)
    boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
    return boxes.astype(np.float32), probability[ys, xs].astype(np.float32), shares.astype(np.float32)


def normalised_density(image: np.ndarray) -> np.ndarray:
    """Optical density (H, W, 3) float32 of (H, W, 3) uint8 against its glass, in units of its nuclei.

    The unit is the median green density of the darker half of what is stained, where nuclei are.
    """
    glass = background_colour(image)
    table = np.log10(glass)[None] - np.log10(np.maximum(np.arange(256, dtype=np.float32), 1.0))[:, None]
    density = np.stack([table[image[..., c], c] for c in range(3)], -1).astype(np.float32)
    return np.clip(density / stain_strength(density), -0.5, 4.0)


def stain_strength(density: np.ndarray) -> float:
    """Green density of the nuclei of a density (H, W, 3), at least MIN_STRENGTH."""
    green = density[::2, ::2, 1]
    top = float(np.percentile(green, 99.5))
    dark = green[green > 0.5 * top]
    return max(MIN_STRENGTH, float(np.median(dark)) if dark.size else 0.0)


def _resized(image: np.ndarray, factor: float) -> np.ndarray:
    import cv2

    if factor == 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(
        cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    )


def _starts(length: int) -> list[int]:
    if length <= WINDOW_PX:
        return [0]
    count = -(-(length - OVERLAP_PX) // (WINDOW_PX - OVERLAP_PX))
    return [int(v) for v in np.linspace(0, length - WINDOW_PX, count).round()]


def build(package: ModelPackage | None) -> Any:
    """Builder for the registry."""
    if package is None:
        raise BadModelPackage("architecture 'marrow-net' needs a model package.")
    return MarrowDetector(package)
