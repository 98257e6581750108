"""Whole-slide files through OpenSlide: physical scale, regions and thumbnail.

Only the slide image itself is ever read; label and macro images, which carry identity, are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.errors import UnreadableImage
from storage.images import image_info
from storage.images_info import can_be_pixel_size, plausible_pixel_size, refuse
from storage.images_tiff import has_levels
from storage.slides_companions import companions

SLIDE_SUFFIXES = frozenset((".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm"))

THUMBNAIL_PX = 2048
# A slide without reduced levels is read strip by strip for its thumbnail; beyond this it takes minutes.
MAX_THUMBNAIL_READ_PX = 4_000_000_000
# A pyramid of more than eight fields is a slide; one of less may be a camera's field.
MIN_PYRAMID_PX = 8 * 2064 * 1544
_STRIP_PX = 16_000_000
_DAMAGED_PX = 128  # sides of what is given up at once around a damaged tile
OVERVIEW_UM = 8.0  # a pixel: about a red cell, so that one layer of them is still cells and gaps
MAX_OVERVIEW_PX, MAX_OVERVIEW_READ_PX = 8192, 400_000_000  # a slide of 65 mm; some ten seconds
# Resampling by less than this blurs and gains nothing.
SAME_SCALE = 0.02


@dataclass(frozen=True)
class SlideField:
    """One field of a slide: level-0 position and size, output size and scale, share of tissue."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    out_width_px: int
    out_height_px: int
    pixel_size_um: float
    tissue_fraction: float


def is_slide(path: Path, *, max_pixels: int) -> bool:
    """Whether a file is read as a whole slide: a scanner's format, a pyramid of MIN_PYRAMID_PX, or a tiled
    TIFF too large for a field."""
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return True
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        return False
    import openslide

    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
    except (openslide.OpenSlideError, OSError):
        return False
    if vendor is None:
        return False
    if vendor != "generic-tiff":
        return True
    try:
        with openslide.OpenSlide(str(path)) as slide:
            width, height = slide.dimensions
    except (openslide.OpenSlideError, OSError):
        return False
    if width * height <= min(MIN_PYRAMID_PX, max_pixels):
        return False
    return bool(width * height > max_pixels) or has_levels(path)


class SlideReader:
    """An opened slide.  Use it as a context manager; it is not shared between processes.

    `pixel_size_um` is that of level 0: the argument where given, else the file's own figure, else None;
    `notes` say why the file's is not used.  `bits` is 16 where OpenSlide hands on the upper 8.
    Raises UnreadableImage where the file is no slide or is damaged.
    """

    def __init__(self, path: Path | str, *, pixel_size_um: float | None = None) -> None:
        import openslide

        self.path = Path(path)
        self._lost: UnreadableImage | None = None  # why the file could not be opened again
        companions(self.path)  # nothing outside the slide's folder is opened
        try:
            self._slide: Any = openslide.OpenSlide(str(self.path))
            self.width_px, self.height_px = (int(v) for v in self._slide.dimensions)
            self._downsamples = [float(d) for d in self._slide.level_downsamples]
            self._level_sizes = [(int(w), int(h)) for w, h in self._slide.level_dimensions]
            self.file_pixel_size_um, self.notes = _pixel_size(self._slide.properties)
            vendor = self._slide.properties.get("openslide.vendor")
        except (openslide.OpenSlideError, OSError) as error:
            raise self._bad(error) from error
        self.bits = 8
        if vendor == "generic-tiff":
            self._ask_tiff()
        self.pixel_size_um = pixel_size_um or self.file_pixel_size_um

    def _ask_tiff(self) -> None:
        """Depth, and the pixel size where OpenSlide knows none (it does not read OME-XML)."""
        try:
            info = image_info(self.path)
        except UnreadableImage:
            return  # a plain reader refuses what OpenSlide reads: a pyramid of other compression
        self.bits = info.bits
        if self.file_pixel_size_um is None:
            self.file_pixel_size_um, self.notes = info.pixel_size_um, info.notes

    def _bad(self, error: Exception) -> UnreadableImage:
        if not self.path.is_file():
            return refuse(self.path, "does not exist or is not a file", "check its name")
        detail = " ".join(str(error).split())[:160]
        return UnreadableImage(
            f"{self.path}: the whole-slide file is damaged, truncated or of an unknown kind ({detail}); "
            "copy it again or export it as SVS or pyramidal TIFF."
        )

    def __enter__(self) -> SlideReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._slide.close()

    def _level_for(self, downsample: float) -> int:
        """The most reduced level that is still at least as fine as asked for."""
        fine = [i for i, d in enumerate(self._downsamples) if d <= downsample * (1 + SAME_SCALE)]
        return max(fine, key=lambda i: self._downsamples[i]) if fine else 0

    def _corner(self, level: int, x_px: int, y_px: int) -> tuple[int, int]:
        """What OpenSlide takes for a corner (x, y) in pixels of a level: pixels of level 0.

        Before the slide's edge it drops the fraction of a level's pixel, so there it is rounded outwards.
        """
        x, y = x_px * self._downsamples[level], y_px * self._downsamples[level]
        return round(x) if x >= 0 else math.floor(x), round(y) if y >= 0 else math.floor(y)

    def _read_level(self, x_px: int, y_px: int, level: int, width: int, height: int) -> np.ndarray:
        import openslide

        if self._lost is not None:
            raise self._lost
        try:
            rgba = np.asarray(self._slide.read_region((x_px, y_px), level, (width, height)))
        except (openslide.OpenSlideError, OSError) as error:
            bad = self._bad(error)
            # After one error OpenSlide refuses every call; a damaged tile is to cost no other.
            self._slide.close()
            try:
                self._slide = openslide.OpenSlide(str(self.path))
            except (openslide.OpenSlideError, OSError) as gone:
                self._lost = bad = self._bad(gone)
            raise bad from error
        if (rgba[..., 3] == 255).all():
            return np.ascontiguousarray(rgba[..., :3])
        alpha = rgba[..., 3:4].astype(np.uint16)
        # What the scanner did not image is transparent: glass, so white.
        blended = (rgba[..., :3].astype(np.uint16) * alpha + 255 * (255 - alpha) + 127) // 255
        return np.asarray(blended.astype(np.uint8))

    def read_region_px(
        self, x_px: int, y_px: int, width_px: int, height_px: int, out_width_px: int, out_height_px: int
    ) -> np.ndarray:
        """(out_height_px, out_width_px, 3) uint8 of a level-0 rectangle.

        The level next finer than the output is read and resampled from its exact, fractional bounds,
        so that a pixel of the output lies where it should whatever the level's downsample is.
        """
        import cv2

        scale_x, scale_y = width_px / out_width_px, height_px / out_height_px
        level = self._level_for(min(scale_x, scale_y))
        # Levels are rounded to whole pixels, so each axis has its own exact factor.
        level_width, level_height = self._level_sizes[level]
        down_x, down_y = self.width_px / level_width, self.height_px / level_height
        left, top = x_px / down_x, y_px / down_y
        margin = 2
        first_x, first_y = int(np.floor(left)) - margin, int(np.floor(top)) - margin
        read_w = int(np.ceil(width_px / down_x)) + 2 * margin + 2
        read_h = int(np.ceil(height_px / down_y)) + 2 * margin + 2
        # OpenSlide takes the corner in level-0 pixels and turns it into the level's by one factor, the mean
        # of both axes': on a long slide another than the axis's own.  What rounding moves is taken back here.
        factor = self._downsamples[level]
        corner_x, corner_y = self._corner(level, first_x, first_y)
        block = self._read_level(corner_x, corner_y, level, read_w, read_h)
        moved_x, moved_y = max(corner_x / factor, min(first_x, 0)), max(corner_y / factor, min(first_y, 0))
        step_x, step_y = scale_x / down_x, scale_y / down_y
        if max(step_x, step_y) > 1.5:
            # Average before decimating, else single pixels stand for their neighbourhood.
            sigma = 0.4 * max(step_x, step_y)
            block = cv2.GaussianBlur(block, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        start_x, start_y = left - moved_x, top - moved_y
        if (
            abs(step_x - 1) < 1e-9
            and abs(step_y - 1) < 1e-9
            and start_x.is_integer()
            and start_y.is_integer()
        ):
            x, y = int(start_x), int(start_y)
            return np.ascontiguousarray(block[y : y + out_height_px, x : x + out_width_px])
        # Output pixel centre (i + 0.5) lies at start + (i + 0.5) * step of the block, minus half a pixel.
        matrix = np.array(
            [[step_x, 0, start_x + 0.5 * step_x - 0.5], [0, step_y, start_y + 0.5 * step_y - 0.5]]
        )
        return np.asarray(
            cv2.warpAffine(
                block,
                matrix,
                (out_width_px, out_height_px),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )

    def read_region_um(
        self, x_um: float, y_um: float, width_um: float, height_um: float, target_pixel_size_um: float
    ) -> np.ndarray:
        """(H, W, 3) uint8 of a rectangle in slide micrometres at a pixel size; needs `pixel_size_um`."""
        mpp = self.need_pixel_size()
        size = (
            max(1, round(width_um / target_pixel_size_um)),
            max(1, round(height_um / target_pixel_size_um)),
        )
        return self.read_region_px(
            round(x_um / mpp),
            round(y_um / mpp),
            max(1, round(size[0] * target_pixel_size_um / mpp)),
            max(1, round(size[1] * target_pixel_size_um / mpp)),
            *size,
        )

    def need_pixel_size(self) -> float:
        if self.pixel_size_um is None:
            raise UnreadableImage(
                f"{self.path}: the whole-slide file does not state its pixel size; give it in the manifest's "
                "pixel_size_um or with --pixel-size."
            )
        return self.pixel_size_um

    def check(self) -> None:
        """Decode small pieces of every level; raises UnreadableImage where all of a level's are damaged.

        A damaged file often opens: its header is whole, and the error comes with the first tile.
        """
        for level, (width, height) in enumerate(self._level_sizes):
            w, h = min(width, 64), min(height, 64)
            # The middle first: of a sound slide it is the only one that is read.
            for across, down in ((2, 2), (1, 1), (3, 3), (3, 1), (1, 3), (2, 1), (2, 3), (1, 2), (3, 2)):
                corner = self._corner(level, (width - w) * across // 4, (height - h) * down // 4)
                try:
                    self._read_level(*corner, level, w, h)
                    break
                except UnreadableImage as error:
                    bad = error
            else:
                raise bad

    def overview(self) -> np.ndarray:
        """The whole slide (H, W, 3) uint8 at OVERVIEW_UM a pixel, where cells and gaps still tell apart;
        coarser where that would cost a level too large to read.  Needs `pixel_size_um`.
        """
        side = max(self.width_px, self.height_px)
        wanted = max(1, min(round(side * self.need_pixel_size() / OVERVIEW_UM), side))
        width, height = self._level_sizes[self._level_for(side / wanted)]
        fits = wanted <= THUMBNAIL_PX or (
            wanted <= MAX_OVERVIEW_PX and width * height <= MAX_OVERVIEW_READ_PX
        )
        return self.thumbnail(wanted if fits else THUMBNAIL_PX)

    def thumbnail(self, longest_px: int = THUMBNAIL_PX) -> np.ndarray:
        """The whole slide, (H, W, 3) uint8, at most `longest_px` on its longer side, in bounded memory.

        A damaged place is read from the next finer level, and is black where that is damaged as well.
        """
        import cv2

        factor = max(1.0, max(self.width_px, self.height_px) / longest_px)
        out_w, out_h = max(1, round(self.width_px / factor)), max(1, round(self.height_px / factor))
        level = self._level_for(factor)
        level_w, level_h = self._level_sizes[level]
        if level_w * level_h > MAX_THUMBNAIL_READ_PX:
            raise refuse(
                self.path, "has no reduced levels and is too large to be searched", "save it with a pyramid"
            )
        out = np.empty((out_h, out_w, 3), np.uint8)
        rows = max(1, int(out_h * _STRIP_PX / max(_STRIP_PX, level_w * level_h)))
        for first in range(0, out_h, rows):
            last = min(out_h, first + rows)
            top, bottom = round(first * level_h / out_h), round(last * level_h / out_h)
            strip = self._read_around_damage(level, 0, top, level_w, max(1, bottom - top))
            out[first:last] = cv2.resize(strip, (out_w, last - first), interpolation=cv2.INTER_AREA)
        return out

    def _read_around_damage(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A rectangle of a level, (height, width, 3) uint8, in the level's own pixels.

        What is damaged is cut up, then read from the next finer level, and black where that is damaged, too:
        no glass, which is not looked at.
        """
        import cv2

        try:
            return self._read_level(*self._corner(level, x, y), level, width, height)
        except UnreadableImage:
            if self._lost is not None:
                raise
        if max(width, height) > _DAMAGED_PX:
            out = np.empty((height, width, 3), np.uint8)
            across, down = (-(-v // 2) if v > _DAMAGED_PX else v for v in (width, height))
            for y0 in range(0, height, down):
                for x0 in range(0, width, across):
                    w, h = min(across, width - x0), min(down, height - y0)
                    out[y0 : y0 + h, x0 : x0 + w] = self._read_around_damage(level, x + x0, y + y0, w, h)
            return out
        finer = [i for i, d in enumerate(self._downsamples) if d < self._downsamples[level]]
        if finer:
            below = max(finer, key=lambda i: self._downsamples[i])
            sizes = zip(self._level_sizes[below], self._level_sizes[level], strict=True)
            more_x, more_y = (fine / coarse for fine, coarse in sizes)
            corner = self._corner(below, round(x * more_x), round(y * more_y))
            try:
                block = self._read_level(*corner, below, round(width * more_x), round(height * more_y))
                return np.asarray(cv2.resize(block, (width, height), interpolation=cv2.INTER_AREA))
            except UnreadableImage:
                pass
        return np.zeros((height, width, 3), np.uint8)


def _pixel_size(properties: Any) -> tuple[float | None, tuple[str, ...]]:
    """mpp of the file where plausible (the mean of both axes, which differ by rounding), and notes."""
    values: list[float] = []
    for axis in "xy":
        try:
            values.append(float(properties.get(f"openslide.mpp-{axis}", "")))
        except ValueError:
            return None, ()
    if not all(can_be_pixel_size(v) for v in values):
        return None, ()
    size, notes = plausible_pixel_size(*values)
    return (None if size is None else sum(values) / 2), notes
