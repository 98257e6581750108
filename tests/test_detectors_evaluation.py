"""`smearflow evaluate detector`: what it reads, what it refuses, and what its figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from detectors.evaluation import evaluate_detector
from flows.cli import group
from pipeline.errors import BadInput
from tests.detector_scenes import smear


class OneBox:
    """A detector that finds the same box everywhere, and remembers what it was shown."""

    name = "one-box"

    def __init__(self, box: tuple[float, float, float, float] = (55, 55, 185, 185)) -> None:
        self.box = box
        self.seen: list[tuple[np.ndarray, float]] = []

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        self.seen.append((image, pixel_size_um))
        return np.array([self.box], np.float32), np.array([0.9])


def write_field(folder: Path, name: str = "a.png", labels: str | None = "") -> np.ndarray:
    """A drawn field of 300 x 240 px at 0.1 µm with one leukocyte, and its labels; returns the image."""
    import cv2

    image, boxes = smear((24, 30), [(12.0, 12.0)], 0.1)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    if name.endswith((".png", ".bmp")):
        cv2.imwrite(str(folder / "images" / name), image[..., ::-1])
    if labels == "":
        (x0, y0, x1, y1) = boxes[0] / (300, 240, 300, 240)
        labels = f"0 {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}\n"
    if labels is not None:
        (folder / "labels" / name).with_suffix(".txt").write_text(labels)
    return image


def test_an_output_folder_that_takes_nothing_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def closed(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    def worked(*_: Any, **__: Any) -> None:
        raise AssertionError("the work was begun")

    write_field(tmp_path / "data")
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", closed)  # a test may run as root, whom nothing stops
    monkeypatch.setattr("detectors.evaluation.evaluate_detector", worked)
    monkeypatch.setattr("detectors.training.train_detector", worked)
    for command in ("evaluate", "train"):
        asked = [command, "detector", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(group, asked)
        assert isinstance(done.exception, BadInput), done.exception
        assert str(done.exception) == (
            f"{tmp_path / 'out'}: nothing can be written into the output folder (Permission denied); choose "
            "another."
        )


def test_the_trial_of_an_output_folder_leaves_nothing_there(tmp_path: Path) -> None:
    from flows.console import output_folder

    assert list(output_folder(tmp_path / "a" / "b").iterdir()) == []


def test_figures_outlive_a_disk_that_fills_up_while_pictures_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    write_field(tmp_path)
    monkeypatch.setattr("detectors.evaluation_pictures.draw_curve", full)
    with pytest.raises(BadInput, match=r"No space left on device.*figures are in evaluation\.json"):
        evaluate_detector(OneBox(), tmp_path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["all"]["ap50"] == 1.0
