"""Which pixels of a patch speak for the class that a classifier names: attribution by captum.

Three methods are offered.  Integrated gradients are the default, chosen by two tests that an attribution
must pass (benchmarks/classification_explanations.py): it changes when the network's weights are randomised
(Adebayo et al. 2018), and taking away the pixels that it ranks first lowers the class's probability more
than taking away others (Samek et al. 2017).  Grad-CAM passes them nearly as well at a tenth of the time and
serves where many cells are explained.  What is explained is the calibrated probability that the classifier
reports, over all its symmetric views, not that of a single pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from classifiers.base import AttributionInput, Classifier, Explainable

METHODS = ("occlusion", "integrated-gradients", "grad-cam")
DEFAULT_METHOD = "integrated-gradients"
WINDOW, STRIDE = 0.2, 0.1  # of the view's side
STEPS = 16  # of the path of integrated gradients


@dataclass(frozen=True)
class Explanation:
    """`heat` (H, W) float32 over the patch: how much each pixel speaks for (> 0) or against (< 0) the class.

    Its unit is probability for occlusion (the fall when the pixel's neighbourhood is hidden); the other
    methods have none.  Zero outside the view that the classifier reads.  `probability` is that of `label`
    as reported; `view_px` (x0, y0, x1, y1) the view in pixels of the patch, which may reach beyond it.
    """

    label: str
    probability: float
    method: str
    heat: np.ndarray
    view_px: tuple[float, float, float, float]

    @property
    def share_for(self) -> float:
        """Share of the heat that speaks for the class, 0.5 where for and against balance or all is zero."""
        weight = float(np.abs(self.heat).sum())
        return float(np.maximum(self.heat, 0).sum()) / weight if weight > 0 else 0.5


def explainable(classifier: Classifier) -> Explainable:
    """The classifier, if its probabilities can be attributed to pixels; raises BadInput where not."""
    from classifiers.base import Explainable

    if not isinstance(classifier, Explainable):
        raise BadInput(f"{classifier.name} shows nothing of its inside; explain with another classifier.")
    return classifier


def classes_of(classifier: Classifier, label: str) -> list[int]:
    """The indices of a classifier's classes that a label, perhaps a parent, stands for.

    Raises BadInput where there is none.
    """
    from classifiers.taxonomy import is_a

    chosen = [i for i, name in enumerate(classifier.classes) if is_a(name, label)]
    if not chosen:
        raise BadInput(
            f"'{label}' is no class of {classifier.name}; it names {', '.join(classifier.classes)}."
        )
    return chosen


def explain(
    classifier: Explainable,
    patch: np.ndarray,
    pixel_size_um: float | None,
    label: str | None = None,
    method: str = DEFAULT_METHOD,
) -> Explanation:
    """Attribute the probability of `label` (default: the likeliest class) to the pixels of a patch.

    patch (H, W, 3) uint8, as for `classify`; a label that is a parent stands for all classes below it.
    Raises UnknownName for a method, BadInput for a label that the classifier cannot give.
    """
    if method not in METHODS:
        raise UnknownName("attribution method", method, list(METHODS))
    given = classifier.attribution_input(patch, pixel_size_um)
    with torch.no_grad():
        probabilities = given.probabilities(given.view[None])[0]
    if label is None:
        label = classifier.classes[int(probabilities.argmax())]
    chosen = classes_of(classifier, label)
    heat = attribution(given, chosen, method)
    x, y, side = given.frame
    return Explanation(
        label=label,
        probability=float(probabilities[chosen].sum().clamp(0, 1)),
        method=method,
        heat=_in_patch(heat, given.frame, (patch.shape[0], patch.shape[1])),
        view_px=(x - side / 2, y - side / 2, x + side / 2, y + side / 2),
    )


def attribution(given: AttributionInput, chosen: Sequence[int], method: str) -> Tensor:
    """Heat (S, S) of a view for the summed probability of the classes `chosen`."""
    view = given.view[None]
    glass = _glass(given.view)

    def probability(views: Tensor) -> Tensor:
        return given.probabilities(views)[:, list(chosen)].sum(1)

    if method == "occlusion":
        return _occlusion(probability, view, glass)
    if method == "integrated-gradients":
        return _integrated_gradients(probability, view, glass)
    return _grad_cam(probability, view, given.layers)


def _glass(view: Tensor) -> Tensor:
    """What stands where a pixel is hidden, (3, 1, 1): the background's colour, as bright as the view's is."""
    grey = view.mean(0).flatten()
    bright = grey >= torch.quantile(grey, 0.9)
    return view.flatten(1)[:, bright].median(1).values[:, None, None]


def _occlusion(probability: Callable[[Tensor], Tensor], view: Tensor, glass: Tensor) -> Tensor:
    """Mean fall of the probability over the windows that hide a pixel (Zeiler & Fergus 2014)."""
    from captum.attr import Occlusion

    side = view.shape[-1]
    window, stride = max(2, round(WINDOW * side)), max(1, round(STRIDE * side))
    with torch.no_grad():
        heat = Occlusion(probability).attribute(
            view,
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            baselines=glass[None].expand_as(view),
            perturbations_per_eval=16,
        )
    return heat[0].mean(0).float()


def _integrated_gradients(probability: Callable[[Tensor], Tensor], view: Tensor, glass: Tensor) -> Tensor:
    """Integrated gradients from glass (Sundararajan et al. 2017), summed over colours and smoothed.

    Smoothed, for single pixels' gradients are noise at the scale at which a cell is read.
    """
    from captum.attr import IntegratedGradients

    heat = IntegratedGradients(probability).attribute(
        view, baselines=glass[None].expand_as(view), n_steps=STEPS, internal_batch_size=4
    )
    radius = max(1, round(0.04 * view.shape[-1]))
    size = 2 * radius + 1
    heat = heat.sum(1, keepdim=True).detach().float()
    return F.avg_pool2d(F.avg_pool2d(heat, size, 1, radius), size, 1, radius)[0, 0]


def _grad_cam(
    probability: Callable[[Tensor], Tensor], view: Tensor, layers: Sequence[torch.nn.Module]
) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) on the last fine features, enlarged to the view, networks averaged.

    The symmetric views run as one batch inside the network; their maps are turned back and averaged.
    """
    from captum.attr import LayerGradCam

    heat = []
    for layer in layers:
        maps = LayerGradCam(probability, layer).attribute(view).detach().float()
        maps = F.interpolate(maps, view.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        heat.append(_turned_back(maps).mean(0))
    return torch.stack(heat).mean(0)


def _turned_back(maps: Tensor) -> Tensor:
    """Maps (V, S, S) of the views of `classifiers.views.dihedral`, each as the first view lies."""
    upright = []
    for i, heat in enumerate(maps):
        if i >= 4:
            heat = heat.transpose(0, 1)
        dims = ((), (1,), (0,), (0, 1))[i % 4]
        upright.append(heat.flip(dims) if dims else heat)
    return torch.stack(upright)


def _in_patch(heat: Tensor, frame: tuple[float, float, float], shape: tuple[int, int]) -> np.ndarray:
    """Heat (S, S) of the square `frame` (centre x, y and side, px) as (H, W) of the patch, 0 outside it."""
    x, y, side = frame
    size = max(2, round(side))
    top, left = round(y - size / 2), round(x - size / 2)
    large = F.interpolate(heat[None, None], (size, size), mode="bilinear", align_corners=False)[0, 0].numpy()
    out = np.zeros(shape, np.float32)
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(shape[0], top + size), min(shape[1], left + size)
    out[y0:y1, x0:x1] = large[y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def draw(patch: np.ndarray, found: Explanation, strength: float = 0.65) -> np.ndarray:
    """The patch (H, W, 3) uint8, pale where nothing speaks, orange what speaks for the class, blue against.

    Orange and blue stay apart for colour-blind readers; the scale is the largest heat of the picture.
    """
    grey = patch.mean(2, keepdims=True) * 0.75 + 64
    top = float(np.abs(found.heat).max()) or 1.0
    share = np.clip(np.abs(found.heat) / top, 0, 1)[..., None] ** 0.8 * strength
    colour = np.where(found.heat[..., None] >= 0, (230, 97, 1), (0, 90, 200)).astype(np.float32)
    return (grey * (1 - share) + colour * share).clip(0, 255).astype(np.uint8)
