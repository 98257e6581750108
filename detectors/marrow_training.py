"""Training of the marrow finders on phantom fields; resumable, and every random choice is the seed's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detectors.boxes import iou_matrix
from detectors.marrow import MarrowDetector, normalised_density, stain_strength
from detectors.marrow_net import MULTIPLE, STRIDE, MarrowNet
from phantoms.marrow import MarrowStain
from phantoms.marrow_fields import ERYTHROID_RECIPES, RECIPES, TrainingField
from phantoms.marrow_sets import FIRST_VALIDATION_SEED, PIXEL_SIZE_UM, FieldSet, field_set
from storage.packages import ModelPackage, write_package

WORKING_PIXEL_SIZE_UM = 0.25


@dataclass(frozen=True)
class MarrowRecipe:
    """Everything that one training run of a marrow finder is made of."""

    widths: tuple[int, int, int, int] = (16, 32, 64, 96)
    steps: int = 700
    batch: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    ema: float = 0.99
    log_scale: float = 0.12  # the field is shown up to this much larger or smaller
    mix: float = 0.05  # of colour channels, in optical density
    gain: float = 0.12
    noise: float = 0.05
    blur_px: float = 0.9
    n_marrows: int = 180
    n_stainings: int = 3
    n_validation: int = 40


def targets(field: TrainingField, side_px: int, pixel_size_px: float) -> dict[str, np.ndarray]:
    """Heat (1, h, w), its weight, and per cell its output pixel, box and kind, of a field shown at
    `side_px` with `pixel_size_px` pixels of the shown field a pixel of the drawn one."""
    size = side_px // STRIDE
    heat, weight = np.zeros((size, size), np.float32), np.ones((size, size), np.float32)
    ys, xs = np.mgrid[:size, :size].astype(np.float32)
    places, boxes, kinds = [], [], []
    for box, kind, visible in zip(
        field.boxes * pixel_size_px / STRIDE, field.recipes, field.visible, strict=True
    ):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        w, h = max(box[2] - box[0], 0.5), max(box[3] - box[1], 0.5)
        x, y = int(np.clip(cx, 0, size - 1)), int(np.clip(cy, 0, size - 1))
        if visible < 0.35:  # a sliver is neither right nor wrong to find
            weight[(np.abs(xs + 0.5 - cx) <= w / 2) & (np.abs(ys + 0.5 - cy) <= h / 2)] = 0
            continue
        sx, sy = max(0.7, w / 8), max(0.7, h / 8)
        np.maximum(heat, np.exp(-((xs - x) ** 2) / (2 * sx**2) - (ys - y) ** 2 / (2 * sy**2)), out=heat)
        for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            px, py = x + dx, y + dy
            if 0 <= px < size and 0 <= py < size:
                places.append((py, px))
                boxes.append((np.log(w), np.log(h), cx - px - 0.5, cy - py - 0.5))
                kinds.append(kind if visible >= 0.5 else -1)
    return {
        "heat": heat,
        "weight": weight,
        "places": np.array(places, np.int64).reshape(-1, 2),
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "kinds": np.array(kinds, np.int64),
    }


def shown(
    field: TrainingField, side_px: int, recipe: MarrowRecipe, rng: np.random.Generator
) -> tuple[np.ndarray, TrainingField]:
    """The normalised density (side, side, 3) of a field as the network meets it, and its moved truth."""
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    image = np.rot90(field.image, turns)
    n = field.image.shape[0]
    x0, y0, x1, y1 = field.boxes.T
    for _ in range(turns):  # a quarter turn to the left takes (x, y) to (y, n - x)
        x0, y0, x1, y1 = y0, n - x1, y1, n - x0
    if mirrored:
        image = image[:, ::-1]
        x0, x1 = n - x1, n - x0
    small = cv2.resize(np.ascontiguousarray(image), (side_px, side_px), interpolation=cv2.INTER_AREA)
    density = normalised_density(small)
    matrix = np.eye(3) + rng.normal(0, recipe.mix, (3, 3))
    density = density @ (matrix * np.exp(rng.normal(0, recipe.gain, 3))).astype(np.float32)
    if rng.random() < 0.5:
        density = cv2.GaussianBlur(density, (0, 0), float(rng.uniform(0.2, recipe.blur_px)))
    density = density + rng.standard_normal(density.shape, np.float32) * np.float32(
        rng.uniform(0, recipe.noise)
    )
    density = density / np.float32(max(0.3, stain_strength(density)))
    moved = TrainingField(
        field.image, np.stack([x0, y0, x1, y1], 1), field.recipes, field.rs_types, field.visible
    )
    return np.clip(density, -0.5, 4.0), moved


def _loss(
    net: MarrowNet, x: Tensor, truths: list[dict[str, np.ndarray]], kind_weights: Tensor
) -> tuple[Tensor, dict[str, float]]:
    heat, box, kinds = net(x)
    wanted = torch.from_numpy(np.stack([t["heat"] for t in truths]))[:, None]
    weight = torch.from_numpy(np.stack([t["weight"] for t in truths]))[:, None]
    p = heat.sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = (wanted > 0.999).float()
    positive = -((1 - p) ** 2) * p.log() * peak
    negative = -((1 - wanted) ** 4) * p**2 * (1 - p).log() * (1 - peak)
    focal = ((positive + negative) * weight).sum() / peak.sum().clamp(min=1)
    index = torch.from_numpy(
        np.concatenate(
            [np.column_stack([np.full(len(t["places"]), i), t["places"]]) for i, t in enumerate(truths)]
        )
    ).long()
    b, y, x_ = index.T
    size = functional.l1_loss(
        box[b, :, y, x_], torch.from_numpy(np.concatenate([t["boxes"] for t in truths]))
    )
    named = functional.cross_entropy(
        kinds[b, :, y, x_],
        torch.from_numpy(np.concatenate([t["kinds"] for t in truths])),
        weight=kind_weights,
        ignore_index=-1,
        label_smoothing=0.03,
    )
    return focal + 0.5 * size + named, {
        "heat": focal.item(),
        "box": size.item(),
        "kind": named.item(),
    }


def fit(
    net: MarrowNet,
    fields: FieldSet,
    recipe: MarrowRecipe,
    *,
    seed: int,
    checkpoint: Path | None = None,
    stop_after: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> MarrowNet:
    """Train; returns the network with the moving average of its weights.

    Every step draws from its own seed, so a run resumed from `checkpoint` ends as an uninterrupted one.
    """
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps + 1, pct_start=0.15
    )
    average = copy.deepcopy(net)
    start = 0
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        start = int(state["step"])
    counts = np.bincount(np.concatenate([f.recipes for f in fields.fields]), minlength=len(RECIPES))
    weights = torch.tensor((counts.clip(1) / counts.clip(1).mean()) ** -0.35, dtype=torch.float32)
    net.to(memory_format=torch.channels_last).train()
    scale = PIXEL_SIZE_UM / WORKING_PIXEL_SIZE_UM
    for step in range(start, min(recipe.steps, stop_after or recipe.steps)):
        rng = np.random.default_rng([seed, step])
        native = fields.images.shape[1] * scale * float(np.exp(rng.uniform(-1, 1) * recipe.log_scale))
        side_px = max(MULTIPLE, round(native / MULTIPLE) * MULTIPLE)
        chosen = rng.integers(len(fields), size=recipe.batch)
        pairs = [shown(fields.fields[i], side_px, recipe, rng) for i in chosen]
        truths = [targets(f, side_px, side_px / fields.images.shape[1]) for _, f in pairs]
        x = torch.from_numpy(np.stack([d for d, _ in pairs]).transpose(0, 3, 1, 2).astype(np.float32))
        loss, parts = _loss(net, x.contiguous(memory_format=torch.channels_last), truths, weights)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        _follow(average, net, min(recipe.ema, (step + 1) / (step + 10)))
        last = step + 1 == min(recipe.steps, stop_after or recipe.steps)
        if (step + 1) % 25 == 0 or last:
            report(f"step {step + 1}/{recipe.steps} " + " ".join(f"{k} {v:.3f}" for k, v in parts.items()))
        if checkpoint is not None and ((step + 1) % 50 == 0 or last):
            state = {
                "net": net.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    return average.eval()


def _follow(average: MarrowNet, net: MarrowNet, share: float) -> None:
    with torch.no_grad():
        for a, b in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            if a.is_floating_point():
                a.lerp_(b, 1 - share)
            else:
                a.copy_(b)


def match(found: np.ndarray, scores: np.ndarray, truth: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """For each found box (N, 4), best first, the index of the true box (M, 4) that it takes, or -1."""
    taken: set[int] = set()
    out = np.full(len(found), -1)
    overlaps = iou_matrix(found, truth)
    for i in np.argsort(-scores, kind="stable"):
        free = [j for j in np.argsort(-overlaps[i]) if j not in taken and overlaps[i, j] >= iou]
        if free:
            out[i] = free[0]
            taken.add(int(free[0]))
    return out


def scored(
    detector: MarrowDetector, fields: FieldSet, wanted: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores (N,) of found boxes, whether each is a wanted cell (N,), and how many of those there are.

    Cells of which less than half is seen are neither right nor wrong.
    """
    index = [RECIPES.index(w) for w in wanted]
    scores, right, total = [], [], 0
    for f in fields.fields:
        boxes, score = detector.detect(f.image, PIXEL_SIZE_UM)
        whole = f.visible >= 0.5
        is_wanted = np.isin(f.recipes, index)
        hit = match(boxes, score, f.boxes)
        for i, j in enumerate(hit):
            if j >= 0 and not whole[j]:
                continue
            scores.append(float(score[i]))
            right.append(bool(j >= 0 and is_wanted[j]))
        total += int((whole & is_wanted).sum())
    return np.array(scores), np.array(right, bool), total


def best_cut(scores: np.ndarray, right: np.ndarray, total: int) -> tuple[float, float, float]:
    """The score at which F1 is best, and recall and precision there."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    recall, precision = hits / max(1, total), hits / np.arange(1, len(hits) + 1)
    k = int(np.argmax(2 * recall * precision / np.maximum(recall + precision, 1e-9)))
    return float(scores[order][k]), float(recall[k]), float(precision[k])


def train_marrow_finder(
    stain: MarrowStain,
    out_dir: Path,
    work: Path,
    recipe: MarrowRecipe | None = None,
    *,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> ModelPackage:
    """Draw the phantoms, train, set the operating point on validation marrows, and write the package.

    On Perls the targets are erythroblasts, since nothing else is read there; on MGG every nucleated cell.
    """
    recipe = recipe or MarrowRecipe()
    fields = field_set(
        work / "fields", stain, recipe.n_marrows, n_stainings=recipe.n_stainings, report=report
    )
    held = field_set(
        work / "fields",
        stain,
        recipe.n_validation,
        first_seed=FIRST_VALIDATION_SEED,
        n_stainings=1,
        max_nuisances=1.0,
        max_spread=1.0,
        report=report,
    )
    torch.manual_seed(seed)
    net = fit(
        MarrowNet(len(RECIPES), recipe.widths),
        fields,
        recipe,
        seed=seed,
        checkpoint=work / f"{out_dir.name}-{seed}.pt",
        report=report,
    )
    wanted = ERYTHROID_RECIPES if stain == "Perls" else tuple(r for r in RECIPES if r != "smudge")
    card = _card(stain, out_dir.name, recipe, seed, wanted, fields, held)
    package = write_package(out_dir, card, _packed(net))
    scores, right, total = scored(MarrowDetector(package), held, wanted)
    cut, recall, precision = best_cut(scores, right, total)
    # A power keeps the order of scores and puts the best cut at 0.4, the pipeline's threshold.
    card["parameters"]["sharpness"] = round(float(np.log(0.4) / np.log(np.clip(cut, 0.02, 0.98))), 4)
    card["metrics"] = {
        "measured_on": "validation phantoms of any composition, on which the operating point was set",
        "n_fields": len(held),
        "n_cells": total,
        "recall": round(recall, 4),
        "precision": round(precision, 4),
    }
    report(f"cut {cut:.3f} recall {recall:.4f} precision {precision:.4f} of {total}")
    return write_package(out_dir, card, _packed(net))


def _packed(net: MarrowNet) -> dict[str, Tensor]:
    """Weights to store: float16 for kernels, float32 for statistics and biases."""
    return {k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in net.state_dict().items()}


def _card(
    stain: MarrowStain,
    name: str,
    recipe: MarrowRecipe,
    seed: int,
    wanted: tuple[str, ...],
    fields: FieldSet,
    held: FieldSet,
) -> dict[str, Any]:
    what = "erythroblasts" if stain == "Perls" else "nucleated cells"
    return {
        "name": name,
        "version": "1.0.0",
        "task": "detector",
        "architecture": "marrow-net",
        "weights": "safetensors",
        "licence": "AGPL-3.0-or-later",
        "intended_use": f"Finding {what} in {stain} fields of bone marrow smears. Research only.",
        "modalities": ["brightfield"],
        "stains": [stain],
        "specimens": ["bone_marrow"],
        "pixel_size_um": WORKING_PIXEL_SIZE_UM,
        "classes": ["erythroblast"] if stain == "Perls" else ["leukocyte"],
        "training_data": [
            f"Phantom marrows (phantoms.marrow_fields): {len(fields)} fields of {recipe.n_marrows} marrows, "
            f"{sum(len(f.boxes) for f in fields.fields)} drawings of nucleated cells. No photograph."
        ],
        "training": {"seed": seed, "recipe": asdict(recipe), "validation_fields": len(held)},
        "metrics": {},
        "limits": [
            "Trained and measured on drawn cells only: no real marrow in this stain was ever seen.",
            "Megakaryocytes, fat, stroma, debris and crushed cells are not in the phantoms.",
            "Cells cut by the edge are found where about a third or more is seen.",
        ],
        "parameters": {
            "widths": list(recipe.widths),
            "kinds": list(RECIPES),
            "targets": list(wanted),
            "sharpness": 1.0,
        },
    }
