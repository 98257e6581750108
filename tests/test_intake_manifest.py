"""Manifests and case.yaml of any spreadsheet and hand: understood, or refused in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import BadInput
from pipeline.intake import check_case_id, declare, read_case
from tests.case_folders import HEADER, ROW, S, is_one_sentence, make_case, write_manifest


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    return make_case(tmp_path / "C1")


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([ROW + ",x"], HEADER + ",operator", "unknown column 'operator'"),
        (["s1,F1,brightfield,MGG,0.1"], HEADER.replace("file,", ""), "lacks the column 'file'"),
        ([ROW], HEADER.replace("stain", "slide"), "lacks the column 'stain'"),
        ([ROW.replace("brightfield", "phase")], HEADER, "modality 'phase' is not known"),
        ([ROW.replace("MGG", "Giemsa")], HEADER, "stain 'Giemsa' is not known"),
        ([ROW.replace("F1_BF.tif", "../C2/F1_BF.tif")], HEADER, "leads out of the case folder"),
        ([ROW.replace("F1_BF.tif", "..\\C2\\F1_BF.tif")], HEADER, "leads out of the case folder"),
        ([ROW.replace("F1_BF.tif", "/etc/passwd")], HEADER, "is an absolute path"),
        ([ROW.replace("F1_BF.tif", "C:\\a.tif")], HEADER, "is an absolute path"),
        ([ROW.replace("F1_BF.tif", "a\x07.tif")], HEADER, "is no file name"),
        ([ROW.replace("F1_BF.tif", "")], HEADER, "no file is named"),
        ([ROW.replace("0.1", "0")], HEADER, "pixel size of 0 µm cannot be right"),
        ([ROW.replace("0.1", "-0.1")], HEADER, "cannot be right"),
        ([ROW.replace("0.1", "100")], HEADER, "cannot be right"),
        ([ROW.replace("0.1", "nan")], HEADER, "write a number"),
        ([ROW.replace("0.1", "ten")], HEADER, "write a number"),
        ([ROW + ",5,"], HEADER + ",x_um,y_um", "needs both x_um and y_um"),
        ([ROW + ",5,inf"], HEADER + ",x_um,y_um", "write a number"),
        ([ROW + ",extra"], HEADER, "line 2: it has 7 cells"),
        ([ROW.replace("s1", "<b>")], HEADER, "is no slide name"),
        ([ROW.replace("s1", "=1+1")], HEADER, "is no slide name"),
        ([ROW.replace("F1,", ",", 1)], HEADER, "is no field name"),
        ([], HEADER, "has no rows"),
        (['s1,"F1,brightfield'], HEADER, "is no valid CSV"),
    ],
)
def test_a_manifest_that_cannot_be_understood_refuses_the_case_in_one_sentence(
    tmp_path: Path, rows: list[str], header: str, said: str
) -> None:
    folder = make_case(tmp_path / "C", 1, paired=False)
    write_manifest(folder, *rows, header=header)
    with pytest.raises(BadInput) as caught:
        read_case(folder, S)
    assert said in str(caught.value)
    assert "manifest.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("encode", "fits"),
    [
        (lambda t: b"\xef\xbb\xbf" + t.encode(), True),
        (lambda t: t.replace("\n", "\r\n").encode(), True),
        (lambda t: t.encode("utf-16"), True),
        (lambda t: t.replace(",", ";").replace("0.1", "0,1").encode(), True),
        (lambda t: t.replace(",", "\t").encode(), True),
        (lambda t: t.replace("slide", " Slide ").replace("MGG", "mgg").encode(), True),
        (lambda t: t.replace("s1", "Pr\xe4parat").encode("latin-1"), False),
        (lambda t: t.encode() + b"\0\0", False),
    ],
    ids=["bom", "crlf", "utf-16", "semicolon", "tab", "case", "latin-1", "nul"],
)
def test_manifests_of_any_spreadsheet_are_read_or_refused(tmp_path: Path, encode: object, fits: bool) -> None:
    folder = make_case(tmp_path / "C", 1)
    path = folder / "manifest.csv"
    path.write_bytes(encode(path.read_text(encoding="utf-8")))  # type: ignore[operator]
    if fits:
        case = read_case(folder, S)
        assert len(case.images) == 2
        assert case.images[0].pixel_size_um == 0.1
    else:
        with pytest.raises(BadInput, match=r"manifest\.csv.*save it"):
            read_case(folder, S)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("specimen: liver", "specimen 'liver' is not known; use one of blood, bone_marrow"),
        ("patient: Doe", "unknown key 'patient'"),
        ("- a\n- b", "holds no keys"),
        ("specimen: [", "is no valid YAML"),
        ("collected: yesterday", "write a date"),
        ("!!python/object/apply:os.system ['true']", "is no valid YAML"),
    ],
)
def test_a_case_yaml_is_strict(paired: Path, text: str, said: str) -> None:
    (paired / "case.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_case(paired, S)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_case_yaml_says_nothing(paired: Path) -> None:
    (paired / "case.yaml").write_text("")
    assert read_case(paired, S).specimen is None


@pytest.mark.parametrize(
    "name", ["a b", "../x", "", ".hidden", "x" * 65, "a/b", "<x>", "ä", "a\n", "results.db"]
)
def test_case_ids_that_could_do_harm_are_refused(name: str) -> None:
    with pytest.raises(BadInput):
        check_case_id(name)


@pytest.mark.parametrize("name", ["S001", "2026-11-01_A.b", "-x", "_"])
def test_ordinary_case_ids_are_taken(name: str) -> None:
    assert check_case_id(name) == name


_CHARACTERS = list("s1F,;\t\"'\n\r. /\\<>=+-@{}%0159äµ\x00\x1b\ufeff")
junk = st.lists(st.sampled_from([*_CHARACTERS, "..", "dic", "MGG"]), max_size=40).map("".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=junk, where=st.integers(0, 120), mode=st.sampled_from(["replace", "insert"]))
def test_junk_in_a_manifest_ends_in_a_case_or_one_sentence(
    tmp_path: Path, text: str, where: int, mode: str
) -> None:
    folder = tmp_path / "C"
    if not folder.exists():
        make_case(folder, 1)
        shutil.copy(folder / "manifest.csv", tmp_path / "whole.csv")
    whole = (tmp_path / "whole.csv").read_text()
    end = where + (len(text) if mode == "replace" else 0)
    (folder / "manifest.csv").write_bytes((whole[:where] + text + whole[end:]).encode())
    try:
        case = read_case(folder, S)
    except BadInput as error:
        is_one_sentence(str(error))
    else:
        assert case.images


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x, x]\nspecimen: *a", "anchors and aliases are not taken"),
        ("a: &a {k: v}\nb: &b {<<: [*a, *a]}\nspecimen: blood", "anchors and aliases are not taken"),
        ("specimen: [[blood]]", "holds no text but a list"),
        ("specimen: {blood: 1}", "holds no text but a dict"),
        ("collected: 20261101", "holds no text but a int"),
        ("collected: " + "9" * 30_000, "is no valid YAML"),
        ("specimen: " + "[" * 5_000, "is no valid YAML"),
        ("? [a]\n: b", "is no valid YAML"),
        ("12: b", "unknown key 'int'"),
        ("specimen: blood\n" + "#" * 70_000, "larger than 64 kB"),
        ('"a\\x1b[2Jb": c', "unknown key"),
        ("--- a\n--- b", "is no valid YAML"),
    ],
)
def test_a_case_yaml_cannot_grow_nor_name_types(paired: Path, text: str, said: str) -> None:
    (paired / "case.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        declare(paired, S)
    assert said in str(caught.value)
    is_one_sentence(str(caught.value))


def test_a_billion_laughs_in_case_yaml_costs_no_time(paired: Path) -> None:
    import time

    lines = ["a0: &a0 [" + ",".join(["ha"] * 10) + "]"]
    lines += [f"a{n}: &a{n} [" + ",".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 30)]
    (paired / "case.yaml").write_text("\n".join([*lines, "specimen: *a29"]))
    started = time.perf_counter()
    with pytest.raises(BadInput, match="anchors"):
        declare(paired, S)
    assert time.perf_counter() - started < 2.0


# Rows a spreadsheet, a script or a hostile hand could write: each cell sound or one of these.
_EVIL = [
    "", " ", "x" * 70, "../F1_BF.tif", "/etc/passwd", "C:\\x.tif", "a/../../b",
    "=cmd|' /C calc'!A0", "+1", "-1",
    "@SUM(A1)", "<script>alert(1)</script>", "';DROP TABLE results;--",
    ";rm -rf /", "$(reboot)", "`id`", "%00",
    "a\x1b[2J", "a\nb", "\u202egnp.tif", "\u0000", "NaN",
    "1e309", "-0.1", "0", "1,5", "\ud55c\uad6d", "CON", "F1_BF.tif ",
]  # fmt: skip
_SOUND = {
    "slide": ["s1", "s 2", "Präparat 3"],
    "field": ["F1", "F2", "1"],
    "modality": ["brightfield", "dic", "DIC"],
    "stain": ["MGG", "Perls", "unstained", "mgg"],
    "file": ["F1_BF.tif", "F1_DIC.tif", "none.tif", "./F1_BF.tif"],
    "pixel_size_um": ["0.1", "", "0.25"],
    "x_um": ["0", "100.5", ""],
    "y_um": ["0", "-20", ""],
}
_cell = {
    k: st.one_of(st.sampled_from(v), st.sampled_from(v), st.sampled_from(_EVIL)) for k, v in _SOUND.items()
}
_row = st.fixed_dictionaries(_cell)


_TURNED = {**{k: v[0] for k, v in _SOUND.items()}, "file": "\u202egnp.tif"}  # shown as if it were fit.png


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(rows=[_TURNED], delimiter=",", positions=False)
@given(rows=st.lists(_row, max_size=5), delimiter=st.sampled_from(",;\t"), positions=st.booleans())
def test_any_manifest_gives_a_case_of_its_own_files_or_one_sentence(
    tmp_path: Path, rows: list[dict[str, str]], delimiter: str, positions: bool
) -> None:
    import csv
    import io

    folder = tmp_path / "C"
    if not folder.exists():
        make_case(folder, 1)
    columns = [c for c in _SOUND if positions or c not in ("x_um", "y_um")]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter=delimiter, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "manifest.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    try:
        case = read_case(folder, S)
    except BadInput as error:
        is_one_sentence(str(error))
        return
    for image in case.images:
        assert (folder / image.file).resolve().parent == folder.resolve()
        assert image.slide.isprintable()
        assert image.slide[0].isalnum() or image.slide[0] == "_"
    for problem in case.problems:
        is_one_sentence(problem.message)
