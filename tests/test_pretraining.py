"""Pretraining without labels: the loss, the loop, and what is taken over from it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from classifiers.networks import CellNet, build_backbone
from classifiers.pretraining import (
    Pretraining,
    crops_of,
    nt_xent,
    pretrain,
    pretrain_backbone,
    read_backbone,
    start_from,
)
from classifiers.sources import boxed_cells
from pipeline.errors import BadInput, BadModelPackage
from storage.image_folders import own_source

TINY = Pretraining(input_px=32, cached_px=40, crops=6, epochs=2, batch=4)


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    """Two fields of 416 px with boxed discs: a leukocyte and three red cells each, and a platelet."""
    root = tmp_path_factory.mktemp("smears")
    (root / "images" / "train").mkdir(parents=True)
    (root / "labels" / "train").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        image = random.integers(200, 240, (416, 416, 3), np.uint8)
        lines = []
        for kind, x, y, side in ((0, 208, 208, 90), (1, 80, 80, 50), (1, 330, 90, 50), (1, 90, 330, 50)):
            image[y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] = random.integers(60, 190, 3)
            lines.append(f"{kind} {x / 416} {y / 416} {side / 416} {side / 416}")
        lines.append("2 0.5 0.9 0.04 0.04")
        Image.fromarray(image).save(root / "images" / "train" / f"{name}.jpg")
        (root / "labels" / "train" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_the_loss_of_a_worked_example():
    # Two cells; views agree exactly, cells are orthogonal: of the three others one is the partner,
    # exp(1 / t) / (exp(1 / t) + 2 exp(0)).
    z = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert float(nt_xent(z, z, 0.5)) == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_least_where_partners_agree_and_does_not_see_length():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(8, 16, generator=generator) for _ in range(2))
    assert nt_xent(a, a, 0.2) < nt_xent(a, b, 0.2)
    assert torch.allclose(nt_xent(a, b, 0.2), nt_xent(5 * a, 0.1 * b, 0.2), atol=1e-5)


def test_leukocytes_come_first_red_cells_fill_up_and_platelets_never(smears):
    found = boxed_cells(smears, 4, seed=0)
    assert sorted(round(s.side) for s in found) == [50, 50, 90, 90]
    assert len(boxed_cells(smears, 100)) == 8
    with pytest.raises(BadInput, match="no boxed cells"):
        boxed_cells(smears / "labels", 4)  # no images in it


def test_training_lowers_the_loss_and_a_resumed_run_ends_the_same(smears, tmp_path):
    images, view = crops_of(boxed_cells(smears, TINY.crops), TINY)
    assert images.shape == (6, 3, 40, 40)
    said: list[str] = []
    run = Pretraining(input_px=32, cached_px=40, crops=6, epochs=6, batch=6, learning_rate=4e-3)
    whole = pretrain(images, view, run, seed=1, report=said.append)
    losses = [float(line.rsplit(" ", 1)[1]) for line in said]
    assert losses[-1] < losses[0]
    checkpoint = tmp_path / "c.pt"
    pretrain(images, view, run, seed=1, checkpoint=checkpoint, stop_after=2)
    resumed = pretrain(images, view, run, seed=1, checkpoint=checkpoint, resume=True)
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())
    with pytest.raises(BadInput, match="other images, labels"):
        pretrain(255 - images, view, run, seed=1, checkpoint=checkpoint, resume=True)
    with pytest.raises(BadInput, match="other starting weights"):
        pretrain(images, view, run, seed=2, checkpoint=checkpoint, resume=True)


def test_a_classifier_starts_from_the_pretrained_weights_and_keeps_its_own_last_layer(smears, tmp_path):
    notes = pretrain_backbone(smears, tmp_path / "b", TINY, seed=2)
    assert notes["cells"] == {f"smears-{own_source(smears)}": 6}
    assert json.loads((tmp_path / "b" / "pretraining.json").read_text())["seed"] == 2
    state = read_backbone(tmp_path / "b")
    net = CellNet(TINY.backbone, 5, locator=False, none_output=True)
    last = net.network.get_classifier().weight.detach().clone()
    start_from(net.network, state, "b")
    own = net.network.state_dict()
    assert all(torch.equal(own[k], v) for k, v in state.items())
    assert torch.equal(net.network.get_classifier().weight, last)


def test_weights_of_another_architecture_are_refused():
    other = build_backbone("resnet10t", 0).state_dict()
    net = CellNet("resnet18_slim", 5, locator=False)
    with pytest.raises(BadModelPackage, match="does not fit"):
        start_from(net.network, other, "other")
    state = build_backbone("resnet18_slim", 0).state_dict()
    state.pop("bn1.weight")
    with pytest.raises(BadModelPackage, match=r"bn1\.weight"):
        start_from(net.network, state, "torn")


def test_what_cannot_be_pretrained_is_refused(tmp_path):
    with pytest.raises(BadInput, match="vgg"):
        Pretraining(backbone="vgg")
    with pytest.raises(BadInput, match="batch"):
        Pretraining(batch=1)
    with pytest.raises(BadInput, match="too few"):
        pretrain(torch.zeros(1, 3, 40, 40, dtype=torch.uint8), torch.ones(1), TINY)
    with pytest.raises(BadInput, match="train backbone"):
        read_backbone(tmp_path)
