"""What a person asked of one case holds for `retry` and the night, which do not have it on their line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.asked import asked_again
from flows.cli import group
from flows.execute import begin, up_to_date
from flows.nightly import _Cases
from flows.retry import chosen, retry_one
from flows.runs import open_run
from pipeline.errors import BadInput
from storage.ledger import Ledger
from storage.store import Store
from tests.faults import models
from tests.test_slide_marks import VALUES, Here, draw

FIELDS = [{"x_px": 9.0, "y_px": 9.0}, {"x_px": 100.0, "y_px": 50.0}]
PLAIN: dict[str, Any] = {**models.SETTINGS, "intake": VALUES}
BY_HAND: dict[str, Any] = {**PLAIN, "intake": {**VALUES, "slide_fields": FIELDS}}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A case of a slide that was run with two fields and a pixel size on the line, whole in `store`."""
    from flows.execute import execute

    folder = tmp_path / "W-1"
    folder.mkdir()
    draw(folder / "s.svs")
    store = str(tmp_path / "store")
    with models.registered():
        run = open_run(folder, store, BY_HAND, Here(), 0.52)  # type: ignore[arg-type]
        execute(run)
        run.end()
        assert up_to_date(folder, store, BY_HAND, 0.52) is not None
        yield folder


def test_retry_keeps_the_fields_and_the_pixel_size_that_a_person_gave(folder: Path) -> None:
    store = folder.parent / "store"
    before = (store / "W-1" / "result.json").read_bytes()
    (status,) = chosen(str(store), "W-1", failed=False)
    row = retry_one(status, str(store), PLAIN, None)
    assert row["status"] == "done"
    assert row["asked"] == "as its last run was asked: 2 fields named by hand, 0.52 µm a pixel"
    assert (store / "W-1" / "result.json").read_bytes() == before
    assert Ledger(Store(str(store)), "W-1").runs[-1]["asked"]["slide_fields"] == FIELDS  # for the next


def test_a_night_leaves_a_case_as_a_person_had_it_read(folder: Path) -> None:
    cases = _Cases([folder], str(folder.parent / "store"), PLAIN)
    assert cases.look() == []
    assert cases.rows[folder]["computed"] == 0
    assert "2 fields named by hand" in cases.rows[folder]["asked"]


def test_fields_that_were_chosen_on_another_slide_are_not_asked_again(folder: Path) -> None:
    store = str(folder.parent / "store")
    draw(folder / "s.svs", seed=2)
    values, size, said = asked_again(folder, store, PLAIN, also_changed=False)
    assert (values, size) == (PLAIN, None)
    assert said is not None
    assert "its files changed" in said
    assert _Cases([folder], store, PLAIN).look() == [folder]
    # A person who has this case run again means what was asked of it.
    assert asked_again(folder, store, PLAIN, also_changed=True)[:2] == (BY_HAND, 0.52)


def test_what_was_asked_of_a_run_that_failed_at_a_look_is_asked_again(folder: Path) -> None:
    store = str(folder.parent / "store")
    (folder / "manifest.csv").write_text("no manifest\n")
    with pytest.raises(BadInput):
        up_to_date(folder, store, BY_HAND, 0.52)
    assert Ledger(Store(store), "W-1").runs[-1]["error"]
    (folder / "manifest.csv").unlink()
    assert asked_again(folder, store, PLAIN, also_changed=True)[:2] == (BY_HAND, 0.52)


def test_who_says_otherwise_is_heard(folder: Path) -> None:
    store = str(folder.parent / "store")
    other = {**PLAIN, "intake": {**VALUES, "slide_fields": FIELDS[:1]}}
    assert asked_again(folder, store, other, also_changed=True)[0] == other
    ledger = Ledger(Store(store), "W-1")
    ledger.begin(str(folder))  # a run without --fields
    ledger.end_run(computed={}, reused={})
    ledger.begin()  # a report made again reads no images
    assert asked_again(folder, store, PLAIN, also_changed=False) == (PLAIN, None, None)


def test_the_command_says_what_it_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.commands.retry.settings_values", lambda _: PLAIN)
    done = CliRunner().invoke(group, ["retry", "W-1", "--store", str(folder.parent / "store")])
    assert done.exit_code == 0
    assert "(as its last run was asked: 2 fields named by hand, 0.52 µm a pixel)" in done.output


def test_a_night_that_fails_on_changed_files_leaves_what_was_asked_to_a_retry(folder: Path) -> None:
    store = str(folder.parent / "store")
    held = Ledger(Store(store), "W-1").runs[-1]["asked"]
    (folder / "manifest.csv").write_text("no manifest\n")
    for _ in range(2):  # and so does the next night
        cases = _Cases([folder], store, PLAIN)
        with pytest.raises(BadInput, match="manifest"):
            cases._one(folder, Here())  # type: ignore[arg-type]
        assert "its files changed" in (cases.asked[folder] or "")
        assert Ledger(Store(store), "W-1").runs[-1]["error"]
        assert Ledger(Store(store), "W-1").runs[-1]["asked"] == held
    (folder / "manifest.csv").unlink()
    assert asked_again(folder, store, PLAIN, also_changed=True)[:2] == (BY_HAND, 0.52)
    assert asked_again(folder, store, PLAIN, also_changed=False)[:2] == (BY_HAND, 0.52)  # the files of then


def test_a_night_that_dies_leaves_what_was_asked_and_one_that_ends_well_does_not(folder: Path) -> None:
    store = str(folder.parent / "store")
    draw(folder / "s.svs", seed=2)
    run = open_run(folder, store, PLAIN, Here(), by_night=True)  # type: ignore[arg-type]
    begin(run)
    assert asked_again(folder, store, PLAIN, also_changed=True)[:2] == (BY_HAND, 0.52)
    run = open_run(folder, store, PLAIN, Here(), by_night=True)  # type: ignore[arg-type]
    begin(run)
    assert run.ledger.runs[-1]["interrupted"]
    assert run.ledger.runs[-1]["asked"]["pixel_size_um"] == 0.52
    run.end()
    assert not {"asked", "asked_before"} & set(run.ledger.runs[-1])
    assert asked_again(folder, store, PLAIN, also_changed=True) == (PLAIN, None, None)


def test_a_person_s_run_without_fields_that_fails_asks_for_none(folder: Path) -> None:
    store = str(folder.parent / "store")
    (folder / "manifest.csv").write_text("no manifest\n")
    with pytest.raises(BadInput):
        up_to_date(folder, store, PLAIN)
    (folder / "manifest.csv").unlink()
    assert asked_again(folder, store, PLAIN, also_changed=True) == (PLAIN, None, None)


def test_what_a_person_asked_of_a_run_that_was_killed_is_asked_again(folder: Path) -> None:
    store = str(folder.parent / "store")
    other = {**PLAIN, "intake": {**VALUES, "slide_fields": FIELDS[:1]}}
    run = open_run(folder, store, other, Here(), 0.6)  # type: ignore[arg-type]
    begin(run)  # and dies
    assert asked_again(folder, store, PLAIN, also_changed=True)[:2] == (other, 0.6)
    begin(open_run(folder, store, PLAIN, Here(), by_night=True))  # type: ignore[arg-type]
    assert asked_again(folder, store, PLAIN, also_changed=True)[:2] == (other, 0.6)
