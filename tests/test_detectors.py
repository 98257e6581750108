"""What every registered detector promises, and what the shipped networks do beyond that."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.base import Detector
from detectors.boxes import iou_matrix, suppress
from detectors.evaluation import average_precision, match, precision_recall
from pipeline.errors import BadInput
from storage.registry import available, load
from tests.detector_scenes import smear

CELLS_UM = [(20.0, 22.0), (62.0, 30.0), (38.0, 66.0)]


@pytest.fixture(params=available("detector"))
def detector(request):
    return load("detector", request.param)


def reads_stain(detector) -> bool:
    """Whether stained leukocytes are its business; one that states no modalities finds other cells."""
    return "brightfield" in getattr(detector, "modalities", ())


def found(detector, image, pixel_size_um, threshold=0.3):
    boxes, scores = detector.detect(image, pixel_size_um)
    return boxes[scores >= threshold]


# --- contract: holds for whatever is registered -------------------------------------------------


def test_a_detector_keeps_the_protocol_and_its_types(detector):
    assert isinstance(detector, Detector)
    image, _ = smear((60, 60), [(30.0, 30.0)], 0.2)
    boxes, scores = detector.detect(image, 0.2)
    assert boxes.dtype == np.float32
    assert scores.dtype == np.float32
    assert boxes.shape == (len(scores), 4)
    assert (np.diff(scores) <= 0).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min(initial=0) >= 0
    assert boxes.max(initial=0) <= 300


def test_the_same_image_gives_the_same_boxes_whatever_was_seen_before(detector):
    image, _ = smear((60, 60), [(30.0, 30.0)], 0.2)
    other, _ = smear((45, 80), [(20.0, 20.0)], 0.2, seed=3)
    first = detector.detect(image, 0.2)
    detector.detect(other, 0.2)
    again = detector.detect(image, 0.2)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (8, 900), (700, 6), (33, 65)])
def test_tiny_and_narrow_images_are_no_trouble(detector, shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    boxes, scores = detector.detect(image, 0.1)
    assert boxes.shape == (len(scores), 4)
    assert (boxes[:, [0, 2]] <= shape[1]).all()
    assert (boxes[:, [1, 3]] <= shape[0]).all()


@pytest.mark.parametrize("colour", [(235, 230, 225), (255, 255, 255), (0, 0, 5), (250, 235, 150)])
def test_an_empty_field_has_no_cells(detector, colour):
    image = np.empty((400, 500, 3), np.uint8)
    image[:] = colour
    assert len(found(detector, image, 0.2)) == 0


@pytest.mark.parametrize("pixel_size_um", [0.0, -0.1, float("nan"), float("inf"), 50.0])
def test_an_impossible_pixel_size_is_refused(detector, pixel_size_um):
    image, _ = smear((30, 30), [], 0.2)
    with pytest.raises(BadInput, match="pixel size"):
        detector.detect(image, pixel_size_um)


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9), np.uint16), np.zeros((9, 9, 4), np.uint8), np.zeros(9, np.uint8)]
)
def test_an_image_of_another_kind_is_refused_in_one_sentence(detector, image):
    if not hasattr(detector, "modalities"):
        pytest.skip("states no modalities")
    with pytest.raises(BadInput, match=r"reads .*\.$"):
        detector.detect(image, 0.1)


def test_leukocytes_are_found_where_they_are_and_red_cells_are_not(detector):
    if not reads_stain(detector):
        pytest.skip("reads no stain")
    image, truth = smear((90, 90), CELLS_UM, 0.2)
    boxes = found(detector, image, 0.2)
    assert len(boxes) == len(truth)
    assert (iou_matrix(truth, boxes).max(1) > 0.6).all()


@pytest.mark.parametrize("pixel_size_um", [0.08, 0.15, 0.3])
def test_the_pixel_size_does_not_change_what_is_found(detector, pixel_size_um):
    if not reads_stain(detector):
        pytest.skip("reads no stain")
    image, truth = smear((90, 90), CELLS_UM, pixel_size_um)
    boxes = found(detector, image, pixel_size_um)
    assert len(boxes) == len(truth)
    assert (iou_matrix(truth, boxes).max(1) > 0.6).all()


# --- the networks -------------------------------------------------------------------------------


@pytest.fixture
def network():
    """A detector of its own, so that a test may change its windows."""
    import copy

    networks = [load("detector", n) for n in available("detector")]
    return copy.copy(next(n for n in networks if hasattr(n, "look") and reads_stain(n)))


def test_a_cell_on_a_seam_is_one_box_wherever_the_seam_lies(network):
    # One leukocyte each 26 µm: whatever the windows, several lie on a seam.
    cells = [(16.0 + 26 * i, 16.0 + 26 * j) for i in range(5) for j in range(3)]
    image, truth = smear((84, 136), cells, 0.25)
    whole = found(network, image, 0.25)
    assert len(whole) == len(truth)
    for window in (256, 300, 352):
        network.window_px, network.overlap_px = window, 120
        tiled = found(network, image, 0.25)
        assert len(tiled) == len(truth), window
        assert (iou_matrix(truth, tiled).max(1) > 0.6).all()
        assert iou_matrix(whole, tiled).max(1).min() > 0.8


def test_each_place_belongs_to_the_window_that_sees_more_around_it(network):
    """A network that knows every cell it sees, but errs where a window's inner edge cuts the surroundings."""
    from detectors.yolo_onnx import Found

    width, height = 230, 150
    image = np.full((height, width, 3), 255, np.uint8)  # whose red and green say where a crop is from
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    network.window_px, network.overlap_px, network.pixel_size_um = 96, 48, 0.25
    cells = np.array([(x, y) for x in range(8, width - 8, 17) for y in range(8, height - 8, 19)], float)

    def window(crop, factor, mirror, everywhere):
        high, wide = crop.shape[:2]
        seen = cells - crop[0, 0, :2]
        seen = seen[((seen > -8) & (seen < (wide + 8, high + 8))).all(1)]
        inner = [(12, crop[0, 0, 0] > 0), (wide - 12, crop[0, -1, 0] < width - 1)]
        false = [(x, high / 2) for x, is_inner in inner if is_inner]
        centres, half = np.array([*seen, *false]), np.array([8.0] * len(seen) + [3.0] * len(false))[:, None]
        boxes = np.clip(np.hstack([centres - half, centres + half]), 0, (wide, high, wide, high))
        n = len(boxes)
        return Found(boxes.astype(np.float32), np.full(n, 0.9, np.float32), np.zeros(n, np.int64))

    network._window = window
    boxes, _ = network.detect(image, 0.25)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert sorted(map(tuple, centres.tolist())) == sorted(map(tuple, cells.tolist()))


def test_views_along_every_axis_make_the_answer_the_same_for_a_mirrored_image(network):
    image, truth = smear((96, 80), CELLS_UM, 0.25)
    image = image[:384, :320]  # whole strides: padding would tell one side from the other
    plain, _ = network.detect(image, 0.25)
    network.views = tuple((1.0, mirror) for mirror in ("", "x", "y", "xy"))
    boxes, scores = network.detect(image, 0.25)
    turned, again = network.detect(np.ascontiguousarray(image[::-1, ::-1]), 0.25)
    height, width = image.shape[:2]
    back = (np.array([width, height, width, height]) - turned)[:, [2, 3, 0, 1]]
    assert len(boxes) == len(back) >= len(truth)
    nearest = iou_matrix(boxes, back).argmax(1)
    np.testing.assert_allclose(boxes, back[nearest], atol=0.05)
    np.testing.assert_allclose(scores, again[nearest], atol=1e-3)
    assert not np.array_equal(boxes[: len(plain)], plain[: len(boxes)])  # each view had its say


def test_a_view_at_another_scale_places_a_cell_where_it_is(network):
    image, truth = smear((90, 90), CELLS_UM, 0.2)
    network.views = ((0.8, "y"),)
    boxes = found(network, image, 0.2)
    assert len(boxes) == len(truth)
    assert (iou_matrix(truth, boxes).max(1) > 0.6).all()


def test_a_side_near_whole_strides_is_stretched_to_them_and_its_factor_says_so():
    from detectors.yolo_onnx import rescale

    image = np.zeros((1544, 2064, 3), np.uint8)
    small, factors = rescale(image, 0.4)
    assert small.shape == (618, 826, 3)
    small, factors = rescale(image, 0.4, 0.02)
    assert small.shape == (608, 832, 3)
    np.testing.assert_allclose(factors, (832 / 2064, 608 / 1544))
    assert rescale(image, 0.4, 0.01)[0].shape == (618, 832, 3)  # 608 is further than a hundredth
    assert rescale(image[:3, :3], 0.4, 0.02)[0].shape == (2, 2, 3)


@pytest.mark.parametrize("views", [[], None, [[1.0, "z"]], [[0.0, ""]], [["wide", ""]], [1.0]])
def test_a_card_with_views_that_cannot_be_looked_at_is_refused_with_its_folder(tmp_path, views):
    from pipeline.errors import BadModelPackage
    from storage.packages import find_package, write_package

    shipped = find_package("leukocyte-dic")
    card = shipped.card.model_dump()
    card["parameters"] = {**card["parameters"], "views": views}
    package = write_package(tmp_path / "leukocyte-dic", card, shipped.weights_path)
    with pytest.raises(BadModelPackage, match=r"leukocyte-dic: views .*\.$"):
        load("detector", str(package.folder))


def test_memory_is_bounded_as_a_slide_is_read_window_by_window(network):
    class Slide:
        """A 40,000 x 40,000 px slide that remembers the largest piece anyone asked for."""

        shape, dtype, largest = (40_000, 40_000, 3), np.dtype(np.uint8), 0

        def __getitem__(self, where):
            rows, columns = where
            size = (rows.stop - rows.start, columns.stop - columns.start)
            self.largest = max(self.largest, size[0] * size[1])
            raise StopIteration

    slide = Slide()
    with pytest.raises(StopIteration):
        network.look(slide, 0.1)
    assert 0 < slide.largest < 4000**2


def test_red_cells_are_seen_as_red_cells(network):
    image, _ = smear((90, 90), CELLS_UM, 0.2)
    seen = network.look(image, 0.2)
    assert (seen.scores[seen.classes == 1] > 0.3).sum() > 30


# --- boxes and figures --------------------------------------------------------------------------


def test_overlap_is_what_a_ruler_says():
    a = np.array([[0, 0, 10, 10]])
    b = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    np.testing.assert_allclose(iou_matrix(a, b)[0], [1 / 3, 1, 0])


def test_the_better_of_two_boxes_of_a_cell_stays_and_a_neighbour_too():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [11, 0, 21, 10]], np.float32)
    assert suppress(boxes, np.array([0.5, 0.9, 0.8]), 0.5).tolist() == [1, 2]


def test_half_a_cell_inside_a_whole_one_goes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 4, 10]], np.float32)
    assert suppress(boxes, np.array([0.6, 0.9]), 0.5).tolist() == [1, 0]
    assert suppress(boxes, np.array([0.9, 0.6]), 0.5, 0.8).tolist() == [0]


def test_a_truth_is_found_once():
    truth = np.array([[0, 0, 10, 10.0]])
    boxes = np.array([[0, 0, 10, 10.0], [0, 0, 10, 9.0]])
    assert match(boxes, np.array([0.3, 0.8]), truth, 0.5).tolist() == [False, True]


def test_average_precision_of_known_lists():
    truth = [np.array([[0, 0, 10, 10.0], [20, 0, 30, 10.0]])]
    perfect = average_precision([truth[0]], [np.array([0.9, 0.8])], truth)
    assert perfect[:2] == (1.0, 1.0)
    # A false box scored above both halves... precision 1/2 then 2/3 at full recall, envelope 2/3.
    boxes = [np.vstack([[50, 50, 60, 60.0], truth[0]])]
    ap50, _, _ = average_precision(boxes, [np.array([0.95, 0.9, 0.8])], truth)
    assert ap50 == pytest.approx(2 / 3)
    precision, recall, _ = precision_recall(boxes, [np.array([0.95, 0.9, 0.8])], truth)
    np.testing.assert_allclose(precision, [0, 1 / 2, 2 / 3])
    np.testing.assert_allclose(recall, [0, 1 / 2, 1])


def test_the_interval_of_average_precision_matches_every_image_once(monkeypatch):
    from detectors import evaluation

    rng = np.random.default_rng(0)
    truth = [rng.uniform(0, 90, (3, 2)) for _ in range(6)]
    truth = [np.hstack([t, t + 20]) for t in truth]
    boxes = [t + rng.normal(0, 2, t.shape) for t in truth]
    scores = [rng.uniform(0, 1, len(t)) for t in truth]
    asked = []
    monkeypatch.setattr(evaluation, "iou_matrix", lambda *both: asked.append(both) or iou_matrix(*both))
    found = evaluation._figures(boxes, scores, truth, 0.4)
    assert len(asked) <= 2 * len(boxes)  # at the threshold, and for every AP
    # The draws matched anew, as the figure is defined.
    draw = np.random.default_rng(0)
    picks = [draw.integers(0, 6, 6) for _ in range(100)]
    aps = [average_precision(*([v[i] for i in pick] for v in (boxes, scores, truth)))[1] for pick in picks]
    assert found["ap50_95_ci95"] == [round(float(v), 4) for v in np.percentile(aps, [2.5, 97.5])]
    assert found["ap50_95_ci95"][0] < found["ap50_95"] < found["ap50_95_ci95"][1]


def test_nothing_found_is_average_precision_zero():
    none = [np.zeros((0, 4))]
    assert average_precision(none, [np.zeros(0)], [np.array([[0, 0, 1, 1.0]])])[:2] == (0.0, 0.0)


def test_the_quick_suppression_keeps_what_the_plain_one_keeps():
    from detectors.boxes import thin_out

    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 200, (400, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 40, (400, 2))], 1).astype(np.float32)
    scores = rng.uniform(0.1, 1, 400).astype(np.float32)
    quick = thin_out(boxes, scores, 0.5)
    assert quick.tolist() == suppress(boxes, scores, 0.5).tolist()
    assert 10 < len(quick) < 400
    assert thin_out(boxes[:0], scores[:0], 0.5).shape == (0,)


def test_a_kept_box_is_the_weighted_mean_of_those_that_place_the_same_object():
    from detectors.boxes import voted

    boxes = np.array([[0, 0, 20, 20], [2, 0, 22, 20], [0, 0, 20, 60], [50, 50, 50, 50]], np.float32)
    scores = np.array([0.6, 0.2, 0.9, 0.5], np.float32)
    mean = voted(boxes, scores, np.array([0, 2, 3]), 0.7)
    np.testing.assert_allclose(mean[0], [0.5, 0, 20.5, 20], atol=1e-5)  # three parts of one, one of the other
    np.testing.assert_allclose(mean[1:], boxes[2:])  # nobody agrees; a box without area stays


def test_boxes_of_several_views_become_their_mean_and_lose_what_a_view_does_not_show():
    from detectors.boxes import fused

    seen = np.array([[0, 0, 20, 20], [100, 0, 120, 20]], np.float32), np.array([0.6, 0.8], np.float32)
    also = np.array([[2, 0, 22, 20], [0, 1, 20, 21], [5, 5, 5, 5]], np.float32), np.array([0.2, 0.1, 0.9])
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    boxes, scores = fused([seen, also], 0.55)
    order = np.argsort(boxes[:, 0])
    # Three parts of one view and one of the other; of two boxes of a view the surer; no box without area.
    np.testing.assert_allclose(boxes[order], [[0.5, 0, 20.5, 20], [100, 0, 120, 20]], atol=1e-5)
    np.testing.assert_allclose(scores[order], [0.4, 0.4], atol=1e-6)
    assert np.sort(fused([also, seen], 0.55)[1]).tolist() == np.sort(scores).tolist()
    np.testing.assert_allclose(fused([seen, nothing], 0.55)[1].max(), 0.4)
    assert [part.shape for part in fused([nothing, nothing], 0.55)] == [(0, 4), (0,)]


def test_many_boxes_are_merged_in_little_memory_as_a_square_table_would_merge_them() -> None:
    import tracemalloc

    from detectors.boxes import iou_matrix, overlapping_pairs, suppress

    rng = np.random.default_rng(3)

    def some(n: int, side: float) -> np.ndarray:
        centre, size = rng.uniform(0, side, (n, 2)), rng.uniform(10, 60, (n, 2))
        return np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)

    a, b = some(300, 600), some(200, 600)
    table = iou_matrix(a, b)
    found = np.zeros_like(table)
    for i, j, iou, _ in overlapping_pairs(a, b, block=500):
        assert (found[i, j] == 0).all()
        found[i, j] = iou
    np.testing.assert_allclose(found, table, atol=1e-5)
    many, scores = some(20_000, 20_000), rng.random(20_000)
    tracemalloc.start()
    kept = suppress(many, scores, 0.5, 0.9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 19_000 < len(kept) < 20_000
    assert peak < 150 * 2**20  # a table of 20,000 squared would take 1.6 GB
