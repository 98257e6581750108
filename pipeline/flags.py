"""The flags of a report: each rule a small function, all of them in one table.

A rule looks at what was counted and measured and returns a finding, or None.  No rule names a
diagnosis.  Limits of percentages are read as "at or over": an interval leaves one open where part of
it lies below and part at or over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline import statistics as st
from pipeline.counting import Counted
from pipeline.counting_iron import standing
from pipeline.report_inputs import ModelUse, RunInfo
from pipeline.report_quality import FOCUS_Z, ILLUMINATION_MIN, SATURATION_MAX_PCT
from pipeline.result import FieldReport, Flag, LimitStanding, Severity, Status
from pipeline.settings import CountingSettings
from pipeline.types import Case, CellClass

OOD_PERCENTILE = 0.99
UNIDENTIFIED_MAX = 0.05
LOW_CONFIDENCE_MAX = 0.10
SMUDGE_MAX = 10.0
NRBC_MIN = 5.0
RS_INDETERMINATE_MAX = 0.05
VIRTUAL_RS_LIMIT_PCT = 5.0
HETEROGENEITY_MAX = 1.5
HETEROGENEITY_MIN_CELLS = 5
FIELD_LOSS_REVIEW, FIELD_LOSS_BLOCK = 0.20, 0.50
SCALE_TOLERANCE = 0.10


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    case: Case
    counted: Counted
    classes: tuple[CellClass, ...]
    fields: tuple[FieldReport, ...]
    run: RunInfo
    status: Status
    settings: CountingSettings

    @property
    def marrow(self) -> bool:
        return self.case.specimen == "bone_marrow"


@dataclass(frozen=True)
class Finding:
    """A rule that fired; `severity` where it is not the rule's own."""

    message: str
    value: float | str | None
    severity: Severity | None = None


@dataclass(frozen=True)
class Rule:
    code: str
    severity: Severity
    rule: str
    check: Callable[[Facts], Finding | None]


def raise_flags(facts: Facts) -> tuple[Flag, ...]:
    """Every flag that holds, blocking ones first, then in the order of the table."""
    flags = []
    for rule in RULES:
        finding = rule.check(facts)
        if finding is not None:
            flags.append(
                Flag(
                    code=rule.code,
                    severity=finding.severity or rule.severity,
                    message=finding.message,
                    value=finding.value,
                    rule=rule.rule,
                )
            )
    rank = {"block": 0, "review": 1, "info": 2}
    return tuple(sorted(flags, key=lambda f: rank[f.severity]))


def not_reviewed(f: Facts) -> Finding | None:
    if f.status == "final":
        return None
    return Finding(f"The result is {f.status}; a qualified person has not released it.", f.status)


def low_count(f: Facts) -> Finding | None:
    n, target = f.counted.differential.n_denominator, f.counted.method.target_count
    if n >= target:
        return None
    return Finding(f"{n} cells in the denominator, the target is {target}.", n)


def very_low_count(f: Facts) -> Finding | None:
    n, target = f.counted.differential.n_denominator, f.counted.method.target_count
    if 2 * n >= target:
        return None
    return Finding(
        f"{n} cells in the denominator are under half the target of {target}: "
        "percentages must not be reported.",
        n,
    )


def near_limit_rs(f: Facts) -> Finding | None:
    rs = f.counted.sideroblasts
    open_limits = [s for s in rs.standings if s.standing == "spans"] if rs else []
    if rs is None or not open_limits:
        return None
    head = (
        f"Ring sideroblasts {_pct(rs.rs_pct)} ({rs.type3} of {rs.n_erythroblasts}), "
        f"interval {rs.ci_low:.1f}-{rs.ci_high:.1f} %"
    )
    return Finding(f"{head}: {_settle(open_limits, 'erythroblasts')}.", rs.rs_pct)


def near_limit_blast(f: Facts) -> Finding | None:
    if not f.counted.knows("blast"):
        return None
    n, total = f.counted.n("blast"), f.counted.differential.n_denominator
    limits = f.settings.blast_limits_marrow_pct if f.marrow else f.settings.blast_limits_blood_pct
    open_limits = [s for s in (standing(n, total, x, f.settings) for x in limits) if s.standing == "spans"]
    if not open_limits:
        return None
    low, high = st.proportion_interval(n, total, f.settings.interval, f.settings.level)
    head = f"Blasts {_pct(100 * n / total)} ({n} of {total}), interval {100 * low:.1f}-{100 * high:.1f} %"
    return Finding(f"{head}: {_settle(open_limits, 'cells')}.", round(100 * n / total, 2))


def blast_present(f: Facts) -> Finding | None:
    n = f.counted.n("blast")
    if f.marrow or n == 0:
        return None
    return Finding(f"{n} {_cells(n)} called blast in blood; look at each.", n)


def zero_bound(f: Facts) -> Finding | None:
    zeros = [r for r in f.counted.differential.rows if r.n_ai == 0 and not r.n_reviewed]
    if not zeros or f.counted.differential.n_denominator == 0:
        return None
    names = ", ".join(r.display.lower() for r in zeros)
    high = max(r.ci_high for r in zeros)
    return Finding(f"None seen of: {names}. Up to {high:.1f} % of each is compatible with that.", high)


def virtual_stain(f: Facts) -> Finding | None:
    n = sum(c.virtual for c in f.classes)
    if n == 0:
        return None
    return Finding(
        f"{n} of {len(f.classes)} cells were read from virtually stained images, not from a stain.", n
    )


def virtual_rs_positive(f: Facts) -> Finding | None:
    rs = f.counted.sideroblasts
    if rs is None or rs.evidence != "virtual_perls" or rs.ci_high < VIRTUAL_RS_LIMIT_PCT:
        return None
    return Finding(
        f"Ring sideroblasts from virtual Perls reach up to {rs.ci_high:.1f} %: do a real Perls stain.",
        rs.ci_high,
    )


def rs_indeterminate(f: Facts) -> Finding | None:
    rs = f.counted.sideroblasts
    if rs is None or rs.indeterminate == 0:
        return None
    every = rs.n_erythroblasts + rs.indeterminate
    share = rs.indeterminate / every
    lowest, highest = rs.type3 / every, (rs.type3 + rs.indeterminate) / every
    crossed = [x for x in rs.limits if lowest < x / 100 <= highest]
    if share < RS_INDETERMINATE_MAX and not crossed:
        return None
    message = f"{rs.indeterminate} of {every} erythroblasts are indeterminate ({100 * share:.1f} %)"
    if crossed:
        message += f"; they alone decide on which side of {_limits(crossed)} the case lies"
    return Finding(message + ".", round(100 * share, 2))


def unidentified_high(f: Facts) -> Finding | None:
    d = f.counted.differential
    candidates = d.n_denominator + d.n_unidentified
    if candidates == 0 or d.n_unidentified <= UNIDENTIFIED_MAX * candidates:
        return None
    share = 100 * d.n_unidentified / candidates
    return Finding(f"{d.n_unidentified} of {candidates} cells could not be identified.", round(share, 2))


def low_confidence(f: Facts) -> Finding | None:
    limit = f.run.min_confidence
    named = [c for c in f.classes if c.cell_id in f.counted.labels]
    if limit is None or not named:
        return None
    low = sum(c.confidence < limit for c in named)
    if low <= LOW_CONFIDENCE_MAX * len(named):
        return None
    return Finding(
        f"{low} of {len(named)} cells are under the calibrated confidence of {limit:.2f}.",
        round(100 * low / len(named), 2),
    )


def out_of_distribution(f: Facts) -> Finding | None:
    named = [c for c in f.classes if c.cell_id in f.counted.labels]
    n = sum(c.ood > OOD_PERCENTILE for c in named)
    # One cell in a hundred lies there by definition: the case is flagged where chance does not explain it.
    if n == 0 or st.clopper_pearson(n, len(named))[0] <= 1 - OOD_PERCENTILE:
        return None
    return Finding(
        f"{n} of {len(named)} cells look unlike 99 % of the validation cells; about "
        f"{len(named) / 100:.0f} would be expected.",
        n,
    )


def smudge_high(f: Facts) -> Finding | None:
    rates = f.counted.per_100_wbc
    if rates is None or rates.smudge is None or rates.smudge <= SMUDGE_MAX:
        return None
    return Finding(f"{rates.smudge:.1f} smudge cells per 100 white cells.", rates.smudge)


def nrbc_correct(f: Facts) -> Finding | None:
    rates = f.counted.per_100_wbc
    if rates is None or rates.nrbc is None or rates.nrbc < NRBC_MIN:
        return None
    return Finding(
        f"{rates.nrbc:.1f} nucleated red cells per 100 white cells: a white cell count that includes "
        "them has to be corrected.",
        rates.nrbc,
    )


def erythroid_zero(f: Facts) -> Finding | None:
    ratio = f.counted.me_ratio
    if ratio is None or ratio.erythroid > 0:
        return None
    return Finding("No erythroblast was counted: there is no M:E ratio.", 0)


def field_loss(f: Facts) -> Finding | None:
    declared = max(f.case.n_fields_declared, len(f.fields))
    lost = declared - sum(x.status == "used" for x in f.fields)
    if declared == 0 or lost <= FIELD_LOSS_REVIEW * declared:
        return None
    severity: Severity = "block" if lost > FIELD_LOSS_BLOCK * declared else "review"
    return Finding(
        f"{lost} of {declared} fields could not be used.", round(100 * lost / declared, 1), severity
    )


def field_heterogeneity(f: Facts) -> Finding | None:
    rows = {r.class_: r for r in f.counted.differential.rows}
    wide = {
        k: v
        for k, v in f.counted.width_ratio.items()
        if v > HETEROGENEITY_MAX and (rows[k].n_reviewed or rows[k].n_ai) >= HETEROGENEITY_MIN_CELLS
    }
    if not wide:
        return None
    names = ", ".join(rows[k].display.lower() for k in wide)
    worst = max(wide.values())
    return Finding(
        f"Fields differ more than chance for {names}: the bootstrap interval is up to {worst:.1f} times "
        "as wide as the binomial one.",
        round(worst, 2),
    )


def qc_focus(f: Facts) -> Finding | None:
    soft = [
        (q.focus_z, f"{x.slide_id} {x.field} {q.modality}")
        for x in f.fields
        for q in x.focus
        if q.focus_z is not None and q.focus_z < FOCUS_Z
    ]
    if not soft:
        return None
    return Finding(
        f"Out of focus beside the other fields: {_some([n for _, n in soft])}.", min(z for z, _ in soft)
    )


def qc_illumination(f: Facts) -> Finding | None:
    dark, bright = [], []
    lowest: float | None = None
    for x in f.fields:
        for q in x.focus:
            name = f"{x.slide_id} {x.field} {q.modality}"
            if q.illumination_ratio < ILLUMINATION_MIN:
                dark.append(name)
                lowest = min(q.illumination_ratio, 1.0 if lowest is None else lowest)
            if q.saturation_pct > SATURATION_MAX_PCT:
                bright.append(name)
    if not dark and not bright:
        return None
    parts = [f"uneven light (corners under 80 % of the centre): {_some(dark)}"] if dark else []
    parts += [f"over 1 % of pixels saturated: {_some(bright)}"] if bright else []
    message = "; ".join(parts)
    return Finding(f"{message[0].upper()}{message[1:]}.", lowest)


def qc_registration(f: Facts) -> Finding | None:
    found = [(x, x.registration) for x in f.fields if x.registration is not None]
    failed = [f"{x.slide_id} {x.field}" for x, r in found if r.status == "failed"]
    rough = [f"{x.slide_id} {x.field}" for x, r in found if r.doubtful and r.status == "ok"]
    if not failed and not rough:
        return None
    parts = [f"DIC could not be aligned: {_some(failed)}"] if failed else []
    parts += [f"aligned, but over 0.5 µm (median) or 1 µm (p95) off: {_some(rough)}"] if rough else []
    message = "; ".join(parts)
    return Finding(f"{message[0].upper()}{message[1:]}.", len(failed) + len(rough))


def no_pixel_size(f: Facts) -> Finding | None:
    bad = []
    for model in f.run.models:
        trained = model.card.pixel_size_um if model.card else None
        if trained is None:
            continue
        seen = model.seen_pixel_size_um
        if seen is None:
            bad.append(f"{model.name} saw pixels of unknown size")
        elif abs(seen / trained - 1) > SCALE_TOLERANCE:
            bad.append(f"{model.name} saw {seen:.3g} µm a pixel and was trained at {trained:.3g}")
    return Finding("; ".join(bad) + ".", len(bad)) if bad else None


def domain_mismatch(f: Facts) -> Finding | None:
    found = [m for model in f.run.models for m in _mismatches(model, f.case)]
    if f.case.specimen is None:
        found.append("the specimen is not stated and cannot be compared with the models' cards")
    return Finding("; ".join(found) + ".", len(found)) if found else None


def _mismatches(model: ModelUse, case: Case) -> list[str]:
    card = model.card
    if card is None:
        return []
    found = []
    for modality, stain in sorted(set(model.reads)):
        if modality not in card.modalities or stain not in card.stains:
            what = "DIC" if modality == "dic" else f"{stain} brightfield"
            found.append(f"{model.name} was not made for {what} images")
    if case.specimen is not None and case.specimen not in card.specimens:
        found.append(f"{model.name} was not made for {case.specimen.replace('_', ' ')}")
    sources = [i.pixel_size_um for i in case.images if (i.modality, i.stain) in model.reads]
    if card.pixel_size_um and sources and max(sources) > card.pixel_size_um * (1 + SCALE_TOLERANCE):
        found.append(
            f"images of {max(sources):.3g} µm a pixel were enlarged for {model.name}, "
            f"trained at {card.pixel_size_um:.3g}"
        )
    return found


def model_hash(f: Facts) -> Finding | None:
    bad = [m.name for m in f.run.models if m.sha256 is not None and m.found_sha256 != m.sha256]
    expected = f.run.expected_config_sha256
    if expected is not None and expected != f.run.config_sha256:
        bad.append("the configuration")
    return Finding(f"Not what its manifest names: {', '.join(bad)}.", ", ".join(bad)) if bad else None


def _pct(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f} %"


def _cells(n: int) -> str:
    return "cell was" if n == 1 else "cells were"


def _limits(limits: list[float]) -> str:
    return " and ".join(f"{x:g} %" for x in limits)


def _settle(standings: list[LimitStanding], what: str) -> str:
    parts = []
    for s in standings:
        if s.more_cells is None:
            parts.append(f"{s.limit:g} % cannot be settled by counting more at this proportion")
        else:
            parts.append(f"{s.limit:g} % stays open, about {s.more_cells:,} more {what} would settle it")
    return "; ".join(parts)


def _some(names: list[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


RULES: tuple[Rule, ...] = (
    Rule("MODEL_HASH", "block", "weights or configuration differ from their manifest", model_hash),
    Rule(
        "NO_PIXEL_SIZE",
        "block",
        "pixel size missing, or over 10 % from the model's training scale",
        no_pixel_size,
    ),
    Rule("VERY_LOW_COUNT", "block", "denominator under half the target", very_low_count),
    Rule("FIELD_LOSS", "review", "over 20 % of fields rejected; over 50 % blocks", field_loss),
    Rule("BLAST_PRESENT", "review", "any blast in blood", blast_present),
    Rule(
        "VIRTUAL_RS_POSITIVE", "review", "upper limit of a virtual RS % at or over 5 %", virtual_rs_positive
    ),
    Rule("NEAR_LIMIT_RS", "review", "interval of RS % spans a decision limit", near_limit_rs),
    Rule("NEAR_LIMIT_BLAST", "review", "interval of blasts spans a decision limit", near_limit_blast),
    Rule(
        "RS_INDETERMINATE",
        "review",
        "5 % of erythroblasts indeterminate, or enough to cross a limit",
        rs_indeterminate,
    ),
    Rule("VIRTUAL_STAIN", "review", "any value from a virtual image; permanent", virtual_stain),
    Rule("LOW_COUNT", "review", "denominator under the target", low_count),
    Rule("UNIDENTIFIED_HIGH", "review", "over 5 % of cells unidentified", unidentified_high),
    Rule("LOW_CONFIDENCE", "review", "over 10 % of cells under the calibrated confidence", low_confidence),
    Rule(
        "OOD",
        "review",
        "more cells beyond the 99th percentile of validation than chance explains",
        out_of_distribution,
    ),
    Rule("SMUDGE_HIGH", "review", "over 10 smudge cells per 100 WBC", smudge_high),
    Rule("NRBC_CORRECT", "review", "5 or more NRBC per 100 WBC", nrbc_correct),
    Rule("FIELD_HETEROGENEITY", "review", "bootstrap / binomial width over 1.5", field_heterogeneity),
    Rule("QC_FOCUS", "review", f"focus z-score of a field under {FOCUS_Z:g}", qc_focus),
    Rule(
        "QC_ILLUMINATION",
        "review",
        "corner / centre background under 0.8, or over 1 % of pixels saturated",
        qc_illumination,
    ),
    Rule(
        "QC_REGISTRATION",
        "review",
        "residual median over 0.5 µm or p95 over 1 µm, or not aligned",
        qc_registration,
    ),
    Rule(
        "DOMAIN_MISMATCH",
        "review",
        "stain, modality, scale or specimen not on the model card",
        domain_mismatch,
    ),
    Rule("NOT_REVIEWED", "review", "status is not final", not_reviewed),
    Rule("ZERO_BOUND", "info", "a class of which none was seen still has an upper limit", zero_bound),
    Rule("ERYTHROID_ZERO", "info", "no erythroblast in marrow", erythroid_zero),
)
