"""The finder of erythroblasts in Perls fields."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from detectors.base import Detector
from detectors.segment_perls import FAST_RED, IRON, fast_red_amount, find_erythroblasts_perls
from pipeline.errors import BadInput
from storage.registry import load

GLASS = np.array((244.0, 242.0, 240.0))
PX = 0.2


def perls_field(seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A field at 0.2 µm: erythroblasts (coarse round nuclei, dense cytoplasm), kidneys, lobes, red cells."""
    rng = np.random.default_rng(seed)
    pink = np.zeros((400, 600), np.float32)
    chromatin = cv2.GaussianBlur(rng.normal(0, 1, pink.shape).astype(np.float32), (0, 0), 2.5)
    chromatin = 0.3 * (1 + 0.45 * chromatin / chromatin.std()).clip(0.2, 2)
    centres = np.array([(70, 70), (200, 80), (340, 90), (520, 120), (120, 250), (300, 300)])
    for x, y in centres:
        cv2.circle(pink, (int(x), int(y)), 30, 0.085, -1)
        core = cv2.circle(np.zeros(pink.shape, np.uint8), (int(x), int(y)), 19, 1, -1) > 0
        pink[core] = chromatin[core]
    cv2.circle(pink, (430, 260), 35, 0.05, -1)
    for x, y in ((418, 250), (445, 255), (430, 280)):
        cv2.circle(pink, (x, y), 11, 0.3, -1)
    cv2.ellipse(pink, (530, 330), (26, 26), 0, 30, 260, 0.3, 16)
    for x, y in ((60, 350), (200, 360), (420, 40)):
        cv2.circle(pink, (x, y), 18, 0.04, -1)
    density = cv2.GaussianBlur(pink, (0, 0), 0.8)[..., None] * FAST_RED
    image = GLASS * 10.0**-density + rng.normal(0, 1.5, (*pink.shape, 3))
    return np.clip(image, 0, 255).astype(np.uint8), centres


def found_centres(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    good = boxes[scores >= 0.4]
    return (good[:, :2] + good[:, 2:]) / 2


def test_round_coarse_nuclei_are_found_and_lobes_and_kidneys_are_not() -> None:
    image, centres = perls_field()
    boxes, scores = find_erythroblasts_perls(image, PX)
    found = found_centres(boxes, scores)
    assert len(found) == len(centres)
    away = np.linalg.norm(found[:, None] - centres[None], axis=2)
    assert away.min(axis=0).max() < 6
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("factor", [0.7, 2.0])
def test_the_same_cells_are_found_at_another_pixel_size(factor: float) -> None:
    image, centres = perls_field()
    other = cv2.resize(
        image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    )
    found = found_centres(*find_erythroblasts_perls(other, PX / factor)) / factor
    assert len(found) == len(centres)
    assert np.linalg.norm(found[:, None] - centres[None], axis=2).min(axis=0).max() < 6


def test_a_cell_in_two_windows_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    image, centres = perls_field()
    monkeypatch.setattr("detectors.segment_perls.WINDOW_UM", 70.0)
    found = found_centres(*find_erythroblasts_perls(image, PX))
    assert len(found) == len(centres)


def test_empty_glass_and_grey_images_hold_no_erythroblast() -> None:
    detector = load("detector", "perls-classical")
    assert isinstance(detector, Detector)
    for image in (np.full((200, 200, 3), 240, np.uint8), np.zeros((50, 60), np.uint8)):
        boxes, scores = detector.detect(image, PX)
        assert boxes.shape == (0, 4)
        assert scores.shape == (0,)
        assert boxes.dtype == scores.dtype == np.float32


def test_iron_adds_nothing_to_the_amount_of_fast_red() -> None:
    red, iron = FAST_RED / np.linalg.norm(FAST_RED), IRON / np.linalg.norm(IRON)
    density = np.array([[0.3 * red, 0.3 * red + 0.5 * iron, 0.5 * iron]], np.float32)
    assert np.allclose(fast_red_amount(density), [[0.3, 0.3, 0.0]], atol=1e-5)


def test_what_is_no_field_is_refused() -> None:
    with pytest.raises(BadInput, match="uint8"):
        find_erythroblasts_perls(np.zeros((10, 10, 3), np.float32), PX)
    with pytest.raises(BadInput, match="pixel size"):
        find_erythroblasts_perls(np.zeros((10, 10, 3), np.uint8), 9.0)
