"""What is known of an image file before it is decoded, and how a refusal is worded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadInput, UnreadableImage

MAX_PIXELS = 400_000_000

# Of any image of a smear: less is far finer than light resolves, more too coarse to show a nucleus.  What a
# file says outside it is a printer's or a screen's resolution.
PIXEL_SIZE_UM = (0.01, 2.0)


@dataclass(frozen=True)
class ImageInfo:
    """An image file's header: size in pixels, channels (1 or 3, alpha not counted), bits a sample.

    `pixel_size_um` is None where the file does not say it plausibly; `notes` say what a person should
    know of it (an orientation tag that is not applied, pixels that are not square).  `camera_bits` are
    those of 16 that the file says its camera fills; None where it says nothing, or 16, which most writers
    say of any camera.
    """

    width: int
    height: int
    channels: int
    bits: int
    pixel_size_um: float | None
    notes: tuple[str, ...] = ()
    camera_bits: int | None = None


def refuse(path: Path, problem: str, fix: str) -> UnreadableImage:
    """The one sentence: file, problem, fix."""
    return UnreadableImage(f"{path}: the image {problem}; {fix}.")


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into UnreadableImage, with the original as cause."""
    try:
        yield
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise refuse(path, "needs more memory than there is", "cut it into fields") from error
    except Exception as error:  # decoders raise dozens of types on damaged bytes
        detail = " ".join(str(error).split())[:160] or type(error).__name__
        if not detail.isprintable():  # bytes of the file, which a terminal might obey
            detail = type(error).__name__
        raise refuse(path, f"is damaged or truncated ({detail})", "copy or export it again") from error


def can_be_pixel_size(size_um: float) -> bool:
    """Whether a light microscope's image of a smear can have this pixel size (µm)."""
    return math.isfinite(size_um) and PIXEL_SIZE_UM[0] <= size_um <= PIXEL_SIZE_UM[1]


def check_pixel_size(where: str, size_um: float) -> float:
    """The size itself; raises BadInput, naming `where` it stands, where no image of a smear can have it."""
    if not can_be_pixel_size(size_um):
        low, high = PIXEL_SIZE_UM
        raise BadInput(
            f"{where}: a pixel size of {size_um:g} µm cannot be right; give micrometres, {low:g} to {high:g}."
        )
    return float(size_um)


def plausible_pixel_size(
    x_um: float | None, y_um: float | None = None
) -> tuple[float | None, tuple[str, ...]]:
    """The pixel size where it can be a microscope's and pixels are square, else None; and notes."""
    if x_um is None or not can_be_pixel_size(x_um):
        return None, ()
    if y_um is not None and abs(y_um / x_um - 1.0) > 0.02:
        return None, (
            f"its pixels are {x_um:.4g} x {y_um:.4g} µm, not square, so its pixel size is not used",
        )
    return x_um, ()
