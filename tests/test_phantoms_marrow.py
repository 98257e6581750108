"""Phantom marrow: iron by the consensus rule, and a look in MGG that can be turned off."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantoms.blood import CYTOPLASM, NUCLEUS, TrueCell
from phantoms.cases import simulate_case
from phantoms.iron import arc_covered, type_of
from phantoms.marrow import assign_types, marrow_drawer
from phantoms.patches import STAGES, MarrowPatch, marrow_pair, marrow_patch
from pipeline.errors import BadInput


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_case(
        tmp_path_factory.mktemp("cases") / "M1",
        case_id="M1",
        seed=7,
        n_fields=2,
        width_px=700,
        height_px=600,
        n_leukocytes_per_field=10,
        specimen="bone_marrow",
        composition={"erythroblast_polychromatic": 0.5, "erythroblast_orthochromatic": 0.3, "myelocyte": 0.2},
        perls=True,
        rs_fraction=0.25,
        modalities=("brightfield",),
        write_masks=True,
    )


def erythroblasts(n: int, seed: int = 0) -> list[TrueCell]:
    rng = np.random.default_rng(seed)
    stages = list(STAGES)
    out = []
    for i in range(n):
        kind = stages[i % len(stages)]
        name, stage = (
            (kind, None)
            if kind == "proerythroblast"
            else ("erythroblast", kind.removeprefix("erythroblast_"))
        )
        size = {"proerythroblast": 16.0, "basophilic": 13.5, "polychromatic": 11.5}.get(stage or kind, 9.5)
        out.append(TrueCell(i, name, 30.0, 30.0, int(rng.integers(2**62)), size, stage))
    return out


def reread(patch: MarrowPatch, pixel_size_um: float = 0.1) -> int:
    """The type by the rule, from the nucleus's mask and the granules' positions alone."""
    granules = np.asarray(patch.truth["granules_px"], dtype=float).reshape(-1, 3)
    if len(granules) < 5:
        return 0 if len(granules) == 0 else 1
    nucleus = (patch.own_labels == NUCLEUS).astype(np.uint8)
    outside = cv2.distanceTransform(1 - nucleus, cv2.DIST_L2, 5) * pixel_size_um
    size = nucleus.shape[0]
    at = np.clip(np.round(granules[:, :2]).astype(int), 0, size - 1)
    near = granules[outside[at[:, 1], at[:, 0]] <= 0.95]
    if len(near) < 5:
        return 2
    rows, cols = np.nonzero(nucleus)
    cy, cx = rows.mean(), cols.mean()
    radius = np.sqrt(nucleus.sum() / np.pi)
    angles = np.sort(np.arctan2(near[:, 1] - cy, near[:, 0] - cx))
    gaps = np.diff(np.append(angles, angles[0] + 2 * np.pi)) * radius * pixel_size_um
    width = 2 * near[:, 2].mean() * pixel_size_um
    covered = sum(g for g in gaps if g <= 1.5 + width) + width * (1 + sum(g > 1.5 + width for g in gaps[:-1]))
    return 3 if covered / (2 * np.pi * radius * pixel_size_um) >= 1 / 3 else 2


@pytest.mark.parametrize("rs_type", [0, 1, 2, 3])
def test_drawn_granules_are_the_type_by_a_second_reading_of_the_rule(rs_type: int) -> None:
    rng = np.random.default_rng(100 + rs_type)
    for stage in STAGES:
        for _ in range(4):
            patch = marrow_patch(
                rng, rs_type, "Perls", stage=stage, neighbours=False, nuisances=0, size_px=220
            )
            assert patch.truth["rs_type"] == rs_type
            assert reread(patch) == rs_type
            counts = (patch.truth["n_granules"], patch.truth["n_perinuclear"], patch.truth["arc_fraction"])
            assert type_of(*counts) == rs_type


def test_granules_lie_in_the_cytoplasm_and_are_blue() -> None:
    rng = np.random.default_rng(1)
    for _ in range(6):
        patch = marrow_patch(rng, 3, "Perls", neighbours=False, nuisances=0, size_px=200)
        spots = np.asarray(patch.truth["granules_px"])
        x, y = np.round(spots[:, 0]).astype(int), np.round(spots[:, 1]).astype(int)
        assert (patch.own_labels[y, x] == CYTOPLASM).mean() > 0.9
        red, _, blue = patch.image[y, x].astype(float).mean(axis=0)
        plain = patch.image[patch.own_labels == CYTOPLASM].astype(float)
        assert blue > red + 20
        assert red < np.median(plain[:, 0]) - 40


def test_nuclei_are_pink_in_perls_and_purple_in_mgg() -> None:
    mgg, perls = marrow_pair(np.random.default_rng(3), 0, neighbours=False, nuisances=0, size_px=200)
    assert np.array_equal(mgg.own_labels, perls.own_labels)
    r, g, b = perls.image[perls.own_labels == NUCLEUS].mean(axis=0)
    assert r > b > g
    assert mgg.image[mgg.own_labels == NUCLEUS].mean() < perls.image[perls.own_labels == NUCLEUS].mean() - 20


@pytest.mark.parametrize(
    ("n", "near", "arc", "expected"),
    [
        (0, 0, 0.0, 0),
        (1, 1, 0.1, 1),
        (4, 4, 0.9, 1),
        (5, 0, 0.0, 2),
        (9, 4, 0.5, 2),
        (9, 9, 0.33, 2),
        (5, 5, 1 / 3, 3),
        (12, 8, 0.8, 3),
    ],
)
def test_the_rule_has_the_limits_of_the_definition(n: int, near: int, arc: float, expected: int) -> None:
    assert type_of(n, near, arc) == expected


def test_the_arc_is_measured_along_the_nucleus() -> None:
    edge, radii = np.full(180, 3.0), np.full(6, 0.25)
    ring = np.deg2rad(np.arange(0, 360, 20))
    half = np.deg2rad(np.arange(0, 120, 20))
    apart = np.deg2rad(np.arange(0, 360, 60))

    def at(angles: np.ndarray, r: float = 3.3) -> np.ndarray:
        return np.stack([r * np.cos(angles), r * np.sin(angles)], axis=1)

    assert arc_covered(at(ring), np.full(18, 0.25), np.zeros(2), edge) > 0.99
    assert abs(arc_covered(at(half), radii, np.zeros(2), edge) - (100 + 9.5) / 360) < 0.02
    assert abs(arc_covered(at(apart), radii, np.zeros(2), edge) - 6 * 9.5 / 360) < 0.03
    assert arc_covered(np.zeros((0, 2)), np.zeros(0), np.zeros(2), edge) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 999))
def test_the_share_of_ring_sideroblasts_is_the_one_asked_for(n: int, share: float, seed: int) -> None:
    typed = assign_types(erythroblasts(n), np.random.default_rng(seed), share)
    types = [c.rs_type for c in typed]
    assert abs(types.count(3) - share * n) <= 0.5 + 1e-9
    assert None not in types


def test_a_share_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(BadInput, match="between 0 and 1"):
        assign_types(erythroblasts(3), np.random.default_rng(0), 1.2)


def test_without_a_correlate_mgg_says_nothing_about_iron() -> None:
    draw_it = marrow_drawer("MGG", 0.0)
    for cell in erythroblasts(4):
        drawn = [draw_it(TrueCell(**{**cell.__dict__, "rs_type": t}), 0.1) for t in (0, 1, 2, 3)]
        for other in drawn[1:]:
            for dye in drawn[0].dyes:
                assert np.array_equal(drawn[0].dyes[dye], other.dyes[dye])
            assert np.array_equal(drawn[0].path, other.path)


def test_the_correlate_tells_types_apart_as_much_as_its_strength() -> None:
    cells = [c for c in erythroblasts(240, seed=1) if c.stage == "polychromatic"]

    def auc(strength: float) -> float:
        draw_it = marrow_drawer("MGG", strength)
        typed = [TrueCell(**{**c.__dict__, "rs_type": 3 * (i % 2)}) for i, c in enumerate(cells)]
        stipple = np.array([float(draw_it(c, 0.2).dyes["azurophil"].mean()) for c in typed])
        yes, no = stipple[1::2], stipple[::2]
        return float((yes[:, None] > no[None, :]).mean())

    none, half, full = auc(0.0), auc(0.5), auc(1.0)
    assert none < half < full
    assert abs(none - 0.5) < 0.25
    assert full > 0.85


def test_a_case_with_perls_shows_the_same_marrow_on_a_second_slide(case: Path) -> None:
    with (case / "manifest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {(r["slide"], r["stain"]) for r in rows} == {("slide-1", "MGG"), ("slide-2", "Perls")}
    truth = json.loads((case / "truth.json").read_text())
    assert set(truth["fields"]) == {"F001", "F002", "P001", "P002"}
    assert truth["fields"]["F001"]["cell_ids"] == truth["fields"]["P001"]["cell_ids"]
    mgg, perls = (
        cv2.imread(str(case / "truth" / f"{n}.png"), cv2.IMREAD_UNCHANGED) for n in ("F001", "P001")
    )
    assert np.array_equal(mgg, perls)
    assert truth["counts"]["erythroblast"] == 16
    assert truth["sideroblasts"]["type3"] == 4
    assert truth["rs_pct"] == 25.0


def test_the_truth_of_a_perls_field_agrees_with_its_cells(case: Path) -> None:
    truth = json.loads((case / "truth.json").read_text())
    types = {c["id"]: c["rs_type"] for c in truth["cells"] if "rs_type" in c}
    listed: dict[int, Any] = {}
    for field in (truth["fields"][n] for n in ("P001", "P002")):
        boxes = dict(zip(field["cell_ids"], field["leukocytes_xyxy"], strict=True))
        for s in field["sideroblasts"]:
            listed[s["cell_id"]] = s
            x0, y0, x1, y1 = boxes[s["cell_id"]]
            for x, y, _ in s["granules_px"]:
                assert x0 - 1 <= x <= x1
                assert y0 - 1 <= y <= y1
    assert {k: s["rs_type"] for k, s in listed.items()} == types
    for s in listed.values():
        assert type_of(s["n_granules"], s["n_perinuclear"], s["arc_fraction"]) == s["rs_type"]


def test_nuisances_change_the_image_and_not_the_truth() -> None:
    clean, dirty = (
        marrow_patch(np.random.default_rng(5), 2, "Perls", nuisances=n, neighbours=False) for n in (0.0, 1.0)
    )
    assert clean.truth["granules_px"] == dirty.truth["granules_px"]
    assert np.array_equal(clean.own_labels, dirty.own_labels)
    assert not np.array_equal(clean.image, dirty.image)


def test_a_patch_follows_from_its_seed() -> None:
    a, b = (marrow_patch(np.random.default_rng(8), 3, "MGG") for _ in range(2))
    assert np.array_equal(a.image, b.image)
    assert a.image.shape == (128, 128, 3)
    assert a.own_labels[64, 64] > 0
