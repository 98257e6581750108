"""Counting of ring sideroblasts: iron types, their share with its interval, and the decision limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline import statistics as st
from pipeline.agreement import cohen_value
from pipeline.reader_error import ReaderErrors, corrected_estimate, corrected_interval, more_cells
from pipeline.result import NotAssessed
from pipeline.result_counts import LimitStanding, ReaderAgreement, ReaderInterval, Sideroblasts
from pipeline.settings import CountingSettings
from pipeline.sideroblasts import measured_errors
from pipeline.types import Case, Cell, CellClass

# No LOINC code for ring sideroblasts is known: local codes, another one for a virtual stain.
RS_CODE = {"perls": "smearflow:rs-pct-perls", "virtual_perls": "smearflow:rs-pct-virtual-perls"}


def count_sideroblasts(
    case: Case, cells: tuple[Cell, ...], by_id: dict[str, CellClass], settings: CountingSettings
) -> tuple[Sideroblasts | None, tuple[NotAssessed, ...]]:
    """The iron types of a case's erythroblasts, or None and why there are none.

    RS % = type 3 / types 0 to 3 (IWGM-MDS 2008, Mufti et al., Haematologica 93:1712); indeterminate
    cells are reported apart and stand in no denominator.
    """
    read = [
        (c, by_id[c.cell_id]) for c in cells if c.cell_id in by_id and by_id[c.cell_id].rs_type is not None
    ]
    real = [k for c, k in read if c.stain == "Perls" and not k.virtual]
    virtual = [k for c, k in read if c.stain != "Perls" or k.virtual]
    perls_images = any(im.stain == "Perls" for im in case.images)
    if not read:
        return None, _no_iron(case, perls_images)
    # A real stain is never mixed with a virtual one: where both were read, the real one counts.
    chosen, evidence = (real, "perls") if real else (virtual, "virtual_perls")
    n = {t: sum(k.rs_type == t for k in chosen) for t in ("0", "1", "2", "3", "indeterminate")}
    assessed = len(chosen) - n["indeterminate"]
    low, high = st.proportion_interval(n["3"], assessed, settings.interval, settings.level)
    return (
        Sideroblasts(
            evidence="perls" if evidence == "perls" else "virtual_perls",
            n_erythroblasts=assessed,
            type0=n["0"],
            type1=n["1"],
            type2=n["2"],
            type3=n["3"],
            indeterminate=n["indeterminate"],
            target=settings.rs_target,
            pct_blocked=one_cell_decides(assessed, settings),
            rs_pct=round(100 * n["3"] / assessed, 2) if assessed else None,
            ci_low=round(100 * low, 2),
            ci_high=round(100 * high, 2),
            limits=settings.rs_limits_pct,
            standings=tuple(standing(n["3"], assessed, limit, settings) for limit in settings.rs_limits_pct),
            code=RS_CODE[evidence],
            reader=reader_interval(chosen, n["3"], assessed, settings) if evidence == "perls" else None,
            agreement=reader_agreement(chosen),
            chosen_by=_finder(chosen),
        ),
        (),
    )


def one_cell_decides(n: int, settings: CountingSettings) -> bool:
    """Whether one cell of `n` is more of them than the lowest limit: the percentage then tells nothing."""
    return n * min(settings.rs_limits_pct, default=100.0) < 100


def _finder(chosen: list[CellClass]) -> str | None:
    found = {k.rs_finder for k in chosen if k.rs_finder is not None}
    return found.pop() if len(found) == 1 else None


def reader_interval(
    chosen: list[CellClass], rings: int, assessed: int, settings: CountingSettings
) -> ReaderInterval | None:
    """The interval with the reader's own error; None where finder and reader were never measured."""
    methods = {(k.rs_finder, k.rs_reader) for k in chosen if k.rs_finder and k.rs_reader}
    errors = None
    if settings.rs_reader_errors is not None:
        errors = ReaderErrors(
            *settings.rs_reader_errors, source="the laboratory's own measurement (settings)"
        )
    elif len(methods) == 1:
        ((finder, reader),) = methods
        errors = measured_errors(finder, reader)
    if errors is None:
        return None

    def limit_standing(limit_pct: float) -> LimitStanding:
        limit = limit_pct / 100
        if assessed == 0:
            return LimitStanding(limit=limit_pct, standing="unknown", more_cells=None)
        if st.spans(low, high, limit):
            more = more_cells(rings, assessed, limit, errors, settings.level)
            return LimitStanding(limit=limit_pct, standing="spans", more_cells=more)
        return LimitStanding(
            limit=limit_pct, standing="below" if high < limit else "at_or_over", more_cells=0
        )

    low, high = corrected_interval(rings, assessed, errors, settings.level)
    estimate = corrected_estimate(rings, assessed, errors)
    return ReaderInterval(
        method="Rogan-Gladen, melded exact limits",
        rs_pct=None if estimate is None else round(100 * estimate, 2),
        ci_low=round(100 * low, 2),
        ci_high=round(100 * high, 2),
        sensitivity=round(errors.sensitivity, 4),
        specificity=round(errors.specificity, 4),
        # A laboratory's own four figures say nothing of what was counted and is no erythroblast.
        precision=None if settings.rs_reader_errors is not None else round(errors.precision, 4),
        n_measured=errors.ring_read + errors.ring_missed + errors.other_read + errors.other_wrong,
        measured_on=errors.source,
        standings=tuple(limit_standing(limit) for limit in settings.rs_limits_pct),
    )


def reader_agreement(chosen: list[CellClass]) -> ReaderAgreement | None:
    """How a second reader's types compare; None without one."""
    pairs = [
        (k.rs_type, k.rs_type_second)
        for k in chosen
        if k.rs_type is not None and k.rs_type_second is not None
    ]
    return agreement_of(pairs) if pairs else None


def agreement_of(pairs: Sequence[tuple[str, str]]) -> ReaderAgreement:
    """Two readers' types ("0" to "3" or "indeterminate") of the same erythroblasts, the first one counted."""
    both = [(a, b) for a, b in pairs if "indeterminate" not in (a, b)]
    n, same = len(both), sum((a == "3") == (b == "3") for a, b in both)
    rings = np.array([(a == "3", b == "3") for a, b in both], bool).reshape(n, 2)
    kappa = cohen_value(rings[:, 0], rings[:, 1]) if n else math.nan
    decided = [b for _, b in pairs if b != "indeterminate"]
    return ReaderAgreement(
        n_both=n,
        same_type=sum(a == b for a, b in both),
        same_ring=same,
        type3=decided.count("3"),
        n_decided=len(decided),
        indeterminate=len(pairs) - len(decided),
        kappa=None if math.isnan(kappa) else round(kappa, 4),
    )


def standing(successes: int, n: int, limit_pct: float, settings: CountingSettings) -> LimitStanding:
    """Where a proportion's interval stands to a limit in percent, and how many more cells settle it."""
    low, high = st.proportion_interval(successes, n, settings.interval, settings.level)
    limit = limit_pct / 100
    if n == 0:
        return LimitStanding(limit=limit_pct, standing="unknown", more_cells=None)
    if st.spans(low, high, limit):
        more = st.cells_to_settle(successes, n, limit, settings.interval, settings.level)
        return LimitStanding(limit=limit_pct, standing="spans", more_cells=more)
    return LimitStanding(limit=limit_pct, standing="below" if high < limit else "at_or_over", more_cells=0)


def _no_iron(case: Case, perls_images: bool) -> tuple[NotAssessed, ...]:
    if perls_images:
        why = "there are Perls images, but no erythroblast on them was read for iron"
        return (NotAssessed(code="PERLS_NOT_READ", what="Ring sideroblasts", why=why),)
    if any(i.stain == "Perls" for i in case.lost):
        why = "none of the Perls images that the case declares could be used"
        return (NotAssessed(code="PERLS_LOST", what="Ring sideroblasts", why=why),)
    if case.specimen == "blood":
        return ()
    return (NotAssessed(code="NO_PERLS", what="Ring sideroblasts", why="the case has no Perls image"),)
