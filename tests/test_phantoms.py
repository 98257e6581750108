"""Phantom blood: the truth is exact, and everything follows from the seed."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phantoms.blood import CYTOPLASM, NUCLEUS, RECIPES, TrueCell, draw, random_diameter
from phantoms.cases import simulate_case
from phantoms.fields import NORMAL_BLOOD, lay_fields, populate, render_field, share_out
from phantoms.geometry import transform_points
from phantoms.stains import DOMAINS, develop, random_style
from pipeline.errors import BadInput

SMALL: dict[str, Any] = {"n_fields": 2, "width_px": 512, "height_px": 384, "n_leukocytes_per_field": 5}


def read_truth(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "truth.json").read_text())


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_case(
        tmp_path_factory.mktemp("cases") / "P1", case_id="P1", seed=11, write_masks=True, **SMALL
    )


def cell(kind: str, seed: int = 5, at: tuple[float, float] = (50.03, 60.07)) -> TrueCell:
    name, stage = kind, None
    if kind.startswith("erythroblast_"):
        name, stage = "erythroblast", kind.split("_", 1)[1]
    return TrueCell(0, name, *at, seed, random_diameter(kind, np.random.default_rng(seed)), stage)


def test_the_manifest_has_the_columns_of_a_case_and_names_files_that_exist(case: Path) -> None:
    with (case / "manifest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["slide", "field", "modality", "stain", "file", "pixel_size_um", "x_um", "y_um"]
    assert [(r["field"], r["modality"], r["stain"]) for r in rows] == [
        ("F001", "brightfield", "MGG"),
        ("F001", "dic", "unstained"),
        ("F002", "brightfield", "MGG"),
        ("F002", "dic", "unstained"),
    ]
    assert all((case / r["file"]).is_file() for r in rows)
    assert {r["pixel_size_um"] for r in rows} == {"0.1"}
    assert "specimen: blood" in (case / "case.yaml").read_text()


def test_images_have_the_stated_size_depth_and_resolution(case: Path) -> None:
    with tifffile.TiffFile(case / "F001_BF.tif") as tiff:
        page = tiff.pages[0]
        assert page.shape == (384, 512, 3)
        assert page.dtype == np.uint8
        assert page.tags["XResolution"].value == (100_000, 1)
        assert page.tags["ResolutionUnit"].value == 3
    dic = tifffile.imread(case / "F001_DIC.tif")
    assert dic.shape == (384, 512)
    assert dic.std() > 3


def test_the_truth_has_the_keys_of_the_real_cases(case: Path) -> None:
    truth = read_truth(case)
    assert {"case", "stain_domain", "pixel_size_um", "fields"} <= set(truth)
    field = truth["fields"]["F001"]
    assert {"leukocytes_xyxy", "brightfield_to_dic"} <= set(field)
    assert np.asarray(field["brightfield_to_dic"]).shape == (2, 3)
    assert truth["phantom"] is True


def test_boxes_are_the_tight_boxes_of_the_masks(case: Path) -> None:
    for name, field in read_truth(case)["fields"].items():
        labels = cv2.imread(str(case / "truth" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        white = labels >= CYTOPLASM
        covered = np.zeros_like(white)
        for x0, y0, x1, y1 in np.asarray(field["leukocytes_xyxy"]).astype(int):
            part = white[y0:y1, x0:x1]
            assert part[0].any()
            assert part[-1].any()
            assert part[:, 0].any()
            assert part[:, -1].any()
            covered[y0:y1, x0:x1] = True
        assert not (white & ~covered).any()


def test_counts_are_those_asked_for(tmp_path: Path) -> None:
    mix = {"lymphocyte": 0.5, "eosinophil": 0.3, "smudge": 0.2}
    folder = simulate_case(
        tmp_path / "c", case_id="c", seed=1, composition=mix, modalities=("brightfield",), **SMALL
    )
    truth = read_truth(folder)
    assert truth["counts"] == {"eosinophil": 3, "lymphocyte": 5, "smudge": 2}
    listed = Counter(c for f in truth["fields"].values() for c in f["classes"])
    assert listed == Counter(truth["counts"])


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    small = {**SMALL, "n_fields": 1, "width_px": 320, "height_px": 256, "n_leukocytes_per_field": 2}
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        simulate_case(tmp_path / name, case_id="x", seed=seed, **small)
    for file in ("F001_BF.tif", "F001_DIC.tif", "truth.json", "manifest.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a/F001_BF.tif").read_bytes() != (tmp_path / "c/F001_BF.tif").read_bytes()


def test_the_matrix_takes_a_cell_of_the_brightfield_to_the_same_cell_in_the_dic(case: Path) -> None:
    # the relief of the DIC is strong at the outline of a cell and absent on the glass beside it
    truth = read_truth(case)
    for name, field in truth["fields"].items():
        dic = tifffile.imread(case / f"{name}_DIC.tif").astype(float)
        relief = cv2.blur(np.abs(dic - np.median(dic)), (9, 9))
        labels = cv2.imread(str(case / "truth" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        distance = cv2.distanceTransform((labels == 0).astype(np.uint8), cv2.DIST_L2, 3)
        inner = cv2.distanceTransform((labels > 0).astype(np.uint8), cv2.DIST_L2, 3)
        rim, glass = np.argwhere((inner > 1) & (inner < 5)), np.argwhere(distance > 8)

        def strength(points: np.ndarray, at: Any, relief: np.ndarray = relief) -> float:
            xy = np.round(transform_points(at, points[:, ::-1])).astype(int)
            keep = (xy >= 5).all(axis=1) & (xy[:, 0] < 507) & (xy[:, 1] < 379)
            return float(relief[xy[keep, 1], xy[keep, 0]].mean())

        right = np.asarray(field["brightfield_to_dic"])
        wrong = right + np.array([[0, 0, 25], [0, 0, -18]])
        assert strength(rim, right) > 1.6 * strength(glass, right)
        assert strength(glass, right) < 0.8 * strength(glass, wrong)


def test_a_cell_in_the_overlap_of_two_fields_is_one_cell_at_one_place(tmp_path: Path) -> None:
    folder = simulate_case(
        tmp_path / "o",
        case_id="o",
        seed=3,
        n_fields=2,
        width_px=512,
        height_px=384,
        n_leukocytes_per_field=7,
        overlap_um=30,
        modalities=("brightfield",),
        composition={"lymphocyte": 1},
    )
    truth = read_truth(folder)
    assert len(truth["cells"]) == 14
    twice = [c for c in truth["cells"] if len(c["seen_in"]) == 2]
    assert twice
    places: dict[int, list[tuple[float, float, float, float]]] = {}
    for field in truth["fields"].values():
        for number, box, seen in zip(
            field["cell_ids"], field["leukocytes_xyxy"], field["visible"], strict=True
        ):
            if seen == 1.0:
                x, y = field["x_um"], field["y_um"]
                um = (x + box[0] / 10, y + box[1] / 10, x + box[2] / 10, y + box[3] / 10)
                places.setdefault(number, []).append(um)
    both = [p for p in places.values() if len(p) == 2]
    assert both
    assert all(np.allclose(a, b, atol=1e-6) for a, b in both)
    # and the pixels of the shared strip are the same cells
    a, b = (tifffile.imread(folder / f"F00{i}_BF.tif").astype(float) for i in (1, 2))
    strip = np.corrcoef(a[:, -300:].ravel(), b[:, :300].ravel())[0, 1]
    assert strip > 0.97


def test_a_cell_cut_by_the_edge_is_listed_by_what_is_seen_of_it(tmp_path: Path) -> None:
    folder = simulate_case(
        tmp_path / "e",
        case_id="e",
        seed=2,
        n_fields=4,
        width_px=300,
        height_px=300,
        n_leukocytes_per_field=4,
        cut_cells=True,
        modalities=("brightfield",),
    )
    fields = read_truth(folder)["fields"].values()
    shares = [v for f in fields for v in f["visible"]]
    assert min(shares) >= 0.5
    assert min(shares) < 1
    for f in fields:
        for x0, y0, x1, y1 in f["leukocytes_xyxy"] + f["cut_xyxy"]:
            assert 0 <= x0 < x1 <= 300
            assert 0 <= y0 < y1 <= 300


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_every_class_has_a_nucleus_inside_its_cell_and_a_plausible_size(kind: str) -> None:
    layers = draw(cell(kind), 0.1)
    x0, _, x1, _ = layers.box()
    low, high = RECIPES[kind].diameter_um
    diameter = 2 * np.sqrt((layers.labels > 0).sum() / np.pi) * 0.1
    assert 0.6 * low < diameter < 1.3 * high
    nucleus = layers.labels == NUCLEUS
    assert 0.08 < nucleus.sum() / (layers.labels > 0).sum() <= 1
    if kind != "smudge":
        grown = cv2.dilate(nucleus.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert (layers.labels[grown] > 0).all()
    assert (x1 - x0) * 0.1 < 1.5 * high
    assert np.isfinite(layers.path).all()
    assert layers.path.max() > 0.3


def test_a_cell_is_the_same_wherever_the_field_begins() -> None:
    drawn = cell("neutrophil_segmented")
    style = DOMAINS["B"]
    views = lay_fields(1, 400, 400, 0.1)
    a = render_field([drawn], views[0].__class__("a", 300, 400, 400, 400), 0.1, style)
    b = render_field([drawn], views[0].__class__("b", 337, 455, 400, 400), 0.1, style)
    assert a.labels.any()
    assert np.array_equal(a.labels[55:, 37:], b.labels[:-55, :-37])
    assert np.allclose(a.density[55:, 37:], b.density[:-55, :-37], atol=1e-5)


def test_a_pixel_half_as_large_shows_the_same_cell_twice_as_large() -> None:
    coarse, fine = (int((draw(cell("lymphocyte"), p).labels > 0).sum()) for p in (0.2, 0.1))
    assert abs(fine / coarse - 4) < 0.1


def test_the_chromatin_of_a_lymphocyte_is_smoother_in_dic_than_that_of_a_myelocyte() -> None:
    def roughness(kind: str) -> float:
        found = []
        for seed in range(8):
            layers = draw(cell(kind, seed), 0.1)
            inside = cv2.erode((layers.labels == NUCLEUS).astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
            fine = layers.path - cv2.GaussianBlur(layers.path, (0, 0), 8)
            found.append(float(fine[inside].std()))
        return float(np.median(found))

    assert roughness("lymphocyte") < 0.6 * roughness("myelocyte")


def test_a_red_cell_is_thinner_in_the_middle() -> None:
    middles = []
    for seed in range(20):
        layers = draw(cell("red_cell", seed), 0.1)
        inside = layers.labels > 0
        r = np.hypot(layers.grid.x, layers.grid.y)
        middles.append(layers.path[r < 0.5].mean() / layers.path[inside & (r > 2.2) & (r < 2.8)].mean())
    assert np.mean(middles) < 0.8


def test_the_optical_path_is_the_cell_s_own_and_not_the_stain_s() -> None:
    drawn = cell("monocyte")
    view = lay_fields(1, 400, 400, 0.1)[0].__class__("a", 300, 400, 400, 400)
    a, b = (render_field([drawn], view, 0.1, DOMAINS[d]) for d in ("A", "C"))
    assert np.array_equal(a.path, b.path)
    assert not np.allclose(a.density, b.density)


def test_nuclei_are_darker_than_red_cells_and_these_than_glass_in_every_style() -> None:
    views = lay_fields(1, 400, 350, 0.1)
    rng = np.random.default_rng(0)
    cells = populate(views, 0.1, rng, composition=NORMAL_BLOOD, n_leukocytes=2)
    for style in [*DOMAINS.values(), *(random_style(np.random.default_rng(s)) for s in range(3))]:
        layers = render_field(cells, views[0], 0.1, style)
        green = develop(layers.density, 0.1, style, rng)[..., 1]
        glass, red, nucleus = (float(green[layers.labels == v].mean()) for v in (0, 1, 3))
        assert nucleus < red - 25
        assert red < glass - 12


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(170, 333), st.integers(170, 333), st.integers(0, 10_000))
def test_fields_of_odd_sizes_keep_their_truth(width: int, height: int, seed: int) -> None:
    views = lay_fields(1, width, height, 0.1)
    rng = np.random.default_rng(seed)
    cells = populate(views, 0.1, rng, composition={"lymphocyte": 1}, n_leukocytes=1, red_cell_cover=0.1)
    layers = render_field(cells, views[0], 0.1, DOMAINS["A"], margin_px=7)
    assert layers.labels.shape == (height, width)
    assert layers.inner(layers.density).shape == (height, width, 3)
    (_, box, share, _), *others = layers.seen
    assert not others
    rows, cols = np.nonzero(layers.labels >= CYTOPLASM)
    assert box == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    assert share > 0.9


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 400),
    st.lists(st.floats(0.001, 1), min_size=1, max_size=8),
)
def test_shares_add_to_the_number_asked_for(n: int, shares: list[float]) -> None:
    named = dict(zip(sorted(RECIPES), shares, strict=False))
    counts = share_out(n, named)
    total = sum(named.values())
    assert sum(counts.values()) == n
    assert all(abs(counts[k] - n * v / total) < 1 for k, v in named.items())


@pytest.mark.parametrize(("format", "bits"), [("png", 16), ("jpeg", 8), ("ome-tiff", 16)])
def test_other_formats_hold_the_same_field(tmp_path: Path, format: Any, bits: int) -> None:
    small = {"n_fields": 1, "width_px": 256, "height_px": 256, "n_leukocytes_per_field": 1}
    folder = simulate_case(tmp_path / "f", case_id="f", seed=1, format=format, bits=bits, **small)
    plain = simulate_case(tmp_path / "p", case_id="f", seed=1, **small)
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    read = tifffile.imread if format == "ome-tiff" else lambda p: cv2.imread(str(p), cv2.IMREAD_UNCHANGED)
    image = read(folder / rows[0]["file"])
    assert image.dtype == (np.uint16 if bits == 16 else np.uint8)
    if format != "ome-tiff":
        image = image[..., ::-1]
    reference = tifffile.imread(plain / "F001_BF.tif").astype(float)
    assert np.abs(image / (257 if bits == 16 else 1) - reference).mean() < 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"modalities": ("brightfield", "fluorescence")}, "fluorescence"),
        ({"specimen": "liver"}, "liver"),
        ({"bits": 12}, "12"),
        ({"perls": True}, "marrow"),
        ({"rs_fraction": 0.2}, "marrow"),
        ({"n_leukocytes_per_field": 900}, "do not fit"),
        ({"composition": {"unicorn": 1.0}}, "unicorn"),
        ({"style": "Z"}, "A, B, C"),
        ({"overlap_um": 90.0}, "overlap"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_sentence(
    tmp_path: Path, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        simulate_case(tmp_path / "w", case_id="w", seed=0, **{**SMALL, **wrong})
