"""Normalizers that are fitted and not trained: Macenko's and Reinhard's, and one by landmarks of the cell.

Own code rather than a library's: a field has to be measured as a whole and coloured in tiles, and the
libraries do both in one call.

Reinhard et al., IEEE CG&A 2001: mean and deviation of each channel of the decorrelated space l-alpha-beta
(their equations 4 to 9) are made those of the target.  Macenko et al., ISBI 2009: optical density is unmixed
into two stains, found as the extreme directions in the plane of the two strongest components, and put
together again with the target's stains, each scaled to its 99th percentile there.  Density is measured
against the image's own empty glass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import BadInput, BadModelPackage
from stainers.base import Stained
from stainers.cell_sets import Cells
from stainers.cell_structures import density, glass_of
from stainers.landmarks import SIZE as LANDMARKS
from stainers.landmarks import landmarks_apply, landmarks_measure, landmarks_prepare
from stainers.patch_stainer import Patch, checked_patches, target_index, to_uint8
from stainers.picture_stainer import rgb_uint8

Array = np.ndarray[Any, Any]

TO_LMS = np.asarray([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
TO_LAB = np.diag(1 / np.sqrt([3.0, 6.0, 2.0])) @ np.asarray([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
STAINED_DENSITY = 0.15  # below it a pixel is glass
FEWEST_STAINED = 50  # pixels from which two stains can be told apart
MIN_CONFIDENCE = 0.5


def _to_lab(rgb: Array) -> Array:
    """(n, 3) of 0-255 -> l-alpha-beta."""
    lms = np.log10(np.maximum((rgb + 1.0) / 256.0 @ TO_LMS.T, 1e-4))
    return np.asarray(lms @ TO_LAB.T)


def _from_lab(lab: Array) -> Array:
    """l-alpha-beta (..., 3) -> RGB in [0, 1] without a limit."""
    lms = 10.0 ** np.clip(lab @ np.linalg.inv(TO_LAB).T, -6, 1)
    return np.asarray((lms @ np.linalg.inv(TO_LMS).T * 256.0 - 1.0) / 255.0)


def reinhard_measure(rgb: Array) -> Array:
    """(6,): mean and deviation of l, alpha and beta of an image (H, W, 3) uint8."""
    lab = _to_lab(rgb.reshape(-1, 3).astype(np.float64))
    return np.concatenate([lab.mean(axis=0), np.maximum(lab.std(axis=0), 1e-3)])


def reinhard_apply(rgb: Array, source: Array, target: Array) -> Array:
    """(H, W, 3) uint8 -> colour (H, W, 3) in [0, 1] without a limit."""
    lab = _to_lab(rgb.reshape(-1, 3).astype(np.float64))
    out = (lab - source[:3]) * (target[3:] / source[3:]) + target[:3]
    return _from_lab(out).reshape(rgb.shape)


def macenko_measure(rgb: Array) -> Array:
    """(11,): the glass's RGB, two unit stain vectors, and the 99th percentile of each stain's amount.

    An image with next to no stained pixels, or without colour, has no two stains: its vectors are not
    numbers (NaN), and only its glass is known.
    """
    glass = glass_of(rgb)
    dense = density(rgb, glass).reshape(-1, 3)
    stained = dense[(dense > STAINED_DENSITY).any(axis=1)]
    nothing = np.concatenate([glass, np.full(8, np.nan)])
    if len(stained) < FEWEST_STAINED:
        return nothing
    values, vectors = np.linalg.eigh(np.cov(stained.T))
    if values[1] < 1e-5:
        return nothing
    plane = vectors[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    along = stained @ plane
    angle = np.arctan2(along[:, 1], along[:, 0])
    low, high = np.percentile(angle, [1, 99])
    found = np.stack([plane @ [np.cos(a), np.sin(a)] for a in (low, high)])
    found = np.maximum(found, 1e-3)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    # the blue stain (methylene blue, azure) takes more red away than the red one (eosin)
    if found[0, 0] < found[1, 0]:
        found = found[::-1]
    most = np.percentile(_amounts(stained, found), 99, axis=0)
    if np.linalg.cond(found) > 1e3 or (most < 1e-3).any():
        return nothing
    return np.concatenate([glass, found.ravel(), most])


def macenko_apply(rgb: Array, source: Array, target: Array) -> Array:
    """(H, W, 3) uint8 -> colour in [0, 1]; without stains of its own an image is unmixed by the target's."""
    known = source if np.isfinite(source).all() else np.concatenate([source[:3], target[3:]])
    amounts = _amounts(density(rgb, known[:3]).reshape(-1, 3), known[3:9].reshape(2, 3))
    amounts = amounts * (target[9:] / known[9:])
    return np.asarray(target[:3] / 255.0 * 10.0 ** -(amounts @ target[3:9].reshape(2, 3))).reshape(rgb.shape)


def _amounts(dense: Array, stains: Array) -> Array:
    """Amounts (n, 2) of two stains (2, 3) in densities (n, 3), least squares, none below zero."""
    return np.maximum(dense @ np.linalg.pinv(stains), 0.0)


@dataclass(frozen=True)
class Method:
    """How an image is measured, and how it is coloured by its own and the target's measures.

    `by_stain`: of the image's own measures only the glass (the first three) is used; the rest is the mean of
    the source's images, so that what differs between cells stays.
    """

    measure: Callable[[Array], Array]
    apply: Callable[[Array, Array, Array], Array]
    size: int
    by_stain: bool = False
    needed: int | None = None  # how many of the measures the target must have [all]
    prepare: Callable[[Array, Array, Array], Array] | None = None  # done first, to a picture as a whole

    def source_of(self, own: Array, mean: Array) -> Array:
        """The source measures that `apply` gets for an image."""
        return np.concatenate([own[:3], mean[3:]]) if self.by_stain else own


METHODS = {
    "reinhard": Method(reinhard_measure, reinhard_apply, 6),
    "macenko": Method(macenko_measure, macenko_apply, 11),
    "landmarks": Method(
        landmarks_measure, landmarks_apply, LANDMARKS, by_stain=True, needed=6, prepare=landmarks_prepare
    ),
}


@dataclass(frozen=True)
class Fit:
    """Measures (size,) of the target, and mean and deviation of the source images' measures."""

    target: Array
    source_mean: Array
    source_std: Array
    farthest: float  # 99th percentile of the source images' distance from their mean

    def distance(self, measured: Array) -> Array:
        """(n,) root mean square deviation of measures (n, size), in source deviations; NaN is far away."""
        z = (measured - self.source_mean) / self.source_std
        return np.sqrt(np.mean(np.where(np.isfinite(z), z, 10.0) ** 2, axis=1))


def fit(method: str, source: Sequence[Array], target: Sequence[Array]) -> Fit:
    """Fit to training images (H, W, 3) uint8: the median of the target's measures, the source's spread."""
    measure = METHODS[method].measure
    wanted, seen = (np.stack([measure(rgb_uint8(i)) for i in images]) for images in (target, source))
    if not np.isfinite(wanted[:, : METHODS[method].needed]).all(axis=1).any():
        raise BadInput(f"{method}: no target image shows stained cells; fit to stained images.")
    known = np.isfinite(seen)
    count = np.maximum(known.sum(axis=0), 1)  # what no source image has, a DIC its stains, stays at 0 and 1
    mean = np.where(known, seen, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(known, seen - mean, 0.0) ** 2).sum(axis=0) / count) + 1e-3
    std = np.where(known.any(axis=0), std, 1.0)
    # Zero stands for what no target image has, too.
    middle = [np.median(c[np.isfinite(c)]) if np.isfinite(c).any() else 0.0 for c in wanted.T]
    draft = Fit(np.asarray(middle), mean, std, 1.0)
    far = float(np.percentile(draft.distance(seen), 99))
    return Fit(draft.target, mean, std, max(far, 0.5))


class NormalizerStainer:
    """A fitted normalizer behind the Stainer protocol.

    Confidence: how usual the image's measures are among the images it was fitted to; 0.5 at the 99th
    percentile.  Uncertainty: how far the wanted colour lies beyond what a pixel can show.
    """

    min_confidence = MIN_CONFIDENCE

    def __init__(self, method: str, fitted: Fit, *, name: str, targets: Sequence[str]) -> None:
        self.method, self.fitted, self.name, self.targets = METHODS[method], fitted, name, tuple(targets)

    def target_index(self, target: str | None) -> int:
        return target_index(self.name, self.targets, target)

    def confidence(self, rows: Array) -> Array:
        """(n,) float32 of measures (n, size)."""
        if not len(rows):
            return np.zeros(0, np.float32)
        far = self.fitted.farthest
        worse = np.clip((self.fitted.distance(rows) - far) / (far / 3), -40, 40)
        return (1 / (1 + np.exp(worse))).astype(np.float32)

    def stain(self, patches: Array, target: str | None = None) -> Stained:
        """See stainers.base.Stainer; each patch is measured on its own."""
        self.target_index(target)
        patches = checked_patches(patches)
        n, height, width = patches.shape[:3]
        image, doubt = np.empty((n, height, width, 3), np.uint8), np.empty((n, height, width), np.float32)
        rows = np.empty((n, self.method.size))
        for i, patch in enumerate(patches):
            colour, doubt[i], rows[i] = NormalizerField(self, patch).tile(0, 0, height, width)
            image[i] = to_uint8(colour)
        return Stained(image, doubt, self.confidence(rows))

    def open_field(self, image: Array, target: str | None = None) -> NormalizerField:
        """The field measured as a whole: one mapping for all tiles."""
        self.target_index(target)
        return NormalizerField(self, image)


class NormalizerField:
    """See stainers.patch_stainer.OpenField."""

    def __init__(self, stainer: NormalizerStainer, image: Array) -> None:
        self.stainer, self.image = stainer, rgb_uint8(image)
        step = max(1, int(np.sqrt(self.image.shape[0] * self.image.shape[1] / 262144)))
        self.measured = stainer.method.measure(self.image[::step, ::step])
        self.shape = (self.image.shape[0], self.image.shape[1])
        self.source = stainer.method.source_of(self.measured, stainer.fitted.source_mean)
        if stainer.method.prepare is not None:
            self.image = stainer.method.prepare(self.image, self.source, stainer.fitted.target)

    def tile(self, y: int, x: int, height: int, width: int) -> Patch:
        part = self.image[y : y + height, x : x + width]
        colour = self.stainer.method.apply(part, self.source, self.stainer.fitted.target)
        beyond = np.abs(colour - np.clip(colour, 0, 1)).mean(axis=-1)
        return np.clip(colour, 0, 1), np.minimum(beyond, 1.0).astype(np.float32), self.measured

    def finish(self, stained: Array, uncertainty: Array) -> tuple[Array, Array]:
        return stained, uncertainty


def images_of(cells: Cells) -> list[Array]:
    """Stained pictures as they are; of DIC the first map, as grey.  Raises BadInput where there is none."""
    if not len(cells):
        raise BadInput(
            f"'{cells.domain}': too few images that differ to have some to fit to and some to test on; give "
            "more of them."
        )
    return [i if i.shape[2] == 3 else i[..., :1] for i in cells.images]


def load(package: Any) -> NormalizerStainer:
    """The normalizer of a package; raises BadModelPackage where card and weights do not fit this code."""
    card = package.card
    try:
        state = {k: v.numpy().astype(np.float64) for k, v in package.state_dict().items()}
        method = METHODS[card.architecture]
        if set(state) != {"target", "source_mean", "source_std"}:
            raise ValueError(f"weights hold {', '.join(sorted(state))}")
        if any(v.shape != (method.size,) for v in state.values()):
            raise ValueError(f"measures of {card.architecture} have {method.size} numbers")
        fitted = Fit(**state, farthest=float(card.parameters["farthest"]))
        return NormalizerStainer(
            card.architecture, fitted, name=card.name, targets=card.parameters["targets"]
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadModelPackage(
            f"{package.folder}: card and weights do not fit this normalizer ({error}); fit the package again."
        ) from error
