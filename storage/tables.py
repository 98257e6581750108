"""Tables: one reader of those that people write or send, and the writer and reader of our own.

A table of people is text in UTF-8, with a mark of the encoding or without, or in UTF-16 with one (Excel's
"Unicode text").  No other encoding is guessed: which letters a byte stands for differs from one country's
spreadsheet to the next, and a name read wrongly is another name.  Commas, semicolons or tabs separate, as the
header has them.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, shown
from storage.whole_files import write_text

MAX_TABLE_BYTES = 64 << 20
_DELIMITERS = (",", ";", "\t")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # line ends and tabs may stand in a cell


class Row(dict[str, str]):
    """The cells of one row by their columns, without the spaces around them."""

    def __init__(self, cells: Mapping[str, str], where: str, line: int, decimal_comma: bool) -> None:
        super().__init__(cells)
        self.where = where  # file and line, for a message
        self.line = line  # the first of the row
        self._decimal_comma = decimal_comma

    def number(self, column: str, what: str = "a number") -> float | None:
        """A finite number of a column, None where it is empty or not there; else BadInput asking for `what`.

        A decimal comma is understood where commas do not separate.
        """
        text = self.get(column, "")
        if not text:
            return None
        try:
            value = float(text.replace(",", ".") if self._decimal_comma else text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            how = " with a decimal point" if "," in text and not self._decimal_comma else ""
            raise BadInput(f"{self.where}: {shown(column)} is '{shown(text)}'; write {what}{how}.")
        return value


class Table(list[Row]):
    """The rows of a table, and the names of its `columns` in order."""

    def __init__(self, columns: Sequence[str] = (), rows: Iterable[Row] = ()) -> None:
        super().__init__(rows)
        self.columns = tuple(columns)


def decoded(path: Path, data: bytes, what: str = "table") -> str:
    """The text of a file that a person wrote (UTF-8, or UTF-16 with its mark); raises BadInput naming it."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = _line_at(data[: error.start].decode(encoding, "replace"))
        name = "UTF-16, as it begins" if encoding == "utf-16" else "UTF-8"
        raise BadInput(
            f"{path}: the {what} is not in {name} (line {line}); save it in UTF-8 (in Excel: 'CSV UTF-8')."
        ) from error


def read_bytes(path: Path, max_bytes: int = MAX_TABLE_BYTES) -> bytes:
    """The bytes of a table; raises BadInput where it cannot be read or has more than `max_bytes`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise BadInput(
            f"{path}: the table cannot be read ({error.strerror or error}); check path and rights."
        ) from error
    if len(data) > max_bytes:
        raise BadInput(f"{path} is larger than {max_bytes >> 20} MiB; it is no such table, or split it.")
    return data


def read_table(
    path: Path,
    columns: Sequence[str],
    filled: Sequence[str] = (),
    *,
    optional: Sequence[str] = (),
    max_bytes: int = MAX_TABLE_BYTES,
    any_bytes: bool = False,
) -> Table:
    """The rows of a file as `parse_table` reads them."""
    data = read_bytes(path, max_bytes)
    return parse_table(path, data, columns, filled, optional=optional, any_bytes=any_bytes)


def parse_table(
    path: Path,
    data: bytes,
    columns: Sequence[str] = (),
    filled: Sequence[str] = (),
    *,
    optional: Sequence[str] = (),
    closed: bool = False,
    max_rows: int | None = None,
    any_bytes: bool = False,
) -> Table:
    """The rows of a table that a person wrote, every named column of its header in each.

    `columns` have to be in the header (without them an empty file is a table without columns), `optional`
    ones may; both are known whatever their case and spaces.  Others are kept under their own names, or
    refused where the table is `closed`.  Columns of `filled` hold something in every row.  Blank lines are
    no rows, and columns without a head are left out.  With `any_bytes` what is no UTF-8 becomes U+FFFD: for
    published tables, of which the columns that are read are ASCII.

    Raises BadInput naming the file, and the line where it is one row that cannot be used.
    """
    text = data.decode("utf-8-sig", "replace") if any_bytes else decoded(path, data)
    if "\0" in text:
        line = _line_at(text[: text.index("\0")])
        raise BadInput(
            f"{path}: line {line} holds a NUL character, as no text does; save it again as 'CSV UTF-8'."
        )
    known = {_plain(name): name for name in (*columns, *optional)}
    delimiter = _delimiter(text, known)
    records = _records(path, text, delimiter)
    _, head = next(records, (1, []))
    names = [known.get(_plain(name), " ".join(name.split())) for name in head]
    while names and not names[-1]:
        names.pop()
    _check_head(path, names, columns, optional, closed)
    named = [name for name in names if name]
    controls = _CONTROL.search(text) is not None
    table = Table(named)
    for line, cells in records:
        if len(table) == max_rows:
            raise BadInput(f"{path} has more than {max_rows:,} rows; split it.")
        beyond = any(c.strip() for c in cells[len(head) :])
        if beyond or len(cells) < len(names):
            raise BadInput(
                f"{path}: line {line} has {'more' if beyond else 'fewer'} cells than the header; mend "
                f"line {line}: it has {len(cells)} cells, the header {len(names)} ({_listed(names)})."
            )
        row = Row({}, f"{path}, line {line}", line, delimiter != ",")
        for name, cell in zip(names, cells, strict=False):
            if controls and _CONTROL.search(cell):
                raise BadInput(
                    f"{row.where}: '{shown(cell)}' is no {shown(name) or 'cell'} name or value, it holds a "
                    "control character; type it again."
                )
            if name:
                row[name] = cell.strip()
        if closed and any(c.strip() and not n.strip() for n, c in zip(head, cells, strict=False)):
            raise BadInput(f"{path}: line {line} has a cell in a column without a name; empty or name it.")
        if blank := [name for name in filled if not row[name]]:
            raise BadInput(f"{path}: line {line} says no {blank[0]}; fill it or take the line out.")
        table.append(row)
    return table


def _line_at(before: str) -> int:
    """The line on which a text goes on after what comes before, whatever ends its lines."""
    return 1 + max(before.count("\n"), before.count("\r"))


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


def _listed(names: Sequence[str]) -> str:
    return shown(", ".join(names), 200)


def _delimiter(text: str, known: Mapping[str, str]) -> str:
    """What splits the header into the most known columns; of several the first that splits it at all."""

    def fit(delimiter: str) -> tuple[int, bool]:
        try:
            _, head = next(_rows(text, delimiter), (1, []))
        except csv.Error:
            return -1, False
        return sum(_plain(name) in known for name in head), len(head) > 1

    return max(_DELIMITERS, key=fit)


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """First line and cells of each row that is not blank; raises csv.Error of a line and what is wrong."""
    # A cell may hold line ends, and the lines of any system end the row.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(c.strip() for c in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(line, str(error)) from error


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """As `_rows`; raises BadInput naming the row that is no CSV."""
    try:
        yield from _rows(text, delimiter)
    except csv.Error as error:
        line, what = error.args
        raise BadInput(
            f"{path}: line {line} is no valid CSV ({shown(what)}); close its quotes, or save it again."
        ) from error


def _check_head(
    path: Path, names: Sequence[str], columns: Sequence[str], optional: Sequence[str], closed: bool
) -> None:
    """Raise BadInput for a header that is empty, lacks a column, or has one twice or an unknown one."""
    need = f"{', '.join(columns[:-1])} and {columns[-1]}" if len(columns) > 1 else "".join(columns)
    if not names and columns:
        raise BadInput(f"{path} is empty; its first line names the columns {need}.")
    strange = next((name for name in names if _CONTROL.search(name)), None)
    if strange is not None:
        raise BadInput(f"{path}: the column '{shown(strange)}' holds a control character; type it again.")
    allowed = (*columns, *optional)
    unknown = next((name for name in names if closed and name and name not in allowed), None)
    if unknown is not None:
        left_out = f" ({', '.join(optional)} may be left out)" if columns and optional else ""
        raise BadInput(
            f"{path} has the unknown column '{shown(unknown)}'; its first line names the columns "
            f"{', '.join(allowed)}{left_out}."
        )
    missing = next((name for name in columns if name not in names), None)
    if missing is not None:
        raise BadInput(
            f"{path} lacks the column '{missing}'; columns {need} are needed, and it has {_listed(names)}."
        )
    plain = [_plain(name) for name in names if name]
    twice = next((name for name in names if plain.count(_plain(name)) > 1), None)
    if twice is not None:
        raise BadInput(f"{path} names the column '{shown(twice)}' twice; give each column a name of its own.")


class _Lines(list[str]):
    """Rows as a csv writer hands them over, each ended by a line feed.

    The writer quotes a carriage return only where it ends its own rows by one.
    """

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> str:
    lines = _Lines()
    writer = csv.DictWriter(lines, columns, restval="", lineterminator="\r\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return "".join(lines)


def neutralised(value: Any) -> Any:
    """A cell as a spreadsheet may open it: text that it would run as a formula gets an apostrophe before it.

    So does such text that begins with apostrophes, so that `as_meant` gives every text back.  Numbers stay.
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def as_meant(text: str) -> str:
    """The text that `neutralised` was given."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    bare = text.lstrip("'")
    return bare.lstrip().startswith(("=", "+", "-", "@")) or bare.startswith(("\t", "\r", "\n"))


def sheet_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under a header as CSV that leaves the laboratory: every cell, the header's too, `neutralised`.

    A cell that a row lacks, or that is None, is empty; true and false are yes and no.
    """
    told = {True: "yes", False: "no"}
    heads = {name: neutralised(name) for name in columns}
    safe = (
        {
            head: told[value] if isinstance(value := row.get(name), bool) else neutralised(value)
            for name, head in heads.items()
        }
        for row in rows
    )
    return _csv(list(heads.values()), safe, header=True)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows under a header, whole or not at all; a cell that a row lacks is empty.

    Raises BadInput naming the file where it cannot be written.
    """
    write_text(path, _csv(columns, rows, header=True))


def read_own(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table that this program wrote; nothing of it is checked."""
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        return list(reader.fieldnames or ()), list(reader)


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a table of our own; a column appears with the first row that has it, and is empty in those
    before."""
    if not rows:
        return
    columns = list(dict.fromkeys(k for row in rows for k in row))
    earlier: list[dict[str, str]] = []
    known = False
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            names = list(reader.fieldnames or ())
            columns = list(dict.fromkeys([*names, *columns]))
            known = names == columns
            earlier = [] if known else list(reader)
    if known:
        with path.open("a", newline="", encoding="utf-8") as stream:
            stream.write(_csv(columns, rows, header=False))
        return
    write_table(path, columns, [*earlier, *rows])  # a run that is killed here keeps its rows
