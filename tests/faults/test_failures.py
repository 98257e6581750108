"""Whose fault an error is, and that it is still known when it comes back from a worker."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.scheduler import KilledWorker

from flows import stages
from flows.cluster import ClusterGone, Workers
from flows.failures import Interrupted, fault_of, worth_another_try
from flows.records import CaseRun, Item
from pipeline.errors import BadInput, BadModelPackage, InputChanged, UnknownName, UnreadableImage
from pipeline.settings import DetectionSettings, Settings
from storage.ledger import Ledger
from storage.store import CaseBusy, Store
from tests.report_cases import a_case, image

ERRORS = [
    BadInput("no"),
    UnreadableImage("torn"),
    InputChanged("another file"),
    UnknownName("detector", "x", ["y"]),
    BadModelPackage("altered"),
    ClusterGone("gone"),
    CaseBusy("busy"),
    OSError(errno.ENOSPC, "No space left on device"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_an_error_keeps_its_type_and_words_on_the_way_from_a_worker(error: Exception) -> None:
    """Dask pickles what a call raises by way of tblib; what it cannot make again becomes a bare Exception."""
    from distributed.core import clean_exception, error_message

    try:
        raise error
    except Exception as caught:
        message = error_message(caught)
    message["exception"] = message["exception"].data
    if message["traceback"] is not None:
        message["traceback"] = message["traceback"].data
    _, back, _ = clean_exception(**message)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert fault_of(back) == fault_of(error)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (UnreadableImage("torn"), "input"),
        (BadInput("no"), "input"),
        (InputChanged("another file"), "machine"),
        (UnknownName("detector", "x", ["y"]), "machine"),
        (OSError(errno.ENOSPC, "full"), "machine"),
        (OSError(errno.ESTALE, "stale"), "machine"),
        (ConnectionResetError("cut"), "machine"),
        (ClusterGone("gone"), "machine"),
        (OSError("a decoder's own"), "item"),
        (MemoryError(), "item"),
        (ValueError("a bug"), "item"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_each_error_has_one_who_is_to_blame(error: Exception, fault: str) -> None:
    assert fault_of(error) == fault


def test_only_what_may_go_away_is_tried_again_in_the_same_night() -> None:
    assert worth_another_try(Interrupted("cut off"))
    assert worth_another_try(CaseBusy("busy"))
    assert not worth_another_try(BadInput("no manifest"))
    assert not worth_another_try(ValueError("a bug"))


class Answers(Workers):
    """Workers that answer each batch as they are told."""

    def __init__(self, *batches: dict[str, Any]) -> None:
        super().__init__()
        self.batches = list(batches)
        self.alone: list[bool] = []

    def map(self, function: Any, calls: Any, *, gpu: bool = False, alone: bool = False) -> Iterator[Any]:
        self.alone.append(alone)
        batch = self.batches.pop(0)
        assert set(calls) == set(batch)
        for key, answer in batch.items():
            failed = isinstance(answer, BaseException)
            yield key, None if failed else answer, answer if failed else None


def run_with(tmp_path: Path, workers: Workers) -> CaseRun:
    store = Store(tmp_path)
    return CaseRun(tmp_path, "C-1", store, Settings(), workers, Ledger(store, "C-1"))


def items(*keys: str) -> list[Item]:
    return [Item(key, f"f-{key}", dict, ()) for key in keys]


def test_only_the_item_that_kills_its_worker_is_blamed_for_it(tmp_path: Path) -> None:
    """Dask gives up every call that was with a worker when it died; each is tried once more, alone."""
    dead = KilledWorker("task", SimpleNamespace(address="tcp://127.0.0.1:1"), 3)  # type: ignore[arg-type]
    workers = Answers({"F1": {"a": 1}, "F2": dead, "F3": dead}, {"F2": dead, "F3": {"a": 3}})
    run = run_with(tmp_path, workers)
    found = run.run_items("detection", items("F1", "F2", "F3"))
    assert workers.alone == [False, True]
    assert {k: o.error_type for k, o in found.items()} == {"F1": None, "F2": "KilledWorker", "F3": None}
    assert run.ledger.items("detection")["F2"]["status"] == "failed"
    assert run.kept("detection", "F2", "f-F2") is None, "the next run tries it again"


def test_what_the_machine_failed_is_tried_once_more_and_then_ends_the_case(tmp_path: Path) -> None:
    cut = ConnectionResetError("cut")
    run = run_with(tmp_path, Answers({"F1": {"a": 1}, "F2": cut}, {"F2": {"a": 2}}))
    assert run.run_items("detection", items("F1", "F2"))["F2"].output == {"a": 2}
    run = run_with(tmp_path / "again", Answers({"F1": {"a": 1}, "F2": cut}, {"F2": cut}))
    with pytest.raises(Interrupted, match="F2"):
        run.run_items("detection", items("F1", "F2"))
    assert run.kept("detection", "F1", "f-F1") is not None, "what was done stays done"


def test_an_unusable_input_is_kept_as_such_and_an_unforeseen_error_is_not(tmp_path: Path) -> None:
    run = run_with(tmp_path, Answers({"F1": UnreadableImage("torn"), "F2": ValueError("a bug")}))
    run.run_items("detection", items("F1", "F2"))
    kept = run.kept("detection", "F1", "f-F1")
    assert kept is not None
    assert kept.error == "torn"
    assert run.kept("detection", "F2", "f-F2") is None
    assert [s["status"] for s in run.ledger.items("detection").values()] == ["quarantined", "failed"]


def test_a_picture_beside_a_record_that_was_torn_or_replaced_is_noticed(tmp_path: Path) -> None:
    run = run_with(tmp_path, Answers({"F1": {"picture": "C-1/work/detection/F1.jpg"}}, {"F1": {"a": 1}}))
    run.store.write_bytes("C-1/work/detection/F1.jpg", b"a picture")
    run.run_items("detection", items("F1"))
    assert run.kept("detection", "F1", "f-F1") is not None
    run.store.write_bytes("C-1/work/detection/F1.jpg", b"half")
    assert run.kept("detection", "F1", "f-F1") is None
    run.run_items("detection", items("F1"))
    assert not run.store.exists("C-1/work/detection/F1.jpg"), "the new outcome has no picture"


def test_each_item_goes_to_the_workers_that_it_needs(tmp_path: Path) -> None:
    """Of one stage some items may need a GPU and others not: DIC that is painted, and stained fields."""
    asked: list[tuple[bool, list[str]]] = []

    class Seen(Answers):
        def map(self, function: Any, calls: Any, *, gpu: bool = False, alone: bool = False) -> Iterator[Any]:
            asked.append((gpu, list(calls)))
            yield from ((key, {"a": 1}, None) for key in calls)

    run = run_with(tmp_path, Seen())
    mixed = [
        Item("F1", "1", dict, (), gpu=True),
        Item("F2", "2", dict, ()),
        Item("F3", "3", dict, (), gpu=True),
    ]
    assert set(run.run_items("detection", mixed)) == {"F1", "F2", "F3"}
    assert asked == [(False, ["F2"]), (True, ["F1", "F3"])]


@pytest.mark.parametrize(
    ("stage", "modality", "settings", "gpu"),
    [
        ("virtual-perls", "brightfield", {}, True),
        ("detection", "dic", {}, True),
        ("detection", "dic", {"dic_painted": False}, False),
        ("detection", "dic", {"dic_detector": "classical"}, False),  # which paints nothing
        ("detection", "brightfield", {}, False),
        ("cells", "dic", {}, False),
    ],
)
def test_the_limit_of_the_gpu_is_held_by_every_stage_that_may_use_one_and_by_no_other(
    tmp_path: Path, stage: str, modality: str, settings: dict[str, Any], gpu: bool
) -> None:
    run = run_with(tmp_path, Answers())
    run = replace(run, settings=Settings(detection=DetectionSettings(**settings)))
    shown = image("F1", modality, "unstained" if modality == "dic" else "MGG")
    assert stages.uses_gpu(stage, run, a_case(images=(shown,))) is gpu
