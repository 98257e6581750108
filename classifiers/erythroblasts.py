"""Erythroblasts of marrow stained by May-Grünwald-Giemsa, told from every other nucleated cell.

The classifier of blood knows erythroblasts of marrow badly, and a percentage of ring sideroblasts needs a
denominator.  This small network (that of the learned reader of iron) names three things in the 16 µm around a
centre: proerythroblast, later erythroblast, anything else.  It was trained on drawn marrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from classifiers.base import AttributionInput, Classified
from classifiers.sideroblasts_cnn import (
    BOUNDS,
    INPUT_PX,
    PIXEL_SIZE_UM,
    UNITS,
    USUAL_DENSITY,
    IronNet,
    middle,
    view,
)
from classifiers.sideroblasts_stain import glass_colour
from classifiers.timm_classifier import load_strictly
from pipeline.errors import BadInput, BadModelPackage

if TYPE_CHECKING:
    from storage.packages import ModelPackage

CLASSES: tuple[str, ...] = ("proerythroblast", "erythroblast", "other")
USUAL_PATCH_UM = 25.6  # of the shorter side, where a patch comes without its pixel size
RANKS = 101  # percentiles of familiarity that are kept


class ErythroblastClassifier:
    """The network behind the `Classifier` protocol; four turned copies of a patch are averaged."""

    def __init__(
        self,
        name: str,
        net: IronNet,
        familiar: torch.Tensor,
        *,
        temperature: float = 1.0,
        min_confidence: float = 0.5,
    ) -> None:
        self.name, self.classes = name, CLASSES
        self.temperature, self.min_confidence = temperature, min_confidence
        self._familiar = familiar.double().numpy()
        self._net = Turned(net).eval()

    @classmethod
    def from_package(cls, package: ModelPackage) -> ErythroblastClassifier:
        """Load strictly; raises BadModelPackage where card and weights do not fit."""
        card, parameters = package.card, package.card.parameters
        widths = tuple(parameters.get("widths", ()))
        if card.classes != CLASSES or card.input_px != (INPUT_PX, INPUT_PX) or len(widths) != 3:
            raise BadModelPackage(
                f"{package.folder}: an erythroid-net card needs three widths, input_px {INPUT_PX} and the "
                f"classes {', '.join(CLASSES)}."
            )
        state = package.state_dict()
        familiar = state.pop("familiar", None)
        if familiar is None or familiar.shape != (RANKS,):
            raise BadModelPackage(f"{package.folder}: tensor 'familiar' is missing; retrain the package.")
        net = IronNet(widths, len(CLASSES))
        load_strictly(net, state, str(package.folder))
        return cls(
            package.name,
            net,
            familiar,
            temperature=float(parameters.get("temperature", 1.0)),
            min_confidence=float(parameters.get("min_confidence", 0.5)),
        )

    def classify(self, patches: np.ndarray, pixel_size_um: float | None) -> Classified:
        """See `classifiers.base.Classifier`; raises BadInput for another shape or type.

        Without a pixel size the shorter side of a patch is taken for 25.6 µm, the pipeline's patch.
        """
        patches = np.asarray(patches)
        if (
            patches.ndim != 4
            or patches.shape[-1] != 3
            or patches.dtype != np.uint8
            or 0 in patches.shape[1:3]
        ):
            raise BadInput(
                f"{self.name} takes patches (N, H, W, 3) uint8, not {patches.shape} {patches.dtype}."
            )
        logits = (
            np.stack([self._logits(p, pixel_size_um) for p in patches]) if len(patches) else np.zeros((0, 3))
        )
        scaled = logits / self.temperature
        scaled = np.exp(scaled - scaled.max(1, keepdims=True))
        probabilities = (scaled / scaled.sum(1, keepdims=True)).astype(np.float32)
        return Classified(probabilities, unfamiliar(logits, self._familiar))

    def _logits(self, patch: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
        x = torch.from_numpy(view(patch, self._size(patch, pixel_size_um)).transpose(2, 0, 1).copy())
        with torch.inference_mode():  # one patch is one batch: neither neighbours nor its size can change it
            return np.asarray(self._net(x[None])[0].double().numpy())

    def _size(self, patch: np.ndarray, pixel_size_um: float | None) -> float:
        return pixel_size_um or USUAL_PATCH_UM / min(patch.shape[:2])

    def attribution_input(self, patch: np.ndarray, pixel_size_um: float | None) -> AttributionInput:
        """See `classifiers.base.Explainable`."""
        size = self._size(patch, pixel_size_um)
        seen = torch.from_numpy(middle(patch, size).transpose(2, 0, 1).copy()).float() / 255
        glass = torch.from_numpy(np.log10(glass_colour(patch))).float()[:, None, None]

        def probabilities(views: torch.Tensor) -> torch.Tensor:
            density = glass - torch.log10((views * 255).clamp(min=1.0))
            core = density[:, 1, INPUT_PX // 3 : -(INPUT_PX // 3), INPUT_PX // 3 : -(INPUT_PX // 3)]
            unit = (core.flatten(1).quantile(0.5, dim=1) / USUAL_DENSITY).clamp(*UNITS)[:, None, None, None]
            x = (density / (USUAL_DENSITY * unit)).clamp(*BOUNDS)
            return (self._net(x) / self.temperature).softmax(1)

        height, width = patch.shape[:2]
        frame = (width / 2, height / 2, INPUT_PX * PIXEL_SIZE_UM / size)
        return AttributionInput(seen, frame, probabilities, (self._net.network.features[4],))


class Turned(nn.Module):
    """Logits (B, K) of views (B, 3, S, S): the mean over four quarter turns."""

    def __init__(self, network: IronNet) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = torch.cat([torch.rot90(x, k, (2, 3)) for k in range(4)])
        logits = self.network(turned.contiguous(memory_format=torch.channels_last))
        return torch.as_tensor(logits.unflatten(0, (4, len(x))).mean(0))


def energy(logits: np.ndarray) -> np.ndarray:
    """How much the outputs (N, K) speak for any class at all (N,) (Liu et al., NeurIPS 2020)."""
    top = logits.max(1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(1)))


def unfamiliar(logits: np.ndarray, familiar: np.ndarray) -> np.ndarray:
    """Share of validation cells that looked more familiar (N,) float32, from their percentiles (101,)."""
    rank = np.searchsorted(familiar, energy(logits), side="right") / len(familiar)
    return (1.0 - rank).astype(np.float32)
