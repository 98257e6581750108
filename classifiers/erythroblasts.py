"""Erythroblasts of marrow stained by May-Grünwald-Giemsa, told from every other nucleated cell.

The classifier of blood knows erythroblasts of marrow badly, and a percentage of ring sideroblasts needs a
denominator.  This small network (that of the learned reader of iron) names three things in the 16 µm around a
centre: proerythroblast, later erythroblast, anything else.  It was trained on drawn marrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from classifiers.base import Classified
from classifiers.sideroblasts_cnn import INPUT_PX, IronNet, view
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
        self._net = net.eval().to(memory_format=torch.channels_last)

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
        size = pixel_size_um or USUAL_PATCH_UM / min(patch.shape[:2])
        x = torch.from_numpy(view(patch, size).transpose(2, 0, 1).copy())
        # One patch is one batch, so that neither neighbours nor the batch's size can change it.
        turned = torch.stack([torch.rot90(x, k, (1, 2)) for k in range(4)])
        with torch.inference_mode():
            return self._net(turned.contiguous(memory_format=torch.channels_last)).double().mean(0).numpy()


def energy(logits: np.ndarray) -> np.ndarray:
    """How much the outputs (N, K) speak for any class at all (N,) (Liu et al., NeurIPS 2020)."""
    top = logits.max(1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(1)))


def unfamiliar(logits: np.ndarray, familiar: np.ndarray) -> np.ndarray:
    """Share of validation cells that looked more familiar (N,) float32, from their percentiles (101,)."""
    rank = np.searchsorted(familiar, energy(logits), side="right") / len(familiar)
    return (1.0 - rank).astype(np.float32)
