"""Virtual Perls in the report: galleries of their own, whose pictures no one takes for a stain."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.report_inputs import RunInfo
from pipeline.result import Gallery, GalleryCell
from pipeline.settings import Settings
from pipeline.types import Cell, CellClass
from pipeline.virtual_perls import METRIC, Evidence

SUFFIX = " (virtual Perls)"
TITLES: Mapping[str, str] = {
    "3": "Virtual Perls: drawn as ring sideroblasts",
    "indeterminate": "Virtual Perls: iron indeterminate",
    "2": "Virtual Perls: drawn as iron type 2",
    "1": "Virtual Perls: drawn as iron type 1",
    "0": "Virtual Perls: drawn without iron",
}


def virtual_id(cell_id: str) -> str:
    """The id under which a cell's virtual picture stands beside its real one."""
    return cell_id + SUFFIX


def evidence_of(run: RunInfo) -> Evidence | None:
    """What the stainer of virtual Perls states on its card, if one took part in the run."""
    cards = [m.card for m in run.models if m.card is not None and m.card.task == "stainer"]
    return next((Evidence.from_card(card) for card in cards if METRIC in card.metrics), None)


def virtual_galleries(
    cells: tuple[Cell, ...],
    classes: Mapping[str, CellClass],
    show: Callable[[Cell, CellClass], GalleryCell],
    settings: Settings,
) -> tuple[Gallery, ...]:
    """A gallery for each iron type that was read virtually, least sure first; none in other cases.

    `show` makes the gallery cell of a cell as it is; here it gets the virtual picture's id.
    """
    galleries = []
    for rs_type, title in TITLES.items():
        found = ((c, classes[c.cell_id]) for c in cells if c.cell_id in classes)
        members = [m for m in found if m[1].rs_virtual and m[1].rs_type == rs_type]
        members.sort(key=lambda m: (m[1].stain_confidence or 0.0, m[0].cell_id))
        if not members:
            continue
        # A person named the cell, not the iron that was drawn for it.
        update = {"virtual": True, "virtual_stain": "Perls", "label_reviewed": None}
        galleries.append(
            Gallery(
                class_="virtual_perls_" + rs_type,
                display=title,
                n_total=len(members),
                cells=tuple(
                    show(*m).model_copy(update={**update, "cell_id": virtual_id(m[0].cell_id)})
                    for m in members[: settings.report.gallery_cells_per_class]
                ),
            )
        )
    return tuple(galleries)
