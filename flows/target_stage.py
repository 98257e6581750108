"""The stage that finds which stain to paint a case's DIC cells in, where the settings name none.

It takes the one that the classifier of virtual cells is surest of (`stainers.surest_target`).
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


def sample(found: tuple[Cell, ...], min_seen: float) -> list[int]:
    """Rows of the cells to try the targets on: spread evenly over those that DIC shows whole enough."""
    from stainers.surest_target import spread

    rows = [i for i, c in enumerate(found) if c.modality == "dic" and c.seen >= min_seen]
    return [rows[i] for i in spread(len(rows))]


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
    from stainers.surest_target import confidence_by_target
    from storage.case_store import CaseStore
    from storage.store import Store

    stainer: Any = work.model("stainer", settings.staining.dic_stainer)
    classifier = work.model("classifier", str(settings.classification.virtual_classifier))
    store = CaseStore(Store(store_url), case_id)
    name = f"patches/{settings.staining.size_px}/dic"
    dic = np.concatenate([store.read_rows(name, row, row + 1) for row in rows])
    shear = cell_work.shear_by_field(case_dir, stainer, cells, images, settings)
    angles = [shear[c.slide, c.field] for c in cells] if shear else None

    sure = confidence_by_target(stainer, classifier, dic, settings.patches.pixel_size_um, angles)
    return {"target": max(sure, key=lambda look: sure[look]), "confidence": sure, "n_cells": len(rows)}
