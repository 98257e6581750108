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
from detectors.data_scale import scales_of
from detectors.datasets import CLASSES, Sample, read_yolo_folder
from detectors.packing import Look, endless, pack, resample
from detectors.parts import PARTS, n_without_label_file, parts_of, remarks_on, write_split
from detectors.starting import said_of, starting_weights
from pipeline.errors import BadInput
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
    import torch

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    now = marks(samples, recipe, start)
    state = earlier_state(out_dir, resume, now)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.model).to(memory_format=torch.channels_last)
    from ultralytics.utils.torch_utils import ModelEMA  # only after build_network has told it its folder

    if look is None and recipe.modality == "dic":
        look = dic_look
    if start is not None and state is None:
        network.load_state_dict(
            starting_weights(start, network, lambda: first_canvases(samples["train"], recipe, look))
        )
    optimizer = torch.optim.AdamW(_groups(network, recipe.weight_decay), lr=recipe.learning_rate)
    ema = ModelEMA(network, decay=recipe.ema_decay, tau=200)
    steps = max(1, recipe.canvases_per_epoch // recipe.batch)
    total = steps * recipe.epochs
    first, history, best = 0, [], -1.0
    if state is not None:
        network.load_state_dict(state["network"])
        ema.ema.load_state_dict(state["ema"])
        ema.updates = state["updates"]
        optimizer.load_state_dict(state["optimizer"])
        first, history, best = state["epoch"], state["history"], state["best"]
    write_json(out_dir / "recipe.json", asdict(recipe))
    chooses = any(len(s.of(0)) for s in samples.get("val", ()))  # without a leukocyte there is no AP
    with ThreadPoolExecutor(1) as pool:  # closed where a step raises, too
        for epoch in range(first, recipe.epochs):
            network.train()
            began, losses = time.time(), []
            stream = endless(samples["train"], np.random.default_rng([recipe.seed, epoch]))
            # Canvases of a step are drawn while the network works on those of the step before.
            upcoming = pool.submit(_batch, recipe, epoch, 0, stream, look)
            for step in range(steps):
                done = epoch * steps + step
                cosine = 0.5 * (1 + math.cos(math.pi * done / total))
                rate = recipe.final_rate + (1 - recipe.final_rate) * cosine
                for group in optimizer.param_groups:
                    group["lr"] = (
                        recipe.learning_rate * rate * min(1.0, (done + 1) / max(1, recipe.warmup_steps))
                    )
                batch = upcoming.result()
                if step + 1 < steps:
                    upcoming = pool.submit(_batch, recipe, epoch, step + 1, stream, look)
                loss, parts = network(batch)
                optimizer.zero_grad(set_to_none=True)
                loss.sum().backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
                optimizer.step()
                ema.update(network)
                losses.append([float(v) for v in (parts.values() if isinstance(parts, dict) else parts)])
            row: dict[str, Any] = {
                "epoch": epoch + 1,
                "loss": [round(float(v), 4) for v in np.mean(losses, 0)],
            }
            row["train_s"] = round(time.time() - began, 1)
            if chooses and (epoch % 4 == 3 or epoch == recipe.epochs - 1):
                from detectors.evaluation import average_precision

                found = [
                    predict(ema.ema, s, recipe, look, recipe.seed + i) for i, s in enumerate(samples["val"])
                ]
                truth = [s.of(0) * (s.pixel_size_um / recipe.pixel_size_um) for s in samples["val"]]
                ap50, ap = average_precision([f[0] for f in found], [f[1] for f in found], truth)[:2]
                row |= {"ap50": round(ap50, 4), "ap50_95": round(ap, 4)}
            row["s"] = round(time.time() - began, 1)
            history.append(row)
            log(json.dumps(row), flush=True)
            # Early epochs count for little: the average has not forgotten the untrained weights.
            fitness = row.get("ap50", 0) * 0.3 + row.get("ap50_95", 0) * 0.7
            if "ap50" in row and fitness >= best:
                best = fitness
                chosen = {"model": ema.ema.state_dict(), "recipe": asdict(recipe), "row": row}
                write_checkpoint(out_dir / "best.pt", chosen)
            write_checkpoint(
                out_dir / "last.pt",
                {
                    "network": network.state_dict(),
                    "ema": ema.ema.state_dict(),
                    "updates": ema.updates,
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch + 1,
                    "history": history,
                    "best": best,
                    **now,
                },
            )
            if stop_at is not None and time.time() > stop_at:
                break
    write_json(out_dir / "history.json", history)
    if best < 0 or not (out_dir / "best.pt").is_file():  # no validation part to choose an epoch by
        chosen = {"model": ema.ema.state_dict(), "recipe": asdict(recipe), "row": history[-1]}
        write_checkpoint(out_dir / "best.pt", chosen)
    return {"epochs": len(history), "best": best, "history": history}


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


def train_detector(
    data_dir: Path,
    out_dir: Path,
    modality: str = "brightfield",
    epochs: int = 60,
    resume: bool = False,
    seed: int = 20261121,
    start: Path | None = None,
    canvases_per_epoch: int | None = None,
    batch: int = 8,
    canvas_px: int = CANVAS_PX,
    stop_at: float | None = None,
    name: str | None = None,
    pixel_size_um: float | None = None,
    log: Any = print,
) -> dict[str, Any]:
    """Train on any YOLO-format folder and write an ONNX model package to `out_dir/package`.

    A folder's own parts (train, val, test) are kept; one without is split, near-duplicates on one side.  The
    split is written to `out_dir` and the package (split.csv); the test part is looked at once, for the card.
    `pixel_size_um` is that of every image, where given; else each has its own (`read_yolo_folder`).
    `modality` "dic" trains on DIC computed from the stained images.  Returns {"epochs", "best",
    "history", "n_images", "n_without_label_file", "remarks", "test", "package"}; package is None where
    `stop_at` ended the run early.  Raises BadInput for a folder without images or leukocytes.
    """
    from storage.packages import check_package_place, write_package

    data_dir = Path(data_dir)
    name = name or f"leukocyte-{modality}-{data_dir.resolve().name}"
    folder = Path(out_dir) / "package"
    check_package_place(folder)
    samples = read_yolo_folder(data_dir, pixel_size_um)
    log(json.dumps({"pixel_size_from": scales_of(samples)}, ensure_ascii=False), flush=True)
    parts, parted = parts_of(data_dir, samples, FRACTIONS, seed)
    if not any(len(s.of(0)) for s in parts["train"]):
        raise BadInput(f"{data_dir} has no box of class 0 (leukocyte) to learn from.")
    recipe = Recipe(
        modality=modality,
        epochs=epochs,
        canvases_per_epoch=canvases_per_epoch or max(batch, len(parts["train"]) // 4),
        batch=batch,
        canvas_px=canvas_px,
        seed=seed,
    )
    about = {
        "n_images": {part: len(parts[part]) for part in PARTS},
        "n_without_label_file": n_without_label_file(samples),
        "remarks": remarks_on(parts),
    }
    log(json.dumps({"split": parted, **about}, ensure_ascii=False), flush=True)
    result = train(parts, Path(out_dir), recipe, start=start, resume=resume, stop_at=stop_at, log=log) | about
    write_split(parts, data_dir, Path(out_dir))
    if result["epochs"] < recipe.epochs:
        return result | {"package": None}  # interrupted: resume finishes and packs it
    from detectors.evaluation import evaluate_detector
    from detectors.export import detector_card, write_detector_package
    from detectors.yolo_onnx import YoloOnnxDetector

    data = (f"{data_dir}: {len(parts['train'])} images", *(said_of(start) if start else ()))
    limits = ("trained by smearflow train detector; judge it before use", *about["remarks"])
    card = detector_card(name, recipe, data, {}, limits, training={"split": parted, **about})
    package = write_detector_package(Path(out_dir) / "best.pt", folder, card)
    if parts["test"]:
        look = dic_look if modality == "dic" else None
        report = evaluate_detector(
            YoloOnnxDetector(package), parts["test"], Path(out_dir) / "test", look=look
        )
        metrics = {"held-out part": report["all"], **{f"source {k}": v for k, v in report["sources"].items()}}
        package = write_package(folder, card | {"metrics": metrics}, package.weights_path)
        result |= {"test": report["all"]}
    write_split(parts, data_dir, package.folder)
    return result | {"package": str(package.folder)}
