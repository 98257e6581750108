"""Where on a slide to look: glass, tissue, and the grid of fields that covers it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from storage.slides import OVERVIEW_UM, SAME_SCALE, SlideField, SlideReader

GAP_UM = 60.0  # some glass is seen within it, other than where cells are piled
# On an overview of 8 µm, 99.9 % of empty glass lie under 0.018, half of one layer of red cells above 0.025.
CELL_DENSITY = 0.025
DENSE = 0.16  # a light that falls off by 30 % makes 0.155 of glass
COARSEST_UM = 1.5 * OVERVIEW_UM


def glass_colour(thumbnail: np.ndarray) -> np.ndarray:
    """(3,) float: the slide's empty glass, the 99th percentile of each channel of a thumbnail.

    Pixels of pure white are left out where there are others: scanners leave what they did not image
    white or transparent, which is brighter than any glass.  On a thumbnail most is glass, so the brightest
    will do; a field of cells asks for more (`storage.smear_colour`).
    """
    pixels = thumbnail.reshape(-1, 3)
    imaged = pixels[(pixels < 255).any(axis=1)]
    if len(imaged) < 0.02 * len(pixels):
        imaged = pixels
    return np.maximum(np.percentile(imaged, 99, axis=0), 1.0)


def optical_density(image: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 of an (H, W, 3) uint8 image: log10 of glass over light, 0 to 3.

    A grey level is added to both, so that black has a density; a slide's thresholds were set on these.
    """
    table = _densities(glass)
    return np.stack([table[:, c][image[..., c]] for c in range(3)], axis=-1)


def _densities(glass: np.ndarray) -> np.ndarray:
    """(256, 3) float32: of each grey level.  256 grey levels need 256 logarithms, not one a pixel."""
    light = (np.arange(256, dtype=np.float64)[:, None] + 1.0) / (np.asarray(glass, np.float64) + 1.0)
    return np.asarray(-np.log10(np.clip(light, 1e-3, 1.0)).astype(np.float32))


def darkness(image: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """(H, W) float32: optical density of an image (H, W, 3) uint8 in the channel that is absorbed most."""
    table = _densities(glass)
    red, green, blue = (table[:, c] for c in range(3))
    most = np.maximum(red[image[..., 0]], green[image[..., 1]])
    return np.maximum(most, blue[image[..., 2]], out=most)


def tissue_mask(overview: np.ndarray, pixel_size_um: float) -> np.ndarray:
    """(H, W) bool: where an overview (H, W, 3) uint8 shows stained material rather than glass.

    Thickness has no say: beside a thick part, one layer of red cells is as pale as glass in a worse light.
    Cells stand out from the palest place within GAP_UM, which uneven light does not; what is darker than
    uneven light can be is material without gaps.  An overview too coarse to show cells and gaps is tissue
    everywhere: there, only a closer look can tell.
    """
    import cv2

    if pixel_size_um > COARSEST_UM:
        return np.ones(overview.shape[:2], bool)
    density = darkness(overview, glass_colour(overview))
    size = 2 * round(GAP_UM / pixel_size_um / 2) + 1
    # Opened, not only eroded: a slope is then its own ground.
    ground = cv2.morphologyEx(density, cv2.MORPH_OPEN, np.ones((size, size), np.uint8))
    mask: np.ndarray = (density - ground > CELL_DENSITY) | (density > DENSE)
    return mask


@dataclass(frozen=True)
class FieldGrid:
    """Fields of one size that cover a slide: their positions, and how a field is cut at one.

    `scale` is level-0 pixels per pixel of the field, `pixel_size_um` that of the field.
    """

    width_px: int
    height_px: int
    scale: float
    pixel_size_um: float
    xs: tuple[int, ...]
    ys: tuple[int, ...]

    def field(self, reader: SlideReader, x: int, y: int, tissue_fraction: float) -> SlideField:
        """The field whose upper left corner is a level-0 pixel; cut short at the slide's edge."""
        width = min(round(self.width_px * self.scale), reader.width_px - x)
        height = min(round(self.height_px * self.scale), reader.height_px - y)
        out = (max(1, round(width / self.scale)), max(1, round(height / self.scale)))
        return SlideField(x, y, width, height, *out, self.pixel_size_um, tissue_fraction)


def field_grid(
    reader: SlideReader,
    *,
    field_width_px: int,
    field_height_px: int,
    target_pixel_size_um: float,
    overlap_um: float,
) -> FieldGrid:
    """Fields at a pixel size, never finer than the slide itself, overlapping by about a cell, so that each
    cell is whole in one of them.  Raises UnreadableImage for a slide without a pixel size."""
    mpp = reader.need_pixel_size()
    size_um = max(target_pixel_size_um, mpp)
    if abs(size_um / mpp - 1.0) <= SAME_SCALE:
        size_um = mpp
    scale = size_um / mpp
    xs = _starts(reader.width_px, field_width_px * scale, overlap_um / mpp)
    ys = _starts(reader.height_px, field_height_px * scale, overlap_um / mpp)
    return FieldGrid(field_width_px, field_height_px, scale, size_um, tuple(xs), tuple(ys))


def tissue_of(reader: SlideReader, overview: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The overview (H, W, 3) at the scale at which tissue is told from glass, and the tissue (H, W) bool."""
    import cv2

    um = reader.need_pixel_size() * max(reader.width_px, reader.height_px) / max(overview.shape[:2])
    if um < OVERVIEW_UM:
        # Finer than cells are told by, it shows the noise of single pixels instead.
        size = (max(1, round(v * um / OVERVIEW_UM)) for v in overview.shape[1::-1])
        overview, um = cv2.resize(overview, tuple(size), interpolation=cv2.INTER_AREA), OVERVIEW_UM
    return overview, tissue_mask(overview, um)


def candidate_fields(
    reader: SlideReader, grid: FieldGrid, overview: np.ndarray, min_tissue_fraction: float
) -> tuple[SlideField, ...]:
    """The fields of a grid that are not background on the slide's overview, in reading order."""
    _, mask = tissue_of(reader, overview)
    # Sums over any rectangle in constant time.
    integral = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    found: list[SlideField] = []
    for y in grid.ys:
        for x in grid.xs:
            field = grid.field(reader, x, y, 0.0)
            fraction = _fraction(integral, mask.shape, reader, x, y, field.width_px, field.height_px)
            if fraction >= min_tissue_fraction:
                found.append(replace(field, tissue_fraction=fraction))
    return tuple(found)


def _starts(length_px: int, field_px: float, overlap_px: float) -> list[int]:
    """Where fields begin along an axis: overlapping by at least `overlap_px`, the last one flush."""
    if length_px <= field_px:
        return [0]
    step = max(1.0, field_px - min(overlap_px, field_px / 2))
    count = int(np.ceil((length_px - field_px) / step)) + 1
    return sorted({round(i * (length_px - field_px) / (count - 1)) for i in range(count)})


def _fraction(
    integral: np.ndarray, shape: tuple[int, ...], reader: SlideReader, x: int, y: int, width: int, height: int
) -> float:
    left, right = (int(v * shape[1] / reader.width_px) for v in (x, x + width))
    top, bottom = (int(v * shape[0] / reader.height_px) for v in (y, y + height))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    right, bottom = min(right, shape[1]), min(bottom, shape[0])
    left, top = min(left, right - 1), min(top, bottom - 1)
    total = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    return float(total) / ((right - left) * (bottom - top))
