"""Which images a detector learns from and is measured on, through training and evaluation."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from detectors.datasets import read_yolo_folder
from detectors.folder_training import train_detector
from detectors.parts import parts_of, remarks_on
from detectors.training import FRACTIONS
from flows.cli import group
from pipeline.errors import BadInput
from storage.packages import read_package
from tests.test_detectors_training import yolo_folder  # noqa: F401  (a fixture)

TINY = {"epochs": 1, "batch": 2, "canvases_per_epoch": 2, "canvas_px": 96}
PARTS = {"train": range(1, 6), "valid": (6, 7), "test": (8, 9)}


@pytest.fixture(scope="module")
def parted(yolo_folder, tmp_path_factory):  # noqa: F811
    """Nine of the drawn images in the parts of the folder's owner, <part>/images with <part>/labels."""
    place = tmp_path_factory.mktemp("train") / "own"  # a folder called train above it is no part
    for part, numbers in PARTS.items():
        for kind, suffix in (("images", "png"), ("labels", "txt")):
            (place / part / kind).mkdir(parents=True)
            for i in numbers:
                shutil.copy(yolo_folder / kind / "train" / f"{i:02d}.{suffix}", place / part / kind)
    return place


@pytest.fixture(scope="module")
def trained(parted, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("run"), []
    result = train_detector(parted, out, **TINY, log=lambda text, **_: said.append(text))
    return result, out, said


def test_parts_that_a_folder_has_are_kept_and_written_down(parted, trained):
    result, out, _ = trained
    rows = list(csv.DictReader((out / "split.csv").open()))
    found = {part: {r["image"] for r in rows if r["part"] == part} for part in ("train", "val", "test")}
    assert found["train"] == {f"train/images/{i:02d}.png" for i in PARTS["train"]}
    assert found["val"] == {"valid/images/06.png", "valid/images/07.png"}
    assert found["test"] == {"test/images/08.png", "test/images/09.png"}
    package = Path(result["package"])
    assert (package / "split.csv").read_bytes() == (out / "split.csv").read_bytes()
    card = read_package(package).card
    assert card.training["n_images"] == result["n_images"] == {"train": 5, "val": 2, "test": 2}
    assert card.training["split"] == "as the folder gives it"
    assert result["test"]["n_images"] == 2


def test_a_folder_without_parts_is_split_and_one_with_images_outside_them_is_refused(
    yolo_folder,  # noqa: F811
    parted,
    tmp_path,
):
    samples = read_yolo_folder(yolo_folder)  # images/train alone
    parts, how = parts_of(yolo_folder, samples, FRACTIONS, 1)
    assert "near-duplicates together" in how
    assert sum(map(len, parts.values())) == 12
    place = shutil.copytree(parted, tmp_path / "own")
    shutil.copytree(place / "valid", place / "more")
    with pytest.raises(BadInput, match=r"06\.png lies in none of the parts"):
        parts_of(place, read_yolo_folder(place), FRACTIONS, 1)


def test_what_a_split_lacks_is_said(parted, tmp_path):
    place = shutil.copytree(parted, tmp_path / "own")
    shutil.rmtree(place / "valid")
    (place / "test" / "labels" / "08.txt").unlink()
    shutil.copy(place / "train" / "images" / "01.png", place / "test" / "images" / "09.png")
    said = remarks_on(parts_of(place, read_yolo_folder(place), FRACTIONS, 1)[0])
    assert [s.split(",")[0] for s in said] == [
        "No validation image shows a leukocyte",
        "Images of val and test that are near-duplicates of training images and flatter: 1.",
        "1 of 7 images have no label file and count as images without cells.",
    ]


def test_training_and_evaluation_count_images_without_a_label_file(parted, trained, tmp_path):
    result, _, said = trained
    assert result["n_without_label_file"] == 0
    assert any('"n_images": {"train": 5, "val": 2, "test": 2}, "n_without_label_file": 0' in s for s in said)
    place = shutil.copytree(parted, tmp_path / "own")
    (place / "test" / "labels" / "08.txt").unlink()
    line = [
        "evaluate",
        "detector",
        str(place),
        "--model",
        "classical",
        "--out",
        str(tmp_path / "e"),
        "--json",
    ]
    done = CliRunner().invoke(group, line)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_without_label_file"] == 1
    assert "1 of 9 images have no label file" in done.stderr


def test_held_out_measures_the_images_that_the_training_never_saw_whatever_their_names(
    parted, trained, tmp_path
):
    result, _, _ = trained
    place = shutil.copytree(parted, tmp_path / "moved")
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        (place / "train" / kind / f"05.{suffix}").rename(place / "test" / kind / f"95.{suffix}")
    line = ["evaluate", "detector", "--out", str(tmp_path / "e"), "--held-out", "--json"]
    done = CliRunner().invoke(group, [*line, str(place), "--model", result["package"]])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures["all"]["n_images"] == 2
    assert figures["part"] == "images that the training never saw"
    for model, data, why in (
        ("classical", place, "does not say which images"),
        (result["package"], place / "train", "was trained on all of its 4 images"),
    ):
        refused = CliRunner().invoke(group, [*line, str(data), "--model", model])
        assert isinstance(refused.exception, BadInput)
        assert why in str(refused.exception)
