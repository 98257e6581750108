"""What the classification benchmarks share: placed cells of SMEARFLOW_DATA, predictions of a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classifiers.augment import Augmentation, geometry
from classifiers.cell_set import MEAN, STD, CellSet
from classifiers.networks import CellNet
from classifiers.recipes import Recipe
from classifiers.sources import Sample, group_duplicates, project_samples
from classifiers.training import fit, new_net
from classifiers.views import dihedral
from storage.images import read_rgb

DATA = Path(os.environ.get("SMEARFLOW_DATA", "../shared/data"))
HOSPITALS = ("barcelona", "raabin", "tecom", "cellavision", "bccd")


def hospital(sample: Sample) -> str:
    """Where a sample was photographed: the Barcelona cells and the Barcelona fields are one hospital."""
    return sample.source.removeprefix("smears-")


def placed_samples() -> list[Sample]:
    """Labelled cells, near-duplicates in one group, each with the place of its cell.

    Barcelona crops have no box; theirs is the shipped locator's, which was trained on boxes of all sources.
    """
    from storage.registry import load

    locator = load("classifier", "leukocyte-classes")
    samples = []
    for sample in group_duplicates(project_samples(DATA)):
        if sample.side is None:
            x, y, side = locator.frame(read_rgb(sample.path), None)
            sample = replace(sample, x=x, y=y, side=side / locator.zoom)
        samples.append(sample)
    return samples


def trained(
    cells: CellSet,
    recipe: Recipe,
    *,
    start: Path | None,
    seed: int,
    checkpoint: Path,
    report: Callable[[str], None],
) -> CellNet:
    """A network without a locator, from a backbone's weights or random ones; resumes from `checkpoint`."""
    net = new_net(recipe, locator=False, seed=seed, backbone=start)
    return fit(net, cells, recipe, seed=seed, checkpoint=checkpoint, resume=True, report=report)


def predict(net: CellNet, cells: CellSet, px: int) -> np.ndarray:
    """Probabilities (N, K) of cached cells, logits averaged over four mirrored views."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    generator = torch.Generator().manual_seed(0)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(cells.labels), 64):
            x = cells.images[start : start + 64].float() / 255
            view = cells.view[start : start + 64].float()
            x = geometry(x, px, view, Augmentation.none(), generator)
            copies = torch.cat([dihedral((v - mean) / std, 4) for v in x])
            logits, _ = net.logits(net.embed(copies))
            rows.append(logits.unflatten(0, (len(x), 4)).mean(1).softmax(1))
    return torch.cat(rows).numpy()


def share_cells(m: Mapping[str, Any]) -> str:
    """Top-1 and macro-F1 of a `classifiers.metrics.summary`, with intervals, as two cells of a table."""
    top, f1 = m["top1_interval"], m["macro_f1_interval"]
    return f"{m['top1']:.2f} ({top[0]:.2f}-{top[1]:.2f}) | {m['macro_f1']:.2f} ({f1[0]:.2f}-{f1[1]:.2f})"


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` of a page."""
    whole = page.read_text(encoding="utf-8")
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = whole.split(first, 1)
    after = rest.split(last, 1)[1]
    page.write_text(f"{before}{first}\n{text.strip()}\n{last}{after}", encoding="utf-8")


def mean_interval(values: Sequence[float]) -> list[float]:
    """Mean and 95 % interval of a few seeds' values by Student's t, rounded."""
    from scipy.stats import t

    v = np.asarray(values, float)
    half = float(t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v))) if len(v) > 1 else float("nan")
    return [round(float(v.mean()), 3), round(float(v.mean()) - half, 3), round(float(v.mean()) + half, 3)]
