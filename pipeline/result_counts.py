"""What is counted of a case: the differential, ratios, ring sideroblasts, the patient-level reading.

Parts of `pipeline.result`, whose conventions they keep.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Evidence = Literal["perls", "virtual_perls"]
Pct = float  # 0-100


class Part(BaseModel):
    """A frozen part of the result; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
        json_schema_serialization_defaults_required=True,
    )


class Row(Part):
    """One class of the differential; the rows exclude each other and add to the denominator."""

    class_: str = Field(alias="class")
    display: str
    parent: str | None
    n_ai: int
    n_reviewed: int | None = None
    pct: Pct | None = Field(description="of the denominator; null where nothing was counted")
    ci_low: Pct
    ci_high: Pct
    boot_low: Pct | None = None
    boot_high: Pct | None = None
    mean_confidence: float | None
    loinc: str | None = None
    loinc_verified: bool = False


class Excluded(Part):
    class_: str = Field(alias="class")
    display: str
    n: int


class NamedByPerson(Part):
    """A class that the classifier cannot say, of which a person named some cells: a count, and no share."""

    class_: str = Field(alias="class")
    display: str
    n: int
    counted_in: str | None = Field(description="the row that holds these cells; null: none does")


class Differential(Part):
    n_detected: int = Field(description="n_denominator + n_excluded")
    n_denominator: int
    n_excluded: int = Field(description="cells out of the denominator, unidentified ones included")
    n_unidentified: int
    pct_blocked: bool = Field(description="true: too few cells, the percentages must not be reported")
    rows: tuple[Row, ...]
    groups: tuple[Row, ...] = Field(description="parents with all that lies below them; not to be added")
    excluded: tuple[Excluded, ...]
    n_fields: int = Field(0, description="fields that hold cells of the denominator")
    n_reviewed: int = Field(0, description="of the cells found, those that a person named")
    named_by_person: tuple[NamedByPerson, ...] = Field(
        (), description="in the denominator, but unknown to the classifier; empty where a person named all"
    )


class Per100Wbc(Part):
    """Per 100 white cells of the denominator; null: the classifier does not know the class."""

    nrbc: float | None
    smudge: float | None
    artefact: float | None
    n_wbc: int
    n_nrbc: int
    n_smudge: int
    n_artefact: int
    nrbc_ci_low: float | None
    nrbc_ci_high: float | None
    smudge_ci_low: float | None
    smudge_ci_high: float | None
    smudge_loinc: str | None


class MeRatio(Part):
    myeloid: int
    erythroid: int
    value: float | None
    ci_low: float | None
    ci_high: float | None
    loinc: str | None
    loinc_verified: bool
    withheld: str | None = Field(None, description="why no ratio is given; null where nothing forbids it")
    caution: str | None = Field(None, description="why the ratio has no code and is not to be relied on")


class LimitStanding(Part):
    """Where the interval stands to a limit, and how many more cells would settle it."""

    limit: Pct
    standing: Literal["below", "spans", "at_or_over", "unknown"]
    more_cells: int | None = Field(description="at the same proportion; null: counting cannot settle it")


class VirtualSupport(Part):
    """What the image supports of a count on virtual Perls, and why."""

    supported: bool
    why: str
    positive: int = Field(description="cells that were drawn with a ring")
    assessed: int
    positive_low_pct: float | None = Field(None, description="lower limit of the share drawn with a ring")
    made_up_high_pct: float | None = Field(
        None, description="upper limit of the share of ringless cells on which the model draws a ring"
    )
    rmse_pct: float | None = Field(None, description="of RS % on the measured cases, from the model's card")
    rmse_of_mean_pct: float | None = Field(None, description="of always answering the mean of those cases")
    measured_on: str | None = None


class ReaderInterval(Part):
    """The share of ring sideroblasts corrected for what finder and reader got wrong where it was measured."""

    method: str
    rs_pct: Pct | None = Field(description="corrected estimate")
    ci_low: Pct
    ci_high: Pct
    sensitivity: float = Field(description="share of ring sideroblasts read as such, of those counted")
    specificity: float = Field(description="share of other erythroblasts read as other, of those counted")
    precision: float | None = Field(
        description="share of what is counted that is an erythroblast; null where that was not measured"
    )
    n_measured: int = Field(description="erythroblasts of known type that the errors were measured on")
    measured_on: str
    standings: tuple[LimitStanding, ...]


class ReaderAgreement(Part):
    """What a second reader made of the same erythroblasts; it is compared and never counted."""

    n_both: int = Field(description="erythroblasts on which both readers decided")
    same_type: int
    same_ring: int = Field(description="both say ring, or both say another type")
    type3: int = Field(description="rings by the second reader, of all it decided on")
    n_decided: int
    indeterminate: int
    kappa: float | None = Field(
        description="Cohen's, of ring or not; null where one reader saw no difference"
    )


class Sideroblasts(Part):
    """Erythroblasts by iron (IWGM-MDS 2008): RS % = type 3 / types 0 to 3; indeterminate apart."""

    evidence: Evidence
    n_erythroblasts: int = Field(description="assessed: types 0 to 3")
    type0: int
    type1: int
    type2: int
    type3: int
    indeterminate: int
    target: int = Field(100, description="erythroblasts that the percentage is to rest on")
    pct_blocked: bool = Field(
        False,
        description="true: one cell is more than the lowest limit, no percentage is to be reported",
    )
    rs_pct: Pct | None
    ci_low: Pct
    ci_high: Pct
    limits: tuple[float, ...]
    standings: tuple[LimitStanding, ...]
    code: str = Field(description="local code; no LOINC code for ring sideroblasts is known")
    support: VirtualSupport | None = Field(None, description="of a virtual Perls; null for a real stain")
    reader: ReaderInterval | None = Field(
        None, description="the interval that holds reader error too; null where that was never measured"
    )
    agreement: ReaderAgreement | None = Field(None, description="with a second reader; null without one")
    chosen_by: str | None = Field(
        None, description="the model that told erythroblasts from other cells; null where more than one did"
    )


class PatternShare(Part):
    pattern: str
    p_attention: float = Field(description="by attention over the cells' embeddings")
    p_histogram: float = Field(description="by the cells' mean class probabilities alone")


class PatientCell(Part):
    cell_id: str
    attention: float = Field(description="its share of the whole bag's attention, which sums to 1")
    speaks_for: str


class PatientLevel(Part):
    """The pattern that all stained cells make together; never a diagnosis."""

    model: str
    measured_on: str = Field(description="what the model's figures were measured on, from its card")
    n_cells: int
    patterns: tuple[PatternShare, ...] = Field(description="likeliest by attention first")
    agree: bool = Field(description="whether attention and histogram name the same pattern")
    top_cells: tuple[PatientCell, ...] = Field(description="highest attention first")


class ClassP(Part):
    class_: str = Field(alias="class")
    p: float
