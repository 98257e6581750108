"""The flags of a report: each rule a small function, all of them in one table.

A rule looks at what was counted and measured and returns a finding, or None.  No rule names a
diagnosis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline import flags_counts as on_counts
from pipeline import flags_quality as on_quality
from pipeline.flags_facts import Facts, Finding
from pipeline.report_quality import FOCUS_Z
from pipeline.result import Flag, Severity


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


RULES: tuple[Rule, ...] = (
    Rule("MODEL_HASH", "block", "weights or configuration differ from their manifest", on_quality.model_hash),
    Rule(
        "NO_PIXEL_SIZE",
        "block",
        "pixel size missing, or over 10 % from the model's training scale",
        on_quality.no_pixel_size,
    ),
    Rule("VERY_LOW_COUNT", "block", "denominator under half the target", on_counts.very_low_count),
    Rule(
        "FIELD_LOSS",
        "review",
        "over 20 % of fields, of Perls or of the others, rejected; over 50 % blocks",
        on_quality.field_loss,
    ),
    Rule("BLAST_PRESENT", "review", "any blast in blood", on_counts.blast_present),
    Rule(
        "VIRTUAL_RS_POSITIVE",
        "review",
        "upper limit of a virtual RS % at or over 5 %",
        on_counts.virtual_rs_positive,
    ),
    Rule(
        "RS_LOW_COUNT",
        "review",
        "erythroblasts assessed for iron under the target; blocks where there is none or one is over a limit",
        on_counts.rs_low_count,
    ),
    Rule(
        "NEAR_LIMIT_RS",
        "review",
        "interval of RS %, by sampling or with reader error, spans a decision limit",
        on_counts.near_limit_rs,
    ),
    Rule(
        "NEAR_LIMIT_BLAST", "review", "interval of blasts spans a decision limit", on_counts.near_limit_blast
    ),
    Rule(
        "RS_INDETERMINATE",
        "review",
        "5 % of erythroblasts indeterminate, or enough to cross a limit",
        on_counts.rs_indeterminate,
    ),
    Rule(
        "RS_READERS_DISAGREE",
        "review",
        "two readers differ on ring or not in 5 % of erythroblasts, or stand on two sides of a limit",
        on_counts.rs_readers_disagree,
    ),
    Rule("VIRTUAL_STAIN", "review", "any value from a virtual image; permanent", on_counts.virtual_stain),
    Rule("LOW_COUNT", "review", "denominator under the target", on_counts.low_count),
    Rule("UNIDENTIFIED_HIGH", "review", "over 5 % of cells unidentified", on_counts.unidentified_high),
    Rule(
        "LOW_CONFIDENCE",
        "review",
        "over 10 % of cells under the calibrated confidence",
        on_counts.low_confidence,
    ),
    Rule(
        "OOD",
        "review",
        "more cells beyond the 99th percentile of validation than chance explains",
        on_counts.out_of_distribution,
    ),
    Rule("SMUDGE_HIGH", "review", "over 10 smudge cells per 100 WBC", on_counts.smudge_high),
    Rule("NRBC_CORRECT", "review", "5 or more NRBC per 100 WBC", on_counts.nrbc_correct),
    Rule(
        "FIELD_HETEROGENEITY", "review", "bootstrap / binomial width over 1.5", on_counts.field_heterogeneity
    ),
    Rule("QC_FOCUS", "review", f"focus z-score of a field under {FOCUS_Z:g}", on_quality.qc_focus),
    Rule(
        "QC_ILLUMINATION",
        "review",
        "corner / centre background under 0.8, over 1 % of pixels saturated, or brightfield under half of "
        "the camera's range",
        on_quality.qc_illumination,
    ),
    Rule(
        "QC_REGISTRATION",
        "review",
        "residual median over 0.5 µm or p95 over 1 µm, or not aligned",
        on_quality.qc_registration,
    ),
    Rule(
        "DOMAIN_MISMATCH",
        "review",
        "stain, modality, scale or specimen not on the model card",
        on_quality.domain_mismatch,
    ),
    Rule("NOT_REVIEWED", "review", "status is not final", on_counts.not_reviewed),
    Rule(
        "ZERO_BOUND", "info", "a class of which none was seen still has an upper limit", on_counts.zero_bound
    ),
    Rule("ERYTHROID_ZERO", "info", "no erythroblast in marrow", on_counts.erythroid_zero),
)
