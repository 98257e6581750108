"""Names of virtual cells: by the classifier of real stain, and by the one made for what the stainer paints.

    python -m benchmarks.virtual_naming --out DIR [--virtual PACKAGE] [--cells 30] [--docs PAGE] [--write]

Each cell is painted from its DIC towards every target; alike is a name that the classifier of real stain
gives the real stain, too.  Cells: of test smears, under the optics of training and under wider ones; of the
three cases (another optical model) those of smears that nothing was trained on, and some of all.  The naive
way is the DIC itself, handed over as if it were stained.  Intervals: Wilson.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.classification_cells import DATA, write_section
from benchmarks.stain_confidence import not_trained_on, write_card
from classifiers.metrics import expected_calibration_error
from pipeline.settings import Settings
from pipeline.statistics import wilson
from stainers.data import PIXEL_SIZE_UM, load_smears
from stainers.downstream import as_rgb
from stainers.pair_sources import Pair, computed_pairs, find_pairs
from storage.registry import describe, load

CASES = {"S001": "bccd", "S002": "barcelona", "S003": "raabin"}
OF_A_CASE = 50
OWN = "its own"
HELD = "cases, smears not trained on"


def sets_of_pairs(cells: int, out: Path, targets: Sequence[str]) -> dict[str, list[Pair]]:
    smears = load_smears(DATA / "smears")
    test = [s for s in smears if s.split == "test"]
    found = {
        "test smears, optics of training": computed_pairs(test, seed=21, limit=cells),
        "test smears, wider optics": computed_pairs(test, seed=22, limit=cells, wide=True),
    }
    every = {c: find_pairs(DATA / "cases" / c, targets, target=own).pairs for c, own in CASES.items()}
    of_cases = [p for pairs in every.values() for p in pairs]
    found[HELD] = not_trained_on(of_cases, smears, out / "case-smears.json")
    for case, pairs in every.items():
        order = np.random.default_rng(1).permutation(len(pairs))[:OF_A_CASE]
        found[f"{case} ({CASES[case]})"] = [pairs[i] for i in order]
    return found


def probabilities(classifier: Any, image: np.ndarray) -> np.ndarray:
    return np.asarray(classifier.classify(image[None], PIXEL_SIZE_UM).probabilities[0])


def measure(pairs: Sequence[Pair], stainer: Any, real: Any, virtual: Any) -> dict[str, Any]:
    """Names alike by target and classifier, and how sure each is of its own target's names."""
    assert real.classes == virtual.classes
    alike: dict[str, dict[str, int]] = {"real": {}, "virtual": {}}
    sure: dict[str, list[tuple[float, bool]]] = {"real": [], "virtual": []}
    naive = 0
    for pair in pairs:
        truth = int(probabilities(real, pair.stained).argmax())
        naive += int(probabilities(real, as_rgb(pair.dic)).argmax()) == truth
        for target in stainer.targets:
            image = stainer.stain(pair.dic[None], target, shear_angle_deg=[pair.shear_angle_deg]).image[0]
            for who, classifier in (("real", real), ("virtual", virtual)):
                found = probabilities(classifier, image)
                right = int(found.argmax()) == truth
                alike[who][target] = alike[who].get(target, 0) + right
                if target == pair.target:
                    alike[who][OWN] = alike[who].get(OWN, 0) + right
                    sure[who].append((float(found.max()), right))
    confidence = {
        who: {
            "mean": float(np.mean([c for c, _ in rows])),
            "ece": expected_calibration_error(np.array([c for c, _ in rows]), np.array([r for _, r in rows])),
        }
        for who, rows in sure.items()
    }
    return {"cells": len(pairs), "naive": naive, "alike": alike, "confidence": confidence}


def table(found: dict[str, dict[str, Any]], targets: Sequence[str], names: dict[str, str]) -> str:
    columns = (OWN, *targets)
    lines = [
        "| cells | n | DIC as it is | named by | " + " | ".join(columns) + " | mean confidence, ECE |",
        "|---|---|---|---|" + "---|" * len(columns) + "---|",
    ]
    for what, row in found.items():
        for who, name in names.items():
            n, alike, sure = row["cells"], row["alike"][who], row["confidence"][who]
            low, high = wilson(alike[OWN], n)
            shares = [f"{alike[OWN]} ({low:.2f}-{high:.2f})", *(str(alike[t]) for t in targets)]
            lines.append(
                f"| {what} | {n} | {row['naive']} | `{name}` | "
                + " | ".join(shares)
                + f" | {sure['mean']:.2f}, {sure['ece']:.2f} |"
            )
    return "\n".join(lines)


def card_of(found: dict[str, Any], targets: Sequence[str]) -> dict[str, Any]:
    """What a report tells of a virtual name: of held-out cells, how many were named like the real stain."""
    n, names = found["cells"], found["alike"]["virtual"]
    where = f"{n} cells of computed DIC, another optical model"
    alike = {"alike": {t: names[t] for t in targets}, "own": names[OWN]}
    return {"named_like_real_stain": {"n": n, **alike, "measured_on": where}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--virtual", default=Settings().classification.namer(virtual=True))
    parser.add_argument("--cells", type=int, default=30, help="of each stain of the test smears")
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--write", action="store_true", help="into the card of the package at --virtual")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    chosen = Settings()
    stainer: Any = load("stainer", chosen.staining.dic_stainer)
    real, virtual = load("classifier", chosen.classification.classifier), load("classifier", asked.virtual)
    found: dict[str, dict[str, Any]] = {}
    for what, pairs in sets_of_pairs(asked.cells, asked.out, stainer.targets).items():
        found[what] = measure(pairs, stainer, real, virtual)
        (asked.out / "virtual_naming.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(what, json.dumps(found[what]), flush=True)
    text = table(found, stainer.targets, {"real": real.name, "virtual": virtual.name})
    print(text)
    if asked.write:
        write_card(describe("classifier", asked.virtual).folder, card_of(found[HELD], stainer.targets))
    if asked.docs is not None:
        said = (
            f"`python -m benchmarks.virtual_naming`, {date.today().isoformat()}, one core, computed DIC.\n\n"
        )
        write_section(asked.docs, "virtual-naming", said + text)


if __name__ == "__main__":
    main()
