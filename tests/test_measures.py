"""Measures of a cell reach cells.parquet, in micrometres, through the worker that a run uses."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from detectors.base import CYTOPLASM, NUCLEUS
from flows.cell_work import classify_unit
from flows.units import plan
from phantoms.patches import marrow_patch
from pipeline.report_cells import cells_table, parquet_bytes
from pipeline.segmentation import measure_cells, rounded_measures
from pipeline.settings import Settings
from pipeline.types import CellClass, CellMeasures
from storage.case_store import CaseStore
from storage.store import Store
from tests.report_cases import cells_of

SIZE = 256


@pytest.fixture(scope="module")
def phantoms():
    """Two phantom erythroblasts whose outlines are known."""
    return [
        marrow_patch(
            np.random.default_rng(seed), 0, "MGG", size_px=SIZE, nuisances=0.0, neighbours=False, stage=stage
        )
        for seed, stage in ((2, "erythroblast_orthochromatic"), (2, "erythroblast_polychromatic"))
    ]


def test_the_table_has_the_size_of_a_phantom_that_is_known(phantoms, tmp_path):
    settings = Settings()
    cells, _ = cells_of({"erythroblast": len(phantoms)})
    store = CaseStore(Store(str(tmp_path)), "P")
    block = np.stack([p.image for p in phantoms])
    name, ids = f"patches/{SIZE}/brightfield", [c.cell_id for c in cells]
    store.ensure_array(name, block.shape, settings.patches, "mark", ids)
    store.write_unit(name, 0, 0, block, len(cells), "mark", settings.patches)
    (unit,) = plan(str(tmp_path), "P", cells, settings)
    found = classify_unit(unit)
    classes = tuple(CellClass.model_validate(c) for c in found["classes"])
    table = pd.read_parquet(io.BytesIO(parquet_bytes(cells_table(cells, classes)))).set_index("cell_id")
    for cell, phantom in zip(cells, phantoms, strict=True):
        row = table.loc[cell.cell_id]
        truth = phantom.own_labels
        area = float((truth >= CYTOPLASM).sum()) * settings.patches.pixel_size_um**2
        nucleus = float((truth == NUCLEUS).sum()) * settings.patches.pixel_size_um**2
        assert row["area_um2"] == pytest.approx(area, rel=0.08)
        assert row["nucleus_area_um2"] == pytest.approx(nucleus, rel=0.12)
        assert row["cytoplasm_area_um2"] == pytest.approx(row["area_um2"] - row["nucleus_area_um2"], abs=0.01)
        assert row["nc_ratio"] == pytest.approx(nucleus / area, abs=0.06)
        assert row["lobes"] == 1
        assert row["eccentricity"] < 0.75
        round_um = 2 * np.sqrt(np.pi * area)
        assert round_um * 0.9 < row["perimeter_um"] < round_um * 1.3
        # Nuclei take more red light away than cytoplasm in every Romanowsky stain.
        assert row["od_nucleus_red"] > row["od_cytoplasm_red"] >= 0
        assert not row["cut_by_patch"]
    assert table["lobes"].dtype == "Int64"


def test_a_cell_without_measures_has_nulls_of_the_same_types():
    cells, classes = cells_of({"neutrophil": 2})
    table = cells_table(cells, (classes[0].model_copy(update={"od_nucleus": (0.5, 0.6, 0.4)}),))
    assert table["od_nucleus_green"].tolist()[0] == pytest.approx(0.6)
    assert table["od_nucleus_green"].isna().tolist() == [False, True]
    assert table["area_um2"].isna().all()
    assert str(table["perimeter_um"].dtype) == "Float64"
    assert str(table["cut_by_patch"].dtype) == "boolean"


def test_every_measure_has_a_column():
    table = cells_table(*cells_of({"neutrophil": 1}))
    for name in CellMeasures.model_fields:
        expected = [f"{name}_{c}" for c in ("red", "green", "blue")] if name.startswith("od_") else [name]
        assert set(expected) <= set(table.columns), name


def test_an_ellipse_has_the_eccentricity_and_perimeter_of_geometry():
    y, x = np.mgrid[:200, :200] - 99.5
    labels = np.where((x / 80) ** 2 + (y / 40) ** 2 <= 1, CYTOPLASM, 0).astype(np.uint8)
    labels[(x / 40) ** 2 + (y / 20) ** 2 <= 1] = NUCLEUS
    measured = measure_cells(labels[None], np.full((1, 200, 200, 3), 240, np.uint8), 0.1)[0]
    assert measured.eccentricity == pytest.approx(np.sqrt(1 - 0.25), abs=0.01)
    assert measured.nucleus_eccentricity == pytest.approx(np.sqrt(1 - 0.25), abs=0.01)
    assert measured.nc_ratio == pytest.approx(0.25, abs=0.01)
    a, b = 8.0, 4.0
    ramanujan = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))
    assert measured.perimeter_um == pytest.approx(ramanujan, rel=0.02)
    assert 0.96 < measured.nucleus_solidity <= 1


def test_records_hold_plain_rounded_values():
    plain = rounded_measures(CellMeasures(area_um2=1 / 3, lobes=2, od_nucleus=(0.123456, 1.0, 2.0)))
    assert plain["area_um2"] == 0.3333
    assert plain["lobes"] == 2
    assert plain["od_nucleus"] == (0.1235, 1.0, 2.0)
    assert plain["nc_ratio"] is None
