"""How good a stainer is, on pairs of DIC and real stain: image errors, confidence, spoilt inputs, use.

Figures carry 95 % intervals from a bootstrap over source images, for the cells of one image are no
independent draws.  On computed DIC they are figures on computed DIC, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.data import PIXEL_SIZE_UM
from stainers.downstream import names, outlines
from stainers.feature_metrics import (
    MIN_FOR_FRECHET_OF_PART,
    Distance,
    Encoder,
    feature_metrics,
    imagenet_weights,
)
from stainers.field import PATCH_LIMIT_PX, stain_image
from stainers.image_errors import image_errors
from stainers.intervals import interval, without_interval
from stainers.pair_sources import Pair, find_pairs
from stainers.reliability import auroc, correlations, reliability_bins
from stainers.spoiling import SPOILS
from storage.whole_files import write_json, write_png

Array = np.ndarray[Any, Any]
# raw, in one light, without lamp and stain strength, and that as a share of the structure there is
CORRELATED = ("rmse", "rmse_balanced", "rmse_matched", "structure_error")


@dataclass(frozen=True)
class Measured:
    """What was measured on each pair: `images` (H, W, 3) uint8, `confidence` (N,), columns of `errors` (N,);
    `doubt` (H, W) of the first pairs alone, for the picture."""

    images: tuple[Array, ...]
    doubt: tuple[Array, ...]
    confidence: Array
    errors: dict[str, Array]


def measure(
    stainer: Any,
    pairs: Sequence[Pair],
    inputs: Sequence[Array],
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Stain `inputs` (H, W, 1), one a pair, and compare with the pairs' real stains; fields in tiles."""
    images, doubt, confidence, rows = [], [], np.empty(len(pairs)), []
    for i, (pair, given) in enumerate(zip(pairs, inputs, strict=True)):
        image, confidence[i], _, map_ = stain_image(stainer, given, pair.target)
        images.append(image)
        if i < PICTURED:
            doubt.append(map_)
        rows.append(image_errors(image, pair.stained))
        if progress is not None:
            progress(i + 1, len(pairs))
    errors = {k: np.asarray([row[k] for row in rows]) for k in rows[0]}
    return Measured(tuple(images), tuple(doubt), confidence, errors)


PICTURED, PICTURE_PX = 12, 256  # pairs in the picture of an evaluation, and the size of each


def evaluate_pairs(
    stainer: Any,
    pairs: Sequence[Pair],
    *,
    measured_on: str = "computed DIC",
    classify: Callable[[Array], Sequence[str]] | None = None,
    named_by: str = "a classifier",
    classify_virtual: Callable[[Array], Sequence[str]] | None = None,
    segment: Callable[[Array, float], Array] | None = None,
    encoder: Callable[[], Encoder] | None = None,
    weights_dir: Path | None = None,
    spoilt_inputs: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    keep: Callable[[Measured, dict[str, Measured]], None] | None = None,
) -> dict[str, Any]:
    """Measure a stainer on pairs.

    `classify` takes (N, H, W, 3) uint8 to labels, `classify_virtual` does so as the classifier made for this
    stainer's pictures, `segment` takes them and a pixel size to labels of pixels,
    `encoder` makes the network of the feature distances where ImageNet's are not to be had; each adds its
    figures.  Returns image errors overall, per target and per class, raw and in one light; correlation of the
    confidence with the errors, per target, and with spoilt inputs among them; AUROC for each kind of spoilt
    input; reliability bins.  `keep` is handed what was measured on each pair, unspoilt and by kind of
    spoiling.
    """
    if not pairs:
        raise ValueError("no pairs to evaluate on")
    if weights_dir is not None:
        imagenet_weights(weights_dir)  # what it lacks is said before the pairs are stained
    clean = measure(stainer, pairs, [p.dic for p in pairs], progress)
    sources = [p.source for p in pairs]
    targets = np.asarray([p.target for p in pairs])
    real, dic = [p.stained for p in pairs], [p.dic for p in pairs]
    columns = dict(clean.errors)
    classes, labels_from = [p.label for p in pairs], "of the pairs"
    if classify is not None:
        truth = [str(classify(p[None])[0]) for p in real]
        columns |= names(classify, clean.images, truth, dic, classify_virtual)
        unnamed = sum(not c for c in classes)
        if unnamed:
            some = "" if unnamed == len(pairs) else f"of the pairs; {unnamed} of {len(pairs)} "
            labels_from = f"{some}named by {named_by}"
        classes = [c or t for c, t in zip(classes, truth, strict=True)]
    if segment is not None:
        columns |= outlines(segment, clean.images, real, dic)
    sizes = sorted({p.stained.shape[:2] for p in pairs})
    by_features = encoder is not None or weights_dir is not None
    distance: Distance | None = None
    networks: dict[str, Any] = {}
    if by_features and len(sizes) == 1:
        pairwise, distance, used = feature_metrics(
            clean.images, real, encoder=encoder, weights_dir=weights_dir
        )
        columns |= pairwise
        networks = {"networks": used}

    def summary(chosen: Array, least: int = MIN_FOR_FRECHET_OF_PART) -> dict[str, Any]:
        n, groups = int(chosen.sum()), [s for s, c in zip(sources, chosen, strict=True) if c]
        figures: dict[str, Any] = {k: interval(v[chosen], groups) for k, v in columns.items()}
        return {"n": n, **figures} | (distance(chosen) if distance is not None and n >= least else {})

    labels = np.asarray(classes)
    report: dict[str, Any] = {
        "measured_on": measured_on,
        "all": summary(np.ones(len(pairs), bool), 0) | networks,
        "per_target": {t: summary(targets == t) for t in sorted(set(targets))},
        "per_class": {c: summary(labels == c) for c in sorted(set(labels) - {""})},
        **({"labels": labels_from} if any(classes) else {}),
        "confidence_error_correlation": {
            error: {
                "all": correlations(clean.confidence, clean.errors[error], sources, seed=seed),
                **{
                    t: correlations(
                        clean.confidence[targets == t],
                        clean.errors[error][targets == t],
                        [s for s, x in zip(sources, targets, strict=True) if x == t],
                        seed=seed,
                    )
                    for t in sorted(set(targets))
                },
            }
            for error in CORRELATED
        },
        "reliability": reliability_bins(clean.confidence, clean.errors),
    }
    of_parts = {f"{k} {n}": row for k in ("target", "class") for n, row in report[f"per_{k}"].items()}
    lacking = without_interval({"all": report["all"], **of_parts})
    few = [name for name, row in of_parts.items() if row["n"] < MIN_FOR_FRECHET_OF_PART]
    if distance is not None and few:
        lacking.append(f"Fréchet distances of {', '.join(few)}: fewer than {MIN_FOR_FRECHET_OF_PART} pairs")
    if by_features and len(sizes) > 1:
        lacking.insert(
            0,
            f"features: the pairs are of {len(sizes)} sizes, from {sizes[0][1]} x {sizes[0][0]} to "
            f"{sizes[-1][1]} x {sizes[-1][0]} px, and need one",
        )
    if lacking:
        report["not_measured"] = "; ".join(lacking)
    threshold = getattr(stainer, "min_confidence", None)
    if threshold is not None:
        report["share_below_threshold"] = float(np.mean(clean.confidence < threshold))
    spoilt: dict[str, Measured] = {}
    if spoilt_inputs:
        rng = np.random.default_rng(seed)
        for name, spoil in SPOILS.items():
            spoilt[name] = measure(stainer, pairs, [spoil(p, rng) for p in pairs])
        report["spoilt_auroc"] = {k: auroc(-clean.confidence, -m.confidence) for k, m in spoilt.items()}
        together = [clean, *spoilt.values()]
        for error in CORRELATED:
            report["confidence_error_correlation"][error]["with_spoilt_inputs"] = correlations(
                np.concatenate([m.confidence for m in together]),
                np.concatenate([m.errors[error] for m in together]),
                sources * len(together),
                seed=seed,
            )
    if keep is not None:
        keep(clean, spoilt)
    return report


def evaluate_stainer(
    stainer: Any,
    data: Path,
    out_dir: Path,
    *,
    target: str | None = None,
    limit: int = 60,
    seed: int = 0,
    classifier: Any = None,
    virtual_classifier: Any = None,
    segmenter: Any = None,
    named_by: str | None = None,
    modalities: Sequence[str] | None = None,
    weights_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate on the pairs that `data` holds (`stainers.pair_sources.find_pairs`), at most `limit` a target.

    A transfer between stains is measured without pairs where `data` has a labels.csv
    (`stainers.label_evaluation`).  `modalities` are those that the stainer reads, by its card; None: not
    known.  `named_by` is what the classifier is called in the result.  Raises BadInput where the stainer
    cannot read what `data` would give it.
    Writes metrics.json, pictures.png (DIC, stained, real, uncertainty of twelve cells) and reliability.png
    into `out_dir`; returns what metrics.json holds.
    """
    from stainers.reliability import draw_reliability

    if modalities is None:
        modalities = ("dic",) if getattr(stainer, "uses_shear", False) else ("dic", "brightfield")
    labelled = (data / "labels.csv").is_file()
    if not labelled and "dic" not in modalities:
        raise BadInput(
            f"{data}: pairs of DIC and stain are for a stainer of DIC, and '{stainer.name}' reads "
            f"{' and '.join(modalities)}; give it labelled cells of its source stain (a folder with "
            "labels.csv), or name another stainer."
        )
    if labelled and "brightfield" in modalities:
        from stainers.label_evaluation import evaluate_transfer

        if classifier is None:
            raise BadInput(f"{data}: labelled cells are judged by a classifier; name one.")
        judge = class_namer(classifier, None)
        out_dir.mkdir(parents=True, exist_ok=True)
        return evaluate_transfer(
            stainer, data, out_dir, classify=judge, target=target, limit=limit, seed=seed
        )
    found = find_pairs(data, stainer.targets, target=target, limit=limit, seed=seed)
    pairs = found.pairs
    fields = sum(max(p.dic.shape) > PATCH_LIMIT_PX for p in pairs)
    if fields:  # the judges look at one cell
        classifier = virtual_classifier = segmenter = None
    kept: list[tuple[Measured, dict[str, Measured]]] = []
    report = evaluate_pairs(
        stainer,
        pairs,
        measured_on=found.measured_on,
        classify=None if classifier is None else class_namer(classifier),
        named_by=named_by or str(getattr(classifier, "name", "")),
        classify_virtual=None if virtual_classifier is None else class_namer(virtual_classifier),
        segment=None if segmenter is None else segmenter.segment,
        encoder=None if classifier is None else lambda: Encoder(classifier, PIXEL_SIZE_UM),
        weights_dir=weights_dir,
        seed=seed,
        progress=progress,
        keep=lambda clean, spoilt: kept.append((clean, spoilt)),
    )
    report["target_from"] = found.target_from
    report["judges"] = {
        k: m.name
        for k, m in (
            ("classifier", classifier),
            ("virtual_classifier", virtual_classifier),
            ("segmenter", segmenter),
        )
        if m is not None
    }
    if fields:
        judged = "classes, outlines and features" if weights_dir is None else "classes and outlines"
        reasons = [f"{judged}: {fields} images are larger than a cell's patch"]
        report["not_measured"] = "; ".join(reasons + [report[k] for k in ("not_measured",) if k in report])
    clean, spoilt = kept[0]
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / "metrics.json", report)
    draw_pictures(out_dir / "pictures.png", pairs, clean)
    draw_reliability(
        out_dir / "reliability.png",
        clean.confidence,
        clean.errors,
        {k: (m.confidence, m.errors) for k, m in spoilt.items()},
        threshold=getattr(stainer, "min_confidence", None),
        title=f"{stainer.name} on {found.measured_on}, n = {len(pairs)}",
    )
    return report


def class_namer(
    classifier: Any, pixel_size_um: float | None = PIXEL_SIZE_UM
) -> Callable[[Array], Sequence[str]]:
    """(N, H, W, 3) uint8 -> the most probable class of each; without a pixel size it infers one."""

    def name(patches: Array) -> list[str]:
        found = classifier.classify(patches, pixel_size_um).probabilities
        return [str(classifier.classes[int(k)]) for k in found.argmax(axis=1)]

    return name


def draw_pictures(path: Path, pairs: Sequence[Pair], measured: Measured) -> None:
    """DIC, stained, real and uncertainty of the first pairs, a row each, at most 256 px wide a picture."""
    from PIL import Image

    rows = []
    for pair, image, doubt in zip(pairs, measured.images, measured.doubt, strict=False):
        shade = np.clip(doubt * 4 * 255, 0, 255).astype(np.uint8)
        shown = (np.repeat(pair.dic, 3, 2), image, pair.stained, np.repeat(shade[..., None], 3, 2))
        row = []
        for picture in shown:
            tile = Image.new("RGB", (PICTURE_PX, PICTURE_PX), "white")
            small = Image.fromarray(np.ascontiguousarray(picture))
            small.thumbnail((PICTURE_PX, PICTURE_PX))
            tile.paste(small)
            row.append(np.asarray(tile))
        rows.append(np.hstack(row))
    write_png(path, np.vstack(rows))
