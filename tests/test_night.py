"""The night's summary, its page, its logs and its canary, without a server."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from flows import canary, logs
from flows.night_summary import NightSummary, publish
from pipeline.night_page import render_night
from pipeline.settings import Settings, named_models
from storage.store import Store

HOSTILE = "<script>alert(1)</script>\"'&"


def a_night(store: str = "/stores/lab", canary_answer: dict[str, Any] | None = None) -> dict[str, Any]:
    """One case done, one done in nights before, one failed, one held by another run."""
    night = NightSummary("/inbox", store, slowest=2)
    if canary_answer is not None:
        night.canary = canary_answer
    seconds = {"intake": 1.5, "detection": 20.25, "staining": 61.0, "report": 2.0}
    problem = {
        "code": "UNREADABLE",
        "slide": "s",
        "field": "F2",
        "file": HOSTILE,
        "message": f"{HOSTILE} is torn; copy it again.",
    }
    done = {
        "case": "A-1",
        "status": "done",
        "report": f"{store}/A-1/report.html",
        "result": f"{store}/A-1/result.json",
        "quarantined": 1,
        "problems": [problem],
        "computed": 130,
        "reused": 0,
        "flags": ["LOW_COUNT", "VIRTUAL_STAIN"],
        "seconds": seconds,
        "seconds_total": 85.5,
    }
    kept = {
        **done,
        "case": "B-2",
        "problems": [],
        "quarantined": 0,
        "computed": 0,
        "reused": 130,
        "seconds": {},
    }
    kept["report"] = f"{store}/B-2/report.html"
    kept["flags"] = ["LOW_COUNT"]
    kept["seconds_total"] = 0.4
    failed = {"case": "C-3", "status": "failed", "error": f"BadInput: {HOSTILE}"}
    busy = {"case": "D-4", "status": "busy", "error": "another run is working on this case"}
    return night.end([done, kept, failed, busy])


def test_a_night_counts_its_cases_names_its_reasons_and_its_slowest() -> None:
    night = a_night()
    assert night["counts"] == {
        "cases": 4,
        "processed": 2,
        "computed_anew": 1,
        "failed": 1,
        "busy": 1,
        "left_out": 1,
    }
    assert night["flags"] == {"LOW_COUNT": 2, "VIRTUAL_STAIN": 1}
    assert night["stage_seconds"]["staining"] == 61.0
    assert night["slowest"] == [{"case": "A-1", "seconds": 85.5}]
    assert "held by another run" in night["message"]
    assert json.loads(json.dumps(night)) == night


def test_the_page_links_every_report_and_runs_nothing_that_a_name_carries() -> None:
    html = render_night(a_night())
    assert 'href="../A-1/report.html"' in html
    assert 'href="../B-2/report.html"' in html
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "default-src 'none'" in html
    assert not re.search(r'(src|href)="(https?:|//|file:|javascript:)', html)


@pytest.mark.parametrize("report", ["javascript:alert(1)", "/elsewhere/A-1/report.html", ""])
def test_a_report_outside_the_store_is_no_link(report: str) -> None:
    night = a_night()
    night["cases"][0]["report"] = report
    assert "alert(1)</a>" not in render_night(night)
    assert 'href="../A-1' not in render_night(night)
    assert "javascript:" not in render_night(night)


def test_the_page_says_which_report_was_withdrawn() -> None:
    night = a_night()
    assert ">withdrawn<" not in render_night(night)
    night["cases"][0]["report_status"] = "cancelled"
    assert '<span class="bad">withdrawn</span>' in render_night(night)


def test_a_night_is_written_as_json_and_as_a_page_and_is_the_latest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    night = a_night(store.url)
    publish(store, night)
    assert store.read_json(f"nights/{night['night']}.json") == night
    assert store.read_json("nights/latest.json") == night
    assert "2 of 4 cases processed" in store.read_text(f"nights/{night['night']}.html")


def test_a_summary_that_cannot_be_written_does_not_end_the_night(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    (tmp_path / "nights").write_text("a file where the folder should be")
    publish(store, a_night(store.url))
    assert "could not be written" in caplog.text


def test_an_alarm_is_the_first_thing_on_the_page() -> None:
    answer = canary.judge(dict.fromkeys(canary.RECORD_TOLERANCE, 50.0), None)
    html = render_night(a_night(canary_answer=answer))
    assert html.index("The night was stopped") < html.index("Cases")
    assert "share of cells found" in html


GOOD = {
    "cells": 16.0,
    "cells_virtual": 8.0,
    "cells_named": 15.0,
    "mean_confidence": 0.88,
    "mean_novelty": 0.75,
    "mean_stain_confidence": 0.7,
    "mean_area_um2": 120.0,
    "registration_error_px": 0.15,
    "share_of_cells_found": 1.0,
}


def test_a_canary_whose_figures_stand_still_lets_the_night_go_on() -> None:
    assert canary.judge(GOOD, None)["status"] == "first"
    assert canary.judge(GOOD, GOOD)["status"] == "ok"
    within = {**GOOD, "cells": 15.0, "mean_confidence": 0.895, "registration_error_px": 0.2}
    assert canary.judge(within, GOOD)["status"] == "ok"


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("cells", 13.0),
        ("cells_named", 3.0),
        ("mean_confidence", 0.8),
        ("mean_area_um2", 60.0),
        ("mean_stain_confidence", 0.2),
        ("registration_error_px", 0.4),
    ],
)
def test_a_canary_whose_figure_moved_stops_the_night_and_names_it(figure: str, value: float) -> None:
    answer = canary.judge({**GOOD, figure: value}, GOOD)
    assert answer["status"] == "alarm"
    assert figure.replace("_", " ") in answer["message"]
    assert [c["figure"] for c in answer["checks"] if not c["ok"]] == [figure]


def test_a_canary_far_from_its_truth_stops_even_the_first_night() -> None:
    assert canary.judge({**GOOD, "share_of_cells_found": 0.5}, None)["status"] == "alarm"
    assert canary.judge({**GOOD, "registration_error_px": 99.0}, None)["status"] == "alarm"


def test_other_settings_or_models_have_a_record_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = canary.key_of(Settings())
    assert canary.key_of(Settings.model_validate({"night": {"slowest": 9}})) == plain
    assert canary.key_of(Settings.model_validate({"counting": {"level": 0.9}})) == plain
    assert canary.key_of(Settings.model_validate({"detection": {"threshold": 0.5}})) != plain
    for what in named_models(Settings()).values():  # its card changed, its name did not
        with monkeypatch.context() as patch:
            patch.setattr("flows.stages.model_sha", lambda *asked, w=what: "other" if asked == w else "same")
            other = canary.key_of(Settings())
            patch.setattr("flows.stages.model_sha", lambda *asked: "same")
            assert canary.key_of(Settings()) != other
    assert (
        canary.key_of(Settings.model_validate({"detection": {"brightfield_detector": "classical"}})) != plain
    )


def test_the_record_of_the_first_good_night_stays_so_that_a_slow_drift_adds_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    canary._keep(store, "k" * 64, GOOD)
    canary._keep(store, "k" * 64, {**GOOD, "mean_confidence": 0.87})
    assert canary._record(store, "k" * 64) == GOOD
    assert canary._record(store, "k" * 63 + "x") is None


def test_the_phantom_is_drawn_once_and_again_where_it_was_touched(tmp_path: Path) -> None:
    folder = canary._phantom(tmp_path)
    image = folder / "F001_BF.tif"
    drawn, written = image.read_bytes(), image.stat().st_mtime_ns
    canary._phantom(tmp_path)
    assert image.stat().st_mtime_ns == written
    image.write_bytes(drawn[: len(drawn) // 2])
    canary._phantom(tmp_path)
    assert image.read_bytes() == drawn


def test_what_a_canary_of_last_night_left_is_an_alarm_where_it_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cluster import Workers

    store = Store(tmp_path)
    Store(tmp_path / "nights" / "canary" / "store").write_text("canary/work/intake/old.json", "{}")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    with monkeypatch.context() as patch, Workers() as workers:
        patch.setattr("shutil.rmtree", lambda *_, ignore_errors=False, **__: ignore_errors or refuse())
        patch.setattr(canary, "_figures", lambda run, truth: GOOD)
        answer = canary.sing(store, None, workers)
    assert answer["status"] == "alarm"
    assert "read-only" in answer["message"]


def test_a_canary_that_took_anything_kept_is_an_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cluster import Workers

    def figures(run: Any, truth: object) -> dict[str, float]:
        run.reused["staining"] = 1
        return GOOD

    monkeypatch.setattr(canary, "_figures", figures)
    with Workers() as workers:
        answer = canary.sing(Store(tmp_path), None, workers)
    assert answer["status"] == "alarm"
    assert "staining" in answer["message"]


def test_a_canary_that_is_turned_off_costs_nothing(tmp_path: Path) -> None:
    answer = canary.sing(Store(tmp_path), {"night": {"canary": False}}, None)  # type: ignore[arg-type]
    assert answer["status"] == "off"
    assert list(tmp_path.iterdir()) == []


def test_a_canary_whose_folder_no_worker_sees_is_not_run_and_says_so() -> None:
    from flows.cluster import Workers

    answer = canary.sing(Store("memory://lab"), None, Workers(scheduler="tcp://elsewhere:8786"))
    assert answer["status"] == "not run"
    assert "night.canary_folder" in answer["message"]


def test_each_line_of_the_log_is_json_with_case_stage_and_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMEARFLOW_LOG", str(tmp_path / "all.jsonl"))
    store = Store(tmp_path / "store")
    with logs.to_file(store, "night-1"):
        about = {"case": "A-1", "stage": "detection", "slide": "s", "field": "F1"}
        logging.getLogger("smearflow.nightly").info("one\nforged line {}", extra=about)
        logging.getLogger("smearflow").debug("too small to tell")
    for path in (tmp_path / "store" / "nights" / "night-1.jsonl", tmp_path / "all.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == 1
        assert {k: lines[0][k] for k in about} == about
        assert lines[0]["level"] == "info"
    logging.getLogger("smearflow.nightly").info("after the night")
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 1


def test_a_log_that_cannot_be_written_is_named_once_and_does_not_stop_the_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nights").write_text("a file where the folder should be")
    monkeypatch.setenv("SMEARFLOW_LOG", str(tmp_path / "all.jsonl"))
    with logs.to_file(Store(tmp_path), "night-1"):
        logging.getLogger("smearflow").info("said to the other log")
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path / "nights" / "night-1.jsonl") in said


def test_a_log_that_fills_its_disk_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMEARFLOW_LOG", "/dev/full")
        with logs.to_file(Store(tmp_path), "night-1"):
            for _ in range(3):
                logging.getLogger("smearflow").info("said to the other log")
    assert capsys.readouterr().err.count("/dev/full") == 1
    assert len((tmp_path / "nights" / "night-1.jsonl").read_text().splitlines()) == 3


def test_a_server_that_went_away_costs_its_artifacts_and_not_the_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import case as case_flow
    from flows.cluster import Workers
    from flows.execute import CaseOutcome

    outcome = CaseOutcome("A-1", {"flags": []}, "report", "result", 0, {"report": 1}, {}, {})

    def gone(_: object) -> None:
        raise ConnectionError("all connection attempts failed")

    said: list[str] = []
    monkeypatch.setattr(case_flow.log, "error", lambda text, *args: said.append(text % args))
    monkeypatch.setattr(case_flow, "execute", lambda run, wrap: outcome)
    monkeypatch.setattr(case_flow, "note", lambda *a, **k: None)
    monkeypatch.setattr(case_flow, "_publish", gone)
    (tmp_path / "inbox" / "A-1").mkdir(parents=True)
    found = case_flow.process_case(tmp_path / "inbox" / "A-1", str(tmp_path / "store"), None, Workers())
    assert found is outcome
    assert any("artifacts could not be made" in text for text in said)
    assert "error" not in json.loads((tmp_path / "store" / "A-1" / "ledger.json").read_text())["runs"][-1]


def test_artifacts_of_a_case_carry_its_pseudonym_under_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's database is no part of the store, and its page lists artifacts by key and title."""
    from types import SimpleNamespace

    from flows import case as case_flow
    from flows.execute import CaseOutcome
    from flows.identity import pseudonym

    made: dict[str, str] = {}

    def link(**what: str) -> None:
        made.update(what)
        raise ConnectionError("enough")

    monkeypatch.setattr(case_flow, "flow_run", SimpleNamespace(id="a run"))
    monkeypatch.setattr(case_flow, "create_link_artifact", link)
    outcome = CaseOutcome("DOE-JANE", {}, "report", "result", 0, {}, {}, {})
    for key, named in ((None, "DOE-JANE"), ("k3y", "P-")):
        if key:
            monkeypatch.setenv("SMEARFLOW_PSEUDONYM_KEY", key)
            assert "doe" not in pseudonym("DOE-JANE").lower()
        else:
            monkeypatch.delenv("SMEARFLOW_PSEUDONYM_KEY", raising=False)
        with pytest.raises(ConnectionError):
            case_flow._publish(outcome)
        assert made["key"] == f"report-{pseudonym('DOE-JANE').lower()}"
        assert made["link_text"].startswith(f"Report of {named}")


def test_the_latest_summary_is_written_where_the_page_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk with little room the page, which is larger, must not cost what `status` and scripts read."""
    store, night = Store(tmp_path), a_night()

    def full(_self: Store, key: str, _text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write_text", full)
    publish(store, night)
    assert store.read_json("nights/latest.json") == night
    assert store.read_json(f"nights/{night['night']}.json") == night


def test_a_night_that_began_and_did_not_end_is_seen_in_status(tmp_path: Path) -> None:
    from flows.night_summary import record
    from flows.status import as_text, status_of_store

    store = Store(tmp_path)
    publish(store, a_night())
    record(store, NightSummary("/inbox", store.url, slowest=2).begun())
    found = status_of_store(str(tmp_path))
    assert found["last_night"]["status"] == "running"
    assert "not ended: it is under way, or it died" in as_text(found)
