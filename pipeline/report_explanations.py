"""Why cells in doubt were named as they were: pictures for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers import taxonomy
from pipeline.report_images import encode_within
from pipeline.types import ExplainedCell

# Width and quality of a pair of pictures, best first.
LADDER = ((324, 76), (260, 70), (200, 60))

METHOD_NAMES = {
    "grad-cam": "Grad-CAM",
    "integrated-gradients": "integrated gradients",
    "occlusion": "occlusion",
}


@dataclass(frozen=True)
class ExplainedPicture:
    """An explained cell and its picture (h, w, 3) uint8: the view that was read, and its heat."""

    cell: ExplainedCell
    image: np.ndarray


def explanation_views(pictures: Sequence[ExplainedPicture], budget_bytes: int) -> tuple[dict[str, Any], int]:
    """What the page shows of explained cells, and the bytes of it; the least doubtful are left out first."""
    keyed = {f"e{i}": p.image for i, p in enumerate(pictures)}
    images = encode_within(keyed, list(keyed), budget_bytes, LADDER)
    shown = [
        {
            "cell": p.cell,
            "display": taxonomy.display_name(p.cell.label),
            "uri": images.uris[f"e{i}"],
        }
        for i, p in enumerate(pictures)
        if f"e{i}" in images.uris
    ]
    methods = sorted({METHOD_NAMES.get(p.cell.method, p.cell.method) for p in pictures})
    return {"cells": shown, "left_out": len(images.left_out), "methods": methods}, images.bytes
