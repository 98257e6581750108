"""What a value of a recipe may be: a range or a choice; stainers and classifiers state theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipeline.errors import BadInput


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low`, itself left out where `above`, to `high`, where there is one, itself left
    out where `below`."""

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        if self.high is not None and (value > self.high or (self.below and value == self.high)):
            return False
        return value > self.low if self.above else value >= self.low

    def __str__(self) -> str:
        if self.high is not None:
            return f"from {self.low} to {'below ' if self.below else ''}{self.high}"
        return f"above {self.low}" if self.above else f"{self.low} or more"


COUNT, NUMBER, POSITIVE = Range(1), Range(0), Range(0, above=True)
SHARE, PART = Range(0, 1), Range(0, 1, below=True)

Limit = Range | tuple[str, ...]


def check_limit(limit: Limit | None, key: str, value: Any, where: str) -> None:
    """Raise BadInput, beginning with `where`, unless the value of a key, or each of a tuple, is within its
    limit; numbers are finite even where there is none."""
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, float) and not math.isfinite(one):
            raise BadInput(f"{where}: '{key}' must be a finite number, not {one}.")
        if isinstance(one, bool) or limit is None or isinstance(limit, Range) == isinstance(one, str):
            continue
        if isinstance(limit, Range) and not limit.holds(one):
            raise BadInput(f"{where}: '{key}' must be {limit}, not {one}.")
        if isinstance(limit, tuple) and one not in limit:
            raise BadInput(f"{where}: '{key}' must be one of {', '.join(limit)}, not '{one}'.")
