"""Checkpoints of a training: read whole or refused in one sentence, and never overwritten unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import BadInput


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


def keep_earlier(resume: bool, *checkpoints: Path) -> None:
    """Raise BadInput where a training that does not `resume` would write over one of the checkpoints."""
    for checkpoint in checkpoints:
        if checkpoint.exists() and not resume:
            raise BadInput(
                f"{checkpoint} is the checkpoint of an earlier training; give --resume to go on from it, or "
                "another folder."
            )
