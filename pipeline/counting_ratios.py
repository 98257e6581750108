"""Counts beside the differential: rates per 100 white cells of blood, and the M:E ratio of marrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from classifiers import taxonomy
from pipeline import statistics as st
from pipeline.result_counts import Differential, MeRatio, Per100Wbc
from pipeline.settings import CountingSettings

SMUDGE_LOINC = "34992-8"
ME_LOINC = "11138-5"


def per_100_wbc(
    n: dict[str, int], known: tuple[str, ...], settings: CountingSettings, specimen: str | None
) -> Per100Wbc | None:
    """Rates of a specimen but marrow; null where the classifier does not know the class (`known`)."""
    if specimen == "bone_marrow":
        return None
    wbc = sum(v for label, v in n.items() if taxonomy.is_leukocyte(label))
    nrbc = sum(v for label, v in n.items() if taxonomy.is_erythroblast(label))
    smudge, artefact = n["smudge"], n["artefact"]

    def share(events: int, label: str) -> tuple[float | None, float | None, float | None]:
        if wbc == 0 or not any(taxonomy.is_a(k, label) for k in known):
            return None, None, None
        low, high = st.per_hundred_interval(events, wbc, settings.interval, settings.level)
        return round(100 * events / wbc, 2), round(low, 2), None if high is None else round(high, 2)

    nrbc_rate, nrbc_low, nrbc_high = share(nrbc, "erythroblast")
    smudge_rate, smudge_low, smudge_high = share(smudge, "smudge")
    return Per100Wbc(
        nrbc=nrbc_rate,
        smudge=smudge_rate,
        artefact=share(artefact, "artefact")[0],
        n_wbc=wbc,
        n_nrbc=nrbc,
        n_smudge=smudge,
        n_artefact=artefact,
        nrbc_ci_low=nrbc_low,
        nrbc_ci_high=nrbc_high,
        smudge_ci_low=smudge_low,
        smudge_ci_high=smudge_high,
        smudge_loinc=SMUDGE_LOINC if specimen == "blood" and smudge_rate is not None else None,
    )


def me_ratio(
    n: dict[str, int], settings: CountingSettings, withheld: str | None = None, caution: str | None = None
) -> MeRatio:
    """The ratio of `n` cells by class; where it is `withheld` for a reason the counts alone, and with a
    `caution` no code, by which another system would take it for measured.
    """
    myeloid = sum(
        v
        for label, v in n.items()
        if taxonomy.is_myeloid(
            label, monocytes=settings.monocytes_in_myeloid, blasts=settings.blasts_in_myeloid
        )
    )
    erythroid = sum(v for label, v in n.items() if taxonomy.is_erythroid(label))
    value, low, high = st.ratio_interval(myeloid, erythroid, settings.level)
    shown, coded = withheld is None, withheld is None and caution is None
    return MeRatio(
        myeloid=myeloid,
        erythroid=erythroid,
        value=round(value, 3) if shown and value is not None else None,
        ci_low=round(low, 3) if shown and low is not None else None,
        ci_high=round(high, 3) if shown and high is not None else None,
        loinc=ME_LOINC if coded else None,
        loinc_verified=coded,
        withheld=withheld,
        caution=caution,
    )


def why_no_ratio(differential: Differential, target: int) -> str | None:
    """Why a marrow's M:E ratio is not given, or None where it is."""
    if not differential.pct_blocked:
        return None
    n = differential.n_denominator
    return f"{n} cells in the denominator are under half the target of {target}"


def caution_of_ratio(made_for: Mapping[str, Sequence[str]] | None) -> str | None:
    """Why a marrow's M:E ratio is not to be relied on, or None.

    `made_for`: the specimens on each classifier's card; None where that is not to be judged.
    """
    foreign = [name for name, specimens in (made_for or {}).items() if "bone_marrow" not in specimens]
    if foreign:
        return f"{' and '.join(foreign)} {'was' if len(foreign) == 1 else 'were'} not made for bone marrow"
    if made_for is not None and not made_for:
        return "no classifier states that it was made for bone marrow"
    return None
