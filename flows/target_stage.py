"""The stage that finds which stain to paint a case's DIC cells in, where the settings name none.

A stainer paints each laboratory's look as a target of its own.  Towards the look that a case would really
have its cells are painted most like what the classifier of virtual cells has learned, so it is surest of
them (docs/virtual-naming.md has how often that finds the right one).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flows import cell_work, work
from flows.naming import made_for, painting_settings
from flows.records import CaseRun, Item
from flows.stages import VERSIONS, model_sha
from flows.unit_stages import dic_images, need_all
from pipeline.settings import Settings
from pipeline.types import Case, Cell, FieldImage, PaintedTarget
from storage.fingerprint import fingerprint

STAGE = "target"
LEAST, MOST = 20, 60  # cells: fewer say too little, more say hardly more


def sample(found: tuple[Cell, ...], min_seen: float) -> list[int]:
    """Rows of the cells to try the targets on: spread evenly over those that DIC shows whole enough."""
    rows = [i for i, c in enumerate(found) if c.modality == "dic" and c.seen >= min_seen]
    if len(rows) < LEAST:
        return []
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)]


def target(run: CaseRun, case: Case, found: tuple[Cell, ...], patches_mark: str) -> PaintedTarget | None:
    """The target by which the classifier of virtual cells is surest, or None.

    None where the settings name a target, where no classifier was made for the stainer's pictures, and where
    too few cells have to be painted.
    """
    settings = run.settings
    rows = sample(found, settings.classification.min_seen)
    namer = settings.classification.virtual_classifier
    if (
        settings.staining.target is not None
        or namer is None
        or not rows
        or made_for(namer, settings.staining.dic_stainer) is not True
    ):
        run.retire(STAGE, set())
        return None
    cells = [found[i] for i in rows]
    mark = fingerprint(
        STAGE,
        VERSIONS[STAGE],
        patches_mark,
        rows,
        painting_settings(settings.staining),
        model_sha("stainer", settings.staining.dic_stainer),
        model_sha("classifier", namer),
    )
    item = Item(
        key="case",
        fingerprint=mark,
        function=try_targets,
        args=(str(run.case_dir), run.store.url, run.case_id, rows, cells, dic_images(case, cells), settings),
        gpu=True,
    )
    outcomes = run.run_items(STAGE, [item])
    need_all(run, STAGE, outcomes)
    return PaintedTarget.model_validate(outcomes[item.key].output)


def try_targets(
    case_dir: str,
    store_url: str,
    case_id: str,
    rows: list[int],
    cells: list[Cell],
    images: list[FieldImage],
    settings: Settings,
) -> dict[str, Any]:
    """On a worker: how sure the classifier is, on the mean of these cells, of each target's pictures."""
    from stainers.virtual_cells import Painter
    from storage.case_store import CaseStore
    from storage.store import Store

    stainer: Any = work.model("stainer", settings.staining.dic_stainer)
    classifier = work.model("classifier", str(settings.classification.virtual_classifier))
    store = CaseStore(Store(store_url), case_id)
    name = f"patches/{settings.staining.size_px}/dic"
    dic = np.concatenate([store.read_rows(name, row, row + 1) for row in rows])
    shear = cell_work.shear_by_field(case_dir, stainer, cells, images, settings)
    angles = [shear[c.slide, c.field] for c in cells] if shear else None

    def painted(look: str) -> np.ndarray:
        if isinstance(stainer, Painter) and angles is not None:
            each = zip(dic, angles, strict=True)
            return np.stack([stainer.paint(patch, look, shear_angle_deg=angle) for patch, angle in each])
        known = {} if angles is None else {"shear_angle_deg": angles}
        return np.asarray(stainer.stain(dic, look, **known).image)

    sure: dict[str, float] = {}
    for look in stainer.targets:
        probabilities = classifier.classify(painted(look), settings.patches.pixel_size_um).probabilities
        sure[look] = round(float(probabilities.max(axis=1).mean()), 4)
    return {"target": max(sure, key=lambda look: sure[look]), "confidence": sure, "n_cells": len(rows)}
