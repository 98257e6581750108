"""The workers of a run: an own cluster, or one that is already there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.cluster import MOST_IN_BUNDLE, Workers
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


def test_a_missing_parameter_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMEARFLOW_STORE", raising=False)
    with pytest.raises(BadInput, match="SMEARFLOW_STORE"):
        configured(None, "SMEARFLOW_STORE", "store")


def test_two_inputs_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    taken: set[Path] = set()
    first = unique_output(tmp_path, Path("a/x.png"), ".png", taken, frozenset())
    second = unique_output(tmp_path, Path("b/x.png"), ".png", taken, frozenset())
    assert first != second
