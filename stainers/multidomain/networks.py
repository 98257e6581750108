"""Networks of the multi-domain stainer (thesis, figure 5.1): encoder, generator, two-headed discriminator,
domain-agnostic cell classifier, segmenter.

The encoder is never told a domain; the generator is told the target at the bottleneck.  Every norm is a
pixel's own, so that neither batch nor neighbours change a pixel and training and use are the same function.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stainers.gan_networks import PixelNorm
from stainers.networks import Latent

N_SEGMENTS = 4  # background, red cell, cytoplasm, nucleus (thesis 4.4.4)


@dataclass(frozen=True)
class MultiDomainNetwork:
    """Widths and depths.  `domains` are the generator's targets in its order, DIC last; all but DIC are
    offered."""

    domains: tuple[str, ...] = ("barcelona", "bccd", "raabin", "dic")
    width: int = 16
    blocks: int = 2  # residual blocks of the encoder's bottleneck; the generator has one more
    judge_width: int = 16
    judge_layers: int = 4


def as_three(x: Tensor) -> Tensor:
    """Pictures of any domain as three maps: RGB as it is; DIC and its integral (B, 2, H, W) as dic, path,
    dic."""
    return torch.cat([x, x[:, :1]], dim=1) if x.shape[1] == 2 else x


def _conv(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1), PixelNorm(cout), nn.SiLU())


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.Conv2d(width, width, 3, 1, 1), PixelNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Encoder(nn.Module):
    """E: pictures (B, 2 or 3, H, W) of any domain -> h (B, 4 width, H / 8, W / 8)."""

    def __init__(self, options: MultiDomainNetwork) -> None:
        super().__init__()
        w = options.width
        self.body = nn.Sequential(
            _conv(12, w),
            _conv(w, 2 * w, 2),
            _conv(2 * w, 4 * w, 2),
            *(Block(4 * w) for _ in range(options.blocks)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(F.pixel_unshuffle(2 * as_three(x) - 1, 2))


class Up(nn.Module):
    """Twice the size, nearest neighbour, and a convolution: no checkerboard."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.body = _conv(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Generator(nn.Module):
    """G: (h, target (B,) int64) -> pictures (B, 3, H, W) in [0, 1]; the label joins h as constant maps."""

    def __init__(self, options: MultiDomainNetwork) -> None:
        super().__init__()
        w = options.width
        self.n_domains = len(options.domains)
        self.body = nn.Sequential(
            _conv(4 * w + self.n_domains, 4 * w),
            *(Block(4 * w) for _ in range(options.blocks + 1)),
            Up(4 * w, 2 * w),
            Up(2 * w, w),
            nn.Conv2d(w, 12, 3, 1, 1),
        )

    def forward(self, h: Tensor, target: Tensor) -> Tensor:
        label = F.one_hot(target, self.n_domains).to(h)[:, :, None, None].expand(-1, -1, *h.shape[2:])
        return torch.sigmoid(F.pixel_shuffle(self.body(torch.cat([h, label], dim=1)), 2))


class Discriminator(nn.Module):
    """D_src and D_cls on one body: a map of verdicts (B, 1, h, w) and domain logits (B, n)."""

    def __init__(self, options: MultiDomainNetwork) -> None:
        super().__init__()
        widths = [3, *(options.judge_width * min(2**i, 8) for i in range(options.judge_layers))]
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.05))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.source = nn.Conv2d(widths[-1], 1, 3, 1, 1)
        self.domain = nn.Linear(widths[-1], len(options.domains))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(2 * as_three(x) - 1)
        return self.source(h), self.domain(h.mean(dim=(2, 3)))


class CellClassifier(nn.Module):
    """DAC: h alone -> class logits (B, n).  It is not told the domain (equation 5.5)."""

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.body = _conv(width, width, 2)
        self.head = nn.Linear(2 * width, n_classes)

    def forward(self, h: Tensor) -> Tensor:
        h = self.body(h)
        return self.head(torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1))


class Segmenter(nn.Module):
    """S: h -> logits (B, 4, H / 2, W / 2) of background, red cell, cytoplasm and nucleus."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Up(width, width // 2), Up(width // 2, width // 4), nn.Conv2d(width // 4, N_SEGMENTS, 3, 1, 1)
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.body(h)


class MultiDomainStain(nn.Module):
    """Encoder and generator together: what stains.  Offers `encode` and `decode` for the confidence."""

    multiple = 8
    halo_px = 16

    def __init__(self, options: MultiDomainNetwork) -> None:
        super().__init__()
        self.options = options
        self.encoder, self.generator = Encoder(options), Generator(options)

    def encode(self, x: Tensor) -> Latent:
        return Latent(self.encoder(x), ())

    def decode(self, latent: Latent, target: Tensor) -> Tensor:
        return self.generator(latent.code, target)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.decode(self.encode(x), target)
