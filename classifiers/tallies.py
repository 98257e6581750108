"""How many labelled cells of which class a training learns from, holds out, and can make no use of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from classifiers.sources import Sample, level_classes, to_level
from pipeline.errors import BadInput

NONE = "none"  # of the classes: what trains the further output of a network
NONE_LABELS = ("other", "artefact", "smudge")  # where no classes of the level: no leukocyte can have them


def role_of(label: str, level: str | tuple[str, ...]) -> str | None:
    """The class of a level that a label is learned as, `NONE`, or None where the level has no use for it."""
    found = to_level(label, level)
    if found in level_classes(level):
        return found
    return NONE if found in NONE_LABELS else None


@dataclass(frozen=True)
class Tally:
    """Cells of each class, and of `NONE`, learned from and held out; `left_out`: of labels without use."""

    level: str | tuple[str, ...]
    learned: dict[str, int]
    held_out: dict[str, int]
    left_out: dict[str, int]

    @property
    def untrained(self) -> tuple[str, ...]:
        """The classes of the level of which there is no cell to learn from."""
        return tuple(c for c in level_classes(self.level) if c not in self.learned)

    @property
    def held_out_share(self) -> float:
        """Of the cells that are of use, the share that is held out."""
        held = sum(self.held_out.values())
        return round(held / max(1, held + sum(self.learned.values())), 4)

    def require_two_classes(self) -> None:
        """Raise BadInput unless two classes of the level have cells to learn from."""
        named = sorted(self.learned.keys() - {NONE})
        if len(named) >= 2:
            return
        level = self.level if isinstance(self.level, str) else ", ".join(self.level)
        found = f"of {named[0]} alone" if named else "of none of them"
        unused = f" (left out: {_listed(self.left_out)})" if self.left_out else ""
        raise BadInput(
            f"level '{level}': there are cells {found}{unused}, and a classifier tells two classes apart at "
            "least; give cells of another class, or a recipe whose level has these classes."
        )

    def lines(self) -> list[str]:
        """What a person should know before the training begins."""
        each = [
            f"{c} {self.learned.get(c, 0)} + {self.held_out.get(c, 0)}"
            for c in sorted(self.learned.keys() | self.held_out.keys())
        ]
        said = [f"cells to learn from + held out: {', '.join(each)}"]
        if self.left_out:
            said.append(f"left out, the recipe's level has no class for them: {_listed(self.left_out)}")
        if self.untrained:
            said.append(f"no cell of {', '.join(self.untrained)}: the model will never name them")
        return said

    def on_card(self) -> dict[str, Any]:
        """As the card's `training` states it."""
        return {
            "cells": {"learned": self.learned, "held_out": self.held_out, "left_out": self.left_out},
            "held_out_share": self.held_out_share,
        }

    def __str__(self) -> str:
        parts = [f"{sum(self.learned.values())} cells learned from, {sum(self.held_out.values())} held out"]
        if self.left_out:
            parts.append(f"left out: {_listed(self.left_out)}")
        return "; ".join(parts)


def tally(learned: Sequence[Sample], held_out: Sequence[Sample], level: str | tuple[str, ...]) -> Tally:
    """Count the cells of a split by what a level makes of their labels."""
    roles = {s.label: role_of(s.label, level) for s in (*learned, *held_out)}

    def counts(samples: Sequence[Sample]) -> dict[str, int]:
        found = Counter(r for r in (roles[s.label] for s in samples) if r is not None)
        return dict(sorted(found.items()))

    left_out = Counter(s.label for s in (*learned, *held_out) if roles[s.label] is None)
    return Tally(level, counts(learned), counts(held_out), dict(sorted(left_out.items())))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{label} {n}" for label, n in counts.items())
