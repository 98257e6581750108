"""Networks of the disentangled stainer (thesis, figure 6.1).

Three encoders - background, structure of the leukocyte, style -, two networks that map noise to codes, and a
generator that gets the structure by SPADE and the style by AdaIN.  Both norms settle (`stainers.norms`):
their statistics are fixed at inference, so that no tile is stained by what lies beside it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stainers.multidomain.networks import as_three
from stainers.norms import SpatialNorm, StyledNorm

MAP_SIDE = 12  # of the structure map that noise is mapped to; brought to the size asked for


@dataclass(frozen=True)
class DisentangledNetwork:
    """Widths.  `domains` are the targets in the order of the style heads, DIC last; all but DIC are
    offered."""

    domains: tuple[str, ...] = ("barcelona", "bccd", "raabin", "dic")
    width: int = 12
    blocks: int = 2
    style: int = 16
    structure: int = 8
    noise: int = 16
    hidden: int = 16  # inside SPADE
    judge_width: int = 16
    judge_layers: int = 4


class DisentangledLatent(NamedTuple):
    """background (B, C, h, w), structure (B, T, h, w), and the style code of every target (B, n, S)."""

    background: Tensor
    structure: Tensor
    styles: Tensor

    def disturbed(self, shown: Tensor, options: Any, generator: torch.Generator) -> DisentangledLatent:
        """Equation 6.6 for a latent of batch 1: k copies, the first half with noise of alpha deviations in
        the structure code, the others with noise of beta deviations in the style codes (Algorithm 2).

        The deviation is that of a whole code.  The structure code shows the leukocyte alone, so that
        `shown` masks nothing further.
        """
        del shown
        k = options.samples
        first = (k + 1) // 2
        structure = self.structure.expand(k, -1, -1, -1).clone()
        styles = self.styles.expand(k, -1, -1).clone()
        eta = torch.randn((first, *self.structure.shape[1:]), generator=generator).to(structure)
        structure[:first] += options.alpha * self.structure.std(unbiased=False) * eta
        psi = torch.randn((k - first, *self.styles.shape[1:]), generator=generator).to(styles)
        styles[first:] += options.beta * self.styles.std(dim=2, unbiased=False, keepdim=True) * psi
        return DisentangledLatent(self.background.expand(k, -1, -1, -1), structure, styles)


def _plain(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1), nn.LeakyReLU(0.2))


class MapEncoder(nn.Module):
    """En_B and En_T: pictures (B, 3, H, W) -> (B, out, H / 8, W / 8)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _plain(12, width),
            _plain(width, 2 * width, 2),
            _plain(2 * width, 4 * width, 2),
            nn.Conv2d(4 * width, out, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(F.pixel_unshuffle(2 * as_three(x) - 1, 2))


class StyleEncoder(nn.Module):
    """En_S: pictures (B, 3, H, W) -> style codes (B, style), one a picture."""

    def __init__(self, options: DisentangledNetwork) -> None:
        super().__init__()
        self.body = MapEncoder(options.width, 4 * options.width)
        self.head = nn.Linear(4 * options.width, options.style)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.leaky_relu(self.body(x), 0.2).mean(dim=(2, 3)))


class StyleMapping(nn.Module):
    """M_S: noise (B, noise) and domain (B,) -> style codes (B, style), by the head of each domain."""

    def __init__(self, options: DisentangledNetwork) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(options.noise, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(32, options.style) for _ in options.domains)

    def forward(self, noise: Tensor, domain: Tensor) -> Tensor:
        h = self.body(noise)
        codes = torch.stack([head(h) for head in self.heads], dim=1)
        return codes[torch.arange(len(h), device=h.device), domain]


class StructureMapping(nn.Module):
    """M_T: noise (B, noise) -> structure maps (B, structure, h, w) of the size asked for."""

    def __init__(self, options: DisentangledNetwork) -> None:
        super().__init__()
        side = MAP_SIDE // 4
        self.seed = nn.Linear(options.noise, 32 * side**2)
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            _plain(32, 32),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, options.structure, 3, 1, 1),
        )

    def forward(self, noise: Tensor, size: tuple[int, int]) -> Tensor:
        side = MAP_SIDE // 4
        made = self.body(self.seed(noise).view(-1, 32, side, side))
        return F.interpolate(made, size=size, mode="bilinear", align_corners=False)


class StyledBlock(nn.Module):
    """Structure by SPADE, a convolution, style by AdaIN, a convolution; around a shortcut."""

    def __init__(self, cin: int, cout: int, options: DisentangledNetwork) -> None:
        super().__init__()
        self.spade = SpatialNorm(cin, options.structure, options.hidden)
        self.first = nn.Conv2d(cin, cout, 3, 1, 1)
        self.adain = StyledNorm(cout, options.style)
        self.second = nn.Conv2d(cout, cout, 3, 1, 1)
        self.shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, style: Tensor, structure: Tensor) -> Tensor:
        h = self.first(F.leaky_relu(self.spade(x, structure), 0.2))
        h = self.second(F.leaky_relu(self.adain(h, style), 0.2))
        return (self.shortcut(x) + h) * 0.5**0.5


class Generator(nn.Module):
    """G: (background, style, structure) -> pictures (B, 3, H, W) in [0, 1]."""

    def __init__(self, options: DisentangledNetwork) -> None:
        super().__init__()
        w = options.width
        self.blocks = nn.ModuleList(StyledBlock(4 * w, 4 * w, options) for _ in range(options.blocks))
        self.up = nn.ModuleList([StyledBlock(4 * w, 2 * w, options), StyledBlock(2 * w, w, options)])
        self.adain = StyledNorm(w, options.style)
        self.head = nn.Conv2d(w, 12, 3, 1, 1)

    def forward(self, background: Tensor, style: Tensor, structure: Tensor) -> Tensor:
        h = background
        for block in self.blocks:
            h = block(h, style, structure)
        for block in self.up:
            h = block(F.interpolate(h, scale_factor=2.0, mode="nearest"), style, structure)
        h = F.leaky_relu(self.adain(h, style), 0.2)
        return torch.sigmoid(F.pixel_shuffle(self.head(h), 2))


class Discriminator(nn.Module):
    """D: pictures and their domain (B,) -> verdicts (B, h, w) by the head of that domain."""

    def __init__(self, options: DisentangledNetwork) -> None:
        super().__init__()
        widths = [3, *(options.judge_width * min(2**i, 8) for i in range(options.judge_layers))]
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.05))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.heads = nn.Conv2d(widths[-1], len(options.domains), 3, 1, 1)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        verdicts = self.heads(self.body(2 * as_three(x) - 1))
        return verdicts[torch.arange(len(x), device=x.device), domain]


class DisentangledStain(nn.Module):
    """Everything but the discriminator.  `encode` and `decode` stain with the typical style of a target.

    styles: (n, S) typical style codes, the mean of the mapping network over noise (`remember_styles`).
    """

    multiple = 8
    halo_px = 24
    styles: Tensor

    def __init__(self, options: DisentangledNetwork) -> None:
        super().__init__()
        self.options = options
        self.background = MapEncoder(options.width, 4 * options.width)
        self.structure = MapEncoder(options.width, options.structure)
        self.style = StyleEncoder(options)
        self.style_mapping = StyleMapping(options)
        self.structure_mapping = StructureMapping(options)
        self.generator = Generator(options)
        self.register_buffer("styles", torch.zeros(len(options.domains), options.style))

    @torch.no_grad()
    def remember_styles(self, draws: int = 256, seed: int = 0) -> None:
        """Take the mean style code of every domain as its typical one."""
        noise = torch.randn(draws, self.options.noise, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(self.styles)
        for i in range(len(self.styles)):
            self.styles[i] = self.style_mapping(noise, torch.full((draws,), i, device=noise.device)).mean(0)

    def encode(self, x: Tensor) -> DisentangledLatent:
        styles = self.styles.expand(len(x), -1, -1)
        return DisentangledLatent(self.background(x), self.structure(x), styles)

    def decode(self, latent: DisentangledLatent, target: Tensor) -> Tensor:
        style = latent.styles[torch.arange(len(target), device=target.device), target]
        return self.generator(latent.background, style, latent.structure)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.decode(self.encode(x), target)
