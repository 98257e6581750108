"""What the training of both multi-domain stainers shares: batches, one optimiser a pass, pictures, the loop.

A run folder is that of `stainers.gan_training`, with `pool.npz`, the data set, beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stainers.choice import keep_best
from stainers.data_marks import mark_of_domains
from stainers.domain_sets import NO_PARTNER, DomainExample, DomainSampler, DomainSet
from stainers.downstream import Cell, PaintScore
from stainers.gan_training import GanRun, Progress, RunOptions, go_on
from stainers.patch_stainer import to_uint8
from stainers.seeds import step_seed
from storage.checkpoints import write_checkpoint
from storage.tables import append_rows
from storage.whole_files import write_png

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DomainBatch:
    """picture, partner (B, 3, h, w) in [0, 1]; domain, target, label (B,) int64; mask (B, h, w) int64, 255
    unknown; paired (B,) bool: partner is the same cell in the target domain."""

    picture: Tensor
    domain: Tensor
    target: Tensor
    label: Tensor
    mask: Tensor
    partner: Tensor
    paired: Tensor

    def real_targets(self) -> Tensor:
        """A real picture of each item's target domain (B, 3, h, w): its partner where it has one, else the
        first of the batch that lies there.  Without one, which a permutation of the batch's domains rules
        out, ValueError."""
        there = self.domain[None] == self.target[:, None]
        if not bool((there.any(dim=1) | self.paired).all()):
            raise ValueError("a batch has no picture of one of its target domains")
        found = self.picture[there.int().argmax(dim=1)]
        return torch.where(self.paired[:, None, None, None], self.partner, found)


def to_domain_batch(examples: Sequence[DomainExample], device: torch.device) -> DomainBatch:
    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(getattr(e, name)) for e in examples])).to(device)

    return DomainBatch(**{name: stack(name) for name in DomainBatch.__dataclass_fields__})


class DomainRun(GanRun):
    """A run with one averaged generator, `stain`, and an optimiser for every kind of pass.

    A network that several passes train has its own moments in each of their optimisers.
    """

    generators = ("stain",)

    def __init__(self, recipe: Any, options: RunOptions, total: int, device: torch.device) -> None:
        super().__init__(recipe, options, total, device)
        # Where a random number is needed, it depends on seed and step alone: a resumed run goes on alike.
        self.random = torch.Generator()

    def ready_for(self, groups: Mapping[str, Sequence[nn.Module]]) -> None:
        """After `nets` are there: the averages, and an Adam (betas 0.5, 0.999) for each group's networks."""
        self.ready()
        self.optimisers = {
            name: torch.optim.Adam(
                [p for net in nets for p in net.parameters()],
                lr=self.options.learning_rate,
                betas=(0.5, 0.999),
            )
            for name, nets in groups.items()
        }
        if self.compiled:
            # The generator by its parts, which passes call apart; the judge not at all: what is learned from
            # its penalty is a gradient's gradient, and compiled code has none.
            for part in self.nets["stain"].children():
                part.compile()
            self.call |= {name: self.nets[name] for name in ("stain", "judge")}

    def train_step(self, batch: Any) -> dict[str, float]:
        self.random.manual_seed(step_seed(self.options.seed, self.step))
        for net in self.nets.values():
            net.train()
        return super().train_step(batch)

    @torch.no_grad()
    def pair_error(self, data: DomainSet) -> float:
        """Mean absolute error of the averaged generator on the pairs of a held-out set, DIC to stain."""
        errors = [
            float((self.show(picture, target) - _planes(wanted)).abs().mean())
            for picture, target, wanted in held_pairs(data)
        ]
        return float(np.mean(errors)) if errors else float("nan")

    def painted(self, picture: Array, target: int) -> Array:
        """`show` as a picture (H, W, 3) uint8."""
        return to_uint8(self.show(picture, target).permute(1, 2, 0).numpy())

    @torch.no_grad()
    def show(self, picture: Array, target: int) -> Tensor:
        """A picture (H, W, 2 or 3) uint8 through the averaged generator: (3, H, W) in [0, 1] on the CPU.

        H and W are cut to the network's multiple.
        """
        net = self.averages["stain"]
        multiple = int(net.multiple)
        x = _planes(picture)[
            :, : picture.shape[0] // multiple * multiple, : picture.shape[1] // multiple * multiple
        ]
        out = net(x[None].to(self.device), torch.tensor([target], device=self.device))[0].cpu()
        full = _planes(picture)[:1].expand(3, -1, -1).clone()
        full[:, : out.shape[1], : out.shape[2]] = out
        return full


def held_pairs(data: DomainSet, limit: int = 48) -> list[Cell]:
    """DIC (H, W, 2), target and real stain of the first pairs of a held-out set."""
    cells = [c for c in data.cells if c.picture.shape[2] == 2 and c.partner != NO_PARTNER][:limit]
    return [(c.picture, data.cells[c.partner].domain, data.cells[c.partner].picture) for c in cells]


def _planes(picture: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).float() / 255


def fit_domains(
    run: DomainRun,
    sampler: DomainSampler,
    held_out: DomainSet,
    out_dir: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    scores: Mapping[str, PaintScore] | None = None,
    progress: Progress | None = None,
) -> None:
    """Train to the recipe's last step; `stop_at` ends early, as a kill would, but with a checkpoint.

    `choice.csv` holds the error on held-out pairs; the checkpoint with the lowest is kept as `best-loss.pt`.
    `scores` are downstream measures by generator name (`stain`), each with its own best checkpoint.
    """
    options, checkpoint = run.options, out_dir / "checkpoint.pt"
    go_on(run, out_dir, resume, mark_of_domains(sampler.data, held_out))
    epoch = -(-len(sampler.data.cells) // options.batch)
    last = min(run.total, stop_at or run.total)
    rows: list[dict[str, Any]] = []
    while run.step < last:
        parts = run.train_step(to_domain_batch(sampler.batch(run.step, options.batch), run.device))
        rows.append({"step": run.step, **{k: round(v, 6) for k, v in parts.items()}})
        if progress is not None:
            progress(run.step, run.total, parts)
        if run.step % options.sample_every == 0 or run.step == run.total:
            save_domain_samples(run, held_out, out_dir / f"samples-{run.step:06d}.png")
        if run.step % (options.choose_every or epoch) == 0 or run.step == run.total:
            found = {"loss": run.pair_error(held_out)}
            found |= {name: score(run.painted) for name, score in (scores or {}).items()}
            keep_best(out_dir, run.step, found, run.generators_state())
        if run.step % options.checkpoint_every == 0 or run.step == last:
            append_rows(out_dir / "losses.csv", rows)
            rows = []
            write_checkpoint(checkpoint, run.state())


@torch.no_grad()
def save_domain_samples(run: DomainRun, held_out: DomainSet, path: Path, n: int = 6) -> None:
    """A row for each of `n` held-out pairs: the DIC, its translation to every stain, the real stain."""
    rows = []
    stains = [i for i, d in enumerate(held_out.domains) if d != "dic"]
    for cell in held_out.cells:
        if cell.picture.shape[2] != 2 or cell.partner == NO_PARTNER:
            continue
        shown = [torch.from_numpy(np.repeat(cell.picture[..., :1], 3, 2).transpose(2, 0, 1)).float() / 255]
        shown += [run.show(cell.picture, t) for t in stains]
        shown.append(_planes(held_out.cells[cell.partner].picture))
        rows.append(torch.cat(shown, dim=2))
        if len(rows) == n:
            break
    if rows:
        picture = (torch.cat(rows, dim=1).clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).numpy()
        write_png(path, picture)
