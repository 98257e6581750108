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
    monkeypatch.setattr("detectors.folder_training.train_detector", worked)
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


def test_an_evaluation_sees_twelve_bit_and_turned_images_as_detect_sees_them(tmp_path: Path) -> None:
    import tifffile
    from PIL import Image

    from flows.console import read_rgb_or_grey

    image = write_field(tmp_path, "twelve.tif")
    tifffile.imwrite(tmp_path / "images" / "twelve.tif", image.astype(np.uint16) * 16, photometric="rgb")
    write_field(tmp_path, "turned.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "images" / "turned.jpg", quality=95, exif=turned)
    detector = OneBox()
    assert evaluate_detector(detector, tmp_path, pixel_size_um=0.1)["all"]["ap50"] == 1.0
    for name, (shown, _) in zip(("turned.jpg", "twelve.tif"), detector.seen, strict=True):
        np.testing.assert_array_equal(shown, read_rgb_or_grey(tmp_path / "images" / name))
        assert np.abs(shown.astype(int) - image).mean() < 3


def test_a_grey_image_is_read_as_three_equal_channels(tmp_path: Path) -> None:
    import cv2

    from storage.images import read_rgb

    grey = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), np.dstack([grey] * 3))


def test_a_single_image_has_no_interval_and_a_folder_without_leukocytes_no_ap(tmp_path: Path) -> None:
    from PIL import Image

    from benchmarks.detection_accuracy import accuracy

    write_field(tmp_path / "one")
    one = evaluate_detector(OneBox(), tmp_path / "one", tmp_path / "out")
    assert (one["all"]["ap50"], one["all"]["ap50_ci95"], one["all"]["ap50_95_ci95"]) == (1.0, None, None)
    assert "note" not in one
    write_field(tmp_path / "none", "b.jpg", labels=None)
    Image.fromarray(smear((24, 30), [(12.0, 12.0)], 0.1)[0]).save(tmp_path / "none" / "images" / "b.jpg")
    write_field(tmp_path / "none", labels="1 0.5 0.5 0.1 0.1\n")
    none = evaluate_detector(OneBox(), tmp_path / "none", tmp_path / "out", pixel_size_um=0.1)
    asked = {k: none["all"][k] for k in ("ap50", "ap50_ci95", "ap50_95", "ap50_95_ci95", "recall")}
    assert set(asked.values()) == {None}
    assert none["all"]["n_found"] == 2
    assert "No image has a labelled leukocyte" in none["note"]
    assert [e["kind"] for e in none["errors"]] == ["false", "false"]
    assert accuracy(one["all"]).startswith("1.000 | ")
    assert accuracy(none["all"]).startswith("- | - | ")


def test_draws_of_images_without_leukocytes_do_not_widen_the_interval(tmp_path: Path) -> None:
    class FirstTwo(OneBox):
        def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
            boxes, scores = super().detect(image, pixel_size_um)
            return (boxes, scores) if len(self.seen) < 3 else (boxes[:0], scores[:0])

    for name, labels in (("a.png", ""), ("b.png", ""), ("c.png", None)):
        write_field(tmp_path, name, labels)
    report = evaluate_detector(FirstTwo(), tmp_path, pixel_size_um=0.1)
    assert report["all"]["ap50_ci95"] == [1.0, 1.0]


def test_a_folder_without_a_single_label_file_is_refused(tmp_path: Path) -> None:
    write_field(tmp_path, labels=None)
    with pytest.raises(BadInput, match=r"none of its 1 images has a label file, the first would be .*a\.txt"):
        evaluate_detector(OneBox(), tmp_path)


def red_cells(n: int) -> str:
    """Labels of the leukocyte of `write_field` and of n red cells 75 px wide: 0.1 µm a pixel."""
    rows = [f"1 {0.2 + 0.1 * i} 0.3 {75 / 300} {75 / 240}\n" for i in range(n)]
    return f"0 0.4 0.5 {130 / 300} {130 / 240}\n" + "".join(rows)


def test_the_scale_of_an_image_is_the_options_the_files_the_labels_or_inferred_and_the_report_says_which(
    tmp_path: Path,
) -> None:
    import tifffile

    def measured(pixel_size_um: float | None = None) -> tuple[float, dict[str, Any]]:
        detector = OneBox()
        report = evaluate_detector(detector, tmp_path, pixel_size_um=pixel_size_um)
        return detector.seen[0][1], report["pixel_size_from"]

    image = write_field(tmp_path, "a.tif", red_cells(5))
    path = tmp_path / "images" / "a.tif"
    per_cm = 1e4 / 0.16
    tifffile.imwrite(path, image, photometric="rgb", resolution=(per_cm, per_cm), resolutionunit=3)
    assert measured(0.2) == (0.2, {"given": {"n_images": 1, "median_um": 0.2}})
    um, said = measured()
    assert um == pytest.approx(0.16, rel=1e-3)
    assert said == {"the file": {"n_images": 1, "median_um": 0.16}}
    tifffile.imwrite(path, image, photometric="rgb")
    um, said = measured()
    assert um == pytest.approx(0.1, rel=0.01)
    assert list(said) == ["labelled red cells"]
    write_field(tmp_path, "a.tif", red_cells(0))
    um, said = measured()
    assert um == pytest.approx(14.5 / 130, rel=0.01)
    assert list(said) == ["labelled leukocytes"]
    write_field(tmp_path, "a.tif", labels="\n")
    um, said = measured()
    assert um == pytest.approx(0.1, rel=0.25)
    assert list(said) == ["inferred from the image"]


def test_an_image_that_shows_no_scale_takes_that_of_the_folder_and_alone_is_refused(tmp_path: Path) -> None:
    import cv2

    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "blank.png"), np.full((200, 210, 3), 230, np.uint8))
    (tmp_path / "labels" / "blank.txt").write_text("")
    with pytest.raises(
        BadInput, match=r"blank\.png: neither the file nor its labels nor .*; give --pixel-size"
    ):
        evaluate_detector(OneBox(), tmp_path)
    write_field(tmp_path, "a.png", red_cells(5))
    report = evaluate_detector(OneBox(), tmp_path)
    assert set(report["pixel_size_from"]) == {"labelled red cells", "other images of the folder"}


def test_the_command_hands_the_pixel_size_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_field(tmp_path / "data", labels=red_cells(5))
    monkeypatch.setattr("storage.registry.load", lambda *_: OneBox())
    asked = ["evaluate", "detector", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    for option, source in (([], "labelled red cells"), (["--pixel-size", "0.12"], "given")):
        done = CliRunner().invoke(group, [*asked, *option])
        assert done.exit_code == 0, done.output
        assert list(json.loads((tmp_path / "out" / "evaluation.json").read_text())["pixel_size_from"]) == [
            source
        ]
