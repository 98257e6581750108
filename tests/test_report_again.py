"""A report made again: from what its cells were found by, and only where something was computed anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flows import stages
from flows.rebuild import rebuild
from flows.reviewing import review_case
from pipeline.errors import BadInput
from storage.packages import find_package
from tests.reported_store import CASE, report_case
from tests.test_review import _result, store

__all__ = ["store"]


@pytest.mark.parametrize("stage", ["explanation", "registration", "report"])
def test_a_page_is_written_again_where_any_stage_computes_anew_and_only_then(
    store: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(store) / CASE / "report.html"
    written = page.stat().st_mtime_ns
    report_case(store)
    assert page.stat().st_mtime_ns == written
    # Another picture of the same values, as where the code of a stage has changed.
    monkeypatch.setitem(stages.VERSIONS, stage, stages.VERSIONS[stage] + 1)
    report_case(store)
    assert page.stat().st_mtime_ns > written


def test_a_report_made_again_tells_of_the_models_and_settings_that_the_cells_were_named_by(
    store: str,
) -> None:
    before = _result(store)
    for given in ({"classification": {"virtual_classifier": None}}, {"staining": {"target": "raabin"}}):
        with pytest.raises(BadInput, match=r"is not what the case was run with.*run the case again"):
            rebuild(CASE, store, given)
        with pytest.raises(BadInput, match="run the case again"):
            review_case(CASE, store, reviewer="Dr. X", sign=True, settings=given)
    assert _result(store) == before
    same = {
        "classification": {"virtual_classifier": "virtual-leukocytes"},
        "counting": {"interval": "wilson"},
    }
    rebuild(CASE, store, same)
    after = _result(store)
    assert after["software"]["models"] == before["software"]["models"]
    assert after["software"]["config_sha256"] != before["software"]["config_sha256"]


def test_a_changed_card_or_weight_file_makes_the_report_anew(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Thresholds, reader errors and limits in a report are the card's; other weights block it."""
    shipped = find_package("leukocyte-classes")
    assert shipped is not None
    shutil.copytree(shipped.folder, tmp_path / "weights" / "leukocyte-classes")
    monkeypatch.setenv("SMEARFLOW_WEIGHTS", str(tmp_path / "weights"))
    assert "LOW_CONFIDENCE" not in {f["code"] for f in _result(store)["flags"]}
    card = tmp_path / "weights" / "leukocyte-classes" / "card.json"
    document = json.loads(card.read_text())
    document["parameters"]["min_confidence"] = 0.99
    card.write_text(json.dumps(document))
    report_case(store)
    assert "LOW_CONFIDENCE" in {f["code"] for f in _result(store)["flags"]}
    assert "MODEL_HASH" not in {f["code"] for f in _result(store)["flags"]}
    with (card.parent / "model.safetensors").open("ab") as stream:
        stream.write(b" ")
    report_case(store)
    flag = next(f for f in _result(store)["flags"] if f["code"] == "MODEL_HASH")
    assert "leukocyte-classes" in flag["message"]


def test_a_result_of_other_settings_than_the_validated_ones_is_flagged(store: str) -> None:
    validated = _result(store)["software"]["config_sha256"]
    rebuild(CASE, store, {"report": {"validated_config": validated}})
    assert "MODEL_HASH" not in {f["code"] for f in _result(store)["flags"]}
    rebuild(CASE, store, {"report": {"validated_config": validated}, "counting": {"level": 0.9}})
    flag = next(f for f in _result(store)["flags"] if f["code"] == "MODEL_HASH")
    assert "the configuration" in flag["message"]
