"""Fields of a whole slide named by a person: a CSV of positions."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import BadInput, shown
from pipeline.settings import FieldPosition
from storage.tables import parse_table, read_bytes

POSITIONS_FILE = "slide_fields.csv"  # in a case folder
COLUMNS = ("slide", "x_um", "y_um", "x_px", "y_px")
MAX_POSITIONS, MAX_POSITIONS_BYTES = 10_000, 16 << 20
WHAT = "a number from 0, the upper left corner of the field counted from that of the slide"


def parse_positions(path: Path, data: bytes) -> tuple[FieldPosition, ...]:
    """The positions of a CSV with the columns x_um,y_um or x_px,y_px and, for several slides, slide.

    Raises BadInput naming the file, the line and what is wrong.
    """
    rows = parse_table(path, data, optional=COLUMNS, closed=True)
    unit = "um" if "x_um" in rows.columns else "px"
    x, y = f"x_{unit}", f"y_{unit}"
    if not {x, y} <= set(rows.columns) <= {x, y, "slide"}:
        raise BadInput(
            f"{path}: its first line names the columns x_um,y_um or x_px,y_px, and slide where the case has "
            f"several; it has '{shown(','.join(rows.columns)) or 'none'}'."
        )
    if not 1 <= len(rows) <= MAX_POSITIONS:
        raise BadInput(f"{path} names {len(rows)} fields; give 1 to {MAX_POSITIONS:,}, one a line.")
    found = []
    for row in rows:
        place = {column: row.number(column, WHAT) for column in (x, y)}
        for column, value in place.items():
            if value is None or not 0 <= value <= 1e9:
                raise BadInput(f"{row.where}: {column} is '{shown(row[column])}'; write {WHAT}.")
        found.append(FieldPosition(slide=row.get("slide") or None, **place))
    return tuple(dict.fromkeys(found))


def read_positions(path: Path) -> tuple[FieldPosition, ...]:
    """The positions of a CSV file; BadInput where it cannot be read."""
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file of field positions; check the path.")
    return parse_positions(path, read_bytes(path, MAX_POSITIONS_BYTES))
