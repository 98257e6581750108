"""Which cells a classifier learns from and which are held out: groups together, every class measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifiers.sources import (
    Sample,
    folds_by_group,
    group_duplicates,
    read_samples,
    split_by_group,
)
from classifiers.training import train_classifier
from pipeline.errors import BadInput
from tests.test_classifiers_training import TINY, folder

__all__ = ["folder"]


def test_a_split_keeps_groups_together_and_is_stable():
    samples = [Sample(Path(f"{i}.png"), "monocyte", "a", group=f"g{i // 2}") for i in range(40)]
    train, held = split_by_group(samples, 0.25, 1)
    assert sorted(train + held) == list(range(40))
    assert not {samples[i].group for i in train} & {samples[i].group for i in held}
    assert split_by_group(samples, 0.25, 1) == (train, held)
    assert held


def test_many_sources_of_few_cells_hold_out_some_of_every_class_that_can_spare_it():
    samples = [
        Sample(Path(f"{source}-{label}-{i}.png"), label, f"s{source}", group=f"{source}-{label}-{i}")
        for source in range(40)
        for label in ("monocyte", "basophil")
        for i in range(3)
    ]
    samples.append(Sample(Path("only.png"), "platelet", "s0", group="only"))
    train, held = split_by_group(samples, 0.15, 0)
    assert sorted(samples[i].label for i in held) == ["basophil", "monocyte"]
    assert {samples[i].label for i in train} == {"basophil", "monocyte", "platelet"}
    assert split_by_group(samples, 0.0, 0)[1] == []


def test_holding_out_of_one_class_leaves_every_class_something_to_learn_from():
    seen = {"monocyte": ("p1", "p2"), "basophil": ("p1", "p3"), "eosinophil": ("p2",)}
    samples = [Sample(Path(f"{p}-{c}.png"), c, "a", group=p) for c, own in seen.items() for p in own]
    for seed in range(8):
        train, held = split_by_group(samples, 0.15, seed)
        assert held
        assert {samples[i].label for i in train} == seen.keys()


def test_the_only_patient_of_a_class_is_learned_from():
    samples = [Sample(Path(f"{i}.png"), "monocyte", "a", group="p1") for i in range(20)]
    samples += [Sample(Path(f"b{i}.png"), "basophil", "a", group=f"p{2 + i // 5}") for i in range(20)]
    train, held = split_by_group(samples, 0.2, 0)
    assert {samples[i].label for i in train} == {"monocyte", "basophil"}
    assert {samples[i].label for i in held} == {"basophil"}


def test_a_class_that_holds_some_out_by_its_share_holds_out_no_more():
    samples = [Sample(Path(f"{i}.png"), "monocyte", "a", group=f"{i}") for i in range(40)]
    samples += [Sample(Path(f"b{i}.png"), "monocyte", "b", group=f"b{i}") for i in range(3)]
    held = split_by_group(samples, 0.1, 5)[1]
    assert len(held) == 4
    assert all(samples[i].source == "a" for i in held)


def test_a_training_that_can_hold_nothing_out_is_refused_before_it_begins(folder, tmp_path):
    one_patient = [replace(s, group="p") for s in read_samples(folder)]
    with pytest.raises(BadInput, match=r"could be held out to calibrate on.*give more"):
        train_classifier(one_patient, tmp_path / "net", TINY)
    assert not list(tmp_path.iterdir())


def test_folds_hold_every_cell_once_whole_groups_and_a_share_of_every_class():
    labels = ("monocyte", "basophil")
    samples = [Sample(Path(f"{i}.png"), labels[i % 5 == 0], "a", group=f"g{i // 2}") for i in range(60)]
    folds = folds_by_group(samples, 4, 0)
    assert sorted(i for fold in folds for i in fold) == list(range(60))
    groups = [{samples[i].group for i in fold} for fold in folds]
    assert sum(len(g) for g in groups) == len(set.union(*groups)) == 30
    for label in labels:
        assert all(any(samples[i].label == label for i in fold) for fold in folds), label
    assert folds_by_group(samples, 4, 0) == folds
    assert folds_by_group(samples, 4, 1) != folds


def test_near_duplicates_fall_in_one_group(tmp_path):
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 255, (48, 48, 3), np.uint8) for _ in range(2))
    for name, image in (("a", a), ("a2", (a * 0.9).astype(np.uint8)), ("b", b)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    samples = [Sample(tmp_path / f"{n}.png", "monocyte", "x", group=n) for n in ("a", "a2", "b")]
    groups = [s.group for s in group_duplicates(samples)]
    assert groups[0] == groups[1] != groups[2]
