"""The picture that a person judges an alignment by: checkerboard, edges, residual arrows."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.types import Registration

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH_PX = 1000
ARROW_GAIN = 40.0  # a residual of one pixel is drawn 40 picture pixels long


def draw(dic: Array, brightfield: Array, registration: Registration) -> Array:
    """A (H, W, 3) uint8 picture of at most 1000 px width: checkerboard above, edges and arrows below.

    A failed registration is drawn as the two images side by side, under its reason.
    """
    import cv2

    scale = min(1.0, WIDTH_PX / brightfield.shape[1])
    bf = _display(brightfield)
    df = _display(dic)
    if registration.matrix is None:
        half = WIDTH_PX // 2
        pair = [cv2.resize(im, (half, max(1, round(im.shape[0] * half / im.shape[1])))) for im in (bf, df)]
        tall = max(im.shape[0] for im in pair)
        pair = [cv2.copyMakeBorder(im, 0, tall - im.shape[0], 0, 0, cv2.BORDER_CONSTANT) for im in pair]
        return _captioned(np.hstack(pair), "NOT ALIGNED: " + registration.reason)

    size = (max(1, round(bf.shape[1] * scale)), max(1, round(bf.shape[0] * scale)))
    shrink = np.array([[1 / scale, 0, 0.5 / scale - 0.5], [0, 1 / scale, 0.5 / scale - 0.5], [0, 0, 1]])
    to_dic = np.asarray(registration.matrix) @ shrink
    small_bf = cv2.resize(bf, size, interpolation=cv2.INTER_AREA)
    soft = cv2.blur(df, (2 * int(0.5 / scale) + 1,) * 2)
    small_df = cv2.warpAffine(soft, to_dic, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    cover = cv2.warpAffine(
        np.full(df.shape[:2], 255, np.uint8), to_dic, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    board = _checkerboard(small_bf, small_df)
    edges = _edges(small_bf, small_df, cover > 0)
    _arrows(edges, dic, brightfield, registration, scale)
    said = (
        f"residual {registration.residual_px:.2f} px (p95 {registration.residual_p95_px:.2f}), "
        f"chance of a false match {registration.p_false_accept:.1g}"
        if registration.residual_px is not None
        and registration.residual_p95_px is not None
        and registration.p_false_accept is not None
        else ""
    )
    return np.vstack(
        [
            _captioned(board, "brightfield and DIC in turn"),
            _captioned(edges, f"DIC edges on brightfield; arrows: residual x {ARROW_GAIN:.0f}; {said}"),
        ]
    )


def _display(image: Array) -> Array:
    """(H, W, 3) uint8, stretched to the real range where it is not 8 bits."""
    if image.dtype != np.uint8:
        low, high = np.percentile(image[::4, ::4], [0.5, 99.8])
        image = np.clip((image.astype(np.float32) - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(
            np.uint8
        )
    if image.ndim == 2:
        image = image[..., None]
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else np.ascontiguousarray(image)


def _checkerboard(a: Array, b: Array, square: int = 100) -> Array:
    y, x = np.indices(a.shape[:2]) // square
    return np.where(((x + y) % 2 == 0)[..., None], a, b)


def _edges(bf: Array, df: Array, cover: Array) -> Array:
    """Brightfield, faded, with the strong edges of the DIC in magenta."""
    import cv2

    # DIC is an image of edges already: what leaves the background lies on the outlines.
    grey = cv2.cvtColor(df, cv2.COLOR_RGB2GRAY).astype(np.float32)
    # The background is that of what the DIC covers: the black beside it would pull the background down along
    # the frame, and all of its rim would pass for an edge.
    inside = cv2.erode(cover.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    share = cv2.blur(inside.astype(np.float32), (101, 101))
    background = cv2.blur(np.where(inside, grey, 0), (101, 101)) / np.maximum(share, 1e-6)
    size = np.abs(cv2.GaussianBlur(np.where(inside, grey - background, 0), (0, 0), 0.7))
    limit = np.percentile(size[inside], 92) if inside.any() else np.inf
    out = (128 + bf.astype(np.int16) // 2).astype(np.uint8)
    out[(size > limit) & inside] = (200, 0, 160)
    out[~cover] //= 2
    return out


def _arrows(picture: Array, dic: Array, brightfield: Array, registration: Registration, scale: float) -> None:
    import cv2

    from pipeline.registration import local_residuals

    centres, shifts = local_residuals(dic, brightfield, registration)
    for (x, y), (dx, dy) in zip(centres * scale, shifts * ARROW_GAIN * scale, strict=True):
        tip = (round(float(x + np.clip(dx, -60, 60))), round(float(y + np.clip(dy, -60, 60))))
        cv2.arrowedLine(
            picture, (round(float(x)), round(float(y))), tip, (0, 90, 0), 2, cv2.LINE_AA, tipLength=0.3
        )


def _captioned(picture: Array, text: str) -> Array:
    import cv2

    strip = np.full((26, picture.shape[1], 3), 255, np.uint8)
    size = min(0.5, 0.5 * (picture.shape[1] - 12) / max(1, 9 * len(text)))
    cv2.putText(strip, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, picture])
