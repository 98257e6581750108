"""Which attribution method may be trusted: randomised weights, and taking away what it ranks first.

    python -m benchmarks.classification_explanations [--cells 60]

Two tests per method, on labelled cells of SMEARFLOW_DATA that the classifier's card holds out:
1. the rank correlation of heat with that of the same network with random weights (Adebayo et al. 2018); an
   attribution that only sees the image, not the model, stays near 1;
2. the fall of the reported probability when the fifth of the view that is ranked first is replaced by a
   strongly blurred copy, against the mean fall for four other fifths: the same map, moved by half a view
   and mirrored, so that it has the same grain (Samek et al. 2017).  The replacement is not what occlusion
   hides with (the colour of glass), so that no method is judged by its own measure.
Intervals are 95 %, by a bootstrap over cells.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SHARE = 0.2


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's correlation of two maps."""
    from scipy.stats import spearmanr

    return float(spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic)


def blurred(view: torch.Tensor) -> torch.Tensor:
    """A copy (3, S, S) without detail: the mean over a quarter of the side."""
    radius = view.shape[-1] // 8
    size = 2 * radius + 1
    padded = F.pad(view[None], (radius,) * 4, mode="reflect")
    return F.avg_pool2d(padded, size, 1)[0]


def without(view: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """The view with the SHARE of its pixels that `heat` ranks first made featureless."""
    mask = heat >= torch.quantile(heat.flatten(), 1 - SHARE)
    return torch.where(mask[None], blurred(view), view)


def others(heat: torch.Tensor) -> list[torch.Tensor]:
    """Maps of the same grain that rank other places first."""
    half = heat.shape[-1] // 2
    moved = [heat.roll((half, 0), (0, 1)), heat.roll((0, half), (0, 1)), heat.roll((half, half), (0, 1))]
    return [*moved, heat.flip((0, 1)).roll((half // 2, half // 2), (0, 1))]


def interval(values: np.ndarray) -> str:
    draws = np.random.default_rng(1).integers(len(values), size=(2000, len(values)))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    from classifiers.calibration import patch_of
    from classifiers.explaining import METHODS, attribution
    from classifiers.sources import group_duplicates, project_samples, split_by_group, to_level
    from storage.images import read_rgb
    from storage.registry import load

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--model", default="leukocyte-classes")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ.get("SMEARFLOW_DATA", "../shared/data"))
    classifier = load("classifier", options.model)
    samples = group_duplicates(project_samples(root))
    held = [samples[i] for i in split_by_group(samples, 0.15, 0)[1]]
    held = [s for s in held if to_level(s.label) in classifier.classes and s.label != "platelet"]
    chosen = [held[i] for i in np.random.default_rng(0).permutation(len(held))[: options.cells]]
    random = copy.deepcopy(classifier)
    torch.manual_seed(0)
    for module in itertools.chain.from_iterable(network.modules() for network in random._net.members):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    rows: dict[str, list[tuple[float, float, float, float]]] = {m: [] for m in METHODS}
    for sample in chosen:
        patch = patch_of(sample, read_rgb(sample.path))
        given, blind = (c.attribution_input(patch, None) for c in (classifier, random))
        with torch.no_grad():
            p = given.probabilities(given.view[None])[0]
        k = int(p.argmax())
        for method in METHODS:
            start = time.perf_counter()
            heat = attribution(given, [k], method)
            seconds = time.perf_counter() - start
            same = rank_correlation(heat, attribution(blind, [k], method))
            views = torch.stack([without(given.view, m) for m in (heat, *others(heat))])
            with torch.no_grad():
                fall = (p[k] - given.probabilities(views)[:, k]).numpy()
            rows[method].append((same, float(fall[0]), float(fall[1:].mean()), seconds))
    table = {}
    for method, found in rows.items():
        same, first, other, seconds = np.array(found).T
        table[method] = {
            "cells": len(found),
            "correlation_with_random_weights": interval(same),
            "fall_first_fifth": interval(first),
            "fall_other_fifths": interval(other),
            "difference": interval(first - other),
            "share_of_cells_where_first_falls_more": round(float((first > other).mean()), 2),
            "seconds_a_cell": round(float(np.median(seconds)), 2),
        }
    print(json.dumps(table, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
