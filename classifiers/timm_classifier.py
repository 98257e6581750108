"""Cell classifiers on timm backbones, behind the `Classifier` protocol.

The card's `parameters` say everything that the weights do not: `backbone`, `temperature`, `views`,
`zoom`, `view_um`, `nuclear_hue`, `min_confidence`, `locator`, `none_output`, `components`, `member_weights`.
Floating weights may be stored as float16 to keep a package small; they are widened on loading, names and
shapes must fit exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from classifiers.base import AttributionInput, Classified
from classifiers.networks import BACKBONES, CellNet
from classifiers.taxonomy import CELL_TYPES
from classifiers.views import (
    LOCATOR_PX,
    anchored,
    balance,
    crop_square,
    cut_square,
    dihedral,
    field_of_view,
    nuclear_gain,
    white_point,
)
from pipeline.errors import BadInput, BadModelPackage

if TYPE_CHECKING:
    from storage.packages import ModelPackage


class TimmClassifier:
    """Names the cell in the middle of a patch, of any scale and brightfield stain."""

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        net: CellNet,
        *,
        input_px: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        parameters: dict[str, Any],
    ) -> None:
        self.name, self.classes = name, classes
        self.input_px = input_px
        self.temperature = float(parameters.get("temperature", 1.0))
        self.views = int(parameters.get("views", 4))
        self.zoom = float(parameters.get("zoom", 1.7))
        self.view_um = float(parameters.get("view_um", 33.0))
        self.nuclear_hue: float | None = parameters.get("nuclear_hue")
        self.min_confidence = float(parameters.get("min_confidence", 0.5))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._net = net.eval().to(self._device)
        for network in self._net.members:
            network.to(memory_format=torch.channels_last)  # depthwise convolutions take half the time
        self._mean = torch.tensor(mean)[:, None, None]
        self._std = torch.tensor(std)[:, None, None]

    @classmethod
    def from_package(cls, package: ModelPackage) -> TimmClassifier:
        """Build from a package; raises BadModelPackage where card, code and weights do not fit."""
        card = package.card
        backbone = card.parameters.get("backbone")
        if backbone not in BACKBONES:
            raise BadModelPackage(
                f"{package.folder}: backbone '{backbone}' is not supported; known are {', '.join(BACKBONES)}."
            )
        unknown = [c for c in card.classes if c not in CELL_TYPES]
        if unknown or not card.classes:
            raise BadModelPackage(f"{package.folder}: classes {unknown or 'none'} are not canonical names.")
        if card.input_px is None or card.input_px[0] != card.input_px[1]:
            raise BadModelPackage(f"{package.folder}: the card needs a square input_px.")
        if card.input_px[0] < BACKBONES[backbone]:
            raise BadModelPackage(f"{package.folder}: {backbone} needs at least {BACKBONES[backbone]} px.")
        weights = card.parameters.get("member_weights", [1.0])
        if not (isinstance(weights, list) and weights and all(_is_weight(w) for w in weights)):
            raise BadModelPackage(
                f"{package.folder}: member_weights {weights!r} is no list of numbers above nothing; "
                "restore the package or retrain it."
            )
        net = CellNet(
            backbone,
            len(card.classes),
            locator=bool(card.parameters.get("locator", True)),
            none_output=bool(card.parameters.get("none_output", False)),
            components=int(card.parameters.get("components", 48)),
            weights=weights,
        )
        load_strictly(net, package.state_dict(), str(package.folder))
        return cls(
            card.name,
            card.classes,
            net,
            input_px=card.input_px[0],
            mean=card.normalisation.mean,
            std=card.normalisation.std,
            parameters=card.parameters,
        )

    def frame(self, patch: np.ndarray, pixel_size_um: float | None) -> tuple[float, float, float]:
        """Centre x, y and side, in pixels of the patch, of the square in which its cell is named."""
        x, y, side = field_of_view(patch, pixel_size_um, self.view_um)
        if self._net.locator is None:
            return x, y, side
        small = balance(crop_square(patch, x, y, side, LOCATOR_PX), white_point(patch))
        dx, dy, share = self._net.locator.aim(small.to(self._device), self.zoom)
        return x + dx * side, y + dy * side, share * side

    def view(self, patch: np.ndarray, pixel_size_um: float | None) -> torch.Tensor:
        """The view (3, S, S) in [0, 1], light and dye made even, in which a patch's cell is named."""
        return self._seen(patch, self.frame(patch, pixel_size_um))

    def _seen(self, patch: np.ndarray, frame: tuple[float, float, float]) -> torch.Tensor:
        view = balance(crop_square(patch, *frame, self.input_px), white_point(patch))
        return view if self.nuclear_hue is None else anchored(view, 1 / self.zoom, self.nuclear_hue)

    def attribution_input(self, patch: np.ndarray, pixel_size_um: float | None) -> AttributionInput:
        """See `classifiers.base.Explainable`."""
        frame = self.frame(patch, pixel_size_um)
        view = self._seen(patch, frame)

        def probabilities(views: torch.Tensor) -> torch.Tensor:
            copies = torch.cat([dihedral((v - self._mean) / self._std, self.views) for v in views])
            logits, _ = self._net.logits(self._net.embed(copies.to(self._device)))
            mean = logits.unflatten(0, (len(views), self.views)).mean(1)
            return (mean / self.temperature).softmax(1).cpu()

        return AttributionInput(view, frame, probabilities, self._net.fine_layers(self.input_px))

    def embed_views(self, views: torch.Tensor, *, first_alone: bool = False) -> np.ndarray:
        """Embeddings (N, D) of views (N, 3, S, S) in [0, 1], one each, without symmetric copies.

        Of all networks, or of the first alone.
        """
        normalised = ((views - self._mean) / self._std).to(self._device)
        with torch.inference_mode():
            return self._net.embed(normalised, first_alone=first_alone).cpu().numpy()

    def as_judge(self) -> dict[str, Any]:
        """The networks and how they look at images, for losses that ask what they make of them.

        `frame_of` takes an image (H, W, 3) uint8 with its cell near the middle to the square in which it is
        named, `cut` an image (3, H, W) and that square to a view.  `gain_of` is None or takes a
        white-balanced view (3, H, W) to the gains (3,) of its optical densities (`views.nuclear_gain`).
        """
        gain_of = None
        if self.nuclear_hue is not None:
            gain_of = partial(nuclear_gain, cell_share=1 / self.zoom, hue=self.nuclear_hue)
        total = sum(self._net.weights)
        return {
            "network": self._net.network,
            "companions": tuple(self._net.companions),
            "shares": tuple(w / total for w in self._net.weights),
            "input_px": self.input_px,
            "mean": tuple(self._mean.flatten().tolist()),
            "std": tuple(self._std.flatten().tolist()),
            "classes": len(self.classes),
            "gain_of": gain_of,
            "frame_of": partial(self.frame, pixel_size_um=None),
            "cut": partial(cut_square, out_px=self.input_px),
        }

    def bag(self, patches: np.ndarray, pixel_size_um: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) and probabilities (N, K), float32, for patient-level readers.

        One view a cell, not its symmetric copies, by the first network alone: a bag of cells is less in need
        of the last digit, and this is what such readers were trained on.
        """
        views = (self.view(patch, pixel_size_um) for patch in patches)
        embeddings = np.stack([self.embed_views(view[None], first_alone=True)[0] for view in views])
        with torch.inference_mode():
            logits, _ = self._net.logits(torch.from_numpy(embeddings).to(self._device))
            probabilities = (logits.double() / self.temperature).softmax(1)
        return embeddings, probabilities.cpu().numpy().astype(np.float32)

    def embed(
        self, patches: np.ndarray, pixel_size_um: float | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean embedding (N, D), class logits (N, K) and none-logit (N,) over the symmetric views."""
        rows = []
        with torch.inference_mode():
            # One cell is one batch of its own views: neither neighbours nor the batch's size can change it.
            for patch in patches:
                view = (self.view(patch, pixel_size_um) - self._mean) / self._std
                embedding = self._net.embed(dihedral(view, self.views).to(self._device))
                logits, none = self._net.logits(embedding)
                rows.append((embedding.mean(0).cpu(), logits.mean(0).cpu(), none.mean().cpu()))
        embedding, logits, none = (torch.stack(part).numpy() for part in zip(*rows, strict=True))
        return embedding, logits, none

    def classify(self, patches: np.ndarray, pixel_size_um: float | None) -> Classified:
        """See `classifiers.base.Classifier`; raises BadInput for another shape or type."""
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
        if len(patches) == 0:
            return Classified(np.zeros((0, len(self.classes)), np.float32), np.zeros(0, np.float32))
        embedding, logits, none = self.embed(patches, pixel_size_um)
        scaled = logits.astype(np.float64) / self.temperature
        scaled = np.exp(scaled - scaled.max(1, keepdims=True))
        probabilities = (scaled / scaled.sum(1, keepdims=True)).astype(np.float32)
        return Classified(probabilities, self._ranks(embedding, none))

    def _ranks(self, embedding: np.ndarray, none: np.ndarray) -> np.ndarray:
        """Out-of-distribution ranks (N,), one by one: a product of matrices rounds by their size."""
        familiarity = self._net.familiarity
        device = familiarity.centre.device
        with torch.inference_mode():
            rows = zip(torch.from_numpy(embedding).to(device), torch.from_numpy(none).to(device), strict=True)
            score = torch.cat([familiarity.score(e[None], n[None]) for e, n in rows])
            return np.asarray(familiarity.rank(score).cpu().numpy(), np.float32)


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def locator_weights(name: str) -> dict[str, torch.Tensor]:
    """The locator of a classifier's package, or of a folder of `train locator`, to train a network with.

    Raises BadInput where there is none.
    """
    from classifiers.locating import WEIGHTS, read_locator
    from storage.packages import find_package

    package = find_package(name)
    if package is None and (Path(name) / WEIGHTS).is_file():
        return read_locator(Path(name))
    found = None if package is None else own_locator(package)
    if found is None:
        raise BadInput(
            f"{name}: no classifier with a locator, nor a folder of one; `smearflow models` lists the "
            "packages, and `smearflow train locator` makes one."
        )
    return found


def own_locator(package: ModelPackage) -> dict[str, torch.Tensor] | None:
    """The locator's weights of a package; None where it has none."""
    found = package.state_dict().items()
    return {k.removeprefix("locator."): v.float() for k, v in found if k.startswith("locator.")} or None


def go_on_from(net: CellNet, package: ModelPackage, classes: Sequence[str]) -> None:
    """Give backbones with their outputs the weights of a classifier of the same classes, in order.

    Where more are asked for than the package has, its first serves again; a class that it was never shown
    can be learned now.  Raises BadInput for a package of
    another kind or of other classes, BadModelPackage where its weights do not fit.
    """
    card = package.card
    if card.task != "classifier" or tuple(card.classes) != tuple(classes):
        raise BadInput(
            f"{package.folder}: a {card.task} of {', '.join(card.classes) or 'no classes'}; training can go "
            f"on from a classifier of the recipe's classes alone: {', '.join(classes)}."
        )
    weights = package.state_dict()
    for number, network in enumerate(net.members):
        prefix = f"companions.{number - 1}."
        if not any(k.startswith(prefix) for k in weights):
            prefix = "network."
        state = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        load_strictly(network, state, str(package.folder))
    net.open_outputs([i for i, name in enumerate(card.classes) if name not in card.known_classes])


def load_strictly(net: torch.nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load a state dict whose names and shapes are exactly the network's; float16 is widened.

    Raises BadModelPackage naming the first tensor that does not fit.
    """
    own = net.state_dict()
    cure = "restore the package or retrain it."
    for key in sorted(own.keys() ^ state.keys()):
        what = "is missing from the weights" if key in own else "has no place in the architecture"
        raise BadModelPackage(f"{where}: tensor '{key}' {what}; {cure}")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise BadModelPackage(
                f"{where}: tensor '{key}' is {tuple(value.shape)}, needed is {tuple(own[key].shape)}; {cure}"
            )
        if value.is_floating_point() != own[key].is_floating_point():
            raise BadModelPackage(
                f"{where}: tensor '{key}' is {value.dtype}, not {own[key].dtype}; retrain the package."
            )
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=True)


def packed_state(net: CellNet) -> dict[str, torch.Tensor]:
    """The state dict to store: float16 for the backbone's weights, float32 for statistics and the rest."""
    return {
        k: v.half()
        if k.startswith(("network.", "companions.")) and v.is_floating_point() and v.ndim > 1
        else v
        for k, v in net.state_dict().items()
    }
