"""What is known of an image file before it is decoded, and how a refusal is worded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UnreadableImage

MAX_PIXELS = 400_000_000

# A resolution outside this range is a printer's or a screen's, not a microscope's.
PLAUSIBLE_UM = (0.02, 5.0)


@dataclass(frozen=True)
class ImageInfo:
    """An image file's header: size in pixels, channels (1 or 3, alpha not counted), bits a sample.

    `pixel_size_um` is None where the file does not say it plausibly; `notes` say what a person should
    know of it (an orientation tag that is not applied, pixels that are not square).
    """

    width: int
    height: int
    channels: int
    bits: int
    pixel_size_um: float | None
    notes: tuple[str, ...] = ()


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


def plausible_pixel_size(
    x_um: float | None, y_um: float | None = None
) -> tuple[float | None, tuple[str, ...]]:
    """The pixel size where it can be a microscope's and pixels are square, else None; and notes."""
    if x_um is None or not PLAUSIBLE_UM[0] <= x_um <= PLAUSIBLE_UM[1]:
        return None, ()
    if y_um is not None and abs(y_um / x_um - 1.0) > 0.02:
        return None, (
            f"its pixels are {x_um:.4g} x {y_um:.4g} µm, not square, so its pixel size is not used",
        )
    return x_um, ()
