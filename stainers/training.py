"""Training of paired generators: seeded, resumable, with an averaged copy of the weights.

A run folder holds `checkpoint.pt` (all that a resumed run needs; read with weights only, nothing is
unpickled), `losses.csv`, and `samples-<step>.png` (DIC, stained, real).  Pair number n is the same in any
run of a seed, so a resumed run ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from stainers.averaged_run import AveragedRun
from stainers.choice import best_by, keep_best
from stainers.data import DOMAINS, SPLITS, PairSampler, Smear, level_light, load_smears, targets_of
from stainers.data_marks import mark_of_recipe, mark_of_smears
from stainers.downstream import Cell, paint_error, scores_of
from stainers.gan_records import begin_anew, drop_later
from stainers.losses import expected_error_loss, gradient_loss, ssim
from stainers.networks import Latent, PatchDiscriminator, build_generator
from stainers.patch_stainer import to_uint8
from stainers.perceptual import PerceptualLoss, load_judge
from stainers.recipes import Recipe, read_recipe
from stainers.seeds import step_seed
from storage.averages import follow
from storage.checkpoints import read_checkpoint, require_same, write_checkpoint
from storage.tables import append_rows
from storage.whole_files import write_png

Progress = Callable[[int, int, dict[str, float]], None]
LOOK_CELLS = 48  # that a checkpoint is chosen by


class PairDataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Pairs first .. last of a sampler, in order."""

    def __init__(self, sampler: PairSampler, first: int, last: int) -> None:
        self.sampler, self.first, self.last = sampler, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        if index >= len(self):
            raise IndexError(index)
        source, stained, domain = self.sampler.draw(self.first + index)
        return torch.from_numpy(source), torch.from_numpy(stained), domain


def _one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine to 2 % of the peak."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    t = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(t, 1.0))))


def add_latent_noise(latent: Latent, alpha: float, generator: torch.Generator) -> Latent:
    """Noise of alpha channel-wise deviations in the code of half of the batch (thesis, section 7.4)."""
    code = latent.code
    sigma = code.detach().std(dim=(2, 3), keepdim=True)
    noise = torch.randn(code.shape, generator=generator).to(code) * sigma * alpha
    noise[::2] = 0
    return Latent(code + noise, latent.skips)


def load_start(name: str) -> Any:
    """The DIC stainer that a recipe starts from; raises UnknownName, or BadInput where it is none."""
    from stainers.unet_film import DicStainer
    from storage.registry import load

    stainer = load("stainer", name)
    if not isinstance(stainer, DicStainer):
        raise BadInput(f"{name} is no DIC stainer; name one as the recipe's start, or leave it out.")
    return stainer


def _take_over(generator: nn.Module, stainer: Any, name: str, targets: Sequence[str]) -> None:
    """The weights of a stainer; a target that it does not have begins as the mean of those that it has."""
    own, given = generator.state_dict(), dict(stainer.generator.state_dict())
    rows, known = given["embedding.weight"], list(stainer.targets)
    given["embedding.weight"] = torch.stack(
        [rows[known.index(t)] if t in known else rows.mean(dim=0) for t in targets]
    )
    if own.keys() != given.keys() or any(own[k].shape != v.shape for k, v in given.items()):
        raise BadInput(f"{name} has another network than the recipe; give the recipe its widths and blocks.")
    generator.load_state_dict(given)


class Run(AveragedRun):
    """One training run: generator, its average, optimiser, and where it stands.

    Generator and discriminator run at the recipe's `precision`, all losses in float32.  It begins with the
    weights of `checkpoint`, else of the recipe's `start`, else with random ones; `data` is the mark of what
    it learns from.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        checkpoint: Path | None = None,
        targets: Sequence[str] = DOMAINS,
        data: str = "",
    ) -> None:
        torch.manual_seed(recipe.seed)
        super().__init__(recipe, device)
        self.recipe, self.targets, self.data = recipe, tuple(targets), data
        options = asdict(recipe.network)
        self.generator = build_generator(recipe.architecture, len(self.targets), **options).to(device)
        if recipe.start and checkpoint is None:
            _take_over(self.generator, load_start(recipe.start), recipe.start, self.targets)
        self.averages["forward"] = build_generator(recipe.architecture, len(self.targets), **options)
        self.average.to(device)
        self.average.load_state_dict(self.generator.state_dict())
        self.average.eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.generator.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.judge: nn.Module | None = None
        if recipe.losses.adversarial > 0:
            self.judge = PatchDiscriminator(len(self.targets)).to(device)
            self.judge_optimiser = torch.optim.Adam(self.judge.parameters(), lr=2e-4, betas=(0.5, 0.9))
        self.perceptual: PerceptualLoss | None = None
        if recipe.losses.feature > 0 or recipe.losses.named > 0:
            self.perceptual = load_judge(recipe.judge).to(device)
        if device.type == "cpu":
            self.generator.to(memory_format=torch.channels_last)
        self.call: dict[str, Any] = {"encode": self.generator.encode, "decode": self.generator.decode}
        if self.judge is not None:
            self.call["judge"] = self.judge
        if self.compiled:
            self.call = {name: torch.compile(code) for name, code in self.call.items()}
        if checkpoint is not None:
            self.load(checkpoint)

    @property
    def average(self) -> nn.Module:
        return self.averages["forward"]

    @torch.no_grad()
    def painted(self, source: np.ndarray[Any, Any], target: int) -> np.ndarray[Any, Any]:
        """A network's input (2, H, W) float32 through the average: (H, W, 3) uint8."""
        given = torch.from_numpy(source)[None].to(self.device)
        output = self.average(given, torch.tensor([target], device=self.device))[0, :3]
        return to_uint8(output.permute(1, 2, 0).cpu().numpy())

    def train_step(self, source: Tensor, stained: Tensor, domain: Tensor) -> dict[str, float]:
        recipe, weights = self.recipe, self.recipe.losses
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        self.generator.train()
        with self.autocast():
            latent = self.call["encode"](source)
            if recipe.latent_noise > 0:
                noise = torch.Generator().manual_seed(step_seed(recipe.seed, self.step))
                latent = add_latent_noise(latent, recipe.latent_noise, noise)
            output = self.call["decode"](latent, domain).float()
        image, log_scale = output[:, :3], output[:, 3:]
        error = (image - stained).abs()
        parts = {
            "l1": error.mean(),
            "mse": ((image - stained) ** 2).mean(),
            "ssim": 1 - ssim(image.mean(dim=1, keepdim=True), stained.mean(dim=1, keepdim=True)).mean(),
            "gradient": gradient_loss(image, stained),
            "expected_error": expected_error_loss(log_scale, error.mean(dim=1, keepdim=True)),
        }
        if self.perceptual is not None:
            parts["feature"], parts["named"] = self.perceptual(image, stained)
        if self.judge is not None and self.step >= weights.adversarial_from * recipe.steps:
            parts["adversarial"] = self._adversarial(source, stained, image, domain)
        total = sum((getattr(weights, k) * v for k, v in parts.items()), image.new_zeros(()))
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.generator.parameters(), 1.0)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        follow(self.average, self.generator, keep)
        self.step += 1
        return {k: float(v.detach()) for k, v in parts.items()}

    def _adversarial(self, source: Tensor, stained: Tensor, image: Tensor, domain: Tensor) -> Tensor:
        def verdict(picture: Tensor) -> Tensor:
            with self.autocast():
                return self.call["judge"](picture, source, domain).float()

        real, fake = verdict(stained), verdict(image.detach())
        loss = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
        self.judge_optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.judge_optimiser)
        return -verdict(image).mean()

    def state(self) -> dict[str, Any]:
        state = {
            "step": self.step,
            "recipe": mark_of_recipe(self.recipe),
            "data": self.data,
            "targets": list(self.targets),
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        if self.judge is not None:
            state |= {"judge": self.judge.state_dict(), "judge_optimiser": self.judge_optimiser.state_dict()}
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        return state

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; raises BadInput where it was made with another recipe or of other data."""
        state = read_checkpoint(
            path, "recipe", "generator", "average", "optimiser", "step", device=self.device
        )
        now = {"recipe": mark_of_recipe(self.recipe), "data": self.data}
        require_same(path, state, now, "recipe")
        if tuple(state.get("targets", DOMAINS)) != self.targets:  # the nearer cause of other data
            raise BadInput(
                f"{path} was made for the stains {', '.join(state['targets'])}, these smears are of "
                f"{', '.join(self.targets)}; resume with those, or train into another folder."
            )
        require_same(path, state, now, "data")
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])
        if self.judge is not None:
            self.judge.load_state_dict(state["judge"])
            self.judge_optimiser.load_state_dict(state["judge_optimiser"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def train_generator(
    smears: Sequence[Smear],
    out_dir: Path,
    recipe: Recipe,
    *,
    resume: bool = False,
    workers: int = 0,
    stop_at: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train on the smears of split `train`; `stop_at` ends early, as a kill would, but with a checkpoint."""
    checkpoint = out_dir / "checkpoint.pt"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    targets = targets_of(smears)
    goes_on = resume and checkpoint.is_file()
    run = Run(recipe, device, checkpoint if goes_on else None, targets, mark_of_smears(smears))
    last = min(recipe.steps, stop_at or recipe.steps)
    if recipe.pairs.level_light:
        smears = level_light(smears)
    sampler = PairSampler([s for s in smears if s.split == "train"], recipe.pairs, recipe.seed, targets)
    held_out = PairSampler(
        [s for s in smears if s.split == "validation"] or smears, recipe.pairs, recipe.seed + 1, targets
    )
    cells = look_cells(held_out) if recipe.chooser != "last" else []
    scores = scores_of(recipe.chooser, "forward", cells)
    if not goes_on:
        begin_anew(out_dir)
    for name in ("losses.csv", "choice.csv"):
        drop_later(out_dir / name, run.step)
    loader = torch.utils.data.DataLoader(
        PairDataset(sampler, run.step * recipe.batch, last * recipe.batch),
        batch_size=recipe.batch,
        num_workers=workers,
        worker_init_fn=_one_thread if workers else None,
        persistent_workers=False,
    )
    rows: list[dict[str, float]] = []
    for source, stained, domain in loader:
        source = source.to(run.device).contiguous(memory_format=torch.channels_last)
        parts = run.train_step(source, stained.to(run.device), domain.to(run.device))
        rows.append({"step": run.step, **parts})
        if progress is not None:
            progress(run.step, recipe.steps, parts)
        if run.step % recipe.sample_every == 0 or run.step == recipe.steps:
            save_samples(run, held_out, out_dir / f"samples-{run.step:06d}.png")
        if cells and (run.step % recipe.choose_every == 0 or run.step == recipe.steps):
            found = {"loss": paint_error(run.painted, cells)}
            found |= {name: score(run.painted) for name, score in scores.items()}
            keep_best(out_dir, run.step, found, run.generators_state())
        if run.step % recipe.checkpoint_every == 0 or run.step == last:
            append_rows(out_dir / "losses.csv", rows)
            rows = []
            write_checkpoint(checkpoint, run.state())
    return run


def look_cells(sampler: PairSampler, n: int = LOOK_CELLS) -> list[Cell]:
    """Whole leukocytes to choose a checkpoint by: the sampler's smears and optics, at their own scale."""
    plain = dict.fromkeys(("spoilt_share", "scale_jitter", "off_centre_px", "other_looks"), 0.0)
    options = replace(sampler.options, leukocyte_share=1.0, pool=0, **plain)
    smears = [s for group in sampler.by_domain for s in group]
    draws = map(PairSampler(smears, options, sampler.seed + 1, sampler.targets).draw, range(n))
    return [(source, domain, to_uint8(stained.transpose(1, 2, 0))) for source, stained, domain in draws]


@torch.no_grad()
def save_samples(run: Run, sampler: PairSampler, path: Path, n: int = 6) -> None:
    """A picture of held-out pairs: DIC, integrated DIC, stained, real, expected error; a row each."""
    rows = []
    for number in range(n):
        source, stained, domain = sampler.draw(number)
        output = run.average(
            torch.from_numpy(source)[None].to(run.device), torch.tensor([domain], device=run.device)
        )
        output = output[0].cpu().numpy()
        grey = [np.repeat((source[i] * g + 0.5)[None], 3, 0) for i, g in ((0, 0.25), (1, 0.15))]
        doubt = np.repeat(np.exp(output[3:]) * 4, 3, 0)
        rows.append(np.concatenate([*grey, output[:3], stained, doubt], axis=2))
    picture = (np.clip(np.concatenate(rows, axis=1), 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    write_png(path, picture)


def train_stainer(
    data_dir: Path,
    out_dir: Path,
    *,
    recipe: str | Path | Recipe = "unet-film",
    architecture: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    resume: bool = False,
    workers: int = 0,
    limit: int | None = None,
    cells_per_domain: int = 40,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train generator and polarity network on the smears of `data_dir` and write `out_dir`/package.

    `steps`, `seed` and `architecture` override the recipe (a shipped one by name, a YAML file, or the
    value itself); `limit` takes the first so many images alone.  The recipe's `chooser` says which checkpoint
    is packed.  The confidence is calibrated on the
    validation smears, the card's metrics, which are returned, are measured on the test smears.
    """
    from stainers.export import export_package
    from stainers.polarity import train_polarity

    plan = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    plan = replace(
        plan,
        steps=plan.steps if steps is None else steps,
        seed=plan.seed if seed is None else seed,
        architecture=plan.architecture if architecture is None else architecture,
    )
    smears = load_smears(data_dir, limit=limit)
    for part in SPLITS:
        if not any(len(s.leukocytes) for s in smears if s.split == part):
            raise BadInput(
                f"{data_dir}: of its {len(smears)} smears none with a boxed leukocyte falls into the {part} "
                "part (80 / 8 / 12 % train / validation / test, by name); give more, fifty are enough."
            )
    run = train_generator(smears, out_dir, plan, resume=resume, workers=workers, progress=progress)
    best, chosen = best_by(out_dir, plan.chooser, "forward")
    if best is not None:
        run.take_averages(best)
    if plan.start:
        polarity = load_start(plan.start).polarity
    else:
        polarity = train_polarity(smears, plan.polarity_steps, plan.seed)
    package = export_package(
        run.average,
        polarity,
        smears,
        plan,
        out_dir / "package",
        steps_done=run.step,
        checkpoint=(chosen, run.checkpoint_step),
        cells_per_domain=cells_per_domain,
    )
    return package.card.metrics
