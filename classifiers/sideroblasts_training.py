"""Training of the learned reader of iron on phantom marrows; resumable, every random choice is the seed's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional

from classifiers.metrics import fit_temperature
from classifiers.sideroblasts_cnn import INPUT_PX, OUTPUTS, PIXEL_SIZE_UM, IronNet, decide, in_units_of_stain
from classifiers.sideroblasts_stain import glass_colour, optical_density
from phantoms.marrow_fields import ERYTHROID_RECIPES, RECIPES
from phantoms.marrow_sets import FIRST_VALIDATION_SEED, FieldSet, field_set, require_enough
from phantoms.marrow_sets import PIXEL_SIZE_UM as FIELD_PIXEL_SIZE_UM
from storage.averages import follow
from storage.checkpoints import (
    checkpoint_beside,
    keep_earlier,
    read_checkpoint,
    require_same,
    tensors_mark,
    write_checkpoint,
)
from storage.fingerprint import array_mark, fingerprint
from storage.packages import ModelPackage, write_package

OTHER = OUTPUTS.index("other")
ROOM_UM = 1.3  # the centre may be moved by up to this much, as a finder's box would be


@dataclass(frozen=True)
class ReaderRecipe:
    """Everything that one training run of the learned reader is made of."""

    widths: tuple[int, int, int] = (16, 32, 64)
    steps: int = 320
    batch: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.03
    ema: float = 0.99
    log_scale: float = 0.1
    mix: float = 0.05
    gain: float = 0.12
    noise: float = 0.04
    blur_px: float = 0.9
    n_marrows: int = 180
    n_stainings: int = 3
    n_validation: int = 40
    n_empty: int = 1  # places a field without a cell in the middle

    def __post_init__(self) -> None:
        require_enough(self, self.steps, self.n_marrows, self.n_validation)


@dataclass(frozen=True)
class IronSet:
    """Centres (N, 3): field, x, y in its pixels; labels (N,) indices of outputs; the fields' images."""

    places: np.ndarray
    labels: np.ndarray
    images: np.ndarray


def iron_set(fields: FieldSet, n_empty: int, seed: int) -> IronSet:
    """What a reader is shown of fields: erythroblasts seen whole, other cells, and places without a cell."""

    def label(recipe: str, kind: int) -> int | None:
        if recipe not in ERYTHROID_RECIPES:
            return OTHER
        return kind if kind >= 0 else None

    return cells_shown(fields, label, OTHER, n_empty, seed)


def cells_shown(
    fields: FieldSet, label: Callable[[str, int], int | None], nothing: int, n_empty: int, seed: int
) -> IronSet:
    """Cells of fields seen whole, by what `label` makes of recipe and type (None: left out), and places
    without a cell, labelled `nothing`."""
    rng = np.random.default_rng([seed, 5])
    places, labels = [], []
    side = fields.images.shape[1]
    for i, field in enumerate(fields.fields):
        centres = (field.boxes[:, :2] + field.boxes[:, 2:]) / 2
        for (x, y), recipe, kind, visible in zip(
            centres, field.recipes, field.rs_types, field.visible, strict=True
        ):
            name = label(RECIPES[int(recipe)], int(kind))
            if visible < 0.98 or name is None:
                continue
            places.append((i, x, y))
            labels.append(name)
        for x, y in rng.uniform(0, side, (n_empty, 2)):
            if len(centres) == 0 or np.hypot(*(centres - (x, y)).T).min() > 6 / FIELD_PIXEL_SIZE_UM:
                places.append((i, float(x), float(y)))
                labels.append(nothing)
    return IronSet(np.array(places, np.float64), np.array(labels, np.int64), fields.images)


def shown(
    data: IronSet, index: int, glass: np.ndarray, recipe: ReaderRecipe | None, rng: np.random.Generator
) -> np.ndarray:
    """The density (80, 80, 3) of one place, turned and disturbed where a recipe says how."""
    field, x, y = data.places[index]
    scale, angle, mirror = PIXEL_SIZE_UM / FIELD_PIXEL_SIZE_UM, 0.0, 1.0
    if recipe is not None:
        scale *= float(np.exp(rng.uniform(-1, 1) * recipe.log_scale))
        angle, mirror = float(rng.uniform(0, 2 * np.pi)), float(rng.choice([-1.0, 1.0]))
        x, y = np.array((x, y)) + rng.uniform(-1, 1, 2) * ROOM_UM / FIELD_PIXEL_SIZE_UM
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    half = (INPUT_PX - 1) / 2
    matrix = np.array([[c * mirror, -s, 0.0], [s * mirror, c, 0.0]])
    matrix[:, 2] = np.array([x - 0.5, y - 0.5]) - matrix[:, :2] @ (half, half)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(
        data.images[int(field)], matrix, (INPUT_PX, INPUT_PX), flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )
    density = optical_density(cut, glass[int(field)]).astype(np.float32)
    if recipe is not None:
        mixed = np.eye(3) + rng.normal(0, recipe.mix, (3, 3))
        density = density @ (mixed * np.exp(rng.normal(0, recipe.gain, 3))).astype(np.float32)
        if rng.random() < 0.4:
            density = cv2.GaussianBlur(density, (0, 0), float(rng.uniform(0.2, recipe.blur_px)))
        level = np.float32(rng.uniform(0, recipe.noise) * 0.25)
        density = density + rng.standard_normal(density.shape, np.float32) * level
    return in_units_of_stain(density)


def fit(
    net: IronNet,
    data: IronSet,
    recipe: ReaderRecipe,
    *,
    seed: int,
    weights: Sequence[float] = (1, 1, 1.2, 1.2, 0.9),
    checkpoint: Path | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> IronNet:
    """Train; returns the network with the moving average of its weights.

    `weights` are how often each output is shown beside the others, whatever their numbers.
    """
    now = {
        "recipe": asdict(recipe),
        "data": fingerprint(
            *(array_mark(a) for a in (data.places, data.labels, data.images)), *weights, seed
        ),
        "start": tensors_mark(net.state_dict()),
    }
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps + 1, pct_start=0.15
    )
    average = copy.deepcopy(net)
    start = 0
    if resume and checkpoint is not None and checkpoint.is_file():
        state = read_checkpoint(checkpoint, "net", "average", "optimiser", "schedule", "step")
        require_same(checkpoint, state, now, *now)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        start = int(state["step"])
    glass = np.stack([glass_colour(image[::4, ::4]) for image in data.images])
    counts = np.bincount(data.labels, minlength=len(weights)).clip(1)
    chance = (np.array(weights) / counts)[data.labels]
    chance = chance / chance.sum()
    net.to(memory_format=torch.channels_last).train()
    end = min(recipe.steps, stop_after or recipe.steps)
    for step in range(start, end):
        rng = np.random.default_rng([seed, step])
        chosen = rng.choice(len(data.labels), recipe.batch, p=chance)
        views = np.stack([shown(data, int(i), glass, recipe, rng) for i in chosen])
        x = torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2)))
        logits = net(x.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, torch.from_numpy(data.labels[chosen]), label_smoothing=0.02)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        follow(average, net, min(recipe.ema, (step + 1) / (step + 10)))
        if (step + 1) % 25 == 0 or step + 1 == end:
            report(f"step {step + 1}/{recipe.steps} loss {loss.item():.3f}")
        if checkpoint is not None and ((step + 1) % 50 == 0 or step + 1 == end):
            state = {
                "net": net.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
                **now,
            }
            write_checkpoint(checkpoint, state)
    return average.eval()


def logits_of(net: IronNet, data: IronSet) -> torch.Tensor:
    """Logits (N, 5) of every place, undisturbed."""
    glass = np.stack([glass_colour(image[::4, ::4]) for image in data.images])
    rng = np.random.default_rng(0)
    out = []
    with torch.inference_mode():
        for start in range(0, len(data.labels), 32):
            rows = range(start, min(start + 32, len(data.labels)))
            views = np.stack([shown(data, i, glass, None, rng) for i in rows])
            out.append(net(torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2)))))
    return torch.cat(out)


def confusion_of(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How erythroblasts of known type were read: counts by type, of rings, and shares."""
    read = [decide(tuple(p))[0] for p in probabilities]
    table = {
        str(t): {
            r: sum(a == r and int(b) == t for a, b in zip(read, labels, strict=True))
            for r in (*"0123", "indeterminate")
        }
        for t in range(4)
    }
    told = [(a, b) for a, b in zip(read, labels, strict=True) if b < 4 and a != "indeterminate"]
    return {
        "n_erythroblasts": int((labels < 4).sum()),
        "true_type_then_read": table,
        "type_accuracy": round(float(np.mean([a == str(b) for a, b in told])), 4) if told else None,
        "ring_or_not_accuracy": (
            round(float(np.mean([(a == "3") == (b == 3) for a, b in told])), 4) if told else None
        ),
        "indeterminate": round(1 - len(told) / max(1, int((labels < 4).sum())), 4),
        "others_read_as_erythroblasts": [
            sum(a != "indeterminate" and int(b) == 4 for a, b in zip(read, labels, strict=True)),
            int((labels == 4).sum()),
        ],
    }


def train_reader(
    out_dir: Path,
    work: Path | None = None,
    recipe: ReaderRecipe | None = None,
    *,
    seed: int = 0,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> ModelPackage:
    """Draw the phantoms where `work` does not hold them, train, calibrate, and write the package.

    `work` is `out_dir`.training, where the checkpoint is, unless given.  Raises BadInput where an earlier
    training's checkpoint is there and `resume` is not asked for, or it was made of something else.
    """
    recipe = recipe or ReaderRecipe()
    checkpoint = checkpoint_beside(out_dir)
    keep_earlier(resume, checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    work = work or checkpoint.parent
    fields = field_set(
        work / "fields", "Perls", recipe.n_marrows, n_stainings=recipe.n_stainings, report=report
    )
    held = field_set(
        work / "fields",
        "Perls",
        recipe.n_validation,
        first_seed=FIRST_VALIDATION_SEED,
        n_stainings=1,
        max_nuisances=1.0,
        max_spread=1.0,
        report=report,
    )
    data, validation = iron_set(fields, recipe.n_empty, seed), iron_set(held, recipe.n_empty, seed + 1)
    torch.manual_seed(seed)
    net = fit(
        IronNet(recipe.widths),
        data,
        recipe,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
        report=report,
    )
    logits = logits_of(net, validation)
    temperature = round(fit_temperature(logits.double().numpy(), validation.labels), 4)
    metrics = confusion_of((logits / temperature).softmax(1).numpy(), validation.labels)
    report(
        f"temperature {temperature} " + str({k: v for k, v in metrics.items() if k != "true_type_then_read"})
    )
    card = {
        "name": out_dir.name,
        "version": "1.0.0",
        "task": "sideroblast-reader",
        "architecture": "iron-net",
        "weights": "safetensors",
        "licence": "AGPL-3.0-or-later",
        "intended_use": "A second opinion on the iron of erythroblasts beside the rule. Research only.",
        "modalities": ["brightfield"],
        "stains": ["Perls"],
        "specimens": ["bone_marrow"],
        "pixel_size_um": PIXEL_SIZE_UM,
        "input_px": [INPUT_PX, INPUT_PX],
        "classes": list(OUTPUTS),
        "training_data": [
            f"Phantom marrows (phantoms.marrow_fields): {len(fields)} Perls fields of {recipe.n_marrows} "
            f"marrows; erythroblasts of type 0 to 3: {np.bincount(data.labels, minlength=5)[:4].tolist()}, "
            f"others {int((data.labels == OTHER).sum())}. No photograph."
        ],
        "training": {"seed": seed, "recipe": asdict(recipe)},
        "metrics": {
            "measured_on": "validation phantoms, centred by truth, on which the temperature was fitted",
            **metrics,
        },
        "limits": [
            "Trained and measured on drawn cells only; no real erythroblast in Perls was ever seen.",
            "It names a type without granules or outline: it cannot show why.",
            "Cells between types 2 and 3 are not in the phantoms.",
        ],
        "parameters": {"widths": list(recipe.widths), "temperature": temperature},
    }
    packed = {k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in net.state_dict().items()}
    return write_package(out_dir, card, packed)
