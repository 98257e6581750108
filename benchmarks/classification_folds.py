"""The classifier's recipe on every labelled cell: cross-validation over folds of whole groups.

    python -m benchmarks.classification_folds --out DIR --start BACKBONE [--folds 5] [--epochs N]
        [--only FOLD …] [--docs PAGE]

Forty-two held-out cells of a hospital cannot tell 0.85 from 0.95.  Here each labelled cell is named by a
network that saw neither it nor its near-duplicates, and the shipped recipe is measured on all of them (on
those of some folds with --only, at least two).  Temperatures are fitted on the other folds' cells, each
named by a network that had not seen it.  The places of the Barcelona cells are the shipped locator's, which
knows boxes of all sources.  Nothing is chosen on what is tested.  Intervals: Wilson for top-1, bootstrap over
cells for macro-F1.  A finished fold is kept in DIR.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

from benchmarks.classification_cells import placed_samples, predict, share_cells, trained, write_section
from classifiers.cell_set import cell_set
from classifiers.metrics import fit_temperature, summary
from classifiers.recipes import Recipe
from classifiers.sources import Sample, folds_by_group, level_classes, to_level


def run_fold(
    train: Sequence[Sample], test: Sequence[Sample], recipe: Recipe, out: Path, start: Path, seed: int
) -> None:
    """Train on one part and keep what the network says of the other: log-probabilities, truth, sources."""
    classes = level_classes(recipe.level)
    started = time.monotonic()
    net = trained(
        cell_set(train, recipe),
        recipe,
        start=start,
        seed=seed,
        checkpoint=out.with_suffix(".ckpt"),
        report=lambda line: print(out.stem, line, round(time.monotonic() - started), flush=True),
    )
    cells = cell_set([s for s in test if to_level(s.label, recipe.level) in classes], recipe)
    p = predict(net, cells, recipe.input_px)
    np.savez(
        out, log_p=np.log(np.maximum(p, 1e-12)), truth=cells.labels.numpy(), source=np.array(cells.sources)
    )


def tempered(folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Probabilities of all folds in order, each at the temperature that fits the other folds."""
    rows = []
    for k, (log_p, _) in enumerate(folds):
        others = [f for i, f in enumerate(folds) if i != k]
        logits, truth = (np.concatenate(part) for part in zip(*others, strict=True))
        rows.append(softmax(log_p / fit_temperature(logits, truth), axis=1))
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="Folder of `smearflow train backbone`.")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="[the recipe's]")
    parser.add_argument("--only", type=int, nargs="*", help="Folds to run, from 0 [all].")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, default=None, help="Page whose table is written again.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe.load("leukocytes")
    recipe = recipe.with_epochs(options.epochs or recipe.epochs)
    only = range(options.folds) if options.only is None else sorted(set(options.only))
    if len(only) < 2 or not 0 <= only[0] <= only[-1] < options.folds:
        parser.error(f"--only {options.only}: name at least two folds of 0 to {options.folds - 1}")
    classes = level_classes(recipe.level)
    samples = placed_samples()
    read = []
    for number, held in enumerate(folds_by_group(samples, options.folds, options.seed)):
        if number not in only:
            continue
        kept = options.out / f"fold-{number}.npz"
        if not kept.is_file():
            inside = set(held)
            train = [s for i, s in enumerate(samples) if i not in inside]
            run_fold(train, [samples[i] for i in held], recipe, kept, options.start, options.seed)
        with np.load(kept) as stored:
            read.append({k: stored[k] for k in stored.files})
    p = tempered([(f["log_p"], f["truth"]) for f in read])
    truth = np.concatenate([f["truth"] for f in read])
    sources = np.concatenate([f["source"] for f in read])
    lines = [
        f"`python -m benchmarks.classification_folds --folds {options.folds}`, {recipe.epochs} epochs, folds "
        f"{', '.join(map(str, only))}, {date.today()}, one core, seed {options.seed}.",
        "",
        "| source | cells | top-1 | macro-F1 | ECE | least recall |",
        "|---|---|---|---|---|---|",
    ]
    for source in [*sorted(set(sources)), "all"]:
        mine = sources == source if source != "all" else np.ones(len(sources), bool)
        m = summary(truth[mine], p[mine], classes)
        worst, name = min((v["recall"], k) for k, v in m["per_class"].items() if v["recall"] is not None)
        lines.append(f"| {source} | {m['n']} | {share_cells(m)} | {m['ece']:.2f} | {name} {worst:.2f} |")
    print("\n".join(lines))
    if options.docs is not None:
        write_section(options.docs, "folds", "\n".join(lines))


if __name__ == "__main__":
    main()
