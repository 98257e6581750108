"""How good a stainer is, on pairs of DIC and real stain: image errors, confidence, spoilt inputs.

Figures carry 95 % intervals from a bootstrap over source images, for the cells of one image are no
independent draws.  On computed DIC they are figures on computed DIC, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stainers.confidence import auroc
from stainers.data import PIXEL_SIZE_UM, Smear, leukocyte_windows
from stainers.losses import ssim

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pair:
    """A DIC patch (H, W, 1) uint8 and the real stain of the same cell (H, W, 3) uint8."""

    dic: Array
    stained: Array
    target: str
    source: str  # image it was cut from: the unit of the bootstrap
    label: str = ""  # class of the cell where one is known
    shear_angle_deg: float | None = None


def computed_pairs(
    smears: Sequence[Smear], *, size_px: int = 256, seed: int = 0, limit: int = 0
) -> list[Pair]:
    """Leukocyte-centred pairs with DIC computed by random optics; at most `limit` a domain (0: all)."""
    from phantoms.optics import compute_dic, random_optics

    rng = np.random.default_rng([seed, 4242])
    windows = leukocyte_windows(smears, size_px)
    chosen: list[Pair] = []
    taken: dict[str, int] = {}
    for i in rng.permutation(len(windows)):
        smear, stained = windows[i]
        if limit and taken.get(smear.domain, 0) >= limit:
            continue
        taken[smear.domain] = taken.get(smear.domain, 0) + 1
        optics = random_optics(rng)
        dic = compute_dic(
            stained,
            PIXEL_SIZE_UM,
            optics,
            rng,
            background_rgb=smear.background_rgb,
            red_cell_density=smear.red_cell_density,
        )
        chosen.append(Pair(dic[..., None], stained, smear.domain, smear.file, "", optics.shear_angle_deg))
    return chosen


def image_errors(stained: Array, real: Array) -> dict[str, float]:
    """MSE, RMSE and SSIM (mean over the three channels) of (H, W, 3) uint8 images, taken to [0, 1]."""
    a, b = (
        torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].float() / 255
        for x in (stained, real)
    )
    mse = float(((a - b) ** 2).mean())
    return {"mse": mse, "rmse": mse**0.5, "ssim": float(ssim(a, b))}


def interval(
    values: Array, groups: Sequence[str], draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and 95 % percentile bootstrap over groups."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    pick = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    means = sums[pick].sum(axis=1) / counts[pick].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def black_square(dic: Array, rng: np.random.Generator, side: int = 50) -> Array:
    """A square of 50 x 50 px blacked out (thesis, section 7.3); it lies where the cell is."""
    spoilt = dic.copy()
    height, width = spoilt.shape[:2]
    low, high = 0.2, 0.8
    y = int(rng.uniform(low * height, max(high * height - side, low * height + 1)))
    x = int(rng.uniform(low * width, max(high * width - side, low * width + 1)))
    spoilt[y : y + side, x : x + side] = 0
    return spoilt


def defocus(dic: Array, rng: np.random.Generator, low: float = 5.0, high: float = 10.0) -> Array:
    """Gaussian blur of 0.5 to 1 µm: no nucleus can be told from its cytoplasm any more."""
    import cv2

    return cv2.GaussianBlur(dic[..., 0], (0, 0), float(rng.uniform(low, high)))[..., None]


def wrong_modality(pair: Pair) -> Array:
    """The brightfield image itself, grey, as if it were DIC."""
    return np.round(pair.stained.astype(np.float32).mean(axis=-1)).astype(np.uint8)[..., None]


SPOILS: dict[str, Callable[[Pair, np.random.Generator], Array]] = {
    "black_square_50px": lambda pair, rng: black_square(pair.dic, rng),
    "defocus": lambda pair, rng: defocus(pair.dic, rng),
    "wrong_modality": lambda pair, rng: wrong_modality(pair),
}


def evaluate_pairs(
    stainer: Any,
    pairs: Sequence[Pair],
    *,
    computed_dic: bool = True,
    classify: Callable[[Array], Sequence[str]] | None = None,
    spoilt_inputs: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a stainer on pairs; `classify` takes (N, H, W, 3) uint8 to labels for the agreement.

    Returns MSE, RMSE and SSIM overall, per target and per class, the correlation of the confidence with
    the true error, AUROC of the confidence for spoilt inputs, and the agreement of the classifier.
    """
    if not pairs:
        raise ValueError("no pairs to evaluate on")
    rows: list[dict[str, float]] = []
    confidence, agree = np.empty(len(pairs)), []
    for i, pair in enumerate(pairs):
        result = stainer.stain(pair.dic[None], pair.target)
        rows.append(image_errors(result.image[0], pair.stained))
        confidence[i] = result.confidence[0]
        if classify is not None:
            agree.append(classify(result.image)[0] == classify(pair.stained[None])[0])
        if progress is not None:
            progress(i + 1, len(pairs))
    table = {k: np.asarray([row[k] for row in rows]) for k in rows[0]}
    sources = [p.source for p in pairs]

    def summary(chosen: Array) -> dict[str, Any]:
        groups = [s for s, c in zip(sources, chosen, strict=True) if c]
        return {"n": int(chosen.sum()), **{k: interval(v[chosen], groups) for k, v in table.items()}}

    report: dict[str, Any] = {
        "measured_on": "computed DIC" if computed_dic else "real pairs",
        "all": summary(np.ones(len(pairs), bool)),
        "per_target": {
            t: summary(np.asarray([p.target == t for p in pairs])) for t in {p.target for p in pairs}
        },
        "per_class": {
            c: summary(np.asarray([p.label == c for p in pairs]))
            for c in sorted({p.label for p in pairs} - {""})
        },
        "confidence_error_correlation": _correlations(confidence, table["rmse"]),
    }
    if agree:
        report["classifier_agreement"] = interval(np.asarray(agree, float), sources)
    if spoilt_inputs:
        rng = np.random.default_rng(seed)
        report["spoilt_auroc"] = {}
        for name, spoil in SPOILS.items():
            worse = [stainer.stain(spoil(p, rng)[None], p.target).confidence[0] for p in pairs]
            report["spoilt_auroc"][name] = auroc(-confidence, -np.asarray(worse))
    return report


def _correlations(confidence: Array, error: Array) -> dict[str, float]:
    if len(confidence) < 3 or confidence.std() < 1e-9 or error.std() < 1e-9:
        return {"pearson": float("nan"), "spearman": float("nan")}
    ranks = [np.argsort(np.argsort(v)) for v in (confidence, error)]
    return {
        "pearson": float(np.corrcoef(confidence, error)[0, 1]),
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
    }


def evaluate_stainer(
    stainer: Any, data_dir: Path, out_dir: Path, *, limit: int = 60, seed: int = 0
) -> dict[str, Any]:
    """Evaluate on the test smears of `data_dir` with computed DIC, at most `limit` cells a domain.

    Writes metrics.json and pictures.png (DIC, stained, real, uncertainty of twelve cells) into `out_dir`;
    returns what metrics.json holds.
    """
    import json

    from PIL import Image

    from stainers.data import load_smears

    pairs = computed_pairs(
        [s for s in load_smears(data_dir) if s.split == "test" and s.domain in stainer.targets],
        seed=seed,
        limit=limit,
    )
    report = evaluate_pairs(stainer, pairs, seed=seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "metrics.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    rows = []
    for pair in pairs[:12]:
        result = stainer.stain(pair.dic[None], pair.target)
        doubt = np.clip(result.uncertainty[0] * 4 * 255, 0, 255).astype(np.uint8)
        rows.append(
            np.hstack(
                [np.repeat(pair.dic, 3, 2), result.image[0], pair.stained, np.repeat(doubt[..., None], 3, 2)]
            )
        )
    Image.fromarray(np.vstack(rows)).save(out_dir / "pictures.png")
    return report
