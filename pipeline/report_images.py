"""Pictures of a report: encoded small, within a budget of bytes that is shared out openly."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

# Side in px and quality, best first.  A screen pixel is often two or three device pixels, so the
# first rungs hold more than is shown at first; the enlarged view uses it.
THUMBNAIL_LADDER = ((160, 82), (128, 80), (112, 78), (96, 76), (80, 72), (72, 66), (72, 50), (60, 40))
FIELD_LADDER = ((1000, 72), (860, 68), (720, 64), (560, 60), (420, 55), (320, 50), (240, 45))
BASE64 = 4 / 3
BEYOND = 236  # the grey of what no image shows


@dataclass(frozen=True)
class FieldPicture:
    """A reduced picture of one field: (h, w, 3) uint8; `width_px` is the width of the full image.

    Boxes are drawn by the page, from the cells of the result, so that they stay sharp.  The picture may be
    a function that reads it: one is in memory at a time then, however many fields a case has.
    """

    slide: str
    field: str
    modality: str  # brightfield or dic
    stain: str
    picture: np.ndarray | Callable[[], np.ndarray]
    width_px: int

    @property
    def image(self) -> np.ndarray:
        """The pixels, read now where they are not at hand."""
        return self.picture() if callable(self.picture) else self.picture

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        height, width = self.image.shape[:2]
        return height, width


class Overviews(Mapping[str, np.ndarray]):
    """The pictures of fields by key `f<number>`, each read when it is asked for."""

    def __init__(self, fields: Sequence[FieldPicture]) -> None:
        self._fields = {f"f{i}": p for i, p in enumerate(fields)}

    def __getitem__(self, key: str) -> np.ndarray:
        return self._fields[key].image

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


@dataclass(frozen=True)
class Encoded:
    """Pictures as data URIs by key, those left out, and the side or width and quality they have."""

    uris: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    size_px: int = 0
    quality: int = 0

    @property
    def bytes(self) -> int:
        return sum(len(u) for u in self.uris.values())


def around_cell(
    patch: np.ndarray,
    bbox_px: tuple[float, float, float, float],
    field_px: tuple[int, int] | None,
    scale: float,
) -> np.ndarray:
    """The middle (S, S, 3) of a patch around a cell, as wide as the cell with a rim, whole patch at most.

    `bbox_px` is the cell's box in its field, `scale` patch pixels a field pixel.  A patch is mirrored at the
    edge of its field, of (width, height) `field_px`; a person is shown `BEYOND` there, for half a nucleus and
    its mirror image look like a cell that is not there.
    """
    x0, y0, x1, y1 = bbox_px
    whole = patch.shape[0]
    side = int(np.clip(max(x1 - x0, y1 - y0) * scale * 1.35, 64, whole))
    low = (whole - side) // 2
    picture = patch[low : low + side, low : low + side]
    if field_px is None:
        return picture
    offset = (np.arange(low, low + side) + 0.5 - whole / 2) / scale
    across, down = (x0 + x1) / 2 + offset, (y0 + y1) / 2 + offset
    beyond_x, beyond_y = (across < 0) | (across > field_px[0]), (down < 0) | (down > field_px[1])
    if beyond_x.any() or beyond_y.any():
        picture = picture.copy()
        picture[:, beyond_x] = BEYOND
        picture[beyond_y] = BEYOND
    return picture


def encode_jpeg(rgb: np.ndarray, quality: int = 80) -> bytes:
    """JPEG of a picture (H, W, 3) or (H, W) uint8, RGB.

    WebP would be a third smaller but takes seven times as long, and a report waits for hundreds.
    """
    import cv2

    if rgb.dtype != np.uint8 or rgb.ndim not in (2, 3) or 0 in rgb.shape:
        raise ValueError(f"a picture is (H, W, 3) or (H, W) uint8, not {rgb.shape} {rgb.dtype}")
    bgr = rgb if rgb.ndim == 2 else np.ascontiguousarray(rgb[..., ::-1])
    ok, data = cv2.imencode(
        ".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(quality), cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    )
    if not ok:
        raise ValueError(f"a picture of {rgb.shape} could not be encoded as JPEG")
    return bytes(data)


def data_uri(jpeg: bytes) -> str:
    """A data URI of a JPEG."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def reduced(image: np.ndarray, longest_px: int) -> np.ndarray:
    """The picture with its longer side at most `longest_px`; never enlarged."""
    import cv2

    scale = longest_px / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def encode_within(
    pictures: Mapping[str, np.ndarray],
    order: Sequence[str],
    budget_bytes: int,
    ladder: Sequence[tuple[int, int]],
) -> Encoded:
    """Encode pictures at the best rung of a ladder that keeps their data URIs within a budget.

    At the last rung pictures are left out from the end of `order` until the rest fits.
    """
    keys = [k for k in order if k in pictures]
    if not keys:
        return Encoded()
    sample = keys[:: max(1, len(keys) // 24)]
    for rung, (size, quality) in enumerate(ladder):
        last = rung == len(ladder) - 1
        guess = sum(_uri_bytes(pictures[k], size, quality) for k in sample) / len(sample) * len(keys)
        if guess > 1.1 * budget_bytes and not last:
            continue
        uris = {k: data_uri(encode_jpeg(reduced(pictures[k], size), quality)) for k in keys}
        if sum(map(len, uris.values())) <= budget_bytes:
            return Encoded(uris, (), size, quality)
        if last:
            return _dropped(uris, keys, budget_bytes, size, quality)
    raise AssertionError("a ladder has rungs")


def _uri_bytes(image: np.ndarray, size: int, quality: int) -> float:
    return len(encode_jpeg(reduced(image, size), quality)) * BASE64 + 24


def _dropped(uris: dict[str, str], keys: list[str], budget_bytes: int, size: int, quality: int) -> Encoded:
    kept: dict[str, str] = {}
    used = 0
    for key in keys:
        if used + len(uris[key]) > budget_bytes:
            break
        kept[key] = uris[key]
        used += len(uris[key])
    return Encoded(kept, tuple(k for k in keys if k not in kept), size, quality)
