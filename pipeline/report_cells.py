"""The table of cells: `cells.parquet`, one row a cell, and a CSV that a spreadsheet can open safely.

Columns, in this order:

| column | unit | meaning |
|---|---|---|
| cell_id, slide, field, modality, stain | - | which cell, and the image it is seen best in |
| x0_px, y0_px, x1_px, y1_px | px | its box in that image, x to the right, y down |
| x_um, y_um | µm | centre on the slide; null without a stage position |
| score | 0-1 | the detector's |
| at_border, n_fields_seen | - | cut by the imaged area's edge; fields that show it |
| label, display | - | canonical class and its name; null where it was not classified |
| label_reviewed | - | the reviewer's class; null where not reviewed |
| confidence, ood | 0-1 | of the label; share of validation cells that look more familiar |
| virtual, stain_confidence | -, 0-1 | read from a virtual stain, and the stainer's confidence |
| rs_type | - | iron type 0-3 or indeterminate, on Perls |
| area_um2, nucleus_area_um2, cytoplasm_area_um2 | µm² | of the cell; null where no leukocyte was segmented |
| nc_ratio | 0-1 | nucleus area / whole-cell area |
| lobes | - | of the nucleus |
| eccentricity, nucleus_eccentricity | 0-1 | of the ellipse of equal second moments; 0 a circle |
| nucleus_solidity | 0-1 | nucleus area / area of its convex hull |
| perimeter_um | µm | of the cell |
| od_nucleus_<channel>, od_cytoplasm_<channel> | OD | mean optical density (log10) in red, green, blue |
| cut_by_patch | - | the patch's edge cuts the cell: areas are lower limits |
| p_<class> | 0-1 | probability of each class that the classifier knows |
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from classifiers import taxonomy
from pipeline.types import Cell, CellClass
from storage.tables import sheet_text

if TYPE_CHECKING:
    import pandas as pd


def cells_table(
    cells: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    known_classes: Iterable[str] | None = None,
    reviewed: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """One row a cell, ordered by cell id; columns as in this module's docstring."""
    import pandas as pd

    by_id = {c.cell_id: c for c in classes}
    stated = set(known_classes or ()) | {k for c in classes for k in c.probabilities}
    known = taxonomy.report_order(stated)
    rows = []
    for cell in sorted(cells, key=lambda c: c.cell_id):
        found = by_id.get(cell.cell_id)
        x0, y0, x1, y1 = cell.bbox_px
        row: dict[str, object] = {
            "cell_id": cell.cell_id,
            "slide": cell.slide,
            "field": cell.field,
            "modality": cell.modality,
            "stain": cell.stain,
            "x0_px": x0,
            "y0_px": y0,
            "x1_px": x1,
            "y1_px": y1,
            "x_um": cell.x_um,
            "y_um": cell.y_um,
            "score": cell.score,
            "at_border": cell.at_border,
            "n_fields_seen": cell.n_fields_seen,
            "label": found.label if found else None,
            "display": taxonomy.display_name(found.label) if found else None,
            "label_reviewed": (reviewed or {}).get(cell.cell_id),
            "confidence": found.confidence if found else None,
            "ood": found.ood if found else None,
            "virtual": found.virtual if found else None,
            "stain_confidence": found.stain_confidence if found else None,
            "rs_type": found.rs_type if found else None,
        }
        row.update({k: getattr(found, k) if found else None for k in _MEASURES})
        for part in _PARTS:
            density = getattr(found, f"od_{part}") if found else None
            for i, channel in enumerate(_CHANNELS):
                row[f"od_{part}_{channel}"] = density[i] if density else None
        row.update({f"p_{k}": found.probabilities.get(k) if found else None for k in known})
        rows.append(row)
    columns = {name: _dtype(name) for name in (*_COLUMNS, *(f"p_{k}" for k in known))}
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


_TEXT = (
    "cell_id",
    "slide",
    "field",
    "modality",
    "stain",
    "label",
    "display",
    "label_reviewed",
    "rs_type",
)
_MEASURES = (
    *("area_um2", "nucleus_area_um2", "cytoplasm_area_um2", "nc_ratio", "lobes", "eccentricity"),
    *("nucleus_eccentricity", "nucleus_solidity", "perimeter_um", "cut_by_patch"),
)
_PARTS, _CHANNELS = ("nucleus", "cytoplasm"), ("red", "green", "blue")
_COLUMNS = (
    *("cell_id", "slide", "field", "modality", "stain", "x0_px", "y0_px", "x1_px", "y1_px", "x_um", "y_um"),
    *("score", "at_border", "n_fields_seen", "label", "display", "label_reviewed", "confidence", "ood"),
    *("virtual", "stain_confidence", "rs_type"),
    *_MEASURES,
    *(f"od_{part}_{channel}" for part in _PARTS for channel in _CHANNELS),
)


def _dtype(name: str) -> str:
    """Stated, not inferred: a column that is empty in one case has the type it has in every other."""
    if name in _TEXT:
        return "string"
    if name in ("at_border", "virtual", "cut_by_patch"):
        return "boolean"
    return "Int64" if name in ("n_fields_seen", "lobes") else "Float64"


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """The table as Parquet (zstd)."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", compression="zstd", index=False)
    return buffer.getvalue()


def csv_text(table: pd.DataFrame) -> str:
    """The table as CSV with text cells neutralised; what is not known is empty, true and false yes and no."""
    known = table.astype(object).where(table.notna(), None)
    return sheet_text(list(table.columns), known.to_dict("records"))
