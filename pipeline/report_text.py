"""The result as a page of text, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.result import Result
from pipeline.result_counts import Row

WIDTH = 78


def render_text(result: Result) -> str:
    """A printable summary: flags first, then the figures, then what could not be known."""
    lines = [*_head(result), *_flags(result), *_iron(result), *_differential(result)]
    lines += [*_ratios(result), *_not_assessed(result), *_problems(result)]
    return "\n".join(clean(line).rstrip() for line in lines).rstrip()


def shown_decimals(rows: Iterable[Row]) -> int:
    """Decimals that the percentages have: as many as the rows need, at least one."""
    texts = [f"{r.pct:.4f}".rstrip("0") for r in rows if r.pct is not None]
    return max([1, *(len(t.split(".")[1]) for t in texts)])


def clean(text: str) -> str:
    """Text without control characters: a case id must not drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _head(r: Result) -> list[str]:
    specimen = r.case.specimen.replace("_", " ") if r.case.specimen else "specimen not stated"
    d, counted = r.differential, ""
    if not r.perls_only:
        counted = f", {d.n_detected} cells, {d.n_denominator} in the denominator ({r.method.denominator}; "
        counted += f"target {r.method.target_count})"
    return [
        f"Case {r.case.pseudo_id} · {specimen} · {r.status}",
        r.use_label,
        f"{r.case.n_fields_used} of {r.case.n_fields_declared} fields{counted}",
        "",
    ]


def _flags(r: Result) -> list[str]:
    if not r.flags:
        return []
    lines = []
    for flag in r.flags:
        lines += _wrap(f"{flag.severity.upper():<6} {flag.code}: {flag.message}", 9)
    return [*lines, ""]


def _iron(r: Result) -> list[str]:
    rs = r.sideroblasts
    if rs is None:
        return []
    evidence = "Perls" if rs.evidence == "perls" else "VIRTUAL Perls, not a stain"
    pct = "withheld, too few erythroblasts" if rs.pct_blocked else _or_unknown(rs.rs_pct)
    # A virtual figure is corrected for what the generator makes up: it is not the quotient of the counts.
    joint = ", from" if rs.support or rs.pct_blocked else " ="
    lines = [
        f"Ring sideroblasts ({evidence}): {pct}{joint} {rs.type3} / {rs.n_erythroblasts} erythroblasts, "
        f"{100 * r.method.level:g} % interval {rs.ci_low:.1f}-{rs.ci_high:.1f} %",
        f"  types 0/1/2/3: {rs.type0}/{rs.type1}/{rs.type2}/{rs.type3}, indeterminate {rs.indeterminate}",
    ]
    if rs.reader is not None:
        lines.append(
            f"  with reader error {rs.reader.ci_low:.1f}-{rs.reader.ci_high:.1f} %"
            + ("" if rs.pct_blocked else f", corrected {_or_unknown(rs.reader.rs_pct)}")
        )
    if rs.agreement is not None:
        a = rs.agreement
        kappa = "" if a.kappa is None else f", kappa {a.kappa:.2f}"
        lines.append(f"  second reader: the same on ring or not in {a.same_ring} of {a.n_both}{kappa}")
    if rs.support is not None:
        said = "supported" if rs.support.supported else "NOT SUPPORTED BY THE IMAGE, no figure is given"
        lines += _wrap(f"  {said}: {rs.support.why}", 4)
    for s in () if rs.pct_blocked else rs.standings:
        words = {"below": "below", "at_or_over": "at or over", "spans": "open at", "unknown": "not known at"}
        more = (
            f" (about {s.more_cells:,} more cells would settle it)"
            if s.standing == "spans" and s.more_cells
            else ""
        )
        alone = "by sampling alone " if rs.reader is not None else ""
        lines.append(f"  {alone}{words[s.standing]} {s.limit:g} %{more}")
    for s in rs.reader.standings if rs.reader is not None and not rs.pct_blocked else ():
        if s.standing == "spans":
            lines.append(f"  with reader error open at {s.limit:g} %")
    return [*lines, ""]


def _or_unknown(pct: float | None) -> str:
    return "not known" if pct is None else f"{pct:.1f} %"


def _differential(r: Result) -> list[str]:
    if r.perls_only:
        return []  # what could not be known says why
    d = r.differential
    level = f"{100 * r.method.level:g} % interval"
    lines = [f"{'class':<38}{'n':>6}{'%':>8}  {level:<16}{'fields':<14}"]
    decimals = shown_decimals(d.rows)
    for row in (*d.rows, *d.groups):
        n = row.n_ai if row.n_reviewed is None else row.n_reviewed
        pct = "-" if row.pct is None or d.pct_blocked else f"{row.pct:.{decimals}f}"
        boot = (
            "" if row.boot_low is None or row.boot_high is None else f"{row.boot_low:.1f}-{row.boot_high:.1f}"
        )
        name = row.display if row in d.rows else f"  all {row.display.lower()}"
        lines.append(f"{name:<38}{n:>6}{pct:>8}  {f'{row.ci_low:.1f}-{row.ci_high:.1f}':<16}{boot:<14}")
    for person in d.named_by_person:
        inside = f", counted among {person.counted_in.replace('_', ' ')}" if person.counted_in else ""
        lines += _wrap(
            f"{person.display:<38}{person.n:>6}{'-':>8}  named by a person, the model cannot; "
            f"{d.n_reviewed} of {d.n_detected} cells reviewed{inside}",
            54,
        )
    if d.pct_blocked:
        lines.append("Percentages are withheld: too few cells were counted.")
    out = ", ".join(f"{e.display.lower()} {e.n}" for e in d.excluded if e.n)
    if out:
        lines += _wrap(f"Not in the denominator: {out}", 2)
    return [*lines, ""]


def _ratios(r: Result) -> list[str]:
    lines = []
    if r.me_ratio is not None:
        m = r.me_ratio
        value = "none" if m.value is None else f"{m.value:.2f} ({m.ci_low:.2f}-{m.ci_high:.2f})"
        value = f"withheld ({m.withheld})" if m.withheld else value
        value = f"{value}, not to be relied on ({m.caution})" if m.caution and not m.withheld else value
        told = f"M:E {value}, {m.myeloid} myeloid, {m.erythroid} erythroid; {r.method.me_convention}"
        lines += _wrap(told, 2)
    if r.per_100_wbc is not None:
        p = r.per_100_wbc
        known = (("NRBC", p.nrbc), ("smudge cells", p.smudge), ("artefacts", p.artefact))
        rates = ", ".join(f"{name} {value:.1f}" for name, value in known if value is not None)
        lines += [f"Per 100 WBC: {rates}"] if rates else []
    return [*lines, ""] if lines else []


def _not_assessed(r: Result) -> list[str]:
    if not r.not_assessed:
        return []
    lines = ["Could not be known:"]
    for note in r.not_assessed:
        lines += _wrap(f"- {note.what}: {note.why}", 2)
    return lines


def _problems(r: Result) -> list[str]:
    if not r.problems:
        return []
    lines = ["", "Left out:"]
    for problem in r.problems:
        lines += _wrap(f"- {problem.code}: {problem.message}", 2)
    return lines


def _wrap(text: str, indent: int) -> list[str]:
    import textwrap

    return textwrap.wrap(clean(text), WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]
