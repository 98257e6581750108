"""A reviewer's corrections and signature, through the real command line, into result, table, page and log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from flows import reporting
from flows.auditing import audit_cases
from flows.cli import group
from flows.rebuild import rebuild
from flows.reviewing import review_case
from flows.status import status_of_case
from pipeline.errors import BadInput, SmearflowError
from storage.results_db import ResultsDatabase
from storage.store import Store
from tests.report_cases import BLOOD, cells_of
from tests.reported_store import CASE, report_case, reported_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return reported_store(tmp_path, monkeypatch)


def _cli(*arguments: str) -> Result:
    return CliRunner().invoke(group, list(arguments))


def _review(store: str, *arguments: str) -> dict[str, Any]:
    done = _cli("review", CASE, "--store", store, "--reviewer", "Dr. X", "--json", *arguments)
    if done.exception and isinstance(done.exception, SmearflowError):
        raise done.exception
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _result(store: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(store) / CASE / "result.json").read_text())
    return found


def _row(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(r for r in result["differential"]["rows"] if r["class"] == name)


def _cell(label: str, index: int = 0) -> str:
    _, classes = cells_of(BLOOD)
    return [c.cell_id for c in classes if c.label == label][index]


def _holds(store: str) -> bool:
    return all(not case["wrong"] for case in audit_cases(store, verify=True))


def test_a_correction_moves_a_cell_and_keeps_what_the_model_said(store: str) -> None:
    cell = _cell("lymphocyte")
    done = _review(store, "--cell", cell, "--class", "monocyte", "--reason", "kidney-shaped nucleus")
    assert (done["status"], done["n_reclassified"]) == ("preliminary", 1)
    result = _result(store)
    lymphocyte, monocyte = _row(result, "lymphocyte"), _row(result, "monocyte")
    assert (lymphocyte["n_ai"], lymphocyte["n_reviewed"]) == (60, 59)
    assert (monocyte["n_ai"], monocyte["n_reviewed"], monocyte["pct"]) == (12, 13, 6.5)
    assert result["review"]["reviewer"] == "Dr. X"
    assert result["review"]["pct_reviewed"] == 0.5
    (entry,) = result["audit"]
    assert (
        entry["actor"],
        entry["action"],
        entry["target"],
        entry["old"],
        entry["new"],
        entry["reason"],
    ) == (
        "Dr. X",
        "review",
        cell,
        "lymphocyte",
        "monocyte",
        "kidney-shaped nucleus",
    )
    table = pd.read_parquet(Path(store) / CASE / "cells.parquet").set_index("cell_id")
    assert (table.loc[cell, "label"], table.loc[cell, "label_reviewed"]) == ("lymphocyte", "monocyte")
    assert table["label_reviewed"].notna().sum() == 1
    assert _holds(store)


def test_a_signed_report_is_final_and_no_longer_flagged_as_unreviewed(store: str) -> None:
    assert "NOT_REVIEWED" in {f["code"] for f in _result(store)["flags"]}
    assert _review(store, "--sign")["status"] == "final"
    result = _result(store)
    assert "NOT_REVIEWED" not in {f["code"] for f in result["flags"]}
    assert (result["audit"][-1]["old"], result["audit"][-1]["new"]) == ("preliminary", "final")
    assert _review(store, "--sign")["status"] == "final"  # a second signature corrects nothing
    with ResultsDatabase(f"sqlite:///{store}/results.db") as database:
        statuses = [(r["status"], r["reviewer"]) for r in database.rows(CASE)]
    assert statuses[0] == ("preliminary", None)
    assert statuses[-1] == ("final", "Dr. X")
    assert _holds(store)


def test_a_change_after_the_signature_is_amended_until_it_is_signed_and_then_corrected(store: str) -> None:
    _review(store, "--sign")
    assert _review(store, "--cell", _cell("monocyte"), "--class", "blast")["status"] == "amended"
    assert "NOT_REVIEWED" in {f["code"] for f in _result(store)["flags"]}
    assert _review(store, "--sign")["status"] == "corrected"
    assert "NOT_REVIEWED" not in {f["code"] for f in _result(store)["flags"]}
    rebuild(CASE, store, {"counting": {"interval": "wilson"}})  # a recount by other rules
    assert _result(store)["status"] == "amended"
    rebuild(CASE, store)
    assert _result(store)["status"] == "corrected"
    assert _holds(store)


def test_a_withdrawn_report_says_so_until_it_is_signed_again(store: str) -> None:
    with pytest.raises(BadInput, match="give --reason"):
        _review(store, "--cancel")
    assert _review(store, "--cancel", "--reason", "wrong patient")["status"] == "cancelled"
    listed = status_of_case(Store(store), CASE)
    assert (listed.report_status, listed.reviewer) == ("cancelled", _result(store)["review"]["reviewer"])
    assert listed.reviewer
    assert _result(store)["review"]["comment"] == "wrong patient"
    assert _review(store, "--sign")["status"] == "final"


def test_the_last_correction_of_a_cell_holds_and_the_log_keeps_both(store: str) -> None:
    cell = _cell("neutrophil")
    _review(store, "--cell", cell, "--class", "eosinophil")
    _review(store, "--cell", cell, "--class", "neutrophil")
    result = _result(store)
    assert _row(result, "neutrophil")["n_reviewed"] == 120
    assert [(a["old"], a["new"]) for a in result["audit"]] == [
        ("neutrophil", "eosinophil"),
        ("eosinophil", "neutrophil"),
    ]
    assert result["review"]["n_reclassified"] == 0


def test_corrections_come_from_a_table(store: str, tmp_path: Path) -> None:
    table = tmp_path / "corrections.csv"
    table.write_text(f"cell_id;class\n{_cell('basophil')};eosinophil\n{_cell('basophil', 1)};eosinophil\n")
    assert _review(store, "--from", str(table), "--sign")["status"] == "final"
    result = _result(store)
    assert (_row(result, "basophil")["n_reviewed"], _row(result, "eosinophil")["n_reviewed"]) == (0, 8)
    assert len(result["audit"]) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is given to review"),
        (("--cell", "s1/F1/9999", "--class", "blast"), "has no cell 's1/F1/9999'"),
        (("--cell", "../x", "--class", "blast"), r"has no cell '\.\./x'"),
        (("--cell", "s1/F1/0000", "--class", "segs"), "'segs' is no class of the hierarchy"),
        (("--cell", "s1/F1/0000"), "give one for each"),
        (
            ("--cell", "s1/F1/0000", "--class", "blast", "--cell", "s1/F1/0000", "--class", "monocyte"),
            "is given two classes",
        ),
        (("--sign", "--cancel", "--reason", "x"), "withdrawn alone"),
        (("--sign", "--reviewer", "a\nb"), "printable characters"),
        (("--sign", "--reviewer", "x" * 121), "printable characters"),
    ],
)
def test_what_cannot_be_reviewed_is_one_sentence_and_changes_nothing(
    store: str, arguments: tuple[str, ...], said: str
) -> None:
    before = (Path(store) / CASE / "result.json").read_bytes()
    with pytest.raises(BadInput, match=said) as caught:
        _review(store, *arguments)
    assert "\n" not in str(caught.value)
    assert (Path(store) / CASE / "result.json").read_bytes() == before
    assert _result(store)["audit"] == []


def test_a_review_by_other_settings_or_under_another_name_is_refused(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "other.yaml"
    config.write_text("counting:\n  interval: wilson\n")
    with pytest.raises(BadInput, match="made with other settings"):
        _review(store, "--sign", "--config", str(config))
    monkeypatch.setenv("SMEARFLOW_PSEUDONYM_KEY", "key")
    with pytest.raises(BadInput, match="another pseudonym"):
        _review(store, "--sign")


def test_a_correction_does_not_pass_to_another_cell_of_the_same_number(store: str) -> None:
    cell = _cell("lymphocyte")
    _review(store, "--cell", cell, "--class", "monocyte", "--sign")
    report_case(store, shift=30.0)  # another detector: the same numbers, other places
    result = _result(store)
    assert result["status"] == "amended"
    assert all(r["n_reviewed"] in (None, r["n_ai"]) for r in result["differential"]["rows"])
    assert {n["code"]: n["what"] for n in result["not_assessed"]}["REVIEW_LOST"].startswith("1 of")
    report_case(store)
    assert _result(store)["status"] == "final"


def test_a_signature_is_for_the_report_that_was_read(store: str) -> None:
    read = _result(store)["report_uuid"]
    report_case(store, shift=30.0)
    now = _result(store)["report_uuid"]
    assert now != read
    for other in (read, read[:8], now[:7], ""):
        with pytest.raises(BadInput, match=f"its report is now {now}.*--report") as caught:
            _review(store, "--sign", "--report", other)
        assert "\n" not in str(caught.value)
    assert _result(store)["status"] == "preliminary"
    assert _review(store, "--sign", "--report", now[:8].upper())["status"] == "final"
    page = (Path(store) / CASE / "report.html").read_text()
    assert _result(store)["report_uuid"] in page


def test_a_signature_over_new_images_and_lost_corrections_needs_a_reason(store: str) -> None:
    _review(store, "--cell", _cell("lymphocyte"), "--class", "monocyte", "--sign")
    report_case(store, shift=30.0)
    with pytest.raises(BadInput, match=r"1 of .* are lost; images, models.*have changed.*--reason") as caught:
        _review(store, "--sign")
    assert "\n" not in str(caught.value)
    assert _result(store)["status"] == "amended"
    assert _review(store, "--sign", "--reason", "read anew")["status"] == "corrected"


def test_a_signature_over_a_flag_that_blocks_the_report_needs_a_reason(store: str) -> None:
    report_case(store, {"neutrophil": 20})
    with pytest.raises(BadInput, match=r"the flag VERY_LOW_COUNT blocks its report: .*--reason"):
        _review(store, "--sign")
    assert _review(store, "--sign", "--reason", "leukopenia, all that was there")["status"] == "final"


def test_a_review_that_was_killed_before_its_result_is_put_right_by_the_next_run(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reporting, "report", dies)
        _cli(
            "review",
            CASE,
            "--store",
            store,
            "--reviewer",
            "Dr. X",
            "--cell",
            _cell("monocyte"),
            "--class",
            "blast",
        )
    assert _result(store)["audit"] == []
    assert not _holds(store)  # and an audit before that says so
    report_case(store)
    assert [(p["class"], p["n"]) for p in _result(store)["differential"]["named_by_person"]] == [("blast", 1)]
    assert _holds(store)


def test_a_log_that_was_cut_or_altered_or_a_result_by_hand_does_not_verify(store: str) -> None:
    _review(store, "--cell", _cell("monocyte"), "--class", "blast", "--sign")
    folder = Path(store) / CASE
    assert _cli("audit", "--store", store, "--verify").exit_code == 0
    result = (folder / "result.json").read_text()
    (folder / "result.json").write_text(result.replace('"pct": 5.5', '"pct": 55.5', 1))
    done = _cli("audit", "--store", store, "--verify")
    assert (done.exit_code, "not the file that the last run or review wrote" in done.output) == (4, True)
    (folder / "result.json").write_text(result)
    for name in sorted((folder / "audit").iterdir())[-2:]:  # the signature, and the report after it
        name.unlink()
    done = _cli("audit", CASE, "--store", store, "--verify", "--json")
    assert done.exit_code == 4
    assert "tells of more changes" in json.loads(done.stdout)[0]["wrong"][0]


def test_a_result_without_a_list_of_changes_does_not_verify(store: str) -> None:
    for audit in (None, 7):
        result = {**_result(store), "audit": audit}
        (Path(store) / CASE / "result.json").write_text(json.dumps(result))
        done = _cli("audit", CASE, "--store", store, "--verify", "--json")
        assert done.exit_code == 4
        assert json.loads(done.stdout)[0]["wrong"] == ["result.json cannot be read."]


def test_a_review_on_an_altered_log_is_refused(store: str) -> None:
    _review(store, "--cell", _cell("monocyte"), "--class", "blast")
    key = f"{CASE}/audit/000002.json"
    entry = Store(store).read_json(key)
    Store(store).write_json(key, {**entry, "actor": "Dr. Y"})
    with pytest.raises(BadInput, match=r"the audit log does not hold \(entry 2 was altered"):
        _review(store, "--sign")


def test_names_in_a_review_cannot_inject_into_the_page(store: str) -> None:
    _review(store, "--sign", "--reviewer", "<script>alert(1)</script>", "--reason", "=cmd|' /C calc'!A0")
    page = (Path(store) / CASE / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page  # the reviewer is named
    assert "1 change by persons" in page
    assert _result(store)["review"]["reviewer"] == "<script>alert(1)</script>"


def test_an_unreviewed_report_is_the_same_with_and_without_a_log(store: str, tmp_path: Path) -> None:
    report_case(str(tmp_path / "other"))
    one, two = _result(store), _result(str(tmp_path / "other"))
    assert one["audit"] == two["audit"] == []
    assert {k: v for k, v in one.items() if k != "created"} == {
        k: v for k, v in two.items() if k != "created"
    }


def test_a_report_that_is_made_again_from_the_same_changes_nothing_and_logs_nothing(store: str) -> None:
    _review(store, "--cell", _cell("monocyte"), "--class", "blast", "--sign")
    before = _files(store)
    report_case(store)
    assert _files(store) == before


def _files(store: str) -> dict[str, bytes]:
    found = (p for p in (Path(store) / CASE).rglob("*") if p.is_file() and p.name != "ledger.json")
    return {str(p): p.read_bytes() for p in found}


def test_looking_for_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    missing = str(tmp_path / "mistyped")
    for look in (
        lambda: audit_cases(missing),
        lambda: rebuild(CASE, missing),
        lambda: review_case(CASE, missing, reviewer="Dr. X", sign=True),
    ):
        with pytest.raises(BadInput, match="there is no such store"):
            look()
    assert not Path(missing).exists()
