"""What a real night leaves for the morning: summary, page, artifacts, log; and the canary."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import pytest

from tests.faults.harness import Lab

pytestmark = pytest.mark.server


def test_a_night_leaves_a_summary_a_page_artifacts_and_a_log(lab: Lab, inbox: Path, tmp_path: Path) -> None:
    mixed, store = tmp_path / "inbox", tmp_path / "store"
    shutil.copytree(inbox / "C-1", mixed / "C-1")
    (mixed / "C-9").mkdir()
    (mixed / "C-9" / "manifest.csv").write_text("nonsense\n1\n")
    summary = lab.night(mixed, store).summary()
    assert summary["counts"]["processed"] == 1
    assert summary["counts"]["failed"] == 1
    name = summary["night"]
    assert json.loads((store / "nights" / f"{name}.json").read_text()) == summary
    page = (store / "nights" / f"{name}.html").read_text()
    assert 'href="../C-1/report.html"' in page
    assert "C-9" in page
    lines = [json.loads(line) for line in (store / "nights" / f"{name}.jsonl").read_text().splitlines()]
    told = [x for x in lines if x.get("stage") == "detection" and x.get("field") == "F001"]
    assert told
    assert told[0]["case"] == "C-1"
    assert told[0]["seconds"] > 0
    request = urllib.request.Request(
        f"{lab.api}/artifacts/filter",
        data=json.dumps({"limit": 200}).encode(),
        headers={"content-type": "application/json"},
    )
    artifacts = json.loads(urllib.request.urlopen(request, timeout=30).read())
    assert any(a["key"] == "night-page" and f"{name}.html" in a["data"] for a in artifacts)
    assert any(a["key"] == "night-summary" and "1 of 2 cases processed" in a["data"] for a in artifacts)


def test_a_canary_sings_before_each_night_and_stops_the_one_whose_figures_moved(
    lab: Lab, inbox: Path, tmp_path: Path
) -> None:
    """The stand-in models find what they find of the phantom; what counts is that it stands still."""
    growing, store = tmp_path / "inbox", tmp_path / "store"
    how = {"settings": {"night": {"canary": True}}, "canary_truth": {"registration_error_px": 1.5}}
    shutil.copytree(inbox / "C-1", growing / "C-1")
    first = lab.night(growing, store, **how).summary()
    assert first["canary"]["status"] == "first", first["canary"]
    assert first["counts"]["processed"] == 1
    shutil.copytree(inbox / "C-2", growing / "C-2")
    record = next((store / "nights").glob("canary-*.json"))
    document = json.loads(record.read_text())
    document["figures"]["cells"] += 3
    record.write_text(json.dumps(document))
    stopped = lab.night(growing, store, **how).summary()
    assert stopped["status"] == "alarm"
    assert "CANARY" in stopped["message"]
    assert [r["status"] for r in stopped["cases"]] == ["done", "held back"]
    assert not (store / "C-2").exists()
    document["figures"]["cells"] -= 3
    record.write_text(json.dumps(document))
    third = lab.night(growing, store, **how).summary()
    assert third["canary"]["status"] == "ok"
    assert third["counts"]["processed"] == 2
    fourth = lab.night(growing, store, **how).summary()
    assert fourth["canary"]["status"] == "not needed"
