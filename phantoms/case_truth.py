"""What is true of a phantom case: where each cell lies, what it is, and in which fields it is seen."""

from __future__ import annotations

from typing import Any

from phantoms.blood import TrueCell
from phantoms.fields import FieldLayers, FieldView

WHOLE = 0.5  # a cell counts as seen in a field when at least this share of it is


def field_truth(
    layers: FieldLayers, view: FieldView, pixel_size_um: float, where: dict[int, list[str]]
) -> dict[str, Any]:
    """Boxes and classes of a field's leukocytes, and of those that its edge cuts by more than half.

    `where` is told of every cell that is seen: its number, and the field's name.
    """
    x_um, y_um = view.stage_um(pixel_size_um)
    whole = [s for s in layers.seen if s[2] >= WHOLE]
    for cell, *_ in whole:
        where.setdefault(cell.number, []).append(view.name)
    return {
        "x_um": round(x_um, 4),
        "y_um": round(y_um, 4),
        "leukocytes_xyxy": [list(map(float, s[1])) for s in whole],
        "classes": [s[0].kind for s in whole],
        "cell_ids": [s[0].number for s in whole],
        "visible": [round(s[2], 3) for s in whole],
        "cut_xyxy": [list(map(float, s[1])) for s in layers.seen if s[2] < WHOLE],
    }


def cell_truth(cell: TrueCell, seen_in: list[str]) -> dict[str, Any]:
    """One true cell of the case, in µm."""
    out: dict[str, Any] = {
        "id": cell.number,
        "class": cell.kind,
        "x_um": round(cell.x_um, 3),
        "y_um": round(cell.y_um, 3),
        "diameter_um": round(cell.diameter_um, 2),
        "seen_in": seen_in,
    }
    if cell.stage is not None:
        out["stage"] = cell.stage
    if cell.rs_type is not None:
        out["rs_type"] = cell.rs_type
    return out


def class_counts(cells: list[dict[str, Any]]) -> dict[str, int]:
    """How many of the cells (`cell_truth`) are of each class."""
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell["class"]] = counts.get(cell["class"], 0) + 1
    return dict(sorted(counts.items()))
