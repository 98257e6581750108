"""Patient-level classification: from all cells of a case to the pattern that they make together.

Two readers of one bag of cells stand side by side.  The attention reader is gated attention pooling over
cell embeddings (Ilse, Tomczak and Welling, ICML 2018, equations 8 and 9): it may rest its answer on a few
cells, and its attention says which.  The histogram reader sees only the mean class probabilities, as a
differential does; where the two disagree, the cells that attention names are worth a look.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput, BadModelPackage

if TYPE_CHECKING:
    from storage.packages import ModelPackage


@dataclass(frozen=True)
class PatientReading:
    """What a bag of N cells says of its patient.

    probabilities, histogram: (K,) float32 over the patterns, by attention and by the mean class
    probabilities alone; attention: (N,) float32 that sums to 1; votes: (N,) int, the pattern that each
    cell speaks for most; strangeness: how far the median cell lies from those trained on, of which the
    strangest known bag has `strangeness_limit`.  Above it the other answers mean nothing.
    """

    probabilities: np.ndarray
    histogram: np.ndarray
    attention: np.ndarray
    votes: np.ndarray
    strangeness: float
    strangeness_limit: float


@runtime_checkable
class PatientClassifier(Protocol):
    """Names the pattern of a bag of cells, whatever their number and order."""

    name: str
    classes: tuple[str, ...]
    cell_classifier: str  # whose embeddings and probabilities it reads
    cell_classifier_sha256: str

    def read(self, embeddings: np.ndarray, probabilities: np.ndarray) -> PatientReading:
        """Read a bag: embeddings (N, D) float32 and class probabilities (N, C) float32, N of 1 or more."""
        ...


class AttentionPooling(nn.Module):
    """Gated attention over a bag: weights softmax(w . (tanh(V h) * sigmoid(U h))), equation 9."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.weight = nn.Linear(hidden, 1)

    def forward(self, cells: Tensor) -> Tensor:
        """Attention (N,) over cells (N, width)."""
        score = self.weight(torch.tanh(self.value(cells)) * torch.sigmoid(self.gate(cells)))
        return score[:, 0].softmax(0)


class PatientNet(nn.Module):
    """Both readers in one state dict; features are standardised by statistics of the training cells."""

    mean: Tensor
    spread: Tensor
    whitening: Tensor
    strangeness_limit: Tensor

    def __init__(
        self, features: int, cell_classes: int, patterns: int, width: int = 48, hidden: int = 24
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("whitening", torch.eye(features))
        self.register_buffer("strangeness_limit", torch.tensor(torch.inf))
        self.reduce = nn.Sequential(nn.Dropout(0.2), nn.Linear(features, width), nn.ReLU(), nn.Dropout(0.2))
        self.pooling = AttentionPooling(width, hidden)
        self.head = nn.Linear(width, patterns)
        self.histogram = nn.Linear(cell_classes, patterns)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits (K,), attention (N,), logits of each cell alone (N, K)) of a bag (N, D)."""
        cells = self.reduce((embeddings - self.mean) / self.spread)
        attention = self.pooling(cells)
        alone = self.head(cells)
        return (attention[:, None] * alone).sum(0), attention, alone  # the head is linear: sums commute

    def strangeness(self, embeddings: Tensor) -> Tensor:
        """Median over the cells of a bag (N, D) of their Mahalanobis distance to the training cells.

        Divided by the root of D, so that a training cell has about 1 (Lee et al., NeurIPS 2018, equation 2,
        with one class).
        """
        whitened = ((embeddings - self.mean) / self.spread) @ self.whitening.T
        return whitened.square().mean(1).sqrt().median()

    def from_histogram(self, probabilities: Tensor) -> Tensor:
        """Logits (K,) from the mean class probabilities of a bag (N, C), arcsine-square-root scaled."""
        return self.histogram(torch.asin(probabilities.mean(0).clamp(0, 1).sqrt()))


class AttentionReader:
    """A `PatientClassifier` from a package."""

    def __init__(
        self, name: str, classes: tuple[str, ...], net: PatientNet, cell_classifier: str, cell_sha256: str
    ) -> None:
        self.name, self.classes = name, classes
        self.cell_classifier, self.cell_classifier_sha256 = cell_classifier, cell_sha256
        # float64, so that the order of the cells makes no difference to the last shown digit
        self._net = copy.deepcopy(net).double().eval()

    @classmethod
    def from_package(cls, package: ModelPackage) -> AttentionReader:
        """Build from a package; raises BadModelPackage where card and weights do not fit."""
        from classifiers.timm_classifier import load_strictly

        p = package.card.parameters
        try:
            net = PatientNet(
                int(p["features"]), len(p["cell_classes"]), len(package.card.classes),
                width=int(p["width"]), hidden=int(p["hidden"]),
            )  # fmt: skip
            cell, sha256 = str(p["cell_classifier"]), str(p["cell_classifier_sha256"])
        except KeyError as error:
            raise BadModelPackage(
                f"{package.folder}: the card's parameters lack {error}; retrain the package."
            ) from None
        load_strictly(net, package.state_dict(), str(package.folder))
        return cls(package.name, package.card.classes, net, cell, sha256)

    def read(self, embeddings: np.ndarray, probabilities: np.ndarray) -> PatientReading:
        """See `PatientClassifier`; raises BadInput for an empty bag or other widths."""
        features, classes = self._net.mean.shape[0], self._net.histogram.in_features
        n = len(embeddings)
        if n == 0 or embeddings.shape != (n, features) or probabilities.shape != (n, classes):
            raise BadInput(
                f"{self.name} reads bags of at least one cell with embeddings (N, {features}) and "
                f"probabilities (N, {classes}), not {embeddings.shape} and {probabilities.shape}."
            )
        with torch.inference_mode():
            logits, attention, alone = self._net(torch.from_numpy(embeddings).double())
            histogram = self._net.from_histogram(torch.from_numpy(probabilities).double()).softmax(0)
            strangeness = float(self._net.strangeness(torch.from_numpy(embeddings).double()))
        return PatientReading(
            probabilities=logits.softmax(0).numpy().astype(np.float32),
            histogram=histogram.numpy().astype(np.float32),
            attention=attention.numpy().astype(np.float32),
            votes=alone.argmax(1).numpy(),
            strangeness=strangeness,
            strangeness_limit=float(self._net.strangeness_limit),
        )
