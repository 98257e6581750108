"""What pretraining without labels brings where labels are few.

    python -m benchmarks.classification_pretraining --out DIR [--seeds 3] [--epochs 6] [--docs PAGE]

For every seed a small backbone learns from leukocytes and red cells of the smears without their names
(`classifiers.pretraining`); then the same network is trained on few labelled Barcelona cells, once from
those weights and once from random ones, everything else alike.  Half of the Barcelona cells, by groups of
near-duplicates, is the test; no image of a test group is among the unlabelled ones.  Tested also on the
five leukocyte classes of two other sources (tecom, cellavision), which trained nothing.  Intervals are 95 %
over seeds (Student's t) and, for the difference, over paired seeds.  A finished part is kept in DIR.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from benchmarks.classification_cells import (
    DATA,
    hospital,
    mean_interval,
    placed_samples,
    predict,
    write_section,
)
from classifiers.cell_set import cell_set
from classifiers.metrics import confusion, macro_f1
from classifiers.networks import CellNet
from classifiers.pretraining import Pretraining, crops_of, pretrain, start_from
from classifiers.recipes import Recipe
from classifiers.sources import Sample, boxed_cells, level_classes, split_by_group, to_level
from classifiers.taxonomy import LEVELS
from classifiers.training import fit

CLASSES = level_classes("eight")
RECIPE = Recipe(
    input_px=64, cached_px=96, epochs=20, samples_per_epoch=160, none_share=0.0, balance=1.0, drop_rate=0.1
)


def few(samples: list[Sample], per_class: int, seed: int) -> list[Sample]:
    """At most `per_class` samples of each class, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(samples))
    taken: dict[str, list[Sample]] = {}
    for i in order:
        taken.setdefault(to_level(samples[i].label), []).append(samples[i])
    return [s for part in taken.values() for s in part[:per_class]]


def score(net: CellNet, home: object, away: object) -> dict[str, float]:
    p = predict(net, home, RECIPE.input_px)
    truth = home.labels.numpy()
    five = [CLASSES.index(c) for c in LEVELS["five"]]
    q = predict(net, away, RECIPE.input_px)[:, five]
    return {
        "barcelona_macro_f1": macro_f1(confusion(truth, p.argmax(1), len(CLASSES))),
        "barcelona_top1": float((p.argmax(1) == truth).mean()),
        "other_sources_top1": float((np.array(five)[q.argmax(1)] == away.labels.numpy()).mean()),
    }


def as_markdown(result: dict, run: Pretraining) -> str:
    """The table of the documentation."""
    names = {
        "barcelona_macro_f1": "Barcelona, macro-F1 of 8 classes",
        "barcelona_top1": "Barcelona, top-1",
        "other_sources_top1": "tecom and cellavision, top-1 of 5 classes",
    }
    lines = [
        f"`python -m benchmarks.classification_pretraining --crops {run.crops} --epochs {run.epochs}`,"
        f" {result['date']}, one core; {result['seeds']} seeds, intervals over seeds (Student's t);"
        f" {result['test_barcelona']} Barcelona cells and {result['test_other_sources']} of the two other"
        " sources tested.",
        "",
        "| labelled a class | measured | from random weights | pretrained | gain, paired |",
        "|---|---|---|---|---|",
    ]
    for r in result["table"]:
        shown = [f"{v[0]:.2f} ({v[1]:.2f} to {v[2]:.2f})" for v in (r["random"], r["pretrained"], r["gain"])]
        lines.append(f"| {r['labelled_a_class']} | {names[r['measure']]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--crops", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--per-class", type=int, nargs="*", default=[5, 15])
    parser.add_argument("--docs", type=Path, default=None, help="Page whose table is written again.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    run = Pretraining(crops=options.crops, epochs=options.epochs, batch=64, input_px=RECIPE.input_px)
    samples = placed_samples()
    cells = [s for s in samples if s.source == "barcelona" and to_level(s.label) in CLASSES]
    train, test = split_by_group(cells, 0.5, 1)
    closed = {cells[i].group for i in test}
    group_of = {s.path: s.group for s in samples}
    away = [s for s in samples if hospital(s) in ("tecom", "cellavision") and s.label in LEVELS["five"]]
    home_cells, away_cells = (cell_set(part, RECIPE) for part in ([cells[i] for i in test], away))
    rows: list[dict[str, object]] = []
    for seed in range(options.seeds):
        kept = options.out / f"seed{seed}.json"
        if kept.is_file():
            rows += json.loads(kept.read_text())
            continue
        unlabelled = boxed_cells(DATA / "smears", run.crops, seed)
        open_ = [s for s in unlabelled if group_of.get(s.path, str(s.path)) not in closed]
        state = pretrain(
            *crops_of(open_, run),
            run,
            seed=seed,
            checkpoint=options.out / f"seed{seed}.ckpt",
            resume=True,
            report=lambda line: print(line, round(time.process_time() - started), flush=True),
        )
        mine: list[dict[str, object]] = []
        for per_class in options.per_class:
            labelled = cell_set(few([cells[i] for i in train], per_class, seed), RECIPE)
            for start in ("random", "pretrained"):
                torch.manual_seed(seed)
                net = CellNet(RECIPE.backbone, len(CLASSES), locator=False, none_output=True, drop_rate=0.1)
                if start == "pretrained":
                    start_from(net.network, state, "benchmark")
                net = fit(net, labelled, RECIPE, seed=seed)
                found = score(net, home_cells, away_cells)
                row = {"seed": seed, "labelled": len(labelled.labels), "per_class": per_class}
                mine.append({**row, "start": start, "unlabelled": len(open_), **found})
                print(mine[-1], round(time.process_time() - started), flush=True)
        kept.write_text(json.dumps(mine) + "\n")
        rows += mine
    table = []
    for per_class in options.per_class:
        part = [r for r in rows if r["per_class"] == per_class]
        for measure in ("barcelona_macro_f1", "barcelona_top1", "other_sources_top1"):
            of = {s: [float(r[measure]) for r in part if r["start"] == s] for s in ("random", "pretrained")}
            gain = [b - a for a, b in zip(of["random"], of["pretrained"], strict=True)]
            table.append(
                {
                    "labelled_a_class": per_class,
                    "labelled": part[0]["labelled"],
                    "measure": measure,
                    "random": mean_interval(of["random"]),
                    "pretrained": mean_interval(of["pretrained"]),
                    "gain": mean_interval(gain),
                }
            )
    result = {
        "date": str(date.today()),
        "cores": 1,
        "cpu_seconds_of_this_call": round(time.process_time() - started),
        "seeds": options.seeds,
        "test_barcelona": len(home_cells.labels),
        "test_other_sources": len(away_cells.labels),
        "table": table,
    }
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if options.docs is not None:
        write_section(options.docs, "pretraining", as_markdown(result, run))


if __name__ == "__main__":
    main()
