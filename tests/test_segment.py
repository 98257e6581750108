"""The segmenter: its contract, its scale, its measures, its training and evaluation."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from detectors.base import CYTOPLASM, NUCLEUS, RED_CELL, Segmenter
from detectors.segment import _spans, central_cell, segment_image, tidy
from detectors.segment_colour import background_colour
from detectors.segment_data import IGNORE, labels_of, read_labelled_cells, same_cell_groups, split_cells
from detectors.segment_evaluation import bootstrap_mean, dice, evaluate_segmenter
from detectors.segment_scale import red_cell_diameter_px
from detectors.segment_training import train_segmenter
from flows.cli import group
from pipeline.errors import BadInput
from pipeline.segmentation import count_lobes, measure_cells
from storage.registry import available, load

GLASS, RED, BLUE, VIOLET = (245, 235, 225), (225, 165, 160), (185, 180, 220), (90, 50, 140)


def draw_cell(
    size: int = 96, radius: int = 26, core: int = 15, at: tuple[int, int] | None = None
) -> np.ndarray:
    """A round leukocyte with a round nucleus between red cells, (size, size, 3) uint8."""
    image = np.full((size, size, 3), GLASS, np.uint8)
    x, y = at or (size // 2, size // 2)
    for corner in ((12, 14), (size - 14, 16), (16, size - 14)):
        cv2.circle(image, corner, 11, RED, -1, cv2.LINE_AA)
    cv2.circle(image, (x, y), radius, BLUE, -1, cv2.LINE_AA)
    cv2.circle(image, (x, y), core, VIOLET, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(image, (0, 0), 0.8)


def draw_mask(size: int = 96, radius: int = 26, core: int = 15) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    cv2.circle(mask, (size // 2, size // 2), radius, 128, -1)
    cv2.circle(mask, (size // 2, size // 2), core, 255, -1)
    return mask


class ByColour:
    """A stand-in segmenter with exact rules, so that tiling and scale are tested without weights."""

    name = "by-colour"

    def __init__(self) -> None:
        self.sizes: list[float | None] = []

    def segment(self, patches: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
        self.sizes.append(pixel_size_um)
        red = patches[..., 0].astype(int)
        labels = np.zeros(patches.shape[:3], np.uint8)
        labels[red < 205] = CYTOPLASM
        labels[red < 135] = NUCLEUS
        return labels


@pytest.fixture(params=available("segmenter"))
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return load("segmenter", request.param)


def test_a_segmenter_is_registered() -> None:
    assert "nucleus-cytoplasm" in available("segmenter")


def test_every_segmenter_keeps_the_protocol_for_any_patch_size(segmenter: Segmenter) -> None:
    assert isinstance(segmenter, Segmenter)
    for shape in ((1, 96, 96, 3), (2, 71, 130, 3), (1, 9, 13, 3)):
        labels = segmenter.segment(np.full(shape, 230, np.uint8), 0.2)
        assert labels.shape == shape[:3]
        assert labels.dtype == np.uint8
        assert labels.max() <= 3
    assert segmenter.segment(np.zeros((0, 64, 64, 3), np.uint8), 0.2).shape == (0, 64, 64)


def test_a_patch_is_labelled_the_same_in_any_batch(segmenter: Segmenter) -> None:
    cells = np.stack([draw_cell(), draw_cell(radius=34, core=24), np.full((96, 96, 3), 200, np.uint8)])
    for size in (0.2, None):
        together = segmenter.segment(cells, size)
        alone = np.concatenate([segmenter.segment(cells[n : n + 1], size) for n in (2, 0, 1)])[[1, 2, 0]]
        assert np.array_equal(together, alone)


def test_a_drawn_leukocyte_is_found_at_every_scale(segmenter: Segmenter) -> None:
    for size_um, factor in ((0.2, 1.0), (0.1, 2.0), (None, 2.0), (None, 1.0)):
        image = cv2.resize(draw_cell(), None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        truth = cv2.resize(draw_mask(), None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
        labels = segment_image(segmenter, image, size_um)
        assert dice(labels >= CYTOPLASM, truth >= 128) > 0.9
        assert dice(labels == NUCLEUS, truth == 255) > 0.85


def test_what_is_no_patch_is_refused_with_the_fix(segmenter: Segmenter) -> None:
    with pytest.raises(BadInput, match="uint8"):
        segmenter.segment(np.zeros((1, 8, 8, 3), np.float32), 0.2)
    with pytest.raises(BadInput, match="pixel size"):
        segmenter.segment(np.zeros((1, 8, 8, 3), np.uint8), 0.0)


def test_a_field_is_tiled_without_seams_or_gaps() -> None:
    rng = np.random.default_rng(3)
    field = np.full((700, 1100, 3), GLASS, np.uint8)
    for _ in range(60):
        x, y = (int(rng.integers(n)) for n in (1100, 700))
        cv2.circle(field, (x, y), 25, BLUE, -1)
        cv2.circle(field, (x, y), 14, VIOLET, -1)
    whole = ByColour().segment(field[None], 0.2)[0]
    tiled = ByColour()
    assert np.array_equal(segment_image(tiled, field, 0.2), whole)
    assert len(tiled.sizes) > 1


def test_a_large_image_says_how_much_there_is_to_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.registry.load", lambda *_: ByColour())
    image = np.full((300, 400, 3), 230, np.uint8)
    cv2.imwrite(str(tmp_path / "large.png"), cv2.circle(image, (200, 150), 60, (140, 60, 120), -1))
    args = ["segment", str(tmp_path / "large.png"), "--out", str(tmp_path / "out"), "--pixel-size"]
    large, small = (CliRunner().invoke(group, [*args, um]) for um in ("2", "0.5"))
    assert (large.exit_code, small.exit_code) == (0, 0)
    assert "large.png: a large image, labelled in 88 tiles." in large.stderr
    assert "tiles" not in small.stderr


def test_tiles_decide_every_pixel_once() -> None:
    for length in (10, 480, 481, 999, 2064):
        parts = _spans(length, 480, 120)
        assert parts[0][2] == 0
        assert parts[-1][3] == length
        assert all(a[3] == b[2] for a, b in pairwise(parts))
        assert all(start <= first and last <= stop for start, stop, first, last in parts)


def test_a_patch_keeps_the_middle_cell_and_a_field_keeps_all() -> None:
    two = cv2.copyMakeBorder(draw_cell(), 0, 0, 0, 60, cv2.BORDER_CONSTANT, value=GLASS)
    cv2.circle(two, (140, 48), 14, VIOLET, -1)
    assert not (segment_image(ByColour(), two, 0.2)[:, 120:] >= CYTOPLASM).any()
    assert (segment_image(ByColour(), two, 0.4)[:, 120:] >= CYTOPLASM).any()


def test_the_scale_is_read_off_red_cells_of_known_size() -> None:
    rng = np.random.default_rng(0)
    field = np.full((600, 800, 3), GLASS, np.uint8)
    for x in range(60, 800, 110):
        for y in range(60, 600, 110):
            cv2.circle(field, (x, y), 35 + int(rng.integers(-2, 3)), RED, -1)
            cv2.circle(field, (x, y), 9, (238, 205, 200), -1)
    cv2.circle(field, (115, 115), 9, VIOLET, -1)
    assert red_cell_diameter_px(field) == pytest.approx(70, rel=0.06)
    assert red_cell_diameter_px(np.full((300, 300, 3), GLASS, np.uint8)) is None


def test_dice_is_the_hand_worked_number() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[0, :4] = True  # 4 pixels
    b[0, 2:], b[1, :2] = True, True  # 4 pixels, 2 of them shared
    assert dice(a, b) == 2 * 2 / (4 + 4)
    b[:] = False
    assert dice(a, b) == 0
    assert dice(b, b) == 1


def test_the_interval_of_the_mean_draws_groups_not_cells() -> None:
    values, groups = np.array([0.0] * 50 + [1.0] * 50), np.array([0] * 50 + [1] * 50)
    assert bootstrap_mean(values, groups) == (0.0, 1.0)
    low, high = bootstrap_mean(values, np.arange(100))
    assert 0.38 < low < 0.45
    assert 0.55 < high < 0.62


def test_measures_of_a_drawn_cell_are_its_geometry_in_micrometres() -> None:
    mask = draw_mask(160, 50, 30)
    labels = np.where(mask == 255, NUCLEUS, np.where(mask == 128, CYTOPLASM, 0)).astype(np.uint8)
    patch = np.full((160, 160, 3), 250, np.uint8)
    patch[labels == NUCLEUS] = 25
    measured = measure_cells(labels[None], patch[None], 0.1)[0]
    assert measured.area_um2 == pytest.approx(np.pi * 25, rel=0.03)
    assert measured.nc_ratio == pytest.approx(0.36, abs=0.02)
    assert measured.lobes == 1
    assert measured.eccentricity < 0.2
    assert measured.od_nucleus == pytest.approx((1, 1, 1), abs=0.01)
    assert not measured.cut_by_patch


def test_measures_do_not_depend_on_the_pixel_size() -> None:
    labels = np.where(draw_mask() == 255, NUCLEUS, np.where(draw_mask() == 128, CYTOPLASM, 0)).astype(
        np.uint8
    )
    big = cv2.resize(labels, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    small = measure_cells(labels[None], draw_cell()[None], 0.2)[0]
    large = measure_cells(big[None], cv2.resize(draw_cell(), None, fx=2, fy=2)[None], 0.1)[0]
    assert small.area_um2 == pytest.approx(large.area_um2, rel=0.01)
    assert small.lobes == large.lobes == 1


def test_no_cell_in_the_middle_is_none_and_the_middle_one_is_measured() -> None:
    labels = np.zeros((2, 100, 100), np.uint8)
    cv2.circle(labels[1], (50, 50), 20, CYTOPLASM, -1)
    cv2.circle(labels[1], (95, 95), 30, NUCLEUS, -1)
    labels[1, 66:76, 60:75] = 0
    nothing, middle = measure_cells(labels, np.full((2, 100, 100, 3), 240, np.uint8), 0.2)
    assert nothing.area_um2 is None
    assert nothing.lobes is None
    assert middle.nucleus_area_um2 == 0
    assert central_cell(labels[1])[50, 50]
    with pytest.raises(BadInput, match="same patches"):
        measure_cells(labels, np.zeros((2, 50, 50, 3), np.uint8), 0.2)


def test_lobes_are_counted_through_thin_necks_and_not_in_a_bean() -> None:
    nucleus = np.zeros((120, 120), np.uint8)
    for x in (25, 60, 95):
        cv2.circle(nucleus, (x, 60), 16, 1, -1)
    cv2.line(nucleus, (25, 60), (95, 60), 1, 4)
    assert count_lobes(nucleus > 0, 0.1) == 3
    bean = np.zeros((120, 120), np.uint8)
    cv2.ellipse(bean, (60, 60), (30, 30), 0, 0, 200, 1, 14)
    assert count_lobes(bean > 0, 0.1) == 1
    assert count_lobes(np.zeros((9, 9), bool), 0.1) == 0


def test_red_cells_outside_the_mask_are_labelled_and_dark_neighbours_are_left_open() -> None:
    image, mask = draw_cell(), draw_mask()
    cv2.circle(image, (84, 84), 11, (70, 40, 120), -1)
    labels = labels_of(image, mask, 0.2)
    assert labels[14, 12] == RED_CELL
    assert labels[48, 48] == NUCLEUS
    assert labels[2, 48] == 0
    assert labels[86, 86] == IGNORE
    assert np.allclose(background_colour(image), GLASS, atol=4)


def write_set(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(7)
    lines = ["image,mask,source,class"]
    for n in range(count):
        radius, core = int(rng.integers(20, 34)), int(rng.integers(8, 18))
        noise = rng.normal(0, 12, (96, 96, 3))
        image = np.clip(draw_cell(96, radius, core) + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{n}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / f"{n}_mask.png"), draw_mask(96, radius, core))
        lines.append(f"{n}.png,{n}_mask.png,drawn,round")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_near_duplicates_share_a_group_and_a_side_of_the_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 255, (48, 48, 3)).astype(np.uint8) for _ in range(3)]
    soft = [cv2.GaussianBlur(n, (0, 0), 5) for n in noise]
    copy = np.ascontiguousarray(np.rot90(soft[0])[:, ::-1])
    groups = same_cell_groups([*soft, copy])
    assert groups[3] == groups[0]
    assert len(set(groups)) == 3
    cells = read_labelled_cells(write_set(tmp_path / "set", 10))
    train, test = split_cells(cells, seed=1, test_share=0.3)
    assert not {c.group for c in train} & {c.group for c in test}
    assert len(train) + len(test) == 10


def test_a_bad_training_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"neither labels\.csv nor pairs"):
        read_labelled_cells(tmp_path)
    folder = write_set(tmp_path / "set", 2)
    (folder / "1_mask.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"1_mask\.png is missing or no image"):
        read_labelled_cells(folder)


def test_training_resumes_to_the_same_weights_and_ships_a_strict_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectors.segment_data.same_cell_groups", lambda images: list(range(len(images))))
    data = write_set(tmp_path / "set", 6)
    figures = {"epochs": 2, "steps_per_epoch": 1, "batch": 2, "widths": (4, 6, 8)}
    train_segmenter(data, tmp_path / "a" / "seg", **figures)

    class Killed(Exception):
        pass

    def stop(text: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        train_segmenter(data, tmp_path / "b" / "seg", progress=stop, **figures)
    metrics = train_segmenter(data, tmp_path / "b" / "seg", resume=True, **figures)
    first, second = (tmp_path / d / "seg" / "model.safetensors" for d in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert set(metrics["drawn"]) == {"n", "cell", "nucleus"}
    model = load("segmenter", str(tmp_path / "b" / "seg"))
    result = evaluate_segmenter(model, data, tmp_path / "report")
    assert json.loads((tmp_path / "report" / "segmentation.json").read_text()) == result
    assert len((tmp_path / "report" / "segmentation.csv").read_text().splitlines()) == 7
    with pytest.raises(BadInput, match="another recipe or other settings"):
        train_segmenter(data, tmp_path / "b" / "seg", resume=True, **{**figures, "batch": 3})


@pytest.mark.real
def test_unseen_real_cells_of_both_stains_reach_the_stated_dice(real_data: Path) -> None:
    from storage.packages import find_package

    package = find_package("nucleus-cytoplasm")
    assert package is not None
    model = load("segmenter", "nucleus-cytoplasm")
    test = split_cells(read_labelled_cells(real_data / "wbc-masks"), package.card.training["seed"])[1]
    for source in ("tecom", "cellavision"):
        scores = [
            (dice(s >= CYTOPLASM, c.labels >= 2), dice(s == NUCLEUS, c.labels == 3))
            for c in [c for c in test if c.source == source][:12]
            for s in [segment_image(model, c.image, None)]
        ]
        cell, nucleus = np.mean(scores, axis=0)
        assert cell > 0.93
        assert nucleus > 0.90


def test_platelets_rims_crumbs_and_holes_are_tidied_away() -> None:
    labels, otherwise = np.zeros((120, 120), np.uint8), np.zeros((120, 120), np.uint8)
    cv2.circle(labels, (60, 60), 30, CYTOPLASM, -1)
    cv2.circle(labels, (60, 60), 15, NUCLEUS, -1)
    cv2.circle(labels, (60, 36), 3, 0, -1)  # a vacuole
    cv2.circle(labels, (40, 60), 2, NUCLEUS, -1)  # a granule
    cv2.circle(labels, (100, 20), 8, NUCLEUS, -1)  # a platelet
    cv2.circle(labels, (20, 100), 15, CYTOPLASM, 2)  # the rim of a red cell
    otherwise[80:] = RED_CELL
    clean = tidy(labels, otherwise, 0.2)
    assert clean[36, 60] == CYTOPLASM
    assert clean[60, 40] == CYTOPLASM
    assert clean[20, 100] == 0
    assert clean[115, 20] == RED_CELL
    assert clean[60, 60] == NUCLEUS
    assert np.array_equal(tidy(clean, otherwise, 0.2), clean)
