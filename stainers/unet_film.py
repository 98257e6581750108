"""The U-Net stainer behind the Stainer protocol: DIC at 0.1 µm a pixel in, a stain target out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import BadInput, BadModelPackage
from stainers.base import Stained
from stainers.confidence import (
    FEATURES,
    Calibration,
    NoiseOptions,
    disturbed_outputs,
    feature_row,
    input_features,
    output_features,
)
from stainers.dic_input import (
    Scale,
    canonical_turn,
    integrate,
    measure_scale,
    normalise,
    shear_anisotropy,
    to_grey,
)
from stainers.networks import PolarityNet, UNetFilm, build_generator
from stainers.polarity import find_shear

Array = np.ndarray[Any, Any]

HALO_PX = 8  # reflected border that the network sees around a patch and that is cut off again


class DicStainer(nn.Module):
    """A generator, the polarity network and the calibration of its confidence.

    Every patch goes through the networks alone, together only with its own disturbed copies, so that its
    result cannot depend on what else is asked for.  `min_confidence` is the threshold of the card below
    which a cell is not to be counted.
    """

    uses_shear = True  # `stain` takes shear_angle_deg

    def __init__(
        self,
        generator: UNetFilm,
        polarity: PolarityNet,
        *,
        name: str,
        targets: Sequence[str],
        noise: NoiseOptions,
        calibration: Calibration | None,
        min_confidence: float,
    ) -> None:
        super().__init__()
        self.generator, self.polarity = generator, polarity
        self.name, self.targets = name, tuple(targets)
        self.noise, self.calibration, self.min_confidence = noise, calibration, min_confidence
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.generator.parameters()).device

    def target_index(self, target: str | None) -> int:
        """Index of a target domain; None is the first.  Raises BadInput listing the targets."""
        if target is None:
            return 0
        if target not in self.targets:
            raise BadInput(
                f"stainer '{self.name}' has no target '{target}'; choose one of: {', '.join(self.targets)}."
            )
        return self.targets.index(target)

    def find_shear_deg(self, image: Array) -> float:
        """Shear of a DIC patch or field (H, W[, C]): degrees from x to y, where growing path is bright."""
        return find_shear(self.polarity, to_grey(image)).angle_deg

    def stain(
        self,
        patches: Array,
        target: str | None = None,
        *,
        shear_angle_deg: Sequence[float | None] | None = None,
    ) -> Stained:
        """See stainers.base.Stainer; `shear_angle_deg`, one a patch, stands in for the estimate."""
        index = self.target_index(target)
        patches = np.asarray(patches)
        if patches.ndim != 4 or patches.shape[-1] not in (1, 3) or patches.dtype not in (np.uint8, np.uint16):
            raise BadInput(
                f"patches to stain are (N, H, W, 1 or 3) of 8 or 16 bit, not {patches.shape} {patches.dtype}."
            )
        if 0 in patches.shape[1:]:
            raise BadInput(f"patches to stain have no pixels: {patches.shape}.")
        angles = [None] * len(patches) if shear_angle_deg is None else list(shear_angle_deg)
        if len(angles) != len(patches):
            raise BadInput(f"{len(angles)} shear angles were given for {len(patches)} patches.")
        n, height, width = patches.shape[:3]
        image = np.empty((n, height, width, 3), np.uint8)
        uncertainty = np.empty((n, height, width), np.float32)
        rows = np.empty((n, len(FEATURES)), np.float64)
        for i, (patch, angle) in enumerate(zip(patches, angles, strict=True)):
            grey = to_grey(patch)
            angle = find_shear(self.polarity, grey).angle_deg if angle is None else float(angle)
            stained, uncertainty[i], rows[i] = self.stain_grey(grey, index, angle)
            image[i] = to_uint8(stained)
        return Stained(image, uncertainty, self.confidence(rows))

    def confidence(self, rows: Array) -> Array:
        """(n,) float32 of feature rows; a package without a calibration trusts nothing."""
        if self.calibration is None:
            return np.zeros(len(rows), np.float32)
        return self.calibration.confidence(rows) if len(rows) else np.zeros(0, np.float32)

    def stain_grey(
        self, grey: Array, index: int, angle_deg: float, scale: Scale | None = None
    ) -> tuple[Array, Array, Array]:
        """One grey patch (H, W) -> stained (H, W, 3) float32, uncertainty (H, W) float32, feature row.

        `scale` is given where the patch is part of a field, which then has one scale for all its tiles.
        """
        scale = scale or measure_scale(grey)
        turn = canonical_turn(angle_deg)
        normalised = normalise(turn.apply(grey), scale)
        path = integrate(normalised, turn.angle(angle_deg))
        height, width = normalised.shape
        multiple = self.generator.multiple
        rows = reflected_index(height, HALO_PX, multiple)
        columns = reflected_index(width, HALO_PX, multiple)
        x = np.stack([normalised, path])[:, rows][:, :, columns]
        source = torch.from_numpy(x)[None].to(self.device).contiguous(memory_format=torch.channels_last)
        primary, others = disturbed_outputs(self.generator, source, index, self.noise)
        inside = (slice(HALO_PX, HALO_PX + height), slice(HALO_PX, HALO_PX + width))
        stained = primary[:3][(slice(None), *inside)].cpu().numpy()
        log_expected = primary[3][inside].cpu().numpy()
        noisy = others[:, :3][(slice(None), slice(None), *inside)].cpu().numpy()
        features = output_features(stained, noisy, log_expected)
        features |= input_features(grey, normalised, scale.spread, shear_anisotropy(normalised))
        doubt = np.sqrt(np.exp(2 * np.clip(log_expected, -6, 1)) + noisy.var(axis=0).mean(axis=0))
        image = turn.undo(stained.transpose(1, 2, 0))
        return image, turn.undo(doubt.astype(np.float32)), feature_row(features)


def to_uint8(image: Array) -> Array:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def reflected_index(length: int, halo: int, multiple: int) -> Array:
    """Indices that pad a side with `halo` reflected pixels, and more at its end up to a multiple."""
    total = -(-(length + 2 * halo) // multiple) * multiple
    period = max(2 * length - 2, 1)
    index = np.abs(np.arange(-halo, total - halo)) % period
    return np.where(index >= length, period - index, index)


def load(package: Any) -> DicStainer:
    """Build the stainer of a model package (`storage.packages.ModelPackage`), strictly.

    Raises BadModelPackage where the card or the weights do not fit this code.
    """
    card = package.card
    try:
        parameters = dict(card.parameters)
        targets = parameters["targets"]
        generator = build_generator(card.architecture, len(targets), **parameters["network"])
        stainer = DicStainer(
            generator,
            PolarityNet(**parameters.get("polarity", {})),
            name=card.name,
            targets=targets,
            noise=NoiseOptions(**parameters["noise"]),
            calibration=Calibration.from_card(parameters["confidence"]) if parameters["confidence"] else None,
            min_confidence=float(parameters["min_confidence"]),
        )
        stainer.load_state_dict(package.state_dict(), strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()
        raise BadModelPackage(
            f"{package.folder}: card and weights do not fit this stainer ({' '.join(first)[:300]}); "
            "retrain the package or install the version that wrote it."
        ) from error
    if torch.cuda.is_available():
        stainer.cuda()
    stainer.generator.to(memory_format=torch.channels_last)
    return stainer
