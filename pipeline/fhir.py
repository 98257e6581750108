"""The result as a FHIR R4B bundle: a DiagnosticReport, its Observations, and what they rest on.

One `Bundle` of type `collection`, made of `result.json` alone: the figures, the codes and the sentences are
the result's.  LOINC stands where the result has a verified code and no cell was read from a virtual stain,
by which another system would take the value for a stain's; elsewhere local codes and the text.  A value that
the report withholds has a `dataAbsentReason` in its place.  docs/export.md says what goes where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.fhir_parts import (
    CASE,
    CLASS,
    PER_100_WBC,
    PERCENT,
    RATIO,
    REPORT,
    TOTAL,
    USE,
    Entries,
    Json,
    absent,
    add_devices,
    add_images,
    add_specimen,
    between,
    concept,
    counted,
    instant,
    moment,
    quantity,
)
from pipeline.result import USE_LABEL, Result
from pipeline.result_counts import Row, Sideroblasts

# Of the result's review state; a withdrawn report is one that should never have been.
REPORT_STATUS = {
    "preliminary": "preliminary",
    "final": "final",
    "amended": "amended",
    "corrected": "corrected",
    "cancelled": "entered-in-error",
}
# A value is preliminary until its present form is signed: that of an amended report is not.
VALUE_STATUS = {**REPORT_STATUS, "amended": "preliminary"}


def fhir_bundle(result: Result) -> Json:
    """The bundle as JSON values; the same result gives the same bundle."""
    entries = Entries(result.report_uuid)
    device = add_devices(entries, result)
    specimen = add_specimen(entries, result)
    images = add_images(entries, result, specimen)
    smear = _Reading(entries, result, specimen, device, images.smears, is_virtual(result))
    found = []
    if not perls_only(result):
        found += _differential(smear)
        found += _ratios(smear)
    rs = result.sideroblasts
    if rs is not None:
        drawn = rs.evidence == "virtual_perls"
        source = images.virtual_perls if drawn else images.perls
        found.append(_iron(_Reading(entries, result, specimen, device, source, drawn), rs))
    report = Entries(result.report_uuid)
    report.add(
        "report",
        "DiagnosticReport",
        meta={"tag": [USE]},
        identifier=[
            {"system": REPORT, "value": result.report_uuid},
            {"system": CASE, "value": result.case.pseudo_id},
        ],
        status=REPORT_STATUS[result.status],
        category=[
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "HM"}]},
        ],
        code={"text": "Count of cells on digitised blood or marrow smears"},
        effectiveDateTime=moment(result.case.collected),
        issued=instant(result.created),
        specimen=[specimen],
        result=found,
        conclusion=conclusion(result),
    )
    return {
        "resourceType": "Bundle",
        "meta": {"tag": [USE]},
        "identifier": {"system": REPORT, "value": result.report_uuid},
        "type": "collection",
        "timestamp": instant(result.created),
        "entry": [*report.resources, *entries.resources],
    }


def check_bundle(bundle: Json) -> None:
    """Raise ValueError unless it is a bundle of FHIR R4B, by its published structure."""
    from fhir.resources.R4B.bundle import Bundle

    Bundle.model_validate(bundle)


def perls_only(result: Result) -> bool:
    """Whether the case shows no smear that a differential could be counted on."""
    return bool(result.slides) and all(s.stain == "Perls" for s in result.slides)


def is_virtual(result: Result) -> bool:
    """Whether a cell of the differential was read from a virtual stain."""
    return any(s.virtual for s in result.slides)


def shown_loinc(row: Row, result: Result) -> str | None:
    """The verified code of a row; none where another system would take virtual cells for stained ones."""
    return row.loinc if row.loinc_verified and not is_virtual(result) else None


def of_generator(result: Result) -> str:
    """How the interval of a share from virtual Perls is called."""
    return f"{100 * result.method.level:g} % interval, corrected for what the model of virtual Perls makes up"


def conclusion(result: Result) -> str:
    """The use label, the flags with their severity, and what could not be known; never a diagnosis."""
    lines = [USE_LABEL]
    lines += [f"{f.severity.upper()} {f.code}: {f.message}" for f in result.flags]
    lines += [f"NOT ASSESSED {n.what}: {n.why.rstrip('.')}." for n in result.not_assessed]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Reading:
    """What all Observations of one reading share: of the smears, or of iron."""

    entries: Entries
    result: Result
    specimen: Json
    device: Json
    images: Sequence[Json]
    virtual: bool

    def add(self, name: str, code: Json, method: str, *, status: str = "", **fields: Any) -> Json:
        warnings = [f.message for f in self.result.flags if f.code == "VIRTUAL_STAIN"] if self.virtual else []
        notes = [*fields.pop("notes", ()), *warnings]
        return self.entries.add(
            name,
            "Observation",
            status=status or VALUE_STATUS[self.result.status],
            category=[
                {
                    "coding": [
                        {
                            "system": "http://terminology.hl7.org/CodeSystem/observation-category",
                            "code": "laboratory",
                        }
                    ]
                }
            ],
            code=code,
            effectiveDateTime=moment(self.result.case.collected),
            issued=instant(self.result.created),
            method=concept(method, "automated-virtual" if self.virtual else "automated-digital-smear"),
            specimen=self.specimen,
            device=self.device,
            note=[{"text": text} for text in notes],
            derivedFrom=list(self.images),
            **fields,
        )

    def interval_of(self, method: str = "") -> str:
        """How an interval of sampling is called."""
        m = self.result.method
        return f"{100 * m.level:g} % interval, {method or m.interval}: sampling of cells only"

    def by_smear(self) -> str:
        reviewed = ", corrected by a person" if self.result.differential.n_reviewed else ""
        if not self.virtual:
            return f"Automated reading of a digitised MGG smear{reviewed}"
        painted = "a VIRTUAL MGG stain painted from DIC by a model"
        if any(s.stain == "MGG" and not s.virtual for s in self.result.slides):
            return f"Automated reading of digitised MGG smears and, in part, of {painted}{reviewed}"
        return f"Automated reading of {painted}{reviewed}"


def _differential(of: _Reading) -> list[Json]:
    """The panel of the rows, and that of the totals where there are any."""
    r, d = of.result, of.result.differential
    panels = [
        of.add(
            "differential",
            concept(f"Differential count, {r.method.denominator}", "differential"),
            of.by_smear(),
            hasMember=[_share(of, row, CLASS) for row in d.rows],
            component=[
                counted("cells-found", "Cells found", d.n_detected),
                counted(
                    "cells-counted", f"Cells in the denominator ({r.method.denominator})", d.n_denominator
                ),
                counted("cells-aimed-at", "Cells aimed at", r.method.target_count),
                counted("cells-reviewed", "Cells named by a person", d.n_reviewed),
                *(counted(x.class_, f"{x.display}, not in the denominator", x.n, CLASS) for x in d.excluded),
                *(
                    counted(
                        f"{x.class_}-by-person",
                        f"{x.display}, named by a person, not by the model: no share",
                        x.n,
                    )
                    for x in d.named_by_person
                ),
            ],
        )
    ]
    if d.groups:
        panels.append(
            of.add(
                "totals",
                concept("Totals of classes with all that lies below them; not to be added", "totals"),
                of.by_smear(),
                hasMember=[_share(of, row, TOTAL) for row in d.groups],
            )
        )
    return panels


def _share(of: _Reading, row: Row, system: str) -> Json:
    """The percentage of a row or of a total."""
    r, d = of.result, of.result.differential
    if d.pct_blocked:
        value = absent(
            "unknown",
            f"withheld: {d.n_denominator} cells are under half the target of {r.method.target_count}",
        )
    elif row.pct is None:
        value = absent("unknown", "nothing was counted")
    else:
        value = {"valueQuantity": quantity(row.pct, PERCENT)}
    n = row.n_ai if row.n_reviewed is None else row.n_reviewed
    by_model = [] if row.n_reviewed is None else [counted("count-model", "Cells, by the model", row.n_ai)]
    return of.add(
        f"{system} {row.class_}",
        concept(f"{row.display}, % of {r.method.denominator}", row.class_, system, loinc=shown_loinc(row, r)),
        of.by_smear(),
        **value,
        component=[
            counted("count", "Cells", n),
            *by_model,
            counted("cells-counted", "Cells in the denominator", d.n_denominator),
            *between("interval", of.interval_of(), row.ci_low, row.ci_high, PERCENT),
            *between(
                "interval-between-fields",
                f"{100 * r.method.level:g} % interval, bootstrap of whole fields",
                row.boot_low,
                row.boot_high,
                PERCENT,
            ),
        ],
    )


def _ratios(of: _Reading) -> list[Json]:
    """The M:E ratio of marrow, NRBC and smudge cells per 100 white cells of blood."""
    r, found = of.result, []
    if m := r.me_ratio:
        if m.withheld:
            value = absent("unknown", f"withheld: {m.withheld}")
        elif m.value is None:
            value = absent("not-applicable", "no erythroblast was counted: there is no ratio")
        else:
            value = {"valueQuantity": quantity(m.value, RATIO)}
        loinc = m.loinc if m.loinc_verified and not of.virtual else None
        found.append(
            of.add(
                "me-ratio",
                concept(f"M:E ratio ({r.method.me_convention})", "me-ratio", loinc=loinc),
                of.by_smear(),
                **value,
                component=[
                    counted("myeloid", "Myeloid cells", m.myeloid),
                    counted("erythroid", "Erythroblasts", m.erythroid),
                    *between("interval", of.interval_of("log ratio"), m.ci_low, m.ci_high, RATIO),
                ],
                notes=[f"Not to be relied on: {m.caution}."] if m.caution else [],
            )
        )
    if p := r.per_100_wbc:
        smudge_loinc = None if of.virtual else p.smudge_loinc
        for code, name, rate, low, high, n, loinc in (
            ("nrbc", "Nucleated red cells", p.nrbc, p.nrbc_ci_low, p.nrbc_ci_high, p.n_nrbc, None),
            ("smudge", "Smudge cells", p.smudge, p.smudge_ci_low, p.smudge_ci_high, p.n_smudge, smudge_loinc),
        ):
            why = "no white cell was counted" if p.n_wbc == 0 else "the classifier does not know them"
            found.append(
                of.add(
                    code,
                    concept(f"{name} per 100 white cells", f"{code}-per-100-wbc", loinc=loinc),
                    of.by_smear(),
                    **(
                        absent("not-performed", f"not assessed: {why}")
                        if rate is None
                        else {"valueQuantity": quantity(rate, PER_100_WBC)}
                    ),
                    component=[
                        counted("count", "Cells", n),
                        counted("white-cells", "White cells counted", p.n_wbc),
                        *between("interval", of.interval_of(), low, high, PER_100_WBC),
                    ],
                )
            )
    return found


def _iron(of: _Reading, rs: Sideroblasts) -> Json:
    """Ring sideroblasts; by a virtual stain under a code of their own, and preliminary whoever signed."""
    if not of.virtual:
        name, method = "Ring sideroblasts", "Automated reading of iron on a digitised Perls smear"
    else:
        name = "Ring sideroblasts by VIRTUAL Perls, not a stain"
        method = "Automated reading of a VIRTUAL Perls stain, painted from MGG by a model"
    unsupported = rs.support is not None and not rs.support.supported
    if rs.support is not None and unsupported:
        value = absent("unsupported", f"not supported by the image: {rs.support.why}")
    elif rs.pct_blocked:
        value = absent("unknown", "withheld: one cell is more than the lowest decision limit")
    elif rs.rs_pct is None:
        value = absent("unknown", "no erythroblast was assessed")
    else:
        value = {"valueQuantity": quantity(rs.rs_pct, PERCENT)}
    reader = rs.reader
    called = of.interval_of() if rs.support is None else of_generator(of.result)
    figures = [
        *(
            counted(f"type{t}", f"Iron type {t}", n)
            for t, n in enumerate((rs.type0, rs.type1, rs.type2, rs.type3))
        ),
        counted("indeterminate", "Indeterminate, not in the denominator", rs.indeterminate),
        *between("interval", called, rs.ci_low, rs.ci_high, PERCENT),
    ]
    if reader is not None:
        figures += between(
            "interval-with-reader-error",
            f"Interval with reader error, {reader.method}, measured on {reader.measured_on}",
            reader.ci_low,
            reader.ci_high,
            PERCENT,
        )
        if reader.rs_pct is not None and not rs.pct_blocked:
            code = concept("Corrected for reader error", "corrected-for-reader-error")
            figures.append({"code": code, "valueQuantity": quantity(reader.rs_pct, PERCENT)})
    status = "preliminary" if of.virtual and of.result.status != "cancelled" else ""
    return of.add(
        "ring-sideroblasts",
        concept(f"{name}, % of erythroblasts assessed", rs.code),
        method,
        status=status,
        **value,
        component=[
            counted("erythroblasts", "Erythroblasts assessed", rs.n_erythroblasts),
            *([] if unsupported else figures),
        ],
    )
