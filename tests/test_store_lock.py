"""One writer a case on an object store, spoken to over HTTP: two at once, a dead one, a stolen one."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flows.status import status_of_case
from pipeline.errors import BadInput
from storage import store_lock
from storage.ledger import Ledger
from storage.store import CaseBusy, Store
from tests.s3_server import running_s3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, running_s3(patch):
        yield "s3://lab"


@pytest.fixture
def store(bucket: str, request: pytest.FixtureRequest) -> Store:
    return Store(f"{bucket}/{request.node.name[:40]}")


def _lock(store: Store, lease_s: float = 120.0) -> store_lock.ObjectLock:
    return store_lock.ObjectLock(store._fs, store._remote("C1/.lock"), "C1", lease_s)


def test_a_second_run_of_a_case_is_refused_and_another_case_is_not(store: Store) -> None:
    with store.writing("C1"):
        with pytest.raises(CaseBusy, match=r"C1: another run is working on this case \(process \d+ on "):
            Store(store.url).writing("C1").__enter__()
        with store.writing("C2"):
            pass
        holder = store.holder("C1")
        assert holder is not None
        assert holder["pid"] > 0
    assert store.holder("C1") is None
    assert store.list("C1") == []
    with store.writing("C1"):
        pass


def _race(url: str, start: Any, results: Any) -> None:
    lock = _lock(Store(url))
    start.wait()
    try:
        lock.acquire()
        results.put("won")
    except CaseBusy:
        results.put("busy")


def _of_many(store: Store) -> list[str]:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    running = [context.Process(target=_race, args=(store.url, start, results)) for _ in range(3)]
    for process in running:
        process.start()
    found = sorted(results.get(timeout=60) for _ in running)
    for process in running:
        process.join()
    return found


def test_of_many_that_come_at_once_one_wins(store: Store) -> None:
    assert _of_many(store) == ["busy", "busy", "won"]


def test_of_many_that_take_over_from_a_dead_run_one_wins(store: Store) -> None:
    _lock(store, lease_s=0.5).acquire()  # and dies: nobody renews it
    time.sleep(2.1)
    assert _of_many(store) == ["busy", "busy", "won"]


def test_a_dead_run_is_not_shown_as_running(store: Store) -> None:
    ledger = Ledger(store, "C1")
    ledger.begin("/inbox/C1")
    _lock(store, lease_s=1.5).acquire()  # and dies; the store's clock has whole seconds
    assert status_of_case(store, "C1").state == "running"
    time.sleep(3.1)
    assert store.holder("C1") is None
    assert status_of_case(store, "C1").state == "interrupted"
    assert store.list("C1") == [".lock", "ledger.json"]


def test_a_living_owner_is_not_taken_over_however_long_it_works(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_lock.held(store._fs, store._remote("C1/.lock"), "C1", lease_s=1.6):
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            with pytest.raises(CaseBusy):
                _lock(store).acquire()
            time.sleep(0.5)


def test_an_owner_that_was_taken_over_is_told_and_does_not_remove_the_new_lock(store: Store) -> None:
    asleep = _lock(store, lease_s=0.5)
    asleep.acquire()
    time.sleep(2.1)
    taker = _lock(store)
    taker.acquire()
    asleep.renew()
    assert asleep.lost
    asleep.release()
    holder = store.holder("C1")
    assert holder is not None
    assert holder["owner"] == taker._owner


def test_a_clock_that_is_wrong_takes_no_lock_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime

    with store.writing("C1"):
        monkeypatch.setattr("storage.clock._read", lambda: datetime(2099, 1, 1, tzinfo=UTC))
        with pytest.raises(CaseBusy):
            _lock(store).acquire()


def test_a_store_that_ignores_conditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://careless")
    monkeypatch.setattr(store_lock, "_honest", set())
    careless = type(store._fs)
    write = careless.pipe_file
    monkeypatch.setattr(careless, "pipe_file", lambda fs, path, data, mode="", **_: write(fs, path, data))
    with pytest.raises(BadInput, match="ignores conditional writes"), store.writing("C1"):
        pass
    assert store.list("C1") == []


def test_a_lock_that_is_no_json_is_a_lock(store: Store) -> None:
    store.write_bytes("C1/.lock", b"{torn")
    with pytest.raises(CaseBusy, match="process unknown"):
        _lock(store).acquire()


class EndpointConnectionError(Exception):
    """As botocore's: no OSError."""


def test_a_network_that_fails_for_a_while_costs_no_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failures = store_lock.ObjectLock._put, []

    def failing(self: Any, **how: Any) -> bool:
        if "IfMatch" in how and len(failures) < 2:
            failures.append(1)
            raise EndpointConnectionError("no route")
        return put(self, **how)

    monkeypatch.setattr(store_lock.ObjectLock, "_put", failing)
    with store_lock.held(store._fs, store._remote("C1/.lock"), "C1", lease_s=2.4):
        time.sleep(4.2)  # beyond the lease: the third beat must have come
        with pytest.raises(CaseBusy):
            _lock(store).acquire()
    assert len(failures) == 2


def test_a_run_whose_case_was_taken_over_writes_no_more_documents(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_lock.ObjectLock, "beat", lambda self: None)  # asleep
    asleep = Store(store.url)
    monkeypatch.setattr(
        "storage.store.held", lambda fs, path, case: store_lock.held(fs, path, case, lease_s=0.5)
    )
    run = asleep.writing("C1")
    run.__enter__()
    asleep.write_bytes("C1/result.json", b"before")
    time.sleep(2.1)
    asleep.write_bytes("C1/result.json", b"slow, and still alone")
    time.sleep(2.1)
    _lock(store).acquire()
    for write in (
        lambda: asleep.write_bytes("C1/result.json", b"late"),
        lambda: asleep.create_bytes("C1/audit/000001.json", b"late"),
        lambda: asleep.delete("C1/result.json"),
    ):
        with pytest.raises(CaseBusy, match="the result is the other's"):
            write()
    asleep.write_bytes("C2/result.json", b"of another case")
    with pytest.raises(CaseBusy, match="another run took this case over"):
        run.__exit__(None, None, None)
    assert store.read_bytes("C1/result.json") == b"slow, and still alone"
    asleep.write_bytes("C1/result.json", b"not as a run")


def test_a_run_whose_case_was_taken_over_hears_of_it_at_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_lock.ObjectLock, "renew", lambda self: None)  # no beat came through
    owned = store_lock.held(store._fs, store._remote("C1/.lock"), "C1", lease_s=0.5)
    owned.__enter__()
    time.sleep(2.1)
    _lock(store).acquire()
    with pytest.raises(CaseBusy, match="another run took this case over"):
        owned.__exit__(None, None, None)
