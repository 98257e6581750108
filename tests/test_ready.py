"""What is wrong for every case of a night is one sentence before the first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from flows import ready
from flows.cli import main
from flows.cluster import Workers

READ_ONLY = OSError(30, "Read-only file system")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE", "SCHEDULER", "PSEUDONYM_KEY", "AUDIT_KEY", "WEIGHTS", "STORE"):
        monkeypatch.delenv(f"SMEARFLOW_{name}", raising=False)


def an_inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox" / "C-1").mkdir(parents=True)
    (tmp_path / "inbox" / "C-1" / "manifest.csv").write_text("file\n")
    return tmp_path / "inbox"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SMEARFLOW_DATABASE", "/tmp/x.db", "is no database that can be used"),
        ("SMEARFLOW_DATABASE", "sqlite:////nowhere/x.db", "the results database cannot be opened"),
        ("SMEARFLOW_SCHEDULER", "tcp://127.0.0.1:9", "no Dask scheduler answers there"),
        ("SMEARFLOW_PSEUDONYM_KEY", "", "it is set, but empty"),
        ("SMEARFLOW_AUDIT_KEY", "", "it is set, but empty"),
        ("SMEARFLOW_WEIGHTS", "/nowhere", "there is no such folder"),
    ],
)
def test_a_mistake_of_the_whole_night_is_one_sentence_before_any_case_and_exit_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    said: str,
) -> None:
    monkeypatch.setenv(variable, value)
    store = tmp_path / "store"
    with pytest.raises(SystemExit) as ended:
        main(["nightly", str(an_inbox(tmp_path)), "--store", str(store)])
    assert ended.value.code == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert len(told.splitlines()) == 1
    assert not (store / "C-1").exists()


@pytest.mark.parametrize("command", ["nightly", "run"])
def test_a_store_that_cannot_be_written_is_named_and_the_database_is_not_blamed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    def refuse(*_args: Any, **_more: Any) -> None:
        raise READ_ONLY

    inbox, store = an_inbox(tmp_path), tmp_path / "store"
    store.mkdir()
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(SystemExit) as ended:
        main([command, str(inbox if command == "nightly" else inbox / "C-1"), "--store", str(store)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"{store}: nothing can be written into the store (Read-only file system)" in told
    assert "results.db" not in told


def test_a_night_goes_on_while_the_database_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may by the time that a report is made, and what is computed till then is kept."""
    from storage import results_db

    monkeypatch.setattr(results_db, "ATTEMPTS", 1)
    monkeypatch.setenv("SMEARFLOW_DATABASE", "postgresql://nobody@127.0.0.1:9/results")
    with Workers() as workers:
        ready.check_ready(str(tmp_path / "store"), workers)
    assert "the results database does not answer" in caplog.text
