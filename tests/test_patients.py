"""Patient-level reading: phantom patients, attention over cells, the stage and what it keeps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.patient_stage import why_not, why_not_shown
from phantoms.patients import PATTERNS, draw_composition, phantom_patient
from pipeline.errors import BadInput, BadModelPackage
from tests.report_cases import a_case

CLASSES = ("rare", "common", "plain")


def few_cells_decide(seed: int, patients: int = 24, cells: int = 30):
    """Bags in three patterns: one rare kind of cell, many of another kind, neither; 8 features a cell."""
    from classifiers.patients_training import EmbeddedPatient

    rng = np.random.default_rng(seed)
    made = []
    for i in range(patients):
        pattern = i % 3
        kind = rng.choice(3, cells, p=[0.0, 0.3, 0.7])
        if pattern == 0:
            kind[: int(rng.integers(3, 6))] = 0
        if pattern == 1:
            kind[: cells // 2] = 1
        features = rng.normal(0, 0.3, (cells, 8)).astype(np.float32)
        features[np.arange(cells), kind] += 4
        # the named classes do not know the rare kind: a histogram cannot see it
        named = np.eye(2, dtype=np.float32)[np.where(kind == 1, 1, 0)]
        made.append(EmbeddedPatient(pattern, features, named, kind == 0))
    return made


@pytest.fixture(scope="module")
def trained():
    from classifiers.patients_training import PatientRecipe, train_patients

    recipe = PatientRecipe(epochs=50, smallest_bag=15, largest_bag=30, learning_rate=6e-3, width=16, hidden=8)
    return train_patients(few_cells_decide(0), 3, recipe), recipe


@pytest.fixture
def package(trained, tmp_path):
    from storage.packages import write_package

    net, recipe = trained
    return write_package(
        tmp_path / "patterns",
        {
            "name": "patterns", "version": "1", "task": "patient-classifier", "architecture": "attention-mil",
            "weights": "safetensors", "sha256": "", "licence": "x", "intended_use": "tests",
            "modalities": ["brightfield"], "stains": ["MGG"], "pixel_size_um": None, "classes": list(CLASSES),
            "training_data": ["numbers"], "metrics": {"measured_on": "numbers"}, "limits": ["tests only"],
            "parameters": {
                "features": 8, "width": recipe.width, "hidden": recipe.hidden, "cell_classes": ["a", "b"],
                "cell_classifier": "none", "cell_classifier_sha256": "none",
            },
        },
        net.state_dict(),
    )  # fmt: skip


@pytest.fixture
def reader(package):
    from classifiers.patients import AttentionReader

    return AttentionReader.from_package(package)


def test_a_phantom_patient_is_drawn_from_its_own_composition_and_again_the_same():
    one = phantom_patient("blasts", 12, np.random.default_rng(3))
    again = phantom_patient("blasts", 12, np.random.default_rng(3))
    assert np.array_equal(one.patches, again.patches)
    assert one.kinds == again.kinds
    assert one.patches.shape == (12, 128, 128, 3)
    assert one.counts() == dict(Counter(one.kinds))
    assert sum(one.composition.values()) == pytest.approx(1)
    assert set(one.kinds) <= set(PATTERNS["blasts"])


def test_compositions_of_a_pattern_scatter_around_its_mean():
    rng = np.random.default_rng(0)
    shares = [draw_composition("eosinophilia", rng)["eosinophil"] for _ in range(400)]
    assert np.mean(shares) == pytest.approx(0.22, abs=0.01)
    assert 0.03 < np.std(shares) < 0.08


def test_attention_finds_a_pattern_that_few_cells_make_and_a_histogram_cannot(trained):
    from classifiers.patients_training import accuracy_by_bag

    row = accuracy_by_bag(trained[0], few_cells_decide(99), [30], draws=2)[0]
    assert row["attention"] > 0.9
    assert row["histogram"] < 0.8
    assert row["key_cell_rank_auc"] > 0.9  # the rare cells are the ones attended to


def test_accuracy_falls_as_bags_shrink(trained):
    from classifiers.patients_training import accuracy_by_bag

    rows = accuracy_by_bag(trained[0], few_cells_decide(99), [2, 30], draws=4)
    assert rows[0]["cells"] == 2
    assert rows[0]["attention"] < rows[1]["attention"]


def test_training_twice_gives_the_same_weights():
    import torch

    from classifiers.patients_training import PatientRecipe, train_patients

    few, recipe = few_cells_decide(1, 6), PatientRecipe(epochs=2, width=8, hidden=4)
    first, second = (train_patients(few, 3, recipe).state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 9))
def test_the_order_of_the_cells_is_nothing_to_the_reading(trained, n, seed):
    from classifiers.patients import AttentionReader

    reader = AttentionReader("r", CLASSES, trained[0], "none", "none")
    rng = np.random.default_rng(seed)
    bag, named = rng.normal(size=(n, 8)).astype(np.float32), rng.dirichlet([1, 1], n).astype(np.float32)
    turn = rng.permutation(n)
    one, other = reader.read(bag, named), reader.read(bag[turn], named[turn])
    assert one.attention.sum() == pytest.approx(1, abs=1e-5)
    assert one.probabilities.sum() == pytest.approx(1)
    assert np.allclose(one.probabilities, other.probabilities, atol=1e-6)
    assert np.allclose(one.attention[turn], other.attention, atol=1e-6)


def test_an_empty_or_misshapen_bag_is_refused_in_one_sentence(reader):
    for embeddings, named in (((0, 8), (0, 2)), ((3, 7), (3, 2)), ((3, 8), (2, 2))):
        with pytest.raises(BadInput, match="reads bags of at least one cell"):
            reader.read(np.zeros(embeddings, np.float32), np.zeros(named, np.float32))


def test_weights_that_do_not_fit_their_card_are_refused(package):
    from dataclasses import replace

    from classifiers.patients import AttentionReader

    parameters = {**package.card.parameters, "width": 17}
    with pytest.raises(BadModelPackage, match=r"is .* needed is"):
        AttentionReader.from_package(
            replace(package, card=package.card.model_copy(update={"parameters": parameters}))
        )
    del parameters["width"]
    with pytest.raises(BadModelPackage, match="lack 'width'"):
        AttentionReader.from_package(
            replace(package, card=package.card.model_copy(update={"parameters": parameters}))
        )


def test_the_stage_keeps_the_cells_of_highest_attention_in_order(reader):
    from pipeline.patients import read_patient

    patient = few_cells_decide(5)[0]
    ids = [f"c{i:02d}" for i in range(len(patient.embeddings))]
    found = read_patient(ids, patient.embeddings, patient.probabilities, reader, top_cells=4)
    assert found.n_cells == 30
    assert len(found.top) == 4
    assert [c.attention for c in found.top] == sorted((c.attention for c in found.top), reverse=True)
    assert max(found.probabilities, key=found.probabilities.get) == "rare"
    rare = {i for i, key in zip(ids, patient.key, strict=True) if key}
    assert {c.cell_id for c in found.top[:2]} <= rare
    assert found.top[0].speaks_for == "rare"


def test_a_classifier_without_embeddings_is_named_with_the_setting_to_change():
    from types import SimpleNamespace

    from pipeline.patients import embed_cells

    with pytest.raises(BadInput, match=r"classifier plain gives no cell embeddings; set patients\.model"):
        embed_cells([], 0.1, SimpleNamespace(name="plain"))


def test_the_shipped_package_reads_the_shipped_classifier():
    from pipeline.settings import Settings
    from storage.packages import find_package

    own = Settings()
    reader, classifier = find_package(own.patients.model), find_package(own.classification.classifier)
    assert reader.card.parameters["cell_classifier_sha256"] == classifier.card.sha256
    assert reader.card.parameters["cell_classes"] == list(classifier.card.classes)
    assert set(reader.card.classes) == set(PATTERNS)
    assert "phantom" in reader.card.metrics["measured_on"]


def test_cells_unlike_those_learned_from_are_not_read_and_the_reason_is_told(reader):
    from pipeline.patients import read_patient

    def reading(embeddings):
        bag = few_cells_decide(7)[0]
        ids = [f"c{i:02d}" for i in range(len(embeddings))]
        return read_patient(ids, embeddings, bag.probabilities, reader, top_cells=2)

    for patient in few_cells_decide(8, patients=12):
        assert reading(patient.embeddings).familiar
    other = few_cells_decide(7)[0].embeddings + 3.0
    assert not reading(other).familiar
    # The order of features says what a cell is: the same numbers in other places are another kind of cell.
    assert not reading(np.roll(few_cells_decide(7)[0].embeddings, 4, axis=1)).familiar
    said = why_not_shown(None, a_case(), (), reading(other))
    assert "unlike those that patterns learned from" in said


@pytest.mark.parametrize("specimen", ["bone_marrow", "blood", None])
def test_a_specimen_that_is_not_on_the_readers_card_is_refused_with_the_reason(specimen):
    from types import SimpleNamespace

    from pipeline.settings import Settings

    why = why_not(SimpleNamespace(settings=Settings()), a_case(specimen=specimen), ())
    refused = "patient-patterns was made for blood, and this is bone marrow"
    assert (why == refused) == (specimen == "bone_marrow")


def test_the_shipped_reader_knows_its_phantoms_from_noise():
    from pipeline.settings import Settings
    from storage.registry import load

    own = Settings()
    reader, classifier = (
        load("patient-classifier", own.patients.model),
        load("classifier", own.classification.classifier),
    )
    patient = phantom_patient("unremarkable", 12, np.random.default_rng(77))
    embeddings, probabilities = classifier.bag(patient.patches, 0.1)
    known = reader.read(embeddings, probabilities)
    noise = np.random.default_rng(1).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
    strange = reader.read(*classifier.bag(noise, 0.1))
    assert known.strangeness <= known.strangeness_limit < strange.strangeness
