"""Stage: counting.  From classified cells to a differential with denominators and intervals.

What counts where is the taxonomy's to say: in blood the denominator is leukocytes, in marrow
leukocytes and erythroblasts (ICSH 2008, 2015); smudge cells, artefacts, unidentified and other cells,
platelets and megakaryocytes stay out of it.  A class that the classifier does not know gets no row:
a zero that could not have been anything else is no finding, and is reported as not assessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from classifiers import taxonomy
from pipeline import statistics as st
from pipeline.counting_iron import count_sideroblasts
from pipeline.errors import BadInput
from pipeline.result import Method, NotAssessed
from pipeline.result_counts import Differential, Excluded, MeRatio, Per100Wbc, Row, Sideroblasts
from pipeline.settings import CountingSettings
from pipeline.types import Case, Cell, CellClass

# Method-unspecified LOINC codes of blood percentages that were checked; any other is left out, and the
# text sent.  26511-6 and 26478-8 mean all neutrophils and all lymphocytes, so they stand at the total.
BLOOD_LOINC = {
    "neutrophil": "26511-6",
    "neutrophil_segmented": "26505-8",
    "neutrophil_band": "26508-2",
    "lymphocyte": "26478-8",
    "lymphocyte_reactive": "13046-8",
    "monocyte": "26485-3",
    "eosinophil": "26450-7",
    "basophil": "30180-4",
    "metamyelocyte": "28541-1",
    "myelocyte": "26498-6",
    "promyelocyte": "26524-9",
    "blast": "26446-5",
    "plasma_cell": "13047-6",
}
SMUDGE_LOINC = "34992-8"
ME_LOINC = "11138-5"


@dataclass(frozen=True)
class Counted:
    """What was counted in one case; percentages are 0-100 and rounded as `method.rounding` says.

    `width_ratio` is, per class, the width of the field bootstrap over that of the binomial interval.
    `labels` is the label each counted cell stands under, the reviewer's where there is one.
    """

    method: Method
    differential: Differential
    per_100_wbc: Per100Wbc | None
    me_ratio: MeRatio | None
    sideroblasts: Sideroblasts | None
    not_assessed: tuple[NotAssessed, ...]
    known_classes: tuple[str, ...]
    labels: dict[str, str]
    width_ratio: dict[str, float]

    def n(self, label: str) -> int:
        """Cells of a class and of all that lies below it, denominator or not."""
        return sum(taxonomy.is_a(found, label) for found in self.labels.values())

    def knows(self, label: str) -> bool:
        """Whether the classifier could have said this class, or one below it."""
        return any(taxonomy.is_a(k, label) for k in self.known_classes)


def count(
    case: Case,
    cells: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    settings: CountingSettings,
    *,
    known_classes: Iterable[str] | None = None,
    reviewed: Mapping[str, str] | None = None,
) -> Counted:
    """Count the cells of a case.

    `known_classes` are what the classifier can say (its card); without them, the keys of the
    probabilities.  `reviewed` maps cell ids to a reviewer's canonical label: percentages then come
    from it, and the model's own counts are kept beside it.  A cell without a class counts as
    unidentified.  Cells of a Perls slide are read for iron only.  Raises BadInput where a class or a
    review names a cell that the case does not have, or a label that is not canonical.
    """
    by_id = _match(case, cells, classes, reviewed or {})
    specimen = case.specimen
    smear = [c for c in cells if c.stain != "Perls"]
    ai = {c.cell_id: by_id[c.cell_id].label if c.cell_id in by_id else "unidentified" for c in smear}
    labels = {i: (reviewed or {}).get(i, label) for i, label in ai.items()}
    read = [by_id[i] for i in ai if i in by_id]  # what is read on Perls says nothing of the classifier
    known = _known(known_classes, read, labels.values())
    differential, width_ratio = _differential(
        smear, by_id, ai, labels, known, settings, specimen, bool(reviewed)
    )
    n = {label: sum(v == label for v in labels.values()) for label in taxonomy.CELL_TYPES}
    sideroblasts, iron_notes = count_sideroblasts(case, cells, by_id, settings)
    return Counted(
        method=_method(settings, specimen),
        differential=differential,
        per_100_wbc=_per_100_wbc(n, known, settings, specimen),
        me_ratio=_me_ratio(n, settings) if specimen == "bone_marrow" else None,
        sideroblasts=sideroblasts,
        not_assessed=(*_notes(case, smear, by_id, known, specimen), *iron_notes),
        known_classes=known,
        labels=labels,
        width_ratio=width_ratio,
    )


def target_count(settings: CountingSettings, specimen: str | None) -> int:
    """Cells that a differential of the specimen should rest on."""
    return settings.marrow_target if specimen == "bone_marrow" else settings.blood_target


def _match(
    case: Case, cells: tuple[Cell, ...], classes: tuple[CellClass, ...], reviewed: Mapping[str, str]
) -> dict[str, CellClass]:
    ids = {c.cell_id for c in cells}
    if len(ids) != len(cells):
        raise BadInput(f"case {case.case_id}: a cell id stands twice in the list of cells; merge them first.")
    by_id = {c.cell_id: c for c in classes}
    if len(by_id) != len(classes):
        raise BadInput(f"case {case.case_id}: a cell was classified twice; keep one class for each cell.")
    stray = sorted((set(by_id) | set(reviewed)) - ids)
    if stray:
        raise BadInput(f"case {case.case_id}: '{stray[0]}' has a class but is no cell of the case.")
    for label in {c.label for c in classes} | set(reviewed.values()):
        taxonomy.cell_type(label)
    return by_id


def _known(
    stated: Iterable[str] | None, classes: Iterable[CellClass], labels: Iterable[str]
) -> tuple[str, ...]:
    known = set(stated) if stated is not None else {k for c in classes for k in c.probabilities}
    return tuple(taxonomy.report_order(known | set(labels)))


def _method(settings: CountingSettings, specimen: str | None) -> Method:
    marrow = specimen == "bone_marrow"
    in_m = ["granulocytes and their precursors"]
    in_m += ["monocytes"] if settings.monocytes_in_myeloid else []
    in_m += ["blasts"] if settings.blasts_in_myeloid else []
    out = [
        name
        for name, counted in (
            ("monocytes", settings.monocytes_in_myeloid),
            ("blasts", settings.blasts_in_myeloid),
        )
        if not counted
    ]
    name = {"clopper-pearson": "Clopper-Pearson", "wilson": "Wilson"}[settings.interval]
    return Method(
        target_count=target_count(settings, specimen),
        denominator="leukocytes and erythroblasts" if marrow else "leukocytes",
        excluded=taxonomy.excluded_classes(specimen),
        me_convention=f"M = {' + '.join(in_m)}; E = erythroblasts"
        + (f"; {' and '.join(out)} are not counted in M" if out else ""),
        interval=name,
        level=settings.level,
        rounding=f"percentages by the largest remainder to {settings.pct_decimals} decimal(s), limits to 2",
        taxonomy_version=taxonomy.TAXONOMY_VERSION,
    )


def _differential(
    smear: list[Cell],
    by_id: dict[str, CellClass],
    ai: dict[str, str],
    labels: dict[str, str],
    known: tuple[str, ...],
    settings: CountingSettings,
    specimen: str | None,
    reviewed: bool,
) -> tuple[Differential, dict[str, float]]:
    inside = [k for k in known if taxonomy.in_denominator(k, specimen)]
    groups = [
        g
        for g in taxonomy.denominator_classes(specimen)
        if g != "leukocyte" and any(k in taxonomy.descendants(g) for k in inside)
    ]
    parents = {above for k in inside for above in taxonomy.ancestors(k)}
    n_denominator = sum(label in inside for label in labels.values())
    members: dict[str, tuple[str, ...]] = {k: (k,) for k in inside}
    members.update({f"group {g}": (g, *taxonomy.descendants(g)) for g in groups})
    boot = _bootstrap(smear, labels, members, inside, settings)
    totals = {key: sum(label in names for label in labels.values()) for key, names in members.items()}
    shares = dict(
        zip(inside, st.largest_remainder([totals[k] for k in inside], settings.pct_decimals), strict=True)
    )

    def row(key: str, label: str) -> Row:
        names, n = members[key], totals[key]
        low, high = st.proportion_interval(n, n_denominator, settings.interval, settings.level)
        by_model = [i for i, found in ai.items() if found in names]
        confidences = [by_id[i].confidence for i in by_model if i in by_id]
        # A parent with known children holds only what could not be told further: its total is a group.
        loinc = (
            BLOOD_LOINC.get(label) if specimen == "blood" and (key != label or label not in groups) else None
        )
        return Row(
            class_=label,
            display=taxonomy.display_name(label)
            + (" (not further specified)" if key == label and label in parents else ""),
            parent=taxonomy.parent(label),
            n_ai=len(by_model),
            n_reviewed=n if reviewed else None,
            pct=_group_pct(names, shares, settings.pct_decimals) if n_denominator else None,
            ci_low=round(100 * low, 2),
            ci_high=round(100 * high, 2),
            boot_low=None if boot is None or n == 0 else round(100 * boot[key][0], 2),
            boot_high=None if boot is None or n == 0 else round(100 * boot[key][1], 2),
            mean_confidence=round(float(np.mean(confidences)), 4) if confidences else None,
            loinc=loinc,
            loinc_verified=loinc is not None,
        )

    outside = [k for k in known if k not in inside]
    unidentified = sum(label == "unidentified" for label in labels.values())
    width_ratio = {}
    for key in inside:
        low, high = st.proportion_interval(totals[key], n_denominator, settings.interval, settings.level)
        if boot is not None and high > low:
            width_ratio[key] = (boot[key][1] - boot[key][0]) / (high - low)
    differential = Differential(
        n_detected=len(smear),
        n_denominator=n_denominator,
        n_excluded=len(smear) - n_denominator,
        n_unidentified=unidentified,
        pct_blocked=2 * n_denominator < target_count(settings, specimen),
        rows=tuple(row(k, k) for k in inside),
        groups=tuple(row(f"group {g}", g) for g in groups),
        excluded=tuple(
            Excluded(class_=k, display=taxonomy.display_name(k), n=sum(v == k for v in labels.values()))
            for k in outside
        ),
    )
    return differential, width_ratio


def _group_pct(names: tuple[str, ...], shares: dict[str, float], decimals: int) -> float:
    """The sum of the rounded rows, so that a total is what a reader adds up."""
    return round(sum(share for name, share in shares.items() if name in names), decimals)


def _bootstrap(
    smear: list[Cell],
    labels: dict[str, str],
    members: dict[str, tuple[str, ...]],
    inside: list[str],
    settings: CountingSettings,
) -> dict[str, tuple[float, float]] | None:
    fields = sorted({(c.slide, c.field) for c in smear})
    index = {f: i for i, f in enumerate(fields)}
    table = np.zeros((len(fields), len(members)), np.int64)
    base = np.zeros(len(fields), np.int64)
    for cell in smear:
        label, f = labels[cell.cell_id], index[cell.slide, cell.field]
        base[f] += label in inside
        for k, names in enumerate(members.values()):
            table[f, k] += label in names
    found = st.bootstrap_proportions(
        table, settings.bootstrap_draws, settings.bootstrap_seed, settings.level, base
    )
    if found is None:
        return None
    return {key: (float(found[0][k]), float(found[1][k])) for k, key in enumerate(members)}


def _per_100_wbc(
    n: dict[str, int], known: tuple[str, ...], settings: CountingSettings, specimen: str | None
) -> Per100Wbc | None:
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


def _me_ratio(n: dict[str, int], settings: CountingSettings) -> MeRatio:
    myeloid = sum(
        v
        for label, v in n.items()
        if taxonomy.is_myeloid(
            label, monocytes=settings.monocytes_in_myeloid, blasts=settings.blasts_in_myeloid
        )
    )
    erythroid = sum(v for label, v in n.items() if taxonomy.is_erythroid(label))
    value, low, high = st.ratio_interval(myeloid, erythroid, settings.level)
    return MeRatio(
        myeloid=myeloid,
        erythroid=erythroid,
        value=None if value is None else round(value, 3),
        ci_low=None if low is None else round(low, 3),
        ci_high=None if high is None else round(high, 3),
        loinc=ME_LOINC,
        loinc_verified=True,
    )


def _notes(
    case: Case,
    smear: list[Cell],
    by_id: dict[str, CellClass],
    known: tuple[str, ...],
    specimen: str | None,
) -> list[NotAssessed]:
    """What the cells and the classifier cannot show (what the images cannot is the report's to say)."""
    notes = []
    if specimen is None:
        why = "case.yaml states no specimen; it was counted by the rules of blood, without erythroblasts"
        notes.append(NotAssessed(code="SPECIMEN_UNKNOWN", what="Blood or bone marrow", why=why))
    if case.images and all(i.stain == "Perls" for i in case.images):
        return notes  # nothing was to be named
    tops = [t for t in taxonomy.LEVELS["top"] if taxonomy.in_denominator(t, specimen)]
    tops += [] if specimen == "bone_marrow" else ["erythroblast"]
    missing = [
        taxonomy.display_name(t)
        for t in [*tops, "smudge"]
        if not any(taxonomy.compatible(k, t) for k in known)
    ]
    if missing:
        why = "the classifier does not know them; such cells stand under other classes or as unidentified"
        notes.append(NotAssessed(code="CLASS_UNKNOWN_TO_MODEL", what=", ".join(missing), why=why))
    unclassified = sum(c.cell_id not in by_id for c in smear)
    if unclassified:
        why = f"{unclassified} of {len(smear)} cells could not be classified and count as unidentified"
        notes.append(NotAssessed(code="NOT_CLASSIFIED", what="The class of some cells", why=why))
    if len({(c.slide, c.field) for c in smear}) < 2:
        why = "cells lie in fewer than two fields, so there are no fields to compare"
        notes.append(NotAssessed(code="ONE_FIELD", what="Clustering between fields (bootstrap)", why=why))
    return notes
