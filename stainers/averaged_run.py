"""What every training run of a stainer has: a device and its speed, averaged generators, the step shipped."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import BadInput
from storage.checkpoints import read_checkpoint


def speed_options(options: Any, device: torch.device) -> tuple[torch.dtype | None, bool]:
    """(autocast type or None, compile?) of a recipe's `precision` and `compile` on a device.

    Raises BadInput for what it cannot do.
    """
    types = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if options.precision not in ("auto", *types) or options.compile not in ("auto", "on", "off"):
        raise BadInput(
            f"precision '{options.precision}' or compile '{options.compile}' is not known; choose auto, "
            "fp32, bf16 or fp16, and auto, on or off."
        )
    if device.type == "cuda":
        return types["bf16" if options.precision == "auto" else options.precision], options.compile == "on"
    if options.precision in ("bf16", "fp16") or options.compile == "on":
        raise BadInput("mixed precision and compilation need a CUDA GPU; set precision and compile to auto.")
    return None, False


class AveragedRun:
    """A run at step 0 on a device, at the speed that `options` ask for; `averages` are what is shipped."""

    def __init__(self, options: Any, device: torch.device) -> None:
        self.device, self.step = device, 0
        self.autocast_type, self.compiled = speed_options(options, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.autocast_type == torch.float16)
        self.averages: dict[str, nn.Module] = {}
        self.taken: int | None = None  # step of the averages, where they are not the last

    def autocast(self) -> AbstractContextManager[Any]:
        if self.autocast_type is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_type)

    def generators_state(self) -> dict[str, Any]:
        """What is kept of a step that may be shipped."""
        return {"step": self.step, "averages": {k: v.state_dict() for k, v in self.averages.items()}}

    def take_averages(self, path: Path) -> None:
        """Put a chosen checkpoint's generators in the place of the averages."""
        chosen = read_checkpoint(path, "step", "averages", device=self.device)
        for name, state in chosen["averages"].items():
            self.averages[name].load_state_dict(state)
        self.taken = int(chosen["step"])

    @property
    def checkpoint_step(self) -> int:
        """The step of the averages, which are shipped."""
        return self.step if self.taken is None else self.taken
