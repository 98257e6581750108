"""Tables: rows of a CSV file by the names of its columns, as people write them and as we do."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput
from storage.whole_files import write_text


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


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows under a header, whole or not at all; a cell that a row lacks is empty.

    Raises BadInput naming the file where it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
