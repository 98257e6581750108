"""Training of the YOLO11 detector on packed canvases, from scratch or from earlier weights.

The network and its loss are ultralytics' (AGPL-3.0); the loop is short and deterministic: every
canvas is drawn from (seed, epoch, step), a checkpoint is written each epoch, and a resumed run ends
where an uninterrupted one does.
"""

from __future__ import annotations

import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from detectors.checkpoints import earlier_state, marks
from detectors.datasets import CLASSES, Sample
from detectors.packing import Look, endless, pack, resample
from detectors.starting import starting_weights
from storage.checkpoints import write_checkpoint
from storage.images import read_rgb
from storage.whole_files import write_json

PIXEL_SIZE_UM = 0.25  # a red cell is 30 px, a leukocyte 48-75 px: enough for tight boxes, and quick
CANVAS_PX = 256
FRACTIONS = {"train": 0.8, "val": 0.07, "test": 0.13}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data."""

    modality: str = "brightfield"
    epochs: int = 60
    canvases_per_epoch: int = 256
    batch: int = 8
    canvas_px: int = CANVAS_PX
    pixel_size_um: float = PIXEL_SIZE_UM
    learning_rate: float = 2e-3
    final_rate: float = 0.01  # of the learning rate
    warmup_steps: int = 120
    weight_decay: float = 5e-4
    ema_decay: float = 0.998
    seed: int = 20261121
    strength: float = 1.0  # of augmentation; a last, gentle stage takes less
    model: str = "yolo11n.yaml"


def build_network(model: str = "yolo11n.yaml") -> Any:
    """An untrained YOLO11 with this project's classes."""
    # ultralytics writes settings and looks for updates unless told where and not to.
    if "YOLO_CONFIG_DIR" not in os.environ:
        import atexit
        import shutil
        import tempfile

        settings = tempfile.mkdtemp(prefix="smearflow-yolo-")
        os.environ["YOLO_CONFIG_DIR"] = settings
        atexit.register(shutil.rmtree, settings, ignore_errors=True)
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    from ultralytics.nn.tasks import DetectionModel

    network = DetectionModel(model, nc=len(CLASSES), verbose=False)
    network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    network.names = dict(enumerate(CLASSES))
    return network


def dic_look(image: np.ndarray, pixel_size_um: float, rng: np.random.Generator) -> np.ndarray:
    """A computed DIC view of a stained piece, with optics drawn at random (phantoms.optics)."""
    from phantoms.computed_dic import compute_dic
    from phantoms.optics import random_optics

    grey = compute_dic(image, pixel_size_um, random_optics(rng), rng)
    return np.repeat(grey[..., None], 3, 2)


def _batch(recipe: Recipe, epoch: int, step: int, stream: Any, look: Look | None) -> dict[str, Any]:
    import torch

    rng = np.random.default_rng([recipe.seed, epoch, step])
    images, boxes, classes, index = [], [], [], []
    for i in range(recipe.batch):
        canvas, b, c = pack(stream, recipe.canvas_px, recipe.pixel_size_um, rng, look, recipe.strength)
        images.append(canvas)
        centre = np.concatenate([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1) / recipe.canvas_px
        boxes.append(centre)
        classes.append(c)
        index.append(np.full(len(c), i))
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
    return {
        "img": stack.contiguous(memory_format=torch.channels_last),
        "bboxes": torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
        "cls": torch.from_numpy(np.concatenate(classes).astype(np.float32))[:, None],
        "batch_idx": torch.from_numpy(np.concatenate(index).astype(np.float32)),
    }


def first_canvases(samples: list[Sample], recipe: Recipe, look: Look | None, batches: int = 8) -> Any:
    """Canvases of the first steps, (N, 3, H, W) in [0, 1]."""
    import torch

    stream = endless(samples, np.random.default_rng([recipe.seed, 0]))
    return torch.cat([_batch(recipe, 0, step, stream, look)["img"] for step in range(batches)])


def _groups(network: Any, decay: float) -> list[dict[str, Any]]:
    """Weight decay for convolution weights only, as biases and norms have no use for it."""
    with_decay, without = [], []
    for parameter in network.parameters():
        if parameter.requires_grad:
            (with_decay if parameter.ndim > 1 else without).append(parameter)
    return [{"params": with_decay, "weight_decay": decay}, {"params": without, "weight_decay": 0.0}]


def train(
    samples: dict[str, list[Sample]],
    out_dir: Path,
    recipe: Recipe,
    *,
    start: Path | None = None,
    resume: bool = False,
    look: Look | None = None,
    stop_at: float | None = None,
    log: Any = print,
) -> dict[str, Any]:
    """Train; checkpoints `last.pt` (all state) and `best.pt` (averaged weights) go to `out_dir`.

    `start` is what to begin from (`detectors.starting`).  `stop_at` (time.time())
    ends after the epoch under way; resume continues it.  Returns {"epochs", "best", "history"}.
    Raises BadInput where `out_dir` holds a checkpoint and `resume` is not asked for, or one of other
    settings, data or start.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    now = marks(samples, recipe, start)
    state = earlier_state(out_dir, resume, now)
    if look is None and recipe.modality == "dic":
        look = dic_look
    run = _Run(recipe, look, start if state is None else None, samples["train"])
    if state is not None:
        run.load(state)
    write_json(out_dir / "recipe.json", asdict(recipe))
    chooses = any(len(s.of(0)) for s in samples.get("val", ()))  # without a leukocyte there is no AP
    with ThreadPoolExecutor(1) as pool:  # closed where a step raises, too
        for epoch in range(run.epoch, recipe.epochs):
            began = time.time()
            loss = run.learn(epoch, samples["train"], pool)
            row: dict[str, Any] = {"epoch": epoch + 1, "loss": [round(float(v), 4) for v in loss]}
            row["train_s"] = round(time.time() - began, 1)
            if chooses and (epoch % 4 == 3 or epoch == recipe.epochs - 1):
                row |= run.judged(samples["val"])
            row["s"] = round(time.time() - began, 1)
            run.history.append(row)
            log(json.dumps(row), flush=True)
            # Early epochs count for little: the average has not forgotten the untrained weights.
            fitness = row.get("ap50", 0) * 0.3 + row.get("ap50_95", 0) * 0.7
            if "ap50" in row and fitness >= run.best:
                run.best = fitness
                write_checkpoint(out_dir / "best.pt", run.chosen(row))
            write_checkpoint(out_dir / "last.pt", {**run.state(), **now})
            if stop_at is not None and time.time() > stop_at:
                break
    write_json(out_dir / "history.json", run.history)
    if run.best < 0 or not (out_dir / "best.pt").is_file():  # no validation part to choose an epoch by
        write_checkpoint(out_dir / "best.pt", run.chosen(run.history[-1]))
    return {"epochs": len(run.history), "best": run.best, "history": run.history}


class _Run:
    """A training under way: the network, its average and what the optimiser knows, after `epoch` epochs.

    It begins with the weights of `start`, where there is one.  `history` has a row an epoch; `best` is the
    highest fitness on the validation part, -1 before any.
    """

    def __init__(self, recipe: Recipe, look: Look | None, start: Path | None, samples: list[Sample]) -> None:
        import torch

        torch.manual_seed(recipe.seed)
        self.recipe, self.look = recipe, look
        self.network = build_network(recipe.model).to(memory_format=torch.channels_last)
        from ultralytics.utils.torch_utils import ModelEMA  # only after build_network has told it its folder

        if start is not None:
            self.network.load_state_dict(
                starting_weights(start, self.network, lambda: first_canvases(samples, recipe, look))
            )
        self.optimizer = torch.optim.AdamW(
            _groups(self.network, recipe.weight_decay), lr=recipe.learning_rate
        )
        self.ema = ModelEMA(self.network, decay=recipe.ema_decay, tau=200)
        self.epoch, self.best = 0, -1.0
        self.history: list[dict[str, Any]] = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "network": self.network.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
            "best": self.best,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.network.load_state_dict(state["network"])
        self.ema.ema.load_state_dict(state["ema"])
        self.ema.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]

    def chosen(self, row: dict[str, Any]) -> dict[str, Any]:
        """The averaged weights, with the epoch's row."""
        return {"model": self.ema.ema.state_dict(), "recipe": asdict(self.recipe), "row": row}

    def learn(self, epoch: int, samples: list[Sample], pool: ThreadPoolExecutor) -> np.ndarray:
        """Train through one epoch; returns the mean of each part of the loss."""
        import torch

        recipe, losses = self.recipe, []
        steps = max(1, recipe.canvases_per_epoch // recipe.batch)
        self.network.train()
        stream = endless(samples, np.random.default_rng([recipe.seed, epoch]))
        # Canvases of a step are drawn while the network works on those of the step before.
        upcoming = pool.submit(_batch, recipe, epoch, 0, stream, self.look)
        for step in range(steps):
            rate = _rate(recipe, epoch * steps + step, steps * recipe.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = upcoming.result()
            if step + 1 < steps:
                upcoming = pool.submit(_batch, recipe, epoch, step + 1, stream, self.look)
            loss, parts = self.network(batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
            self.optimizer.step()
            self.ema.update(self.network)
            losses.append([float(v) for v in (parts.values() if isinstance(parts, dict) else parts)])
        self.epoch = epoch + 1
        return np.mean(losses, 0)

    def judged(self, samples: list[Sample]) -> dict[str, float]:
        """Average precision of the averaged weights on the validation part."""
        from detectors.evaluation import average_precision

        recipe = self.recipe
        found = [predict(self.ema.ema, s, recipe, self.look, recipe.seed + i) for i, s in enumerate(samples)]
        truth = [s.of(0) * (s.pixel_size_um / recipe.pixel_size_um) for s in samples]
        ap50, ap = average_precision([f[0] for f in found], [f[1] for f in found], truth)[:2]
        return {"ap50": round(ap50, 4), "ap50_95": round(ap, 4)}


def _rate(recipe: Recipe, done: int, total: int) -> float:
    """The learning rate of a step: a warm-up, then a cosine down to the final rate."""
    cosine = 0.5 * (1 + math.cos(math.pi * done / total))
    rate = recipe.final_rate + (1 - recipe.final_rate) * cosine
    return recipe.learning_rate * rate * min(1.0, (done + 1) / max(1, recipe.warmup_steps))


def predict(
    network: Any, sample: Sample, recipe: Recipe, look: Look | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Leukocytes of one validation image in canonical pixels, straight from the torch network."""
    import torch

    from detectors.boxes import decode, suppress

    image = read_rgb(sample.path)
    if look is not None:
        image = look(image, sample.pixel_size_um, np.random.default_rng(seed))
    image = resample(image, sample.pixel_size_um / recipe.pixel_size_um)
    height, width = image.shape[:2]
    padded = np.full((-(-height // 32) * 32, -(-width // 32) * 32, 3), 255, np.uint8)
    padded[:height, :width] = image
    network.eval()
    with torch.inference_mode():
        out = network(torch.from_numpy(padded).permute(2, 0, 1)[None].float().div_(255))
    raw = (out[0] if isinstance(out, tuple | list) else out).numpy()[0]
    boxes, scores, classes = decode(raw, 0.01)
    mine = classes == 0
    boxes, scores = boxes[mine], scores[mine]
    keep = suppress(boxes, scores, 0.6)
    boxes = np.clip(boxes[keep], 0, np.tile([width, height], 2))
    return boxes, scores[keep]
