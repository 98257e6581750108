"""Fields of a whole slide named by a person: a CSV of positions."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from pipeline.errors import BadInput
from pipeline.intake_files import decode_text, shown
from pipeline.settings import FieldPosition

POSITIONS_FILE = "slide_fields.csv"  # in a case folder
COLUMNS = ("slide", "x_um", "y_um", "x_px", "y_px")
MAX_POSITIONS = 10_000


def parse_positions(path: Path, data: bytes) -> tuple[FieldPosition, ...]:
    """The positions of a CSV with the columns x_um,y_um or x_px,y_px and, for several slides, slide.

    Raises BadInput naming the file, the line and what is wrong.
    """
    text = decode_text(path, data)
    first = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = next((d for d in (",", ";", "\t") if d in first), ",")
    try:
        rows = [
            (i, [c.strip() for c in r])
            for i, r in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), 1)
        ]
    except csv.Error as error:
        raise BadInput(f"{path} is no valid CSV ({error}); save it again as 'CSV UTF-8'.") from error
    rows = [(line, cells) for line, cells in rows if any(cells)]
    header = [c.lower() for c in rows[0][1]] if rows else []
    unit = "um" if "x_um" in header else "px"
    needed = {f"x_{unit}", f"y_{unit}"}
    if not needed <= set(header) or set(header) - needed - {"slide"} or len(set(header)) != len(header):
        raise BadInput(
            f"{path}: its first line names the columns x_um,y_um or x_px,y_px, and slide where the case has "
            f"several; it has '{shown(','.join(header)) or 'none'}'."
        )
    if not 1 < len(rows) <= MAX_POSITIONS + 1:
        raise BadInput(f"{path} names {len(rows) - 1} fields; give 1 to {MAX_POSITIONS:,}, one a line.")
    found = []
    for line, cells in rows[1:]:
        row = dict(zip(header, cells, strict=False))
        values = []
        for column in (f"x_{unit}", f"y_{unit}"):
            value = row.get(column, "")
            try:
                number = float(value.replace(",", ".") if delimiter != "," else value)
            except ValueError:
                number = math.nan
            if len(cells) != len(header) or not (math.isfinite(number) and 0 <= number <= 1e9):
                raise BadInput(
                    f"{path}, line {line}: {column} is '{shown(value)}'; write a number from 0, the upper "
                    "left corner of the field counted from that of the slide."
                )
            values.append(number)
        found.append(
            FieldPosition(slide=row.get("slide") or None, **{f"x_{unit}": values[0], f"y_{unit}": values[1]})
        )
    return tuple(dict.fromkeys(found))


def read_positions(path: Path) -> tuple[FieldPosition, ...]:
    """The positions of a CSV file; BadInput where it cannot be read."""
    try:
        if not path.is_file():
            raise BadInput(f"{path}: there is no such file of field positions; check the path.")
        return parse_positions(path, path.read_bytes()[: 16 << 20])
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); check who may read it.") from error
