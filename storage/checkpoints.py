"""Checkpoints of a training: written and read whole, refused in one sentence, never overwritten unasked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

MADE_OF = {
    "recipe": "another recipe or other settings",
    "data": "other images, labels or pixel sizes, or another seed",
    "start": "other starting weights",
    "total": "another number of steps",
}


def checkpoint_beside(out_dir: Path) -> Path:
    """Where a training of the package `out_dir` keeps its state, as a package is replaced as a whole."""
    return out_dir.with_name(out_dir.name + ".training") / "checkpoint.pt"


def begin_beside(out_dir: Path, resume: bool) -> Path:
    """The checkpoint beside the package `out_dir`, in a folder that is there by now.

    Raises BadInput where it is of an earlier training and `resume` is not asked for.
    """
    checkpoint = checkpoint_beside(out_dir)
    keep_earlier(resume, checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    return checkpoint


def read_checkpoint(path: Path, *needed: str, device: Any = "cpu") -> dict[str, Any]:
    """The state in a checkpoint, its tensors on `device`; nothing in the file is run.

    Raises BadInput naming the file where it cannot be read, or holds none of the keys `needed`.
    """
    import torch

    cure = "restore the file, or train without --resume into another folder"
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # truncated files alone raise four types, foreign ones whatever they please
        detail = " ".join(str(error).split()).split(". ")[0][:160] or type(error).__name__
        raise BadInput(f"{path}: the checkpoint cannot be read ({detail}); {cure}.") from error
    missing = [k for k in needed if not isinstance(state, dict) or k not in state]
    if missing:
        raise BadInput(f"{path}: no checkpoint of this training, '{missing[0]}' is missing; {cure}.")
    return dict(state)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Keep a state for `read_checkpoint`: complete or absent, whenever the run is killed."""
    import torch

    draft = path.with_name(f"{path.name}.part")
    torch.save(dict(state), draft)
    os.replace(draft, path)


def tensors_mark(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors: of what a network begins with, or learns from."""
    from storage.fingerprint import array_mark, fingerprint

    return fingerprint({name: array_mark(value.detach().cpu().numpy()) for name, value in tensors.items()})


def keep_earlier(resume: bool, *checkpoints: Path) -> None:
    """Raise BadInput where a training that does not `resume` would write over one of the checkpoints."""
    for checkpoint in checkpoints:
        if checkpoint.exists() and not resume:
            raise BadInput(
                f"{checkpoint} is the checkpoint of an earlier training; give --resume to go on from it, or "
                "another folder."
            )


def require_same(path: Path, state: Mapping[str, Any], now: Mapping[str, Any], *keys: str) -> None:
    """Raise BadInput unless a checkpoint was made of what the run that would go on from it is made of.

    Each of `keys`, of MADE_OF, stands in the checkpoint's state and in `now`.
    """
    for key in keys:
        if key not in state:
            raise BadInput(
                f"{path} does not say with what {key} it was made (an earlier version wrote it); train into "
                "another folder."
            )
        if state[key] != now[key]:
            raise BadInput(
                f"{path} was made with {MADE_OF[key]}{_difference(state[key], now[key])}; resume with the "
                "same, or train into another folder."
            )


def _difference(there: Any, here: Any, within: str = "") -> str:
    """The first setting that two recipes do not share, in brackets; empty for what are no recipes."""
    if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        return ""
    for key in (*there, *(k for k in here if k not in there)):
        a, b = there.get(key, "nothing"), here.get(key, "nothing")
        if a != b:
            told = _difference(a, b, f"{within}{key}.")
            return told or f" ({within}{key}: {a!s:.60} there, {b!s:.60} now)"
    return ""
