"""The nucleus / cytoplasm segmenter, and the segmentation of an image of any size with any segmenter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from detectors.base import CYTOPLASM, NUCLEUS, RED_CELL, Segmenter
from detectors.segment_colour import background_colour
from detectors.segment_refine import part_touching_cells
from detectors.windows import starts
from pipeline.errors import BadInput, BadModelPackage
from storage.images_info import check_pixel_size

if TYPE_CHECKING:
    import torch

    from detectors.segment_unet import UNet
    from storage.packages import ModelPackage

Span = tuple[int, int, int, int]
Tile = tuple[Span, Span]  # down and across

WORKING_PIXEL_SIZE_UM = 0.2
MEAN, STD = 0.75, 0.25  # of the transmission in [0, 1.2]
PATCH_EXTENT_UM = 32.0  # what a patch of unknown scale is first taken to span along its longer side
CELL_DIAMETER_UM = (7.5, 19.0)  # leukocytes; outside it the assumed scale is corrected once
SINGLE_CELL_EXTENT_UM = 45.0  # up to here an image is one cell's patch, above it a field
MIN_LEUKOCYTE_UM2, MIN_NUCLEUS_UM2 = 18.0, 5.0  # smaller bodies are platelets and rims of red cells
MIN_NUCLEUS_PIECE_UM2, MAX_HOLE_UM2 = 1.2, 6.0
TILE_UM, OVERLAP_UM = 96.0, 24.0  # the overlap holds the largest leukocyte


class UNetSegmenter:
    """A U-Net at 0.2 µm a pixel; one patch a forward pass, so no patch ever meets another."""

    def __init__(self, model: UNet, name: str, mean: float = MEAN, std: float = STD) -> None:
        import torch

        self.name = name
        self._mean, self._std = mean, std
        self._model = model.eval().to(memory_format=torch.channels_last)

    @classmethod
    def from_package(cls, package: ModelPackage) -> UNetSegmenter:
        """Load strictly; raises BadModelPackage where weights and architecture do not fit."""
        from detectors.segment_unet import UNet

        widths = tuple(package.card.parameters.get("widths", ()))
        try:
            model = UNet(widths)
            model.load_state_dict(package.state_dict(), strict=True)
        except (RuntimeError, ValueError, TypeError) as error:
            raise BadModelPackage(
                f"{package.folder}: the weights are not a U-Net of widths {widths}: {error}"
            ) from error
        normalisation = package.card.normalisation
        return cls(model, package.name, normalisation.mean[0], normalisation.std[0])

    @property
    def network(self) -> UNet:
        """The network alone, on transmission standardised as its card says: losses look through it."""
        return self._model

    def segment(self, patches: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
        """Labels (N, H, W) uint8 of patches (N, H, W, 3) uint8; every leukocyte in a patch is labelled.

        Without a pixel size a patch is taken to span 32 µm, and is read a second time at another
        scale where the cell found in its middle has no leukocyte's size.
        """
        return self._each(patches, pixel_size_um, views=1)

    def segment_averaged(self, patches: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
        """As `segment`, by the mean of four turned and mirrored views: better, and four times as long."""
        return self._each(patches, pixel_size_um, views=4)

    def _each(self, patches: np.ndarray, pixel_size_um: float | None, views: int) -> np.ndarray:
        check_patches(patches)
        if pixel_size_um is not None:
            check_pixel_size(self.name, pixel_size_um)
        out = np.zeros(patches.shape[:3], np.uint8)
        for n, patch in enumerate(patches):
            size = pixel_size_um or infer_pixel_size_um(self, patch)
            out[n] = self._labels(patch, size, views)
        return out

    def _logits(self, tensor: torch.Tensor, views: int) -> torch.Tensor:
        """Logits (1, 4, H, W) of a view, or the mean log-probabilities of the first `views` of four."""
        import torch

        if views == 1:
            return self._model(tensor.contiguous(memory_format=torch.channels_last))
        total = torch.zeros(())
        for turns, mirror in ((0, False), (1, False), (2, True), (3, True))[:views]:
            view = torch.rot90(tensor, turns, (2, 3))
            view = view.flip(3) if mirror else view
            out = self._model(view.contiguous(memory_format=torch.channels_last)).log_softmax(1)
            total = total + torch.rot90(out.flip(3) if mirror else out, -turns, (2, 3))
        return total / views

    def _labels(self, patch: np.ndarray, pixel_size_um: float, views: int = 1) -> np.ndarray:
        import torch
        from torch.nn import functional

        height, width = patch.shape[:2]
        scale = pixel_size_um / WORKING_PIXEL_SIZE_UM
        small = (max(8, round(width * scale)), max(8, round(height * scale)))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        light = cv2.resize(patch, small, interpolation=method).astype(np.float32)
        light = np.minimum(light / background_colour(patch), 1.2)
        stride = self._model.stride
        # Half a stride of mirrored margin at least, so that no cell is read at a hard edge.
        rows, columns = (-(-(n + stride) // stride) * stride for n in light.shape[:2])
        top, left = (rows - light.shape[0]) // 2, (columns - light.shape[1]) // 2
        bottom, right = rows - light.shape[0] - top, columns - light.shape[1] - left
        padded = cv2.copyMakeBorder(light, top, bottom, left, right, cv2.BORDER_REFLECT_101)
        tensor = torch.from_numpy(((padded - self._mean) / self._std).transpose(2, 0, 1)[None].copy())
        with torch.inference_mode():
            logits = self._logits(tensor, views)
            logits = logits[:, :, top : top + light.shape[0], left : left + light.shape[1]]
            logits = functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
            labels = logits[0].argmax(0).to(torch.uint8).numpy()
            otherwise = logits[0, :CYTOPLASM].argmax(0).to(torch.uint8).numpy()
            log_odds = (logits[0, CYTOPLASM] - logits[0, RED_CELL]).numpy()
        tidied = tidy(labels, otherwise, pixel_size_um)
        parted = part_touching_cells(tidied, log_odds, patch, pixel_size_um)
        return tidied if parted is tidied else tidy(parted, otherwise, pixel_size_um)


def tidy(labels: np.ndarray, otherwise: np.ndarray, pixel_size_um: float) -> np.ndarray:
    """Labels (H, W) of which every leukocyte is one: large enough, with a nucleus, without holes.

    A platelet taken for a nucleus, or the rim of a red cell taken for cytoplasm, becomes what
    `otherwise` (H, W) says, the better of background and red cell.
    """
    pixel_um2 = pixel_size_um**2
    out = labels.copy()
    leukocyte = (out >= CYTOPLASM).astype(np.uint8)
    contours, _ = cv2.findContours(leukocyte, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(leukocyte), contours, -1, 1, cv2.FILLED)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(filled - leukocyte, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] * pixel_um2 <= MAX_HOLE_UM2
    small[0] = False
    out[small[parts]] = CYTOPLASM
    _, parts, stats, _ = cv2.connectedComponentsWithStats((out == NUCLEUS).astype(np.uint8), connectivity=8)
    crumbs = stats[:, cv2.CC_STAT_AREA] * pixel_um2 < MIN_NUCLEUS_PIECE_UM2
    crumbs[0] = False
    out[crumbs[parts]] = CYTOPLASM
    count, parts, stats, _ = cv2.connectedComponentsWithStats(
        (out >= CYTOPLASM).astype(np.uint8), connectivity=8
    )
    nucleus_px = np.bincount(parts[out == NUCLEUS], minlength=count)
    none = (stats[:, cv2.CC_STAT_AREA] * pixel_um2 < MIN_LEUKOCYTE_UM2) | (
        nucleus_px * pixel_um2 < MIN_NUCLEUS_UM2
    )
    none[0] = False
    return np.where(none[parts], otherwise, out).astype(np.uint8)


def build(package: ModelPackage | None) -> UNetSegmenter:
    """Builder for the registry."""
    if package is None:
        raise BadModelPackage("architecture 'unet' needs a model package.")
    return UNetSegmenter.from_package(package)


def check_patches(patches: np.ndarray) -> None:
    """Raise BadInput unless patches are (N, H, W, 3) uint8."""
    if patches.ndim != 4 or patches.shape[3] != 3 or patches.dtype != np.uint8 or 0 in patches.shape[1:3]:
        raise BadInput(
            f"patches of shape {patches.shape} and type {patches.dtype} cannot be segmented;"
            " hand in (N, H, W, 3) uint8."
        )


def infer_pixel_size_um(segmenter: Segmenter, image: np.ndarray) -> float:
    """Pixel size (µm) that gives the cells of an image (H, W, 3) uint8 their known sizes.

    Red cells of 7.5 µm decide where at least three whole round ones are found; else the leukocyte
    nearest the middle decides, and only where it would be impossibly small or large.
    """
    from detectors.segment_scale import red_cell_diameter_px

    longest = max(image.shape[:2])
    size = PATCH_EXTENT_UM / longest
    red_px = red_cell_diameter_px(image)
    if red_px is not None:
        size = 7.5 / red_px
        if size * longest > 12:  # less than two red cells across is no measure
            return float(np.clip(size, 0.02, 1.0))
        size = PATCH_EXTENT_UM / longest
    cell = central_cell(segmenter.segment(image[None], size)[0])
    if not cell.any():
        return size
    diameter_um = 2 * float(np.sqrt(cell.sum() / np.pi)) * size
    low, high = CELL_DIAMETER_UM
    return size * float(np.clip(1.0, low / diameter_um, high / diameter_um))


def central_cell(labels: np.ndarray) -> np.ndarray:
    """Mask (H, W) bool of the leukocyte in the middle of labels (H, W): cytoplasm and nucleus.

    Of the connected leukocytes the one with most of its area near the middle is taken; touching
    leukocytes count as one, a limit that is stated in docs/segmentation.md.  All false where there
    is none.
    """
    leukocyte = (labels == CYTOPLASM) | (labels == NUCLEUS)
    count, parts = cv2.connectedComponents(leukocyte.astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros(labels.shape, bool)
    height, width = labels.shape
    y = (np.arange(height) - (height - 1) / 2) / height
    x = (np.arange(width) - (width - 1) / 2) / width
    near = np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * 0.15**2))
    weight = np.bincount(parts.ravel(), near.ravel(), minlength=count)
    weight[0] = -1
    return np.asarray(parts == int(weight.argmax()))


def segment_image(
    segmenter: Segmenter,
    image: np.ndarray,
    pixel_size_um: float | None,
    each: Callable[[list[Tile]], Iterable[Tile]] = iter,
) -> np.ndarray:
    """Labels (H, W) uint8 of an image (H, W, 3) or (H, W) uint8 of any size.

    Up to 45 µm across, an image is the patch of one cell: labels 2 and 3 are kept for the leukocyte
    in its middle, others become background.  Larger images are tiled with overlap, and every
    leukocyte is labelled.  Without a pixel size the scale is read off the cells.  `each` goes through the
    tiles of a large image, for a bar of progress.
    """
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    check_patches(image[None])
    if pixel_size_um is None:
        pixel_size_um = infer_pixel_size_um(segmenter, image)
    check_pixel_size(segmenter.name, pixel_size_um)
    if max(image.shape[:2]) * pixel_size_um <= SINGLE_CELL_EXTENT_UM:
        # One cell is worth four views, where the segmenter has them; the thousands of a case are not.
        read = getattr(segmenter, "segment_averaged", segmenter.segment)
        labels = read(image[None], pixel_size_um)[0]
        stray = (labels >= CYTOPLASM) & ~central_cell(labels)
        return np.where(stray, 0, labels).astype(np.uint8)
    return _tiled(segmenter, image, pixel_size_um, each)


def _tiled(
    segmenter: Segmenter,
    image: np.ndarray,
    pixel_size_um: float,
    each: Callable[[list[Tile]], Iterable[Tile]],
) -> np.ndarray:
    """Each pixel's label is that of the tile in whose middle it lies deepest."""
    tile = round(TILE_UM / pixel_size_um)
    overlap = round(OVERLAP_UM / pixel_size_um)
    out = np.zeros(image.shape[:2], np.uint8)
    down, across = (_spans(n, tile, overlap) for n in image.shape[:2])
    for (y0, y1, ya, yb), (x0, x1, xa, xb) in each(list(itertools.product(down, across))):
        labels = segmenter.segment(image[None, y0:y1, x0:x1], pixel_size_um)[0]
        out[ya:yb, xa:xb] = labels[ya - y0 : yb - y0, xa - x0 : xb - x0]
    return out


def _spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles (start, stop) along one axis and the part (first, last) of the image that each one decides."""
    if length <= tile:
        return [(0, length, 0, length)]
    begins = starts(length, tile, overlap)
    cuts = [0, *((a + tile + b) // 2 for a, b in itertools.pairwise(begins)), length]
    parts = zip(begins, itertools.pairwise(cuts), strict=True)
    return [(start, start + tile, a, b) for start, (a, b) in parts]
