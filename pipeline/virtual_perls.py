"""Ring sideroblasts from virtual Perls: what the image supports, and what it does not.

A generator can draw iron where there is none; the reader then counts what the generator made up.  Two
things stand against it.  The model's card states what it gained, on unseen cases of known truth, over always
answering the mean: where it gained nothing, no figure of it is supported.  And in each case the positives are
held against those that the model draws on cells without any: where they are no more, the figure is not
supported by the image.  A figure that is supported is corrected for the chain's two errors, and its interval
holds their doubt (`pipeline.reader_error`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import BadModelPackage
from pipeline.reader_error import ReaderErrors, corrected_estimate, corrected_interval
from pipeline.result_counts import Sideroblasts, VirtualSupport
from pipeline.settings import CountingSettings
from pipeline.staining import min_stain_confidence
from pipeline.statistics import clopper_pearson, spans

if TYPE_CHECKING:
    from classifiers.base import Classifier
    from classifiers.sideroblasts import SideroblastReader
    from stainers.base import Stainer
    from storage.packages import ModelCard

METRIC = "virtual_perls"  # the card's metric that holds the evidence
ERYTHROBLASTS = ("erythroblast", "proerythroblast")


@dataclass(frozen=True)
class Evidence:
    """What a card states of a stainer of virtual Perls, all measured on cases that it was not trained on.

    errors: what stainer and reader together made of cells of known type; rmse_pct, rmse_of_mean_pct: root
    mean squared error of RS % over the cases, of the chain and of always answering their mean; gain_pct,
    gain_low_pct: the difference and its lower 95 % limit; measured_on: in words, phantoms named as such.
    """

    errors: ReaderErrors
    rmse_pct: float
    rmse_of_mean_pct: float
    gain_pct: float
    gain_low_pct: float
    n_cases: int
    measured_on: str

    @property
    def beats_the_mean(self) -> bool:
        """Whether the chain is better than no image at all beyond the chance of the measured cases."""
        return self.gain_low_pct > 0

    @classmethod
    def from_card(cls, card: ModelCard) -> Evidence | None:
        """The evidence of a card, None where it states none; raises BadModelPackage where it is damaged."""
        found = card.metrics.get(METRIC)
        if found is None:
            return None
        try:
            gain = found["gain_over_mean_pct"]
            return cls(
                ReaderErrors(**found["errors"]),
                float(found["rmse_pct"]),
                float(found["rmse_of_mean_pct"]),
                float(gain["value"]),
                float(gain["low"]),
                int(found["n_cases"]),
                str(found["measured_on"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadModelPackage(
                f"card of '{card.name}': metrics.{METRIC} is damaged ({error}); measure the model again."
            ) from error


def false_positive_bounds(errors: ReaderErrors, level: float = 0.95) -> tuple[float, float]:
    """Interval of the share of cells without a ring that the chain reads as rings.

    Cases differ more than chance: the counts are divided by the measured overdispersion.
    """
    d = max(1.0, errors.overdispersion)
    n = errors.other_read + errors.other_wrong
    return clopper_pearson(errors.other_wrong / d, n / d, level)


def judge(positive: int, assessed: int, evidence: Evidence | None, level: float = 0.95) -> VirtualSupport:
    """Whether `positive` of `assessed` virtually stained erythroblasts say anything of the case.

    Supported where the model beats the mean on its card and the lower limit of the case's share of
    positives, widened by how much cases differ, exceeds the upper limit of the model's false-positive share.
    """
    if evidence is None:
        why = "the model's card states no measurement against the truth"
        return VirtualSupport(supported=False, why=why, positive=positive, assessed=assessed)
    errors = evidence.errors
    d = max(1.0, errors.overdispersion)
    low, high = clopper_pearson(positive / d, assessed / d, level)
    _, chance = false_positive_bounds(errors, level)
    gained = (
        f"{evidence.rmse_pct:.1f} points RMSE against {evidence.rmse_of_mean_pct:.1f} of always answering "
        f"the mean, on {evidence.n_cases} {evidence.measured_on}"
    )
    if not evidence.beats_the_mean:
        why = f"the model is no better than answering without the image ({gained})"
    elif assessed == 0:
        why = "no erythroblast could be assessed"
    elif low <= chance:
        why = (
            f"{positive} of {assessed} cells were drawn with a ring, {100 * low:.1f}-{100 * high:.1f} %, and "
            f"the model draws rings on up to {100 * chance:.1f} % of cells that have none"
        )
    else:
        why = (
            f"at least {100 * low:.1f} % of cells were drawn with a ring, more than the {100 * chance:.1f} % "
            f"at most that the model makes up; its gain: {gained}"
        )
    return VirtualSupport(
        supported=evidence.beats_the_mean and assessed > 0 and low > chance,
        why=why,
        positive=positive,
        assessed=assessed,
        positive_low_pct=round(100 * low, 2),
        made_up_high_pct=round(100 * chance, 2),
        rmse_pct=evidence.rmse_pct,
        rmse_of_mean_pct=evidence.rmse_of_mean_pct,
        measured_on=evidence.measured_on,
    )


def with_support(
    counted: Sideroblasts | None, evidence: Evidence | None, settings: CountingSettings
) -> Sideroblasts | None:
    """The count with what the image supports; a count of a real stain is handed back as it is.

    Without support there is no percentage, the interval is everything from 0 to 100, and no decision limit
    is judged; the counts by type stay, as what the generator drew.
    """
    if counted is None or counted.evidence != "virtual_perls":
        return counted
    support = judge(counted.type3, counted.n_erythroblasts, evidence, settings.level)
    if not support.supported or evidence is None:
        return counted.model_copy(
            update={"support": support, "rs_pct": None, "ci_low": 0.0, "ci_high": 100.0, "standings": ()}
        )
    share = corrected_estimate(counted.type3, counted.n_erythroblasts, evidence.errors)
    low, high = corrected_interval(counted.type3, counted.n_erythroblasts, evidence.errors, settings.level)
    standings = tuple(
        s.model_copy(
            update={
                "standing": "spans"
                if spans(low, high, s.limit / 100)
                else ("below" if high < s.limit / 100 else "at_or_over"),
                # More virtual cells do not settle what is the generator's own doubt.
                "more_cells": None if spans(low, high, s.limit / 100) else 0,
            }
        )
        for s in counted.standings
    )
    return counted.model_copy(
        update={
            "support": support,
            "rs_pct": None if share is None else round(100 * share, 2),
            "ci_low": round(100 * low, 2),
            "ci_high": round(100 * high, 2),
            "standings": standings,
        }
    )


# Choosing, staining and reading


def is_erythroblast(label: str) -> bool:
    from classifiers.taxonomy import is_a

    return any(is_a(label, name) for name in ERYTHROBLASTS)


def erythroblasts_of(patches: np.ndarray, pixel_size_um: float, classifier: Classifier) -> np.ndarray:
    """Whether each MGG patch (N, H, W, 3) uint8 shows an erythroblast, more likely than not: (N,) bool."""
    mine = [i for i, name in enumerate(classifier.classes) if is_erythroblast(name)]
    if not mine:
        raise BadModelPackage(
            f"classifier '{classifier.name}' has no class of erythroblasts; it cannot choose them."
        )
    if len(patches) == 0:
        return np.zeros(0, bool)
    found = classifier.classify(patches, pixel_size_um).probabilities
    return np.asarray(found[:, mine].sum(1) > 0.5)


@dataclass(frozen=True)
class VirtualReadings:
    """Readings of N virtually stained erythroblasts.

    images (N, S, S, 3) uint8 at `pixel_size_um`; types: "0" to "3" or "indeterminate"; reasons; confidence
    (N,) of the stainer.  A cell that the stainer is not sure enough of is indeterminate.
    """

    images: np.ndarray
    pixel_size_um: float
    types: tuple[str, ...]
    reasons: tuple[str, ...]
    confidence: np.ndarray


def middle_view(patches: np.ndarray, pixel_size_um: float, size_px: int, target_um: float) -> np.ndarray:
    """The middle of patches (N, H, W, 3) uint8 as the stainer was trained: (N, size, size, 3) at target_um.

    What lies beyond a patch's edge is its mirror image.
    """
    import cv2

    scale = pixel_size_um / target_um
    wanted = round(size_px / scale)
    out = np.empty((len(patches), size_px, size_px, 3), np.uint8)
    for i, patch in enumerate(patches):
        height, width = patch.shape[:2]
        pad_y, pad_x = max(0, wanted - height), max(0, wanted - width)
        if pad_y or pad_x:
            patch = cv2.copyMakeBorder(
                patch, pad_y // 2, pad_y - pad_y // 2, pad_x // 2, pad_x - pad_x // 2, cv2.BORDER_REFLECT_101
            )
        y, x = (patch.shape[0] - wanted) // 2, (patch.shape[1] - wanted) // 2
        cut = patch[y : y + wanted, x : x + wanted]
        how = cv2.INTER_AREA if wanted > size_px else cv2.INTER_CUBIC
        out[i] = cut if wanted == size_px else cv2.resize(cut, (size_px, size_px), interpolation=how)
    return out


def read_virtual(
    patches: np.ndarray,
    pixel_size_um: float,
    stainer: Stainer,
    reader: SideroblastReader,
    *,
    model_px: int,
    model_um: float,
    min_confidence: float | None = None,
) -> VirtualReadings:
    """Stain MGG patches (N, H, W, 3) uint8 of erythroblasts virtually and read their iron.

    `model_px` and `model_um` are the view that the stainer was trained on (its card).  The result of a patch
    does not depend on the others.
    """
    if len(patches) == 0:
        none = np.zeros((0, model_px, model_px, 3), np.uint8)
        return VirtualReadings(none, model_um, (), (), np.zeros(0, np.float32))
    view = middle_view(patches, pixel_size_um, model_px, model_um)
    stained = stainer.stain(view)
    threshold = min_stain_confidence(stainer, min_confidence)
    readings = reader.read(stained.image, model_um)
    types: list[str] = [r.type for r in readings]
    reasons: list[str] = [r.reason for r in readings]
    for i, confidence in enumerate(stained.confidence):
        if confidence < threshold:
            types[i] = "indeterminate"
            reasons[i] = f"the virtual stain is not sure ({confidence:.2f}, {threshold:.2f} is asked for)"
    return VirtualReadings(stained.image, model_um, tuple(types), tuple(reasons), stained.confidence)
