"""The choice of a checkpoint: what a run measured at which step, and its best generators by each criterion.

A run folder keeps the measures in `choice.csv`, a row a look and a column a criterion, and the best
generators as `best-<criterion>.pt`.  Of `loss` the lowest is best, of anything else, a score, the highest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.checkpoints import read_checkpoint, write_checkpoint
from storage.tables import append_rows, read_own

TABLE = "choice.csv"
CHOSEN = {"loss": "lowest error on held-out pairs", "last": "last"}  # choosers that are no classifier


def keep_best(out_dir: Path, step: int, values: Mapping[str, float], state: dict[str, Any]) -> None:
    """Note the values of a look at `step`, and keep `state` by every criterion of which they are the best.

    A value that is no number is noted and never the best.
    """
    now = {name: round(value, 6) for name, value in values.items()}
    for name, value in now.items():
        best = _best_row(out_dir, name)
        if math.isfinite(value) and (best is None or _rank(name, value) < best[0]):
            write_checkpoint(out_dir / f"best-{name}.pt", state)
    append_rows(out_dir / TABLE, [{"step": step, **now}])


def best_of(out_dir: Path, criterion: str) -> Path | None:
    """`best-<criterion>.pt`; None where it is not there, or is not of the best step of this run's choice.csv.

    Raises BadInput where the file is damaged.
    """
    path, best = out_dir / f"best-{criterion}.pt", _best_row(out_dir, criterion)
    if best is None or not path.is_file():
        return None
    return path if read_checkpoint(path, "step", "averages")["step"] == best[1] else None


def best_by(out_dir: Path, chooser: str, generator: str) -> tuple[Path | None, str]:
    """The checkpoint that a recipe's `chooser` picks for a generator of several targets, and a card's words.

    `loss`, `last`, or a classifier, whose score stands under the generator's name.  None is the last one: as
    asked, or because no look gave a number.
    """
    best = best_of(out_dir, chooser if chooser in CHOSEN else generator)
    if best is None:
        return None, CHOSEN["last"]
    return best, CHOSEN.get(chooser, f"most held-out cells named like the real ones by {chooser}")


def _rank(criterion: str, value: float) -> float:
    """Lower is better."""
    return value if criterion == "loss" else -value


def _best_row(out_dir: Path, criterion: str) -> tuple[float, int] | None:
    """Rank and step of the first best row."""
    if not (out_dir / TABLE).is_file():
        return None
    _, noted = read_own(out_dir / TABLE)
    rows = [(_rank(criterion, float(r.get(criterion) or "nan")), int(r["step"])) for r in noted]
    return min((r for r in rows if math.isfinite(r[0])), default=None)
