"""Errors of a virtual stain against the real one, as they are and in one light.

Much of the raw error is the lamp and the strength of the stain: the colour of the glass and the depth of the
dye differ between images of one source, and nothing in DIC tells them.  Two more errors stand beside the raw
one, never in its place, and one that is relative:

* `*_balanced`: after the real image was brought to the light of the virtual one, each channel scaled so
  that the brightest two per cent agree;
* `*_matched`: after each channel of the virtual image was scaled and shifted to fit the real one best, by
  least squares - what is left is shape, structure and the relation of colours within the image.  An image
  without contrast is left with the whole contrast of the real one as its error, and so is one whose
  contrast is turned round: a gain below 0 is not allowed;
* `structure_error`: `rmse_matched` as a share of the real image's own contrast, so that the depth of the dye,
  in which `rmse_matched` is measured, is out of it too: 0 is all of the structure shown, 1 none of it (a
  flat image, or one turned round).  It is sqrt(1 - r^2) of the two images where one dye colours them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stainers.losses import ssim
from storage.smear_colour import brightest

Array = np.ndarray[Any, Any]

MIN_CONTRAST = 0.05  # of RGB in [0, 1]; empty glass has no structure to be a share of


def white_of(image: Array) -> Array:
    """The brightest colour (3,) float of an image (H, W, 3) uint8, never 0."""
    return np.maximum(brightest(image), 1.0)


def in_the_light_of(real: Array, stained: Array) -> Array:
    """`real` (H, W, 3) uint8 with each channel scaled to the white of `stained`."""
    gain = white_of(stained) / white_of(real)
    return np.clip(real.astype(np.float32) * gain.astype(np.float32) + 0.5, 0, 255).astype(np.uint8)


def matched(stained: Array, real: Array) -> Array:
    """`stained` (H, W, 3) uint8 with the gain, not below 0, and the offset of each channel that bring it
    nearest to `real`: (H, W, 3) float32, not limited.  A channel without contrast is shifted alone."""
    to, given = (v.reshape(-1, 3).astype(np.float64) for v in (real, stained))
    centred = given - given.mean(axis=0)
    spread = (centred**2).mean(axis=0)
    fitted = (centred * (to - to.mean(axis=0))).mean(axis=0) / np.maximum(spread, 1e-6)
    gain = np.where(spread > 1e-6, np.maximum(fitted, 0.0), 1.0)
    return (centred * gain + to.mean(axis=0)).reshape(stained.shape).astype(np.float32)


def _compare(a: Array, b: Array) -> tuple[float, float]:
    x, y = (torch.from_numpy(np.ascontiguousarray(v)).permute(2, 0, 1)[None].float() / 255 for v in (a, b))
    smallest = min(a.shape[:2])
    return float(((x - y) ** 2).mean()), float(ssim(x, y)) if smallest >= 11 else float("nan")


def image_errors(stained: Array, real: Array) -> dict[str, float]:
    """MSE, RMSE and SSIM (mean over the three channels) of (H, W, 3) uint8 images, taken to [0, 1]; raw,
    `_balanced` and, but for the SSIM, `_matched`; and `structure_error`."""
    mse, similarity = _compare(stained, real)
    balanced, similarity_balanced = _compare(stained, in_the_light_of(real, stained))
    shape_alone = float((((matched(stained, real) - real) / 255.0) ** 2).mean())
    contrast = float((real.reshape(-1, 3) / 255.0).var(axis=0).mean()) ** 0.5
    return {
        "mse": mse,
        "rmse": mse**0.5,
        "ssim": similarity,
        "mse_balanced": balanced,
        "rmse_balanced": balanced**0.5,
        "ssim_balanced": similarity_balanced,
        "mse_matched": shape_alone,
        "rmse_matched": shape_alone**0.5,
        "structure_error": shape_alone**0.5 / max(contrast, MIN_CONTRAST),
    }
