"""Cells of a case: each once, however many fields show it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cells import merge_cells
from pipeline.settings import DetectionSettings
from pipeline.types import Box, Cell, Detections, FieldImage, Registration

S = DetectionSettings()
SIDE = 12.0  # µm, of a cell


def _image(field: str = "F1", modality: str = "brightfield", stain: str = "MGG", **values: Any) -> FieldImage:
    image = FieldImage(
        slide="s1",
        field=field,
        modality=modality,  # type: ignore[arg-type]
        stain=stain,  # type: ignore[arg-type]
        file=f"{field}_{modality}_{stain}.tif",
        pixel_size_um=0.1,
        pixel_size_source="manifest",
        width_px=1000,
        height_px=800,
        bits=8,
        channels=3,
        sha256="0" * 64,
    )
    return image.model_copy(update=values)


def _found(image: FieldImage, boxes: list[Box], scores: list[float] | None = None) -> Detections:
    return Detections(
        slide=image.slide,
        field=image.field,
        modality=image.modality,
        stain=image.stain,
        detector="d",
        boxes=tuple(boxes),
        scores=tuple(scores or [0.9] * len(boxes)),
    )


def _box(x: float, y: float, side: float = 120.0) -> Box:
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def test_boxes_under_the_threshold_are_no_cells_and_numbers_follow_the_position() -> None:
    image = _image()
    cells = merge_cells(
        [image], [_found(image, [_box(500, 600), _box(700, 100), _box(200, 300)], [0.9, 0.5, 0.39])], {}, S
    )
    assert [(c.cell_id, c.bbox_px) for c in cells] == [
        ("s1/F1/0001", _box(700, 100)),
        ("s1/F1/0002", _box(500, 600)),
    ]
    assert all(c.x_um is None and c.n_fields_seen == 1 and not c.at_border for c in cells)


def test_a_cell_in_two_overlapping_fields_counts_once_where_it_is_seen_best() -> None:
    left, right = _image("F1", x_um=0, y_um=0), _image("F2", x_um=80, y_um=0)  # 20 µm of overlap
    # A cell at slide (88, 40) µm: 12 µm from the right edge of F1, 8 µm from the left edge of F2.
    cells = merge_cells(
        [left, right], [_found(left, [_box(880, 400)]), _found(right, [_box(80, 405)])], {}, S
    )
    assert len(cells) == 1
    assert (cells[0].field, cells[0].n_fields_seen) == ("F1", 2)
    assert (cells[0].x_um, cells[0].y_um) == (88.0, 40.0)


def test_a_cell_cut_by_one_field_s_edge_is_the_whole_cell_of_the_next() -> None:
    left, right = _image("F1", x_um=0, y_um=0), _image("F2", x_um=80, y_um=0)
    whole = _box(170, 400)  # in F2: slide 97 µm, so 3 µm of it lie beyond F1's edge at 100 µm
    part: Box = (910, 340, 1000, 460)
    cells = merge_cells([left, right], [_found(left, [part]), _found(right, [whole])], {}, S)
    assert [(c.field, c.at_border, c.n_fields_seen) for c in cells] == [("F2", False, 2)]
    sliver: Box = (975, 340, 1000, 460)
    far = _box(185, 400)  # slide 98.5 µm; F1 shows a fifth of it, and their union overlaps little
    cells = merge_cells([left, right], [_found(left, [sliver]), _found(right, [far])], {}, S)
    assert len(cells) == 1


def test_touching_cells_stay_two_and_so_do_fields_without_positions() -> None:
    left, right = _image("F1", x_um=0, y_um=0), _image("F2", x_um=80, y_um=0)
    pair_left, pair_right = [_box(880, 300), _box(880, 410)], [_box(80, 300), _box(80, 410)]
    cells = merge_cells([left, right], [_found(left, pair_left), _found(right, pair_right)], {}, S)
    assert [c.n_fields_seen for c in cells] == [2, 2]
    nowhere = [_image("F1"), _image("F2")]
    cells = merge_cells(nowhere, [_found(i, [_box(100, 100)]) for i in nowhere], {}, S)
    assert len(cells) == 2
    other_slide = _image("F1", slide="s2", x_um=0, y_um=0)
    cells = merge_cells(
        [left, other_slide], [_found(i, [_box(100, 100)]) for i in (left, other_slide)], {}, S
    )
    assert len(cells) == 2


def test_the_border_policy_drops_only_what_no_field_shows_whole() -> None:
    left, right = _image("F1", x_um=0, y_um=0), _image("F2", x_um=80, y_um=0)
    found = [
        _found(left, [(910, 340, 1000, 460), (0, 100, 60, 220)]),
        _found(right, [_box(170, 400)]),
    ]
    kept = merge_cells([left, right], found, {}, S)
    assert [(c.field, c.at_border) for c in kept] == [("F1", True), ("F2", False)]
    dropped = merge_cells([left, right], found, {}, DetectionSettings(border_policy="drop"))
    assert [(c.field, c.at_border) for c in dropped] == [("F2", False)]


def test_how_much_an_edge_leaves_of_a_cell_is_read_from_its_box() -> None:
    image = _image()  # 1000 x 800 px
    boxes = {
        (500, 300, 620, 420): 1.0,  # inside
        (880, 100, 1000, 220): 1.0,  # whole, at the edge
        (964, 400, 1000, 520): 0.3,  # right
        (0, 500, 60, 620): 0.5,  # left
        (300, 0, 420, 48): 0.4,  # above
        (600, 776, 720, 800): 0.2,  # below
        (0, 0, 60, 120): 0.5,  # a corner
    }
    cells = merge_cells([image], [_found(image, [tuple(map(float, b)) for b in boxes])], {}, S)  # type: ignore[misc]
    assert {tuple(map(int, c.bbox_px)): c.seen for c in cells} == pytest.approx(boxes)


SHIFT = Registration(status="ok", matrix=((1.0, 0.0, 10.0), (0.0, 1.0, -5.0)))


def test_a_registered_field_counts_from_brightfield_and_knows_its_dic_box() -> None:
    bright, dic = _image(), _image("F1", "dic", "unstained", channels=1)
    found = [_found(bright, [_box(500, 400), _box(940, 400)]), _found(dic, [_box(510, 395), _box(200, 200)])]
    cells = merge_cells([bright, dic], found, {("s1", "F1"): SHIFT}, S)
    assert [c.modality for c in cells] == ["brightfield", "brightfield"]
    assert cells[0].dic_bbox_px == pytest.approx(_box(510, 395))
    far = Registration(status="ok", matrix=((1.0, 0.0, 100.0), (0.0, 1.0, 0.0)))
    cells = merge_cells([bright, dic], found, {("s1", "F1"): far}, S)
    assert [c.dic_bbox_px is None for c in cells] == [
        False,
        True,
    ]  # the second's place is not in the DIC image


def test_a_failed_registration_gives_no_dic_box_and_never_the_same_place() -> None:
    bright, dic = _image(), _image("F1", "dic", "unstained")
    failed = Registration(status="failed", reason="no match")
    cells = merge_cells([bright, dic], [_found(bright, [_box(500, 400)])], {("s1", "F1"): failed}, S)
    assert cells[0].dic_bbox_px is None
    cells = merge_cells([bright], [_found(bright, [_box(500, 400)])], {("s1", "F1"): SHIFT}, S)
    assert cells[0].dic_bbox_px is None


def test_a_field_whose_brightfield_was_lost_counts_from_dic() -> None:
    bright, dic = _image("F1"), [_image(f, "dic", "unstained") for f in ("F1", "F2")]
    found = [_found(bright, [_box(500, 400)]), _found(dic[0], [_box(1, 1)]), _found(dic[1], [_box(300, 300)])]
    cells = merge_cells([bright, *dic], found, {("s1", "F1"): SHIFT}, S)
    assert [(c.field, c.modality) for c in cells] == [("F1", "brightfield"), ("F2", "dic")]


def test_a_stained_view_goes_before_a_dic_view_of_the_same_cell() -> None:
    bright = _image("F1", x_um=0, y_um=0)
    dic = _image("F2", "dic", "unstained", x_um=40, y_um=0)
    cells = merge_cells(
        [bright, dic], [_found(bright, [_box(880, 400)]), _found(dic, [_box(480, 400)])], {}, S
    )
    assert [(c.modality, c.n_fields_seen) for c in cells] == [("brightfield", 2)]


def test_perls_is_a_count_of_its_own_with_its_own_ids() -> None:
    mgg, perls = _image("F1", x_um=0, y_um=0), _image("F1", stain="Perls", x_um=0, y_um=0)
    cells = merge_cells([mgg, perls], [_found(mgg, [_box(500, 400)]), _found(perls, [_box(500, 400)])], {}, S)
    assert [(c.stain, c.cell_id) for c in cells] == [("MGG", "s1/F1/0001"), ("Perls", "s1/F1/0002")]


def test_boxes_are_cut_to_their_image_and_empty_or_endless_ones_dropped() -> None:
    image = _image()
    boxes: list[Box] = [
        (-20, -5, 60, 90),
        (995, 100, 1300, 200),
        (1200, 10, 1300, 90),
        (5, 5, 5, 90),
        (0, 0, float("nan"), 9),
    ]
    cells = merge_cells([image], [_found(image, boxes)], {}, S)
    assert [(c.bbox_px, c.at_border) for c in cells] == [
        ((0, 0, 60, 90), True),
        ((995, 100, 1000, 200), True),
    ]


def _mosaic(seed: int, n: int, jitter_um: float) -> tuple[list[FieldImage], list[Detections], int]:
    """Fields of 100 x 80 µm at a 20 µm overlap over a slide of scattered cells; how many lie in view."""
    rng = random.Random(seed)
    images = [_image(f"F{r}{c}", x_um=80.0 * c, y_um=60.0 * r) for r in range(2) for c in range(3)]
    places: list[tuple[float, float]] = []
    while len(places) < n:
        x, y = rng.uniform(8, 252), rng.uniform(8, 132)
        if all((x - a) ** 2 + (y - b) ** 2 > (SIDE * 1.1) ** 2 for a, b in places):
            places.append((x, y))
    found = []
    for image in images:
        boxes: list[Box] = []
        for x, y in places:
            px = (x - (image.x_um or 0) + rng.uniform(-jitter_um, jitter_um)) * 10
            py = (y - (image.y_um or 0) + rng.uniform(-jitter_um, jitter_um)) * 10
            box = (max(0, px - 60), max(0, py - 60), min(1000, px + 60), min(800, py + 60))
            if box[2] - box[0] > 20 and box[3] - box[1] > 20:  # a detector wants to see some of it
                boxes.append(box)
        found.append(_found(image, boxes))
    return images, found, n


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 60))
def test_every_cell_of_a_mosaic_counts_once_in_spite_of_the_stage_s_error(seed: int, n: int) -> None:
    images, found, expected = _mosaic(seed, n, jitter_um=0.7)
    cells = merge_cells(images, found, {}, S)
    assert len(cells) == expected
    assert len({c.cell_id for c in cells}) == expected
    assert sum(c.n_fields_seen for c in cells) == sum(len(d.boxes) for d in found)


def test_the_order_of_the_input_does_not_matter() -> None:
    images, found, _ = _mosaic(4, 40, jitter_um=0.7)
    first: tuple[Cell, ...] = merge_cells(images, found, {}, S)
    for seed in range(3):
        rng = random.Random(seed)
        mixed = []
        for d in found:
            order = list(range(len(d.boxes)))
            rng.shuffle(order)
            mixed.append(d.model_copy(update={"boxes": tuple(d.boxes[i] for i in order)}))
        rng.shuffle(mixed)
        assert merge_cells(rng.sample(images, len(images)), mixed, {}, S) == first


def _elsewhere(field: str, modality: str = "brightfield", stain: str = "MGG", **values: Any) -> FieldImage:
    return _image(field, modality, stain, slide="s2", **values)


def test_a_field_stained_on_one_slide_leaves_the_field_of_its_name_on_another_to_its_dic() -> None:
    bright, dic = _image("F1"), _elsewhere("F1", "dic", "unstained")
    cells = merge_cells([bright, dic], [_found(i, [_box(500, 400)]) for i in (bright, dic)], {}, S)
    assert [(c.slide, c.modality) for c in cells] == [("s1", "brightfield"), ("s2", "dic")]


def test_a_perls_image_of_a_field_does_not_speak_for_its_dic() -> None:
    perls, dic = _image("F1", stain="Perls"), _image("F1", "dic", "unstained")
    found = [_found(perls, [_box(500, 400)]), _found(dic, [_box(300, 300)])]
    cells = merge_cells([perls, dic], found, {}, S)
    assert [(c.stain, c.modality) for c in cells] == [("Perls", "brightfield"), ("unstained", "dic")]


def test_perls_and_mgg_of_different_fields_at_one_place_are_two_counts() -> None:
    mgg, perls = _image("F1", x_um=0, y_um=0), _image("F2", stain="Perls", x_um=0, y_um=0)
    cells = merge_cells([mgg, perls], [_found(i, [_box(500, 400)]) for i in (mgg, perls)], {}, S)
    assert [(c.stain, c.n_fields_seen) for c in cells] == [("MGG", 1), ("Perls", 1)]


def test_a_perls_cell_has_no_place_in_the_dic_image_of_its_field() -> None:
    perls, dic = _image("F1", stain="Perls"), _image("F1", "dic", "unstained")
    (cell,) = merge_cells([perls, dic], [_found(perls, [_box(500, 400)])], {("s1", "F1"): SHIFT}, S)
    assert cell.dic_bbox_px is None


def test_two_boxes_of_one_field_are_two_cells_however_much_they_overlap() -> None:
    image = _image(x_um=0, y_um=0)
    cells = merge_cells([image], [_found(image, [_box(500, 400), _box(530, 400)])], {}, S)
    assert [c.n_fields_seen for c in cells] == [1, 1]


def test_a_small_whole_cell_that_lies_on_a_large_one_in_the_next_field_stays_a_cell() -> None:
    left, right = _image("F1", x_um=0, y_um=0), _image("F2", x_um=80, y_um=0)
    found = [_found(left, [_box(900, 400, 60)]), _found(right, [_box(110, 400, 200)])]
    assert len(merge_cells([left, right], found, {}, S)) == 2  # nothing is cut, so neither is a part


def test_a_part_may_stick_out_of_its_cell_by_the_error_of_the_stage() -> None:
    # F1 shows 2 µm of a cell that by the stage begins 1.4 µm further on.
    left, right = _image("F1", x_um=0, y_um=0), _image("F2", x_um=80, y_um=0)
    part: Box = (980, 340, 1000, 460)
    found = [_found(left, [part]), _found(right, [(194, 340, 314, 460)])]
    assert [(c.field, c.n_fields_seen) for c in merge_cells([left, right], found, {}, S)] == [("F2", 2)]
    off = [_found(left, [part]), _found(right, [(210, 340, 330, 460)])]  # too far for the stage
    assert len(merge_cells([left, right], off, {}, S)) == 2


def test_a_part_finds_its_cell_beyond_the_next_square_of_the_grid() -> None:
    left, right = _image("F1", x_um=27.9, y_um=0), _image("F2", x_um=108, y_um=0)
    part: Box = (980, 340, 1000, 460)  # slide 125.9 to 127.9 µm: this side of the grid's line at 128
    whole: Box = (201, 340, 321, 460)  # slide 128.1 to 140.1 µm: beyond it
    found = [_found(left, [part]), _found(right, [whole])]
    assert [c.n_fields_seen for c in merge_cells([left, right], found, {}, S)] == [2]


def test_a_box_at_the_threshold_is_a_cell() -> None:
    image = _image()
    scores = [S.threshold, S.threshold - 1e-6]
    found = _found(image, [_box(300, 400), _box(600, 400)], scores)
    assert [c.bbox_px for c in merge_cells([image], [found], {}, S)] == [_box(300, 400)]


@pytest.mark.parametrize(
    ("x", "y", "inside"),
    [(2000, 100, True), (100, 1540, True), (2070, 100, False), (100, 1550, False), (-10, 100, False)],
)
def test_a_place_in_the_dic_image_is_held_to_that_image_s_width_and_height(
    x: float, y: float, inside: bool
) -> None:
    camera = {"width_px": 2064, "height_px": 1544}
    bright, dic = _image(**camera), _image("F1", "dic", "unstained", **camera)
    shift = Registration(status="ok", matrix=((1.0, 0.0, x - 1000), (0.0, 1.0, y - 700)))
    (cell,) = merge_cells([bright, dic], [_found(bright, [_box(1000, 700)])], {("s1", "F1"): shift}, S)
    assert (cell.dic_bbox_px is not None) is inside
