"""Evaluation of a stainer on a folder: its pairs or labelled cells, and the files that tell of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.data import PIXEL_SIZE_UM
from stainers.evaluation import Expects, Measured, class_namer, evaluate_pairs
from stainers.feature_metrics import Encoder
from stainers.field import PATCH_LIMIT_PX
from stainers.pair_sources import BY_CLASSIFIER, BY_DEFAULT, Pair, PairSet, find_pairs
from stainers.surest_target import MOST, confidence_by_target, spread
from storage.whole_files import write_json, write_png

PICTURE_PX = 256  # the size of a pair in the picture of an evaluation


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
    expects: Expects = str,
    virtual_expects: Expects = str,
    segmenter: Any = None,
    named_by: str | None = None,
    modalities: Sequence[str] | None = None,
    weights_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate on the pairs that `data` holds (`stainers.pair_sources.find_pairs`), at most `limit` a target.

    A transfer between stains is measured without pairs where `data` has a labels.csv
    (`stainers.label_evaluation`).  `modalities` are those that the stainer reads, by its card; None: not
    known.  `named_by` is what the classifier is called in the result; `expects` and `virtual_expects` say
    what the two classifiers can be asked (`evaluate_pairs`).  Raises BadInput where the stainer
    cannot read what `data` would give it.
    Writes metrics.json, pictures.png (DIC, stained, real, uncertainty of twelve cells) and reliability.png
    into `out_dir`; returns what metrics.json holds.
    """
    labelled = (data / "labels.csv").is_file()
    if modalities is None:
        modalities = ("dic",) if getattr(stainer, "uses_shear", False) else ("dic", "brightfield")
    if labelled and "brightfield" in modalities:
        return _transfer(stainer, data, out_dir, classifier, expects, target, limit, seed)
    if not labelled and "dic" not in modalities:
        raise BadInput(
            f"{data}: pairs of DIC and stain are for a stainer of DIC, and '{stainer.name}' reads "
            f"{' and '.join(modalities)}; give it labelled cells of its source stain (a folder with "
            "labels.csv), or name another stainer."
        )
    found = find_pairs(data, stainer.targets, target=target, limit=limit, seed=seed)
    fields = sum(max(p.dic.shape) > PATCH_LIMIT_PX for p in found.pairs)
    if fields:  # the judges look at one cell
        classifier = virtual_classifier = segmenter = None
    more = found
    # Few cells can miss their target.
    if virtual_classifier is not None and found.target_from == BY_DEFAULT and 0 < limit < MOST:
        more = find_pairs(data, stainer.targets, limit=MOST, seed=seed)
    found, sure = _find_target(stainer, found, more, virtual_classifier)
    kept: list[tuple[Measured, dict[str, Measured]]] = []
    report = evaluate_pairs(
        stainer,
        found.pairs,
        measured_on=found.measured_on,
        classify=None if classifier is None else class_namer(classifier),
        named_by=named_by or str(getattr(classifier, "name", "")),
        classify_virtual=None if virtual_classifier is None else class_namer(virtual_classifier),
        expects=expects,
        virtual_expects=virtual_expects,
        segment=None if segmenter is None else segmenter.segment,
        encoder=None if classifier is None else lambda: Encoder(classifier, PIXEL_SIZE_UM),
        weights_dir=weights_dir,
        seed=seed,
        progress=progress,
        keep=lambda clean, spoilt: kept.append((clean, spoilt)),
    )
    report["target_from"] = found.target_from
    if sure is not None:
        report["target_confidence"] = sure
    judges = {"classifier": classifier, "virtual_classifier": virtual_classifier, "segmenter": segmenter}
    report["judges"] = {k: m.name for k, m in judges.items() if m is not None}
    if fields:
        judged = "classes, outlines and features" if weights_dir is None else "classes and outlines"
        reasons = [f"{judged}: {fields} images are larger than a cell's patch"]
        report["not_measured"] = "; ".join(reasons + [report[k] for k in ("not_measured",) if k in report])
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / "metrics.json", report)
    _draw(out_dir, stainer, found, *kept[0])
    return report


def _find_target(
    stainer: Any, found: PairSet, more: PairSet, virtual_classifier: Any
) -> tuple[PairSet, dict[str, float] | None]:
    """Pairs whose stain nobody names, towards the target that a run would find; how sure that is of each.

    It is found on `more` pairs of the same data.
    """
    rows = spread(len(more.pairs))
    if found.target_from != BY_DEFAULT or len(stainer.targets) < 2 or virtual_classifier is None or not rows:
        return found, None
    if len({p.dic.shape for p in more.pairs}) > 1:  # patches of cells are of one size
        return found, None
    dic = np.stack([more.pairs[i].dic for i in rows])
    sure = confidence_by_target(stainer, virtual_classifier, dic, PIXEL_SIZE_UM)
    target = max(sure, key=lambda look: sure[look])
    pairs = tuple(replace(p, target=target) for p in found.pairs)
    return replace(found, pairs=pairs, target_from=BY_CLASSIFIER), sure


def _transfer(
    stainer: Any,
    data: Path,
    out_dir: Path,
    classifier: Any,
    expects: Expects,
    target: str | None,
    limit: int,
    seed: int,
) -> dict[str, Any]:
    """Measure a transfer between stains on labelled cells."""
    from stainers.label_evaluation import evaluate_transfer

    if classifier is None:
        raise BadInput(f"{data}: labelled cells are judged by a classifier; name one.")
    judge = class_namer(classifier, None)
    out_dir.mkdir(parents=True, exist_ok=True)
    how = {"expects": expects, "target": target, "limit": limit, "seed": seed}
    return evaluate_transfer(stainer, data, out_dir, classify=judge, **how)


def _draw(out_dir: Path, stainer: Any, found: PairSet, clean: Measured, spoilt: dict[str, Measured]) -> None:
    """pictures.png and reliability.png."""
    from stainers.reliability import draw_reliability

    draw_pictures(out_dir / "pictures.png", found.pairs, clean)
    draw_reliability(
        out_dir / "reliability.png",
        clean.confidence,
        clean.errors,
        {k: (m.confidence, m.errors) for k, m in spoilt.items()},
        threshold=getattr(stainer, "min_confidence", None),
        title=f"{stainer.name} on {found.measured_on}, n = {len(found.pairs)}",
    )


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
