"""What a case could not show: missing kinds of images, virtual stain, cells that an edge cuts."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report_inputs import RunInfo
from pipeline.result import PERLS_ONLY, NotAssessed
from pipeline.settings import Settings
from pipeline.types import Case, Cell


def not_seen(case: Case, virtual: bool, run: RunInfo, settings: Settings) -> list[NotAssessed]:
    """What the images of this case cannot show."""
    notes = []
    slides_dic = {(i.slide, i.field) for i in case.images if i.modality == "dic"}
    stained = {(i.slide, i.field) for i in case.images if i.modality == "brightfield" and i.stain == "MGG"}
    if not stained and slides_dic:
        why = f"the case has DIC images only; classes are read from {_virtual_stain(run, settings)}"
        why += _named_alike(run, settings)
        notes.append(NotAssessed(code="DIC_ONLY", what="The real stain of any cell", why=why))
    elif virtual:
        n = len(slides_dic - stained)
        why = f"{n} fields have DIC only; classes there are read from {_virtual_stain(run, settings)}"
        why += _named_alike(run, settings)
        notes.append(NotAssessed(code="PARTLY_VIRTUAL", what="The real stain of some cells", why=why))
    if stained and not slides_dic:
        why = "the case has no DIC images; there was nothing to align, and no unstained view to compare with"
        notes.append(NotAssessed(code="NO_DIC", what="Registration of DIC to brightfield", why=why))
    elif slides_dic and not (slides_dic & stained):
        why = "no field has both a DIC and a brightfield image"
        notes.append(NotAssessed(code="NO_PAIR", what="Registration of DIC to brightfield", why=why))
    if case.perls_only:
        of_smear = any(i.stain != "Perls" for i in case.lost)
        why = (
            "no MGG or DIC image of the case could be used" if of_smear else "the case has Perls images only"
        )
        why += "; a differential is counted on MGG or DIC"
        notes.append(NotAssessed(code=PERLS_ONLY, what="The differential", why=why))
    if case.images and any(i.x_um is None or i.y_um is None for i in case.images):
        why = "no stage position is given for some fields; a cell seen in two overlapping fields counts twice"
        notes.append(NotAssessed(code="NO_STAGE_POSITION", what="Overlap of fields", why=why))
    if run.min_confidence is None:
        why = "the classifier states no calibrated confidence, so no cell can be called under it"
        notes.append(NotAssessed(code="NO_CALIBRATION", what="Share of cells of low confidence", why=why))
    return notes


def _named_alike(run: RunInfo, settings: Settings) -> str:
    """How often such a name was that of the real stain, where the classifier's card says so.

    A target that was named or found may be the cells' own stain or another's: both figures are given.
    """
    found = None if run.painted is None else run.painted.target
    chosen = settings.staining.target or found
    for model in run.models:
        measured = model.card.metrics.get("named_like_real_stain") if model.card is not None else None
        if measured is None:
            continue
        n, alike = measured["n"], measured["alike"]  # by target, in the stainer's order
        target = chosen or next(iter(alike))
        if target not in alike:
            continue
        share = f"{round(100 * alike[target] / n)} %"
        if chosen is not None and "own" in measured:
            own = f"{round(100 * measured['own'] / n)} %"
            share = f"{own} (each painted in the stain of its source; {share} with all in '{target}')"
        return f"; {share} of such names were those of the real stain on {measured['measured_on']}"
    return ""


def _virtual_stain(run: RunInfo, settings: Settings) -> str:
    """Which stain is painted: a classifier of real stain hangs on it (docs/virtual-naming.md)."""
    if settings.staining.target is not None:
        return f"a virtual stain, '{settings.staining.target}'"
    if run.painted is not None:
        found = run.painted
        others = ", ".join(f"{t} {c:.2f}" for t, c in found.confidence.items() if t != found.target)
        return (
            f"a virtual stain, '{found.target}', the one by which {found.n_cells} of the cells are named "
            f"most surely (mean confidence {found.confidence[found.target]:.2f}; {others})"
        )
    first = "a virtual stain, the first that the stainer paints"
    if settings.classification.virtual_classifier is not None:
        return first
    return f"{first}; names hang on it, so set staining.target to the stain most like your laboratory's"


def cut_cells(cells: Sequence[Cell], settings: Settings) -> list[NotAssessed]:
    """What became of cells at the edge of the imaged area; with `border_policy` drop there are none."""
    cut = [c for c in cells if c.at_border and c.stain != "Perls"]
    if not cut:
        return []
    least = settings.classification.min_seen
    slivers = sum(c.seen < least for c in cut)
    why = "the edge of a field cuts them; they are named by what is seen of them and count like the others"
    if slivers:
        why += f", but for {slivers} of which less than {100 * least:.0f} % is seen: unidentified"
    what = f"Whole views of {len(cut)} of the {len(cells)} cells"
    return [
        NotAssessed(code="CUT_CELLS", what=what, why=f"{why} (detection.border_policy: drop leaves all out)")
    ]
