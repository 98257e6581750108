"""What a detector's checkpoint was trained on: a run is resumed with the same data and start alone."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectors.datasets import Sample
from pipeline.errors import BadInput
from storage.checkpoints import keep_earlier, read_checkpoint, require_same

if TYPE_CHECKING:
    from detectors.training import Recipe

STATE = ("network", "ema", "updates", "optimizer", "epoch", "history", "best", "recipe")


def mark_of_data(parts: dict[str, list[Sample]]) -> str:
    """sha256 of the images and labels of every part in their order, by which each step draws.

    Folders and names do not count, so a data set may be moved.
    """
    digest = hashlib.sha256()
    files: dict[Path, bytes] = {}
    for part in sorted(parts):
        digest.update(f"{part} {len(parts[part])}\n".encode())
        for s in parts[part]:
            if s.path not in files:
                files[s.path] = hashlib.sha256(s.path.read_bytes()).digest()
            digest.update(files[s.path])
            digest.update(f"{s.pixel_size_um:.6g} {s.complete} {s.tags} {len(s.boxes)}\n".encode())
            digest.update(s.boxes.astype("<f4").tobytes() + s.classes.astype("<i8").tobytes())
    return digest.hexdigest()


def marks(parts: dict[str, list[Sample]], recipe: Recipe, start: Path | None) -> dict[str, Any]:
    """What decides the weights of a run, as its checkpoint keeps it: {"recipe", "data", "start"}."""
    from detectors.starting import mark_of

    begun = "" if start is None else mark_of(start)
    return {"recipe": asdict(recipe), "data": mark_of_data(parts), "start": begun}


def earlier_state(out_dir: Path, resume: bool, now: dict[str, Any]) -> dict[str, Any] | None:
    """The state in `out_dir`/last.pt to go on from; None for a run that begins there.

    Raises BadInput where a checkpoint would be written over, or was made of anything but `now` (`marks`).
    """
    last, best = out_dir / "last.pt", out_dir / "best.pt"
    keep_earlier(resume, last, best)
    if not last.is_file():
        if best.is_file():
            raise BadInput(f"{best} has no last.pt beside it to go on from; restore it or use a new folder.")
        return None
    state = read_checkpoint(last, *STATE)
    # Data first: their number decides settings as well, and the nearer cause is to be told.
    require_same(last, state, now, "data", "start", "recipe")
    return state
