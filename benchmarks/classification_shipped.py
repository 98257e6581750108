"""The shipped classifier on what it was not trained on: held-out cells, spoilt crops, and no such cells.

    python -m benchmarks.classification_shipped [--model leukocyte-classes] [--docs PAGE]

Held out are the groups that the training's own split keeps (15 % of every source and class, near-duplicates
together).  The temperature and the ranks of unfamiliarity were fitted on them, so ECE and the AUROC of the
outliers are a little too kind; top-1 and F1 are not touched by that.  Intervals: Wilson for top-1, bootstrap
over cells for macro-F1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.classification_cells import DATA, share_cells, write_section
from classifiers.calibration import patch_of
from classifiers.evaluation import held_out_samples
from classifiers.metrics import auroc, summary
from classifiers.readers import read_cells
from classifiers.sources import Sample, to_level
from classifiers.timm_classifier import TimmClassifier
from storage.images import read_rgb

Spoil = Callable[[np.ndarray], np.ndarray]


def central(image: np.ndarray) -> np.ndarray:
    y, x = image.shape[0] // 8, image.shape[1] // 8
    return image[y:-y, x:-x]


def resized(side: int) -> Spoil:
    def spoil(image: np.ndarray) -> np.ndarray:
        how = cv2.INTER_AREA if side < image.shape[0] else cv2.INTER_CUBIC
        return cv2.resize(image, (side, side * image.shape[0] // image.shape[1]), interpolation=how)

    return spoil


def dyed(amount: float) -> Spoil:
    """So many times the dye: optical density adds up."""
    return lambda image: (255 * (np.maximum(image, 1) / 255.0) ** amount).astype(np.uint8)


def compressed(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)


SPOILT: dict[str, Spoil] = {
    "plain": lambda image: image,
    "central 75 %": central,
    "reduced to 64 px": resized(64),
    "enlarged to 700 px": resized(700),
    "yellow cast": lambda image: (image * np.array([1.0, 0.95, 0.75])).astype(np.uint8),
    "half the dye": dyed(0.5),
    "half as much dye again": dyed(1.5),
    "blur": lambda image: cv2.GaussianBlur(image, (0, 0), 0.012 * image.shape[0]),
    "JPEG 40": compressed,
}


def patches_of(samples: Sequence[Sample]) -> list[np.ndarray]:
    return [patch_of(s, read_rgb(s.path)) for s in samples]


def classified(model: TimmClassifier, patches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, K) and ranks of unfamiliarity (N,) of patches of any size."""
    found = [model.classify(p[None], None) for p in patches]
    return np.concatenate([f.probabilities for f in found]), np.concatenate([f.ood for f in found])


def outliers(held: Sequence[Sample]) -> dict[str, list[np.ndarray]]:
    """Patches that hold no cell of the classes: two kinds that trained nothing, and one that did."""
    iron = sorted((DATA / "iron").glob("crops/*"))
    beside = []
    for sample in held:
        if sample.side is None or sample.is_crop or sample.label == "platelet":
            continue
        image = read_rgb(sample.path)
        height, width = image.shape[:2]
        size = round(2.2 * sample.side)
        # The corner farthest from the cell: red cells, glass and rims of neighbours.
        x = 0 if (sample.x or 0) > width / 2 else width - size
        y = 0 if (sample.y or 0) > height / 2 else height - size
        if min(x, y) >= 0 and max(abs(x + size / 2 - sample.x), abs(y + size / 2 - sample.y)) > size:
            beside.append(image[y : y + size, x : x + size])
    return {
        "macrophages of an iron stain": [read_rgb(p) for p in iron],
        "places beside a cell": beside[:100],
        "red cells and debris (other ones trained)": patches_of([s for s in held if s.label == "other"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="leukocyte-classes")
    parser.add_argument("--docs", type=Path, default=None, help="Page whose tables are written again.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from storage.registry import load

    model = load("classifier", options.model)
    held = held_out_samples(options.model, read_cells(DATA, "project"))
    cells = [s for s in held if to_level(s.label) in model.classes]
    truth = np.array([model.classes.index(to_level(s.label)) for s in cells])
    sources = np.array([s.source for s in cells])
    p, ood = classified(model, patches_of(cells))

    lines = [
        f"`python -m benchmarks.classification_shipped`, {date.today()}.",
        "",
        "| source | cells | top-1 | macro-F1 | mean confidence | ECE |",
        "|---|---|---|---|---|---|",
    ]
    for source in [*sorted(set(sources)), "all"]:
        mine = sources == source if source != "all" else np.ones(len(sources), bool)
        m = summary(truth[mine], p[mine], model.classes)
        lines.append(
            f"| {source} | {mine.sum()} | {share_cells(m)} | {p[mine].max(1).mean():.2f} | {m['ece']:.2f} |"
        )
        print(lines[-1], flush=True)
    doubted = p.max(1) < model.min_confidence
    right = p.argmax(1) == truth
    lines += [
        "",
        f"In doubt is a cell under a confidence of {model.min_confidence:.2f}: {right[doubted].sum()} of"
        f" {doubted.sum()} below are named right, {right[~doubted].sum()} of {(~doubted).sum()} above.",
        "",
        "| unlike anything named | n | AUROC of the rank | median rank |",
        "|---|---|---|---|",
    ]
    for name, patches in outliers(held).items():
        ranks = classified(model, patches)[1]
        lines.append(f"| {name} | {len(ranks)} | {auroc(ood, ranks):.2f} | {np.median(ranks):.2f} |")
        print(lines[-1], flush=True)
    lines += ["", "| crop, top-1 | Barcelona | tecom |", "|---|---|---|"]
    for name, spoil in SPOILT.items():
        shares = []
        for source in ("barcelona", "tecom"):
            of = [(s, t) for s, t, o in zip(cells, truth, sources, strict=True) if o == source]
            named = classified(model, [spoil(read_rgb(s.path)) for s, _ in of])[0].argmax(1)
            shares.append(float(np.mean(named == [t for _, t in of])))
        lines.append(f"| {name} | {shares[0]:.2f} | {shares[1]:.2f} |")
        print(lines[-1], flush=True)
    if options.docs is not None:
        write_section(options.docs, "shipped", "\n".join(lines))


if __name__ == "__main__":
    main()
