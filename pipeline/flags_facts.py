"""What the rules of the flags look at, and what they return."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.counting import Counted
from pipeline.report_inputs import RunInfo
from pipeline.result import FieldReport, Severity, Status
from pipeline.settings import CountingSettings
from pipeline.types import Case, CellClass


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    case: Case
    counted: Counted
    classes: tuple[CellClass, ...]
    fields: tuple[FieldReport, ...]
    run: RunInfo
    status: Status
    settings: CountingSettings

    @property
    def marrow(self) -> bool:
        return self.case.specimen == "bone_marrow"


@dataclass(frozen=True)
class Finding:
    """A rule that fired; `severity` where it is not the rule's own."""

    message: str
    value: float | str | None
    severity: Severity | None = None
