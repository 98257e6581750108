"""The stages that work on patches: each write unit (whole shards) is one item, owned by one worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flows import cell_work
from flows.naming import namers, naming_settings, painting_settings
from flows.records import CaseRun, Item, Outcome, StageFailed
from flows.stages import VERSIONS, model_sha
from pipeline.types import Case, Cell, CellClass, FieldImage, PaintedTarget
from storage.fingerprint import fingerprint
from storage.registry import virtual_array

Doubt = dict[str, tuple[float, bool]]  # by cell: the stainer's confidence, and whether it suffices


def units_of(run: CaseRun, n_cells: int) -> list[tuple[int, int, int]]:
    """(index, first row, end row) of each write unit."""
    from storage.case_store import plan_units, shard_rows

    units = plan_units("patches", n_cells, shard_rows(run.settings.patches))
    return [(u.index, u.start, u.stop) for u in units]


def unit_key(index: int) -> str:
    return f"unit-{index:05d}"


def _fill(
    run: CaseRun,
    stage: str,
    mark: str,
    found: tuple[Cell, ...],
    arrays: dict[str, tuple[int, int]],
    function: Callable[..., dict[str, Any]],
    images_of: Callable[[list[Cell]], list[Any]],
    units: list[tuple[int, int, int]],
) -> dict[str, Outcome]:
    """Have the workers write arrays {name: (size, channels)} unit by unit; a torn shard is written again."""
    from storage.case_store import CaseStore

    store = CaseStore(run.store, run.case_id)
    if run.allow_work:
        for name, (size, channels) in arrays.items():
            shape = (len(found), size, size, channels)
            store.ensure_array(name, shape, run.settings.patches, mark, [c.cell_id for c in found])
    items = []
    for index, start, end in units:
        some = list(found[start:end])
        where = (str(run.case_dir), run.store.url, run.case_id, index, start, len(found), mark)
        items.append(
            Item(
                key=unit_key(index),
                function=function,
                args=(*where, some, images_of(some), run.settings),
                fingerprint=fingerprint(mark, index),
                gpu=stage == "staining",
            )
        )
    groups = all(store.groups_are_whole(n) for n in arrays)
    outcomes = run.run_items(
        stage,
        items,
        intact=lambda key: (
            groups and all(store.unit_is_intact(n, int(key.split("-")[1]), mark) for n in arrays)
        ),
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

    def images_of(some: list[Cell]) -> list[Any]:
        fields = {(c.slide, c.field) for c in some}
        return [i for i in case.images if (i.slide, i.field) in fields]

    _fill(run, "patches", mark, found, arrays, cell_work.cut_unit, images_of, units_of(run, len(found)))
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
    units = [u for u in units_of(run, len(found)) if any(c.modality == "dic" for c in found[u[1] : u[2]])]

    outcomes = _fill(
        run,
        "staining",
        mark,
        found,
        arrays,
        cell_work.stain_unit,
        lambda some: dic_images(case, some),
        units,
    )
    doubt: Doubt = {}
    for index, start, end in units:
        output = outcomes[unit_key(index)].output or {}
        least = output["stated"] if settings.min_confidence is None else settings.min_confidence
        rows = zip(found[start:end], output["confidence"], strict=True)
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
            key=unit_key(index),
            function=cell_work.classify_unit,
            gpu=True,
            args=(run.store.url, run.case_id, start, list(found[start:end]), run.settings),
            fingerprint=fingerprint(mark, index),
        )
        for index, start, end in units_of(run, len(found))
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
