"""The Inception that FID is defined by: TensorFlow's of 2015, on torchvision's layers.

It differs from torchvision's own in its averages, which leave the padding out, in a maximum where the last
block has an average, and in 1008 outputs; weights are read from the file of the pytorch-fid project, key
for key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception_v3
from torchvision.models.inception import InceptionA, InceptionC, InceptionE

from pipeline.errors import BadInput


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _max(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


class _A(InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), five, three, self.branch_pool(_mean(x))]


class _C(InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return [self.branch1x1(x), seven, twice, self.branch_pool(_mean(x))]


class _E(InceptionE):
    pool: Callable[[Tensor], Tensor] = staticmethod(_mean)

    def _forward(self, x: Tensor) -> list[Tensor]:
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(three), self.branch3x3_2b(three)], 1),
            torch.cat([self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)], 1),
            self.branch_pool(self.pool(x)),
        ]


class _LastE(_E):
    pool = staticmethod(_max)


class FidInception(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] -> features (N, 2048), resized to 299 px as pytorch-fid does."""

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        net = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
        net.Mixed_5b, net.Mixed_5c, net.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        net.Mixed_6b, net.Mixed_6c = _C(768, 128), _C(768, 160)
        net.Mixed_6d, net.Mixed_6e = _C(768, 160), _C(768, 192)
        net.Mixed_7b, net.Mixed_7c = _E(1280), _LastE(2048)
        self.net = net.eval().requires_grad_(False)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Raises BadInput where a weight is missing or has no place."""
        own = {k for k in self.net.state_dict() if not k.endswith("num_batches_tracked")}
        given = {k for k in state if not k.endswith("num_batches_tracked")}
        if own != given:
            first = sorted(own ^ given)[0]
            raise BadInput(f"the Inception weights do not fit ('{first}'); give the file of pytorch-fid.")
        self.net.load_state_dict(dict(state), strict=False)

    def train(self, mode: bool = True) -> FidInception:
        """A measure does not learn."""
        del mode
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
        x = net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x)))
        x = net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = net.Mixed_5d(net.Mixed_5c(net.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = net.Mixed_6e(net.Mixed_6d(net.Mixed_6c(net.Mixed_6b(net.Mixed_6a(x)))))
        x = net.Mixed_7c(net.Mixed_7b(net.Mixed_7a(x)))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)
