"""Training of the detector: the mechanics, on a folder small enough to train in seconds."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from detectors.datasets import RED_CELL, read_labels, read_yolo_folder, split
from detectors.folder_training import train_detector
from detectors.packing import LEAST_SLIVER, endless, pack
from detectors.training import Recipe, train
from pipeline.errors import BadInput
from storage.near_duplicates import near_duplicate_groups
from tests.detector_scenes import smear


@pytest.fixture(scope="module")
def yolo_folder(tmp_path_factory):
    """Twelve drawn images with leukocyte boxes; the last two are copies of the first, one turned."""
    import cv2

    folder = tmp_path_factory.mktemp("yolo")
    (folder / "images" / "train").mkdir(parents=True)
    (folder / "labels" / "train").mkdir(parents=True)
    rng = np.random.default_rng(0)
    first_image, first_boxes = smear((30, 30), [(11.0, 14.0)], 0.25)
    for i in range(12):
        image, boxes = smear((30, 30), [tuple(rng.uniform(8, 22, 2))], 0.25, seed=i)
        if i in (0, 10):
            image, boxes = first_image, first_boxes
        if i == 11:
            image = np.ascontiguousarray(np.rot90(first_image))
            x0, y0, x1, y1 = first_boxes[0]
            boxes = np.array([[y0, 120 - x1, y1, 120 - x0]])
        cv2.imwrite(str(folder / "images" / "train" / f"{i:02d}.png"), image[..., ::-1])
        x0, y0, x1, y1 = boxes[0] / 120
        line = f"0 {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}\n"
        (folder / "labels" / "train" / f"{i:02d}.txt").write_text(line)
    return folder


def test_near_duplicates_stay_on_one_side_whatever_the_seed(yolo_folder):
    samples = read_yolo_folder(yolo_folder)
    groups = {s.path.stem: s.group for s in samples}
    assert groups["00"] == groups["10"] == groups["11"]
    assert len(set(groups.values())) > 6
    for seed in range(6):
        parts = split(samples, {"train": 0.6, "val": 0.2, "test": 0.2}, seed)
        assert sum(len(v) for v in parts.values()) == 12
        homes = {name for name, part in parts.items() for s in part if s.path.stem in ("00", "10", "11")}
        assert len(homes) == 1


def test_the_split_does_not_depend_on_the_order_of_the_files(yolo_folder):
    samples = read_yolo_folder(yolo_folder)
    ahead = split(samples, {"train": 0.7, "test": 0.3}, 1)
    back = split(samples[::-1], {"train": 0.7, "test": 0.3}, 1)
    assert {s.path for s in ahead["test"]} == {s.path for s in back["test"]}


def test_different_images_are_no_duplicates():
    assert len(set(near_duplicate_groups(np.random.default_rng(0).normal(size=(20, 24, 24)), 0.9))) == 20


def test_a_packed_canvas_keeps_each_box_on_its_cell(yolo_folder):
    samples = read_yolo_folder(yolo_folder)
    rng = np.random.default_rng(0)
    stream = endless(samples, rng)

    def plain(image, pixel_size_um, rng):  # instead of random stains: the drawn colours must survive
        return image

    checked = 0
    for _ in range(10):
        canvas, boxes, classes = pack(stream, 256, 0.25, rng, plain)
        assert canvas.shape == (256, 256, 3)
        assert canvas.dtype == np.uint8
        assert boxes.min(initial=0) >= 0
        assert boxes.max(initial=0) <= 256
        assert (classes == 0).all()
        for x0, y0, x1, y1 in boxes.round().astype(int):
            if (x1 - x0) * (y1 - y0) < 900:
                continue
            # The nucleus lies in the middle of the box and is the darkest thing there is.
            quarter = (x1 - x0) // 4, (y1 - y0) // 4
            middle = canvas[y0 + quarter[1] : y1 - quarter[1], x0 + quarter[0] : x1 - quarter[0]]
            assert middle.mean() < canvas[y0:y1, x0:x1].mean()
            checked += 1
    assert checked > 10


def test_drawn_dic_is_packed_as_it_is(yolo_folder):
    looked = []

    def blank(image, pixel_size_um, rng):
        looked.append(1)
        return np.full_like(image, 128)

    sample = read_yolo_folder(yolo_folder)[0]
    for tags, times in (((), 20), (("dic",), 0)):
        looked.clear()
        stream = endless([replace(sample, tags=tags)], np.random.default_rng(0))
        pieces = [pack(stream, 256, 0.25, np.random.default_rng(n), blank, 0.0)[0] for n in range(10)]
        assert len(looked) >= times
        assert bool(looked) == bool(times)
        assert (np.ptp(pieces[0].astype(int)) > 100) == bool(tags)  # the drawn colours are there, or gone


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(yolo_folder, tmp_path):
    import torch

    samples = read_yolo_folder(yolo_folder)[:4]
    recipe = Recipe(epochs=2, canvases_per_epoch=2, batch=2, canvas_px=96, warmup_steps=1)
    quiet = lambda *a, **k: None  # noqa: E731
    train({"train": samples}, tmp_path / "whole", recipe, log=quiet)
    train({"train": samples}, tmp_path / "broken", recipe, stop_at=0.0, log=quiet)
    resumed = train({"train": samples}, tmp_path / "broken", recipe, resume=True, log=quiet)
    assert resumed["epochs"] == 2
    one, two = (
        torch.load(tmp_path / n / "last.pt", weights_only=True)["network"] for n in ("whole", "broken")
    )
    untrained = None
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-5, msg=key)
        untrained = key
    assert untrained
    with pytest.raises(BadInput, match="other settings"):
        train(
            {"train": samples},
            tmp_path / "broken",
            Recipe(epochs=3, canvases_per_epoch=2),
            resume=True,
            log=quiet,
        )


def quiet(*_args, **_options):
    pass


TINY = Recipe(epochs=1, canvases_per_epoch=2, batch=2, canvas_px=96, warmup_steps=1)


def weights(path, key):
    import torch

    return torch.load(path, weights_only=True)[key]


def test_weights_that_no_validation_chose_are_those_of_the_last_epoch_of_this_run(yolo_folder, tmp_path):
    import torch

    samples = read_yolo_folder(yolo_folder)[:4]
    longer = replace(TINY, epochs=2)
    train({"train": samples}, tmp_path, longer, stop_at=0.0, log=quiet)
    train({"train": samples}, tmp_path, longer, resume=True, log=quiet)
    chosen, last = weights(tmp_path / "best.pt", "model"), weights(tmp_path / "last.pt", "ema")
    assert all(torch.equal(v, last[k]) for k, v in chosen.items())


def test_a_checkpoint_is_never_written_over_unless_it_is_resumed(yolo_folder, tmp_path):
    samples = read_yolo_folder(yolo_folder)[:4]
    train({"train": samples}, tmp_path, TINY, log=quiet)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(BadInput, match=r"last\.pt is the checkpoint of an earlier training; give --resume"):
        train({"train": samples}, tmp_path, replace(TINY, seed=5), log=quiet)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    (tmp_path / "last.pt").unlink()
    for resume in (False, True):  # the weights of an earlier run would pass for those of this one
        with pytest.raises(BadInput, match=r"best\.pt"):
            train({"train": samples}, tmp_path, TINY, resume=resume, log=quiet)


def test_a_training_that_fails_leaves_no_thread_behind(yolo_folder, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no canvas")

    monkeypatch.setattr("detectors.training._batch", broken)
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="no canvas"):
        train({"train": read_yolo_folder(yolo_folder)[:4]}, tmp_path, TINY, log=quiet)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("change", ["images", "labels", "start", "nothing said"])
def test_a_run_is_resumed_only_on_the_data_and_the_start_it_was_begun_with(yolo_folder, tmp_path, change):
    import torch

    samples = read_yolo_folder(yolo_folder)[:4]
    run, asked, start = tmp_path / "run", samples, None
    refusal = "other images, labels or pixel sizes, or another seed"
    train({"train": samples}, run, replace(TINY, epochs=2), stop_at=0.0, log=quiet)
    if change == "images":
        asked = [*samples[:3], read_yolo_folder(yolo_folder)[5]]
    elif change == "labels":
        asked = [replace(samples[0], boxes=samples[0].boxes + 1), *samples[1:]]
    elif change == "start":
        start, refusal = run / "best.pt", "other starting weights"
    else:
        old = torch.load(run / "last.pt", weights_only=True)
        torch.save({k: v for k, v in old.items() if k not in ("data", "start")}, run / "last.pt")
        refusal = "an earlier version wrote it"
    before = (run / "last.pt").read_bytes()
    with pytest.raises(BadInput, match=refusal):
        train({"train": asked}, run, replace(TINY, epochs=2), start=start, resume=True, log=quiet)
    assert (run / "last.pt").read_bytes() == before


def test_a_data_set_that_was_moved_can_be_gone_on_with(yolo_folder, tmp_path):
    import shutil

    recipe = replace(TINY, epochs=2)
    train({"train": read_yolo_folder(yolo_folder)[:4]}, tmp_path / "run", recipe, stop_at=0.0, log=quiet)
    shutil.copytree(yolo_folder, tmp_path / "moved")
    moved = {"train": read_yolo_folder(tmp_path / "moved")[:4]}
    assert train(moved, tmp_path / "run", recipe, resume=True, log=quiet)["epochs"] == 2


def test_training_writes_a_package_that_loads_and_detects(yolo_folder, tmp_path):
    from detectors.yolo_onnx import YoloOnnxDetector
    from storage.packages import read_package

    result = train_detector(
        yolo_folder, tmp_path, epochs=1, batch=2, canvases_per_epoch=2, canvas_px=96, log=lambda *a, **k: None
    )
    from pathlib import Path

    package = read_package(Path(result["package"]))
    package.verify()
    assert package.card.modalities == ("brightfield",)
    assert package.card.training["epochs"] == 1
    boxes, scores = YoloOnnxDetector(package).detect(smear((30, 30), [(15.0, 15.0)], 0.25)[0], 0.25)
    assert boxes.shape == (len(scores), 4)


def test_training_takes_a_stated_pixel_size_and_a_resumed_run_the_same_one(yolo_folder, tmp_path):
    said = []
    tiny = {"epochs": 1, "batch": 2, "canvases_per_epoch": 2, "canvas_px": 96, "stop_at": 0.0}
    tiny["log"] = lambda text, **_: said.append(text)
    train_detector(yolo_folder, tmp_path, pixel_size_um=0.12, **tiny)
    assert '"pixel_size_from": {"given": ' in said[0]
    with pytest.raises(BadInput, match="other images, labels or pixel sizes"):
        train_detector(yolo_folder, tmp_path, pixel_size_um=0.24, resume=True, **tiny)


def test_a_folder_without_images_or_leukocytes_is_refused(tmp_path, yolo_folder):
    with pytest.raises(BadInput, match="holds no images"):
        train_detector(tmp_path, tmp_path / "out")


def test_a_broken_label_line_is_refused_with_file_and_line(tmp_path):
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n0 0.5 what\n")
    with pytest.raises(BadInput, match=r"a\.txt, line 2"):
        read_labels(tmp_path / "a.txt", 10, 10)


def test_a_red_cell_boxed_as_leukocyte_is_found_and_an_unlabelled_leukocyte_too(tmp_path):
    import cv2

    from detectors.classical import ClassicalDetector
    from detectors.datasets import Sample
    from detectors.label_errors import review
    from storage.registry import load

    image, boxes = smear((60, 60), [(20.0, 20.0), (42.0, 40.0)], 0.2)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image[..., ::-1])
    network = load("detector", "leukocyte-brightfield")
    red = network.look(image, 0.2).of(RED_CELL, 0.5).boxes[:1]
    labels = np.vstack([boxes[:1], red])
    sample = Sample(path, 300, 300, labels, np.zeros(2, np.int64), "drawn", 0.2)
    corrected, suspects = review(network, ClassicalDetector(), sample, sure=0.5)
    kinds = {s.kind: s.corrected for s in suspects}
    assert kinds == {"red_cell": True, "unlabelled": True}
    assert corrected.classes.tolist() == [0, RED_CELL, 0]


@pytest.mark.parametrize("canvas", [128, 256], ids=["pieces smaller than photographs", "pieces larger"])
def test_leukocytes_cut_by_an_edge_are_shown_with_their_box_down_to_a_sliver(yolo_folder, canvas):
    samples = read_yolo_folder(yolo_folder)
    stream = endless(samples, np.random.default_rng(0))
    cell = samples[0].of(0)[0] * samples[0].pixel_size_um / 0.25  # all are drawn alike
    whole = np.prod(cell[2:] - cell[:2])
    shares = []
    for i in range(120):
        _, boxes, classes = pack(stream, canvas, 0.25, np.random.default_rng(i), strength=0.0)
        mine = boxes[classes == 0]
        shares += list(np.prod(mine[:, 2:] - mine[:, :2], axis=1) / whole)
    assert np.mean(np.array(shares) < 0.5) > 0.1
    assert np.mean(np.array(shares) < 0.2) > 0.03
    assert min(shares) > 0.5 * LEAST_SLIVER
