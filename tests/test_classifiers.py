"""Contracts that every registered classifier keeps; no model is named here."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from classifiers.base import Classifier, Explainable
from classifiers.networks import BACKBONES, CellNet
from classifiers.taxonomy import CELL_TYPES
from classifiers.timm_classifier import TimmClassifier
from pipeline.errors import BadInput, BadModelPackage
from storage.packages import ModelPackage, write_package
from storage.registry import available, describe, load

NAMES = available("classifier")


def cells(n: int, height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    """Patches of a dark disc on a light ground with noise: no cell, but something to look at."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    out = np.empty((n, height, width, 3), np.uint8)
    for i in range(n):
        radius = min(height, width) * random.uniform(0.15, 0.4)
        disc = np.hypot(y - height / 2, x - width / 2) < radius
        image = np.where(disc[..., None], random.integers(60, 160, 3), random.integers(200, 250, 3))
        out[i] = (image + random.normal(0, 6, (height, width, 3))).clip(0, 255)
    return out


@pytest.fixture(params=NAMES, scope="module")
def classifier(request):
    return load("classifier", request.param)


def test_a_classifier_is_shipped():
    assert NAMES


def test_it_keeps_the_protocol_and_names_canonical_classes(classifier):
    assert isinstance(classifier, Classifier)
    assert set(classifier.classes) <= set(CELL_TYPES)
    assert 0 < classifier.min_confidence < 1


def test_probabilities_sum_to_one_and_ood_is_a_share(classifier):
    found = classifier.classify(cells(3), None)
    assert found.probabilities.shape == (3, len(classifier.classes))
    assert found.probabilities.dtype == found.ood.dtype == np.float32
    assert found.probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    assert ((found.ood >= 0) & (found.ood <= 1)).all()


def test_a_cell_gives_the_same_in_any_batch_and_order(classifier):
    patches = cells(5)
    whole = classifier.classify(patches, None)
    for i in range(5):
        alone = classifier.classify(patches[i : i + 1], None)
        assert np.array_equal(alone.probabilities[0], whole.probabilities[i])
        assert np.array_equal(alone.ood[0], whole.ood[i])
    back = classifier.classify(patches[::-1].copy(), None)
    assert np.array_equal(back.probabilities[::-1], whole.probabilities)


def test_it_is_deterministic(classifier):
    patches = cells(2, seed=1)
    first, second = (classifier.classify(patches, 0.1) for _ in range(2))
    assert np.array_equal(first.probabilities, second.probabilities)
    assert np.array_equal(first.ood, second.ood)


@pytest.mark.parametrize(
    ("height", "width", "pixel_size_um"),
    [(8, 8, None), (1, 1, None), (1000, 1000, 0.05), (33, 71, None), (64, 64, 4.0), (90, 90, 0.001)],
)
def test_any_size_and_scale_is_answered(classifier, height, width, pixel_size_um):
    found = classifier.classify(cells(1, height, width), pixel_size_um)
    assert np.isfinite(found.probabilities).all()
    assert np.isfinite(found.ood).all()


@pytest.mark.parametrize("value", [0, 127, 255])
def test_an_image_without_contrast_is_answered(classifier, value):
    found = classifier.classify(np.full((1, 50, 50, 3), value, np.uint8), None)
    assert np.isfinite(found.probabilities).all()
    assert np.isfinite(found.ood).all()


def test_no_patches_give_no_rows(classifier):
    found = classifier.classify(np.zeros((0, 10, 10, 3), np.uint8), None)
    assert found.probabilities.shape == (0, len(classifier.classes))
    assert found.ood.shape == (0,)


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4), (1, 4, 4, 4), (1, 0, 4, 3)])
def test_other_shapes_are_refused(classifier, shape):
    with pytest.raises(BadInput):
        classifier.classify(np.zeros(shape, np.uint8), None)


def test_floats_are_refused(classifier):
    with pytest.raises(BadInput, match="uint8"):
        classifier.classify(np.zeros((1, 8, 8, 3), np.float32), None)


@pytest.mark.parametrize("name", NAMES)
def test_its_card_is_complete_and_its_weights_small(name):
    found = describe("classifier", name)
    if not isinstance(found, ModelPackage):
        pytest.skip("an architecture without weights has no card")
    card = found.card
    for text in (card.licence, card.intended_use, card.version):
        assert text.strip()
    assert card.training_data
    assert card.limits
    assert card.metrics
    assert card.training
    assert found.weights_path.stat().st_size < 25_000_000  # all packages together: test_packages


@pytest.mark.parametrize("name", NAMES)
def test_altered_or_torn_weights_are_refused(name, tmp_path):
    found = describe("classifier", name)
    if not isinstance(found, ModelPackage):
        pytest.skip("an architecture without weights has nothing to load")
    shutil.copytree(found.folder, tmp_path / "altered")
    weights = tmp_path / "altered" / found.weights_path.name
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(BadModelPackage, match="not the file its card names"):
        load("classifier", str(tmp_path / "altered"))
    card, state = found.card.model_dump(mode="json"), found.state_dict()
    torn = {k: v for k, v in state.items() if k != sorted(state)[0]}
    for changed, message in ((torn, "missing"), ({**state, "another": torch.zeros(1)}, "no place")):
        folder = tmp_path / message.replace(" ", "-")
        write_package(folder, card, changed)
        with pytest.raises(BadModelPackage, match=message):
            load("classifier", str(folder))


@pytest.mark.parametrize("name", NAMES)
def test_a_card_of_other_classes_or_sizes_is_refused(name, tmp_path):
    found = describe("classifier", name)
    if not isinstance(found, ModelPackage):
        pytest.skip("an architecture without weights has no card")
    card, state = found.card.model_dump(mode="json"), found.state_dict()
    for number, change in enumerate(
        ({"classes": card["classes"][:-1]}, {"classes": []}, {"input_px": [8, 8]}, {"input_px": None})
    ):
        folder = tmp_path / str(number)
        write_package(folder, {**card, **change}, state)
        with pytest.raises(BadModelPackage):
            load("classifier", str(folder))


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnext50_32x4d", "inception_resnet_v2"])
def test_every_architecture_of_the_papers_keeps_the_contract(backbone):
    torch.manual_seed(0)
    classes = ("lymphocyte", "monocyte", "neutrophil")
    net = CellNet(backbone, len(classes), none_output=True, components=4)
    model = TimmClassifier(
        backbone,
        classes,
        net,
        input_px=BACKBONES[backbone],
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        parameters={"views": 1},
    )
    assert isinstance(model, Explainable)
    patches = cells(2, 64, 64)
    whole = model.classify(patches, None)
    alone = model.classify(patches[1:], None)
    assert whole.probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(whole.probabilities[1], alone.probabilities[0])
    assert np.array_equal(whole.ood[1], alone.ood[0])
    given = model.attribution_input(patches[0], None)
    told = given.probabilities(given.view[None]).detach().numpy()[0]
    assert told == pytest.approx(whole.probabilities[0], abs=1e-4)
