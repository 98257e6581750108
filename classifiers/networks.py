"""The modules of a cell classifier: what finds the cell, what names it, what knows the unfamiliar."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Shipped and supported backbones with the smallest input side each takes.
BACKBONES: dict[str, int] = {
    "resnet18_slim": 32,  # ResNet18 at half width, for a CPU
    "resnet10t": 32,
    "resnet14t": 32,
    "resnet18": 32,
    "resnet34": 32,
    "resnext50_32x4d": 32,
    "inception_resnet_v2": 96,
    "tf_efficientnet_lite0": 32,  # for a CPU, too, with weights of ImageNet (classifiers/imagenet.py)
    "tf_efficientnet_lite2": 32,
}


def build_backbone(backbone: str, outputs: int, drop_rate: float = 0.0) -> nn.Module:
    """A timm network with random weights; `resnet18_slim` is timm's ResNet with a quarter of the weights."""
    import timm

    kwargs: dict[str, Any] = {"num_classes": outputs, "drop_rate": drop_rate}
    if backbone == "resnet18_slim":
        from timm.models.resnet import BasicBlock, ResNet

        return ResNet(
            BasicBlock, (2, 2, 2, 2), channels=(32, 64, 128, 256), stem_type="deep", stem_width=16, **kwargs
        )
    network = timm.create_model(backbone, pretrained=False, **kwargs)
    if backbone.startswith("tf_efficientnet") and outputs:
        # TensorFlow's rule draws the last layer by its few outputs: logits of several units before any step,
        # which would cost a pretrained network what it knows.
        nn.init.normal_(network.get_classifier().weight, std=0.01)
    return network


CLOSED = -1e4  # the logit of a class that no cell taught; float16 holds it

# What a locator may answer, in shares of the crop's side: beyond it the crop shows no single centred cell.
MAX_OFFSET, MIN_SIDE, MAX_SIDE = 0.2, 0.08, 1.1
MIN_VIEW, MAX_VIEW = 0.33, 1.6


class Locator(nn.Module):
    """Where the cell in the middle of a crop lies and how large it is.

    (B, 3, 64, 64) to (B, 3): the centre's offset from the middle in x and y, and the natural logarithm
    of the cell's longer side, all relative to the crop's side.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (3, 16, 32, 48, 64)
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
            if i >= 1:
                layers += [nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(64 * 16, 3)
        nn.init.zeros_(self.head.weight)
        self.head.bias.data = torch.tensor([0.0, 0.0, -0.8])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))

    @torch.inference_mode()
    def aim(self, crop: Tensor, zoom: float) -> tuple[float, float, float]:
        """Of a crop (3, 64, 64): x, y from its middle and the side of the square in which its cell is named,
        `zoom` times the cell's, as shares of the crop's side.  Where no single cell is near, the middle."""
        dx, dy, log_side = self(crop[None])[0].tolist()
        if max(abs(dx), abs(dy)) > MAX_OFFSET:
            dx = dy = 0.0
        cell = np.clip(np.exp(log_side), MIN_SIDE, MAX_SIDE)
        return dx, dy, float(np.clip(zoom * cell, MIN_VIEW, MAX_VIEW))


class Familiarity(nn.Module):
    """How unlike the training cells an embedding is.

    The distance to the nearest class mean in a whitened subspace (Lee et al. 2018, Mahalanobis), the
    distance to the subspace itself, and the logit of "none of these" where the network has one; standardised,
    summed and ranked among validation cells.
    """

    projection: Tensor
    centre: Tensor
    means: Tensor
    standard: Tensor
    weights: Tensor
    ranks: Tensor

    def __init__(self, features: int, classes: int, components: int = 48, ranks: int = 257) -> None:
        super().__init__()
        self.register_buffer("projection", torch.zeros(features, components))
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("means", torch.zeros(classes, components))
        self.register_buffer("standard", torch.tensor([[0.0, 1.0]] * 3))  # mean and sd of each part
        self.register_buffer("weights", torch.tensor([1.0, 0.0, 0.0]))
        self.register_buffer("ranks", torch.linspace(0, 1, ranks))  # ascending scores of validation cells

    def parts(self, embedding: Tensor, none: Tensor) -> Tensor:
        """Standardised parts (N, 3) of the score of embeddings (N, D) and none-logits (N,)."""
        centred = embedding - self.centre
        reduced = centred @ self.projection
        nearest = torch.cdist(reduced, self.means).min(1).values
        length = embedding.norm(dim=1)
        raw = torch.stack([(nearest + 1e-6).log(), -(length + 1e-6).log(), none], 1)
        return (raw - self.standard[:, 0]) / self.standard[:, 1]

    def score(self, embedding: Tensor, none: Tensor) -> Tensor:
        """Raw scores (N,): larger is less familiar."""
        return self.parts(embedding, none) @ self.weights

    def rank(self, score: Tensor) -> Tensor:
        """The share of validation cells that look more familiar, (N,) in [0, 1].

        Beyond the least familiar of them it rises on towards 1, so that order is kept.
        """
        n = len(self.ranks)
        low = torch.searchsorted(self.ranks, score, right=True)
        below, above = self.ranks[(low - 1).clamp(0, n - 1)], self.ranks[low.clamp(0, n - 1)]
        inside = (low - 1 + (score - below) / (above - below).clamp(min=1e-9)).clamp(0, n - 1) / n
        spread = (self.ranks[-1] - self.ranks[n // 2]).clamp(min=1e-6)
        beyond = 1 - torch.exp(-(score - self.ranks[-1]).clamp(min=0) / spread) / n
        return torch.where(low >= n, beyond, inside).clamp(0, 1)


class CellNet(nn.Module):
    """Backbones, locator and familiarity in one state dict, so that a package is one file.

    Of several backbones, trained apart, the embeddings stand end to end and the logits are averaged by
    `weights`: a deep ensemble, which errs less than each on images unlike the training's (Lakshminarayanan et
    al. 2017; Ovadia et al. 2019).  Their outputs are one logit a class and, last, one for "none of these"
    where `none_output` is set.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        locator: bool = True,
        none_output: bool = False,
        components: int = 48,
        drop_rate: float = 0.0,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.classes, self.none_output = classes, none_output
        self.network = build_backbone(backbone, classes + int(none_output), drop_rate)
        self.companions = nn.ModuleList(
            build_backbone(backbone, classes + int(none_output), drop_rate) for _ in weights[1:]
        )
        self.locator = Locator() if locator else None
        self.familiarity = Familiarity(len(weights) * int(self.network.num_features), classes, components)
        self.weights = tuple(weights)

    @property
    def members(self) -> tuple[nn.Module, ...]:
        """The backbones; most networks have one."""
        return self.network, *self.companions

    def embed(self, views: Tensor, *, first_alone: bool = False) -> Tensor:
        """Embeddings (N, D) of normalised views (N, 3, S, S), of all backbones or of the first alone."""
        members = self.members[:1] if first_alone else self.members
        return torch.cat([m.forward_head(m.forward_features(views), pre_logits=True) for m in members], 1)

    def logits(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (N, K) and none-logits (N,) of embeddings, of all backbones or of the first alone.

        None-logits are 0 without such an output.
        """
        parts = embedding.split(int(self.network.num_features), 1)
        each = [m.get_classifier()(part) for m, part in zip(self.members, parts, strict=False)]
        out = self._mean(each)
        if not self.none_output:
            return out, torch.zeros(len(out))
        classes = out[:, : self.classes]
        return classes, out[:, -1] - classes.logsumexp(1)

    def close_outputs(self, classes: Sequence[int]) -> None:
        """Give classes that no cell taught a logit so low that their probability is 0 whatever is seen."""
        self._set_outputs(classes, CLOSED)

    def open_outputs(self, classes: Sequence[int]) -> None:
        """Let closed classes be learned."""
        self._set_outputs(classes, 0.0)

    def _set_outputs(self, classes: Sequence[int], bias: float) -> None:
        with torch.no_grad():
            for member in self.members:
                last = member.get_classifier()
                last.weight[list(classes)] = 0
                last.bias[list(classes)] = bias

    def fine_layers(self, input_px: int, least_px: int = 4) -> tuple[nn.Module, ...]:
        """Of each backbone the deepest stage whose features are still `least_px` wide, for Grad-CAM.

        A deep stage knows the class, a shallow one the edges: of EfficientNet-Lite0 at 128 px the last stage
        (4 px) explains names far better than the one before (8 px).
        """
        stages = [f for f in self.network.feature_info if input_px / f["reduction"] >= least_px]
        return tuple(m.get_submodule(stages[-1]["module"]) for m in self.members)

    def forward(self, views: Tensor) -> Tensor:
        return self._mean([network(views) for network in self.members])

    def _mean(self, outputs: Sequence[Tensor]) -> Tensor:
        """The weighted mean of the backbones' outputs, or of those of the first ones."""
        weights = self.weights[: len(outputs)]
        total = sum(weights)
        return torch.stack([out * (w / total) for out, w in zip(outputs, weights, strict=True)]).sum(0)
