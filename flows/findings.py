"""What a report is made of, kept in the store: what was found, by which settings and which models."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from flows import stages
from flows.naming import calibrated_confidence, known_classes, virtual_confidence
from flows.records import CaseRun
from pipeline.errors import BadInput
from pipeline.report_inputs import FieldKey, ImageKey, ModelUse
from pipeline.settings import CountingSettings, NightSettings, ReportSettings, Settings, named_models
from pipeline.types import (
    Case,
    Cell,
    CellClass,
    ExplainedCell,
    FocusQuality,
    Modality,
    PaintedTarget,
    PatientPattern,
    Registration,
    Spec,
    Stain,
)

if TYPE_CHECKING:
    from storage.registry import Task

Kind = tuple[Modality, Stain]
Reads = tuple[Kind, ...]
MGG: Kind = ("brightfield", "MGG")
PERLS: Kind = ("brightfield", "Perls")
FINDINGS = "work/findings.json"
AFTERWARDS = {"counting": CountingSettings(), "report": ReportSettings(), "night": NightSettings()}


class FieldFinding(Spec):
    """What is known of one image or field besides its cells."""

    slide: str
    field: str
    modality: Modality | None = None
    stain: Stain | None = None
    registration: Registration | None = None
    quality: FocusQuality | None = None
    picture: str | None = None  # key of the reduced picture in the store


class MadeBy(Spec):
    """What cells were found and named by.  A report that is made again tells of these, not of what is set or
    installed by then.

    `settings` are those of the stages before the report; `known_classes` are those that cells can be given,
    None where a classifier without a card names some; below `min_confidence` a cell is in doubt, a virtual
    one below `virtual_min_confidence` (None: the same).
    """

    settings: Settings
    models: tuple[ModelUse, ...]
    known_classes: tuple[str, ...] | None
    min_confidence: float | None
    virtual_min_confidence: float | None = None


class Findings(Spec):
    """Everything that a report is made of; kept in the store, so that a report can be made again."""

    case: Case
    cells: tuple[Cell, ...]
    classes: tuple[CellClass, ...]
    registrations: tuple[FieldFinding, ...]
    images: tuple[FieldFinding, ...]
    patient: PatientPattern | None = None
    no_patient: str | None = None  # why there is no patient-level reading
    explained: tuple[ExplainedCell, ...] = ()  # cells in doubt, least sure first
    painted: PaintedTarget | None = None  # of virtual cells, where the settings name no target
    made_by: MadeBy


def gather(
    run: CaseRun,
    case: Case,
    cells: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    registrations: dict[FieldKey, Registration],
    doubtful: dict[FieldKey, str],
    quality: dict[ImageKey, FocusQuality],
    overviews: dict[ImageKey, str],
    patient: PatientPattern | None = None,
    no_patient: str | None = None,
    explained: tuple[ExplainedCell, ...] = (),
    painted: PaintedTarget | None = None,
) -> Findings:
    """The stages' results in one value."""
    return Findings(
        case=case,
        cells=cells,
        classes=classes,
        registrations=tuple(
            FieldFinding(slide=k[0], field=k[1], registration=r, picture=doubtful.get(k))
            for k, r in sorted(registrations.items())
        ),
        images=tuple(
            FieldFinding.model_validate(
                {
                    "slide": k[0],
                    "field": k[1],
                    "modality": k[2],
                    "stain": k[3],
                    "quality": q,
                    "picture": overviews.get(k),
                }
            )
            for k, q in sorted(quality.items())
        ),
        patient=patient,
        no_patient=no_patient,
        explained=explained,
        painted=painted,
        made_by=makers(run, case, cells, classes, patient),
    )


def makers(
    run: CaseRun,
    case: Case,
    cells: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    patient: PatientPattern | None,
) -> MadeBy:
    """The settings and the models of a run, as they are now."""
    return MadeBy(
        settings=run.settings.model_copy(update=AFTERWARDS),
        models=models_used(run, case, cells, classes, patient),
        known_classes=known_classes(run.settings, cells),
        min_confidence=calibrated_confidence(run.settings, cells),
        virtual_min_confidence=virtual_confidence(run.settings, cells),
    )


def models_used(
    run: CaseRun,
    case: Case,
    cells: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    patient: PatientPattern | None,
) -> tuple[ModelUse, ...]:
    """Each model that took part, and what it read."""
    from detectors.painted import companions
    from storage.registry import describe

    settings = run.settings
    known = named_models(settings)
    kinds = {(c.modality, c.stain) for c in cells}
    used: dict[tuple[Task, str], Reads] = {}  # one that took part twice stands once
    dic = sorted(k for k in kinds if k[0] == "dic")

    def add(key: str, *reads: Kind) -> None:
        if key in known:
            used.setdefault(known[key], reads)

    if any(i.modality == "brightfield" and i.stain == "MGG" for i in case.images):
        add("detection.brightfield_detector", MGG)
    alone = [i for i in case.images if i.modality == "dic" and stages.detector_of(run, case, i) is not None]
    if alone:
        looked_at = sorted({(i.modality, i.stain) for i in alone})
        add("detection.dic_detector", *looked_at)
        beside = companions(settings.detection.dic_detector) if settings.detection.dic_painted else ()
        for task, name in beside:  # the stainer reads the DIC, the detector what is painted of it
            used.setdefault((task, name), tuple(looked_at) if task == "stainer" else (MGG,))
    if any(i.stain == "Perls" for i in case.images):  # a detector that found nothing took part, too
        add("detection.perls_detector", PERLS)
    if any(k[1] == "Perls" for k in kinds):
        add("classification.sideroblast_reader", PERLS)
        add("classification.sideroblast_second_reader", PERLS)
    if dic:
        add("staining.dic_stainer", *dic)
    if any(k[1] != "Perls" for k in kinds):
        add("classification.segmenter", MGG)
        own = "classification.virtual_classifier" in known
        if not own or MGG in kinds:
            add("classification.classifier", MGG)
        if dic:
            add("classification.virtual_classifier", *dic)
    if any(c.rs_virtual for c in classes):
        add("staining.perls_stainer", MGG)
        add("staining.perls_reader", PERLS)
        add("staining.erythroblast_classifier", MGG)
    if patient is not None:
        used.setdefault(("patient-classifier", patient.model), (MGG,))
    # Every model is told the scale and resamples, but the stainer of DIC cells takes patches as they are.
    taken_as_is = {known["staining.dic_stainer"]: settings.patches.pixel_size_um} if dic else {}
    return tuple(
        ModelUse.of(
            describe(task, name),
            reads,
            version=version("smearflow"),
            seen_pixel_size_um=taken_as_is.get((task, name)),
        )
        for (task, name), reads in used.items()
    )


_NOTHING = MadeBy(settings=Settings(), models=(), known_classes=None, min_confidence=None)


def kept_findings(run: CaseRun) -> Findings:
    """The findings of the case's last finished run; raises BadInput where there are none."""
    key = f"{run.case_id}/{FINDINGS}"
    if not run.store.exists(key):
        raise BadInput(
            f"{run.case_id}: the store {run.store.url} holds no finished run of this case; process it first."
        )
    document = run.store.read_json(key)
    if "made_by" not in document:  # of an earlier version, which took what was set and installed
        whole = Findings.model_validate({**document, "made_by": _NOTHING})
        made_by = makers(run, whole.case, whole.cells, whole.classes, whole.patient)
        return whole.model_copy(update={"made_by": made_by})
    return Findings.model_validate(document)


def as_made(run: CaseRun, findings: Findings, given: dict[str, Any] | None) -> CaseRun:
    """The run by whose settings a report can be made again: counting and report as now, the rest as then.

    Raises BadInput where `given`, what a person set now, asks another stage for something else.
    """
    then = findings.made_by.settings
    for section, values in (given or {}).items():
        for key in values or {} if section not in AFTERWARDS else {}:
            if getattr(getattr(run.settings, section), key) != getattr(getattr(then, section), key):
                raise BadInput(
                    f"{run.case_id}: {section}.{key} is not what the case was run with "
                    f"({getattr(getattr(then, section), key)!r}), and a report alone changes no finding; "
                    "leave it out, or run the case again."
                )
    now = {section: getattr(run.settings, section) for section in AFTERWARDS}
    return replace(run, settings=then.model_copy(update=now))
