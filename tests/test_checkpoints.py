"""Checkpoints of every training: never written over unasked, and one sentence where they are damaged."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import group
from flows.commands.train import command as train
from flows.commands.train_phantoms import PHANTOM_COMMANDS
from pipeline.errors import BadInput
from storage.checkpoints import read_checkpoint, require_same

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parent.parent

# Where each training keeps its state, as seen from OUT's parent.
KEPT = {
    "detector": "out/last.pt",
    "segmenter": "out.training/checkpoint.pt",
    "stainer": "out/checkpoint.pt",
    "classifier": ".out.checkpoint.pt",
    "virtual-classifier": ".out.checkpoint.pt",
    "backbone": "out/checkpoint.pt",
    "locator": "out/checkpoint.pt",
    "perls-finder": "out.training/checkpoint.pt",
    "perls-reader": "out.training/checkpoint.pt",
    "marrow-classifier": "out.training/checkpoint.pt",
}


@pytest.mark.parametrize("what", KEPT)
def test_no_training_writes_over_a_checkpoint_unless_it_goes_on_from_it(what, tmp_path):
    import cv2
    import numpy as np

    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "data" / "images" / "a.png"), np.full((64, 64, 3), 200, np.uint8))
    (tmp_path / "data" / "labels" / "a.txt").write_text("0 0.5 0.5 0.3 0.3\n")
    checkpoint = tmp_path / KEPT[what]
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.write_bytes(b"hours of work")
    drawn = {one.name for one in PHANTOM_COMMANDS}
    data = [] if what in drawn else [str(tmp_path / "data")]
    done = CliRunner().invoke(group, ["train", what, *data, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, BadInput), done.output
    assert f"{checkpoint} is the checkpoint of an earlier training; give --resume" in str(done.exception)
    assert checkpoint.read_bytes() == b"hours of work"


def test_every_training_is_one_of_those_that_keep_their_checkpoints():
    assert set(KEPT) == set(train.commands)


@pytest.mark.parametrize("damage", ["empty", "cut", "cut at its head", "text", "other keys", "no state"])
def test_a_damaged_checkpoint_is_one_sentence_that_names_the_file_and_what_to_do(damage, tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"net": torch.zeros(1000), "step": 3}, path)
    assert read_checkpoint(path, "net", "step")["step"] == 3
    whole = path.read_bytes()
    if damage == "other keys":
        torch.save({"net": torch.zeros(2)}, path)
    elif damage == "no state":
        torch.save(torch.zeros(2), path)
    else:
        new = {"empty": b"", "cut": whole[:-700], "cut at its head": whole[:300], "text": b"hello\n"}[damage]
        path.write_bytes(new)
    with pytest.raises(BadInput) as caught:
        read_checkpoint(path, "net", "step")
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith("restore the file, or train without --resume into another folder.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"epochs": 3, "deep": {"a": 1}}, " (epochs: 2 there, 3 now);"),
        ({"epochs": 2, "deep": {"a": (1, 2)}}, " (deep.a: 1 there, (1, 2) now);"),
        ({"epochs": 2, "deep": {"a": 1}, "new": True}, " (new: nothing there, True now);"),
        ("another kind", " settings;"),
    ],
)
def test_a_refused_resume_names_the_setting_that_differs(now, told, tmp_path):
    with pytest.raises(BadInput) as caught:
        require_same(
            tmp_path / "c.pt", {"recipe": {"epochs": 2, "deep": {"a": 1}}}, {"recipe": now}, "recipe"
        )
    assert told in str(caught.value)
    assert str(caught.value).endswith("resume with the same, or train into another folder.")


def test_every_training_reads_its_checkpoints_in_the_same_way():
    # These read what others have published, and have sentences of their own.
    others = {"classifiers/imagenet.py", "detectors/coco.py", "detectors/starting.py"}
    others.add("stainers/feature_metrics.py")
    found = set()
    for package in ("classifiers", "detectors", "stainers", "pipeline", "flows"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call))
            if any(ast.unparse(c.func) == "torch.load" for c in calls):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == others


def test_every_training_moves_its_average_by_one_function():
    from classifiers import sideroblasts_training, training
    from stainers import gan_training
    from stainers import training as stainer_training
    from storage.averages import follow

    norm, average = (torch.nn.BatchNorm1d(2) for _ in range(2))
    norm.weight.data.fill_(3.0)
    norm.num_batches_tracked += 7
    follow(average, norm, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert int(average.num_batches_tracked) == 7  # a count is no mean
    users = (sideroblasts_training, training, gan_training, stainer_training)
    assert {vars(module).get("follow") for module in users} == {follow}
