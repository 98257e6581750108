"""A report for other systems: FHIR that the published structure accepts, and a table for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from flows.auditing import RecordUnsound
from flows.cli import group
from pipeline.errors import SmearflowError
from pipeline.fhir import check_bundle, fhir_bundle
from pipeline.result import USE_LABEL
from pipeline.settings import CountingSettings, Settings
from pipeline.sheet import result_sheet
from storage.tables import as_meant, neutralised, parse_table, sheet_text
from tests.report_cases import BLOOD, a_case, a_result, both, cells_of, image
from tests.reported_store import CASE, report_case, reported_store
from tests.test_virtual_perls_report import marrow_result

QUICK = Settings(counting=CountingSettings(bootstrap_draws=50))
MARROW = {"neutrophil": 300, "immature_granulocyte": 80, "lymphocyte": 60, "erythroblast": 100}


def read(kind: str):
    """A result of each kind that an export has to tell apart."""
    perls = image("P1", stain="Perls", slide="s2")
    iron = both(
        cells_of({"erythroblast": 90}, 1, rs_type="0", stain="Perls", start=1000),
        cells_of({"erythroblast": 20}, 1, rs_type="3", stain="Perls", start=2000),
    )
    if kind == "few":
        return a_result({"neutrophil": 20, "lymphocyte": 4}, settings=QUICK)
    if kind == "virtual":
        case = a_case(mode="dic", images=(image("F1", "dic", "unstained"),))
        return a_result(
            case=case,
            settings=QUICK,
            read=cells_of(BLOOD, 1, virtual=True, modality="dic", stain="unstained"),
        )
    if kind == "perls":
        case = a_case(specimen="bone_marrow", mode="mgg_perls", images=(image("F1"), perls))
        return a_result(case=case, settings=QUICK, read=both(cells_of(MARROW, 1), iron))
    if kind == "perls only":
        return a_result(case=a_case(specimen="bone_marrow", images=(perls,)), settings=QUICK, read=iron)
    if kind == "virtual perls":
        return marrow_result(30, 0.95, 0.02)[0]
    if kind == "virtual perls, unsupported":
        return marrow_result(30, 0.6, 0.5)[0]
    if kind == "nothing":
        return a_result(settings=QUICK, read=((), ()))
    return a_result(settings=QUICK, status=kind)


KINDS = (
    *("preliminary", "final", "amended", "corrected", "cancelled", "few", "virtual"),
    *("perls", "perls only", "virtual perls", "virtual perls, unsupported", "nothing"),
)


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    found = [e["resource"] for e in bundle["entry"]]
    return [r for r in found if r["resourceType"] == kind]


def coded(bundle: dict[str, Any], system: str, code: str) -> dict[str, Any]:
    """The one Observation of a code."""
    asked = {"system": system, "code": code}
    (found,) = [o for o in resources(bundle, "Observation") if asked in o["code"]["coding"]]
    return found


def component(observation: dict[str, Any], code: str) -> dict[str, Any]:
    (found,) = [c for c in observation["component"] if c["code"]["coding"][-1]["code"] == code]
    return found


def references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [r for v in value for r in references(v)]
    if not isinstance(value, dict):
        return []
    own = [value["reference"]] if isinstance(value.get("reference"), str) else []
    return own + [r for v in value.values() for r in references(v)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_bundle_is_fhir_r4b_and_refers_only_to_what_it_holds(kind: str) -> None:
    bundle = fhir_bundle(read(kind))
    check_bundle(bundle)
    there = [e["fullUrl"] for e in bundle["entry"]]
    assert len(set(there)) == len(there)
    assert set(references(bundle)) <= set(there)
    (report,) = resources(bundle, "DiagnosticReport")
    held = {r["reference"] for o in resources(bundle, "Observation") for r in o.get("hasMember", [])}
    told = {r["reference"] for r in report.get("result", [])}
    own = {e["fullUrl"] for e in bundle["entry"] if e["resource"]["resourceType"] == "Observation"}
    assert told | held == own  # nothing is left hanging
    assert report["conclusion"].startswith(USE_LABEL)
    assert json.dumps(bundle) == json.dumps(fhir_bundle(read(kind)))
    for observation in resources(bundle, "Observation"):
        assert not ({"valueQuantity", "dataAbsentReason"} <= observation.keys())
        assert "referenceRange" not in observation


def test_what_is_no_fhir_is_refused() -> None:
    bundle = fhir_bundle(read("final"))
    for observation in resources(bundle, "Observation"):
        del observation["code"]
    with pytest.raises(ValueError, match="code"):
        check_bundle(bundle)


@pytest.mark.parametrize(
    ("status", "of_report", "of_values"),
    [
        ("preliminary", "preliminary", "preliminary"),
        ("final", "final", "final"),
        ("amended", "amended", "preliminary"),
        ("corrected", "corrected", "corrected"),
        ("cancelled", "entered-in-error", "entered-in-error"),
    ],
)
def test_no_value_is_more_than_preliminary_before_its_form_is_signed(status, of_report, of_values) -> None:
    bundle = fhir_bundle(read(status))
    assert resources(bundle, "DiagnosticReport")[0]["status"] == of_report
    assert {o["status"] for o in resources(bundle, "Observation")} == {of_values}


def test_the_figures_are_those_of_the_result() -> None:
    result = read("perls")
    bundle = fhir_bundle(result)
    for row in result.differential.rows:
        found = coded(bundle, "urn:smearflow:class", row.class_)
        assert found["valueQuantity"] == {
            "value": row.pct,
            "unit": "%",
            "system": "http://unitsofmeasure.org",
            "code": "%",
        }
        assert component(found, "count")["valueInteger"] == row.n_ai
        limits = component(found, "interval")["valueRange"]
        assert (limits["low"]["value"], limits["high"]["value"]) == (row.ci_low, row.ci_high)
    ratio = coded(bundle, "urn:smearflow:code", "me-ratio")
    assert ratio["valueQuantity"]["value"] == result.me_ratio.value
    assert ratio["valueQuantity"]["code"] == "{ratio}"
    assert "log ratio" in component(ratio, "interval")["code"]["text"]
    rs = coded(bundle, "urn:smearflow:code", "smearflow:rs-pct-perls")
    assert rs["valueQuantity"]["value"] == result.sideroblasts.rs_pct
    assert [component(rs, f"type{t}")["valueInteger"] for t in range(4)] == [90, 0, 0, 20]
    assert "http://loinc.org" not in json.dumps(rs)  # no LOINC code is known
    nrbc = coded(fhir_bundle(read("final")), "urn:smearflow:code", "nrbc-per-100-wbc")
    assert nrbc["valueQuantity"] == {
        "value": 0.0,
        "unit": "/100 WBC",
        "system": "http://unitsofmeasure.org",
        "code": "/100{WBCs}",
    }


def test_a_withheld_percentage_leaves_by_no_way() -> None:
    result = read("few")
    bundle = fhir_bundle(result)
    members = [
        o
        for o in resources(bundle, "Observation")
        if any(c["system"] == "urn:smearflow:class" for c in o["code"]["coding"])
    ]
    assert len(members) == len(result.differential.rows)
    for observation in members:
        assert "valueQuantity" not in observation
        assert "under half the target of 200" in observation["dataAbsentReason"]["text"]
        assert component(observation, "interval")  # counts and limits stand, as in the report
    rows = list(csv.DictReader(io.StringIO(result_sheet(result))))
    assert {r["pct"] for r in rows} == {""}
    assert [r["n"] for r in rows if r["class"] == "neutrophil"] == ["20"]
    assert "83.3" not in json.dumps(bundle) + result_sheet(result)  # 20 of 24


def test_values_of_a_virtual_stain_say_so_and_carry_no_loinc_code() -> None:
    bundle = fhir_bundle(read("virtual").model_copy(update={"status": "final"}))
    assert "http://loinc.org" not in json.dumps(bundle)
    images = {e["fullUrl"]: e["resource"] for e in bundle["entry"]}
    for observation in resources(bundle, "Observation"):
        assert "VIRTUAL MGG" in observation["method"]["text"]
        assert "not from a stain" in observation["note"][0]["text"]
        (source,) = observation["derivedFrom"]
        painted = images[source["reference"]]
        assert "VIRTUAL" in painted["description"]
        (link,) = painted["relatesTo"]
        assert link["code"] == "transforms"
        assert "unstained DIC" in images[link["target"]["reference"]]["description"]
    assert "http://loinc.org" in json.dumps(fhir_bundle(read("final")))
    rows = list(csv.DictReader(io.StringIO(result_sheet(read("virtual")))))
    assert {(r["virtual"], r["loinc"]) for r in rows} == {("yes", "")}


def test_virtual_ring_sideroblasts_have_another_code_and_stay_preliminary_when_signed() -> None:
    signed = read("virtual perls").model_copy(update={"status": "final"})
    bundle = fhir_bundle(signed)
    rs = coded(bundle, "urn:smearflow:code", "smearflow:rs-pct-virtual-perls")
    assert rs["status"] == "preliminary"
    assert rs["valueQuantity"]["value"] == signed.sideroblasts.rs_pct
    assert "VIRTUAL Perls" in rs["method"]["text"]
    assert "not from a stain" in rs["note"][0]["text"]
    assert rs["derivedFrom"]
    for text in (component(rs, "interval")["code"]["text"], result_sheet(signed)):
        assert "corrected for what the model of virtual Perls makes up" in text
    assert {o["status"] for o in resources(bundle, "Observation") if o is not rs} == {"final"}
    (row,) = [r for r in csv.DictReader(io.StringIO(result_sheet(signed))) if r["kind"] == "iron"]
    assert (row["status"], row["virtual"], row["reviewed"]) == ("preliminary", "yes", "no")
    withdrawn = fhir_bundle(signed.model_copy(update={"status": "cancelled"}))
    assert {o["status"] for o in resources(withdrawn, "Observation")} == {"entered-in-error"}


def test_what_virtual_perls_does_not_support_has_no_figure() -> None:
    result = read("virtual perls, unsupported")
    rs = coded(fhir_bundle(result), "urn:smearflow:code", "smearflow:rs-pct-virtual-perls")
    assert "valueQuantity" not in rs
    assert rs["dataAbsentReason"]["text"] == f"not supported by the image: {result.sideroblasts.support.why}"
    assert [c["code"]["coding"][0]["code"] for c in rs["component"]] == ["erythroblasts"]
    (row,) = [r for r in csv.DictReader(io.StringIO(result_sheet(result))) if r["kind"] == "iron"]
    assert (row["n"], row["pct"], row["ci_low"]) == ("", "", "")


def test_a_collection_time_without_a_zone_leaves_as_its_date() -> None:
    for collected, told in (
        ("2026-11-01T08:30", "2026-11-01"),
        ("20261101", "2026-11-01"),
        ("2026-11-01T08:30+01:00", "2026-11-01T08:30:00+01:00"),
    ):
        bundle = fhir_bundle(a_result(case=a_case(collected=collected), settings=QUICK))
        assert resources(bundle, "DiagnosticReport")[0]["effectiveDateTime"] == told
        check_bundle(bundle)


def test_one_row_a_class_with_its_count_and_what_is_to_know() -> None:
    result = read("final")
    rows = list(csv.DictReader(io.StringIO(result_sheet(result))))
    shares = [r for r in rows if r["kind"] == "class"]
    assert [(r["class"], float(r["pct"]), int(r["n"])) for r in shares] == [
        (x.class_, x.pct, x.n_ai) for x in result.differential.rows
    ]
    assert {(r["case"], r["status"], r["reviewed"], r["use"]) for r in rows} == {
        ("K-001", "final", "yes", USE_LABEL)
    }
    assert "info ZERO_BOUND" in rows[0]["flags"]


@given(st.text())
def test_a_neutralised_cell_is_no_formula_and_gives_its_text_back(text: str) -> None:
    safe = neutralised(text)
    assert not safe.lstrip().startswith(("=", "+", "-", "@"))
    assert as_meant(safe) == text


@given(
    st.lists(
        st.text(st.characters(blacklist_categories=("Cs", "Cc"))).map(str.strip).filter(bool),
        min_size=1,
        max_size=6,
    )
)
def test_a_table_that_leaves_is_read_back_as_it_was(texts: list[str]) -> None:
    table = sheet_text(("a", "n", "=b"), [{"a": t, "n": i} for i, t in enumerate(texts)])
    rows = parse_table(Path("t.csv"), table.encode(), ("a",))
    assert rows.columns == ("a", "n", "'=b")
    assert [as_meant(r["a"]) for r in rows] == texts
    assert [r["n"] for r in rows] == [str(i) for i in range(len(texts))]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return reported_store(tmp_path, monkeypatch)


def export(store: str, *arguments: str, case: str = CASE) -> Result:
    done = CliRunner().invoke(group, ["export", case, "--store", store, *arguments])
    if isinstance(done.exception, SmearflowError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def review(store: str, *arguments: str) -> None:
    line = ["review", CASE, "--store", store, "--reviewer", "Dr. Doe", *arguments]
    assert CliRunner().invoke(group, line).exit_code == 0


def test_a_case_is_exported_through_its_whole_life_and_names_no_reviewer(store: str) -> None:
    cell = next(c.cell_id for c in cells_of(BLOOD)[0])
    seen = []
    for act in (
        [],
        ["--sign"],
        ["--cell", cell, "--class", "lymphocyte", "--reason", "MARY DOE"],
        ["--sign", "--reason", "MARY DOE"],
        ["--cancel", "--reason", "MARY DOE"],
    ):
        if act:
            review(store, *act)
        text = export(store, "--format", "fhir").stdout
        bundle = json.loads(text)
        check_bundle(bundle)
        assert "Doe" not in text
        assert "DOE" not in text
        assert store not in text
        assert "s1" not in text  # no slide's, field's or cell's name
        seen.append(resources(bundle, "DiagnosticReport")[0]["status"])
        lymphocytes = coded(bundle, "urn:smearflow:class", "lymphocyte")
        result = json.loads((Path(store) / CASE / "result.json").read_text())
        row = next(r for r in result["differential"]["rows"] if r["class"] == "lymphocyte")
        assert lymphocytes["valueQuantity"]["value"] == row["pct"]
    assert seen == ["preliminary", "final", "amended", "corrected", "entered-in-error"]
    assert component(lymphocytes, "count")["valueInteger"] == 61
    assert component(lymphocytes, "count-model")["valueInteger"] == 60
    assert lymphocytes["method"]["text"].endswith("corrected by a person")


def test_an_export_writes_over_nothing(store: str, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    said = export(store, "--format", "fhir", "--out", str(out)).stdout
    assert said.startswith(f"{out}: report ")
    assert said.rstrip().endswith("K-001, preliminary")
    before = out.read_bytes()
    check_bundle(json.loads(before))
    with pytest.raises(SmearflowError, match="nothing is overwritten"):
        export(store, "--format", "csv", "--out", str(out))
    assert out.read_bytes() == before
    with pytest.raises(SmearflowError, match="this is a folder"):
        export(store, "--format", "csv", "--out", str(tmp_path))


def test_the_cells_leave_as_a_table(store: str) -> None:
    text = export(store, "--format", "csv", "--cells").stdout
    again = pd.read_csv(io.StringIO(text))
    kept = pd.read_parquet(Path(store) / CASE / "cells.parquet")
    assert list(again.columns) == list(kept.columns)
    assert list(again["cell_id"]) == list(kept["cell_id"])
    assert list(again["confidence"]) == pytest.approx(list(kept["confidence"]))
    with pytest.raises(SmearflowError, match="give --format csv"):
        export(store, "--format", "fhir", "--cells")


def test_only_the_report_that_holds_is_exported(store: str) -> None:
    path = Path(store) / CASE / "result.json"
    first = path.read_bytes()
    given_id = json.loads(first)["report_uuid"]
    export(store, "--format", "csv", "--report", given_id[:8])
    review(store, "--sign")
    with pytest.raises(SmearflowError, match="not the one that was asked for"):
        export(store, "--format", "csv", "--report", given_id)
    path.write_bytes(first)  # an earlier report, put back
    with pytest.raises(SmearflowError, match="not the file that was written last"):
        export(store, "--format", "fhir")
    path.write_bytes(first.replace(b'"preliminary"', b'"final"', 1))  # one that nobody made
    with pytest.raises(RecordUnsound, match="no file that the audit log tells of"):
        export(store, "--format", "fhir")
    path.unlink()
    with pytest.raises(SmearflowError, match="holds no report of this case"):
        export(store, "--format", "fhir")
    with pytest.raises(SmearflowError, match="holds no report of this case"):
        export(store, "--format", "fhir", case="K-002")


def test_a_case_leaves_under_its_pseudonym(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMEARFLOW_PSEUDONYM_KEY", "a key")
    with pytest.raises(SmearflowError, match="another pseudonym"):  # the report was made without it
        export(store, "--format", "fhir")
    report_case(store)
    for form in ("fhir", "csv"):
        text = export(store, "--format", form).stdout
        assert CASE not in text
        assert "P-" in text
    monkeypatch.delenv("SMEARFLOW_PSEUDONYM_KEY")  # who exports need not hold the key
    assert CASE not in export(store, "--format", "fhir").stdout


def test_an_export_changes_nothing_in_the_store(store: str) -> None:
    def state() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in Path(store).rglob("*") if p.is_file()}

    before = state()
    export(store, "--format", "fhir")
    export(store, "--format", "csv", "--cells")
    assert state() == before
