"""`train classifier`, `train backbone` and `evaluate classifier` through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from classifiers.evaluation import evaluate_classifier, expected_class, held_out_samples
from classifiers.readers import read_cells
from classifiers.recipes import Recipe
from classifiers.sources import Sample, read_samples, with_copies_together
from classifiers.training import train_classifier
from flows.cli import group
from pipeline.errors import BadInput
from storage.packages import read_package
from tests.class_folders import class_folders
from tests.test_classification import Brightness
from tests.test_pretraining import smears  # noqa: F401  (a fixture)

RECIPE = """
backbone: resnet18_slim
level: [neutrophil, immature_granulocyte, lymphocyte]
input_px: 32
cached_px: 40
epochs: 1
batch: 4
samples_per_epoch: 4
learning_rate: 0.001
none_share: 0.0
"""


def run(*args: object) -> str:
    done = CliRunner().invoke(group, [str(a) for a in args])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return done.stdout


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture
def pbc(tmp_path: Path) -> Path:
    """A tiny tree with the layout of the Barcelona set."""
    root = tmp_path / "PBC_dataset_normal_DIB"
    random = np.random.default_rng(0)
    for folder, prefix, colour in (("neutrophil", "SNE", 60), ("ig", "MY", 120), ("lymphocyte", "LY", 180)):
        (root / folder).mkdir(parents=True)
        for i in range(6):
            image = random.integers(colour - 30, colour + 30, (40, 40, 3), np.uint8)
            Image.fromarray(image).save(root / folder / f"{prefix}_{i}.jpg")
    return tmp_path


def test_a_public_set_is_trained_on_and_its_held_out_part_measured(pbc, smears, tmp_path):  # noqa: F811
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    run("train", "backbone", smears, "--out", tmp_path / "b", "--epochs", 1, "--crops", 6)
    out = tmp_path / "package"
    line = ("train", "classifier", pbc, "--out", out, "--recipe", recipe, "--reader", "pbc-8", "--seed", 3)
    said = json.loads(run(*line, "--start", tmp_path / "b", "--locator", "leukocyte-classes", "--json"))
    card, figures = read_package(out).card, said["metrics"]
    assert said["package"] == str(out)
    assert figures["all"] == json.loads(json.dumps(card.metrics["all"]))
    assert figures["trained_cells"] + figures["all"]["n"] == 18
    assert figures["held_out_share"] == card.training["held_out_share"] == round(figures["all"]["n"] / 18, 4)
    assert (card.stains, card.specimens) == (("MGG",), ("blood",))
    assert card.classes == ("immature_granulocyte", "lymphocyte", "neutrophil")
    assert "Acevedo" in card.training_data[0]
    assert card.training["pretrained"] == json.loads((tmp_path / "b" / "pretraining.json").read_text())
    assert card.parameters["locator"]
    run(
        *("evaluate", "classifier", pbc, "--model", out, "--out", tmp_path / "e", "--reader", "pbc-8"),
        "--held-out",
    )
    measured = json.loads((tmp_path / "e" / "metrics.json").read_text())
    held = held_out_samples(str(out), read_cells(pbc, "pbc-8"))
    assert 0 < measured["n_samples"] == len(held) < 18
    figures = measured["all"]
    assert {"top1", "top1_interval", "macro_f1", "macro_f1_interval", "ece", "confusion"} <= figures.keys()
    for of_class in figures["per_class"].values():
        assert {"precision_interval", "recall_interval", "auc_one_vs_rest"} <= of_class.keys()
    assert (tmp_path / "e" / "confusion.png").stat().st_size > 500


def test_held_out_cells_are_those_of_the_training_or_none(tmp_path):
    data, out = class_folders(make(tmp_path / "a")), tmp_path / "p"
    train_classifier(data, out, Recipe(input_px=32, cached_px=48, epochs=1, batch=4, samples_per_epoch=4))
    assert (read_package(out).card.stains, read_package(out).card.specimens) == (("unknown",), ("unknown",))
    held = held_out_samples(str(out), read_samples(data))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = held_out_samples(str(out), read_samples(tmp_path / "b"))
    assert [s.path.name for s in moved] == [s.path.name for s in held]
    other = make(tmp_path / "c")
    for path in class_folders(other).rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    for samples in (read_samples(other), read_samples(tmp_path / "b")[:-4]):
        with pytest.raises(BadInput, match="it was trained on other cells, or some were added"):
            held_out_samples(str(out), samples)


def test_a_copy_of_a_cell_lies_on_the_side_of_the_cell(tmp_path):
    data, said = class_folders(make(tmp_path / "cells")), []
    for path in sorted(data.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"), quality=80)
    recipe = Recipe(input_px=32, cached_px=48, epochs=1, batch=4, samples_per_epoch=4)
    out = tmp_path / "p"
    train_classifier(data, out, recipe, holdout=0.3, stain="MGG", specimen="bone_marrow", report=said.append)
    assert (read_package(out).card.stains, read_package(out).card.specimens) == (("MGG",), ("bone_marrow",))
    assert "near-duplicate images join 12 groups to others: they stay on one side of the split" in said
    held = {s.path for s in held_out_samples(str(out), read_samples(data))}
    assert {p.with_suffix(".jpg") for p in held} == {p for p in held if p.suffix == ".jpg"}
    assert len(held) == read_package(out).card.metrics["all"]["n"] == 8


def test_groups_of_which_images_are_alike_become_one(tmp_path):
    random = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(random.integers(0, 255, (48, 48, 3), np.uint8)).save(tmp_path / f"{name}.png")
    Image.open(tmp_path / "d.png").save(tmp_path / "e.jpg", quality=80)
    groups = {"a.png": "p1", "b.png": "p2", "c.png": "p3", "d.png": "p2", "e.jpg": "p1"}
    samples = [Sample(tmp_path / n, "monocyte", "x", group=g) for n, g in groups.items()]
    assert [s.group for s in with_copies_together(samples)] == ["p1", "p1", "p3", "p1", "p1"]


def test_diagnoses_of_patients_are_no_classes_of_cells(tmp_path):
    done = CliRunner().invoke(
        group,
        ["train", "classifier", str(tmp_path), "--out", str(tmp_path / "o"), "--reader", "mll-helmholtz"],
    )
    assert isinstance(done.exception, BadInput)
    assert "diagnoses of patients" in str(done.exception)


def test_a_card_without_a_split_cannot_hold_out():
    with pytest.raises(BadInput, match="no seed"):
        held_out_samples("nucleus-cytoplasm-of-nowhere", [])


def test_a_class_that_the_classifier_was_never_taught_is_not_wrong_but_no_class(tmp_path):
    Image.new("RGB", (8, 8), (20, 20, 20)).save(tmp_path / "a.png")
    samples = [
        Sample(tmp_path / "a.png", c, "drawn") for c in ("lymphocyte", "lymphocyte", "neutrophil_band")
    ]
    taught = [c for c in Brightness().classes if c != "neutrophil_band"]
    found = evaluate_classifier(Brightness(), samples, known_classes=taught)
    assert found["n_not_a_class"] == 1
    assert (found["all"]["n"], found["all"]["top1"]) == (2, 1.0)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("lymphocyte", "lymphocyte"),
        ("lymphocyte_reactive", "lymphocyte"),
        ("platelet", None),
        ("leukocyte", None),
        ("of no list", None),
    ],
)
def test_a_cell_is_expected_to_have_its_own_class_or_the_nearest_above_that_was_taught(label, expected):
    assert expected_class(label, ("lymphocyte", "monocyte")) == expected


def test_truth_that_is_coarser_than_the_classes_is_neither_wrong_nor_unfamiliar(tmp_path):
    Image.new("RGB", (8, 8), (20, 20, 20)).save(tmp_path / "a.png")
    samples = [
        Sample(tmp_path / "a.png", label, "drawn")
        for label in ("neutrophil", "lymphocyte", "lymphocyte_reactive", "platelet")
    ]
    found = evaluate_classifier(Brightness(), samples)
    assert (found["n_coarser"], found["n_not_a_class"]) == (1, 1)
    assert found["all"]["n"] == 2
    assert found["all"]["top1"] == 1.0
    with pytest.raises(BadInput, match="is left"):
        evaluate_classifier(Brightness(), samples[:1])


def test_more_epochs_than_a_training_was_begun_with_are_refused_with_both_numbers(pbc, smears, tmp_path):  # noqa: F811
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    lines = (
        ("backbone", smears, "--out", tmp_path / "b", "--crops", 6),
        ("classifier", pbc, "--out", tmp_path / "c", "--recipe", recipe, "--reader", "pbc-8"),
    )
    for line in lines:
        run("train", *line, "--epochs", 1)
        more = [str(a) for a in ("train", *line, "--epochs", 2, "--resume")]
        with pytest.raises(BadInput, match=r"\(epochs: 1 there, 2 now\); resume with the same"):
            CliRunner().invoke(group, more, catch_exceptions=False)
