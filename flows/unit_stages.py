"""The stages that work on patches: each write unit (whole shards) is one item, owned by one worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flows import cell_work
from flows.naming import namers, naming_settings, painting_settings
from flows.records import CaseRun, Item, Outcome, StageFailed
from flows.stages import VERSIONS, model_sha
from flows.units import CellUnit, units_of
from pipeline.types import Case, Cell, CellClass, FieldImage, PaintedTarget
from storage.fingerprint import fingerprint
from storage.registry import virtual_array

Doubt = dict[str, tuple[float, bool]]  # by cell: the stainer's confidence, and whether it suffices


def _fill(
    run: CaseRun,
    stage: str,
    mark: str,
    arrays: dict[str, tuple[int, int]],
    function: Callable[..., dict[str, Any]],
    images_of: Callable[[list[Cell]], list[FieldImage]],
    found: tuple[Cell, ...],
    units: list[CellUnit],
) -> dict[str, Outcome]:
    """Have the workers write arrays {name: (size, channels)} unit by unit; a torn shard is written again."""
    from storage.case_store import CaseStore

    store = CaseStore(run.store, run.case_id)
    if run.allow_work:
        for name, (size, channels) in arrays.items():
            shape = (len(found), size, size, channels)
            store.ensure_array(name, shape, run.settings.patches, mark, [c.cell_id for c in found])
    items = [
        Item(
            key=unit.key,
            function=function,
            args=(str(run.case_dir), unit, mark, images_of(unit.cells)),
            fingerprint=fingerprint(mark, unit.index),
            gpu=stage == "staining",
        )
        for unit in units
    ]
    groups = all(store.groups_are_whole(n) for n in arrays)
    index_of = {unit.key: unit.index for unit in units}
    outcomes = run.run_items(
        stage,
        items,
        intact=lambda key: groups and all(store.unit_is_intact(n, index_of[key], mark) for n in arrays),
    )
    need_all(run, stage, outcomes)
    return outcomes


def need_all(run: CaseRun, stage: str, outcomes: dict[str, Outcome]) -> None:
    for key, outcome in outcomes.items():
        if outcome.error is not None:
            raise StageFailed(
                f"{run.case_id}: {stage} of {key} failed: {outcome.error_type}: {outcome.error}"
            )


def dic_images(case: Case, some: list[Cell]) -> list[FieldImage]:
    """The DIC images of the fields that these cells are in."""
    fields = {(c.slide, c.field) for c in some}
    return [i for i in case.images if i.modality == "dic" and (i.slide, i.field) in fields]


def patches(run: CaseRun, case: Case, found: tuple[Cell, ...]) -> str:
    """Patches of every cell, size and modality; returns the fingerprint of what the store now holds."""
    from storage.case_store import CaseStore

    mark = fingerprint("patches", VERSIONS["patches"], found, case.images, run.settings.patches)
    arrays = {
        f"patches/{size}/{modality}": (size, 3 if modality == "brightfield" else 1)
        for size in run.settings.patches.sizes_px
        for modality in cell_work.patch_modalities(found)
    }
    if run.allow_work:
        CaseStore(run.store, run.case_id).prune(set(arrays), [c.cell_id for c in found])
    if not found:
        run.retire("patches", set())
        return mark

    def images_of(some: list[Cell]) -> list[FieldImage]:
        fields = {(c.slide, c.field) for c in some}
        return [i for i in case.images if (i.slide, i.field) in fields]

    _fill(run, "patches", mark, arrays, cell_work.cut_unit, images_of, found, units_of(run, found))
    return mark


def staining(
    run: CaseRun,
    case: Case,
    found: tuple[Cell, ...],
    patches_mark: str,
    painted: PaintedTarget | None = None,
) -> tuple[str, Doubt]:
    """Virtual MGG of the cells that have no stained image of their own, towards the target that was found
    where the settings name none.

    Returns the fingerprint of what the store now holds and the doubt of each virtual cell.
    """
    settings = run.settings.staining
    if painted is not None:
        settings = settings.model_copy(update={"target": painted.target})
        run = replace(run, settings=run.settings.model_copy(update={"staining": settings}))
    if not any(c.modality == "dic" for c in found):
        run.retire("staining", set())
        return "", {}
    mark = fingerprint(
        "staining",
        VERSIONS["staining"],
        patches_mark,
        painting_settings(settings),
        model_sha("stainer", settings.dic_stainer),
    )
    arrays = {
        virtual_array(settings.dic_stainer, kind): (settings.size_px, channels)
        for kind, channels in (("image", 3), ("uncertainty", 1))
    }
    units = [u for u in units_of(run, found) if any(c.modality == "dic" for c in u.cells)]

    def images_of(some: list[Cell]) -> list[FieldImage]:
        return dic_images(case, some)

    outcomes = _fill(run, "staining", mark, arrays, cell_work.stain_unit, images_of, found, units)
    doubt: Doubt = {}
    for unit in units:
        output = outcomes[unit.key].output or {}
        least = output["stated"] if settings.min_confidence is None else settings.min_confidence
        rows = zip(unit.cells, output["confidence"], strict=True)
        doubt.update({cell.cell_id: (value, value >= least) for cell, value in rows if value is not None})
    return mark, doubt


def classification(
    run: CaseRun,
    found: tuple[Cell, ...],
    patches_mark: str,
    staining_mark: str,
    doubt: Doubt,
) -> tuple[CellClass, ...]:
    """Class, confidence, novelty and measures of every cell."""
    from pipeline.classification import without_slivers

    settings = run.settings.classification
    if not found:
        run.retire("classification", set())
        return ()
    mark = fingerprint(
        "classification",
        VERSIONS["classification"],
        patches_mark,
        staining_mark,
        naming_settings(run.settings),
        *(model_sha("classifier", name) for name in namers(run.settings, found)),
        model_sha("segmenter", settings.segmenter),
        model_sha("sideroblast-reader", settings.sideroblast_reader),
        None
        if settings.sideroblast_second_reader is None
        else model_sha("sideroblast-reader", settings.sideroblast_second_reader),
    )
    items = [
        Item(
            key=unit.key,
            function=cell_work.classify_unit,
            gpu=True,
            args=(unit,),
            fingerprint=fingerprint(mark, unit.index),
        )
        for unit in units_of(run, found)
    ]
    outcomes = run.run_items("classification", items)
    need_all(run, "classification", outcomes)
    classes = [CellClass.model_validate(c) for o in outcomes.values() for c in (o.output or {})["classes"]]
    return without_slivers([_with_doubt(c, doubt.get(c.cell_id)) for c in classes], found, settings.min_seen)


def _with_doubt(found: CellClass, doubt: tuple[float, bool] | None) -> CellClass:
    """A cell whose virtual image is less sure than the stainer's card demands is not named."""
    if doubt is None:
        return found
    confidence, enough = doubt
    label = found.label if enough else "unidentified"
    return found.model_copy(update={"stain_confidence": confidence, "label": label})
