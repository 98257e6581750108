"""The U-Net behind the nucleus / cytoplasm segmenter (Ronneberger 2015; thesis 4.4.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DEFAULT_WIDTHS = (16, 32, 64, 128, 192)


def _double_conv(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """(B, 3, H, W) float -> logits (B, n_classes, H, W); H and W are multiples of `stride`.

    Batch normalisation, not instance normalisation: in eval mode its statistics are fixed, so the
    output of a patch depends on nothing but the patch.
    """

    def __init__(self, widths: tuple[int, ...] = DEFAULT_WIDTHS, n_classes: int = 4) -> None:
        super().__init__()
        self.stride = 2 ** (len(widths) - 1)
        inputs = (3, *widths[:-1])
        self.encoder = nn.ModuleList(_double_conv(i, o) for i, o in zip(inputs, widths, strict=True))
        self.decoder = nn.ModuleList(
            _double_conv(widths[k] + widths[k - 1], widths[k - 1]) for k in range(len(widths) - 1, 0, -1)
        )
        self.head = nn.Conv2d(widths[0], n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        x = skips.pop()
        for block in self.decoder:
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skips.pop()], 1))
        return self.head(x)
