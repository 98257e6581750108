"""The segmenter's training in stages, its averaged views, and the command that runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from detectors.segment import segment_image
from detectors.segment_data import read_labelled_cells
from detectors.segment_stages import train_in_stages
from flows.cli import group
from pipeline.errors import BadInput
from storage.packages import read_package
from storage.registry import load
from tests.test_segment import ByColour, draw_cell, write_set

FIGURES = {"steps_per_epoch": 1, "batch": 2, "widths": (4, 6, 8), "epochs": 1, "second_epochs": 1}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("detectors.segment_data.same_cell_groups", lambda images: list(range(len(images))))
    return write_set(tmp_path / "set", 6)


def boxed(data: Path, teachers: list[str]):
    """Stands in for the labelling of boxed cells; notes by whom they were labelled."""

    def label(teacher, boxes_dir, per_source, seed=1):
        teachers.append(teacher.name)
        return read_labelled_cells(data)[:2]

    return label


def test_the_second_stage_goes_on_from_the_first_with_cells_that_it_labelled(data, tmp_path, monkeypatch):
    teachers: list[str] = []
    monkeypatch.setattr("detectors.segment_pseudo.pseudo_labelled_cells", boxed(data, teachers))
    out = tmp_path / "out" / "seg"
    said: list[str] = []
    train_in_stages(data, out, tmp_path, progress=said.append, **FIGURES)
    first, last = read_package(tmp_path / "out" / "seg.training" / "first"), read_package(out)
    assert teachers == ["first"]
    assert last.card.training["teacher"] == first.card.sha256 != last.card.sha256
    assert "2 cells of boxed smears" in last.card.training["stages"]
    assert "pseudo-labelled" in last.card.training_data[0]
    assert sum("stage" in line for line in said) == 3

    before = last.weights_path.read_bytes()
    said.clear()
    train_in_stages(data, out, tmp_path, resume=True, progress=said.append, **FIGURES)
    assert not any(line.startswith("epoch") for line in said)  # neither stage is trained again
    assert out.joinpath("model.safetensors").read_bytes() == before


@pytest.mark.parametrize("change", ["cells", "epochs", "seed"])
def test_a_second_stage_goes_on_only_from_a_first_one_of_the_same_cells_and_figures(
    data, tmp_path, monkeypatch, change
):
    monkeypatch.setattr("detectors.segment_pseudo.pseudo_labelled_cells", boxed(data, []))
    out, asked = tmp_path / "out" / "seg", dict(FIGURES)

    def stop(text):
        if text.startswith("labelling"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in_stages(data, out, tmp_path, progress=stop, **FIGURES)
    if change == "cells":
        data = write_set(tmp_path / "other", 7)
    else:
        asked[change] = 7
    with pytest.raises(BadInput, match=r"first\.training/checkpoint\.pt was made with (other|another)"):
        train_in_stages(data, out, tmp_path, resume=True, **asked)


def test_without_boxes_there_is_one_stage(data, tmp_path):
    train_in_stages(data, tmp_path / "seg", None, **FIGURES)
    assert "stages" not in read_package(tmp_path / "seg").card.training
    assert not (tmp_path / "seg.training" / "first").exists()


def test_boxes_that_the_first_stage_agrees_with_nowhere_are_said(data, tmp_path, monkeypatch):
    monkeypatch.setattr("detectors.segment_pseudo.pseudo_labelled_cells", lambda *a, **k: [])
    with pytest.raises(BadInput, match="agrees with none"):
        train_in_stages(data, tmp_path / "seg", tmp_path, **FIGURES)


def test_the_command_takes_the_boxes_and_both_lengths(data, tmp_path, monkeypatch):
    taken: dict[str, object] = {}

    def note(data, out, boxes, **given):
        taken.update(given, boxes=boxes)
        return {}

    monkeypatch.setattr("detectors.segment_stages.train_in_stages", note)
    args = ["train", "segmenter", str(data), "--out", str(tmp_path / "o"), "--boxes", str(tmp_path)]
    done = CliRunner().invoke(group, [*args, "--epochs", "3", "--second-epochs", "2", "--resume"])
    assert done.exit_code == 0, done.output
    assert (taken["boxes"], taken["epochs"], taken["second_epochs"]) == (tmp_path, 3, 2)
    assert taken["resume"] is True
    bad = CliRunner().invoke(group, [*args[:-1], str(tmp_path / "nowhere")])
    assert isinstance(bad.exception, BadInput)


def test_averaged_views_keep_their_places_and_any_shape():
    model = load("segmenter", "nucleus-cytoplasm")
    patch = draw_cell(size=110, at=(50, 60))[:100]
    plain, averaged = (f(patch[None], 0.2)[0] for f in (model.segment, model.segment_averaged))
    assert plain.shape == averaged.shape == (100, 110)
    # A view that was not turned back rightly would agree in no more than the background.
    both = (plain >= 2) | (averaged >= 2)
    assert both.any()
    assert (plain == averaged)[both].mean() > 0.9
    turned = model.segment_averaged(np.ascontiguousarray(np.rot90(patch))[None], 0.2)[0]
    assert (np.rot90(averaged) == turned).mean() > 0.99


def test_an_image_of_one_cell_is_read_in_averaged_views_where_the_segmenter_has_them():
    class Averaging(ByColour):
        def segment_averaged(self, patches, pixel_size_um):
            self.averaged = True
            return self.segment(patches, pixel_size_um)

    model = Averaging()
    assert (segment_image(model, draw_cell(), 0.2) >= 2).any()
    assert model.averaged
    plain = ByColour()
    assert (segment_image(plain, draw_cell(), 0.2) >= 2).any()
