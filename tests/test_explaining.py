"""Explanations: pixels that matter are found, and an explanation depends on the model."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from classifiers.base import AttributionInput, Classified, Explainable
from classifiers.explaining import METHODS, attribution, draw, explain, explainable
from classifiers.views import dihedral
from pipeline.errors import BadInput, UnknownName
from storage.registry import available, load
from tests.test_classifiers import cells


class RedSpot:
    """Says eosinophil for red in the upper left quarter of the view, and nothing else matters."""

    name, classes, min_confidence = "red-spot", ("eosinophil", "neutrophil_band", "neutrophil_segmented"), 0.5

    def __init__(self) -> None:
        # Feeds the layer from which Grad-CAM reads: excess of red, an average over 4 px.
        self.layer = torch.nn.Conv2d(3, 1, 4, 4, bias=False)
        weight = torch.zeros(1, 3, 4, 4)
        weight[:, 0], weight[:, 1] = 1 / 16, -1 / 16
        self.layer.weight = torch.nn.Parameter(weight)

    def classify(self, patches, pixel_size_um):
        views = torch.from_numpy(patches).permute(0, 3, 1, 2).float() / 255
        p = self._probabilities(views).detach().numpy()
        return Classified(p, np.zeros(len(p), np.float32))

    def _probabilities(self, views):
        found = self.layer(views)
        half = found.shape[-1] // 2
        red = found[:, 0, :half, :half].mean((1, 2))
        p = (8 * red - 1).sigmoid()
        return torch.stack([p, (1 - p) / 2, (1 - p) / 2], 1)

    def attribution_input(self, patch, pixel_size_um):
        view = torch.from_numpy(patch).permute(2, 0, 1).float() / 255
        size = patch.shape[0]
        return AttributionInput(view, (size / 2, size / 2, float(size)), self._probabilities, (self.layer,))


def spotted(size=48):
    """A red square in the upper left and one, as red, in the lower right, on glass."""
    patch = np.full((size, size, 3), 235, np.uint8)
    patch[8:20, 8:20] = patch[28:40, 28:40] = (230, 40, 40)
    return patch


@pytest.mark.parametrize("method", ["occlusion", "integrated-gradients"])
def test_heat_lies_on_the_pixels_that_decide_and_on_no_others(method):
    found = explain(RedSpot(), spotted(), None, "eosinophil", method)
    total = np.abs(found.heat).sum()
    assert np.abs(found.heat[:24, :24]).sum() > 0.8 * total
    y, x = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert 6 <= y <= 21
    assert 6 <= x <= 21


def test_grad_cam_finds_the_red_squares():
    found = explain(RedSpot(), spotted(), None, "eosinophil", "grad-cam")
    assert found.heat[8:20, 8:20].mean() > 10 * abs(found.heat[8:20, 28:40].mean())


def test_a_parent_stands_for_its_classes_and_has_the_opposite_heat():
    for_red = explain(RedSpot(), spotted(), None, "eosinophil")
    against = explain(RedSpot(), spotted(), None, "neutrophil")
    assert against.probability == pytest.approx(1 - for_red.probability, abs=1e-5)
    assert np.allclose(for_red.heat, -against.heat, atol=1e-6)
    assert for_red.share_for > 0.9 > 0.1 > against.share_for


def test_occlusion_is_in_units_of_probability():
    model, patch = RedSpot(), spotted()
    whole = float(model.classify(patch[None], None).probabilities[0, 0])
    hidden = patch.copy()
    hidden[8:20, 8:20] = 235
    gone = float(model.classify(hidden[None], None).probabilities[0, 0])
    heat = explain(model, patch, None, "eosinophil", "occlusion").heat
    assert 0.2 * (whole - gone) < heat.max() <= whole - gone


@pytest.mark.parametrize("name", available("classifier"))
@pytest.mark.parametrize("method", [m for m in METHODS if m != "occlusion"])  # which takes seconds a cell
def test_an_explanation_changes_with_the_weights_and_repeats_with_them(name, method):
    classifier = explainable(load("classifier", name))
    assert isinstance(classifier, Explainable)
    patch = cells(1, 96, 96, seed=3)[0]
    first, again = (explain(classifier, patch, None, method=method) for _ in range(2))
    assert np.array_equal(first.heat, again.heat)
    assert first.heat.shape == (96, 96)
    assert np.isfinite(first.heat).all()
    told = classifier.classify(patch[None], None).probabilities[0]
    assert first.probability == pytest.approx(told.max(), abs=1e-4)
    alike = []
    for seed in range(3):  # a map a few pixels wide is like that of one blind network by chance, up to 0.97
        blind = copy.deepcopy(classifier)
        torch.manual_seed(seed)
        networks = getattr(blind._net, "members", (blind._net.network,))
        for module in itertools.chain.from_iterable(network.modules() for network in networks):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        other = explain(blind, patch, None, first.label, method).heat
        alike.append(np.corrcoef(first.heat.ravel(), other.ravel())[0, 1])
    assert np.mean(alike) < 0.8


@pytest.mark.real
def test_taking_away_what_is_ranked_first_costs_more_than_taking_away_the_rest(real_data):
    from benchmarks.classification_explanations import others, without
    from classifiers.sources import read_samples
    from storage.images import read_rgb

    classifier = load("classifier", "leukocyte-classes")
    falls = []
    for sample in read_samples(real_data / "cells")[::45]:
        given = classifier.attribution_input(read_rgb(sample.path), None)
        with torch.no_grad():
            p = given.probabilities(given.view[None])[0]
            k = int(p.argmax())
            heat = attribution(given, [k], "grad-cam")
            views = torch.stack([without(given.view, m) for m in (heat, *others(heat))])
            fall = (p[k] - given.probabilities(views)[:, k]).tolist()
        falls.append((fall[0], sum(fall[1:]) / len(fall[1:])))
    first, rest = np.array(falls).mean(0)
    assert first > rest + 0.2


def test_maps_of_turned_views_are_turned_back():
    from classifiers.explaining import _turned_back

    view = torch.rand(3, 6, 6)
    maps = dihedral(view, 8).mean(1)
    for back in _turned_back(maps):
        assert torch.equal(back, view.mean(0))


def test_what_cannot_be_explained_is_refused():
    class Closed:
        name, classes = "closed", ("eosinophil",)

        def classify(self, patches, pixel_size_um):
            raise NotImplementedError

    with pytest.raises(BadInput, match="closed"):
        explainable(Closed())
    with pytest.raises(BadInput, match="monocyte"):
        explain(RedSpot(), spotted(), None, "monocyte")
    with pytest.raises(UnknownName, match="grad-cam"):
        explain(RedSpot(), spotted(), None, method="guess")


def test_the_picture_is_orange_where_pixels_speak_for_the_class_and_grey_elsewhere():
    patch = spotted()
    picture = draw(patch, explain(RedSpot(), patch, None, "eosinophil")).astype(int)
    assert picture[14, 14, 0] > picture[14, 14, 2] + 60
    assert np.ptp(picture[34, 14]) <= 2


def test_the_command_writes_one_picture_an_image_and_says_what_it_explains(tmp_path):
    from flows.cli import group

    for name, seed in (("a.png", 0), ("b.png", 1)):
        Image.fromarray(cells(1, 80, 90, seed)[0]).save(tmp_path / name)
    args = ["explain", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(group, [*args, "--method", "grad-cam", "--class", "monocyte"])
    assert done.exit_code == 0, done.output
    assert "monocyte" in done.output
    for name in ("a.png", "b.png"):
        assert np.asarray(Image.open(tmp_path / "out" / name)).shape == (80, 90, 3)


def test_the_commands_json_has_its_keys(tmp_path, capfd):
    from flows.cli import main

    Image.fromarray(cells(1)[0]).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as done:
        main(["explain", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--json"])
    assert done.value.code == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert row["class"] == row["explained"]
    assert row["method"] == "integrated-gradients"
    assert {"file", "output", "probability", "ood", "view_px", "model", "share_for"} <= row.keys()
