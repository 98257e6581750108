"""A DIC detector that reads the painted picture, too: what it paints, fuses, refuses and costs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detectors.painted import COARSEST_UM, PAINTED, PaintedDetector, PaintedImage, leukocyte_detector
from detectors.yolo_onnx import YoloOnnxDetector, check_image
from pipeline.errors import BadModelPackage
from storage.packages import find_package, write_package
from storage.registry import load
from tests.detector_scenes import drawn_dic


class Painter:
    """Paints the negative, and remembers how large the pieces were."""

    def __init__(self):
        self.sizes = []

    def paint_field(self, image):
        self.sizes.append(image.shape)
        return 255 - image


class Network:
    """Finds what it is told, in windows of a side, and remembers what it looked at."""

    name, modalities, pixel_size_um, threshold = "told", ("dic",), 0.2, 0.4
    min_score, max_iou, max_inside = 0.01, 0.5, 0.9

    def __init__(self, boxes, scores):
        self.found = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32)
        self.seen = []

    def detect(self, image, pixel_size_um):
        self.seen.append(np.asarray(image[0 : image.shape[0], 0 : image.shape[1]]))
        return self.found

    candidates = detect


IMAGE = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)


def test_a_cell_that_both_see_keeps_its_score_and_one_that_one_sees_has_half():
    alone = Network([[0, 0, 20, 20], [40, 0, 60, 20]], [0.9, 0.8])
    reader = Network([[0, 0, 22, 20], [0, 40, 20, 60]], [0.7, 0.6])
    boxes, scores = PaintedDetector(alone, Painter(), 0.1, reader).detect(IMAGE, 0.1)
    np.testing.assert_allclose(scores, [0.8, 0.4, 0.3], atol=1e-6)
    np.testing.assert_allclose(boxes[0], [0, 0, 20.875, 20], atol=1e-4)  # the mean, weighted by score
    np.testing.assert_allclose(boxes[1:], [[40, 0, 60, 20], [0, 40, 20, 60]], atol=1e-4)


def test_the_network_for_dic_sees_the_image_and_the_reader_what_is_painted_of_it():
    alone, reader = Network([], []), Network([], [])
    boxes, scores = PaintedDetector(alone, Painter(), 0.1, reader).detect(IMAGE, 0.1)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)
    np.testing.assert_array_equal(alone.seen[0], IMAGE)
    np.testing.assert_array_equal(reader.seen[0], 255 - IMAGE)
    PaintedDetector(alone, Painter(), 0.1, reader).detect(IMAGE[..., 0], 0.1)  # grey, as a camera writes it
    np.testing.assert_array_equal(reader.seen[1], 255 - np.repeat(IMAGE[..., :1], 3, 2))


@pytest.mark.parametrize(("pixel_size_um", "size"), [(0.1, (40, 30)), (0.05, (20, 15)), (0.25, (100, 75))])
def test_a_part_is_painted_at_the_stainers_scale_and_comes_back_in_its_own_pixels(pixel_size_um, size):
    painter = Painter()
    part = PaintedImage(IMAGE, pixel_size_um, painter, 0.1)[10:50, 20:50]
    assert part.shape == (40, 30, 3)
    assert part.dtype == np.uint8
    assert painter.sizes == [(*size, 3)]


def test_pixels_too_coarse_to_paint_from_are_left_to_the_network_alone():
    painter = Painter()
    alone = Network([[0, 0, 20, 20]], [0.9])
    _, scores = PaintedDetector(alone, painter, 0.1, Network([], [])).detect(IMAGE, COARSEST_UM + 0.01)
    assert scores.tolist() == pytest.approx([0.9])
    assert painter.sizes == []


def test_a_slide_is_painted_window_by_window_in_bounded_memory():
    class Slide:
        """A 40,000 x 40,000 px slide that remembers the largest piece anyone asked for."""

        shape, dtype, largest = (40_000, 40_000, 3), np.dtype(np.uint8), 0

        def __getitem__(self, where):
            rows, columns = where
            self.largest = max(self.largest, (rows.stop - rows.start) * (columns.stop - columns.start))
            raise StopIteration

    slide, detector = Slide(), load("detector", "leukocyte-dic")
    with pytest.raises(StopIteration):
        detector.read_painted(slide, 0.1)
    assert 0 < slide.largest < 4000**2


def test_the_shipped_dic_detector_paints_and_can_be_had_without():
    painted, alone = load("detector", "leukocyte-dic"), leukocyte_detector("leukocyte-dic", painted=False)
    assert isinstance(painted, PaintedDetector)
    assert isinstance(alone, YoloOnnxDetector)
    assert leukocyte_detector("leukocyte-dic") is painted
    assert leukocyte_detector("leukocyte-dic", painted=False) is alone  # a worker builds it once
    brightfield = load("detector", "leukocyte-brightfield")
    assert leukocyte_detector("leukocyte-brightfield", painted=False) is brightfield
    windows = painted.in_windows(448)
    assert (windows.alone.window_px, windows.reader.window_px) == (448, 448)
    assert painted.alone.window_px == 1280


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A part of a drawn DIC field, and the boxes of the leukocytes that lie in it whole."""
    image, boxes, _ = drawn_dic(tmp_path_factory.mktemp("drawn"))
    inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < 1200).all(1)
    return np.ascontiguousarray(image[:1200, :1200]), boxes[inside]


def test_a_drawn_leukocyte_is_seen_in_the_painted_picture(scene):
    image, truth = scene
    boxes, scores = load("detector", "leukocyte-dic").read_painted(check_image(image, "test"), 0.1)
    boxes = boxes[scores >= 0.4]
    middle, true = (boxes[:, :2] + boxes[:, 2:]) / 2, (truth[:, :2] + truth[:, 2:]) / 2
    near = np.linalg.norm(middle[:, None] - true[None], axis=2) < 20
    assert len(truth) >= 4
    assert near.any(0).mean() >= 0.75  # 121 of 126 in six such fields


def _package(folder, **changes):
    shipped = find_package("leukocyte-dic")
    card = shipped.card.model_dump()
    card["parameters"] = {**card["parameters"], **changes}
    return write_package(folder, card, shipped.weights_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stainer_sha256": "0" * 64}, r"other weights of stainer 'dic-to-mgg'.*restore"),
        ({"detector_sha256": None}, r"other weights of detector 'leukocyte-brightfield'.*restore"),
        ({"detector": "classical"}, "detector 'classical' has no weights"),
    ],
)
def test_a_companion_that_is_not_the_cards_is_refused_in_a_sentence(tmp_path, change, said):
    asked = {**find_package("leukocyte-dic").card.parameters[PAINTED], **change}
    package = _package(tmp_path / "dic", painted=asked)
    with pytest.raises(BadModelPackage, match=f"dic.*{said}"):
        load("detector", str(package.folder))


@pytest.mark.parametrize("painted", [None, "dic-to-mgg", {"stainer": "dic-to-mgg"}])
def test_a_card_whose_painted_names_no_companions_is_refused_with_its_folder(tmp_path, painted):
    package = _package(tmp_path / "dic", painted=painted)
    with pytest.raises(BadModelPackage, match="dic: 'painted' names no stainer and detector"):
        load("detector", str(package.folder))


def test_the_painted_picture_of_a_field_is_that_of_the_stainer_with_its_noise():
    """The quick way, in large tiles or small, paints what `stain_field` does."""
    from stainers.field import paint_field, stain_field

    stainer = load("stainer", "dic-to-mgg")
    rng = np.random.default_rng(4)
    rows, columns = np.mgrid[:150, :170]
    relief = sum(
        (columns - x) * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 400.0)
        for x, y in rng.uniform(20, 140, (6, 2))
    )
    image = np.clip(128 + 6 * relief + rng.normal(0, 1, relief.shape), 0, 255).astype(np.uint8)
    full = stain_field(stainer, image[..., None], tile_px=128, overlap_px=32)[0]
    quick = paint_field(stainer.open_field(image[..., None]), tile_px=128, overlap_px=32)
    assert np.abs(full.astype(int) - quick).max() <= 1  # alone or beside its copies: sums in another order
    assert stainer.paint_field(image).shape == (150, 170, 3)


def test_the_command_reads_the_setting_and_says_what_it_found(tmp_path, scene):
    import cv2
    from click.testing import CliRunner

    from flows.cli import group

    image, _ = scene
    path, config = tmp_path / "field.png", tmp_path / "settings.yaml"
    cv2.imwrite(str(path), image)
    config.write_text("detection: {dic_painted: false}\n", encoding="utf-8")
    ask = ["detect", str(path), "--modality", "dic", "--pixel-size", "0.1", "--json"]
    both = json.loads(CliRunner().invoke(group, ask).stdout)
    alone = json.loads(CliRunner().invoke(group, [*ask, "--config", str(config)]).stdout)
    network = leukocyte_detector("leukocyte-dic", painted=False).detect(image, 0.1)[1]
    assert alone[0]["scores"] == pytest.approx(network.tolist(), abs=2e-5)
    assert both[0]["scores"] != alone[0]["scores"]
