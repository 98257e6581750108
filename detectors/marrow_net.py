"""The network behind the finders of marrow cells: centres, boxes and kinds at one pixel a micrometre.

Cells are points (Zhou, Wang and Krähenbühl, Objects as Points, arXiv 1904.07850): one heat map of
nucleated cells, the size of the box and the offset of its centre there, and the kind of the cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 4  # pixels of the input a pixel of the output
MULTIPLE = 16  # sides of the input are multiples of this


class _Block(nn.Module):
    """Two 3x3 convolutions around which the input passes (He 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


def _conv(channels_in: int, channels_out: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class MarrowNet(nn.Module):
    """(B, 3, H, W) float -> heat (B, 1, h, w) logits, box (B, 4, h, w), kinds (B, K, h, w) logits.

    h = H / STRIDE; H and W are multiples of MULTIPLE.  `box` is the logarithm of width and height in
    output pixels, and the offset of the centre from the middle of its output pixel.  Batch normalisation
    is fixed in eval mode, so an image's output depends on nothing but the image.
    """

    def __init__(self, n_kinds: int, widths: tuple[int, int, int, int] = (16, 32, 64, 96)) -> None:
        super().__init__()
        a, b, c, d = widths
        # Wide strided kernels first: at full resolution a processor would spend its time on three channels.
        self.stem = nn.Sequential(_conv(3, a, 2, 5), _conv(a, b, 2, 5), _Block(b))
        self.middle = nn.Sequential(_conv(b, c, 2), _Block(c), _Block(c))
        self.deep = nn.Sequential(_conv(c, d, 2), _Block(d), _Block(d))
        self.up_deep, self.up_middle = _conv(d, c, size=1), _conv(c, b, size=1)
        self.join_middle, self.join = _conv(2 * c, c), _conv(2 * b, b)
        self.heat = nn.Conv2d(b, 1, 1)
        self.box = nn.Conv2d(b, 4, 1)
        self.kinds = nn.Conv2d(b, n_kinds, 1)
        nn.init.constant_(self.heat.bias, -3.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stem(x)
        middle = self.middle(fine)
        deep = self.up_deep(self.deep(middle))
        middle = self.join_middle(torch.cat([middle, _double(deep)], 1))
        fine = self.join(torch.cat([fine, _double(self.up_middle(middle))], 1))
        return self.heat(fine), self.box(fine), self.kinds(fine)


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
