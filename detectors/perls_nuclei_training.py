"""Training of the finder of erythroblasts in Perls fields on phantom marrows; a minute of one core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from detectors.boxes import iou_matrix, suppress
from detectors.perls_nuclei import FEATURES, Nuclei, PerlsNucleiFinder, measure_nuclei, squashed
from phantoms.marrow_fields import ERYTHROID_RECIPES, RECIPES, TrainingField
from phantoms.marrow_sets import PIXEL_SIZE_UM, FieldSet, field_sets, require_enough
from storage.checkpoints import (
    begin_beside,
    read_checkpoint,
    require_same,
    write_checkpoint,
)
from storage.fingerprint import array_mark, fingerprint
from storage.packages import ModelPackage, write_package

ERYTHROID = tuple(RECIPES.index(r) for r in ERYTHROID_RECIPES)
THRESHOLD = 0.4  # the pipeline's, at which more likely than not should lie
SHARPNESS = round(float(np.log(THRESHOLD) / np.log(0.5)), 4)
WHOLE = 0.5  # share of a cell that must be seen for it to be right or wrong to find


@dataclass(frozen=True)
class NucleiRecipe:
    """Everything that one training run of the finder is made of."""

    hidden: tuple[int, int] = (48, 24)
    steps: int = 1800
    batch: int = 256
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    dropout: float = 0.15
    jitter: float = 0.12  # of every figure, in its own standard deviations
    members: int = 3  # networks, whose answers are averaged
    n_marrows: int = 180
    n_stainings: int = 3
    n_validation: int = 40

    def __post_init__(self) -> None:
        require_enough(self, self.steps, self.n_marrows, self.n_validation)


def labelled(nuclei: Nuclei, field: TrainingField) -> tuple[np.ndarray, np.ndarray]:
    """Whether each nucleus is an erythroblast's (N,), and its weight (N,): 0 where too little is seen."""
    wanted, weight = np.zeros(len(nuclei.boxes)), np.ones(len(nuclei.boxes))
    if len(field.boxes) == 0:
        return wanted, weight
    overlaps = iou_matrix(nuclei.boxes, field.boxes)
    for i, j in enumerate(overlaps.argmax(1)):
        if overlaps[i, j] < 0.3:
            continue
        weight[i] = float(field.visible[j] >= WHOLE)
        # Two pieces of one nucleus: the better one is the cell.
        best = overlaps[:, j].argmax() == i or overlaps[i, j] >= 0.5
        wanted[i] = float(best and field.recipes[j] in ERYTHROID)
    return wanted, weight


def scored(
    finder: PerlsNucleiFinder, measured: Sequence[tuple[Nuclei, TrainingField]]
) -> tuple[Any, Any, int]:
    """Scores (N,) of found boxes, whether each is an erythroblast, and how many erythroblasts there are."""
    scores: list[float] = []
    right: list[bool] = []
    total = 0
    for nuclei, field in measured:
        whole = field.visible >= WHOLE
        total += int((whole & np.isin(field.recipes, ERYTHROID)).sum())
        score = finder.score(nuclei.features)
        kept = suppress(nuclei.boxes, score, 0.4, 0.6)
        overlaps = iou_matrix(nuclei.boxes[kept], field.boxes)
        taken: set[int] = set()
        for row, i in enumerate(kept):
            j = int(overlaps[row].argmax()) if overlaps.shape[1] else -1
            hit = j >= 0 and overlaps[row, j] >= 0.5 and j not in taken
            taken |= {j} if hit else set()
            if not hit or whole[j]:
                scores.append(float(score[i]))
                right.append(hit and field.recipes[j] in ERYTHROID)
    return np.array(scores), np.array(right, bool), total


def fit(
    features: np.ndarray,
    wanted: np.ndarray,
    weight: np.ndarray,
    recipe: NucleiRecipe,
    seed: int,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, torch.Tensor]:
    """The state of a trained finder: members side by side in one network, their logits averaged.

    The checkpoint holds the members that are trained; each begins anew from its own seed.
    """
    z = squashed(features)
    centre, scale = z.mean(0), z.std(0) + 1e-6
    x = torch.tensor(np.clip((z - centre) / scale, -5, 5), dtype=torch.float32)
    y, w = torch.tensor(wanted, dtype=torch.float32), torch.tensor(weight, dtype=torch.float32)
    now = {
        "recipe": asdict(recipe),
        "data": fingerprint(*(array_mark(a) for a in (features, wanted, weight)), seed),
    }
    trained: list[dict[str, torch.Tensor]] = []
    if resume and checkpoint is not None and checkpoint.is_file():
        kept = read_checkpoint(checkpoint, "members")
        require_same(checkpoint, kept, now, *now)
        trained = list(kept["members"])
    members = [_network(x.shape[1], recipe) for _ in range(recipe.members)]
    for k, member in enumerate(members):
        if k < len(trained):
            member.load_state_dict(trained[k])
            continue
        members[k] = _member(x, y, w, recipe, (1000 * seed + k) % 2**63)  # torch takes no more bits
        trained.append(members[k].state_dict())
        if checkpoint is not None:
            write_checkpoint(checkpoint, {"members": trained, **now})
        report(f"network {k + 1}/{recipe.members} trained")
    layers = [[m[i] for m in members] for i in (0, 3, 5)]
    n = len(members)
    state = {
        "centre": torch.tensor(centre, dtype=torch.float32),
        "scale": torch.tensor(scale, dtype=torch.float32),
        "weight0": torch.cat([m.weight for m in layers[0]]),
        "weight1": torch.block_diag(*[m.weight for m in layers[1]]),
        "weight2": torch.cat([m.weight for m in layers[2]], 1) / n,
        **{f"bias{i}": torch.cat([m.bias for m in layers[i]]) for i in (0, 1)},
        "bias2": torch.stack([m.bias for m in layers[2]]).mean(0),
    }
    return {k: v.detach().float() for k, v in state.items()}


def _network(features: int, recipe: NucleiRecipe) -> nn.Sequential:
    a, b = recipe.hidden
    return nn.Sequential(
        nn.Linear(features, a),
        nn.ReLU(),
        nn.Dropout(recipe.dropout),
        nn.Linear(a, b),
        nn.ReLU(),
        nn.Linear(b, 1),
    ).eval()


def _member(
    x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, recipe: NucleiRecipe, seed: int
) -> nn.Sequential:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = _network(x.shape[1], recipe).train()
    optimiser = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps + 1
    )
    for _ in range(recipe.steps):
        chosen = torch.randint(0, len(y), (recipe.batch,), generator=generator)
        noise = torch.randn(recipe.batch, x.shape[1], generator=generator) * recipe.jitter
        logits = net(x[chosen] + noise)[:, 0]
        loss = functional.binary_cross_entropy_with_logits(logits, y[chosen], weight=w[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def _measured(fields: FieldSet, work: Path) -> list[tuple[Nuclei, TrainingField]]:
    """The nuclei of every field, measured once and kept."""
    path = work / f"nuclei-{array_mark(fields.images)[:16]}.npz"
    if not path.is_file():
        found = [measure_nuclei(f.image, PIXEL_SIZE_UM) for f in fields.fields]
        part = path.with_suffix(".part.npz")
        arrays = {f"f{i}": n.features for i, n in enumerate(found)}
        np.savez(part, **arrays, **{f"b{i}": n.boxes for i, n in enumerate(found)})  # type: ignore[arg-type]
        part.replace(path)
    with np.load(path, allow_pickle=False) as kept:
        return [(Nuclei(kept[f"f{i}"], kept[f"b{i}"]), f) for i, f in enumerate(fields.fields)]


def train_perls_finder(
    out_dir: Path,
    work: Path | None = None,
    recipe: NucleiRecipe | None = None,
    *,
    seed: int = 0,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> ModelPackage:
    """Draw the phantoms where `work` does not hold them, measure nuclei, train, write the package.

    One staining of each training marrow is used, in turn.  `work` is `out_dir`.training, where the
    checkpoint is, unless given.  Raises BadInput where an earlier training's checkpoint is there and
    `resume` is not asked for, or it was made of something else.
    """
    recipe = recipe or NucleiRecipe()
    checkpoint = begin_beside(out_dir, resume)
    work = work or checkpoint.parent
    drawn, held = field_sets(work, "Perls", recipe, report)
    k = recipe.n_stainings
    chosen = [i for i in range(len(drawn)) if i % k == (i // k) % k]
    fields = FieldSet(drawn.images[chosen], tuple(drawn.fields[i] for i in chosen))
    report(f"measuring the nuclei of {len(fields)} and {len(held)} fields")
    train, validation = _measured(fields, work), _measured(held, work)
    rows = [labelled(n, f) for n, f in train]
    features = np.concatenate([n.features for n, _ in train])
    wanted, weight = (np.concatenate([r[i] for r in rows]) for i in range(2))
    state = fit(features, wanted, weight, recipe, seed, checkpoint=checkpoint, resume=resume, report=report)
    card = _card(out_dir.name, recipe, seed, len(fields), int(weight.sum()), int((wanted * weight).sum()))
    with TemporaryDirectory(dir=checkpoint.parent) as unmeasured:
        finder = PerlsNucleiFinder(write_package(Path(unmeasured) / "finder", card, state))
        scores, right, total = scored(finder, validation)
    found = right[scores >= THRESHOLD]
    card["metrics"] = {
        "measured_on": "validation phantoms: any composition, nuisances 0 to 1, 64 µm fields, cut cells",
        "n_fields": len(held),
        "n_erythroblasts": total,
        "recall": round(float(found.sum() / total), 4) if total else None,
        "precision": round(float(found.mean()), 4) if len(found) else None,
    }
    report("recall {recall} precision {precision} of {n_erythroblasts}".format(**card["metrics"]))
    return write_package(out_dir, card, state)


def _card(
    name: str, recipe: NucleiRecipe, seed: int, n_fields: int, n_nuclei: int, n_wanted: int
) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1.0.0",
        "task": "detector",
        "architecture": "perls-nuclei",
        "weights": "safetensors",
        "licence": "AGPL-3.0-or-later",
        "intended_use": "Finding erythroblasts in Perls fields (nuclear fast red) of marrow. Research only.",
        "modalities": ["brightfield"],
        "stains": ["Perls"],
        "specimens": ["bone_marrow"],
        "pixel_size_um": None,
        "classes": ["erythroblast"],
        "training_data": [
            f"Phantom marrows (phantoms.marrow_fields): {n_fields} Perls fields, {n_nuclei} nuclei, of which "
            f"{n_wanted} are erythroblasts'. No photograph."
        ],
        "training": {"seed": seed, "recipe": asdict(recipe)},
        "metrics": {},
        "limits": [
            "Trained and measured on drawn cells only: no real Perls marrow was ever seen.",
            "Another counterstain than nuclear fast red (neutral red, safranin) was never tried.",
            "Megakaryocytes, fat, stroma and crushed cells are not in the phantoms.",
        ],
        "parameters": {"features": list(FEATURES), "layers": 3, "sharpness": SHARPNESS},
    }
