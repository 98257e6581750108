"""The U-Net stainer behind the Stainer protocol: DIC at 0.1 µm a pixel in, a stain target out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipeline.errors import BadInput
from stainers.base import Stained
from stainers.confidence import (
    DIC_FEATURES,
    FEATURES,
    NoiseOptions,
    disturbed_outputs,
    feature_row,
    input_features,
    output_features,
    part_missing,
)
from stainers.dic_input import (
    Scale,
    Turn,
    canonical_turn,
    integrate,
    measure_scale,
    normalise,
    shear_anisotropy,
    to_grey,
)
from stainers.levels import level_background
from stainers.networks import PolarityNet, build_generator
from stainers.patch_stainer import Patch, PatchStainer, checked_patches, fitting, reflected_index, to_uint8
from stainers.polarity import find_shear, upright_logit

Array = np.ndarray[Any, Any]

UPRIGHT_LIMIT = 8.0  # log odds beyond this are all the same
HALO_PX = 8  # reflected border that the network sees around a patch and that is cut off again


@dataclass(frozen=True)
class DisturbedPatch:
    """A patch stained without (3, H, W) and k times with noise (k, 3, H, W), the log of the error that the
    decoder expects (H, W), and what it was made of; all but `grey` turned by `turn`.  `upright` is the log
    odds that the shear which it was stained by is the right way round."""

    stained: Array
    noisy: Array
    log_expected: Array
    grey: Array
    normalised: Array
    scale: Scale
    turn: Turn
    upright: float

    def features(self, samples: int) -> dict[str, float]:
        """Features of the confidence, of the first `samples` outputs with noise."""
        found = output_features(self.stained, self.noisy[:samples], self.log_expected)
        anisotropy = shear_anisotropy(self.normalised)
        found |= input_features(self.grey, self.normalised, self.scale.spread, anisotropy)
        return found | {"input_polarity": float(np.clip(self.upright, -UPRIGHT_LIMIT, UPRIGHT_LIMIT))}


class DicStainer(PatchStainer):
    """A generator, the polarity network and the calibration of its confidence."""

    uses_shear = True  # `stain` takes shear_angle_deg
    features = DIC_FEATURES
    earlier_features = (FEATURES,)

    def __init__(self, generator: Any, polarity: PolarityNet, **rest: Any) -> None:
        super().__init__(**rest)
        self.generator, self.polarity = generator, polarity
        self.eval().requires_grad_(False)

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
        patches = checked_patches(patches)
        angles = [None] * len(patches) if shear_angle_deg is None else list(shear_angle_deg)
        if len(angles) != len(patches):
            raise BadInput(f"{len(angles)} shear angles were given for {len(patches)} patches.")

        def one(i: int, patch: Array) -> Patch:
            grey, angle = to_grey(patch), angles[i]
            angle = find_shear(self.polarity, grey).angle_deg if angle is None else float(angle)
            return self.stain_grey(grey, index, angle)

        return self.each_patch(patches, one)

    def paint(self, patch: Array, target: str | None = None, *, shear_angle_deg: float) -> Array:
        """One patch (H, W[, C]) as `stain` paints it, (H, W, 3) uint8; three times as fast, no confidence."""
        return to_uint8(self.colours(to_grey(patch), self.target_index(target), shear_angle_deg))

    def paint_field(self, image: Array, target: str | None = None) -> Array:
        """A field (H, W[, 1 or 3]) of any size as `paint` would, (H, W, 3) uint8, in blended tiles."""
        from stainers.field import paint_field

        return paint_field(self.open_field(image, target))

    def colours(self, grey: Array, index: int, angle_deg: float, scale: Scale | None = None) -> Array:
        """One grey patch (H, W) -> stained (H, W, 3) float32, the way of `stain_grey` without its noise."""
        found = self.disturbed(grey, index, angle_deg, replace(self.noise, samples=0), scale)
        return found.turn.undo(found.stained.transpose(1, 2, 0))

    def known_spoilt(self, rows: Array) -> Array:
        """See PatchStainer; relief is clipped at thin edges at most, so a flat part is a missing one."""
        return part_missing(rows, self.features)

    def open_field(
        self, image: Array, target: str | None = None, *, shear_angle_deg: float | None = None
    ) -> DicField:
        """One background, one contrast and one shear for all tiles of a field (H, W[, 1 or 3])."""
        return DicField(self, image, self.target_index(target), shear_angle_deg)

    def stain_grey(
        self, grey: Array, index: int, angle_deg: float, scale: Scale | None = None
    ) -> tuple[Array, Array, Array]:
        """One grey patch (H, W) -> stained (H, W, 3) float32, uncertainty (H, W) float32, feature row.

        `scale` is given where the patch is part of a field, which then has one scale for all its tiles.
        """
        found = self.disturbed(grey, index, angle_deg, self.noise, scale)
        features = found.features(self.noise.samples)
        doubt = np.sqrt(np.exp(2 * np.clip(found.log_expected, -6, 1)) + found.noisy.var(axis=0).mean(axis=0))
        image = found.turn.undo(found.stained.transpose(1, 2, 0))
        return image, found.turn.undo(doubt.astype(np.float32)), feature_row(features, self.features)

    def disturbed(
        self,
        grey: Array,
        index: int,
        angle_deg: float,
        noise: NoiseOptions,
        scale: Scale | None = None,
    ) -> DisturbedPatch:
        """One grey patch (H, W) with and without noise in its latent representation, still turned."""
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
        primary, others = disturbed_outputs(self.generator, source, index, noise)
        inside = (slice(HALO_PX, HALO_PX + height), slice(HALO_PX, HALO_PX + width))
        stained = primary[:3][(slice(None), *inside)].cpu().numpy()
        noisy = others[:, :3][(slice(None), slice(None), *inside)].cpu().numpy()
        if len(primary) > 3:
            log_expected = primary[3][inside].cpu().numpy()
        else:  # a decoder that foretells no error: what noise does to it is all there is to go by
            log_expected = np.log(noisy.std(axis=0).mean(axis=0) + 1e-3)
        upright = upright_logit(self.polarity, path)
        return DisturbedPatch(stained, noisy, log_expected, grey, normalised, scale, turn, upright)


class DicField:
    """A DIC field, levelled and measured; see stainers.patch_stainer.OpenField."""

    def __init__(self, stainer: DicStainer, image: Array, index: int, shear_angle_deg: float | None) -> None:
        self.stainer, self.index = stainer, index
        self.grey = level_background(to_grey(np.asarray(image)))
        self.scale: Scale = measure_scale(self.grey)
        self.angle = stainer.find_shear_deg(image) if shear_angle_deg is None else float(shear_angle_deg)
        self.shape = (self.grey.shape[0], self.grey.shape[1])

    def tile(self, y: int, x: int, height: int, width: int) -> Patch:
        part = self.grey[y : y + height, x : x + width]
        return self.stainer.stain_grey(part, self.index, self.angle, self.scale)

    def colours(self, y: int, x: int, height: int, width: int) -> Array:
        part = self.grey[y : y + height, x : x + width]
        return self.stainer.colours(part, self.index, self.angle, self.scale)

    def finish(self, stained: Array, uncertainty: Array) -> tuple[Array, Array]:
        return stained, uncertainty


def load(package: Any) -> DicStainer:
    """Build the stainer of a model package (`storage.packages.ModelPackage`), strictly.

    Raises BadModelPackage where the card or the weights do not fit this code.
    """
    card = package.card
    with fitting(package):
        parameters = dict(card.parameters)
        targets = parameters["targets"]
        generator = build_generator(card.architecture, len(targets), **parameters["network"])
        stainer = DicStainer(
            generator,
            PolarityNet(**parameters.get("polarity", {})),
            name=card.name,
            targets=targets,
            noise=NoiseOptions(**parameters["noise"]),
            calibration=None,
            min_confidence=float(parameters["min_confidence"]),
        )
        stainer.take_calibration(parameters["confidence"])
        stainer.load_state_dict(package.state_dict(), strict=True)
    if torch.cuda.is_available():
        stainer.cuda()
    stainer.generator.to(memory_format=torch.channels_last)
    return stainer
