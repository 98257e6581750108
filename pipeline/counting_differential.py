"""The differential: which classes have a row, and each row's share with its intervals.

A class that the classifier does not know gets no row: a zero that could not have been anything else is no
finding, and is reported as not assessed.  Nor does one when a person names a few cells by it: nobody looked
for it among the others (`standing`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from classifiers import taxonomy
from pipeline import statistics as st
from pipeline.result_counts import Differential, Excluded, NamedByPerson, Row
from pipeline.settings import CountingSettings
from pipeline.types import Cell, CellClass

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


@dataclass(frozen=True)
class Named:
    """The cells of the stained smears and what each is called.

    `by_id` are the classes that the classifier gave, `ai` its label of each cell, `labels` what the cell
    counts as: the reviewer's label where there is one.  `known` are the classes that every cell was asked
    for; `n_reviewed` is None where nobody reviewed.
    """

    smear: tuple[Cell, ...]
    by_id: dict[str, CellClass]
    ai: dict[str, str]
    labels: dict[str, str]
    known: tuple[str, ...]
    n_reviewed: int | None


@dataclass(frozen=True)
class _Table:
    """What the rows are made of.

    `inside` are the classes of the denominator that have a row, `groups` the parents that have a total,
    `by_person` the classes that only a person named and `without_row` those of them that no row holds.
    `members` and `totals` are the labels and cells of each row (its class) and of each total ("group" and
    its class); `shares` are the rounded percentages of `inside` and `without_row`, `boot` the intervals
    between fields by the keys of `members`.
    """

    inside: list[str]
    groups: list[str]
    by_person: list[str]
    without_row: list[str]
    denominator: set[str]
    members: dict[str, tuple[str, ...]]
    totals: dict[str, int]
    shares: dict[str, float]
    boot: dict[str, tuple[float, float]] | None


def differential_of(
    named: Named, settings: CountingSettings, specimen: str | None
) -> tuple[Differential, dict[str, float]]:
    """The differential, and the width of each row's field bootstrap over that of its binomial interval."""
    table = _table(named, settings, specimen)
    called = list(named.labels.values())
    outside = taxonomy.report_order(
        k for k in {*named.known, *table.by_person} if not taxonomy.in_denominator(k, specimen)
    )
    differential = Differential(
        n_detected=len(named.smear),
        n_denominator=len(table.denominator),
        n_excluded=len(named.smear) - len(table.denominator),
        n_unidentified=called.count("unidentified"),
        pct_blocked=2 * len(table.denominator) < target_count(settings, specimen),
        rows=tuple(_row(named, table, k, k, settings, specimen) for k in table.inside),
        groups=tuple(_row(named, table, f"group {g}", g, settings, specimen) for g in table.groups),
        excluded=tuple(
            Excluded(class_=k, display=taxonomy.display_name(k), n=called.count(k)) for k in outside
        ),
        n_reviewed=named.n_reviewed or 0,
        n_fields=len({(c.slide, c.field) for c in named.smear if c.cell_id in table.denominator}),
        named_by_person=tuple(
            NamedByPerson(
                class_=k,
                display=taxonomy.display_name(k),
                n=called.count(k),
                counted_in=None if k in table.without_row else standing(k, named.known),
            )
            for k in table.by_person
            if taxonomy.in_denominator(k, specimen)
        ),
    )
    return differential, _width_ratio(table, settings)


def target_count(settings: CountingSettings, specimen: str | None) -> int:
    """Cells that a differential of the specimen should rest on."""
    return settings.marrow_target if specimen == "bone_marrow" else settings.blood_target


def standing(label: str, known: tuple[str, ...]) -> str:
    """The class whose row a cell stands in: its own, or the known one above it.

    A band that a person named is one of the model's neutrophils.  A blast is nobody's: it stays what it is,
    and has no row.
    """
    above = (k for k in taxonomy.ancestors(label) if k in known and k != "leukocyte")
    return label if label in known else next(above, label)


def _table(named: Named, settings: CountingSettings, specimen: str | None) -> _Table:
    known = named.known
    inside = [k for k in known if taxonomy.in_denominator(k, specimen)]
    groups = [
        g
        for g in taxonomy.denominator_classes(specimen)
        if g != "leukocyte" and any(k in taxonomy.descendants(g) for k in inside)
    ]
    by_person = taxonomy.report_order(set(named.labels.values()) - set(known))
    without_row = [k for k in by_person if taxonomy.in_denominator(k, specimen) and standing(k, known) == k]
    members: dict[str, tuple[str, ...]] = {k: (k,) for k in inside}
    members.update({f"group {g}": (g, *taxonomy.descendants(g)) for g in groups})
    stands = {i: standing(label, known) for i, label in named.labels.items()}
    parts = [*inside, *without_row]
    counts = [sum(label == k for label in stands.values()) for k in parts]
    return _Table(
        inside=inside,
        groups=groups,
        by_person=by_person,
        without_row=without_row,
        denominator={i for i, label in named.labels.items() if taxonomy.in_denominator(label, specimen)},
        members=members,
        totals={key: sum(label in names for label in stands.values()) for key, names in members.items()},
        shares=dict(zip(parts, st.largest_remainder(counts, settings.pct_decimals), strict=True)),
        boot=_bootstrap(named.smear, stands, members, parts, settings),
    )


def _row(
    named: Named, table: _Table, key: str, label: str, settings: CountingSettings, specimen: str | None
) -> Row:
    """The row or total of a class; `key` says which of the two."""
    names, n = table.members[key], table.totals[key]
    low, high = st.proportion_interval(n, len(table.denominator), settings.interval, settings.level)
    by_model = [i for i, found in named.ai.items() if found in names]
    confidences = [named.by_id[i].confidence for i in by_model if i in named.by_id]
    is_row = key == label
    # A parent with known children holds only what could not be told further: its total is a group.
    loinc = BLOOD_LOINC.get(label) if specimen == "blood" and not (is_row and label in table.groups) else None
    rest = is_row and any(label in taxonomy.ancestors(k) for k in table.inside)
    boot = None if table.boot is None or n == 0 else table.boot[key]
    return Row(
        class_=label,
        display=taxonomy.display_name(label) + (" (not further specified)" if rest else ""),
        parent=taxonomy.parent(label),
        n_ai=len(by_model),
        n_reviewed=None if named.n_reviewed is None else n,
        pct=_group_pct(names, table.shares, settings.pct_decimals) if table.denominator else None,
        ci_low=round(100 * low, 2),
        ci_high=round(100 * high, 2),
        boot_low=None if boot is None else round(100 * boot[0], 2),
        boot_high=None if boot is None else round(100 * boot[1], 2),
        mean_confidence=round(float(np.mean(confidences)), 4) if confidences else None,
        loinc=loinc,
        loinc_verified=loinc is not None,
    )


def _width_ratio(table: _Table, settings: CountingSettings) -> dict[str, float]:
    """Per row, the width of the field bootstrap over that of the binomial interval."""
    if table.boot is None:
        return {}
    found = {}
    for key in table.inside:
        low, high = st.proportion_interval(
            table.totals[key], len(table.denominator), settings.interval, settings.level
        )
        if high > low:
            found[key] = (table.boot[key][1] - table.boot[key][0]) / (high - low)
    return found


def _group_pct(names: tuple[str, ...], shares: dict[str, float], decimals: int) -> float:
    """The sum of the rounded rows, so that a total is what a reader adds up."""
    return round(sum(share for name, share in shares.items() if name in names), decimals)


def _bootstrap(
    smear: tuple[Cell, ...],
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
