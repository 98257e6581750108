"""The Perls reader: the definition, its invariances, and what it must call indeterminate."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.stats import spearmanr

from classifiers.sideroblasts import (
    RuleReader,
    SideroblastReader,
    SideroblastRule,
    covered_fraction,
    type_of,
)
from classifiers.sideroblasts_stain import (
    FAST_RED,
    IRON,
    glass_colour,
    optical_density,
    stain_directions,
    unmix,
)
from pipeline.errors import BadInput
from pipeline.sideroblasts import draw_reading, read_sideroblasts
from storage.registry import available, load

PX = 0.1
GLASS = np.array((244.0, 242.0, 240.0))
Spots = list[tuple[float, float]]  # angle in degrees, distance of the centre from the nuclear outline in µm


def perls_cell(
    spots: Spots,
    nucleus_um: float = 3.3,
    haze: float = 0.0,
    blur_um: float = 0.12,
    size: int = 256,
    offset_um: tuple[float, float] = (0.0, 0.0),
    neighbour_um: float | None = None,
    iron: float = 0.55,
    seed: int = 0,
) -> np.ndarray:
    """A synthetic erythroblast in Perls: densities of both dyes add, then blur, noise, camera."""
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) * PX
    x, y = x - offset_um[0], y - offset_um[1]

    def disc(cx: float, cy: float, r: float) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip((np.hypot(x - cx, y - cy) - r) / 0.03, -50, 50)))

    pink = 0.35 * disc(0, 0, nucleus_um) + 0.05 * disc(0, 0, nucleus_um + 3)
    if neighbour_um is not None:
        pink = np.maximum(pink, 0.35 * disc(neighbour_um, 0, nucleus_um))
    blue = haze * np.exp(-(x**2 + y**2) / (2 * 6.0**2))
    for angle, distance in spots:
        r = nucleus_um + distance
        blue = np.maximum(
            blue, iron * disc(r * np.cos(np.radians(angle)), r * np.sin(np.radians(angle)), 0.28)
        )
    density = pink[..., None] * FAST_RED + blue[..., None] * IRON
    image = GLASS * 10**-density
    image = cv2.GaussianBlur(image, (0, 0), blur_um / PX)
    image += np.random.default_rng(seed).normal(0, 1.5, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


RING = [(a, 0.4) for a in range(0, 360, 40)]
THIRD = [(a, 0.4) for a in range(0, 151, 25)]
SCATTERED = [(0, 2.0), (70, 2.4), (140, 1.9), (200, 2.2), (260, 2.5), (320, 2.1)]
CLUMP = [(0, 0.5), (16, 0.6), (32, 0.5), (8, 1.4), (24, 1.5)]
CASES = {"none": ([], "0"), "one": ([(30, 0.5)], "1"), "four": (RING[:4], "1"), "far": (SCATTERED, "2"),
         "clump": (CLUMP, "2"), "ring": (RING, "3"), "third": (THIRD, "3")}  # fmt: skip


@pytest.fixture
def reader() -> SideroblastReader:
    """The explainable reader: what it must see, outline and say."""
    return load("sideroblast-reader", "rule")


@pytest.fixture(params=available("sideroblast-reader"))
def any_reader(request: pytest.FixtureRequest) -> SideroblastReader:
    """Every registered reader: what holds for all of them."""
    return load("sideroblast-reader", request.param)


@pytest.mark.parametrize("case", CASES)
def test_a_cell_drawn_by_the_definition_is_read_as_its_type(reader: SideroblastReader, case: str) -> None:
    spots, expected = CASES[case]
    found = read_sideroblasts(perls_cell(spots)[None], PX, reader)[0]
    assert (found.type, found.reason) == (expected, "")
    assert found.n_granules == len(spots)
    assert found.nucleus_contour is not None


def test_granules_are_where_they_were_drawn(reader: SideroblastReader) -> None:
    found = reader.read(perls_cell(RING)[None], PX)[0]
    truth = np.array([(np.cos(np.radians(a)), np.sin(np.radians(a))) for a, _ in RING]) * 3.7 / PX + 127.5
    away = np.linalg.norm(found.granules_px[:, None, :2] - truth[None], axis=2)
    assert away.min(axis=0).max() < 1.5
    assert found.arc_fraction > 0.9


def test_turning_or_mirroring_the_patch_changes_nothing(reader: SideroblastReader) -> None:
    for spots, expected in (CASES["third"], CASES["far"], CASES["four"]):
        patch = perls_cell(spots)
        views = [np.rot90(patch, k) for k in range(4)] + [patch[:, ::-1]]
        found = reader.read(np.ascontiguousarray(np.stack(views)), PX)
        assert {f.type for f in found} == {expected}
        assert {f.n_granules for f in found} == {len(spots)}
        assert np.ptp([f.arc_fraction for f in found]) < 0.05


@pytest.mark.parametrize("px", [0.07, 0.1, 0.15, 0.2])
def test_the_type_does_not_depend_on_the_pixel_size(reader: SideroblastReader, px: float) -> None:
    for spots, expected in (CASES["ring"], CASES["far"], CASES["none"]):
        size = round(256 * PX / px)
        patch = cv2.resize(
            perls_cell(spots), (size, size), interpolation=cv2.INTER_AREA if px > PX else cv2.INTER_CUBIC
        )
        found = reader.read(patch[None], px)[0]
        assert found.type == expected
        if len(found.granules_px):
            assert found.granules_px[:, :2].max() < size


def test_an_empty_patch_is_indeterminate_and_never_type_0(any_reader: SideroblastReader) -> None:
    rng = np.random.default_rng(1)
    glass = np.clip(rng.normal(240, 2, (128, 128, 3)), 0, 255).astype(np.uint8)
    for patch in (glass, np.zeros_like(glass), np.full_like(glass, 255)):
        found = any_reader.read(patch[None], PX)[0]
        assert found.type == "indeterminate"
        assert found.reason
        assert found.nucleus_contour is None
        assert found.n_granules == 0


def test_blue_haze_is_not_granules(reader: SideroblastReader) -> None:
    for haze in (0.06, 0.12, 0.3):
        found = reader.read(perls_cell([], haze=haze)[None], PX)[0]
        assert found.n_granules == 0
        assert found.type in ("0", "indeterminate")
    thin = reader.read(perls_cell(RING, haze=0.08)[None], PX)[0]
    assert thin.type == "3"
    assert "haze" in reader.read(perls_cell([], haze=0.4)[None], PX)[0].reason


def test_defocus_is_indeterminate_with_that_reason(reader: SideroblastReader) -> None:
    found = reader.read(perls_cell(RING, blur_um=0.9)[None], PX)[0]
    assert found.type == "indeterminate"
    assert "defocus" in found.reason


def test_overlapping_nuclei_are_told_and_a_neighbours_granules_are_not_counted(
    reader: SideroblastReader,
) -> None:
    merged = reader.read(perls_cell(RING, neighbour_um=4.2, offset_um=(-0.6, 0))[None], PX)[0]
    assert merged.type == "indeterminate"
    assert "overlapping" in merged.reason
    # Six granules on the far side of a neighbour 8 µm away belong to the neighbour.
    theirs = [(0.0, 4.7 + d) for d in (0.0, 0.7, 1.4)]
    assert reader.read(perls_cell(theirs, neighbour_um=8.2)[None], PX)[0].type == "0"


def test_a_nucleus_far_from_the_middle_is_not_the_cell_asked_for(reader: SideroblastReader) -> None:
    assert reader.read(perls_cell(RING, offset_um=(8, 0))[None], PX)[0].type == "indeterminate"


def test_too_coarse_an_image_is_indeterminate(any_reader: SideroblastReader) -> None:
    small = cv2.resize(perls_cell(RING), (60, 60), interpolation=cv2.INTER_AREA)
    assert "resolution" in any_reader.read(small[None], 0.43)[0].reason


def test_a_patch_reads_the_same_in_any_batch(any_reader: SideroblastReader) -> None:
    patches = np.stack([perls_cell(s) for s, _ in CASES.values()])
    together = any_reader.read(patches, PX)
    for n in (5, 0, 3):
        alone = any_reader.read(patches[n : n + 1], PX)[0]
        assert (alone.type, alone.n_granules, alone.arc_fraction, alone.probabilities) == (
            together[n].type, together[n].n_granules, together[n].arc_fraction, together[n].probabilities,
        )  # fmt: skip
        assert np.array_equal(alone.granules_px, together[n].granules_px)
    assert any_reader.read(patches[:0], PX) == []


def test_what_is_no_patch_is_refused(any_reader: SideroblastReader) -> None:
    with pytest.raises(BadInput, match="uint8"):
        any_reader.read(np.zeros((1, 64, 64, 3), np.float32), PX)
    with pytest.raises(BadInput, match="pixel size"):
        any_reader.read(np.zeros((1, 64, 64, 3), np.uint8), 0.0)


def test_the_rule_is_the_definition_at_its_limits() -> None:
    rule = SideroblastRule()
    assert [type_of(n, n, 1.0, rule) for n in (0, 1, 4, 5)] == ["0", "1", "1", "3"]
    assert type_of(5, 5, 0.333, rule) == "2"
    assert type_of(5, 5, 1 / 3, rule) == "3"
    assert type_of(12, 4, 0.9, rule) == "2"


def test_covered_fraction_is_the_hand_worked_share() -> None:
    angle = np.radians(np.arange(0, 360, 0.5))
    circle = 100 * np.column_stack([np.cos(angle), np.sin(angle)])  # radius 10 µm, 62.8 µm around

    def at(*degrees: float) -> np.ndarray:
        return np.array([(105 * np.cos(np.radians(d)), 105 * np.sin(np.radians(d)), 0.5) for d in degrees])

    assert covered_fraction(circle, at(90), 2.0) == pytest.approx(1 / 62.83, rel=0.01)
    assert covered_fraction(circle, at(0, 180), 2.0) == pytest.approx(2 / 62.83, rel=0.02)
    # 10 degrees are 1.75 µm: within reach, so 0 to 40 is one stretch, and it may cross the contour's start.
    assert covered_fraction(circle, at(0, 10, 20, 30, 40), 2.0) == pytest.approx(
        (62.83 / 9 + 1) / 62.83, rel=0.02
    )
    assert covered_fraction(circle, at(340, 350, 0, 10, 20), 2.0) == pytest.approx(
        (62.83 / 9 + 1) / 62.83, rel=0.02
    )
    assert covered_fraction(circle, np.empty((0, 3)), 2.0) == 0


def test_the_stains_are_taken_apart_exactly_where_they_were_mixed_exactly() -> None:
    amounts = np.random.default_rng(0).uniform(0, 0.6, (20, 20, 2))
    iron, red = IRON / np.linalg.norm(IRON), FAST_RED / np.linalg.norm(FAST_RED)
    density = amounts[..., :1] * iron + amounts[..., 1:] * red
    blue, pink = unmix(density, iron, red)
    assert np.allclose(blue, amounts[..., 0], atol=1e-6)
    assert np.allclose(pink, amounts[..., 1], atol=1e-6)
    patch = perls_cell([])
    assert np.allclose(glass_colour(patch), GLASS, atol=3)
    assert abs(float(np.median(optical_density(patch, glass_colour(patch))[:20, :20]))) < 0.01


def test_the_drawing_marks_outline_and_granules_without_touching_the_patch(reader: SideroblastReader) -> None:
    patch = perls_cell(RING)
    before = patch.copy()
    picture = draw_reading(patch, reader.read(patch[None], PX)[0])
    assert np.array_equal(patch, before)
    assert picture.shape == patch.shape
    changed = (picture != patch).any(axis=2)
    assert 100 < changed.sum() < 6000
    assert RuleReader.name == "rule"


def test_phantom_erythroblasts_with_nuisances_are_read_as_their_type(reader: SideroblastReader) -> None:
    from phantoms.patches import marrow_patch

    rng = np.random.default_rng(20261121)
    drawn = [
        marrow_patch(rng, kind, "Perls", size_px=224, nuisances=0.5) for kind in (0, 1, 3) for _ in range(3)
    ]
    found = reader.read(np.stack([p.image for p in drawn]), PX)
    right = [f.type == str(p.truth["rs_type"]) for f, p in zip(found, drawn, strict=True)]
    assert sum(right) >= 8
    # What counts for the percentage is the ring, yes or no.
    assert [f.type == "3" for f in found] == [p.truth["rs_type"] == 3 for p in drawn]


def jittered(
    image: np.ndarray, density_gain: float, hue: float, light: tuple[float, float, float]
) -> np.ndarray:
    """Another laboratory's picture of the same field: more or less stain, turned hues, another lamp."""
    density = -np.log10(np.maximum(image, 1) / GLASS)
    turned = np.eye(3) * (1 - abs(hue)) + np.roll(np.eye(3), 1 if hue > 0 else -1, axis=1) * abs(hue)
    return np.clip(np.array(light) * 10 ** -(density @ turned * density_gain), 0, 255).astype(np.uint8)


OTHER_LABORATORIES = {
    "pale": (0.65, 0.0, (244, 242, 240)),
    "strong": (1.5, 0.0, (244, 242, 240)),
    "yellow lamp": (1.0, 0.0, (250, 236, 205)),
    "dim lamp": (1.0, 0.0, (180, 178, 176)),
    "towards violet": (1.0, 0.1, (244, 242, 240)),
    "towards green": (1.0, -0.1, (244, 242, 240)),
}


@pytest.mark.parametrize("name", OTHER_LABORATORIES)
def test_another_stain_strength_hue_or_lamp_does_not_change_the_type(
    reader: SideroblastReader, name: str
) -> None:
    patches = np.stack([jittered(perls_cell(s), *OTHER_LABORATORIES[name]) for s, _ in CASES.values()])
    assert [r.type for r in reader.read(patches, PX)] == [t for _, t in CASES.values()]


@pytest.mark.real
def test_the_blue_of_real_prussian_blue_grows_with_its_grade(real_data: Path) -> None:
    grades: dict[int, list[float]] = {}
    with (real_data / "iron" / "labels.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            image = cv2.imread(str(real_data / "iron" / row["file"]))[..., ::-1]
            density = optical_density(image, glass_colour(image))
            blue, _ = unmix(density, *stain_directions(density))
            quarter = [n // 4 for n in blue.shape]  # the graded cell fills the middle
            middle = blue[quarter[0] : -quarter[0], quarter[1] : -quarter[1]]
            grades.setdefault(int(row["iron_grade_0_4"]), []).append(float(middle.mean()))
    medians = [float(np.median(grades[g])) for g in (0, 1, 2, 3)]
    assert all(later > 1.5 * earlier + 0.01 for earlier, later in itertools.pairwise(medians)), medians
    assert medians[0] < 0.02  # what holds no iron is not blue
    values = np.concatenate([grades[g] for g in sorted(grades)])
    order = np.concatenate([[g] * len(grades[g]) for g in sorted(grades)])
    assert spearmanr(order, values).statistic > 0.85
