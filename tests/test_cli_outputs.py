"""What commands write into a folder: never over an image that they were handed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import storage.registry
from flows.cli import group
from pipeline.errors import BadInput
from storage.whole_files import write_png
from tests.test_cli_stain import Copier
from tests.test_segment import ByColour, draw_cell


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"segmenter": ByColour(), "stainer": Copier()}
    load = storage.registry.load
    monkeypatch.setattr(storage.registry, "load", lambda task, name: made.get(task) or load(task, name))


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    write_png(tmp_path / "plain.png", draw_cell())
    return tmp_path / "plain.png"


def refused(folder: Path, *args: object) -> tuple[str, list[dict[str, Any]]]:
    """What a command says that refuses an image, its rows; no file that was in the folder has changed."""
    before = {p: p.read_bytes() for p in folder.rglob("*.png")}
    done = CliRunner().invoke(group, [*map(str, args), "--json"])
    assert done.exit_code == 2, done.output
    assert {p: p.read_bytes() for p in before} == before
    return done.stderr, json.loads(done.stdout)


@pytest.mark.parametrize("command", ["segment", "explain"])
@pytest.mark.parametrize("how", ["plain", "elsewhere", "link to folder", "link to image", "hard link"])
def test_an_image_is_never_overwritten_by_what_is_made_of_it(
    models: None, cell: Path, command: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image: Path = cell
    out = cell.parent
    if how == "elsewhere":
        monkeypatch.chdir(cell.parent)
        image, out = Path("plain.png"), cell.parent / ".." / cell.parent.name
    elif how == "link to folder":
        out = cell.parent / "linked"
        out.symlink_to(cell.parent)
    elif how == "link to image":
        out = cell.parent / "links"
        out.mkdir()
        image = out / "plain.png"
        image.symlink_to(cell)
    elif how == "hard link":
        out = cell.parent / "links"
        out.mkdir()
        os.link(cell, out / "plain.png")
    said, rows = refused(cell.parent, command, image, "--out", out)
    assert "would be written over" in said
    assert "name another folder" in said
    assert rows == []


def test_no_stained_image_takes_the_place_of_another_image_of_the_line(models: None, cell: Path) -> None:
    write_png(cell.with_name("plain_virtual.png"), np.zeros((64, 64), np.uint8) + np.arange(64, dtype="u1"))
    line = ["stain", cell, cell.with_name("plain_virtual.png"), "--pixel-size", 0.1, "--out", cell.parent]
    said, rows = refused(cell.parent, *line)
    assert f"{cell}: what is made of it would be written over" in said
    assert [Path(r["output"]).name for r in rows] == ["plain_virtual_virtual.png"]


def test_no_picture_of_an_alignment_takes_the_place_of_its_images(tmp_path: Path) -> None:
    for name in ("a.png", "a-alignment.png"):
        write_png(tmp_path / name, draw_cell(160))
    before = (tmp_path / "a-alignment.png").read_bytes()
    line = [str(tmp_path / "a.png"), str(tmp_path / "a-alignment.png"), "--picture", str(tmp_path)]
    done = CliRunner().invoke(group, ["align", *line])
    assert isinstance(done.exception, BadInput)
    assert "would be written over" in str(done.exception)
    assert (tmp_path / "a-alignment.png").read_bytes() == before
