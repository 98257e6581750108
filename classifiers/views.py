"""From a patch of any size, scale and white point to the view that a network was trained on.

Every function works on one patch alone, so that a cell's result cannot depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from storage.mirroring import mirrored
from storage.smear_colour import brightest

LOCATOR_PX = 64
# What the densest part of a cell, its nucleus, is brought to: optical density in red, green and blue, that of
# a well stained May-Grünwald-Giemsa nucleus.
NUCLEAR_DENSITY = (1.25, 1.60, 0.75)
DENSEST = 0.12  # share of the cell's square that is surely nucleus


def reflected(start: int, size: int, length: int) -> np.ndarray:
    """Indices start .. start + size - 1 into an axis of `length`, mirrored at its ends as often as needed."""
    return mirrored(np.arange(start, start + size), length)


def crop_square(image: np.ndarray, x: float, y: float, side: float, out_px: int) -> Tensor:
    """A square of `side` pixels around (x, y) of image (H, W, 3) uint8, as (3, out_px, out_px) in [0, 1].

    What lies beyond the image is mirrored; reducing is anti-aliased.
    """
    rows, columns = _square(x, y, side, image.shape[:2])
    square = torch.from_numpy(np.ascontiguousarray(image[rows[:, None], columns[None, :]]))
    return _resized(square.permute(2, 0, 1).float() / 255, out_px).clamp(0, 1)


def cut_square(image: Tensor, frame: tuple[float, float, float], out_px: int) -> Tensor:
    """`crop_square` of an image (3, H, W) in [0, 1], not limited, through which gradients go."""
    rows, columns = _square(*frame, image.shape[1:])
    return _resized(image[:, rows][:, :, columns], out_px)


def _square(x: float, y: float, side: float, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a square, mirrored where it leaves an image of `shape`."""
    size = max(2, round(side))
    top, left = round(y - size / 2), round(x - size / 2)
    return reflected(top, size, shape[0]), reflected(left, size, shape[1])


def _resized(square: Tensor, out_px: int) -> Tensor:
    if square.shape[-1] == out_px:
        return square
    size = (out_px, out_px)
    return F.interpolate(square[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def white_point(image: np.ndarray) -> Tensor:
    """The brightest colour (3,) in [0, 1] of an image (H, W, 3) uint8: its background's light.

    Bounded below, so that a patch without background is not made white.
    """
    return torch.from_numpy(np.maximum(brightest(image) / 255, 0.45).astype(np.float32))


def balance(view: Tensor, white: Tensor) -> Tensor:
    """A view (..., 3, H, W) with its background's light taken out."""
    return (view / white[:, None, None]).clamp(0, 1)


def anchored(view: Tensor, cell_share: float, hue: float) -> Tensor:
    """A white-balanced view (3, H, W) whose nucleus has `NUCLEAR_DENSITY`, whatever the amount of dye.

    Glass and nucleus are the two colours that every stained cell has: the first is taken out by `balance`,
    the second here, by `nuclear_gain`.
    """
    density = -view.clamp(min=1 / 255).log()  # dye adds in it
    return (-(density * nuclear_gain(view, cell_share, hue)[:, None, None])).exp()


def nuclear_gain(view: Tensor, cell_share: float, hue: float) -> Tensor:
    """The gains (3,) of red, green and blue that bring the nucleus of a view (3, H, W) to `NUCLEAR_DENSITY`.

    `cell_share` is the cell's side as a share of the view's; `hue` says how far the three gains may differ:
    0 one gain for all, 1 each its own, which also turns the colours of eosin.  Gains are bounded, so that
    what has no nucleus (a platelet, a red cell) is not made one.
    """
    density = -view.clamp(min=1 / 255).log()
    size = view.shape[-1]
    half = 0.45 * cell_share * size
    low, high = max(0, int(size / 2 - half)), min(size, int(size / 2 + half) + 1)
    middle = density[:, low:high, low:high].reshape(3, -1)
    densest = middle.sum(0).topk(max(4, int(DENSEST * middle.shape[1]))).indices
    nucleus = middle[:, densest].median(1).values
    wanted = nucleus.new_tensor(NUCLEAR_DENSITY)
    amount = (wanted.sum() / nucleus.sum().clamp(min=0.3)).clamp(0.5, 3.0)
    each = (wanted / nucleus.clamp(min=0.1)).clamp(0.4, 5.0)
    return amount ** (1 - hue) * each**hue


def field_of_view(
    image: np.ndarray, pixel_size_um: float | None, view_um: float
) -> tuple[float, float, float]:
    """Centre and side, in pixels, of the square in which the cell is looked for.

    With a pixel size the central `view_um`, but no more than the image holds; without, the whole image.
    """
    height, width = image.shape[:2]
    side = float(max(height, width))
    if pixel_size_um is not None:
        side = min(side, view_um / pixel_size_um)
    return width / 2, height / 2, max(side, 2.0)


def dihedral(view: Tensor, count: int) -> Tensor:
    """The first `count` (1, 2, 4 or 8) symmetric copies of a view (3, S, S), as (count, 3, S, S)."""
    copies = [view, view.flip(2), view.flip(1), view.flip((1, 2))]
    copies += [v.transpose(1, 2) for v in copies]
    return torch.stack(copies[:count])
