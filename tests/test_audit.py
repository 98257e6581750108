"""The audit log: what it keeps, and every way of altering it that it finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.audit import AuditBroken, AuditLog, Change, who
from storage.store import Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store(tmp_path / "store")
        return
    import fsspec

    yield Store("memory://audit")
    fsspec.filesystem("memory").rm("/audit", recursive=True)


def _filled(store: Store) -> AuditLog:
    log = AuditLog(store, "C1")
    log.append("run", actor="night@lab", changes=[Change(target="result.json", new="a" * 64)])
    log.append(
        "review", actor="Dr. X", reason="band, not segmented", changes=[Change(target="c", old="a", new="b")]
    )
    log.append("sign", actor="Dr. X", changes=[Change(target="report", old="preliminary", new="final")])
    return log


def _alter(store: Store, entry: int, **change: object) -> None:
    key = f"C1/audit/{entry:06d}.json"
    document = store.read_json(key)
    store.write_json(key, {**document, **change})


def test_entries_come_back_in_order_and_hold(store: Store) -> None:
    log = _filled(store)
    assert [e.action for e in log.entries()] == ["run", "review", "sign"]
    assert [e.number for e in log.entries()] == [1, 2, 3]
    assert log.entries()[1].changes[0].new == "b"
    assert log.verify() == []
    assert AuditLog(store, "C2").verify() == []


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (1, {"actor": "someone else"}),
        (2, {"changes": [{"target": "c", "old": "a", "new": "x"}]}),
        (2, {"reason": ""}),
        (3, {"ts": "2026-01-01T00:00:00+00:00"}),
        (2, {"before": "0" * 64}),
        (3, {"number": 4}),
        (2, {"detail": {"boxes": "{}"}}),
    ],
)
def test_an_altered_entry_is_found(store: Store, number: int, change: dict[str, object]) -> None:
    log = _filled(store)
    _alter(store, number, **change)
    assert any(f"entry {number} " in sentence for sentence in log.verify()), log.verify()


def test_an_entry_that_was_altered_with_its_seal_breaks_the_next(store: Store) -> None:
    from storage import audit

    log = _filled(store)
    entry = log.entries()[1].model_copy(update={"actor": "nobody"})
    _alter(store, 2, actor="nobody", seal=audit._seal(entry, None))
    assert log.verify() == ["entry 3 does not follow the one before it."]


def test_an_entry_that_was_numbered_anew_with_its_seal_is_found(store: Store) -> None:
    from storage import audit

    log = _filled(store)
    entry = log.entries()[2].model_copy(update={"number": 7})
    _alter(store, 3, number=7, seal=audit._seal(entry, None))
    assert log.verify() == ["entry 3 does not follow the one before it."]


def test_a_missing_an_inserted_and_a_torn_entry_are_found(store: Store) -> None:
    log = _filled(store)
    kept = store.read_bytes("C1/audit/000002.json")
    store.delete("C1/audit/000002.json")
    assert log.verify() == ["entry 2 is missing."]
    store.write_bytes("C1/audit/000002.json", kept)
    assert log.verify() == []
    store.write_bytes("C1/audit/000004.json", store.read_bytes("C1/audit/000003.json"))
    assert log.verify() == ["entry 4 does not follow the one before it."]
    store.write_bytes("C1/audit/000002.json", kept[: len(kept) // 2])
    assert log.verify() == ["entry 2 cannot be read."]
    with pytest.raises(AuditBroken, match=r"C1: .*000002\.json is damaged"):
        log.entries()


def test_nothing_is_ever_written_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _filled(store)
    before = store.read_bytes("C1/audit/000003.json")
    monkeypatch.setattr(log, "_numbers", lambda: ["000001.json", "000002.json"])  # another process was first
    with pytest.raises(AuditBroken, match="another process"):
        log.append("run")
    assert store.read_bytes("C1/audit/000003.json") == before
    assert [n for n in store.list("C1/audit") if n.startswith(".")] == []


def test_with_a_key_no_one_without_it_makes_a_chain_that_fits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage import audit

    log = AuditLog(store, "C1")
    log.append("run")
    monkeypatch.setenv("SMEARFLOW_AUDIT_KEY", "k3y")
    log.append("sign", actor="Dr. X")
    log.append("run")
    assert log.verify() == []
    forged = log.entries()[2].model_copy(update={"actor": "nobody", "keyed": False})
    _alter(store, 3, actor="nobody", keyed=False, seal=audit._seal(forged, None))
    assert log.verify() == ["entry 3 is not sealed by the key, though earlier ones are."]
    monkeypatch.setenv("SMEARFLOW_AUDIT_KEY", "another")
    assert log.verify()[0] == "entry 2 was altered."
    monkeypatch.delenv("SMEARFLOW_AUDIT_KEY")
    assert "set SMEARFLOW_AUDIT_KEY" in log.verify()[0]
    assert "k3y" not in json.dumps([e.model_dump() for e in log.entries()])


def test_text_of_people_cannot_break_the_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(store, "C1")
    entry = log.append("review", actor="A\nB\x1b[2J", reason="x" * 9000)
    assert entry.actor == "A B [2J"
    assert len(entry.reason) == 500
    assert log.verify() == []
    monkeypatch.setenv("SMEARFLOW_ACTOR", "night shift\n")
    assert who() == "night shift"
