"""Generators: an encoder, a bottleneck and a decoder that is told the target stain.

Normalisation is batch norm: at inference it is a fixed scale and shift, so that a pixel depends on its
receptive field alone - not on the batch (as in training mode) and not on the rest of the patch (as with
instance or group norm, whose statistics change at every tile border and draw seams).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Latent(NamedTuple):
    """What an encoder hands to a decoder: `code` (B, C, h, w) and the finer maps beside it."""

    code: Tensor
    skips: tuple[Tensor, ...]


def _conv(cin: int, cout: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(cout),
        nn.SiLU(inplace=True),
    )


class Residual(nn.Module):
    """Two convolutions around a shortcut; the second starts at zero, so that training starts shallow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.norm(self.second(self.first(x))))


class Film(nn.Module):
    """Scale and shift each channel by the target's embedding (Perez et al., AAAI 2018)."""

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.linear(style)[:, :, None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


class UNetFilm(nn.Module):
    """U-Net at half resolution inside (pixel shuffle in and out), with the target stain by FiLM.

    Input (B, in_channels, H, W), H and W multiples of `multiple`; `decode` gives (B, 4, H, W): red, green
    and blue in [0, 1] without a limit, and the log of the absolute error that the decoder expects.
    """

    multiple = 16

    def __init__(
        self,
        n_targets: int,
        in_channels: int = 2,
        widths: tuple[int, ...] = (24, 48, 96, 160),
        blocks: tuple[int, ...] = (1, 1, 2, 2),
        embedding: int = 32,
    ) -> None:
        super().__init__()
        if len(widths) != 4 or len(blocks) != 4:
            raise ValueError("UNetFilm has four levels: give four widths and four block counts")
        self.embedding = nn.Embedding(n_targets, embedding)
        self.stem = _conv(4 * in_channels, widths[0])
        self.levels = nn.ModuleList(
            nn.Sequential(*(Residual(w) for _ in range(n))) for w, n in zip(widths, blocks, strict=True)
        )
        self.down = nn.ModuleList(_conv(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.code_film = Film(embedding, widths[-1])
        self.code_block = Residual(widths[-1])
        pairs = list(itertools.pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.Conv2d(wide, narrow, 1, bias=False) for narrow, wide in pairs)
        self.film = nn.ModuleList(Film(embedding, narrow) for narrow, _ in pairs)
        self.refine = nn.ModuleList(Residual(narrow) for narrow, _ in pairs)
        self.head = nn.Conv2d(widths[0], 16, 3, 1, 1)

    def encode(self, x: Tensor) -> Latent:
        h = self.stem(F.pixel_unshuffle(x, 2))
        skips = []
        for i, level in enumerate(self.levels):
            h = level(h)
            if i < len(self.down):
                skips.append(h)
                h = self.down[i](h)
        return Latent(h, tuple(skips))

    def decode(self, latent: Latent, target: Tensor) -> Tensor:
        """`target` (B,) int64 indices; a latent of batch 1 serves any number of targets."""
        style = self.embedding(target)
        h = self.code_block(self.code_film(latent.code, style))
        for up, film, refine, skip in zip(self.up, self.film, self.refine, latent.skips[::-1], strict=True):
            h = F.interpolate(up(h), scale_factor=2.0, mode="nearest")
            h = refine(film(h + skip, style))
        return F.pixel_shuffle(self.head(h), 2)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.decode(self.encode(x), target)


class PatchDiscriminator(nn.Module):
    """Judges overlapping parts of a stained image (Isola et al., CVPR 2017), given the target stain."""

    def __init__(self, n_targets: int, width: int = 32) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.body = nn.Sequential(
            norm(nn.Conv2d(3 + 2, width, 4, 2, 1)),
            nn.LeakyReLU(0.2, inplace=True),
            norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
            nn.LeakyReLU(0.2, inplace=True),
            norm(nn.Conv2d(2 * width, 4 * width, 4, 2, 1)),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.real = nn.Conv2d(4 * width, 1, 3, 1, 1)
        self.embedding = nn.Embedding(n_targets, 4 * width)

    def forward(self, stained: Tensor, source: Tensor, target: Tensor) -> Tensor:
        h = self.body(torch.cat([stained, source], dim=1))
        return self.real(h) + (h * self.embedding(target)[:, :, None, None]).mean(dim=1, keepdim=True)


class PolarityNet(nn.Module):
    """Which end of the shear's axis is bright: a logit per image that the integrated image is upright.

    Input (B, 1, H, W): DIC integrated along the axis, about 0.4 µm a pixel.  The logit is odd in its
    input by construction: reversing the shear negates the integral and the answer.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 5, 2, 2),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 1, 1),
        )

    def score(self, path: Tensor) -> Tensor:
        return self.body(path).mean(dim=(1, 2, 3))

    def forward(self, path: Tensor) -> Tensor:
        return 4 * (self.score(path) - self.score(-path))


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


ARCHITECTURES = {"unet-film": UNetFilm}


def build_generator(architecture: str, n_targets: int, **options: object) -> UNetFilm:
    """A generator by its name; raises ValueError listing the names."""
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture '{architecture}' is not known; known are: {', '.join(sorted(ARCHITECTURES))}"
        )
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return ARCHITECTURES[architecture](n_targets, **options)  # type: ignore[arg-type]
