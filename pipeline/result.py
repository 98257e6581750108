"""The per-case result, `result.json`: a published, versioned schema.

`docs/result.schema.json` is made from these models (JSON Schema 2020-12).  Percentages are in 0-100.
Every key is always present; what is not known is null.  Orders are fixed and floats are rounded
where they are made, so two runs over the same input write the same bytes but for `created`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from pipeline.result_counts import (
    ClassP,
    Differential,
    MeRatio,
    Part,
    PatientLevel,
    Pct,
    Per100Wbc,
    Sideroblasts,
)
from pipeline.types import CaseMode, Specimen, Stain

SCHEMA_VERSION = "1.0"
PERLS_ONLY = "PERLS_ONLY"  # the note of a case whose images are read for iron alone
USE_LABEL = "For Research Use Only. Not for use in diagnostic procedures."

Status = Literal["preliminary", "final", "amended", "corrected", "cancelled"]
Severity = Literal["info", "review", "block"]


class CaseInfo(Part):
    pseudo_id: str
    specimen: Specimen | None = Field(description="null: not stated; counted by the rules of blood")
    collected: str | None = None
    mode: CaseMode = Field(
        description="with DIC, Perls images are not told of here: slides[] names every kind"
    )
    n_fields_declared: int
    n_fields_used: int


class SlideQc(Part):
    focus_z: float | None = Field(
        None, description="lowest robust z-score of a field's focus among fields of its own kind"
    )
    illumination_ratio: float | None = Field(None, description="lowest corner / centre background of a field")
    saturation_pct: Pct | None = Field(None, description="highest share of saturated pixels of a field")
    registration_p95_um: float | None = Field(
        None, description="highest 95th percentile of a field's residual shifts"
    )


class SlideInfo(Part):
    """One slide in one modality and stain; an image that was computed has its own entry."""

    slide_id: str
    stain: Stain
    modality: Literal["brightfield", "DIC"]
    virtual: bool
    source_stain: Stain | None = None
    scanner: str | None = None
    objective: str | None = None
    pixel_size_um: float | None = Field(description="null: none of its images could be used")
    sha256: str = Field(description="of the sorted sha256 of its files that could be used, one a line")
    n_fields: int = Field(description="declared, or chosen of a whole slide, with those whose image was lost")
    n_fields_used: int
    qc: SlideQc


class InputFile(Part):
    slide_id: str
    field: str
    modality: Literal["brightfield", "DIC"]
    stain: Stain
    file: str
    sha256: str
    width_px: int
    height_px: int
    bits: int
    pixel_size_um: float
    pixel_size_source: str


class CardSummary(Part):
    """What a reader of the result has to know of a model."""

    task: str
    architecture: str
    licence: str
    intended_use: str
    modalities: tuple[str, ...]
    stains: tuple[str, ...]
    specimens: tuple[str, ...]
    pixel_size_um: float | None
    classes: tuple[str, ...]
    training_data: tuple[str, ...]
    limits: tuple[str, ...]


class ModelInfo(Part):
    name: str
    version: str
    sha256: str | None = Field(description="of the weights; null for a method without weights")
    card: CardSummary | None


class Software(Part):
    name: str
    version: str
    commit: str | None
    config_sha256: str
    models: tuple[ModelInfo, ...]


class Method(Part):
    target_count: int
    denominator: str
    excluded: tuple[str, ...]
    me_convention: str
    interval: str
    level: float
    rounding: str
    taxonomy_version: str
    min_confidence: float | None = Field(
        None, description="calibrated confidence below which a cell is in doubt; null: the model states none"
    )
    virtual_min_confidence: float | None = Field(
        None, description="the same of cells read from a virtual stain; null: min_confidence"
    )


class GalleryCell(Part):
    cell_id: str
    slide_id: str
    field: str
    modality: Literal["brightfield", "DIC"] = Field(description="of the image that the box is in")
    stain: Stain
    bbox_px: tuple[float, float, float, float]
    top3: tuple[ClassP, ...]
    confidence: float
    virtual: bool
    ood: float
    is_ood: bool
    stain_confidence: float | None = None
    rs_type: str | None = None
    rs_type_second: str | None = None
    virtual_stain: Stain | None = Field(None, description="the stain that the shown virtual image imitates")
    label_ai: str | None = Field(None, description="the model's class; null where it was not classified")
    label_reviewed: str | None = None


class Gallery(Part):
    class_: str = Field(alias="class")
    display: str
    n_total: int
    cells: tuple[GalleryCell, ...] = Field(description="least sure first")


class Flag(Part):
    code: str
    severity: Severity
    message: str
    value: float | str | None
    rule: str


class Review(Part):
    reviewer: str | None = None
    reviewed_at: datetime | None = None
    pct_reviewed: Pct = 0.0
    n_reclassified: int = 0
    comment: str = ""


class AuditEntry(Part):
    ts: datetime
    actor: str
    action: str
    target: str
    old: str | None
    new: str | None
    reason: str


class FieldFocus(Part):
    modality: Literal["brightfield", "DIC"]
    stain: Stain
    variance: float
    normalised_variance: float
    laplacian_variance: float
    focus_z: float | None
    illumination_ratio: float
    saturation_pct: Pct


class FieldRegistration(Part):
    status: Literal["ok", "failed"]
    reason: str
    doubtful: bool
    ecc: float | None
    residual_px: float | None
    residual_um: float | None
    residual_p95_um: float | None
    p_false_accept: float | None
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]] | None


class FieldReport(Part):
    slide_id: str
    field: str
    status: Literal["used", "rejected"]
    reason: str
    n_cells: int
    n_denominator: int
    focus: tuple[FieldFocus, ...]
    registration: FieldRegistration | None


class ProblemReport(Part):
    code: str
    message: str
    slide_id: str | None
    field: str | None
    file: str | None
    fatal_for_field: bool


class NotAssessed(Part):
    """What this case could not show, and why."""

    code: str
    what: str
    why: str


class Result(Part):
    schema_version: Literal["1.0"] = "1.0"
    report_uuid: str
    created: datetime
    status: Status
    use_label: Literal["For Research Use Only. Not for use in diagnostic procedures."] = (
        "For Research Use Only. Not for use in diagnostic procedures."
    )
    case: CaseInfo
    slides: tuple[SlideInfo, ...]
    inputs: tuple[InputFile, ...]
    software: Software
    method: Method
    differential: Differential
    per_100_wbc: Per100Wbc | None
    me_ratio: MeRatio | None
    sideroblasts: Sideroblasts | None
    patient: PatientLevel | None
    galleries: tuple[Gallery, ...]
    flags: tuple[Flag, ...]
    not_assessed: tuple[NotAssessed, ...]
    problems: tuple[ProblemReport, ...]
    fields: tuple[FieldReport, ...]
    review: Review
    audit: tuple[AuditEntry, ...] = ()

    @property
    def perls_only(self) -> bool:
        """Whether no image shows a smear that a differential could be counted on."""
        return any(note.code == PERLS_ONLY for note in self.not_assessed)

    def to_json(self) -> str:
        """The document as it is written to `result.json`."""
        return self.model_dump_json(indent=1) + "\n"
