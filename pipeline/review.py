"""A person's review of a case: corrected classes and releases, as the audit log tells them.

Status, after FHIR's DiagnosticReport: `preliminary` until a person signs; `final` once signed;
`amended` where what was signed has changed since (a correction, a recount, other images) and nobody has
signed the new form; `corrected` once somebody has; `cancelled` where a person withdrew it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import Field

from classifiers import taxonomy
from pipeline.cells import overlap
from pipeline.errors import BadInput, shown
from pipeline.result import AuditEntry, NotAssessed, Review, Status
from pipeline.types import Box, Cell, CellClass, Spec
from storage.tables import read_table

SAME_CELL_IOU = 0.5
MAX_CSV_BYTES = 4 << 20
COLUMNS = ("cell_id", "class")


class Act(Spec):
    """One act of a reviewer: `changes` are (target, old, new)."""

    ts: str  # ISO 8601
    actor: str
    action: str
    reason: str
    changes: tuple[tuple[str, str | None, str | None], ...]
    content: str | None = None  # of a signature: what was signed
    boxes: dict[str, Box] = Field(default_factory=dict)  # of corrected cells


class ReviewState(Spec):
    """What the acts of all reviewers come to."""

    labels: dict[str, str]
    boxes: dict[str, Box]
    reviewer: str | None = None
    reviewed_at: str | None = None
    comment: str = ""
    signatures: int = 0
    signed_content: str | None = None
    cancelled: bool = False

    def status(self, content: str) -> Status:
        """The status of a result whose content (cells, classes, settings, corrections) has this mark."""
        if self.cancelled:
            return "cancelled"
        if not self.signatures:
            return "preliminary"
        if self.signed_content != content:
            return "amended"
        return "final" if self.signatures == 1 else "corrected"


def review_state(acts: Iterable[Act]) -> ReviewState:
    """Corrections in their order, the last of a cell holding; a signature revives a cancelled report."""
    labels: dict[str, str] = {}
    boxes: dict[str, Box] = {}
    last: Act | None = None
    signatures, content, cancelled, comments = 0, None, False, []
    for act in acts:
        last = act
        if act.action == "review":
            labels.update({target: new for target, _, new in act.changes if new is not None})
            boxes.update(act.boxes)
        elif act.action == "sign":
            # The same content signed twice (a second signature) is no correction.
            signatures += act.content != content
            content, cancelled = act.content, False
        elif act.action == "cancel":
            cancelled = True
        if act.reason:
            comments.append(act.reason)
    return ReviewState(
        labels=labels,
        boxes=boxes,
        reviewer=last.actor if last else None,
        reviewed_at=last.ts if last else None,
        comment=comments[-1] if comments else "",
        signatures=signatures,
        signed_content=content,
        cancelled=cancelled,
    )


def placed_labels(state: ReviewState, cells: Iterable[Cell]) -> dict[str, str]:
    """The corrections whose cells the case still has, at the place where the reviewer saw them.

    A cell's number is stable under re-running, but not under another detector: a correction may not pass
    to the cell that has the number now.
    """
    found = {}
    for cell in cells:
        box = state.boxes.get(cell.cell_id)
        if cell.cell_id not in state.labels or box is None:
            continue
        if overlap(box, cell.bbox_px)[0] >= SAME_CELL_IOU:
            found[cell.cell_id] = state.labels[cell.cell_id]
    return found


def review_part(
    state: ReviewState, labels: dict[str, str], classes: Iterable[CellClass], n_cells: int
) -> Review:
    """The result's account of its review; `labels` are those corrections whose cells the case still has."""
    model = {c.cell_id: c.label for c in classes}
    return Review(
        reviewer=state.reviewer,
        reviewed_at=_moment(state.reviewed_at),
        pct_reviewed=round(100 * len(labels) / max(1, n_cells), 2),
        n_reclassified=sum(model.get(i, "unidentified") != label for i, label in labels.items()),
        comment=state.comment,
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def lost_corrections(n: int) -> tuple[NotAssessed, ...]:
    """What a report says of corrections whose cells it does not show any more."""
    if not n:
        return ()
    why = "the images, detector or settings have changed since; the cells are not where the reviewer saw them"
    return (NotAssessed(code="REVIEW_LOST", what=f"{n} of the reviewer's corrections", why=why),)


def audit_part(acts: Iterable[Act]) -> tuple[AuditEntry, ...]:
    """The acts as a result repeats them, one line a change."""
    return tuple(
        AuditEntry(
            ts=datetime.fromisoformat(act.ts),
            actor=act.actor,
            action=act.action,
            target=target,
            old=old,
            new=new,
            reason=act.reason,
        )
        for act in acts
        for target, old, new in act.changes
    )


def read_corrections(path: Path) -> list[tuple[str, str]]:
    """(cell id, class) of each row of a CSV with the columns cell_id and class; raises BadInput."""
    rows = read_table(path, COLUMNS, COLUMNS, max_bytes=MAX_CSV_BYTES)
    if not rows:
        raise BadInput(f"{path} needs the columns {','.join(COLUMNS)} and one line for each cell.")
    # A spreadsheet's apostrophe before =, +, - or @ is no part of a name.
    return [(row["cell_id"].removeprefix("'"), row["class"]) for row in rows]


def check_corrections(case_id: str, cells: Sequence[Cell], corrections: Sequence[tuple[str, str]]) -> None:
    """Raise BadInput for a cell that the case does not have or a class that is not canonical."""
    by_id = {c.cell_id: c for c in cells}
    seen: dict[str, str] = {}
    for cell_id, label in corrections:
        cell = by_id.get(cell_id)
        if cell is None:
            raise BadInput(f"{case_id} has no cell '{shown(cell_id, 80)}'; its cells are in cells.parquet.")
        if cell.stain == "Perls":
            raise BadInput(
                f"{case_id}: {cell_id} lies on a Perls slide, where cells are read for iron and not for "
                "class; correct its class on the MGG slide."
            )
        if label not in taxonomy.ORDER:
            raise BadInput(
                f"'{shown(label, 80)}' is no class of the hierarchy; use one of {', '.join(taxonomy.ORDER)}."
            )
        if seen.setdefault(cell_id, label) != label:
            raise BadInput(f"{case_id}: {cell_id} is given two classes; give one.")
