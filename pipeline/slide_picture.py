"""The picture of a slide's fields: where they lie, and what the others scored."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.slide_fields import Chosen

Array = np.ndarray[Any, np.dtype[Any]]

LONGEST_PX = 1000
STRIP_PX = 26
WIDE_FRAME_PX = 20  # side of a field from which its frame may be wide


def draw_choice(chosen: Chosen, width_px: int, height_px: int) -> Array:
    """(H, W, 3) uint8 RGB: the slide, the scores as heat over it, the chosen fields framed.

    `width_px` and `height_px` are the slide's at full resolution.  Its overview is reduced from the
    image of the tissue itself; label and macro image are never read.
    """
    import cv2

    scale = min(1.0, LONGEST_PX / max(chosen.overview.shape[:2]))
    size = (
        max(1, round(chosen.overview.shape[1] * scale)),
        max(1, round(chosen.overview.shape[0] * scale)),
    )
    picture = cv2.resize(chosen.overview, size, interpolation=cv2.INTER_AREA)
    across, down = size[0] / width_px, size[1] / height_px

    def corners(x: int, y: int, w: int, h: int) -> tuple[int, int, int, int]:
        x0, y0 = round(x * across), round(y * down)
        return x0, y0, max(x0 + 1, round((x + w) * across)), max(y0 + 1, round((y + h) * down))

    scored = [c for c in chosen.candidates if c.score is not None]
    # Overlaps show the better field.
    heat, shown = np.zeros(picture.shape[:2], np.uint8), np.zeros(picture.shape[:2], bool)
    for c in scored:
        x0, y0, x1, y1 = corners(c.field.x_px, c.field.y_px, c.field.width_px, c.field.height_px)
        value = round(255 * (c.score or 0.0))
        np.maximum(heat[y0:y1, x0:x1], value, out=heat[y0:y1, x0:x1])
        shown[y0:y1, x0:x1] = True
    colours = cv2.applyColorMap(heat, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    mixed = (0.55 * picture + 0.45 * colours).astype(np.uint8)
    picture = np.where(shown[..., None], mixed, picture)
    for field in chosen.fields:
        x0, y0, x1, y1 = corners(field.x_px, field.y_px, field.width_px, field.height_px)
        # Black beside orange: seen on pale glass and on dark tissue, and by colour-blind readers.
        side = min(x1 - x0, y1 - y0)
        if side >= WIDE_FRAME_PX:
            cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), (0, 0, 0), 5)
            cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), (255, 150, 0), 2)
            continue
        # Neighbours' frames are not to fuse, nor to hide what they frame.
        if side >= 7:
            cv2.rectangle(picture, (x0 + 1, y0 + 1), (x1 - 2, y1 - 2), (0, 0, 0), 1)
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), (255, 150, 0), 1)
    return np.concatenate([picture, _legend(size[0], bool(scored))]) if size[0] >= 240 else picture


def _legend(width: int, heat: bool) -> Array:
    import cv2

    strip = np.full((STRIP_PX, width, 3), 255, np.uint8)

    def write(text: str, x: int) -> int:
        cv2.putText(strip, text, (x, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)
        return x + int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0])

    x = 6
    if heat:
        x = write("score 0", x) + 6
        ramp = np.linspace(0, 255, 80).astype(np.uint8)[None].repeat(12, 0)
        strip[7:19, x : x + 80] = cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS)[..., ::-1]
        x = write("1", x + 86) + 18
    cv2.rectangle(strip, (x, 6), (x + 16, 19), (0, 0, 0), 5)
    cv2.rectangle(strip, (x, 6), (x + 16, 19), (255, 150, 0), 2)
    write("read", x + 24)
    return strip
