"""Tables that people write: rows of a CSV file by the names of its columns."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import BadInput


def read_table(path: Path, columns: Sequence[str], filled: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file in UTF-8, every column of its header in each.

    `columns` have to be in the header; those of `filled` hold something in every row.  Blank lines are no
    rows.  Raises BadInput naming the file, and the line where it is one row that cannot be used.
    """
    need = f"{', '.join(columns[:-1])} and {columns[-1]}" if len(columns) > 1 else "".join(columns)
    rows: list[dict[str, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            header = list(reader.fieldnames or ())
            if not set(columns) <= set(header):
                raise BadInput(
                    f"{path}: columns {need} are needed; it has {', '.join(header) or 'no header'}."
                )
            for row in reader:
                beyond = [v for v in row.pop(None, ()) if v]  # type: ignore[call-overload]
                if beyond or None in row.values():
                    raise BadInput(
                        f"{path}: line {reader.line_num} has {'more' if beyond else 'fewer'} cells than the "
                        f"header ({', '.join(header)}); correct the line."
                    )
                blank = [name for name in filled if not row[name].strip()]
                if blank:
                    raise BadInput(
                        f"{path}: line {reader.line_num} says no {blank[0]}; fill it or take the line out."
                    )
                rows.append(row)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: the table is not in UTF-8; save it so (in Excel: CSV UTF-8).") from error
    except csv.Error as error:
        raise BadInput(f"{path}: not a CSV ({error}); give columns {need}.") from error
    except OSError as error:
        raise BadInput(f"{path}: the table cannot be read ({error.strerror or error}).") from error
    return rows
