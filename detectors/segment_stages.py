"""The shipped segmenter's training, whole: labelled cells, then boxed cells of other laboratories.

Stage one learns from masks alone.  It then labels cells of boxed smears where it agrees with boxes that it
never saw (`detectors.segment_pseudo`), and stage two goes on from its weights with both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectors.segment_training import train_segmenter
from pipeline.errors import BadInput
from storage.checkpoints import checkpoint_beside, keep_earlier

FIRST_EPOCHS, SECOND_EPOCHS = 30, 10
SECOND_RATE = 1.5e-3
PER_SOURCE = 150


def train_in_stages(
    data_dir: Path,
    out_dir: Path,
    boxes_dir: Path | None,
    *,
    epochs: int = FIRST_EPOCHS,
    second_epochs: int = SECOND_EPOCHS,
    per_source: int = PER_SOURCE,
    resume: bool = False,
    seed: int = 20261121,
    progress: Callable[[str], None] = lambda text: None,
    **figures: Any,
) -> dict[str, Any]:
    """Train on `data_dir` (as `train_segmenter` takes it) and, where given, on boxes (YOLO folder).

    Without `boxes_dir` there is one stage, whose package is `out_dir`.  With it the first stage's package is
    `out_dir`.training/first; a resumed run goes on from its checkpoint, which is refused where it is of other
    cells or figures, and labels the boxed cells again, to the same labels.  `figures` go to `train_segmenter`
    in both stages.  Returns the metrics of the last stage.
    """
    shared = {"resume": resume, "seed": seed, **figures}
    if boxes_dir is None:
        return train_segmenter(data_dir, out_dir, epochs=epochs, progress=progress, **shared)
    from detectors.segment_pseudo import pseudo_labelled_cells
    from storage.registry import load

    checkpoint = checkpoint_beside(out_dir)
    first = checkpoint.with_name("first")
    keep_earlier(resume, checkpoint, checkpoint_beside(first))  # before hours of the first stage
    progress("stage 1 of 2: labelled cells")
    train_segmenter(data_dir, first, epochs=epochs, progress=progress, **shared)
    progress("labelling boxed cells by the first stage")
    boxed = pseudo_labelled_cells(load("segmenter", str(first)), boxes_dir, per_source=per_source)
    if not boxed:
        raise BadInput(
            f"{boxes_dir}: the first stage agrees with none of its boxes; train it longer or leave out"
            " --boxes."
        )
    progress(f"stage 2 of 2: {len(boxed)} boxed cells added")
    return train_segmenter(
        data_dir,
        out_dir,
        epochs=second_epochs,
        extra_cells=boxed,
        teacher=first,
        progress=progress,
        stages=f"{epochs} epochs from random weights on labelled cells; {second_epochs} more with"
        f" {len(boxed)} cells of boxed smears that the first stage labelled",
        **{"learning_rate": SECOND_RATE, **shared},
    )
