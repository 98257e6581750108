"""What may not run twice at once does not, and what is handed over stays small."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.faults import models
from tests.faults.compare import differences
from tests.faults.harness import Lab, make_inbox, until


def make_limit(lab: Lab, name: str, slots: int) -> None:
    """A global concurrency limit, as `prefect gcl create` makes one."""
    request = urllib.request.Request(
        f"{lab.api}/v2/concurrency_limits/",
        data=json.dumps({"name": name, "limit": slots, "active": True}).encode(),
        headers={"content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=30).read()


@pytest.mark.server
def test_two_nights_share_a_gpu_limit_one_after_the_other(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    make_limit(lab, "gpu", 1)
    settings = {"night": {"canary": False, "gpu_limit": "gpu"}}
    trap = lab.trap("^call:stain_unit:before", "pause")
    first = lab.night(inbox, tmp_path / "a", settings=settings)
    trap.wait()
    second = lab.night(inbox, tmp_path / "b", settings=settings)
    waiting = tmp_path / "b" / "C-1" / "work"
    until(lambda: list((waiting / "patches").glob("*.json")), "the second night has its patches")
    assert not second.ended(2.0)
    assert not (waiting / "staining").exists()
    trap.release()
    assert first.summary()["counts"]["processed"] == 2
    assert second.summary()["counts"]["processed"] == 2
    assert differences(tmp_path / "b", undisturbed, "C-1") == []


@pytest.mark.server
def test_a_limit_that_the_server_does_not_have_is_named(lab: Lab, inbox: Path, tmp_path: Path) -> None:
    settings = {"night": {"canary": False, "database_limit": "no-such-limit"}}
    summary = lab.night(inbox, tmp_path / "store", settings=settings).summary()
    assert summary["counts"]["failed"] == 2
    assert all("no-such-limit" in row["error"] for row in summary["cases"])


class Traffic:
    """Counts what this process, which is client and scheduler, sends by TCP."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from distributed.comm.tcp import TCP

        self.messages: list[int] = []
        send = TCP.write

        async def write(comm: Any, *args: Any, **kwargs: Any) -> int:
            n_bytes = await send(comm, *args, **kwargs)
            self.messages.append(n_bytes)
            return int(n_bytes)

        monkeypatch.setattr(TCP, "write", write)


def test_no_array_goes_through_the_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of the case are 518 kB, 173 kB and 173 kB of pixels; its patches as much again."""
    import dask

    from flows.cluster import Workers
    from flows.execute import execute
    from flows.runs import open_run

    case = make_inbox(tmp_path / "inbox") / "C-1"
    traffic = Traffic(monkeypatch)
    with (
        dask.config.set({"distributed.worker.preload": ["tests.faults.worker"]}),
        Workers(n_workers=1) as workers,
        models.registered(),
    ):
        workers.client.wait_for_workers(1)
        traffic.messages.clear()
        outcome = execute(open_run(case, str(tmp_path / "store"), models.SETTINGS, workers))
    n_items = sum(outcome.computed.values())
    assert n_items > 15
    assert len(traffic.messages) > n_items, "nothing was counted"
    assert max(traffic.messages) < 100_000
    assert sum(traffic.messages) / n_items < 30_000


def test_only_a_few_calls_a_worker_are_in_flight() -> None:
    """Back-pressure: what is handed over and unanswered does not grow with the night."""
    from flows.cluster import IN_FLIGHT_PER_WORKER, MOST_IN_BUNDLE, Workers

    handed_over, most = 0, 0
    with Workers(n_workers=1) as workers:
        submit = workers._submit

        def counted(function: Any, bundle: list[Any], resources: Any) -> Any:
            nonlocal handed_over, most
            handed_over += len(bundle)
            most = max(most, handed_over)
            return submit(function, bundle, resources)

        workers._submit = counted  # type: ignore[method-assign]
        for _ in workers.map(abs, {str(i): (-i,) for i in range(60)}):
            handed_over -= 1
    assert handed_over == 0
    assert most <= IN_FLIGHT_PER_WORKER * MOST_IN_BUNDLE < 60
