"""A hospital never seen, named from measures of the segmented cell: a second witness beside a network.

    python -m benchmarks.classification_measures --out DIR [--networks DIR] [--docs PAGE]

Each labelled cell is segmented (`nucleus-cytoplasm`, which learned no class but has seen the masks of tecom
and cellavision) and measured: shapes of cell and nucleus, densities of the cytoplasm relative to the
nucleus and to red cells, grain at three sizes, spread and quantiles of density.  All densities are divided
by the nucleus's own, so that the amount of dye drops out.  Kernel ridge regression (Gaussian kernel; sources
and classes balanced) learns the five leukocyte classes from all sources but one and names every cell of
that one.  `--networks`, the folder of `benchmarks.classification_hospitals`, adds the networks that left out
the same source, and both together: log-probabilities plus twice the regression's scores.  The kernel's
width, the ridge and this weight were chosen on raabin; the other sources decided nothing.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.classification_cells import HOSPITALS, hospital, placed_samples, predict, write_section
from classifiers.metrics import summary
from classifiers.networks import CellNet
from classifiers.sources import Sample, level_classes, read_image
from classifiers.taxonomy import LEVELS
from classifiers.training import Recipe, cell_set
from classifiers.views import balance, crop_square, white_point
from detectors.base import NUCLEUS, RED_CELL
from detectors.segment import central_cell
from storage.registry import load

CLASSES = level_classes("five")
CHOSEN_ON = "raabin"
CROP_PX, CELL_SIDES = 128, 2.4
CELL_UM = 12.5  # what a cell's side is taken for: sizes in µm are not known of all sources
RIDGE, WIDTH, WEIGHT = 0.3, 0.1, 2.0


def measured(sample: Sample, segmenter: object) -> np.ndarray:
    """Measures (F,) of a placed cell; what red cells would tell is NaN where the crop shows none."""
    image = read_image(sample.path)
    crop = crop_square(image, sample.x, sample.y, CELL_SIDES * sample.side, CROP_PX)
    pixels = (crop.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    labels = segmenter.segment(pixels[None], CELL_UM * CELL_SIDES / CROP_PX)[0]
    light = balance(crop, white_point(image)).permute(1, 2, 0).numpy()
    return measures(-np.log(np.clip(light, 1 / 255, 1)), labels)


def measures(density: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Measures (F,) of the cell in the middle of densities (S, S, 3) and labels (S, S)."""
    cell = central_cell(labels)
    if cell.sum() < 200:
        y, x = np.mgrid[: labels.shape[0], : labels.shape[1]] - (labels.shape[0] - 1) / 2
        cell = x**2 + y**2 < (labels.shape[0] / CELL_SIDES / 2) ** 2
    nucleus = cell & (labels == NUCLEUS)
    if nucleus.sum() < 60:
        nucleus = cell & (density[..., 1] > np.percentile(density[..., 1][cell], 60))
    cytoplasm = cell & ~nucleus
    inner = cv2.erode(cytoplasm.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    cytoplasm = inner if inner.sum() > 60 else cytoplasm if cytoplasm.sum() >= 20 else cell
    dark = density[nucleus].mean()
    core, body = density[nucleus].mean(0), density[cytoplasm].mean(0)
    scale = dark + 0.05
    found = [nucleus.sum() / cell.sum(), cell.mean(), *_shape(cell)[:3], *_shape(nucleus)]
    found += [*(core / core.sum()), *(body / (body.sum() + 0.05)), *(body / scale), *(body / (core + 0.05))]
    red = labels == RED_CELL
    eosin = density[red].mean(0) if red.sum() > 150 else np.full(3, np.nan)
    found += [*(eosin / scale), *((body - eosin) / scale)]
    for size in (0.8, 1.6, 3.0):
        grain = density - cv2.GaussianBlur(density, (0, 0), size)
        found += [*(grain[cytoplasm].std(0) / scale), *(grain[nucleus].std(0) / scale)]
    for where, mean in ((cytoplasm, body), (nucleus, core)):
        found += [*(density[where].std(0) / scale)]
        found += [*((np.percentile(density[where], (5, 25, 75, 95), axis=0) - mean) / scale).ravel()]
    found += [*(np.percentile(density[cell], (5, 25, 50, 75, 95), axis=0) / scale).ravel()]
    hue = density / (density.sum(2, keepdims=True) + 0.05)
    found += [*hue[cytoplasm].std(0), *np.percentile(hue[cytoplasm][:, [0, 2]], (10, 50, 90), axis=0).ravel()]
    depth = cv2.distanceTransform(cell.astype(np.uint8), cv2.DIST_L2, 3)
    depth /= depth.max()
    found += [depth[nucleus].mean(), density[cell & (depth < 0.25)].mean() / scale]
    return np.array([*found, density[cell & (depth > 0.6)].mean() / scale])


def _shape(mask: np.ndarray) -> list[float]:
    """Roundness, solidity, width to length, pieces, share of the enclosing circle, share of the largest."""
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    areas = [cv2.contourArea(c) for c in contours]
    every = np.concatenate(contours)
    length = sum(cv2.arcLength(c, True) for c in contours)
    (_, sides, _), (_, radius) = cv2.minAreaRect(every), cv2.minEnclosingCircle(every)
    total = sum(areas) + 1
    return [
        4 * np.pi * total / (length**2 + 1),
        total / (cv2.contourArea(cv2.convexHull(every)) + 1),
        min(sides) / (max(sides) + 1e-6),
        sum(a > 15 for a in areas),
        total / (np.pi * radius**2 + 1),
        max(areas) / total,
    ]


def scores(
    x: np.ndarray, y: np.ndarray, source: np.ndarray, trust: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Scores (N, K), about -1 to 1, of the tested cells by kernel ridge regression on the others."""
    known = ~test
    z = np.where(np.isnan(x), np.nanmedian(x[known], 0), x)
    z = np.clip(z, *np.percentile(z[known], (1, 99), axis=0))
    z = (z - z[known].mean(0)) / (z[known].std(0) + 1e-6)
    weight = trust.copy()
    for s in set(source):
        for k in range(len(CLASSES)):
            mine = (source == s) & (y == k) & known
            weight[mine] /= np.sqrt(max(1, mine.sum()))
    for k in range(len(CLASSES)):
        mine = (y == k) & known
        weight[mine] /= np.sqrt(weight[mine].sum())
    weight = weight[known] / weight[known].mean()

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return np.exp(-WIDTH * squared / a.shape[1])

    target = np.eye(len(CLASSES))[y[known]] * 2 - 1
    dual = np.linalg.solve(kernel(z[known], z[known]) + RIDGE * np.diag(1 / weight), target)
    return kernel(z[test], z[known]) @ dual


def network_probabilities(checkpoint: Path, cells: list[Sample]) -> np.ndarray:
    """What the network of a checkpoint of `benchmarks.classification_hospitals` says, (N, K)."""
    recipe = Recipe(
        level="five", input_px=64, cached_px=112, augmentation=Recipe.load("leukocytes").augmentation
    )
    net = CellNet(recipe.backbone, len(CLASSES), locator=False, none_output=True, drop_rate=0.1)
    net.network.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    return predict(net.eval(), cell_set(cells, recipe), recipe.input_px)


def as_markdown(found: dict[str, dict[str, dict]]) -> str:
    """The table of the documentation."""
    ways = list(next(iter(found.values())))
    lines = [
        f"`python -m benchmarks.classification_measures --networks DIR`, {date.today()}, one core; top-1 with"
        f" its 95 % interval / macro-F1. Kernel, ridge and weight were chosen on {CHOSEN_ON}.",
        "",
        "| left out | tested | " + " | ".join(ways) + " |",
        "|---|---|" + "---|" * len(ways),
    ]
    for name, of in found.items():
        cells = [
            f"{m['top1']:.2f} ({m['top1_interval'][0]:.2f}-{m['top1_interval'][1]:.2f}) / {m['macro_f1']:.2f}"
            for m in of.values()
        ]
        shown = f"{name} (chosen on)" if name == CHOSEN_ON else name
        lines.append(f"| {shown} | {next(iter(of.values()))['n']} | {' | '.join(cells)} |")
    for label, names in (("mean of the sources", list(found)), ("mean of the unseen four", None)):
        names = names or [n for n in found if n != CHOSEN_ON]
        means = [tuple(np.mean([found[n][w][k] for n in names]) for k in ("top1", "macro_f1")) for w in ways]
        lines.append(f"| {label} | | {' | '.join(f'{a:.2f} / {b:.2f}' for a, b in means)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", type=Path, default=None, help="Folder of classification_hospitals.")
    parser.add_argument("--docs", type=Path, default=None, help="Page whose table is written again.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    samples = [s for s in placed_samples() if s.label in LEVELS["five"]]
    kept = options.out / "measures.npy"
    if not kept.is_file():
        segmenter = load("segmenter", "nucleus-cytoplasm")
        np.save(kept, np.stack([measured(s, segmenter) for s in samples]))
    x = np.load(kept)
    y = np.array([CLASSES.index(s.label) for s in samples])
    source, trust = np.array([hospital(s) for s in samples]), np.array([s.weight for s in samples])
    found: dict[str, dict[str, dict]] = {}
    for left_out in HOSPITALS:
        test = source == left_out
        told = scores(x, y, source, trust, test)
        said = {"measures": told}
        if options.networks is not None:
            mine = [s for s, left in zip(samples, test, strict=True) if left]
            own = np.log(network_probabilities(options.networks / f"{left_out}.ckpt", mine))
            said = {"network": own, "measures": told, "together": own + WEIGHT * told}
        found[left_out] = {}
        for way, s in said.items():
            p = np.exp(s - s.max(1, keepdims=True))
            found[left_out][way] = summary(y[test], p / p.sum(1, keepdims=True), CLASSES)
        print(left_out, {w: round(m["top1"], 3) for w, m in found[left_out].items()}, flush=True)
    (options.out / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    print(as_markdown(found))
    if options.docs is not None:
        write_section(options.docs, "measures", as_markdown(found))


if __name__ == "__main__":
    main()
