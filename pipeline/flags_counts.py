"""Rules on what was counted.

Limits of percentages are read as "at or over": an interval leaves one open where part of it lies
below and part at or over.
"""

from __future__ import annotations

from pipeline import statistics as st
from pipeline.counting_iron import standing
from pipeline.flags_facts import Facts, Finding
from pipeline.reader_error import corrected_estimate
from pipeline.report_virtual import evidence_of
from pipeline.result_counts import LimitStanding

OOD_PERCENTILE = 0.99
UNIDENTIFIED_MAX = 0.05
LOW_CONFIDENCE_MAX = 0.10
SMUDGE_MAX = 10.0
NRBC_MIN = 5.0
RS_INDETERMINATE_MAX = 0.05
RS_DISAGREEMENT_MAX = 0.05
VIRTUAL_RS_LIMIT_PCT = 5.0
HETEROGENEITY_MAX = 1.5
HETEROGENEITY_MIN_CELLS = 5


def not_reviewed(f: Facts) -> Finding | None:
    if f.status in ("final", "corrected"):  # both are signed
        return None
    if f.status == "cancelled":
        said = "The report was withdrawn by a person: its figures must not be used."
    elif f.status == "amended":
        said = "The result was released and has changed since; a qualified person has not released this form."
    else:
        said = f"The result is {f.status}; a qualified person has not released it."
    return Finding(said, f.status)


def low_count(f: Facts) -> Finding | None:
    n, target = f.counted.differential.n_denominator, f.counted.method.target_count
    if n >= target or f.case.perls_only:
        return None
    return Finding(f"{n} cells in the denominator, the target is {target}.", n)


def very_low_count(f: Facts) -> Finding | None:
    n, target = f.counted.differential.n_denominator, f.counted.method.target_count
    if 2 * n >= target or f.case.perls_only:
        return None
    return Finding(
        f"{n} cells in the denominator are under half the target of {target}: "
        "percentages must not be reported.",
        n,
    )


def rs_low_count(f: Facts) -> Finding | None:
    rs = f.counted.sideroblasts
    if rs is None and any(i.stain == "Perls" for i in f.case.images):
        why = "No erythroblast on the Perls images was read for iron: they say nothing of ring sideroblasts."
        return Finding(why, 0, "block")
    if rs is None or rs.n_erythroblasts >= rs.target or (rs.support and not rs.support.supported):
        return None
    head = f"{rs.n_erythroblasts} erythroblasts were assessed for iron"
    if rs.pct_blocked:
        why = f"{head}, so few that one of them is more than a decision limit: no percentage is reported."
        return Finding(why, rs.n_erythroblasts, "block")
    return Finding(f"{head}, the target is {rs.target}.", rs.n_erythroblasts)


def near_limit_rs(f: Facts) -> Finding | None:
    """Either interval may leave a limit open: that of sampling is the narrower, not the truer one."""
    rs = f.counted.sideroblasts
    if rs is None:
        return None
    sampling = [s for s in rs.standings if s.standing == "spans"]
    reading = [s for s in rs.reader.standings if s.standing == "spans"] if rs.reader else []
    if not sampling and not reading:
        return None
    share = None if rs.pct_blocked else rs.rs_pct
    head = "Ring sideroblasts " + (f"{_pct(share)} " if share is not None else "")
    said = []
    if sampling or not rs.reader:
        found = f"interval {rs.ci_low:.1f}-{rs.ci_high:.1f} %: {_settle(sampling, 'erythroblasts')}"
        said.append(("by sampling alone, " if rs.reader else "") + found)
    if rs.reader and reading:
        found = f"interval {rs.reader.ci_low:.1f}-{rs.reader.ci_high:.1f} %"
        said.append(f"with reader error, {found}: {_settle(reading, 'erythroblasts')}")
    return Finding(f"{head}({rs.type3} of {rs.n_erythroblasts}); {'; '.join(said)}.", share)


def near_limit_blast(f: Facts) -> Finding | None:
    if not f.counted.knows("blast"):
        return None
    n, total = f.counted.n("blast"), f.counted.differential.n_denominator
    limits = f.settings.blast_limits_marrow_pct if f.marrow else f.settings.blast_limits_blood_pct
    open_limits = [s for s in (standing(n, total, x, f.settings) for x in limits) if s.standing == "spans"]
    if not open_limits:
        return None
    low, high = st.proportion_interval(n, total, f.settings.interval, f.settings.level)
    share = None if f.counted.differential.pct_blocked else 100 * n / total
    head = "Blasts" + (f" {_pct(share)}" if share is not None else "")
    head += f" ({n} of {total}), interval {100 * low:.1f}-{100 * high:.1f} %"
    value = None if share is None else round(share, 2)
    return Finding(f"{head}: {_settle(open_limits, 'cells')}.", value)


def blast_present(f: Facts) -> Finding | None:
    n = f.counted.n("blast")
    if f.marrow or n == 0:
        return None
    return Finding(f"{n} {_cells(n)} called blast in blood; look at each.", n)


def zero_bound(f: Facts) -> Finding | None:
    # A reviewer's count stands where there is one: what it took away was not seen either.
    zeros = [
        r for r in f.counted.differential.rows if (r.n_ai if r.n_reviewed is None else r.n_reviewed) == 0
    ]
    if not zeros or f.counted.differential.n_denominator == 0:
        return None
    names = ", ".join(r.display.lower() for r in zeros)
    high = max(r.ci_high for r in zeros)
    return Finding(f"None seen of: {names}. Up to {high:.1f} % of each is compatible with that.", high)


def virtual_stain(f: Facts) -> Finding | None:
    n, iron = sum(c.virtual for c in f.classes), sum(c.rs_virtual for c in f.classes)
    said = []
    if n:
        of = f"{n} of {len(f.classes)}"
        said.append(f"{of} cells were read from virtually stained images, not from a stain.")
    if iron:
        said.append(f"The iron of {iron} erythroblasts was read from virtual Perls images, not from a stain.")
    return Finding(" ".join(said), n + iron) if said else None


def virtual_rs_positive(f: Facts) -> Finding | None:
    rs = f.counted.sideroblasts
    if rs is None or rs.evidence != "virtual_perls" or rs.ci_high < VIRTUAL_RS_LIMIT_PCT:
        return None
    if rs.support is not None and not rs.support.supported:
        return Finding(
            "Ring sideroblasts: not supported by the image; virtual Perls gives no figure. Do a real Perls "
            "stain.",
            None,
        )
    return Finding(
        f"Ring sideroblasts from virtual Perls reach up to {rs.ci_high:.1f} %: do a real Perls stain.",
        rs.ci_high,
    )


def rs_indeterminate(f: Facts) -> Finding | None:
    rs = f.counted.sideroblasts
    if rs is None or rs.indeterminate == 0 or (rs.support and not rs.support.supported):
        return None
    every = rs.n_erythroblasts + rs.indeterminate
    share = rs.indeterminate / every
    lowest, highest = (_rs_share(f, n, every) for n in (rs.type3, rs.type3 + rs.indeterminate))
    crossed = [] if rs.pct_blocked else [x for x in rs.limits if lowest < x / 100 <= highest]
    if share < RS_INDETERMINATE_MAX and not crossed:
        return None
    virtual = " on virtual Perls" if rs.evidence == "virtual_perls" else ""
    message = f"{rs.indeterminate} of {every} erythroblasts{virtual} are indeterminate ({100 * share:.1f} %)"
    if crossed:
        message += f"; they alone decide on which side of {_limits(crossed)} the case lies"
    return Finding(message + ".", round(100 * share, 2))


def rs_readers_disagree(f: Facts) -> Finding | None:
    rs = f.counted.sideroblasts
    a = rs.agreement if rs else None
    if rs is None or a is None or a.n_both == a.same_ring:
        return None
    differ = a.n_both - a.same_ring
    first, second = rs.rs_pct, 100 * a.type3 / a.n_decided if a.n_decided else None
    pcts = sorted(p for p in (first, second) if p is not None)
    crossed = [x for x in rs.limits if len(pcts) == 2 and pcts[0] < x <= pcts[1]]
    if differ < RS_DISAGREEMENT_MAX * a.n_both and not crossed:
        return None
    message = f"The two readers of iron differ on ring or not in {differ} of {a.n_both} erythroblasts"
    if crossed:
        message += f"; they stand on different sides of {_limits(crossed)}"
    return Finding(message + ". The first is counted; look at each.", round(100 * differ / a.n_both, 2))


def unidentified_high(f: Facts) -> Finding | None:
    d = f.counted.differential
    candidates = d.n_denominator + d.n_unidentified
    if candidates == 0 or d.n_unidentified <= UNIDENTIFIED_MAX * candidates:
        return None
    share = 100 * d.n_unidentified / candidates
    return Finding(f"{d.n_unidentified} of {candidates} cells could not be identified.", round(share, 2))


def low_confidence(f: Facts) -> Finding | None:
    named = [c for c in f.classes if c.cell_id in f.counted.labels]
    limits = [f.run.doubt_below(virtual=c.virtual) for c in named]
    stated = sorted({x for x in limits if x is not None})
    low = sum(x is not None and c.confidence < x for c, x in zip(named, limits, strict=True))
    if low <= LOW_CONFIDENCE_MAX * len(named):
        return None
    said = " or ".join(f"{x:.2f}" for x in stated)
    return Finding(
        f"{low} of {len(named)} cells are under the calibrated confidence of {said}"
        f"{', each of its own classifier' if len(stated) > 1 else ''}.",
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


def _rs_share(f: Facts, rings: int, assessed: int) -> float:
    """The share that the report gives for so many rings: of virtual iron the corrected one."""
    rs, evidence = f.counted.sideroblasts, evidence_of(f.run)
    if rs is None or rs.evidence == "perls" or evidence is None:
        return rings / assessed
    share = corrected_estimate(rings, assessed, evidence.errors)
    return rings / assessed if share is None else share


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
