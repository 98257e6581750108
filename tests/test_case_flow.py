"""A case from its folder to its report, on phantoms, through real Dask workers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.cluster import Workers
from flows.execute import CaseOutcome, execute, up_to_date
from flows.runs import open_run
from pipeline.errors import BadInput
from tests.case_folders import make_case, write_manifest


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    with Workers(n_workers=2) as pool:
        yield pool


@pytest.fixture(scope="session")
def phantom_case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small paired fields of blood, 8 leukocytes each; a phantom."""
    from phantoms.cases import simulate_case

    return simulate_case(
        tmp_path_factory.mktemp("inbox") / "P-1",
        case_id="P-1",
        seed=3,
        n_fields=3,
        width_px=900,
        height_px=700,
        n_leukocytes_per_field=8,
    )


def process(case_dir: Path, store: Path, workers: Workers, **how: Any) -> CaseOutcome:
    run = open_run(case_dir, str(store), how.pop("settings", None), workers, **how)
    outcome = execute(run)
    run.ledger.end_run(computed=run.computed, reused=run.reused)
    return outcome


def timeless(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    result.pop("created")
    return result


@pytest.fixture(scope="session")
def processed(
    phantom_case: Path, workers: Workers, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CaseOutcome]:
    store = tmp_path_factory.mktemp("store")
    return store, process(phantom_case, store, workers)


def test_a_paired_case_leaves_result_report_table_and_database_row(
    processed: tuple[Path, CaseOutcome],
) -> None:
    import pandas as pd
    from sqlalchemy import create_engine, text

    store, outcome = processed
    case = store / "P-1"
    assert (case / "report.html").stat().st_size < 5_000_000
    table = pd.read_parquet(case / "cells.parquet")
    assert len(table) == outcome.result["differential"]["n_detected"] > 0
    with create_engine(f"sqlite:///{store / 'results.db'}").connect() as connection:
        assert connection.execute(text("select count(*) from results where case_id = 'P-1'")).scalar() == 1


def test_every_field_of_a_paired_case_is_registered_to_the_known_transform(
    phantom_case: Path, processed: tuple[Path, CaseOutcome]
) -> None:
    store, _ = processed
    truth = json.loads((phantom_case / "truth.json").read_text())["fields"]
    found = {}
    for record in (store / "P-1" / "work" / "registration").glob("*.json"):
        found[record.name[:80]] = json.loads(record.read_text())["output"]["registration"]
    assert len(found) == len(truth) == 3
    grid = np.array([[x, y, 1.0] for x in (50, 450, 850) for y in (50, 350, 650)])
    for field, known in truth.items():
        name = next(k for k in found if field in k)
        assert found[name]["status"] == "ok", found[name]["reason"]
        error = np.linalg.norm(
            grid @ (np.array(found[name]["matrix"]) - known["brightfield_to_dic"]).T, axis=1
        )
        assert error.mean() < 1.0, field


def test_most_true_leukocytes_of_a_phantom_case_are_counted_once(
    phantom_case: Path, processed: tuple[Path, CaseOutcome]
) -> None:
    truth = json.loads((phantom_case / "truth.json").read_text())["fields"]
    n_true = sum(len(f["leukocytes_xyxy"]) for f in truth.values())
    assert abs(processed[1].result["differential"]["n_detected"] - n_true) <= 0.2 * n_true


def test_the_same_inputs_again_compute_nothing(
    phantom_case: Path, processed: tuple[Path, CaseOutcome]
) -> None:
    store, first = processed
    before = (store / "P-1" / "result.json").read_bytes()
    again = up_to_date(phantom_case, str(store))
    assert again is not None
    assert again.computed == {}
    assert again.result == first.result
    assert (store / "P-1" / "result.json").read_bytes() == before
    ledger = json.loads((store / "P-1" / "ledger.json").read_text())
    assert ledger["runs"][-1]["computed"] == {}


def test_a_look_at_a_case_without_a_report_hashes_none_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(*_: object) -> str:
        raise AssertionError("a file was read")

    monkeypatch.setattr("pipeline.intake_sources.Source.hash_file", hashed)
    assert up_to_date(make_case(tmp_path / "K-1"), str(tmp_path / "store")) is None
    write_manifest(tmp_path / "K-1", "nonsense")
    with pytest.raises(BadInput):  # what is wrong with the folder is told all the same
        up_to_date(tmp_path / "K-1", str(tmp_path / "store"))


def test_a_changed_counting_setting_recomputes_the_report_alone(
    phantom_case: Path, processed: tuple[Path, CaseOutcome], workers: Workers, tmp_path: Path
) -> None:
    shutil.copytree(processed[0], tmp_path / "store")
    outcome = process(
        phantom_case, tmp_path / "store", workers, settings={"counting": {"interval": "wilson"}}
    )
    assert set(outcome.computed) == {"report"}
    assert outcome.result["method"]["interval"] != processed[1].result["method"]["interval"]


def test_another_limit_of_doubt_is_reported_and_no_cell_is_named_again(
    phantom_case: Path, processed: tuple[Path, CaseOutcome], workers: Workers, tmp_path: Path
) -> None:
    shutil.copytree(processed[0], tmp_path / "store")
    limits = {"min_confidence": 0.02, "min_seen": 0.1}
    outcome = process(phantom_case, tmp_path / "store", workers, settings={"classification": limits})
    assert "report" in outcome.computed
    assert "classification" not in outcome.computed
    assert outcome.result["method"]["min_confidence"] == 0.02


def test_a_deleted_shard_is_cut_again_and_the_result_stays(
    phantom_case: Path, processed: tuple[Path, CaseOutcome], workers: Workers, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(processed[0], store)
    shards = [p for p in (store / "P-1" / "case.zarr" / "patches" / "256").rglob("c/*") if p.is_file()]
    shards = shards or [
        p
        for p in (store / "P-1" / "case.zarr" / "patches" / "256").rglob("*")
        if p.is_file() and p.name != "zarr.json"
    ]
    assert shards
    shards[0].unlink()
    outcome = process(phantom_case, store, workers)
    assert outcome.computed.get("patches", 0) >= 1
    assert shards[0].exists()
    assert timeless(store / "P-1" / "result.json") == timeless(processed[0] / "P-1" / "result.json")


def test_another_store_and_one_worker_give_the_same_result(
    phantom_case: Path, processed: tuple[Path, CaseOutcome], tmp_path: Path
) -> None:
    with Workers(n_workers=1) as one:
        process(phantom_case, tmp_path / "store", one)
    assert timeless(tmp_path / "store" / "P-1" / "result.json") == timeless(
        processed[0] / "P-1" / "result.json"
    )


def copy_case(source: Path, target: Path, keep: str | None = None) -> Path:
    """A copy of a case folder with the rows of one modality alone."""
    shutil.copytree(source, target)
    if keep is not None:
        lines = (target / "manifest.csv").read_text().splitlines()
        rows = [lines[0], *[r for r in lines[1:] if f",{keep}," in r]]
        (target / "manifest.csv").write_text("\n".join(rows) + "\n")
    return target


def test_a_dic_only_case_runs_on_virtual_stain_and_says_so(
    phantom_case: Path, workers: Workers, tmp_path: Path
) -> None:
    case = copy_case(phantom_case, tmp_path / "DIC-1", keep="dic")
    result = process(case, tmp_path / "store", workers).result
    assert result["case"]["mode"] == "dic"
    assert result["differential"]["n_detected"] > 0
    assert "VIRTUAL_STAIN" in {f["code"] for f in result["flags"]}
    assert result["not_assessed"]


def test_a_stainer_given_by_its_folder_paints_a_case_as_the_shipped_one_does(
    phantom_case: Path, workers: Workers, tmp_path: Path
) -> None:
    from storage.registry import describe

    case = copy_case(phantom_case, tmp_path / "DIC-2", keep="dic")
    lines = (case / "manifest.csv").read_text().splitlines()
    (case / "manifest.csv").write_text("\n".join(lines[:2]) + "\n")  # one field
    own = shutil.copytree(describe("stainer", "dic-to-mgg").folder, tmp_path / "own")
    found = [
        process(case, tmp_path / "store", workers, settings={"staining": chosen}).result["differential"]
        for chosen in ({}, {"dic_stainer": str(own)})
    ]
    assert found[0] == found[1]
    assert found[0]["n_detected"] > 0
    painted = {p.name for p in (tmp_path / "store" / "DIC-2" / "case.zarr" / "virtual").iterdir()}
    assert any(name.startswith("dic-to-mgg-") for name in painted)


def test_a_dic_field_is_found_anew_where_it_is_not_painted_and_each_model_is_named_once(
    phantom_case: Path, workers: Workers, tmp_path: Path
) -> None:
    case = copy_case(phantom_case, tmp_path / "DIC-3", keep="dic")
    lines = (case / "manifest.csv").read_text().splitlines()
    (case / "manifest.csv").write_text("\n".join(lines[:2]) + "\n")  # one field
    chosen: tuple[dict[str, Any], ...] = ({}, {"dic_painted": False, "dic_threshold": 0.5})
    painted, alone = (process(case, tmp_path / "store", workers, settings={"detection": c}) for c in chosen)
    named = [[m["name"] for m in outcome.result["software"]["models"]] for outcome in (painted, alone)]
    assert set(named[0]) - set(named[1]) == {"leukocyte-brightfield"}  # it read the painted picture
    assert sorted(set(named[0])) == sorted(named[0])
    assert alone.computed["detection"] == 1
    assert "registration" not in alone.computed


def test_a_brightfield_only_case_runs_without_registration(
    phantom_case: Path, workers: Workers, tmp_path: Path
) -> None:
    case = copy_case(phantom_case, tmp_path / "BF-1", keep="brightfield")
    outcome = process(case, tmp_path / "store", workers)
    assert outcome.result["case"]["mode"] == "brightfield"
    assert "registration" not in outcome.computed
    assert "VIRTUAL_STAIN" not in {f["code"] for f in outcome.result["flags"]}
    # How DIC is looked at is nothing to it.
    again = process(case, tmp_path / "store", workers, settings={"detection": {"dic_painted": False}})
    assert "detection" not in again.computed


def test_a_sliver_of_a_leukocyte_at_an_edge_is_found_and_shown_but_not_named(
    phantom_case: Path, workers: Workers, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq
    import tifffile

    from storage.images import read_image

    case = copy_case(phantom_case, tmp_path / "CUT-1", keep="brightfield")
    header, first = (case / "manifest.csv").read_text().splitlines()[:2]
    (case / "manifest.csv").write_text(f"{header}\n{first}\n")
    row = dict(zip(header.split(","), first.split(","), strict=True))
    boxes = json.loads((case / "truth.json").read_text())["fields"][row["field"]]["leukocytes_xyxy"]
    left, _, right, _ = max(boxes)
    cut = round(left + 0.3 * (right - left))
    tifffile.imwrite(case / row["file"], read_image(case / row["file"])[:, :cut], photometric="rgb")

    store = tmp_path / "store"
    result = process(case, store, workers).result
    cells = pq.read_table(next(store.rglob("cells.parquet"))).to_pylist()
    at_edge = {c["x0_px"] > left - 20: c["label"] for c in cells if c["at_border"] and c["x1_px"] > cut - 2}
    assert at_edge.pop(True) == "unidentified"
    assert "unidentified" not in at_edge.values()  # another one, of which the edge takes less
    assert result["differential"]["n_unidentified"] == 1
    assert result["differential"]["n_denominator"] == len(cells) - 1
    assert "CUT_CELLS" in {n["code"] for n in result["not_assessed"]}


def test_a_pixel_size_that_the_red_cells_contradict_is_flagged_with_image_and_both_sizes(
    phantom_case: Path, processed: tuple[Path, CaseOutcome], workers: Workers, tmp_path: Path
) -> None:
    wrong = process(phantom_case, tmp_path / "store", workers, pixel_size_um=0.3).result
    doubts = [p for p in wrong["problems"] if p["code"] == "SCALE_DOUBT"]
    assert len(doubts) == 3, "each brightfield field of the case"
    (flag,) = [f for f in wrong["flags"] if f["code"] == "DOMAIN_MISMATCH"]
    assert doubts[0]["file"] in flag["message"]
    assert "0.3 µm" in flag["message"]
    spoken = float(flag["message"].split("red cells speak for ")[1].split()[0])
    assert spoken == pytest.approx(0.1, rel=0.15)
    assert all(f["status"] == "used" for f in wrong["fields"]), "a doubt loses no field"
    right = processed[1].result
    assert [p for p in right["problems"] if p["code"] == "SCALE_DOUBT"] == []
