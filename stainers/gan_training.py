"""What the training of every adversarial stainer shares: steps, schedule, checkpoints, choice, pictures.

A run folder holds `checkpoint.pt` (all that a resumed run needs; read with weights only, nothing is
unpickled), `losses.csv`, `choice.csv`, `best-<criterion>.pt` and `samples-<step>.png`.  Batch
number n is the same in any run of a seed, so a resumed run ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from stainers.averaged_run import AveragedRun
from stainers.cell_sets import Example, Sampler, StainSet
from stainers.choice import keep_best
from stainers.data_marks import mark_of_recipe, mark_of_set
from stainers.gan_records import begin_anew, drop_later, run_on_picture, save_samples
from storage.averages import follow
from storage.checkpoints import read_checkpoint, require_same, write_checkpoint
from storage.tables import append_rows

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int, dict[str, float]], None]
Apply = Callable[[Sequence[Array]], list[Array]]  # pictures (H, W, C) uint8 -> virtual (H, W, 3) uint8
Score = Callable[[Apply], float]  # higher is better: the accuracy of a classifier, say


@dataclass(frozen=True)
class RunOptions:
    """How long, how fast, how often.

    `steps` above 0 overrides `epochs` (an epoch shows every source patch once; of several domains, as many
    pictures as there are).  The learning rate is
    constant until the share `decay_from` of the steps and then falls linearly to 0.  `ema` above 0 keeps an
    averaged copy of the generators, which is what is used.  precision: auto, fp32, bf16 or fp16; compile:
    auto, on or off (auto is off); anything but fp32 and off needs a GPU.
    """

    epochs: int = 20
    steps: int = 0
    batch: int = 4
    learning_rate: float = 2e-4
    decay_from: float = 0.5
    ema: float = 0.99
    seed: int = 20261121
    checkpoint_every: int = 100
    sample_every: int = 500
    choose_every: int = 0  # steps between looks at the validation part; 0: once an epoch
    precision: str = "auto"
    compile: str = "auto"


@dataclass(frozen=True)
class Batch:
    """source (B, C, h, w), target (B, 3, h, w) in [0, 1]; class indices (B,), -1 where unknown."""

    source: Tensor
    target: Tensor
    source_label: Tensor
    target_label: Tensor


def to_batch(examples: Sequence[Example], device: torch.device) -> Batch:
    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(e, name) for e in examples])).to(device)

    return Batch(stack("source"), stack("target"), stack("source_label"), stack("target_label"))


class GanRun(AveragedRun):
    """One training run: networks, averages, optimisers, pools, where it stands, and the mark of its data.

    A family fills `nets`, names its `generators`, and gives `losses`: a step is one pass for the generators
    and one for the discriminators.
    """

    generators: tuple[str, ...] = ()
    seed_offset = 0

    def __init__(self, recipe: Any, options: RunOptions, total_steps: int, device: torch.device) -> None:
        torch.manual_seed(options.seed)
        super().__init__(options, device)
        self.recipe, self.options, self.total, self.data = recipe, options, total_steps, ""
        self.nets: dict[str, nn.Module] = {}
        self.pools: dict[str, Any] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}

    def ready(self, betas: tuple[float, float] = (0.5, 0.999)) -> None:
        """After `nets` are there: averages, an Adam for generators and one for discriminators."""
        import copy

        for name, net in self.nets.items():
            net.to(self.device)
            if name in self.generators:
                self.averages[name] = copy.deepcopy(net).eval().requires_grad_(False)
        groups = {
            "generators": list(self.generators),
            "discriminators": sorted(set(self.nets) - set(self.generators)),
        }
        for group, names in groups.items():
            parameters = [p for n in names for p in self.nets[n].parameters()]
            if parameters:
                self.optimisers[group] = torch.optim.Adam(
                    parameters, lr=self.options.learning_rate, betas=betas
                )
        self.call: dict[str, Any] = {
            n: torch.compile(net) if self.compiled else net for n, net in self.nets.items()
        }

    def learning_rate(self) -> float:
        """Constant, then a line to zero (Zhu et al., ICCV 2017)."""
        first = self.options.decay_from * self.total
        share = (self.step - first) / max(self.total - first, 1)
        return self.options.learning_rate * (1.0 - min(max(share, 0.0), 1.0))

    @property
    def last_fifth(self) -> bool:
        return self.step >= 0.8 * self.total

    def passes(self, batch: Batch) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yield (group, total loss, its parts) for each pass; the next is asked for after the update."""
        raise NotImplementedError

    def train_step(self, batch: Batch) -> dict[str, float]:
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate()
        report: dict[str, float] = {}
        passes = self.passes(batch)
        while True:
            with self.autocast():
                found = next(passes, None)
            if found is None:
                break
            name, total, parts = found
            for group, optimiser in self.optimisers.items():
                if group != name:  # gradients that a pass leaves with the other side are not that side's
                    optimiser.zero_grad(set_to_none=True)
            optimiser = self.optimisers[name]
            optimiser.zero_grad(set_to_none=True)
            self.scaler.scale(total).backward()
            self.scaler.step(optimiser)
            report |= {k: float(v.detach()) for k, v in parts.items()}
        self.scaler.update()
        keep = min(self.options.ema, (1 + self.step) / (10 + self.step)) if self.options.ema > 0 else 0.0
        for name, average in self.averages.items():
            follow(average, self.nets[name], keep)
        self.step += 1
        return report

    def validate(self, data: StainSet) -> float:
        """The loss by which a checkpoint is chosen, lower is better."""
        raise NotImplementedError

    def given(self, picture: Array) -> Array:
        """What a generator is given of a picture (H, W, C) uint8."""
        return picture

    def virtual(self, name: str) -> Apply:
        """The averaged generator `name` as a function of pictures."""
        net = self.averages[name]

        @torch.no_grad()
        def apply(pictures: Sequence[Array]) -> list[Array]:
            return [run_on_picture(net, self.given(p), self.device) for p in pictures]

        return apply

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "total": self.total,
            "recipe": mark_of_recipe(self.recipe),
            "data": self.data,
            "nets": {k: v.state_dict() for k, v in self.nets.items()},
            "averages": {k: v.state_dict() for k, v in self.averages.items()},
            "optimisers": {k: v.state_dict() for k, v in self.optimisers.items()},
            "pools": {k: v.state() for k, v in self.pools.items()},
            "scaler": self.scaler.state_dict(),
        }

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; raises BadInput where it was made with another recipe, data or length."""
        needed = ("recipe", "total", "nets", "averages", "optimisers", "pools", "scaler", "step")
        state = read_checkpoint(path, *needed, device=self.device)
        now = {"recipe": mark_of_recipe(self.recipe), "data": self.data, "total": self.total}
        require_same(path, state, now, *now)
        for kind in ("nets", "averages", "optimisers"):
            for key, part in getattr(self, kind).items():
                part.load_state_dict(state[kind][key])
        for key, pool in self.pools.items():
            pool.load(state["pools"][key])
        self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])


def total_steps(options: RunOptions, examples: int) -> int:
    """Steps of a run over so many examples an epoch; raises BadInput where that is none."""
    total = options.steps or options.epochs * -(-examples // options.batch)
    if total < 1:
        raise BadInput(
            f"steps {options.steps} and epochs {options.epochs} of the recipe's run train nothing; give one "
            "of them a number of 1 or more."
        )
    return total


def go_on(run: GanRun, out_dir: Path, resume: bool, data: str) -> None:
    """Bring a run to the checkpoint of its folder; without one, or unless it is to `resume`, begin anew.

    `data` is the mark of what it learns from; raises BadInput where the checkpoint is of other data.
    """
    run.data = data
    checkpoint = out_dir / "checkpoint.pt"
    if resume and checkpoint.is_file():
        run.load(checkpoint)
    else:
        begin_anew(out_dir)
    for name in ("losses.csv", "choice.csv"):
        drop_later(out_dir / name, run.step)


def fit(
    run: GanRun,
    data: StainSet,
    sampler: Sampler,
    out_dir: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    scores: Mapping[str, Score] | None = None,
    keep_every: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Train; returns the checkpoint that was chosen by loss.

    `scores` are downstream measures by generator name; each has its own best checkpoint,
    `best-<generator>.pt`, beside `best-loss.pt`.  `keep_every` above 0 keeps the generators of every so
    many steps as `step-<n>.pt`.  `stop_at` ends early, as a kill would, but with a checkpoint.
    """
    options, checkpoint = run.options, out_dir / "checkpoint.pt"
    held_out = data.part("validation")
    if not len(held_out.source) or not len(held_out.target):
        raise BadInput("the validation part of the data set is empty; give more images.")
    go_on(run, out_dir, resume, mark_of_set(data))
    epoch = -(-len(sampler) // options.batch)
    last = min(run.total, stop_at or run.total)
    rows: list[dict[str, Any]] = []
    while run.step < last:
        examples = sampler.batch(run.step, options.batch, balanced=run.last_fifth)
        parts = run.train_step(to_batch(examples, run.device))
        rows.append({"step": run.step, **{k: round(v, 6) for k, v in parts.items()}})
        if progress is not None:
            progress(run.step, run.total, parts)
        if run.step % options.sample_every == 0 or run.step == run.total:
            save_samples(run, held_out, out_dir / f"samples-{run.step:06d}.png")
        if keep_every and run.step % keep_every == 0:
            write_checkpoint(out_dir / f"step-{run.step:06d}.pt", run.generators_state())
        if run.step % (options.choose_every or epoch) == 0 or run.step == run.total:
            found = {"loss": run.validate(held_out)}
            found |= {name: score(run.virtual(name)) for name, score in (scores or {}).items()}
            keep_best(out_dir, run.step, found, run.generators_state())
        if run.step % options.checkpoint_every == 0 or run.step == last:
            append_rows(out_dir / "losses.csv", rows)
            rows = []
            write_checkpoint(checkpoint, run.state())
    return out_dir / "best-loss.pt"
