"""The physical scale of an image that does not state one, read from its cells.

A red cell on a dry smear is 7-8 µm across; a leukocyte's box is 1.9 times that.  The detector looks at
the image at several assumed scales; each look measures the cells that it finds and so proposes a scale.
The right one is where assumption and measurement agree and the scores are highest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.datasets import LEUKOCYTE, LEUKOCYTE_UM, RED_CELL, RED_CELL_UM, inner, sides_px
from pipeline.errors import BadInput
from storage.images import luminance, varies_in_colour

DEFAULT_DETECTORS = {"brightfield": "leukocyte-brightfield", "dic": "leukocyte-dic"}
HYPOTHESES_UM = tuple(float(v) for v in 0.036 * 1.65 ** np.arange(-1, 7))  # 0.022 ... 0.73 µm
CONSISTENT = 0.28  # standard deviation, in ln, of the error that a look at a wrong scale forgives
MIN_SCORE = 0.25
WINDOW_UM = 110.0  # side of the middle that is looked at: some hundred red cells
ENOUGH_RED_CELLS = 6  # to measure the scale without the leukocytes, whose sizes vary more
SURE_LN = (
    0.18  # to both sides of the stated scale: what red cells of any smear measure, and nothing to look into
)
DOUBT_LN = float(np.log(1.35))  # from which on a stated scale is called wrong
SURE_PX = 160  # in smaller windows a leukocyte in grey can pass for relief
FINE_PX = 16.0  # sigma; a sixteenth of a patch of 256 px
MAX_COARSE = 0.2  # of the variance, without the fine structure: DIC 0.05-0.17, of stain in grey 0.22-0.83
COARSE_DOUBT = 0.45  # above it what is taken for DIC can be stain: 0.5 and more of tinted smears
RELIEF = 0.35  # above over below the background
RELIEF_DOUBT = (0.2, 0.6)  # of 72 smears in grey the least certain is at 0.26, of the DIC of the cases at 1.8
CLIPPED = 3e-4  # share of the pixels at the end of the range
UNSURE = 0.25  # confidence below it: 0.24 of a page of text
LEUKOCYTE_WEIGHT = 2.0  # a leukocyte says less of the scale than a red cell, but is surer to be one


@dataclass(frozen=True)
class ScaleEstimate:
    """An inferred pixel size; `confidence` in [0, 1] is low where few cells agree; `how` says why."""

    pixel_size_um: float
    confidence: float
    n_red_cells: int
    how: str


@dataclass(frozen=True)
class _Look:
    assumed_um: float
    measured_um: float
    quality: float
    n_red: int
    n_white: int
    spread: float


def guess_modality(image: np.ndarray) -> str:
    """`brightfield` or `dic` from the pixels alone.

    Colour is stain, so brightfield.  A grey image is DIC where its grey levels lie on both sides of the
    background alike (relief: every edge has a bright and a dark flank), and brightfield where they
    only lie below it (absorption).
    """
    pixels = np.asarray(image)
    if varies_in_colour(pixels):
        return "brightfield"
    return "dic" if _above_to_below(pixels) > RELIEF else "brightfield"


def is_guess(image: np.ndarray) -> bool:
    """Whether the modality of an image can as well be the other than `guess_modality` says.

    So it is of a grey or one-coloured image whose levels lie about their background nearly as both do, or
    which has the levels of DIC and is as uneven as stain.
    """
    pixels = np.asarray(image)
    if varies_in_colour(pixels):
        return False
    ratio = _above_to_below(pixels)
    if RELIEF_DOUBT[0] < ratio < RELIEF_DOUBT[1]:
        return True
    return ratio > RELIEF and _coarse(pixels) > COARSE_DOUBT


def _above_to_below(pixels: np.ndarray) -> float:
    """How far the grey levels of an image reach above its background, over how far they reach below."""
    step = max(1, int(np.sqrt(pixels.shape[0] * pixels.shape[1] / 250_000)))
    thin = pixels[::step, ::step].astype(np.float32)
    if thin.ndim == 3 and thin.shape[2] >= 3:
        thin = thin[..., :3].mean(-1)
    elif thin.ndim == 3:
        thin = thin[..., 0]
    low, high = np.percentile(thin, [1, 99])
    level = thin.ravel()
    ends = level <= level.min(), level >= level.max()
    cut = min(e.mean() for e in ends) > CLIPPED and max(e.mean() for e in ends) < 0.5
    # Strong relief is cut off at both ends; so is an overexposed stain with a black bar, which is not flat.
    if cut and _coarse(pixels) < MAX_COARSE:
        level = level[~(ends[0] | ends[1])]
    counts, edges = np.histogram(level, 64)
    smooth = np.convolve(counts, np.ones(3) / 3, "same")
    mode = float(edges[int(smooth.argmax())] + edges[1] - edges[0])
    below, above = mode - float(low), float(high) - mode
    return above / below if below > 0 else float("inf") if above > 0 else 0.0


def is_surely_dic(image: np.ndarray) -> bool:
    """Whether an image is taken for DIC (`guess_modality`) and shows relief and nothing else.

    The bright and dark flanks of relief even each other out: without its fine structure DIC is flat, an
    image of stain is not.  Where one cell fills the image neither can be told, and it is not sure.
    """
    if min(image.shape[:2]) < SURE_PX or guess_modality(image) != "dic":
        return False
    return _coarse(np.asarray(image)) < MAX_COARSE


def _coarse(image: np.ndarray) -> float:
    """The share of an image's variance that is left without its fine structure."""
    import cv2

    grey = luminance(image).astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), min(min(grey.shape[:2]) / 16, FINE_PX))
    return float(smooth.var() / max(float(grey.var()), 1e-9))


def infer_pixel_size_um(
    image: np.ndarray, modality: str = "brightfield", detector: Any = None
) -> ScaleEstimate:
    """Pixel size in µm of an (H, W[, 3]) uint8 image.

    `detector` is anything with `look` (a yolo-onnx detector); by default the shipped one of the modality.
    Raises BadInput where no cell is found at any scale: give the pixel size then.
    """
    if detector is None:
        from detectors.painted import leukocyte_detector

        if modality not in DEFAULT_DETECTORS:
            raise BadInput(f"modality '{modality}' is not known; use brightfield or dic.")
        detector = leukocyte_detector(DEFAULT_DETECTORS[modality], painted=False)
    looks = [_look(detector, image, um) for um in HYPOTHESES_UM]
    best = max(looks, key=lambda r: r.quality)
    if best.quality <= 0:
        raise BadInput(
            "the image shows no red cells or leukocytes to infer its scale from; give --pixel-size in µm."
        )
    for _ in range(3):  # from the nearest assumption to the measurement itself
        if abs(np.log(best.measured_um / best.assumed_um)) < 0.03:
            break
        finer = _look(detector, image, float(np.clip(best.measured_um, 0.012, 1.5)))
        if finer.quality < 0.8 * best.quality:
            break
        best = finer
    n_cells = best.n_red + best.n_white
    certain = 1 - np.exp(-(best.n_red + 0.7 * best.n_white) / 4)
    agreement = np.exp(-0.5 * (np.log(best.measured_um / best.assumed_um) / CONSISTENT) ** 2)
    narrow = np.exp(-max(0.0, best.spread - 0.1) * 2)
    how = (
        f"{best.n_red} red cells of {RED_CELL_UM:g} µm"
        if best.n_red >= ENOUGH_RED_CELLS
        else f"leukocytes of {LEUKOCYTE_UM:g} µm ({best.n_white} seen), too few red cells ({best.n_red}): "
        "a rough guess"
    )
    confidence = float(
        np.clip(certain * agreement * narrow * (1 if best.n_red >= ENOUGH_RED_CELLS else 0.6), 0, 1)
    )
    return ScaleEstimate(float(best.measured_um), confidence if n_cells else 0.0, best.n_red, how)


def contradicted_scale(image: np.ndarray, stated_um: float, detector: Any) -> ScaleEstimate | None:
    """The scale that red cells of a stained (H, W, 3) uint8 image speak for, where it is not the stated one.

    None where they agree within 35 %, or where fewer than six are seen; `detector` has `look`.
    One look at the stated scale (30 ms, detection takes 55) settles it for most fields; only where that
    look does not see red cells of the right size are the other scales looked at, too.
    """
    stated = _look(detector, image, stated_um)
    if stated.n_red >= ENOUGH_RED_CELLS and abs(np.log(stated.measured_um / stated_um)) <= SURE_LN:
        return None
    try:
        found = infer_pixel_size_um(image, detector=detector)
    except BadInput:
        return None
    doubtful = abs(np.log(found.pixel_size_um / stated_um)) > DOUBT_LN
    return found if doubtful and found.n_red_cells >= ENOUGH_RED_CELLS else None


def _look(detector: Any, image: np.ndarray, assumed_um: float) -> _Look:
    """What the detector sees when the pixel size is assumed, and what its cells then measure."""
    height, width = image.shape[:2]
    side = max(64, int(WINDOW_UM / assumed_um))
    y0, x0 = max(0, (height - side) // 2), max(0, (width - side) // 2)
    part = image[y0 : y0 + side, x0 : x0 + side]
    found = detector.look(part, assumed_um)
    h, w = part.shape[:2]
    sizes, weights, numbers = [], [], {}
    total = 0.0
    for cls, truth_um, weight in ((RED_CELL, RED_CELL_UM, 1.0), (LEUKOCYTE, LEUKOCYTE_UM, LEUKOCYTE_WEIGHT)):
        boxes, scores = found.boxes[found.classes == cls], found.scores[found.classes == cls]
        keep = (scores > MIN_SCORE) & inner(boxes, w, h)
        numbers[cls] = int(keep.sum())
        um = truth_um / np.maximum(sides_px(boxes[keep]), 1e-6)
        agree = np.exp(-0.5 * (np.log(um / assumed_um) / CONSISTENT) ** 2)
        # Scores count by area, or a look at too fine a scale would win by many small false cells.
        area_um2 = (truth_um**2) * weight
        total += float(
            (scores[keep] ** 2 * agree).sum() * area_um2 * (um.mean() / assumed_um if len(um) else 1)
        )
        sizes.append(um)
        weights.append(scores[keep])
    um, weight = np.concatenate(sizes), np.concatenate(weights)
    if not len(um):
        return _Look(assumed_um, assumed_um, 0.0, 0, 0, 0.0)
    if numbers[RED_CELL] >= ENOUGH_RED_CELLS:
        um, weight = sizes[0], weights[0]
    measured = _weighted_median(um, weight)
    spread = float(np.median(np.abs(np.log(um / measured))))
    # The share of the area seen that is explained by cells of the right size.
    # One huge cell in a window taken for tiny explains all of it, so the number of witnesses counts too.
    witnesses = 1 - np.exp(-(numbers[RED_CELL] + 2 * numbers[LEUKOCYTE]) / 6)
    quality = total / (h * w * assumed_um**2) * float(witnesses)
    return _Look(assumed_um, measured, quality, numbers[RED_CELL], numbers[LEUKOCYTE], spread)


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    running = np.cumsum(weights[order])
    return float(values[order][int(np.searchsorted(running, running[-1] / 2))])
