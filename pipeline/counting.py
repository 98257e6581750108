"""Stage: counting.  From classified cells to a differential with denominators and intervals.

What counts where is the taxonomy's to say: in blood the denominator is leukocytes, in marrow
leukocytes and erythroblasts (ICSH 2008, 2015); smudge cells, artefacts, unidentified and other cells,
platelets and megakaryocytes stay out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from classifiers import taxonomy
from pipeline.counting_differential import Named, differential_of, target_count
from pipeline.counting_iron import count_sideroblasts
from pipeline.counting_notes import notes_on
from pipeline.counting_ratios import caution_of_ratio, me_ratio, per_100_wbc, why_no_ratio
from pipeline.errors import BadInput
from pipeline.result import Method, NotAssessed
from pipeline.result_counts import Differential, MeRatio, Per100Wbc, Sideroblasts
from pipeline.settings import CountingSettings
from pipeline.types import Case, Cell, CellClass


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
    unidentified.  Cells of a Perls slide are read for iron only: a case of them alone has no rows, no rates
    and no ratio.  Raises BadInput where a class or a
    review names a cell that the case does not have, or a label that is not canonical.
    """
    by_id = _match(case, cells, classes, reviewed or {})
    specimen = case.specimen
    # Where no smear shows, there was nothing to name: no class has a row, not even one of zero.
    named = _named(cells, by_id, reviewed or {}, () if case.perls_only else known_classes)
    differential, width_ratio = differential_of(named, settings, specimen)
    n = {label: sum(v == label for v in named.labels.values()) for label in taxonomy.CELL_TYPES}
    ratio = rates = None
    if not case.perls_only:
        rates = per_100_wbc(n, named.known, settings, specimen)
    if specimen == "bone_marrow" and not case.perls_only:
        why = why_no_ratio(differential, target_count(settings, specimen))
        ratio = me_ratio(n, settings, why, caution_of_ratio(made_for))
    sideroblasts, iron_notes = count_sideroblasts(case, cells, by_id, settings)
    return Counted(
        method=_method(settings, specimen),
        differential=differential,
        per_100_wbc=rates,
        me_ratio=ratio,
        sideroblasts=sideroblasts,
        not_assessed=(*notes_on(case, named, differential, ratio, settings), *iron_notes),
        known_classes=named.known,
        labels=named.labels,
        width_ratio=width_ratio,
    )


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


def _named(
    cells: tuple[Cell, ...],
    by_id: dict[str, CellClass],
    reviewed: Mapping[str, str],
    known_classes: Iterable[str] | None,
) -> Named:
    """What each cell of the stained smears is called, by the model and in all."""
    smear = tuple(c for c in cells if c.stain != "Perls")
    ai = {c.cell_id: by_id[c.cell_id].label if c.cell_id in by_id else "unidentified" for c in smear}
    labels = {i: reviewed.get(i, label) for i, label in ai.items()}
    read = [by_id[i] for i in ai if i in by_id]  # what is read on Perls says nothing of the classifier
    n_reviewed = sum(i in reviewed for i in ai)
    known = _known(known_classes, read, ai.values(), labels.values(), everything=n_reviewed == len(ai))
    return Named(smear, by_id, ai, labels, known, n_reviewed if reviewed else None)


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
