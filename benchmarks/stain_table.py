"""One table over the same pairs: every stainer that can be trained, each for a short while.

    python -m benchmarks.stain_table --work /tmp/stainers --steps 300 --out docs/stainers.json

The pairs are leukocytes of real smears of one stain domain and DIC computed of them (`stainers.dic_sets`):
the same training pairs, seeds and test cells for every recipe.  Classes are the classifier's (pseudo-labels).
A family that cannot be handed a set (`families.Family.train_set`) trains on its own draws of the same smears
and the row says so; `--package NAME=FOLDER` adds a package that is trained already.  Every row is kept in the
work folder, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stainers.cell_sets import Cells
from stainers.confidence import fit_calibration
from stainers.data import PIXEL_SIZE_UM, load_smears
from stainers.dic_sets import DicSet, dic_set
from stainers.evaluation import evaluate_pairs
from stainers.export import calibration_table
from stainers.families import FAMILIES, family, with_length
from stainers.normalizers import METHODS
from stainers.pair_sources import Pair
from stainers.picture_data import named, namer
from stainers.recipes import read_recipe, recipe_names
from storage.registry import load

Array = np.ndarray[Any, Any]
LABELLER = "leukocyte-classes"
POLARITY_OF = "dic-to-mgg"  # whose network tells the sign of a shear, for every stainer of DIC
CROP_PX = 96


def save_set(data: DicSet, path: Path) -> None:
    """The set as arrays, so that every recipe gets the very same pairs."""
    arrays = {"source": np.stack(data.source.images), "target": np.stack(data.target.images)}
    arrays |= {
        "dic": np.stack([p.dic for p in data.pairs]),
        "stained": np.stack([p.stained for p in data.pairs]),
    }
    words = {
        "labels": data.target.labels, "groups": data.source.groups, "splits": data.source.splits,
        "domain": data.target.domain, "shear": [p.shear_angle_deg for p in data.pairs],
    }  # fmt: skip
    draft = path.with_name("draft.npz")  # a run that is stopped leaves no half a set
    np.savez_compressed(draft, words=json.dumps(words), **arrays)
    os.replace(draft, path)


def read_set(path: Path) -> DicSet:
    with np.load(path) as found:
        words = json.loads(str(found["words"]))
        arrays = {k: tuple(found[k]) for k in ("source", "target", "dic", "stained")}
    shared = (tuple(words["labels"]), tuple(words["groups"]), tuple(words["splits"]))
    pairs = tuple(
        Pair(dic, stained, words["domain"], group, label, shear)
        for dic, stained, label, group, shear in zip(
            arrays["dic"], arrays["stained"], shared[0], shared[1], words["shear"], strict=True
        )
    )
    source = Cells("dic", arrays["source"], *shared, modality="dic")
    return DicSet(source, Cells(words["domain"], arrays["target"], *shared), True, pairs)


def make_set(data: Path, domain: str, limit: int, seed: int) -> DicSet:
    """At most `limit` training pairs, and a quarter of it for validation and for the test each."""
    found = dic_set(load_smears(data), domain, limit=limit, seed=seed)
    taken: dict[str, int] = {}
    chosen = []
    for i, split in enumerate(found.source.splits):
        taken[split] = taken.get(split, 0) + 1
        if taken[split] <= (limit if split == "train" else max(limit // 4, 8)):
            chosen.append(i)
    cut = replace(
        found,
        source=found.source.take(chosen),
        target=found.target.take(chosen),
        pairs=tuple(found.pairs[i] for i in chosen),
    )
    return named(cut, LABELLER)  # type: ignore[return-value]


def for_dic(recipe: Any, steps: int, seed: int) -> Any:
    """The recipe at the table's size: its steps, crops of 96 px, nothing that DIC forbids."""
    recipe = with_length(recipe, steps, seed)
    if hasattr(recipe, "draw") and hasattr(recipe.draw, "turns"):
        recipe = replace(recipe, draw=replace(recipe.draw, crop_px=CROP_PX, turns=False))
    if hasattr(recipe, "generator") and hasattr(recipe.generator, "residual"):
        recipe = replace(recipe, generator=replace(recipe.generator, residual=False))
    if hasattr(recipe, "pairs"):
        recipe = replace(recipe, pairs=replace(recipe.pairs, crop_px=CROP_PX))
    if hasattr(recipe, "run") and hasattr(recipe.run, "choose_every"):
        run = replace(recipe.run, choose_every=steps, sample_every=steps, checkpoint_every=25)
        recipe = replace(recipe, run=run)
    return recipe


def say(name: str) -> Callable[[int, int, dict[str, float]], None]:
    def progress(step: int, total: int, parts: dict[str, float]) -> None:
        if step % 25 == 0:
            print(name, step, total, {k: round(v, 3) for k, v in parts.items()}, flush=True)

    return progress


def train(name: str, data: DicSet, smears: Path, folder: Path, steps: int, seed: int) -> dict[str, Any]:
    """Train a recipe into `folder`; returns what the row says of it."""
    recipe = for_dic(read_recipe(name), steps, seed)
    plan = family(recipe.architecture)
    began = time.process_time()
    if plan.train_set:
        polarity = load("stainer", POLARITY_OF).polarity
        plan.get("train_set")(
            data, folder, recipe, polarity=polarity, resume=True, chosen="last", progress=say(name)
        )
        pairs = "the table's"
    else:
        plan.get("train_folder")(smears, folder, recipe=recipe, resume=True, progress=say(name))
        pairs = "its own, of the same smears"
    length = None  # a normalizer is fitted, not trained
    if recipe.architecture not in METHODS:
        length = getattr(recipe, "steps", None) or recipe.run.steps
    return {"steps": length, "training_pairs": pairs, "cpu_seconds": round(time.process_time() - began)}


def refit(stainer: Any, pairs: Sequence[Pair]) -> None:
    """The confidence fitted anew on the table's validation pairs, as those trained here have it."""
    tables = [calibration_table(stainer, pairs, spoilt, 0) for spoilt in (False, True)]
    stainer.calibration = fit_calibration(*tables[0], *tables[1])


def measure(
    package: str, data: DicSet, classify: Callable[[Array], Sequence[str]], fit: bool = False
) -> dict[str, Any]:
    """The figures of a row, on the test pairs; with `fit` its confidence is fitted anew before."""
    stainer = load("stainer", package)
    if fit:
        stainer.features = type(stainer).features  # those of today, whatever the card was made with
        refit(stainer, data.pairs_of("validation"))
    domain = data.target.domain
    target = domain if domain in stainer.targets else stainer.targets[0]
    pairs = [replace(p, target=target) for p in data.pairs_of("test")]
    stainer.stain(pairs[0].dic[None], target)  # the first call is no measure of speed
    began = time.process_time()
    for pair in pairs[:3]:
        stainer.stain(pair.dic[None], target)
    seconds = (time.process_time() - began) / len(pairs[:3])
    report = evaluate_pairs(stainer, pairs, classify=classify, spoilt_inputs=False)
    parameters = sum(p.numel() for p in stainer.parameters()) if hasattr(stainer, "parameters") else None
    return {"n": len(pairs), "parameters": parameters, "seconds_a_patch": seconds, "report": report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("SMEARFLOW_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=root / "smears")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--recipes", nargs="*", default=[n for n in recipe_names() if n in FAMILIES])
    parser.add_argument("--package", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--refit", nargs="*", default=[], metavar="NAME", help="packages to calibrate anew")
    parser.add_argument("--domain", default="barcelona")
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    kept = arguments.work / f"pairs-{arguments.domain}-{arguments.pairs}-{arguments.seed}.npz"
    if not kept.is_file():
        save_set(make_set(arguments.data, arguments.domain, arguments.pairs, arguments.seed), kept)
    data = read_set(kept)
    classify = namer(LABELLER, PIXEL_SIZE_UM)
    given = dict(p.split("=", 1) for p in arguments.package)
    for name in [*given, *arguments.recipes]:
        folder = arguments.work / name
        row_path = folder / "row.json"
        if row_path.is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        row = {"steps": None, "training_pairs": "trained before"}
        if name not in given:
            row = train(name, data, arguments.data, folder, arguments.steps, arguments.seed)
        row |= measure(given.get(name, str(folder / "package")), data, classify, name in arguments.refit)
        row_path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        print(name, row["n"], row["report"]["all"], flush=True)
    show(arguments)


def show(arguments: argparse.Namespace) -> None:
    """The rows so far as a Markdown table, and as JSON where a file is named."""
    rows = {p.parent.name: json.loads(p.read_text()) for p in sorted(arguments.work.glob("*/row.json"))}
    head = "stainer, steps, pairs, SSIM, MSE, MSE matched, classifier agrees, confidence ~ structure error, "
    head += "confidence ~ RMSE raw, parameters, CPU s a patch, CPU min of training"
    print("| " + head.replace(", ", " | ") + " |")
    print("|" + "---|" * len(head.split(", ")))
    for name, row in rows.items():
        figures, tied = row["report"]["all"], row["report"]["confidence_error_correlation"]
        cells = [name, str(row["steps"] or "-"), row["training_pairs"]]
        cells += [
            ranged(figures[k], digits)
            for k, digits in (("ssim", 3), ("mse", 4), ("mse_matched", 4), ("same_class_after", 2))
        ]
        cells += [ranged(tied[k]["all"]["pearson"], 2) for k in ("structure_error", "rmse")]
        spent = row.get("cpu_seconds")
        cells += [str(row["parameters"] or "-"), f"{row['seconds_a_patch']:.2f}"]
        print("| " + " | ".join([*cells, "-" if spent is None else f"{spent / 60:.1f}"]) + " |")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def ranged(value: Sequence[float], digits: int) -> str:
    """A figure with its interval; a dash where there is none (a confidence that is the same for all)."""
    if any(v != v for v in value):
        return "-"
    mean, low, high = (f"{v:.{digits}f}" for v in value)
    return f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
