"""Whole slides in the report: the picture of which fields were read, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report_images import FIELD_LADDER, encode_within
from pipeline.types import SlideChoice


@dataclass(frozen=True)
class SlidePicture:
    """The picture of a slide's chosen fields, (H, W, 3) uint8, and how they were chosen."""

    choice: SlideChoice
    image: np.ndarray


def caption(choice: SlideChoice) -> str:
    """How the fields came to be chosen, in a sentence or two."""
    n = f"{choice.n_chosen} field{'s' if choice.n_chosen != 1 else ''}"
    if choice.how == "by hand":
        return f"{n} named by a person."
    of = f"{n} of {choice.n_candidates} with stained material"
    if choice.how == "stained area":
        return f"{of}: those with most of it."
    scores = (
        "" if choice.lowest_score is None else f" ({choice.lowest_score:.2f} to {choice.best_score or 0:.2f})"
    )
    looked = "" if choice.n_scored == choice.n_candidates else f" {choice.n_scored} of them were looked at."
    return (
        f"{of}: those with the best monolayer score{scores}, which asks for red cells in one layer, apart, "
        f"with central pallor, clean and in focus.{looked}"
    )


def slide_views(slides: Sequence[SlidePicture], budget_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """What the page shows of each slide, and the bytes that its pictures take."""
    encoded = encode_within(
        {f"s{i}": p.image for i, p in enumerate(slides)},
        [f"s{i}" for i in range(len(slides))],
        budget_bytes,
        FIELD_LADDER,
    )
    views = [
        {
            "slide": p.choice.slide,
            "uri": encoded.uris.get(f"s{i}"),
            "caption": caption(p.choice),
            "n": p.choice.n_chosen,
        }
        for i, p in enumerate(slides)
    ]
    return views, encoded.bytes
