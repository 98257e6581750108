"""What the cells and the classifier cannot show; what the images cannot is the report's to say."""

from __future__ import annotations

from classifiers import taxonomy
from pipeline.counting_differential import Named
from pipeline.result import NotAssessed
from pipeline.result_counts import Differential, MeRatio
from pipeline.settings import CountingSettings
from pipeline.types import Case

# From this many fields on, the interval between fields holds the truth nine times in ten (docs/counting.md).
FEW_FIELDS = 10
PER_100 = ("smudge", "artefact")  # out of the denominator, yet a rate is told of them


def notes_on(
    case: Case,
    named: Named,
    differential: Differential,
    ratio: MeRatio | None,
    settings: CountingSettings,
) -> list[NotAssessed]:
    """What is to be said of a count, in the order of the report."""
    notes: list[NotAssessed | None] = []
    if case.specimen is None:
        why = "case.yaml states no specimen; it was counted by the rules of blood, without erythroblasts"
        notes.append(NotAssessed(code="SPECIMEN_UNKNOWN", what="Blood or bone marrow", why=why))
    if not case.perls_only:  # there, nothing was to be named
        notes += [
            _unknown_to_model(named.known, case.specimen),
            _named_by_person(named, differential, case.specimen),
            _no_ratio(ratio),
            _unclassified(named),
            _between_fields(differential, settings),
        ]
    return [note for note in notes if note is not None]


def _unknown_to_model(known: tuple[str, ...], specimen: str | None) -> NotAssessed | None:
    tops = [t for t in taxonomy.LEVELS["top"] if taxonomy.in_denominator(t, specimen)]
    tops += [] if specimen == "bone_marrow" else ["erythroblast"]
    missing = [
        taxonomy.display_name(t)
        for t in [*tops, "smudge"]
        if not any(taxonomy.compatible(k, t) for k in known)
    ]
    if not missing:
        return None
    why = "the classifier does not know them; such cells stand under other classes or as unidentified"
    return NotAssessed(code="CLASS_UNKNOWN_TO_MODEL", what=", ".join(missing), why=why)


def _named_by_person(named: Named, differential: Differential, specimen: str | None) -> NotAssessed | None:
    counted = [k for k in named.labels.values() if taxonomy.in_denominator(k, specimen) or k in PER_100]
    person = {k: counted.count(k) for k in set(counted) - set(named.known)}
    if not person:
        return None
    names = {taxonomy.display_name(k).lower(): person[k] for k in taxonomy.report_order(person)}
    some = ", ".join(f"{name}: {n_named}" for name, n_named in names.items())
    why = (
        f"a person named some ({some}), reviewing {differential.n_reviewed} of {differential.n_detected} "
        "cells; the classifier cannot, so nobody looked for them among the others"
    )
    return NotAssessed(code="NAMED_BY_PERSON", what=f"The share of {', '.join(names)}", why=why)


def _no_ratio(ratio: MeRatio | None) -> NotAssessed | None:
    if ratio is None or ratio.withheld is None:
        return None
    return NotAssessed(code="ME_RATIO_WITHHELD", what="The M:E ratio", why=ratio.withheld)


def _unclassified(named: Named) -> NotAssessed | None:
    unclassified = sum(c.cell_id not in named.by_id for c in named.smear)
    if not unclassified:
        return None
    why = f"{unclassified} of {len(named.smear)} cells could not be classified and count as unidentified"
    return NotAssessed(code="NOT_CLASSIFIED", what="The class of some cells", why=why)


def _between_fields(differential: Differential, settings: CountingSettings) -> NotAssessed | None:
    if settings.bootstrap_draws == 0:
        why = "counting.bootstrap_draws is 0: no interval between fields was drawn or compared"
        return NotAssessed(code="NO_BOOTSTRAP", what="Clustering between fields (bootstrap)", why=why)
    if differential.n_fields < 2:
        why = "the cells counted lie in fewer than two fields, so there are no fields to compare"
        return NotAssessed(code="ONE_FIELD", what="Clustering between fields (bootstrap)", why=why)
    if differential.n_fields < FEW_FIELDS and any(r.boot_low is not None for r in differential.rows):
        why = (
            f"the cells counted lie in {differential.n_fields} fields; under {FEW_FIELDS} the interval "
            "between fields is too narrow: of two it holds the truth half of the time, of five in five of six"
        )
        what = "How far clustering between fields widens the intervals"
        return NotAssessed(code="FEW_FIELDS", what=what, why=why)
    return None
