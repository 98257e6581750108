"""Tables of any spreadsheet and hand: every reader takes them one way, or refuses them in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from classifiers.set_layouts import read_mll_patients
from classifiers.sources import read_samples
from detectors.segment_data import _rows as segment_rows
from pipeline.errors import BadInput
from pipeline.intake_manifest import read_manifest
from pipeline.review import read_corrections
from pipeline.slide_positions import read_positions
from pipeline.vtt import read_candidates
from pipeline.vtt_answers import read_answers
from pipeline.vtt_score import read_distances
from stainers.cell_sets import _listed as listed_cells
from storage.tables import parse_table, read_table, write_table
from tests.case_folders import is_one_sentence

FILE = Path("t.csv")

# What reads a table, the table's name, its header, and a row of it.
READERS: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "manifest": (
        lambda p: read_manifest(p.parent),
        "manifest.csv",
        "slide,field,modality,stain,file",
        "s1,F1,dic,MGG,a.tif",
    ),
    "positions": (read_positions, "f.csv", "slide,x_um,y_um", "s1,10.5,20"),
    "review": (read_corrections, "c.csv", "cell_id,class", "s1/F1/0001,blast"),
    "vtt": (read_candidates, "l.csv", "file,origin,label", "l.csv,real,positive"),
    "answers": (read_answers, "a.csv", "test_id,expert,id,origin,label", "T,A,x,real,positive"),
    "distances": (read_distances, "d.csv", "configuration,FID", "1,70.5"),
    "classifier": (lambda p: read_samples(p.parent), "labels.csv", "image,class,x", "a.png,blast,10.5"),
    "stainer": (lambda p: listed_cells(p.parent, "s"), "labels.csv", "image,source,class", "a.png,s,blast"),
    "segmenter": (lambda p: segment_rows(p.parent), "labels.csv", "image,mask,class", "a.png,b.png,blast"),
}


def outcome(name: str, folder: Path, data: bytes) -> object:
    """What a reader makes of the bytes of its table, or the one sentence by which it refuses them."""
    read, file, *_ = READERS[name]
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(data)
    try:
        return repr(read(folder / file))
    except BadInput as caught:
        error = caught
    is_one_sentence(str(error))
    assert file in str(error)
    return error


@pytest.mark.parametrize("name", READERS)
def test_every_reader_takes_what_any_spreadsheet_saves(name: str, tmp_path: Path) -> None:
    _, _, header, row = READERS[name]
    plain = f"{header}\n{row}\n"
    read = outcome(name, tmp_path, plain.encode())
    assert isinstance(read, str), read
    semicolons = plain.replace(",", ";").replace("10.5", "10,5").replace("70.5", "70,5")
    for text in (
        plain.replace("\n", "\r\n"),
        plain.replace("\n", "\r"),
        plain.rstrip("\n"),
        plain.replace("\n", ",,\n"),
        plain.replace(header, ",".join(f" {c.capitalize()} " for c in header.split(","))),
        plain.replace(header, ",".join(f'"{c}"' for c in header.split(","))),
        semicolons,
        semicolons.replace(";", "\t"),
    ):
        assert outcome(name, tmp_path, text.encode()) in (read, read.replace("FID", "Fid")), text
    blank = outcome(name, tmp_path, plain.replace("\n", "\n,,\n").encode())
    assert isinstance(blank, str)
    assert outcome(name, tmp_path, plain.encode("utf-8-sig")) == read
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
        assert outcome(name, tmp_path, mark + semicolons.replace(";", "\t").encode(encoding)) == read


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda h, r: f"{h}\n{r}\n{r},x,y,z,u\n".encode(), "line 3 has more cells than the header"),
        (lambda h, r: f"{h}\n{r}\n\n{r.rsplit(',', 1)[0]}\n".encode(), "line 4 has fewer cells"),
        (lambda h, r: f"{h}\n{r}\n{r[:-1]}\xe4\n".encode("cp1252"), "not in UTF-8 (line 3)"),
        (lambda h, r: f"{h}\n{r}\n".encode("utf-16-le"), "NUL"),
        (lambda h, r: f"{h}\n{r}\n{r}\x07\n".encode(), "control character"),
        (lambda h, r: f'{h}\n{r}\n{r}"\n"'.encode(), "line 4 is no valid CSV"),
        (lambda h, r: f'{h}\n{r}\n"{"x" * 140_000}"{r}\n'.encode(), "line 3 is no valid CSV (field larger"),
        (lambda h, r: f"{h},{h.split(',')[0].upper()}\n{r},x\n".encode(), "twice"),
        (lambda h, r: f"{h.split(',', 1)[1]}\n{r.split(',', 1)[1]}\n".encode(), None),
        (lambda h, r: b"", None),
        (lambda h, r: b"\xef\xbb\xbf\r\n \r\n", None),
        (lambda h, r: b"\x89PNG\r\n\x1a\n", "not in UTF-8"),
    ],
    ids=[
        "more",
        "fewer",
        "cp1252",
        "no mark",
        "bell",
        "quote",
        "oversize",
        "twice",
        "lacks",
        "empty",
        "blank",
        "png",
    ],
)
def test_every_reader_refuses_what_it_would_have_to_guess(
    name: str, spoil: Callable[[str, str], bytes], said: str | None, tmp_path: Path
) -> None:
    error = outcome(name, tmp_path, spoil(*READERS[name][2:]))
    if name == "positions" and said is None and isinstance(error, str):
        return  # `slide` may be left out there
    assert isinstance(error, BadInput), error
    first = READERS[name][2].split(",")[0]
    assert (said or first) in str(error) or (name == "positions" and "its first line names" in str(error))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=60), where=st.integers(0, 60), alone=st.booleans())
def test_any_bytes_give_a_reader_its_rows_or_one_sentence(
    name: str, junk: bytes, where: int, alone: bool, tmp_path: Path
) -> None:
    whole = "\n".join(READERS[name][2:]).encode()
    outcome(name, tmp_path, junk if alone else whole[:where] + junk + whole[where:])


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(st.binary(max_size=80), st.text("a,;\t\"'\r\n \x00=é\ufeff", max_size=60).map(str.encode))
)
@example(b"\xff\xfea")
@example(b'a;"b')
def test_any_bytes_are_rows_of_all_columns_or_one_sentence(data: bytes) -> None:
    try:
        table = parse_table(FILE, data, optional=("a", "b"))
    except BadInput as error:
        is_one_sentence(str(error))
        return
    for row in table:
        assert list(row) == list(table.columns)
        assert all(cell == cell.strip() for cell in row.values())


cells = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\r\t,;\"'="), max_size=12
).map(str.strip)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(cells, cells), max_size=6))
@example(rows=[("a\rb", "c\r\nd"), ('"', ",")])
def test_what_is_written_comes_back(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    written = [{"image": a, "class": b} for a, b in rows]
    write_table(tmp_path / "t.csv", ("image", "class"), written)
    found = read_table(tmp_path / "t.csv", ("image", "class"))
    assert found == [row for row in written if any(row.values())]  # blank lines are no rows


def test_a_row_is_named_by_its_first_line_whatever_stands_before_it() -> None:
    table = parse_table(FILE, b'\r\n;;\r\na;b\r\n"x\r\ny";1\r\n\r\nz;2\r\n')
    assert [(row.line, dict(row)) for row in table] == [
        (4, {"a": "x\r\ny", "b": "1"}),
        (7, {"a": "z", "b": "2"}),
    ]


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("x;y\n0,5;\n", 0.5, ""),
        ("x;y\n0.5;\n", 0.5, ""),
        ('x,y\n"0,5",\n', None, "line 2: x is '0,5'; write a number with a decimal point."),
        ("x;y\n1.234,5;\n", None, "write a number"),
        ("x,y\nnan,\n", None, "write a number"),
        ("x,y\n=1+1,\n", None, "write a number"),
    ],
)
def test_a_decimal_comma_is_a_number_where_commas_do_not_separate(
    text: str, value: float | None, said: str
) -> None:
    (row,) = parse_table(FILE, text.encode())
    assert row.number("y") is None
    assert row.number("none") is None
    if value is None:
        with pytest.raises(BadInput) as caught:
            row.number("x")
        assert said in str(caught.value)
    else:
        assert row.number("x") == value


def test_a_closed_table_takes_no_cell_that_has_no_name() -> None:
    assert len(parse_table(FILE, b"a,,b,\n1,,2,\n", ("a", "b"), closed=True)) == 1
    with pytest.raises(BadInput, match="line 2 has a cell in a column without a name"):
        parse_table(FILE, b"a,,b,\n1,,2,x\n", ("a", "b"), closed=True)
    # In an open one it is a column that nobody reads, as the numbers are that pandas writes first.
    assert parse_table(FILE, b",a\n0,x\n", ("a",)) == [{"a": "x"}]


def test_a_table_that_is_too_large_is_refused_and_not_cut(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a\n" + b"x\n" * 600_000)
    with pytest.raises(BadInput, match="larger than 1 MiB"):
        read_table(tmp_path / "t.csv", ("a",), max_bytes=1 << 20)
    with pytest.raises(BadInput, match="more than 10 rows"):
        parse_table(FILE, b"a\n" + b"x\n" * 11, ("a",), max_rows=10)


def test_a_distance_has_one_line_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("configuration,FID\n1,70\n1,80\n")
    with pytest.raises(BadInput, match="line 3: configuration '1' stands there twice"):
        read_distances(tmp_path / "d.csv")


def test_a_published_table_is_read_by_its_ascii_columns(tmp_path: Path) -> None:
    (tmp_path / "control" / "AAA").mkdir(parents=True)
    (tmp_path / "control" / "AAA" / "image_0.tif").touch()
    table = tmp_path / "metadata.csv"
    table.write_bytes("patient_id,bag_label,leucocytes_per_\xb5l\nAAA,control,4\n".encode("latin-1"))
    assert [p.patient for p in read_mll_patients(tmp_path)] == ["AAA"]
    table.write_text("id,label\nAAA,control\n")
    with pytest.raises(BadInput, match=r"metadata\.csv lacks the column 'patient_id'"):
        read_mll_patients(tmp_path)


def test_no_other_module_reads_a_table() -> None:
    root = Path(__file__).resolve().parent.parent
    rooms = ("flows", "pipeline", "classifiers", "detectors", "stainers", "storage", "benchmarks")
    found = {
        path.relative_to(root).as_posix()
        for room in rooms
        for path in (root / room).rglob("*.py")
        if re.search(r"^ *(import|from) csv\b", path.read_text("utf-8"), re.MULTILINE)
    }
    assert found == {"storage/tables.py"}  # phantoms, which know no storage, only write them
