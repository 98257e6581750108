"""Evaluate any registered classifier on labelled cells: one dictionary, one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.base import Classifier
from classifiers.calibration import patch_of
from classifiers.metrics import auroc, summary
from classifiers.sources import Sample, read_samples, split_by_group
from classifiers.taxonomy import CELL_TYPES, is_a, roll_up
from pipeline.errors import BadInput
from storage.fingerprint import fingerprint, sha256_of
from storage.images import read_rgb
from storage.whole_files import write_json, write_png


def evaluate_classifier(
    classifier: Classifier,
    data: Path | Sequence[Sample],
    out_dir: Path | None = None,
    *,
    pixel_size_um: float | None = None,
    known_classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Top-1, macro-F1, precision and recall with intervals, one-vs-rest AUC and ECE, per source and in all.

    Truth finer than the classifier's classes is rolled up to them; truth that is a parent of some of them
    (a neutrophil, where band and segmented are told apart) cannot be judged and is counted in `n_coarser`;
    labels that it cannot name at all count as out-of-distribution and give `ood_auroc`.  `known_classes` are
    those that cells taught it (its card's; None: all that it has): of the others it can name none, either.
    With `out_dir`, `metrics.json` and `confusion.png` are written there.  Raises BadInput where the data
    cannot be read or holds nothing to measure.
    """
    samples = read_samples(data) if isinstance(data, Path) else list(data)
    names = tuple(classifier.classes)
    known_names = names if known_classes is None else tuple(known_classes)
    truth, probabilities, ood, sources = [], [], [], []
    n_coarser = 0
    for sample in samples:
        label = expected_class(sample.label, known_names)
        if label is None and any(is_a(name, sample.label) for name in known_names):
            n_coarser += 1
            continue
        patch = patch_of(sample, read_rgb(sample.path))
        found = classifier.classify(patch[None], pixel_size_um)
        truth.append(-1 if label is None else names.index(label))
        probabilities.append(found.probabilities[0])
        ood.append(float(found.ood[0]))
        sources.append(sample.source)
    if not truth:
        raise BadInput("no sample is left that the classifier could be measured on; read other data.")
    t, p, o, s = np.array(truth), np.array(probabilities), np.array(ood), np.array(sources)
    known = t >= 0
    result: dict[str, Any] = {
        "classifier": classifier.name,
        "n_samples": len(samples),
        "n_not_a_class": int((~known).sum()),
        "n_coarser": n_coarser,
        "all": summary(t[known], p[known], names) if known.any() else None,
        "by_source": {
            source: summary(t[known & (s == source)], p[known & (s == source)], names)
            for source in sorted(set(s[known]))
        },
        "ood_auroc": auroc(o[known], o[~known]) if known.any() and (~known).any() else None,
    }
    if out_dir is not None:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_json(out_dir / "metrics.json", result)
        if result["all"] is not None:
            draw_confusion(np.array(result["all"]["confusion"]), names, out_dir / "confusion.png")
    return result


def expected_class(label: str, known_classes: Sequence[str]) -> str | None:
    """The class that a classifier is to give a cell of a label: the label's own, or the nearest above it.

    None where there is none: of a class that it was not taught, of a label coarser than its classes, and of
    one that is no class of cells.
    """
    if label not in CELL_TYPES:
        return label if label in known_classes else None
    found = next(iter(roll_up({label: 1.0}, known_classes)))
    return found if found in known_classes else None


def held_out_samples(name: str, samples: Sequence[Sample]) -> list[Sample]:
    """Of the data that a package was trained on, the part that its card says was held out.

    Raises BadInput where the card names no split, or that of other cells.
    """
    from classifiers.sources import with_copies_together
    from storage.packages import find_package

    package = find_package(name)
    training = {} if package is None else package.card.training
    seed, share, mark = (training.get(k) for k in ("seed", "holdout", "held_out_mark"))
    if seed is None or share is None or mark is None:
        raise BadInput(f"{name}: its card names no seed, share and mark of a split; leave out --held-out.")
    samples = with_copies_together(samples)
    held = [samples[i] for i in split_by_group(samples, float(share), int(seed))[1]]
    if held_out_mark(held) != mark:
        raise BadInput(
            f"{name}: it was trained on other cells, or some were added, changed or are missing since, so "
            "what it never saw is not known; name the data of its training and its reader, or leave out "
            "--held-out."
        )
    return held


def held_out_mark(held: Sequence[Sample]) -> str:
    """sha256 (hex) of held-out cells: their files, labels and places, wherever the files lie."""
    files = {path: sha256_of(path) for path in {s.path for s in held}}
    return fingerprint(sorted(repr((files[s.path], s.label, s.x, s.y, s.side)) for s in held))


def draw_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A confusion matrix (K, K) as a picture: rows truth, columns prediction, shade the share of the row."""
    from PIL import Image, ImageDraw, ImageFont

    cell, left, top = 46, 170, 170
    k = len(names)
    image = Image.new("RGB", (left + k * cell + 12, top + k * cell + 12), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    for i in range(k):
        y = top + i * cell
        draw.text((left - 8, y + cell / 2), names[i].replace("_", " "), fill="black", anchor="rm", font=font)
        label = Image.new("L", (top - 10, 18), 0)
        ImageDraw.Draw(label).text((0, 9), names[i].replace("_", " "), fill=255, anchor="lm", font=font)
        image.paste("black", (left + i * cell + 14, 2), label.rotate(90, expand=True))
        for j in range(k):
            x = left + j * cell
            v = float(share[i, j])
            draw.rectangle(
                (x, y, x + cell - 2, y + cell - 2), fill=tuple(round(255 - v * d) for d in (215, 150, 70))
            )
            colour = "white" if v > 0.6 else "black"
            draw.text(
                (x + cell / 2, y + cell / 2), str(int(matrix[i, j])), fill=colour, anchor="mm", font=font
            )
    write_png(path, np.asarray(image))
