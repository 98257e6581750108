"""Whole-slide files through OpenSlide: physical scale, regions and thumbnail.

Only the slide image itself is ever read; label and macro images, which carry identity, are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.errors import UnreadableImage
from storage.images_info import can_be_pixel_size, refuse
from storage.slides_companions import companions

SLIDE_SUFFIXES = frozenset((".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm"))

THUMBNAIL_PX = 2048
# A slide without reduced levels is read strip by strip for its thumbnail; beyond this it takes minutes.
MAX_THUMBNAIL_READ_PX = 4_000_000_000
_STRIP_PX = 16_000_000
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
    """Whether a file is read as a whole slide: a scanner's format, or a pyramid too large for a field."""
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
            return bool(width * height > max_pixels)
    except (openslide.OpenSlideError, OSError):
        return False


class SlideReader:
    """An opened slide.  Use it as a context manager; it is not shared between processes.

    `mpp_um` is the size of a level-0 pixel: the argument where given, else the file's own figure,
    else None.  Raises UnreadableImage where the file is no slide or is damaged.
    """

    def __init__(self, path: Path | str, *, pixel_size_um: float | None = None) -> None:
        import openslide

        self.path = Path(path)
        companions(self.path)  # nothing outside the slide's folder is opened
        try:
            self._slide: Any = openslide.OpenSlide(str(self.path))
            self.width_px, self.height_px = (int(v) for v in self._slide.dimensions)
            self._downsamples = [float(d) for d in self._slide.level_downsamples]
            self._level_sizes = [(int(w), int(h)) for w, h in self._slide.level_dimensions]
            self.file_pixel_size_um = _pixel_size(self._slide.properties)
        except (openslide.OpenSlideError, OSError) as error:
            raise self._bad(error) from error
        self.pixel_size_um = pixel_size_um or self.file_pixel_size_um

    def _bad(self, error: Exception) -> UnreadableImage:
        if not self.path.is_file():
            return refuse(self.path, "does not exist or is not a file", "check its name in the manifest")
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

    def _read_level(self, x_px: int, y_px: int, level: int, width: int, height: int) -> np.ndarray:
        import openslide

        try:
            rgba = np.asarray(self._slide.read_region((x_px, y_px), level, (width, height)))
        except (openslide.OpenSlideError, OSError) as error:
            raise self._bad(error) from error
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
        block = self._read_level(round(first_x * down_x), round(first_y * down_y), level, read_w, read_h)
        # OpenSlide takes the corner in level-0 pixels; what rounding moved it by is taken back here.
        moved_x = round(first_x * down_x) / down_x
        moved_y = round(first_y * down_y) / down_y
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
        """Decode a small piece of every level; raises UnreadableImage where a level cannot be decoded.

        A damaged file often opens: its header is whole, and the error comes with the first tile.
        """
        for level, (width, height) in enumerate(self._level_sizes):
            w, h = min(width, 64), min(height, 64)
            down_x, down_y = self.width_px / width, self.height_px / height
            self._read_level(round((width - w) // 2 * down_x), round((height - h) // 2 * down_y), level, w, h)

    def thumbnail(self, longest_px: int = THUMBNAIL_PX) -> np.ndarray:
        """The whole slide, (H, W, 3) uint8, at most `longest_px` on its longer side, in bounded memory."""
        import cv2

        factor = max(1.0, max(self.width_px, self.height_px) / longest_px)
        out_w, out_h = max(1, round(self.width_px / factor)), max(1, round(self.height_px / factor))
        level = self._level_for(factor)
        level_w, level_h = self._level_sizes[level]
        if level_w * level_h > MAX_THUMBNAIL_READ_PX:
            raise refuse(
                self.path, "has no reduced levels and is too large to be searched", "save it with a pyramid"
            )
        down = self.height_px / level_h
        out = np.empty((out_h, out_w, 3), np.uint8)
        rows = max(1, int(out_h * _STRIP_PX / max(_STRIP_PX, level_w * level_h)))
        for first in range(0, out_h, rows):
            last = min(out_h, first + rows)
            top, bottom = round(first * level_h / out_h), round(last * level_h / out_h)
            strip = self._read_level(0, round(top * down), level, level_w, max(1, bottom - top))
            out[first:last] = cv2.resize(strip, (out_w, last - first), interpolation=cv2.INTER_AREA)
        return out


def _pixel_size(properties: Any) -> float | None:
    """mpp of the file where plausible; the mean of both axes, which differ by rounding at most."""
    values: list[float] = []
    for axis in "xy":
        try:
            values.append(float(properties.get(f"openslide.mpp-{axis}", "")))
        except ValueError:
            return None
    if not all(can_be_pixel_size(v) for v in values):
        return None
    if abs(values[0] / values[1] - 1.0) > 0.02:
        return None
    return sum(values) / 2
