"""The finder of erythroblasts in Perls fields, and the chain from field to percentage, on unseen phantoms."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from detectors.base import Detector
from detectors.boxes import iou_matrix
from detectors.perls_nuclei import FEATURES, PerlsNucleiFinder, build, measure_nuclei
from phantoms.marrow_fields import perls_marrow
from pipeline.errors import BadInput, BadModelPackage
from pipeline.patches import crop_patches
from pipeline.sideroblasts import measured_errors, read_sideroblasts
from storage.packages import find_package, read_package, write_package
from storage.registry import load

PX = 0.1


@pytest.fixture(scope="module")
def finder() -> Detector:
    return load("detector", "marrow-perls")


@pytest.fixture(scope="module")
def marrow() -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Two fields of a marrow whose seed trained nothing and set no figure."""
    return perls_marrow(515_151, 0.3, n_fields=2, side_px=800, n_cells_per_field=18)


def found_of(finder: Detector, image: np.ndarray, px: float = PX) -> np.ndarray:
    boxes, scores = finder.detect(image, px)
    assert (np.diff(scores) <= 0).all()
    return boxes[scores >= 0.4]


def erythroblasts(truth: dict[str, Any]) -> np.ndarray:
    iron = {s["cell_id"] for s in truth["sideroblasts"]}
    return np.array(
        [b for b, i in zip(truth["leukocytes_xyxy"], truth["cell_ids"], strict=True) if i in iron]
    )


def test_erythroblasts_of_an_unseen_marrow_are_found_and_little_else(
    finder: Detector, marrow: list[tuple[np.ndarray, dict[str, Any]]]
) -> None:
    total = hits = boxes = 0
    for image, truth in marrow:
        wanted, found = erythroblasts(truth), found_of(finder, image)
        hits += int((iou_matrix(wanted, found).max(1) >= 0.5).sum())
        total, boxes = total + len(wanted), boxes + len(found)
    assert total >= 14
    assert hits >= total - 1
    assert boxes <= hits + 1


def test_find_read_and_count_gives_the_percentage_of_an_unseen_marrow(
    finder: Detector, marrow: list[tuple[np.ndarray, dict[str, Any]]]
) -> None:
    types, truth_types = [], []
    for image, truth in marrow:
        boxes = found_of(finder, image)
        centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
        patches = crop_patches(
            image, centres, size_px=256, pixel_size_um=PX, target_pixel_size_um=PX, fill="reflect"
        )
        types += [r.type for r in read_sideroblasts(patches, PX, load("sideroblast-reader", "rule"))]
        truth_types += [s["rs_type"] for s in truth["sideroblasts"]]
    told = [t for t in types if t != "indeterminate"]
    assert len(told) >= len(truth_types) - 2
    assert told.count("3") == pytest.approx(truth_types.count(3), abs=1)


@pytest.mark.parametrize("px", [0.07, 0.16, 0.22])
def test_the_same_cells_are_found_at_another_pixel_size(
    finder: Detector, marrow: list[tuple[np.ndarray, dict[str, Any]]], px: float
) -> None:
    image, truth = marrow[0]
    how = cv2.INTER_AREA if px > PX else cv2.INTER_CUBIC
    other = cv2.resize(image, None, fx=PX / px, fy=PX / px, interpolation=how)
    found = found_of(finder, other, px) * px / PX
    wanted = erythroblasts(truth)
    assert (iou_matrix(wanted, found).max(1) >= 0.5).sum() >= len(wanted) - 1
    assert len(found) <= len(wanted) + 1


JITTERS = {
    "pale": (0.7, 0.0, 1.0),
    "strong": (1.4, 0.0, 1.0),
    "dim": (1.0, 0.0, 0.75),
    "violet": (1.0, 0.1, 1.0),
}


@pytest.mark.parametrize("name", JITTERS)
def test_another_laboratorys_stain_and_lamp_lose_no_more_than_a_cell(
    finder: Detector, marrow: list[tuple[np.ndarray, dict[str, Any]]], name: str
) -> None:
    gain, hue, light = JITTERS[name]
    image, truth = marrow[1]
    glass = np.percentile(image.reshape(-1, 3), 95, axis=0)
    density = -np.log10(np.maximum(image, 1) / glass)
    turned = np.eye(3) * (1 - hue) + np.roll(np.eye(3), 1, axis=1) * hue
    other = np.clip(glass * light * 10 ** -(density @ turned * gain), 0, 255).astype(np.uint8)
    wanted, found = erythroblasts(truth), found_of(finder, other)
    assert (iou_matrix(wanted, found).max(1) >= 0.5).sum() >= len(wanted) - 1
    assert len(found) <= len(wanted) + 1


def test_glass_grey_and_tiny_images_hold_no_erythroblast(finder: Detector) -> None:
    for image in (
        np.full((200, 200, 3), 240, np.uint8),
        np.zeros((50, 60), np.uint8),
        np.zeros((3, 2, 3), np.uint8),
    ):
        boxes, scores = finder.detect(image, PX)
        assert boxes.shape == (0, 4)
        assert scores.shape == (0,)
        assert boxes.dtype == scores.dtype == np.float32


def test_what_is_no_field_is_refused(finder: Detector) -> None:
    with pytest.raises(BadInput, match="uint8"):
        finder.detect(np.zeros((10, 10, 3), np.float32), PX)
    with pytest.raises(BadInput, match="pixel size"):
        finder.detect(np.zeros((10, 10, 3), np.uint8), 9.0)


def test_the_iron_of_a_cell_does_not_decide_whether_it_is_counted() -> None:
    assert not [f for f in FEATURES if "iron" in f or "blue" in f]
    with_iron, without = (
        perls_marrow(31, rs, n_fields=1, side_px=500, n_cells_per_field=6)[0] for rs in (1.0, 0.0)
    )
    a, b = (measure_nuclei(image, PX) for image, _ in (with_iron, without))
    finder = load("detector", "marrow-perls")
    wanted = erythroblasts(with_iron[1])
    for nuclei in (a, b):
        good = finder.score(nuclei.features)[iou_matrix(wanted, nuclei.boxes).argmax(1)]
        assert (good >= 0.4).sum() >= len(wanted) - 1


def test_a_package_of_other_features_is_refused(tmp_path) -> None:
    package = find_package("marrow-perls")
    assert package is not None
    card = package.card.model_dump()
    card["parameters"] = {**card["parameters"], "features": ["diameter"]}
    write_package(tmp_path / "odd", card, package.state_dict())
    with pytest.raises(BadModelPackage, match="features"):
        PerlsNucleiFinder(read_package(tmp_path / "odd"))
    with pytest.raises(BadModelPackage, match="needs a model package"):
        build(None)


def test_the_card_says_what_finder_and_reader_got_wrong_together() -> None:
    errors = measured_errors("marrow-perls", "rule")
    assert errors is not None
    assert errors.ring_read + errors.ring_missed > 50
    assert "phantom" in errors.source
    assert measured_errors("marrow-perls", "nobody") is None
    assert measured_errors("perls-classical", "rule") is None
