"""Stage: counting.  From classified cells to a differential with denominators and intervals.

What counts where is the taxonomy's to say: in blood the denominator is leukocytes, in marrow
leukocytes and erythroblasts (ICSH 2008, 2015); smudge cells, artefacts, unidentified and other cells,
platelets and megakaryocytes stay out of it.  A class that the classifier does not know gets no row:
a zero that could not have been anything else is no finding, and is reported as not assessed.  Nor does
one when a person names a few cells by it: nobody looked for it among the others (`_standing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from classifiers import taxonomy
from pipeline import statistics as st
from pipeline.counting_iron import count_sideroblasts
from pipeline.counting_ratios import caution_of_ratio, me_ratio, per_100_wbc, why_no_ratio
from pipeline.errors import BadInput
from pipeline.result import Method, NotAssessed
from pipeline.result_counts import (
    Differential,
    Excluded,
    MeRatio,
    NamedByPerson,
    Per100Wbc,
    Row,
    Sideroblasts,
)
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

# From this many fields on, the interval between fields holds the truth nine times in ten (docs/counting.md).
FEW_FIELDS = 10
PER_100 = ("smudge", "artefact")  # out of the denominator, yet a rate is told of them


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
    made_for: Mapping[str, Sequence[str]] | None = None,
) -> Counted:
    """Count the cells of a case.

    `known_classes` are what the classifier can say (its card); without them, the keys of the
    probabilities.  `reviewed` maps cell ids to a reviewer's canonical label: percentages then come
    from it, and the model's own counts are kept beside it.  `made_for` are the specimens on each
    classifier's card, which an M:E ratio asks for; None: it does not.  A cell without a class counts as
    unidentified.  Cells of a Perls slide are read for iron only.  Raises BadInput where a class or a
    review names a cell that the case does not have, or a label that is not canonical.
    """
    by_id = _match(case, cells, classes, reviewed or {})
    specimen = case.specimen
    smear = [c for c in cells if c.stain != "Perls"]
    ai = {c.cell_id: by_id[c.cell_id].label if c.cell_id in by_id else "unidentified" for c in smear}
    labels = {i: (reviewed or {}).get(i, label) for i, label in ai.items()}
    read = [by_id[i] for i in ai if i in by_id]  # what is read on Perls says nothing of the classifier
    n_reviewed = sum(i in (reviewed or {}) for i in ai)
    known = _known(known_classes, read, ai.values(), labels.values(), everything=n_reviewed == len(ai))
    differential, width_ratio = _differential(
        smear, by_id, ai, labels, known, settings, specimen, n_reviewed if reviewed else None
    )
    n = {label: sum(v == label for v in labels.values()) for label in taxonomy.CELL_TYPES}
    ratio = None
    if specimen == "bone_marrow":
        why = why_no_ratio(differential, target_count(settings, specimen))
        ratio = me_ratio(n, settings, why, caution_of_ratio(made_for))
    sideroblasts, iron_notes = count_sideroblasts(case, cells, by_id, settings)
    return Counted(
        method=_method(settings, specimen),
        differential=differential,
        per_100_wbc=per_100_wbc(n, known, settings, specimen),
        me_ratio=ratio,
        sideroblasts=sideroblasts,
        not_assessed=(*_notes(case, smear, by_id, known, labels, differential, ratio), *iron_notes),
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
    stated: Iterable[str] | None,
    classes: Iterable[CellClass],
    ai: Iterable[str],
    labels: Iterable[str],
    *,
    everything: bool,
) -> tuple[str, ...]:
    """The classes that every cell was asked for: what the classifier can say, and what follows from it.

    A person's class belongs to them where `everything` was named by persons, or where it leaves open what
    the classifier tells apart (neutrophils, beside bands and segmented ones).
    """
    known = set(stated) if stated is not None else {k for c in classes for k in c.probabilities}
    known |= set(ai)
    for label in labels:
        if everything or any(taxonomy.is_a(k, label) for k in known):
            known.add(label)
    return tuple(taxonomy.report_order(known))


def _standing(label: str, known: tuple[str, ...]) -> str:
    """The class whose row a cell stands in: its own, or the known one above it.

    A band that a person named is one of the model's neutrophils.  A blast is nobody's: it stays what it is,
    and has no row.
    """
    above = (k for k in taxonomy.ancestors(label) if k in known and k != "leukocyte")
    return label if label in known else next(above, label)


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
    n_reviewed: int | None,
) -> tuple[Differential, dict[str, float]]:
    inside = [k for k in known if taxonomy.in_denominator(k, specimen)]
    groups = [
        g
        for g in taxonomy.denominator_classes(specimen)
        if g != "leukocyte" and any(k in taxonomy.descendants(g) for k in inside)
    ]
    parents = {above for k in inside for above in taxonomy.ancestors(k)}
    own = labels
    labels = {i: _standing(label, known) for i, label in own.items()}
    by_person = taxonomy.report_order(set(own.values()) - set(known))
    without_row = [k for k in by_person if taxonomy.in_denominator(k, specimen) and _standing(k, known) == k]
    inside_ids = {i for i, label in own.items() if taxonomy.in_denominator(label, specimen)}
    n_denominator = len(inside_ids)
    members: dict[str, tuple[str, ...]] = {k: (k,) for k in inside}
    members.update({f"group {g}": (g, *taxonomy.descendants(g)) for g in groups})
    boot = _bootstrap(smear, labels, members, [*inside, *without_row], settings)
    totals = {key: sum(label in names for label in labels.values()) for key, names in members.items()}
    parts = [sum(label == k for label in labels.values()) for k in (*inside, *without_row)]
    shares = dict(
        zip((*inside, *without_row), st.largest_remainder(parts, settings.pct_decimals), strict=True)
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
            n_reviewed=None if n_reviewed is None else n,
            pct=_group_pct(names, shares, settings.pct_decimals) if n_denominator else None,
            ci_low=round(100 * low, 2),
            ci_high=round(100 * high, 2),
            boot_low=None if boot is None or n == 0 else round(100 * boot[key][0], 2),
            boot_high=None if boot is None or n == 0 else round(100 * boot[key][1], 2),
            mean_confidence=round(float(np.mean(confidences)), 4) if confidences else None,
            loinc=loinc,
            loinc_verified=loinc is not None,
        )

    outside = taxonomy.report_order(
        k for k in {*known, *by_person} if not taxonomy.in_denominator(k, specimen)
    )
    unidentified = sum(label == "unidentified" for label in own.values())
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
            Excluded(class_=k, display=taxonomy.display_name(k), n=sum(v == k for v in own.values()))
            for k in outside
        ),
        n_reviewed=n_reviewed or 0,
        n_fields=len({(c.slide, c.field) for c in smear if c.cell_id in inside_ids}),
        named_by_person=tuple(
            NamedByPerson(
                class_=k,
                display=taxonomy.display_name(k),
                n=sum(v == k for v in own.values()),
                counted_in=None if _standing(k, known) == k else _standing(k, known),
            )
            for k in by_person
            if taxonomy.in_denominator(k, specimen)
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


def _notes(
    case: Case,
    smear: list[Cell],
    by_id: dict[str, CellClass],
    known: tuple[str, ...],
    labels: dict[str, str],
    differential: Differential,
    ratio: MeRatio | None,
) -> list[NotAssessed]:
    """What the cells and the classifier cannot show (what the images cannot is the report's to say)."""
    notes = []

    def note(code: str, what: str, why: str) -> None:
        notes.append(NotAssessed(code=code, what=what, why=why))

    specimen = case.specimen
    if specimen is None:
        why = "case.yaml states no specimen; it was counted by the rules of blood, without erythroblasts"
        note("SPECIMEN_UNKNOWN", "Blood or bone marrow", why)
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
        note("CLASS_UNKNOWN_TO_MODEL", ", ".join(missing), why)
    counted = [k for k in labels.values() if taxonomy.in_denominator(k, specimen) or k in PER_100]
    person = {k: counted.count(k) for k in set(counted) - set(known)}
    if person:
        names = {taxonomy.display_name(k).lower(): person[k] for k in taxonomy.report_order(person)}
        some = ", ".join(f"{name}: {n_named}" for name, n_named in names.items())
        why = (
            f"a person named some ({some}), reviewing {differential.n_reviewed} of {differential.n_detected} "
            "cells; the classifier cannot, so nobody looked for them among the others"
        )
        note("NAMED_BY_PERSON", f"The share of {', '.join(names)}", why)
    if ratio is not None and ratio.withheld is not None:
        note("ME_RATIO_WITHHELD", "The M:E ratio", ratio.withheld)
    unclassified = sum(c.cell_id not in by_id for c in smear)
    if unclassified:
        why = f"{unclassified} of {len(smear)} cells could not be classified and count as unidentified"
        note("NOT_CLASSIFIED", "The class of some cells", why)
    if differential.n_fields < 2:
        why = "the cells counted lie in fewer than two fields, so there are no fields to compare"
        note("ONE_FIELD", "Clustering between fields (bootstrap)", why)
    elif differential.n_fields < FEW_FIELDS and any(r.boot_low is not None for r in differential.rows):
        why = (
            f"the cells counted lie in {differential.n_fields} fields; under {FEW_FIELDS} the interval "
            "between fields is too narrow: of two it holds the truth half of the time, of five in five of six"
        )
        note("FEW_FIELDS", "How far clustering between fields widens the intervals", why)
    return notes
