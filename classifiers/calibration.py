"""What makes probabilities and doubt honest, fitted on held-out cells, and the finished package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from classifiers.metrics import auroc, fit_temperature, summary
from classifiers.networks import CellNet, Familiarity
from classifiers.sources import Sample, level_classes, to_level
from classifiers.tallies import NONE, role_of
from classifiers.timm_classifier import TimmClassifier, packed_state
from classifiers.views import reflected
from pipeline.errors import BadInput
from storage.images import read_rgb

if TYPE_CHECKING:
    from classifiers.cell_set import CellSet
    from classifiers.recipes import Recipe

# Distance to the classes counts fully; a short embedding and the trained "none" add to it.  Fixed, not
# fitted: the kinds of outliers at hand are not the kinds that will come.
WEIGHTS = (1.0, 0.3, 0.5)
SHRINKAGE = 0.1
UNKNOWN = ("unknown",)  # stain or specimen of cells of which nobody has stated it


def patch_of(sample: Sample, image: np.ndarray) -> np.ndarray:
    """The patch in which a sample's cell would be classified: a crop as it is, or cut out of a field.

    About 25 µm, as the patches of a case: twice a leukocyte, and four times what `sources` gives a platelet.
    """
    if sample.is_crop or sample.side is None or sample.x is None or sample.y is None:
        return image
    size = max(8, round((4.0 if sample.label == "platelet" else 2.2) * sample.side))
    rows = reflected(round(sample.y - size / 2), size, image.shape[0])
    columns = reflected(round(sample.x - size / 2), size, image.shape[1])
    return image[rows[:, None], columns[None, :]]


def embed_samples(
    classifier: TimmClassifier, samples: Sequence[Sample], level: str | tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (N, D), logits (N, K), none-logits (N,), labels (N,), -1 for none, as at inference."""
    parts = []
    labels = []
    for sample in samples:
        label = role_of(sample.label, level)
        if label is None:
            continue
        patch = patch_of(sample, read_rgb(sample.path))
        parts.append(classifier.embed(patch[None], None))
        labels.append(-1 if label == NONE else classifier.classes.index(label))
    embedding, logits, none = (np.concatenate(p) for p in zip(*parts, strict=True))
    return embedding, logits, none, np.array(labels)


def fit_familiarity(
    familiarity: Familiarity,
    train: tuple[np.ndarray, np.ndarray],
    held: tuple[np.ndarray, np.ndarray],
) -> None:
    """Set the buffers from training embeddings (N, D) and labels, ranks from held-out embeddings and none.

    The subspace is that of the pooled within-class covariance and the class means, shrunk towards a
    multiple of identity, so that directions with little variance are not over-trusted.
    """
    embedding, labels = train
    known = labels >= 0
    embedding, labels = embedding[known].astype(np.float64), labels[known]
    features, components = familiarity.projection.shape
    centre = embedding.mean(0)
    means = np.stack(
        [
            embedding[labels == k].mean(0) if (labels == k).any() else centre
            for k in range(len(familiarity.means))
        ]
    )
    # A class that no cell taught is near nothing: its place is that of one that is there.
    means[np.setdiff1d(np.arange(len(means)), labels)] = means[labels[0]]
    within = embedding - means[labels]
    covariance = within.T @ within / max(1, len(within) - len(means))
    covariance += SHRINKAGE * np.trace(covariance) / features * np.eye(features) + 1e-9 * np.eye(features)
    values, vectors = np.linalg.eigh(covariance)
    white = vectors / np.sqrt(values)
    # Of the whitened directions, those in which cells, whatever their class, vary most.
    spread = ((embedding - centre) @ white).var(0)
    chosen = np.argsort(spread)[::-1][:components]
    projection = np.zeros((features, components))
    projection[:, : len(chosen)] = white[:, chosen]
    to = {"dtype": familiarity.projection.dtype}
    familiarity.projection.copy_(torch.tensor(projection, **to))
    familiarity.centre.copy_(torch.tensor(centre, **to))
    familiarity.means.copy_(torch.tensor((means - centre) @ projection, **to))
    familiarity.standard.copy_(torch.tensor([[0.0, 1.0]] * 3))
    e, none = torch.tensor(held[0], **to), torch.tensor(held[1], **to)
    raw = familiarity.parts(e, none)
    sd = raw.std(0, correction=0)
    familiarity.standard.copy_(torch.stack([raw.mean(0), torch.where(sd > 1e-6, sd, 1.0)], 1))
    familiarity.weights.copy_(torch.tensor(WEIGHTS))
    scores = familiarity.score(e, none).double().numpy()
    quantiles = np.quantile(scores, np.linspace(0, 1, len(familiarity.ranks)))
    familiarity.ranks.copy_(torch.tensor(quantiles, **to))


def confidence_threshold(confidence: np.ndarray, right: np.ndarray, least: int = 10) -> float:
    """The largest confidence in [0.3, 0.9] below which at most half of the held-out cells are named right.

    A cell below it is in doubt.  Fewer than `least` cells below it prove nothing; 0.5 where none does.
    """
    for threshold in np.arange(0.9, 0.295, -0.01):
        below = confidence < threshold
        if below.sum() >= least and right[below].mean() <= 0.5:
            return float(round(threshold, 2))
    return 0.5


def require_held_out(held: Sequence[Sample], recipe: Recipe) -> None:
    """Raise BadInput where nothing is held out that temperature, doubt and familiarity can be fitted on."""
    classes = level_classes(recipe.level)
    if not any(to_level(s.label, recipe.level) in classes for s in held):
        raise BadInput(
            f"no cell of a class ({', '.join(classes)}) could be held out to calibrate on: each class has "
            "one image (or one patient) alone; give more labelled images, or of more patients."
        )


def finish_package(
    net: CellNet,
    cells: CellSet,
    held: Sequence[Sample],
    recipe: Recipe,
    out_dir: Path,
    name: str,
    training: dict[str, Any],
    card: dict[str, Any],
) -> dict[str, Any]:
    """Calibrate on held-out samples and write the package; returns the metrics on its card.

    A class without a cell in `cells` is marked on the card, and never named.  Raises BadInput where no
    held-out sample is of a class.
    """
    from classifiers.cell_set import MEAN, STD
    from storage.packages import UNTRAINED, write_package

    require_held_out(held, recipe)
    classes = level_classes(recipe.level)
    untrained = sorted(set(range(len(classes))) - set(cells.labels.tolist()))
    net.close_outputs(untrained)
    # Measured is what is stored: float16 weights, widened again.
    net.load_state_dict({k: v.to(net.state_dict()[k].dtype) for k, v in packed_state(net).items()})
    parameters: dict[str, Any] = {
        "backbone": recipe.backbone,
        "zoom": recipe.zoom,
        "views": recipe.views,
        "view_um": 33.0,
        "nuclear_hue": recipe.nuclear_hue,
        "locator": net.locator is not None,
        "none_output": net.none_output,
        "components": net.familiarity.projection.shape[1],
        "member_weights": list(net.weights),
        "level": recipe.level if isinstance(recipe.level, str) else list(recipe.level),
        UNTRAINED: [classes[k] for k in untrained],
    }
    classifier = TimmClassifier(
        name, classes, net, input_px=recipe.input_px, mean=MEAN, std=STD, parameters=parameters
    )
    train = embed_cached(classifier, cells)
    metrics: dict[str, Any] = {
        "measured_on": "groups held out of training, on which temperature, threshold of doubt and "
        "familiarity were fitted: accuracy is of unseen cells, calibration of those that it was fitted on"
    }
    embedding, logits, none, labels = embed_samples(classifier, held, recipe.level)
    known = labels >= 0
    sources = np.array([s.source for s in held if role_of(s.label, recipe.level) is not None])
    # Every source counts alike, so that the many easy cells of one do not make the rest overconfident.
    names, which, counts = np.unique(sources[known], return_inverse=True, return_counts=True)
    temperature = fit_temperature(logits[known].astype(np.float64), labels[known], 1 / counts[which])
    scaled = logits[known] / temperature
    p = np.exp(scaled - scaled.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    right = p.argmax(1) == labels[known]
    parameters["temperature"] = temperature
    parameters["min_confidence"] = confidence_threshold(p.max(1), right)
    fit_familiarity(net.familiarity, train, (embedding[known], none[known]))
    with torch.inference_mode():
        score = net.familiarity.score(torch.tensor(embedding), torch.tensor(none)).numpy()
    metrics["all"] = summary(labels[known], p, classes)
    metrics["ood_auroc_red_cells_and_debris"] = auroc(score[known], score[~known])
    for source in names.tolist():
        mine = sources[known] == source
        if mine.any():
            metrics[source] = summary(labels[known][mine], p[mine], classes)
    full = {
        "name": name,
        "version": "0.1.0",
        "task": "classifier",
        "architecture": "timm",
        "weights": "safetensors",
        "licence": "AGPL-3.0-or-later",
        "intended_use": f"Research: naming single cells in {recipe.modality} images of smears.",
        "modalities": (recipe.modality,),
        "stains": UNKNOWN,
        "specimens": UNKNOWN,
        "pixel_size_um": None,
        "input_px": (recipe.input_px, recipe.input_px),
        "channels": 3,
        "classes": classes,
        "normalisation": {"mean": MEAN, "std": STD},
        "training_data": ("labelled cells given by the user",),
        "training": training,
        "metrics": metrics,
        "limits": ("Other specimens, stains and classes than those of its training were never tried.",),
        **card,
        "parameters": {**parameters, **card.get("parameters", {})},
    }
    write_package(out_dir, full, packed_state(net))
    return metrics


def embed_cached(classifier: TimmClassifier, cells: CellSet) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) of cached cells in their normal view, and their labels."""
    from classifiers.augment import Augmentation, geometry

    generator = torch.Generator().manual_seed(0)
    out = []
    with torch.inference_mode():
        for start in range(0, len(cells.labels), 32):
            x = cells.images[start : start + 32].float() / 255
            view = cells.view[start : start + 32].float()
            x = geometry(x, classifier.input_px, view, Augmentation.none(), generator)
            out.append(classifier.embed_views(x))
    return np.concatenate(out), cells.labels.numpy()
