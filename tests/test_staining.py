"""Promises of the staining stage and of staining whole fields."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.settings import StainingSettings
from stainers.base import Stained
from tests.stainer_scenes import dic_image, dic_patches


class Dyer:
    """A stainer that knows patches alone: a colour for each target, no confidence in dark patches."""

    name, targets, min_confidence = "dyer", ("red", "blue"), 0.3

    def stain(self, patches, target=None):
        image = np.zeros((*patches.shape[:3], 3), np.uint8)
        image[..., self.targets.index(target or "red")] = 200
        confidence = (patches.mean(axis=(1, 2, 3)) / 255).astype(np.float32)
        return Stained(image, np.zeros(patches.shape[:3], np.float32), confidence)


def test_the_stage_returns_patches_with_the_target_and_the_threshold():
    from pipeline.staining import stain_patches

    patches = np.stack([np.full((8, 8, 1), v, np.uint8) for v in (10, 200)])
    made = stain_patches(patches, Dyer(), StainingSettings(target="blue"))
    assert made.target == "blue"
    assert (made.image[..., 1] == 200).all()
    assert made.min_confidence == 0.3
    assert stain_patches(patches, Dyer(), StainingSettings(min_confidence=0.9)).min_confidence == 0.9


def test_the_first_target_is_the_default():
    from pipeline.staining import stain_patches

    assert stain_patches(dic_patches(1), Dyer(), StainingSettings()).target == "red"


def test_a_target_of_the_settings_that_does_not_exist_is_refused():
    from pipeline.staining import stain_patches

    with pytest.raises(BadInput, match="red, blue"):
        stain_patches(dic_patches(1), Dyer(), StainingSettings(target="green"))


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 8, 8)), np.zeros((1, 8, 8, 2), np.uint8), np.zeros((1, 8, 8, 1))]
)
def test_patches_of_another_kind_are_refused(wrong):
    from pipeline.staining import stain_patches

    with pytest.raises(BadInput, match="DIC"):
        stain_patches(wrong, Dyer(), StainingSettings())


def test_a_stainer_of_patches_stains_an_image_as_one_patch():
    from stainers import stain_image

    image, confidence, uncertainty, heat = stain_image(Dyer(), np.full((30, 50), 100, np.uint8), "blue")
    assert image.shape == (30, 50, 3)
    assert confidence == pytest.approx(100 / 255)
    assert uncertainty == 0
    assert heat.shape == (30, 50)


@pytest.fixture(scope="module")
def stainer():
    torch = pytest.importorskip("torch")
    from storage.packages import find_package
    from storage.registry import load

    if find_package("dic-to-mgg") is None:
        pytest.skip("the package dic-to-mgg is not installed")
    torch.set_num_threads(1)
    return load("stainer", "dic-to-mgg")


def test_a_shear_that_is_known_is_used(stainer):
    from pipeline.staining import stain_patches

    patches = dic_patches(2, 96)
    found = [stainer.find_shear_deg(p) for p in patches]
    plain = stain_patches(patches, stainer, StainingSettings())
    told = stain_patches(patches, stainer, StainingSettings(), shear_angle_deg=found)
    np.testing.assert_array_equal(plain.image, told.image)
    wrong = stain_patches(patches, stainer, StainingSettings(), shear_angle_deg=[a + 180 for a in found])
    assert np.abs(wrong.image.astype(int) - plain.image).mean() > 2


def test_a_shear_the_wrong_way_round_costs_confidence(stainer):
    patches = dic_patches(3, 160)
    found = [stainer.find_shear_deg(p) for p in patches]
    right = stainer.stain(patches, shear_angle_deg=found).confidence
    wrong = stainer.stain(patches, shear_angle_deg=[a + 180 for a in found]).confidence
    assert (right - wrong).mean() > 0.1


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(100, 256, 48), (256, 256, 48), (257, 256, 48), (2064, 256, 48)]
)
def test_tiles_cover_a_side_and_overlap(length, tile, overlap):
    from stainers.field import tile_starts

    starts = tile_starts(length, tile, overlap)
    covered = np.zeros(length, int)
    for s in starts:
        covered[s : s + tile] += 1
    assert (covered > 0).all()
    assert starts[-1] + min(tile, length) == length
    assert all(a + tile - b >= overlap for a, b in pairwise(starts))


def test_uneven_light_is_levelled():
    from stainers.levels import level_background

    field = dic_image(500, 600, 20, 1).astype(np.float32)
    light = np.linspace(0.8, 1.2, 600, dtype=np.float32)[None, :]
    flat = level_background(field * light)
    corners = [np.median(flat[:, :150]), np.median(flat[:, -150:])]
    assert abs(corners[0] - corners[1]) < 6


def test_a_field_has_no_seams_at_its_tiles_borders(stainer):
    """Steps across tile borders are no larger than steps elsewhere."""
    from stainers.field import stain_field, tile_starts

    field = dic_image(260, 430, 22, 5)
    stained, uncertainty, confidence = stain_field(stainer, field, tile_px=160, overlap_px=32)
    assert stained.shape == (260, 430, 3)
    assert uncertainty.shape == (260, 430)
    starts = tile_starts(430, 160, 32)
    assert confidence.shape == (len(tile_starts(260, 160, 32)), len(starts))
    steps = np.abs(np.diff(stained.astype(int), axis=1)).mean(axis=(0, 2))  # one figure a column
    borders = [b for s in starts for b in (s - 1, s + 160 - 1) if 0 <= b < 429]
    assert steps[borders].mean() < 1.25 * np.median(steps) + 0.3


def test_a_field_and_its_part_agree_inside(stainer):
    """A tile is stained like the same part of the field with other tiles around it."""
    from stainers.field import stain_field

    field = dic_image(240, 420, 20, 8)
    angle = stainer.find_shear_deg(field)
    a = stain_field(stainer, field, shear_angle_deg=angle, tile_px=160, overlap_px=32)[0]
    b = stain_field(stainer, field, shear_angle_deg=angle, tile_px=192, overlap_px=40)[0]
    assert np.abs(a.astype(int) - b).mean() < 6


@pytest.mark.parametrize("shape", [(401, 9), (1, 700), (33, 420, 1), (30, 30, 3)])
def test_images_of_any_size_are_stained(stainer, shape):
    from stainers import stain_image

    image, confidence, uncertainty, heat = stain_image(stainer, np.full(shape, 120, np.uint8))
    assert image.shape == (*shape[:2], 3)
    assert heat.shape == shape[:2]
    assert 0 <= confidence <= 1
    assert uncertainty >= 0


@pytest.mark.parametrize("shape", [(5,), (4, 4, 2), (0, 4)])
def test_what_is_no_image_is_refused(stainer, shape):
    from stainers import stain_image

    with pytest.raises(BadInput):
        stain_image(stainer, np.zeros(shape, np.uint8))


@pytest.mark.real
def test_real_cells_under_an_optical_model_never_seen_are_stained(stainer, real_data):
    """Computed DIC of another optical model: the leukocytes of a case field against their real stain."""
    import json

    import cv2
    import tifffile

    from stainers.evaluation import image_errors

    folder = real_data / "cases" / "S002"
    truth = json.loads((folder / "truth.json").read_text())["fields"]["F001"]
    dic, real = (tifffile.imread(folder / f"F001_{k}.tif") for k in ("DIC", "BF"))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    dic = cv2.warpAffine(dic, np.asarray(truth["brightfield_to_dic"]), real.shape[1::-1], flags=flags)
    scores = []
    for x0, y0, x1, y1 in truth["leukocytes_xyxy"][8:14]:
        x, y = int((x0 + x1) / 2) - 128, int((y0 + y1) / 2) - 128
        if min(x, y) < 0 or y + 256 > real.shape[0] or x + 256 > real.shape[1]:
            continue
        part = (slice(y, y + 256), slice(x, x + 256))
        stained = stainer.stain(dic[part][None, ..., None], "barcelona").image[0]
        scores.append(image_errors(stained, real[part])["ssim"])
    assert len(scores) >= 3
    assert np.mean(scores) > 0.75


def test_what_is_done_with_a_picture_afterwards_paints_no_cell_again(tmp_path, monkeypatch):
    """The threshold of doubt and the settings of virtual Perls stand in one section with what is painted."""
    from flows import cell_work, unit_stages
    from flows.records import CaseRun
    from pipeline.settings import Settings
    from storage.ledger import Ledger
    from storage.registry import virtual_array
    from storage.store import Store
    from tests.report_cases import a_case, cells_of

    found = tuple(
        c.model_copy(update={"modality": "dic", "stain": "unstained"}) for c in cells_of({"a": 3})[0]
    )
    store = Store(str(tmp_path))

    def stain_unit(case_dir, unit, mark, images):
        for kind, channels in (("image", 3), ("uncertainty", 1)):
            array = virtual_array(unit.settings.staining.dic_stainer, kind)
            unit.write(array, np.ones((len(unit.cells), 256, 256, channels), np.uint8), mark)
        return {"confidence": [0.2, 0.6, 0.9], "stated": 0.5}

    class Here:
        def map(self, function, calls, *, gpu=False):
            yield from ((key, function(*args), None) for key, args in calls.items())

    monkeypatch.setattr(cell_work, "stain_unit", stain_unit)
    ledger = Ledger(store, "K")
    ledger.begin()

    def doubt(**staining):
        run = CaseRun(tmp_path, "K", store, Settings(staining=StainingSettings(**staining)), Here(), ledger)
        _, told = unit_stages.staining(run, a_case(), found, "patches")
        return [enough for _, enough in told.values()], run.computed

    assert doubt() == ([False, True, True], {"staining": 1})
    assert doubt(min_confidence=0.8) == ([False, False, True], {})
    assert doubt(perls_reader="iron-types") == ([False, True, True], {})
    assert doubt(target="bccd")[1] == {"staining": 1}
