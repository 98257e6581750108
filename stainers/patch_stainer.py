"""What stainers with a generator share: targets, the loop over patches, the confidence, an opened field."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pipeline.errors import BadInput, BadModelPackage
from stainers.base import Stained
from stainers.confidence import Calibration, NoiseOptions
from storage.mirroring import mirrored_once

Array = np.ndarray[Any, Any]
Patch = tuple[Array, Array, Array]  # colour (H, W, 3) float in [0, 1], uncertainty (H, W), feature row


@contextlib.contextmanager
def fitting(package: Any) -> Iterator[None]:
    """Raise BadModelPackage where what is built of a package's card and weights cannot be."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()
        raise BadModelPackage(
            f"{package.folder}: card and weights do not fit this stainer ({' '.join(first)[:300]}); "
            "retrain the package or install the version that wrote it."
        ) from error


class OpenField(Protocol):
    """A field measured as a whole, so that its tiles agree; positions are in its own working pixels."""

    shape: tuple[int, int]

    def tile(self, y: int, x: int, height: int, width: int) -> Patch: ...

    def finish(self, stained: Array, uncertainty: Array) -> tuple[Array, Array]:
        """Stained (h, w, 3) uint8 and uncertainty (h, w) at working size -> at the field's size."""
        ...


class PaintableField(Protocol):
    """An opened field whose colours can be had alone, without the copies under noise."""

    shape: tuple[int, int]

    def colours(self, y: int, x: int, height: int, width: int) -> Array:
        """(height, width, 3) float32 in [0, 1]."""
        ...


def to_uint8(image: Array) -> Array:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def reflected_index(length: int, halo: int, multiple: int) -> Array:
    """Indices that pad a side with `halo` reflected pixels, and more at its end up to a multiple."""
    total = -(-(length + 2 * halo) // multiple) * multiple
    return mirrored_once(np.arange(-halo, total - halo), length)


def checked_patches(patches: Array) -> Array:
    """Patches (N, H, W, 1 or 3) of 8 or 16 bit with pixels, or BadInput."""
    patches = np.asarray(patches)
    if patches.ndim != 4 or patches.shape[-1] not in (1, 3) or patches.dtype not in (np.uint8, np.uint16):
        raise BadInput(
            f"patches to stain are (N, H, W, 1 or 3) of 8 or 16 bit, not {patches.shape} {patches.dtype}."
        )
    if 0 in patches.shape[1:]:
        raise BadInput(f"patches to stain have no pixels: {patches.shape}.")
    return patches


def target_index(name: str, targets: Sequence[str], target: str | None) -> int:
    """Index of a target domain; None is the first.  Raises BadInput listing the targets."""
    if target is None:
        return 0
    if target not in targets:
        raise BadInput(f"stainer '{name}' has no target '{target}'; choose one of: {', '.join(targets)}.")
    return list(targets).index(target)


class PatchStainer(nn.Module):
    """A stainer that puts every patch through its networks alone, together only with its own disturbed
    copies, so that its result cannot depend on what else is asked for.

    `features` names the columns of the feature rows; `min_confidence` is the threshold of the card below
    which a cell is not to be counted.
    """

    features: tuple[str, ...] = ()
    earlier_features: tuple[tuple[str, ...], ...] = ()  # columns that cards written before have

    def __init__(
        self,
        *,
        name: str,
        targets: Sequence[str],
        noise: NoiseOptions,
        calibration: Calibration | None,
        min_confidence: float,
    ) -> None:
        super().__init__()
        self.name, self.targets = name, tuple(targets)
        self.noise, self.calibration, self.min_confidence = noise, calibration, min_confidence

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def target_index(self, target: str | None) -> int:
        return target_index(self.name, self.targets, target)

    def take_calibration(self, values: Mapping[str, Any] | None) -> None:
        """The calibration of a card; raises ValueError where its features are none that this code reads."""
        if not values:
            self.calibration = None
            return
        named = tuple(values.get("features", ()))
        if named in self.earlier_features:
            self.features = named
        self.calibration = Calibration.from_card(values, self.features)

    def confidence(self, rows: Array) -> Array:
        """(n,) float32 of feature rows; a package without a calibration trusts nothing."""
        if self.calibration is None:
            return np.zeros(len(rows), np.float32)
        if not len(rows):
            return np.zeros(0, np.float32)
        return self.calibration.confidence(rows, self.known_spoilt(rows))

    def known_spoilt(self, rows: Array) -> Array | None:
        """(n,) bool: inputs that a rule of the family calls spoilt, whatever the calibration; or None."""
        del rows
        return None

    def each_patch(self, patches: Array, one: Callable[[int, Array], Patch]) -> Stained:
        """`one` of every patch, put together."""
        n, height, width = patches.shape[:3]
        image = np.empty((n, height, width, 3), np.uint8)
        uncertainty = np.empty((n, height, width), np.float32)
        rows = np.empty((n, len(self.features)), np.float64)
        for i, patch in enumerate(patches):
            stained, uncertainty[i], rows[i] = one(i, patch)
            image[i] = to_uint8(stained)
        return Stained(image, uncertainty, self.confidence(rows))
