"""The learned reader of iron: what it answers, what cannot change its answer, and that training resumes."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from benchmarks.sideroblasts import Reading, agreement_report
from classifiers.metrics import fit_temperature
from classifiers.sideroblasts import SideroblastReader
from classifiers.sideroblasts_cnn import INPUT_PX, OUTPUTS, IronNet, LearnedReader, decide, view
from classifiers.sideroblasts_training import ReaderRecipe, confusion_of, fit, iron_set
from phantoms.marrow_fields import training_fields
from phantoms.marrow_sets import FieldSet
from pipeline.errors import BadInput, BadModelPackage
from storage.packages import read_package, write_package
from tests.test_sideroblasts import CASES, PX, perls_cell


@pytest.fixture(scope="module")
def reader() -> LearnedReader:
    torch.manual_seed(0)
    return LearnedReader("untrained", IronNet())


@pytest.fixture(scope="module")
def fields() -> FieldSet:
    drawn = tuple(training_fields(3, "Perls", side_um=40.0, n_cells=5, n_stainings=2))
    return FieldSet(np.stack([f.image for f in drawn]), drawn)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ((0.9, 0.05, 0.02, 0.02, 0.01), "0"),
        ((0.1, 0.6, 0.2, 0.0, 0.1), "1"),
        ((0.0, 0.2, 0.7, 0.1, 0.0), "2"),
        ((0.0, 0.0, 0.1, 0.9, 0.0), "3"),
        ((0.2, 0.1, 0.2, 0.5, 0.0), "indeterminate"),  # a ring as likely as not
        ((0.1, 0.1, 0.1, 0.1, 0.6), "indeterminate"),  # no erythroblast
    ],
)
def test_a_type_is_said_where_ring_or_not_is_clear_and_an_erythroblast_is_there(p, expected) -> None:
    kind, reason = decide(p)
    assert kind == expected
    assert bool(reason) == (expected == "indeterminate")


def test_it_is_a_reader_and_its_answer_does_not_depend_on_batch_or_quarter_turns(
    reader: LearnedReader,
) -> None:
    assert isinstance(reader, SideroblastReader)
    patches = np.stack([perls_cell(s) for s, _ in CASES.values()][:3])
    together = reader.read(patches, PX)
    assert reader.read(patches[1:2], PX)[0].probabilities == together[1].probabilities
    turned = reader.read(np.ascontiguousarray(np.rot90(patches, 1, (1, 2))), PX)
    for a, b in zip(together, turned, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-3)
        assert sum(a.probabilities or ()) == pytest.approx(1)


def test_the_view_shows_the_same_cell_at_any_pixel_size_and_under_any_lamp() -> None:
    patch = perls_cell(CASES["ring"][0])
    plain = view(patch, PX)
    assert plain.shape == (INPUT_PX, INPUT_PX, 3)
    small = cv2.resize(patch, (160, 160), interpolation=cv2.INTER_AREA)
    assert np.abs(view(small, PX * 256 / 160) - plain).mean() < 0.06
    dim = (patch * 0.7).astype(np.uint8)
    assert np.abs(view(dim, PX) - plain).mean() < 0.06


def test_coarse_and_tiny_patches_are_indeterminate_and_others_refused(reader: LearnedReader) -> None:
    patch = perls_cell([])[None]
    assert "resolution" in reader.read(patch, 0.4)[0].reason
    assert reader.read(patch[:, :30, :30], PX)[0].type == "indeterminate"
    with pytest.raises(BadInput, match="uint8"):
        reader.read(patch.astype(np.float32), PX)


def test_a_resumed_training_ends_with_the_same_weights(fields: FieldSet, tmp_path) -> None:
    data = iron_set(fields, 1, 0)
    assert {OUTPUTS[i] for i in data.labels} >= {"other"}
    recipe = ReaderRecipe(widths=(4, 4, 4), steps=3, batch=4)

    def run(path, stop=None) -> IronNet:
        torch.manual_seed(1)
        net = IronNet(recipe.widths)
        return fit(net, data, recipe, seed=1, checkpoint=path, resume=True, stop_after=stop)

    whole = run(None).state_dict()
    run(tmp_path / "a.pt", stop=1)
    resumed = run(tmp_path / "a.pt").state_dict()
    assert all(torch.allclose(whole[k].float(), resumed[k].float(), atol=1e-6) for k in whole)
    data = replace(data, labels=data.labels[::-1].copy())
    with pytest.raises(BadInput, match="other images, labels"):
        run(tmp_path / "a.pt")


def test_temperature_and_confusion_are_those_of_known_answers() -> None:
    labels = np.array([0, 1, 2, 3, 3, 4])
    logits = torch.full((6, 5), -3.0)
    logits[torch.arange(6), torch.tensor([0, 1, 1, 3, 3, 4])] = 3.0
    assert fit_temperature(logits.numpy(), labels) > 1.0  # one of six is wrong, and surely so
    found = confusion_of(logits.softmax(1).numpy(), labels)
    assert found["type_accuracy"] == 0.8
    assert found["ring_or_not_accuracy"] == 1.0
    assert found["true_type_then_read"]["2"]["1"] == 1
    assert found["others_read_as_erythroblasts"] == [0, 1]


def test_a_package_of_another_shape_is_refused(tmp_path) -> None:
    card = {
        "name": "odd",
        "version": "1",
        "task": "sideroblast-reader",
        "architecture": "iron-net",
        "weights": "safetensors",
        "licence": "AGPL-3.0-or-later",
        "intended_use": "a test",
        "modalities": ["brightfield"],
        "stains": ["Perls"],
        "pixel_size_um": 0.2,
        "classes": list(OUTPUTS),
        "training_data": ["none"],
        "metrics": {},
        "limits": ["all"],
        "parameters": {"widths": [4, 4, 4]},
    }
    write_package(tmp_path / "odd", card, IronNet((4, 4, 8)).state_dict())
    with pytest.raises(BadModelPackage):
        LearnedReader.from_package(read_package(tmp_path / "odd"))
    write_package(tmp_path / "good", card, IronNet((4, 4, 4)).state_dict())
    assert LearnedReader.from_package(read_package(tmp_path / "good")).name == "odd"


def test_the_agreement_of_two_readers_is_reported_over_all_and_case_by_case() -> None:
    said = [("3", "3"), ("3", "0"), ("0", "0"), ("1", "2"), ("0", "indeterminate")]
    readings = [Reading(7, 0, "", True, {"a": x, "b": y}) for x, y in said] + [
        Reading(8, 0, "", True, {"a": "0", "b": "0"}),
        Reading(8, 3, "", False, {}),
    ]
    lines = agreement_report(readings, "a", "b").splitlines()
    assert "ring or not 4/5" in lines[0]
    assert "type 3/5" in lines[0]
    assert "1 undecided" in lines[0]
    assert "7: ring or not 3/4, type 2/4, kappa 0.5, undecided 1" in lines[1]
    assert "8: ring or not 1/1, type 1/1, kappa None" in lines[2]
