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

from stainers.data import PIXEL_SIZE_UM
from stainers.downstream import names, outlines
from stainers.feature_metrics import (
    MIN_FOR_FRECHET_OF_PART,
    Distance,
    Encoder,
    feature_metrics,
    imagenet_weights,
)
from stainers.field import stain_image
from stainers.image_errors import image_errors
from stainers.intervals import interval, without_interval
from stainers.pair_sources import Pair
from stainers.reliability import auroc, correlations, reliability_bins
from stainers.spoiling import SPOILS

Array = np.ndarray[Any, Any]
# raw, in one light, without lamp and stain strength, and that as a share of the structure there is
CORRELATED = ("rmse", "rmse_balanced", "rmse_matched", "structure_error")
Namer = Callable[[Array], Sequence[str]]  # (N, H, W, 3) uint8 -> a class each
Expects = Callable[[str], str | None]  # the class that a judge is to give a label; None: it has none


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


PICTURED = 12  # pairs in the picture of an evaluation


def evaluate_pairs(
    stainer: Any,
    pairs: Sequence[Pair],
    *,
    measured_on: str = "computed DIC",
    classify: Namer | None = None,
    named_by: str = "a classifier",
    classify_virtual: Namer | None = None,
    expects: Expects = str,
    virtual_expects: Expects = str,
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
    stainer's pictures, `segment` takes them and a pixel size to labels of pixels; cells of which `expects`,
    or `virtual_expects`, knows no class are left out of that judge's agreement and counted in `n_not_judged`.
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
    columns = dict(clean.errors)
    classes, labels_from = [p.label for p in pairs], "of the pairs"
    not_judged: dict[str, int] = {}
    if classify is not None:
        truth = [str(classify(p.stained[None])[0]) for p in pairs]
        judged, judged_virtual = _judged(classes, truth, expects, virtual_expects)
        dic = [p.dic for p in pairs]
        asked = {"judged": judged, "judged_virtual": judged_virtual}
        columns |= names(classify, clean.images, truth, dic, classify_virtual, **asked)
        not_judged = {"classifier": int((~judged).sum())}
        if classify_virtual is not None:
            not_judged["virtual_classifier"] = int((~judged_virtual).sum())
        classes, labels_from = _labels(pairs, truth, named_by)
    if segment is not None:
        columns |= outlines(segment, clean.images, [p.stained for p in pairs], [p.dic for p in pairs])
    features = _Features({}, None, {}, None)
    if encoder is not None or weights_dir is not None:
        features = _by_features(clean, pairs, encoder, weights_dir)
        columns |= features.pairwise
    of_all, per_target, per_class = _summaries(columns, pairs, classes, features.distance)
    report: dict[str, Any] = {
        "measured_on": measured_on,
        "all": of_all | features.networks,
        "per_target": per_target,
        "per_class": per_class,
        **({"labels": labels_from} if any(classes) else {}),
        **({"n_not_judged": not_judged} if not_judged else {}),
        "confidence_error_correlation": {e: _correlations(clean, e, pairs, seed) for e in CORRELATED},
        "reliability": reliability_bins(clean.confidence, clean.errors),
    }
    lacking = _not_measured(report, features)
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
                [p.source for p in pairs] * len(together),
                seed=seed,
            )
    if keep is not None:
        keep(clean, spoilt)
    return report


def _labels(pairs: Sequence[Pair], truth: Sequence[str], named_by: str) -> tuple[list[str], str]:
    """The class of each pair, its own or what its real stain is named, and where the classes are from."""
    unnamed = sum(not p.label for p in pairs)
    labels_from = "of the pairs"
    if unnamed:
        some = "" if unnamed == len(pairs) else f"of the pairs; {unnamed} of {len(pairs)} "
        labels_from = f"{some}named by {named_by}"
    return [p.label or t for p, t in zip(pairs, truth, strict=True)], labels_from


@dataclass(frozen=True)
class _Features:
    """Feature distances: of each pair, the function of a chosen set, its networks; or why there are none."""

    pairwise: dict[str, Array]
    distance: Distance | None
    networks: dict[str, Any]
    why_not: str | None


def _by_features(
    clean: Measured,
    pairs: Sequence[Pair],
    encoder: Callable[[], Encoder] | None,
    weights_dir: Path | None,
) -> _Features:
    """Feature distances of the pairs, or why pairs of several sizes have none."""
    sizes = sorted({p.stained.shape[:2] for p in pairs})
    if len(sizes) > 1:
        why_not = (
            f"features: the pairs are of {len(sizes)} sizes, from {sizes[0][1]} x {sizes[0][0]} to "
            f"{sizes[-1][1]} x {sizes[-1][0]} px, and need one"
        )
        return _Features({}, None, {}, why_not)
    real = [p.stained for p in pairs]
    pairwise, distance, used = feature_metrics(clean.images, real, encoder=encoder, weights_dir=weights_dir)
    return _Features(pairwise, distance, {"networks": used}, None)


def _summaries(
    columns: dict[str, Array], pairs: Sequence[Pair], classes: Sequence[str], distance: Distance | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Every figure with its interval: over all pairs, per target and per class."""
    targets, labels = np.asarray([p.target for p in pairs]), np.asarray(classes)

    def summary(chosen: Array, least: int = MIN_FOR_FRECHET_OF_PART) -> dict[str, Any]:
        n, groups = int(chosen.sum()), [p.source for p, c in zip(pairs, chosen, strict=True) if c]
        figures: dict[str, Any] = {k: interval(v[chosen], groups) for k, v in columns.items()}
        return {"n": n, **figures} | (distance(chosen) if distance is not None and n >= least else {})

    return (
        summary(np.ones(len(pairs), bool), 0),
        {t: summary(targets == t) for t in sorted(set(targets))},
        {c: summary(labels == c) for c in sorted(set(labels) - {""})},
    )


def _not_measured(report: dict[str, Any], features: _Features) -> list[str]:
    """What a report lacks and why, a phrase each."""
    of_parts = {f"{k} {n}": row for k in ("target", "class") for n, row in report[f"per_{k}"].items()}
    lacking = [] if features.why_not is None else [features.why_not]
    lacking += without_interval({"all": report["all"], **of_parts})
    few = [name for name, row in of_parts.items() if row["n"] < MIN_FOR_FRECHET_OF_PART]
    if features.distance is not None and few:
        lacking.append(f"Fréchet distances of {', '.join(few)}: fewer than {MIN_FOR_FRECHET_OF_PART} pairs")
    return lacking


def _correlations(clean: Measured, error: str, pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    """Correlation of the confidence with an error, over all pairs and per target."""
    sources, targets = [p.source for p in pairs], np.asarray([p.target for p in pairs])
    errors = clean.errors[error]
    found = {"all": correlations(clean.confidence, errors, sources, seed=seed)}
    for target in sorted(set(targets)):
        mine = targets == target
        groups = [s for s, chosen in zip(sources, mine, strict=True) if chosen]
        found[target] = correlations(clean.confidence[mine], errors[mine], groups, seed=seed)
    return found


def _judged(
    stated: Sequence[str], truth: Sequence[str], expects: Expects, virtual_expects: Expects
) -> tuple[Array, Array]:
    """Whether (N,) each cell says something of the agreement of either classifier.

    What a classifier makes of a cell of a class that it was not taught is no fault of the stain.  The name
    of the real stain (`truth`) is one that its classifier has, and may be none that the other has.
    """
    by_real = [not label or expects(label) is not None for label in stated]
    by_virtual = [
        all(virtual_expects(label) is not None for label in (name, of_pair) if label)
        for name, of_pair in zip(truth, stated, strict=True)
    ]
    return np.asarray(by_real, bool), np.asarray(by_virtual, bool)


def class_namer(classifier: Any, pixel_size_um: float | None = PIXEL_SIZE_UM) -> Namer:
    """(N, H, W, 3) uint8 -> the most probable class of each; without a pixel size it infers one."""

    def name(patches: Array) -> list[str]:
        found = classifier.classify(patches, pixel_size_um).probabilities
        return [str(classifier.classes[int(k)]) for k in found.argmax(axis=1)]

    return name
