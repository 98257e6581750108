"""The store: whole writes, no way out of the root, local and remote alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.errors import BadInput
from pipeline.settings import PatchSettings
from pipeline.types import Problem
from storage.fingerprint import fingerprint
from storage.ledger import Ledger
from storage.store import BadKey, CaseBusy, Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "lab")
    return Store(f"memory://{tmp_path.name}/lab")


def test_documents_come_back_as_written_and_lists_are_sorted(store: Store) -> None:
    store.write_json("C1/a.json", {"µ": [1, 2.5, None]})
    store.write_text("C1/b.txt", "text")
    store.write_bytes("C2/sub/c.bin", b"\0\1")
    again = Store(store.url)
    assert again.read_json("C1/a.json") == {"µ": [1, 2.5, None]}
    assert again.read_text("C1/b.txt") == "text"
    assert again.read_bytes("C2/sub/c.bin") == b"\0\1"
    assert again.size("C2/sub/c.bin") == 2
    assert again.size("C2/none") is None
    assert again.list() == ["C1", "C2"]
    assert again.list("C1") == ["a.json", "b.txt"]
    assert again.list("none") == []
    store.write_text("C1/b.txt", "new")
    assert again.read_text("C1/b.txt") == "new"
    again.delete("C1")
    again.delete("C1")
    assert not store.exists("C1/a.json")
    with pytest.raises(FileNotFoundError):
        store.read_bytes("C1/a.json")


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a/", "a\\b", "a\0b", "a\nb", "x" * 256]
)
def test_a_key_out_of_the_store_is_refused(store: Store, key: str) -> None:
    for act in (store.exists, store.read_bytes, store.delete, lambda k: store.write_bytes(k, b"")):
        with pytest.raises(BadKey):
            act(key)


def test_a_link_in_the_store_is_not_followed_out_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "lab")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.txt").write_text("theirs")
    (tmp_path / "lab" / "C1").symlink_to(outside)
    (tmp_path / "lab" / "b.txt").symlink_to(outside / "a.txt")
    for key in ("C1/a.txt", "C1/new/deep.txt", "b.txt"):
        with pytest.raises(BadKey, match="through a link"):
            store.write_bytes(key, b"ours")
    assert [p.name for p in outside.iterdir()] == ["a.txt"]
    assert (outside / "a.txt").read_text() == "theirs"


def test_a_write_that_fails_leaves_the_old_document_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write_text("a.txt", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_text("a.txt", "new")
    assert store.read_text("a.txt") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_named_by_the_store_that_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (store.write_bytes, store.create_bytes):
        with pytest.raises(OSError, match=f"the disk that holds {tmp_path} is full") as caught:
            write("C/a.txt", b"new")
        assert caught.value.errno == 28  # the machine's fault, which is tried again


def test_json_that_no_reader_could_parse_is_not_written(store: Store) -> None:
    with pytest.raises(ValueError):
        store.write_json("a.json", float("nan"))
    assert not store.exists("a.json")


def test_a_store_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be made here .*; choose a folder\.$"):
        Store(tmp_path / "file" / "store")
    with pytest.raises(BadInput, match="cannot be opened"):
        Store("nosuch://bucket/x")


def test_a_case_is_written_by_one_process_and_free_when_that_dies(tmp_path: Path) -> None:
    store = Store(tmp_path)
    code = (
        "import sys, time; from storage.store import Store\n"
        f"with Store({str(tmp_path)!r}).writing('C1'):\n print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CaseBusy, match="another run is working on this case"), store.writing("C1"):
            pass
        with store.writing("C2"):
            pass
        other.kill()
        other.wait()
    with store.writing("C1"):
        pass


class _A(BaseModel):
    x: float
    y: tuple[int, ...] = ()


class _B(BaseModel):
    x: float
    y: tuple[int, ...] = ()


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    parts = "'a', 1, 2.5, {'b': [1, None], 'a': True}, PatchSettings(), ('x', 'y')"
    code = (
        "from storage.fingerprint import fingerprint; from pipeline.settings import PatchSettings;"
        f"print(fingerprint({parts}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    ours = fingerprint("a", 1, 2.5, {"a": True, "b": [1, None]}, PatchSettings(), ("x", "y"))
    assert other.stdout.strip() == ours
    assert len(ours) == 64


def test_what_differs_has_another_fingerprint_and_what_is_equal_the_same() -> None:
    different = [
        ("ab",), ("a", "b"), (["a", "b"],), (1,), ("1",), (True,), (None,), (), ("",), (1.5,), (_A(x=1),),
        (_B(x=1),), (_A(x=2),), ({"a": 1},), ({"a": "1"},), ({1: "a"},), (b"a",), (float("inf"),),
    ]  # fmt: skip
    marks = [fingerprint(*parts) for parts in different]
    assert len(set(marks)) == len(marks)
    assert fingerprint(1) == fingerprint(1.0)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({3, 1, 2}) == fingerprint({2, 3, 1})
    assert fingerprint((1, 2)) == fingerprint([1, 2])


def test_what_has_no_stable_form_has_no_fingerprint() -> None:
    import numpy as np

    for value in (object(), lambda: 0, np.zeros(3)):
        with pytest.raises(TypeError, match="no stable fingerprint"):
            fingerprint(value)
    assert fingerprint(np.float64(2.5)) == fingerprint(2.5)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5), st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=9))
    )
)
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(values: dict[str, object]) -> None:
    assert fingerprint(values) == fingerprint(dict(reversed(values.items())))


def test_the_ledger_tells_the_story_to_the_next_process(store: Store) -> None:
    ledger = Ledger(store, "C1")
    ledger.start("detection", "F1", "f1")
    ledger.done("detection", "F1")
    ledger.start("detection", "F2", "f2")
    try:
        raise RuntimeError("out of memory") from ValueError("the cause")
    except RuntimeError as error:
        ledger.fail("detection", "F2", error)
    ledger.start("detection", "F3", "f3")
    ledger.quarantine("detection", "F3", "too dark")
    ledger.start("detection", "F4", "f4")
    ledger.end_run(computed={"detection": 4}, reused={"intake": 1})

    again = Ledger(store, "C1")
    assert again.is_current("detection", "F1", "f1")
    assert not again.is_current("detection", "F1", "other")
    assert not again.is_current("detection", "F2", "f2")
    failed = again.entry("detection", "F2")
    assert failed is not None
    assert (failed["status"], failed["error"]["type"], failed["error"]["message"]) == (
        "failed",
        "RuntimeError",
        "out of memory",
    )
    assert "the cause" in failed["error"]["traceback"]
    assert again.entry("detection", "F4") is not None
    assert again.items("detection")["F4"]["status"] == "interrupted"
    assert {(s, k) for s, k, _ in again.quarantined()} == {("detection", "F2"), ("detection", "F3")}
    assert again.runs[0]["computed"] == {"detection": 4}
    assert again.runs[0]["reused"] == {"intake": 1}


def test_a_retry_that_succeeds_keeps_the_first_error(store: Store) -> None:
    ledger = Ledger(store, "C1")
    for _ in range(2):
        ledger.start("staining", "u", "m")
        ledger.fail("staining", "u", ValueError("first"))
    ledger.start("staining", "u", "m")
    ledger.done("staining", "u")
    entry = ledger.entry("staining", "u")
    assert entry is not None
    assert (entry["status"], entry["attempts"]) == ("done", 3)
    assert "error" not in entry
    assert [e["message"] for e in entry["errors"]] == ["first", "first"]
    ledger.start("staining", "u", "other inputs")
    assert (ledger.entry("staining", "u") or {})["attempts"] == 1


def test_the_run_history_is_capped_and_problems_are_kept_once(store: Store) -> None:
    ledger = Ledger(store, "C1")
    problem = Problem(code="MISSING_FILE", message="F1.tif is missing; add it.")
    for _ in range(103):
        ledger.note_problem(problem)
        ledger.end_run(computed={}, reused={"intake": 1})
    document = Ledger(store, "C1").document()
    assert len(document["runs"]) == 100
    assert len(document["problems"]) == 1


def test_a_damaged_ledger_is_set_aside_and_begun_anew(store: Store) -> None:
    store.write_text("C1/ledger.json", '{"stages": {"a"')
    ledger = Ledger(store, "C1")
    ledger.end_run(computed={}, reused={})
    assert store.exists("C1/ledger.damaged.json")
    assert len(Ledger(store, "C1").runs) == 1


def test_a_run_that_fails_half_way_keeps_the_problems_found_before_and_a_whole_one_replaces_them(
    store: Store,
) -> None:
    def run(found: str | None, error: str | None = None) -> list[str]:
        ledger = Ledger(store, "C1")
        ledger.begin()
        if found:
            ledger.note_problem(Problem(code="UNREADABLE", message=found))
        ledger.end_run(computed={}, reused={}, error=error)
        return [p["message"] for p in Ledger(store, "C1").document()["problems"]]

    assert run("F1 is torn.") == ["F1 is torn."]
    assert run("F2 is torn.", "the disk is full") == ["F1 is torn.", "F2 is torn."]
    assert run("F1 is torn.", "the disk is full") == ["F1 is torn.", "F2 is torn."]
    assert run("F3 is torn.") == ["F3 is torn."]
    assert run(None) == []
