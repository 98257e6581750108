"""Which target a case of DIC is painted towards, where its settings name none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flows import cell_work, target_stage
from flows.target_stage import sample, target, try_targets
from pipeline.settings import Settings
from pipeline.types import Cell
from stainers.surest_target import LEAST, MOST
from storage import registry
from storage.case_store import CaseStore
from storage.packages import find_package


def cell(number: int, modality: str = "dic", seen: float = 1.0) -> Cell:
    return Cell(
        cell_id=f"c{number}",
        slide="s",
        field="F001",
        modality=modality,
        stain="unstained" if modality == "dic" else "MGG",
        bbox_px=(10.0, 10.0, 90.0, 90.0),
        score=0.9,
        x_um=None,
        y_um=None,
        at_border=seen < 1,
        seen=seen,
    )


def test_at_most_sixty_whole_dic_cells_from_all_over_the_case_are_tried():
    found = tuple(cell(i, "dic" if i % 2 else "brightfield", 0.2 if i % 10 == 1 else 1.0) for i in range(400))
    rows = sample(found, 0.4)
    assert len(rows) == len(set(rows)) == MOST
    assert all(found[i].modality == "dic" and found[i].seen >= 0.4 for i in rows)
    assert rows == sorted(rows)
    assert rows[0] < 10
    assert rows[-1] > 390
    few = tuple(cell(i) for i in range(LEAST + 3))
    assert sample(few, 0.4) == list(range(LEAST + 3))
    assert sample(few[: LEAST - 1], 0.4) == []


class Painter:
    targets = ("first", "second", "third")

    def stain(self, patches: np.ndarray, look: str) -> Any:
        grey = np.full((*patches.shape[:3], 3), 10 * self.targets.index(look), np.uint8)
        return SimpleNamespace(image=grey)


class Namer:
    """Surer of the second target's pictures, by what `sure` says."""

    sure = (0.6, 0.9, 0.7)

    def classify(self, patches: np.ndarray, pixel_size_um: float) -> Any:
        p = np.array([self.sure[int(patch[0, 0, 0]) // 10] for patch in patches])
        return SimpleNamespace(probabilities=np.stack([p, 1 - p], 1))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Namer:
    models: dict[str, Any] = {"stainer": Painter(), "classifier": Namer()}
    monkeypatch.setattr(registry, "load", lambda task, name: models[task])
    rows = np.zeros((1, 8, 8, 1), np.uint8)
    monkeypatch.setattr(CaseStore, "read_rows", lambda self, name, first, last: rows)
    namer: Namer = models["classifier"]
    return namer


def test_the_target_of_which_the_classifier_is_surest_is_taken_and_of_equals_the_first(stand_ins, tmp_path):
    cells = [cell(i) for i in range(25)]
    ask = ("", str(tmp_path), "case", list(range(25)), cells, [], Settings())
    found = try_targets(*ask)
    assert found == {
        "target": "second",
        "confidence": {"first": 0.6, "second": 0.9, "third": 0.7},
        "n_cells": 25,
    }
    stand_ins.sure = (0.8, 0.7, 0.8)
    assert try_targets(*ask)["target"] == "first"


@pytest.mark.parametrize(
    ("settings", "n_cells"),
    [
        ({"staining": {"target": "bccd"}}, 30),
        ({"classification": {"virtual_classifier": None}}, 30),
        # Made for no stainer's pictures:
        ({"classification": {"virtual_classifier": "leukocyte-classes"}}, 30),
        ({}, LEAST - 1),
    ],
)
def test_nothing_is_tried_where_a_target_is_named_or_nothing_could_tell(settings, n_cells):
    gone: list[tuple[str, set[str]]] = []
    chosen = Settings.model_validate(settings)
    run: Any = SimpleNamespace(settings=chosen, retire=lambda *what: gone.append(what))  # it can run nothing
    assert target(run, SimpleNamespace(images=()), tuple(cell(i) for i in range(n_cells)), "mark") is None  # type: ignore[arg-type]
    assert gone == [("target", set())]  # what an earlier run found is none of this one's


def test_the_shipped_pair_tries_each_target_by_the_quick_way_of_painting(monkeypatch, tmp_path):
    """The picture without its confidence is what the stage paints; the shear is that of the field."""
    stainer = registry.load("stainer", "dic-to-mgg")
    asked: list[tuple[str, float]] = []

    def paint(patch: np.ndarray, look: str, *, shear_angle_deg: float) -> np.ndarray:
        asked.append((look, shear_angle_deg))
        return np.repeat(patch, 3, 2)

    monkeypatch.setattr(stainer, "paint", paint)
    rows = np.random.default_rng(0).integers(0, 255, (1, 256, 256, 1), dtype=np.uint8)
    monkeypatch.setattr(CaseStore, "read_rows", lambda self, name, first, last: rows)
    monkeypatch.setattr(cell_work, "shear_by_field", lambda *_: {("s", "F001"): 33.0})
    found = try_targets("", str(tmp_path), "case", [0, 1], [cell(0), cell(1)], [], Settings())
    assert asked == [(look, 33.0) for look in stainer.targets for _ in range(2)]
    assert len(set(found["confidence"].values())) == 1  # the same picture each time
    assert found["target"] == stainer.targets[0]
    card = find_package("virtual-leukocytes").card
    assert target_stage.made_for(card.name, "dic-to-mgg") is True
