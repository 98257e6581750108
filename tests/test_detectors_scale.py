"""The scale of an image that does not state one, its modality, and the weight-free detector."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from detectors import scale
from detectors.classical import ClassicalDetector
from detectors.scale import guess_modality, infer_pixel_size_um
from pipeline.errors import BadInput
from tests.detector_scenes import smear

CELLS_UM = [(20.0, 22.0), (62.0, 30.0), (38.0, 66.0)]


@pytest.mark.parametrize("pixel_size_um", [0.07, 0.2, 0.4])
def test_the_scale_of_a_smear_is_read_from_its_red_cells(pixel_size_um):
    image, _ = smear((90, 90), CELLS_UM, pixel_size_um)
    estimate = infer_pixel_size_um(image)
    assert estimate.pixel_size_um == pytest.approx(pixel_size_um, rel=0.15)
    assert estimate.n_red_cells > 10
    assert "red cells" in estimate.how


def test_without_red_cells_a_leukocyte_gives_a_rough_scale_that_says_so():
    image, _ = smear((24, 24), [(12.0, 12.0)], 0.2, red_cells=False)
    sure = infer_pixel_size_um(smear((90, 90), CELLS_UM, 0.2)[0])
    rough = infer_pixel_size_um(image)
    assert rough.pixel_size_um == pytest.approx(0.2, rel=0.4)
    assert "rough" in rough.how
    assert rough.confidence < sure.confidence


def test_an_image_without_cells_is_refused_with_the_way_out():
    with pytest.raises(BadInput, match="--pixel-size"):
        infer_pixel_size_um(np.full((128, 128, 3), 230, np.uint8))


def test_an_unknown_modality_is_refused():
    with pytest.raises(BadInput, match="brightfield or dic"):
        infer_pixel_size_um(np.full((64, 64, 3), 230, np.uint8), "phase")


def relief(image: np.ndarray) -> np.ndarray:
    """The directional derivative of a stained image: what DIC looks like."""
    dark = 255.0 - image.mean(-1)
    return np.clip(120 + 2.0 * (np.roll(dark, 2, 1) - np.roll(dark, -2, 1)), 0, 255).astype(np.uint8)


def test_colour_is_brightfield_relief_is_dic_and_grey_absorption_is_brightfield():
    image, _ = smear((90, 90), CELLS_UM, 0.2)
    grey = image.mean(-1).astype(np.uint8)
    assert guess_modality(image) == "brightfield"
    assert guess_modality(grey) == "brightfield"
    assert guess_modality(np.repeat(grey[..., None], 3, 2)) == "brightfield"
    assert guess_modality(relief(image)) == "dic"
    assert guess_modality(np.repeat(relief(image)[..., None], 3, 2)) == "dic"


def test_the_classical_detector_refuses_dic_with_a_clear_sentence():
    image, _ = smear((60, 60), [(30.0, 30.0)], 0.2)
    with pytest.raises(BadInput, match="stained colour image"):
        ClassicalDetector().detect(relief(image), 0.2)


def test_the_classical_detector_counts_a_cell_on_a_window_edge_once(monkeypatch):
    cells = [(16.0 + 26 * i, 16.0 + 26 * j) for i in range(5) for j in range(3)]
    image, truth = smear((84, 136), cells, 0.25)
    monkeypatch.setattr("detectors.classical.WINDOW_UM", 40.0)
    boxes, _ = ClassicalDetector().detect(image, 0.25)
    assert len(boxes) == len(truth)


def test_the_classical_detector_keeps_one_box_for_a_lobed_nucleus_and_two_for_two_cells():
    image, truth = smear((50, 60), [(18.0, 25.0), (34.0, 25.0)], 0.1)
    boxes, _ = ClassicalDetector().detect(image, 0.1)
    assert len(boxes) == len(truth) == 2


@pytest.mark.real
@pytest.mark.parametrize("enlarged", [1.0, 2.5])
def test_known_smears_are_measured_within_a_fifth(real_data, enlarged):
    import cv2

    from detectors.datasets import image_scale_um, label_path, read_labels
    from storage.images import read_rgb

    paths = sorted((real_data / "smears" / "images" / "val").glob("*.jpg"))[::60]
    judged = 0
    for path in paths:
        image = read_rgb(path)
        height, width = image.shape[:2]
        truth = image_scale_um(*read_labels(label_path(path), width, height), width, height)
        if truth is None:  # too few labelled red cells to say
            continue
        image = cv2.resize(image, None, fx=enlarged, fy=enlarged, interpolation=cv2.INTER_CUBIC)
        found = infer_pixel_size_um(image).pixel_size_um
        assert found == pytest.approx(truth / enlarged, rel=0.2), path.name
        judged += 1
    assert judged >= 3


@pytest.mark.real
@pytest.mark.parametrize("window_px", [1280, 320])
def test_leukocytes_of_whole_fields_are_counted_within_two_per_cent_seams_included(real_data, window_px):
    from benchmarks.detection_counts import count_error
    from benchmarks.detection_truth import read_fields
    from storage.images import read_rgb
    from storage.registry import load

    read = read_fields(real_data)
    detector = copy.copy(load("detector", "leukocyte-brightfield"))
    detector.window_px = window_px
    fields = []
    for case in ("S001", "S002", "S003"):
        truth = json.loads((real_data / "cases" / case / "truth.json").read_text(encoding="utf-8"))
        for name in sorted(truth["fields"])[:2]:
            _, scores = detector.detect(
                read_rgb(real_data / "cases" / case / f"{name}_BF.tif"), truth["pixel_size_um"]
            )
            found = int((scores >= detector.threshold).sum())
            fields.append((found, len(read[case, name])))
    assert sum(there for _, there in fields) > 200
    assert abs(count_error(fields)[0]) <= 0.02


def write_changes(path, *rows):
    path.write_text("\n".join(["image,change,x0,y0,x1,y1,what", *rows]) + "\n", encoding="utf-8")


def test_fields_read_again_add_and_remove_boxes_of_the_truth_and_name_no_unknown_field(tmp_path, monkeypatch):
    from benchmarks import detection_truth

    case = tmp_path / "cases" / "S009"
    case.mkdir(parents=True)
    fields = {
        "F001": {"leukocytes_xyxy": [[10, 10, 60, 60], [100, 10, 110, 20]]},
        "F002": {"leukocytes_xyxy": []},
    }
    (case / "truth.json").write_text(json.dumps({"fields": fields}), encoding="utf-8")
    monkeypatch.setattr(detection_truth, "CHANGES", tmp_path / "read.csv")
    write_changes(
        tmp_path / "read.csv",
        "cases/S009/F001,removed,101,11,110,20,platelet",
        "cases/S009/F002,added,0,5,9,60,leukocyte",
        "smears/a.png,added,0,5,9,60,leukocyte",
    )
    read = detection_truth.read_fields(tmp_path)
    assert read["S009", "F001"].tolist() == [[10, 10, 60, 60]]
    assert read["S009", "F002"].tolist() == [[0, 5, 9, 60]]
    write_changes(tmp_path / "read.csv", "cases/S009/F003,added,0,5,9,60,leukocyte")
    with pytest.raises(SystemExit, match="S009/F003"):
        detection_truth.read_fields(tmp_path)


def test_smears_read_again_change_leukocytes_alone_and_name_no_unknown_image(tmp_path, monkeypatch):
    from benchmarks import detection_truth
    from detectors.datasets import LEUKOCYTE, RED_CELL, Sample

    boxes = np.array([[10, 10, 60, 60], [100, 10, 150, 60], [101, 11, 149, 60]], np.float32)
    sample = Sample(
        path=tmp_path / "a.png",
        width_px=200,
        height_px=200,
        boxes=boxes,
        classes=np.array([LEUKOCYTE, RED_CELL, LEUKOCYTE]),
        pixel_size_um=0.1,
        source="200x200",
    )
    monkeypatch.setattr(detection_truth, "CHANGES", tmp_path / "read.csv")
    write_changes(
        tmp_path / "read.csv",
        "smears/a.png,removed,100,10,150,60,labelled twice",
        "smears/a.png,added,0,5,9,60,leukocyte",
        "cases/S009/F001,removed,101,11,110,20,platelet",
    )
    [read] = detection_truth.read_smears([sample])
    assert read.of(LEUKOCYTE).tolist() == [[10, 10, 60, 60], [0, 5, 9, 60]]
    assert read.of(RED_CELL).tolist() == [[100, 10, 150, 60]]
    with pytest.raises(SystemExit, match=r"a\.png"):
        detection_truth.read_smears([])


def test_a_dic_field_is_judged_where_its_brightfield_shows_the_truth():
    from benchmarks.detection_truth import detect_field, field_boxes

    # The DIC lies 30 px left of the brightfield and 10 px below: right of 170 and above 10 nothing is known.
    entry = {
        "brightfield_to_dic": [[1, 0, -30], [0, 1, 10], [0, 0, 1]],
        "leukocytes_xyxy": [[60, 40, 100, 80], [180, 40, 200, 80], [0, 100, 40, 140], [0, 20, 31, 60]],
    }
    shape = (200, 200)
    moved = field_boxes(entry, "dic", shape)
    assert moved.tolist() == [
        [30, 50, 70, 90],
        [150, 50, 170, 90],
        [0, 110, 10, 150],
    ]  # of the last 1 px of 31

    class Found:
        def detect(self, image, pixel_size_um):
            boxes = [[30, 50, 70, 90], [150, 50, 190, 90], [172, 100, 200, 140], [60, 0, 100, 12]]
            return np.array(boxes, np.float32), np.array([0.9, 0.8, 0.7, 0.6], np.float32)

    boxes, scores = detect_field(Found(), np.zeros(shape, np.uint8), 0.1, entry, "dic")
    assert boxes.tolist() == [[30, 50, 70, 90], [150, 50, 170, 90]]  # a cell and its mirror image were one
    assert scores.tolist() == pytest.approx([0.9, 0.8])
    whole, _ = detect_field(Found(), np.zeros(shape, np.uint8), 0.1, entry, "brightfield")
    assert whole.tolist() == Found().detect(None, None)[0].tolist()


@pytest.mark.parametrize(
    ("stated", "measured", "n_red", "contradicted"),
    [
        (0.1, 0.14, 6, True),
        (0.1, 0.07, 6, True),
        (0.1, 0.13, 50, False),  # within 35 %
        (0.1, 0.08, 50, False),
        (0.1, 0.3, 5, False),  # too few red cells to say so
    ],
)
def test_a_stated_scale_is_contradicted_to_both_sides_and_by_enough_red_cells_alone(
    monkeypatch, stated, measured, n_red, contradicted
):
    monkeypatch.setattr(scale, "_look", lambda *_: scale._Look(stated, stated, 0.0, 0, 0, 0.0))
    found = scale.ScaleEstimate(measured, 0.9, n_red, "red cells")
    monkeypatch.setattr(scale, "infer_pixel_size_um", lambda *_, **__: found)
    said = scale.contradicted_scale(np.zeros((64, 64, 3), np.uint8), stated, None)
    assert said == (found if contradicted else None)


def test_a_stated_scale_that_enough_red_cells_bear_out_is_not_looked_into(monkeypatch):
    def other(*_, **__):
        raise LookupError

    monkeypatch.setattr(scale, "infer_pixel_size_um", other)
    image = np.zeros((64, 64, 3), np.uint8)
    monkeypatch.setattr(scale, "_look", lambda *_: scale._Look(0.1, 0.11, 1.0, 6, 0, 0.1))
    assert scale.contradicted_scale(image, 0.1, None) is None
    for n_red, measured in ((5, 0.11), (6, 0.125)):
        looked = scale._Look(0.1, measured, 1.0, n_red, 0, 0.1)
        monkeypatch.setattr(scale, "_look", lambda *_, looked=looked: looked)
        with pytest.raises(LookupError):
            scale.contradicted_scale(image, 0.1, None)
