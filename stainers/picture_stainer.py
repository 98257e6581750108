"""A generator of pictures behind the Stainer protocol: one stain in, another stain out; or DIC in.

A stained image is brought to the scale that the generator was trained at (`scale`), stained with a halo, and
brought back; detail finer than that scale is carried over from the image itself, in grey.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stainers.base import Stained
from stainers.cell_sets import DIC_GAINS, as_planes, resized
from stainers.confidence import (
    FEATURES,
    NoiseOptions,
    disturbed_outputs,
    input_features,
    output_features,
)
from stainers.dic_input import measure_scale, normalise, shear_anisotropy
from stainers.gan_networks import GeneratorOptions, build
from stainers.networks import Latent, PolarityNet
from stainers.patch_stainer import Patch, PatchStainer, checked_patches, fitting, to_uint8
from stainers.unet_film import DicStainer

Array = np.ndarray[Any, Any]

COLOUR_FEATURES = (
    "input_red_green",
    "input_red_green_spread",
    "input_blue_green",
    "input_blue_green_spread",
)


def rgb_uint8(image: Array) -> Array:
    """(H, W, 1 or 3) uint8 or uint16 -> (H, W, 3) uint8; grey becomes grey in three channels."""
    values = np.asarray(image)
    if values.dtype == np.uint16:
        values = np.round(values / 257.0).astype(np.uint8)
    if values.ndim == 2:
        values = values[..., None]
    return np.ascontiguousarray(np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values)


def grey_picture(picture: Array) -> Array:
    """(H, W, C) uint8 -> (H, W, 1) uint8: the luminance of RGB (Rec. 601), the first map of DIC."""
    if picture.shape[2] != 3:
        return picture[..., :1]
    weights = np.asarray([0.299, 0.587, 0.114], np.float32)
    return np.round(picture.astype(np.float32) @ weights).astype(np.uint8)[..., None]


def around(length: int, start: int, end: int, multiple: int) -> Array:
    """Indices from `start` to `end` or more, a multiple of them; reflected beyond 0 .. length - 1."""
    end = start + -(-(end - start) // multiple) * multiple
    period = max(2 * length - 2, 1)
    index = np.abs(np.arange(start, end)) % period
    return np.where(index >= length, period - index, index)


class PictureStainer(PatchStainer):
    """A generator between two stains; `given` is `picture` (RGB) or `grey` (its luminance alone)."""

    features = FEATURES + COLOUR_FEATURES

    def __init__(
        self, generator: nn.Module, *, scale: float = 1.0, given: str = "picture", **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.generator, self.scale, self.given = generator, scale, given
        self.eval().requires_grad_(False)

    def stain(self, patches: Array, target: str | None = None) -> Stained:
        """See stainers.base.Stainer; grey patches are taken as images without colour."""
        index = self.target_index(target)

        def one(_: int, patch: Array) -> Patch:
            field = PictureField(self, patch, index)
            colour, doubt, row = field.tile(0, 0, *field.shape)
            stained, doubt = field.finish(to_uint8(colour), doubt)
            return stained / np.float32(255), doubt, row

        return self.each_patch(checked_patches(patches), one)

    def open_field(self, image: Array, target: str | None = None) -> PictureField:
        """The field at the generator's scale; nothing else of it is measured as a whole."""
        return PictureField(self, image, self.target_index(target))

    def stain_picture(
        self, picture: Array, index: int, part: tuple[int, int, int, int] | None = None
    ) -> Patch:
        """One RGB picture (h, w, 3) uint8 at the generator's own scale, or its part (y, x, height, width).

        The network sees a part with what lies around it, from a start on its own grid: what a pixel becomes
        depends on its place in the picture, not on the tile that it is asked for in.
        """
        y, x, height, width = part or (0, 0, *picture.shape[:2])
        halo, multiple = self.generator.halo_px, self.generator.multiple
        top, left = (-(-(halo - n) // multiple) * multiple for n in (y, x))  # pixels before the picture
        rows = around(picture.shape[0], -top, y + height + halo, multiple)
        columns = around(picture.shape[1], -left, x + width + halo, multiple)
        planes = as_planes(grey_picture(picture) if self.given == "grey" else picture)
        source = torch.from_numpy(planes[:, rows][:, :, columns])[None].to(self.device)
        primary, others = disturbed_outputs(self.generator, source, index, self.noise)
        inside = (..., slice(y + top, y + top + height), slice(x + left, x + left + width))
        stained, noisy = primary[:3][inside].cpu().numpy(), others[:, :3][inside].cpu().numpy()
        doubt = noisy.std(axis=0).mean(axis=0)
        row = self.feature_row(picture[y : y + height, x : x + width], stained, noisy, doubt)
        return stained.transpose(1, 2, 0), doubt.astype(np.float32), row

    def feature_row(self, picture: Array, stained: Array, noisy: Array, doubt: Array) -> Array:
        grey = grey_picture(picture)[..., 0].astype(np.float32)
        scale = measure_scale(grey)
        normalised = normalise(grey, scale)
        found = output_features(stained, noisy, np.log(doubt + 1e-3))
        found |= input_features(grey, normalised, scale.spread, shear_anisotropy(normalised))
        red, green, blue = np.log(picture.astype(np.float32) + 8).transpose(2, 0, 1)
        for name, ratio in (("red_green", red - green), ("blue_green", blue - green)):
            found[f"input_{name}"] = float(ratio.mean())
            found[f"input_{name}_spread"] = float(np.log(ratio.std() + 1e-2))
        return np.asarray([found[name] for name in self.features], np.float64)


class PictureField:
    """An image at the generator's scale; see stainers.patch_stainer.OpenField."""

    def __init__(self, stainer: PictureStainer, image: Array, index: int) -> None:
        self.stainer, self.index = stainer, index
        self.image = rgb_uint8(image)
        self.small = resized(self.image, stainer.scale)
        self.shape = (self.small.shape[0], self.small.shape[1])

    def tile(self, y: int, x: int, height: int, width: int) -> Patch:
        return self.stainer.stain_picture(self.small, self.index, (y, x, height, width))

    def finish(self, stained: Array, uncertainty: Array) -> tuple[Array, Array]:
        """Back to the image's size, with the detail that its small copy lacks."""
        import cv2

        if self.small is self.image or self.small.shape == self.image.shape:
            return stained, uncertainty
        size = (self.image.shape[1], self.image.shape[0])
        large = cv2.resize(stained, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
        grey, seen = (
            grey_picture(v)[..., 0].astype(np.float32)
            for v in (self.image, cv2.resize(self.small, size, interpolation=cv2.INTER_CUBIC))
        )
        detailed = np.clip(large + (grey - seen)[..., None], 0, 255)
        doubt = cv2.resize(uncertainty, size, interpolation=cv2.INTER_LINEAR)
        return np.round(detailed).astype(np.uint8), np.maximum(doubt, 0)


class DicPictures(nn.Module):
    """A generator of pictures as the DIC stainer calls it: with normalised DIC and its integral."""

    def __init__(self, net: Any, given: str = "picture") -> None:
        super().__init__()
        self.net, self.multiple, self.given = net, net.multiple, given

    def encode(self, x: Tensor) -> Latent:
        gains = torch.tensor(DIC_GAINS, device=x.device).view(1, 2, 1, 1)
        picture = (x * gains + 0.5).clamp(0, 1)
        return self.net.encode(picture[:, :1] if self.given == "grey" else picture)

    def decode(self, latent: Latent, target: Tensor) -> Tensor:
        return self.net.decode(latent, target)


def picture_network(parameters: dict[str, Any]) -> nn.Module:
    """The generator that a card's parameters describe."""
    return build(
        GeneratorOptions(**parameters["generator"]),
        int(parameters["in_channels"]),
        n_targets=len(parameters["targets"]),
    )


def load(
    package: Any, network: Callable[[dict[str, Any]], nn.Module] = picture_network
) -> PictureStainer | DicStainer:
    """Build the stainer of a package of a picture generator, strictly; `network` reads the card's parameters.

    Raises BadModelPackage where the card or the weights do not fit this code.
    """
    card = package.card
    stainer: PictureStainer | DicStainer
    with fitting(package):
        p = dict(card.parameters)
        net = network(p)
        rest: dict[str, Any] = {
            "name": card.name,
            "targets": p["targets"],
            "noise": NoiseOptions(**p["noise"]),
            "min_confidence": float(p["min_confidence"]),
            "calibration": None,
        }
        if p["input"] == "dic":
            stainer = DicStainer(DicPictures(net, p["given"]), PolarityNet(), **rest)
        else:
            stainer = PictureStainer(net, scale=float(p["scale"]), given=p["given"], **rest)
        stainer.take_calibration(p["confidence"])
        stainer.load_state_dict(package.state_dict(), strict=True)
    if torch.cuda.is_available():
        stainer.cuda()
    return stainer
