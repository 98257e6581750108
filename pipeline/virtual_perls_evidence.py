"""Measuring a stainer of virtual Perls against the truth: what its card is to state.

The question is not whether the virtual images look right but whether they say more of a case than no image
at all, which would be answered by the mean of the cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pipeline.reader_error import ReaderErrors, corrected_estimate


def measured_evidence(
    cases: Sequence[Mapping[str, Any]], measured_on: str, *, draws: int = 4000, seed: int = 0
) -> dict[str, Any]:
    """The card's `virtual_perls` from measured cases: each has the truth and what was read.

    A case is {"truth": rs_types (N,), "read": types (N,)}.  Half of the cases, by turns, correct the other
    half: no case is judged with error rates that it was part of.  The gain over the mean is resampled over
    whole cases (percentile bootstrap).
    """
    if len(cases) < 4:
        raise ValueError("evidence needs four cases or more")
    halves = (cases[0::2], cases[1::2])
    estimates, truths = [], []
    for own, other in (halves, halves[::-1]):
        errors = sum_errors(other)
        for case in own:
            truth, read = np.asarray(case["truth"]), np.asarray(case["read"])
            kept = read != "indeterminate"
            share = corrected_estimate(int((read == "3").sum()), int(kept.sum()), errors)
            truths.append(100.0 * float((truth == 3).mean()))
            estimates.append(np.nan if share is None else 100.0 * share)
    estimate, truth_pct = np.array(estimates), np.array(truths)
    # A case of which nothing could be read is answered by the mean, as anyone would.
    estimate = np.where(np.isfinite(estimate), estimate, truth_pct.mean())
    model, mean = (estimate - truth_pct) ** 2, (truth_pct.mean() - truth_pct) ** 2
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(model), (draws, len(model)))
    gains = np.sqrt(mean[drawn].mean(axis=1)) - np.sqrt(model[drawn].mean(axis=1))
    low, high = np.percentile(gains, [2.5, 97.5])
    errors = sum_errors(cases)
    return {
        "measured_on": measured_on,
        "n_cases": len(cases),
        "n_cells": int(sum(len(c["truth"]) for c in cases)),
        "rmse_pct": round(float(np.sqrt(model.mean())), 3),
        "rmse_of_mean_pct": round(float(np.sqrt(mean.mean())), 3),
        "gain_over_mean_pct": {
            "value": round(float(np.sqrt(mean.mean()) - np.sqrt(model.mean())), 3),
            "low": round(float(low), 3),
            "high": round(float(high), 3),
        },
        "errors": {k: v for k, v in asdict(errors).items() if k != "source"},
    }


def sum_errors(cases: Sequence[Mapping[str, Any]]) -> ReaderErrors:
    """The chain's errors over cases, with how much more its false positives differ than chance explains."""
    rows = []
    for case in cases:
        truth, read = np.asarray(case["truth"]), np.asarray(case["read"])
        ring, lost, three = truth == 3, read == "indeterminate", read == "3"
        rows.append(
            (
                int((ring & three).sum()),
                int((ring & ~three & ~lost).sum()),
                int((~ring & ~three & ~lost).sum()),
                int((~ring & three).sum()),
                int((ring & lost).sum()),
                int((~ring & lost).sum()),
            )
        )
    names = ("ring_read", "ring_missed", "other_read", "other_wrong", "ring_lost", "other_lost")
    total: dict[str, Any] = dict(zip(names, np.sum(rows, axis=0).tolist(), strict=True))
    made = ReaderErrors(**total)
    return replace(made, overdispersion=_overdispersion(np.array(rows)))


def _overdispersion(rows: np.ndarray) -> float:
    """Pearson's chi-squared over its degrees of freedom, of both error rates between cases; at least 1."""
    found = [1.0]
    for hits, misses in ((rows[:, 0], rows[:, 1]), (rows[:, 3], rows[:, 2])):
        n = hits + misses
        used = n > 0
        rate = hits.sum() / max(1, n.sum())
        if used.sum() > 1 and 0 < rate < 1:
            chi = ((hits[used] - n[used] * rate) ** 2 / (n[used] * rate * (1 - rate))).sum()
            found.append(float(chi / (used.sum() - 1)))
    return round(max(found), 3)
