"""Generators and discriminators of the adversarial stainers.

Pictures are in [0, 1] outside and centred inside.  Every generator has `encode` and `decode`, so that its
latent representation can be disturbed (`stainers.confidence`).

The default normalisation divides each pixel by the root mean square of its own channels (as in Karras et
al., ICLR 2018): no statistics over the batch nor over the patch, so that neither changes a pixel, and
training and use are the same function.  `instance`, as the papers have it, and `batch` are there to compare;
with `instance` a pixel depends on the whole tile.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stainers.networks import Latent

NORMS = ("pixel", "batch", "instance", "none")


class PixelNorm(nn.Module):
    """Each pixel over the root mean square of its channels, times a learned scale, plus a shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # in float32: the square of 256 is beyond float16, and the pixel would be divided by infinity
        return x * torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-5) * self.scale + self.shift


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "pixel":
        return PixelNorm(width)
    if kind == "batch":
        return nn.BatchNorm2d(width)
    if kind == "instance":
        return nn.InstanceNorm2d(width)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"normalisation '{kind}' is not known; known are: {', '.join(NORMS)}")


@dataclass(frozen=True)
class GeneratorOptions:
    """kind `resnet`: `blocks` residual blocks between `levels` halvings (9 and 2 in the papers); kind `unet`:
    `levels` halvings (7 or 8 in the papers), no blocks.  `width` is that of the first layer (64 in the
    papers); widths double with each level up to 8 times.  `residual` adds the answer to the input's own
    logit: a stain changes colours, not shapes.  For RGB to RGB alone."""

    kind: str = "resnet"
    width: int = 16
    blocks: int = 6
    levels: int = 2
    norm: str = "pixel"
    residual: bool = False


class ResnetBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(width, width, norm),
            nn.Conv2d(width, width, 3, 1, 1),
            _norm(norm, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _conv(cin: int, cout: int, norm: str, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2),
        _norm(norm, cout),
        nn.LeakyReLU(0.2, inplace=True),  # a plain ReLU may die where the answer is near the input
    )


class Generator(nn.Module):
    """What both kinds share: pictures in and out, several targets, the answer as a change of the input."""

    halo_px = 16  # context that a patch is stained with and that is cut off again

    def __init__(
        self, in_channels: int, out_channels: int, n_targets: int, options: GeneratorOptions, code_width: int
    ) -> None:
        super().__init__()
        if options.residual and in_channels != out_channels:
            raise ValueError("a residual generator needs as many channels in as out")
        self.options, self.multiple = options, 2**options.levels
        self.target = nn.Embedding(n_targets, code_width) if n_targets > 1 else None

    def told(self, code: Tensor, target: Tensor) -> Tensor:
        return code if self.target is None else code + self.target(target)[:, :, None, None]

    def picture(self, raw: Tensor, latent: Latent) -> Tensor:
        if self.options.residual:
            raw = raw + latent.skips[0]
        return torch.sigmoid(raw)

    def entry(self, x: Tensor) -> tuple[Tensor, ...]:
        """The first skip: the logit of the input, where the answer is a change of it."""
        return (torch.logit(x, eps=0.01),) if self.options.residual else ()

    def encode(self, x: Tensor) -> Latent:
        raise NotImplementedError

    def decode(self, latent: Latent, target: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        if target is None:
            target = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self.decode(self.encode(x), target)


class ResnetGenerator(Generator):
    """Johnson et al.'s transformer net as CycleGAN uses it; the code is taken amid the residual blocks."""

    def __init__(
        self, in_channels: int, out_channels: int, n_targets: int, options: GeneratorOptions
    ) -> None:
        widths = [options.width * min(2**i, 8) for i in range(options.levels + 1)]
        super().__init__(in_channels, out_channels, n_targets, options, widths[-1])
        norm = options.norm
        self.stem = _conv(in_channels, widths[0], norm, kernel=7)
        self.down = nn.Sequential(*(_conv(a, b, norm, stride=2) for a, b in itertools.pairwise(widths)))
        before = options.blocks // 2
        self.before = nn.Sequential(*(ResnetBlock(widths[-1], norm) for _ in range(before)))
        self.after = nn.Sequential(*(ResnetBlock(widths[-1], norm) for _ in range(options.blocks - before)))
        back = widths[::-1]
        self.up = nn.ModuleList(_conv(a, b, norm) for a, b in itertools.pairwise(back))
        self.head = nn.Conv2d(widths[0], out_channels, 7, 1, 3)
        if options.residual:
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def encode(self, x: Tensor) -> Latent:
        return Latent(self.before(self.down(self.stem(2 * x - 1))), self.entry(x))

    def decode(self, latent: Latent, target: Tensor) -> Tensor:
        h = self.after(self.told(latent.code, target))
        for up in self.up:
            h = up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.picture(self.head(h), latent)


class UnetGenerator(Generator):
    """pix2pix's U-Net: `levels` strided convolutions down, as many up, every map handed across."""

    def __init__(
        self, in_channels: int, out_channels: int, n_targets: int, options: GeneratorOptions
    ) -> None:
        widths = [options.width * min(2**i, 8) for i in range(options.levels)]
        super().__init__(in_channels, out_channels, n_targets, options, widths[-1])
        self.down = nn.ModuleList()
        before = in_channels
        for i, width in enumerate(widths):
            norm = options.norm if 0 < i < len(widths) - 1 else "none"
            layers = [nn.Conv2d(before, width, 4, 2, 1), _norm(norm, width)]
            self.down.append(nn.Sequential(*layers, nn.LeakyReLU(0.2, inplace=True)))
            before = width
        self.up = nn.ModuleList()
        for i in reversed(range(len(widths))):
            handed = 0 if i == len(widths) - 1 else widths[i]
            out = widths[i - 1] if i else options.width
            self.up.append(_conv(before + handed, out, options.norm))
            before = out
        self.head = nn.Conv2d(before, out_channels, 3, 1, 1)
        if options.residual:
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def encode(self, x: Tensor) -> Latent:
        maps = []
        h = 2 * x - 1
        for down in self.down:
            h = down(h)
            maps.append(h)
        return Latent(maps[-1], (*self.entry(x), *maps[:-1]))

    def decode(self, latent: Latent, target: Tensor) -> Tensor:
        h = self.told(latent.code, target)
        handed = latent.skips[1:] if self.options.residual else latent.skips
        for i, up in enumerate(self.up):
            if i:
                h = torch.cat([h, handed[-i]], dim=1)
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = up(h)
        return self.picture(self.head(h), latent)


def build(
    options: GeneratorOptions, in_channels: int, out_channels: int = 3, n_targets: int = 1
) -> ResnetGenerator | UnetGenerator:
    """A generator of `options.kind`; raises ValueError listing the kinds."""
    kinds: dict[str, type[ResnetGenerator | UnetGenerator]] = {
        "resnet": ResnetGenerator,
        "unet": UnetGenerator,
    }
    if options.kind not in kinds:
        raise ValueError(f"generator '{options.kind}' is not known; known are: {', '.join(kinds)}")
    return kinds[options.kind](in_channels, out_channels, n_targets, options)


@dataclass(frozen=True)
class DiscriminatorOptions:
    """A PatchGAN of `layers` strided convolutions (2, 3 or 5 in the Perls paper), `scales` of them on
    halved images (pix2pixHD); norm: spectral, instance or none."""

    layers: int = 3
    width: int = 16
    norm: str = "spectral"
    scales: int = 1

    def smallest_px(self) -> int:
        """The smallest image that every scale can judge."""
        return (2**self.layers) * 3 * 2 ** (self.scales - 1)


class PatchGan(nn.Module):
    """Judges overlapping parts of a picture (Isola et al., CVPR 2017), and names the class of the cell
    where it has a class head (AC-GAN, Odena et al., ICML 2017)."""

    def __init__(self, channels: int, options: DiscriminatorOptions, n_classes: int = 0) -> None:
        super().__init__()
        if options.norm not in ("spectral", "instance", "none"):
            raise ValueError(
                f"discriminator norm '{options.norm}' is not known; choose spectral, instance or none"
            )

        def conv(cin: int, cout: int, stride: int) -> nn.Module:
            made = nn.Conv2d(cin, cout, 4, stride, 1)
            return nn.utils.parametrizations.spectral_norm(made) if options.norm == "spectral" else made

        widths = [options.width * min(2**i, 8) for i in range(options.layers + 1)]
        self.stages = nn.ModuleList()
        before = channels
        for i, width in enumerate(widths):
            layers = [conv(before, width, 2 if i < options.layers else 1)]
            if options.norm == "instance" and i:
                layers.append(nn.InstanceNorm2d(width))
            self.stages.append(nn.Sequential(*layers, nn.LeakyReLU(0.2, inplace=True)))
            before = width
        self.real = nn.Conv2d(before, 1, 4, 1, 1)
        self.named = nn.Linear(before, n_classes) if n_classes else None

    def forward(self, picture: Tensor) -> Judgement:
        h = 2 * picture - 1
        features = []
        for stage in self.stages:
            h = stage(h)
            features.append(h)
        classes = self.named(h.mean(dim=(2, 3))) if self.named is not None else None
        return Judgement(self.real(h), tuple(features), classes)


@dataclass
class Judgement:
    """real (B, 1, h, w): higher where it looks real; features of each stage; class logits (B, n)."""

    real: Tensor
    features: tuple[Tensor, ...]
    classes: Tensor | None


class MultiScale(nn.Module):
    """The same PatchGAN, separately trained, on the picture and its halvings (Wang et al., CVPR 2018)."""

    def __init__(self, channels: int, options: DiscriminatorOptions, n_classes: int = 0) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchGan(channels, options, n_classes) for _ in range(options.scales))

    def forward(self, picture: Tensor) -> list[Judgement]:
        judged = []
        for i, scale in enumerate(self.scales):
            if i:
                picture = F.avg_pool2d(picture, 3, 2, 1, count_include_pad=False)
            judged.append(scale(picture))
        return judged
