"""A hospital never seen: five leukocyte classes, each source left out of training in turn.

    python -m benchmarks.classification_hospitals --out DIR --start BACKBONE [--docs PAGE]
        [--epochs 6 --samples 900]

Sources are Barcelona (cells and fields are one hospital), BCCD, Raabin, tecom and cellavision.  The shipped
recipe (with --epochs and --samples one network of that length alone) learns from all sources but one and is
tested on every labelled cell of that one.
`--start` is a folder of `smearflow train backbone`; without it the weights are random.
The classes of BCCD, Raabin and the Barcelona fields were read by the project (classifiers/labels); those of
the Barcelona cells come with the set.  Intervals: Wilson for top-1, bootstrap over cells for macro-F1.  The
places of the Barcelona cells are the shipped locator's, which knows boxes of all sources.  A finished source
is kept in DIR.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

from benchmarks.classification_cells import (
    HOSPITALS,
    hospital,
    placed_samples,
    predict,
    share_cells,
    trained,
    write_section,
)
from classifiers.cell_set import cell_set
from classifiers.metrics import summary
from classifiers.recipes import Recipe
from classifiers.sources import level_classes
from classifiers.taxonomy import LEVELS

CLASSES = level_classes("five")


def short(measured: dict[str, object]) -> dict[str, object]:
    keys = ("n", "top1", "top1_interval", "macro_f1", "macro_f1_interval")
    recall = {k: v["recall"] for k, v in measured["per_class"].items()}
    return {k: np.round(measured[k], 3).tolist() for k in keys} | {"recall": recall}


def as_markdown(found: dict[str, dict[str, object]], options: argparse.Namespace) -> str:
    """The table of the documentation: a row a source left out, and the Barcelona cells apart."""
    start = options.start.name if options.start else "random weights"
    length = f" --epochs {options.epochs} --samples {options.samples}" if options.epochs else ""
    lines = [
        f"`python -m benchmarks.classification_hospitals{length}`, start: {start}, {date.today()}, one core,"
        f" seed {options.seed}.",
        "",
        "| left out | tested | trained on | top-1 | macro-F1 | least recall |",
        "|---|---|---|---|---|---|",
    ]

    def row(name: str, m: dict, cells: object) -> str:
        worst = min((v, k) for k, v in m["recall"].items() if v is not None)
        return f"| {name} | {m['n']} | {cells} | {share_cells(m)} | {worst[1]} {worst[0]:.2f} |"

    for name, m in found.items():
        lines.append(row(name, m, m["trained_on"]))
        if len(m["parts"]) > 1:
            lines += [row(f"- of it {part}", v, "") for part, v in sorted(m["parts"].items())]
    missing = [h for h in HOSPITALS if h not in found]
    if missing:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, default=None, help="Backbone to start from [random weights].")
    parser.add_argument("--epochs", type=int, help="of a single network [the recipe's networks]")
    parser.add_argument("--samples", type=int, help="an epoch, with --epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--left-out", nargs="+", choices=HOSPITALS, default=HOSPITALS)
    parser.add_argument("--docs", type=Path, default=None, help="Page whose table is written again.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if (options.epochs is None) != (options.samples is None):
        parser.error("--epochs and --samples go together")
    recipe = replace(Recipe.load("leukocytes"), level="five", none_share=0.0)
    if options.epochs is not None:
        one = {"epochs": options.epochs, "samples_per_epoch": options.samples, "companions": ()}
        recipe = replace(recipe, **one)
    samples = [s for s in placed_samples() if s.label in LEVELS["five"]]
    started = time.process_time()
    found: dict[str, dict] = {}
    for left_out in options.left_out:
        kept = options.out / f"{left_out}.json"
        if not kept.is_file():
            train = cell_set([s for s in samples if hospital(s) != left_out], recipe)
            test = cell_set([s for s in samples if hospital(s) == left_out], recipe)
            net = trained(
                train,
                recipe,
                start=options.start,
                seed=options.seed,
                checkpoint=options.out / f"{left_out}.ckpt",
                report=lambda line: print(line, round(time.process_time() - started), flush=True),
            )
            p, truth = predict(net, test, recipe.input_px), test.labels.numpy()
            sources = np.array(test.sources)
            parts = {
                s: short(summary(truth[sources == s], p[sources == s], CLASSES)) for s in set(test.sources)
            }
            whole = short(summary(truth, p, CLASSES)) | {"trained_on": len(train.labels), "parts": parts}
            kept.write_text(json.dumps(whole) + "\n")
        found[left_out] = json.loads(kept.read_text())
        print(left_out, found[left_out], flush=True)
        if options.docs is not None:
            write_section(options.docs, "hospitals", as_markdown(found, options))
    result = {
        "date": str(date.today()),
        "cores": 1,
        "cpu_seconds_of_this_call": round(time.process_time() - started),
        "left_out": found,
    }
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
