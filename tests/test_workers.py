"""The workers of a run: an own cluster, or one that is already there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flows.cluster import MOST_IN_BUNDLE, Workers, gpu_devices, plan_workers
from flows.console import unique_output
from flows.failures import killed_its_worker
from flows.nightly import cases_of
from flows.runs import configured, database_url
from pipeline.errors import BadInput


def square(x: int) -> int:
    return x * x


def fail_on_three(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x


def die_on_two(x: int) -> int:
    if x == 2:
        os._exit(1)
    return x


def test_an_existing_scheduler_is_used_and_left_running() -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        with Workers(scheduler=cluster.scheduler_address) as workers:
            assert {k: v for k, v, _ in workers.map(square, {"a": (2,), "b": (3,)})} == {"a": 4, "b": 9}
        assert cluster.status.name == "running"


@pytest.fixture(scope="module")
def workers() -> object:
    with Workers(n_workers=1) as pool:
        yield pool


def test_there_is_a_worker_a_core_and_one_more_a_gpu_that_sees_it_alone() -> None:
    def seen(plan: dict[str, Any]) -> dict[str, Any]:
        return {name: o["env"].get("CUDA_VISIBLE_DEVICES") for name, o in plan.items()}

    def offered(plan: dict[str, Any]) -> list[str]:
        return [name for name, o in plan.items() if "resources" in o]

    none = plan_workers(None, 2, [])
    assert seen(none) == {"cpu-0": None, "cpu-1": None}
    assert offered(none) == []
    one = plan_workers(8, 2, ["GPU-6b1c"])
    assert seen(one) == {f"cpu-{i}": "" for i in range(8)} | {"gpu-0": "GPU-6b1c"}
    assert offered(one) == ["gpu-0"]
    two = plan_workers(None, 3, ["0", "2"])
    assert seen(two) == {"cpu-0": "", "cpu-1": "", "cpu-2": "", "gpu-0": "0", "gpu-1": "2"}
    assert all(two[name]["resources"] == {"GPU": 1} for name in offered(two))
    assert all(o["env"]["OMP_NUM_THREADS"] == "1" for o in two.values())


def test_what_needs_a_gpu_runs_where_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with Workers(n_workers=1) as pool:
        calls = {str(i): ("CUDA_VISIBLE_DEVICES",) for i in range(6)}
        assert {v for _, v, _ in pool.map(os.getenv, calls, gpu=True)} == {"7"}
        assert pool._n_workers(now=True) == 2


@pytest.mark.parametrize(("value", "devices"), [("", []), ("-1", []), ("1, 3", ["1", "3"])])
def test_the_variable_chooses_the_gpus(
    value: str, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert gpu_devices() == devices


def test_one_failing_call_costs_only_itself_and_keeps_its_error(workers: Workers) -> None:
    found = {k: (v, e) for k, v, e in workers.map(fail_on_three, {str(i): (i,) for i in range(12)})}
    assert len(found) == 12
    assert [k for k, (_, error) in found.items() if error is not None] == ["3"]
    assert isinstance(found["3"][1], ValueError)


class Unfit(Exception):
    """Cannot be unpacked: its words are not its arguments."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def fail_unfit_on_thirty(x: int) -> int:
    if x == 30:
        raise Unfit(x, 1)
    return x


def test_calls_that_travel_together_answer_for_themselves(workers: Workers) -> None:
    found = {k: (v, e) for k, v, e in workers.map(fail_unfit_on_thirty, {str(i): (i,) for i in range(70)})}
    assert workers._bundle_of(70) == MOST_IN_BUNDLE
    assert "30 and 1" in str(found.pop("30")[1])
    assert found == {str(i): (i, None) for i in range(70) if i != 30}


def test_a_call_that_kills_its_worker_is_found_out_and_the_others_are_done(workers: Workers) -> None:
    """As a case does it: what was lost with a worker runs again, one call at a time."""
    found = {k: (v, e) for k, v, e in workers.map(die_on_two, {str(i): (i,) for i in range(4)})}
    # Dask may suspect a call that only waited beside it.
    suspects = [k for k, (_, error) in found.items() if error is not None]
    assert "2" in suspects
    assert all(killed_its_worker(found[k][1]) for k in suspects)
    alone = {k: (v, e) for k, v, e in workers.map(die_on_two, {k: (int(k),) for k in suspects}, alone=True)}
    found.update(alone)
    assert killed_its_worker(found.pop("2")[1])
    assert found == {str(i): (i, None) for i in (0, 1, 3)}


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:1"), Workers(scheduler="tcp://127.0.0.1:1") as workers:
        workers.client  # noqa: B018


def test_an_inbox_lists_case_folders_alone(tmp_path: Path) -> None:
    for name in ("B-2", "A-1", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "note.txt").write_text("x")
    assert [p.name for p in cases_of(tmp_path)] == ["A-1", "B-2"]
    with pytest.raises(BadInput, match="nowhere"):
        cases_of(tmp_path / "nowhere")


def test_a_remote_store_needs_a_database_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMEARFLOW_DATABASE", raising=False)
    with pytest.raises(BadInput, match="SMEARFLOW_DATABASE"):
        database_url("s3://bucket/store")
    monkeypatch.setenv("SMEARFLOW_DATABASE", "postgresql+psycopg://db/results")
    assert database_url("s3://bucket/store") == "postgresql+psycopg://db/results"


def test_a_store_of_any_name_holds_its_results_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.results_db import ResultsDatabase

    monkeypatch.delenv("SMEARFLOW_DATABASE", raising=False)
    for name in ("what?", "50%41 #1"):
        (tmp_path / name).mkdir()
        with ResultsDatabase(database_url(f"file://{tmp_path}/{name}")) as database:
            assert not database.has("A-1", "f")
        assert [p.name for p in (tmp_path / name).iterdir()] == ["results.db"]


def test_a_missing_parameter_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMEARFLOW_STORE", raising=False)
    with pytest.raises(BadInput, match="SMEARFLOW_STORE"):
        configured(None, "SMEARFLOW_STORE", "store")


def test_two_inputs_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    taken: set[Path] = set()
    first = unique_output(tmp_path, Path("a/x.png"), ".png", taken, frozenset())
    second = unique_output(tmp_path, Path("b/x.png"), ".png", taken, frozenset())
    assert first != second
