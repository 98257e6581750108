"""From a trained picture generator to a model package: calibrate the confidence, measure, write the card."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stainers.cell_sets import Cells, resized
from stainers.confidence import NoiseOptions, fit_calibration
from stainers.intervals import interval
from stainers.networks import PolarityNet, count_parameters
from stainers.patch_stainer import to_uint8
from stainers.picture_stainer import DicPictures, PictureStainer, grey_picture
from stainers.reliability import auroc
from stainers.unet_film import DicStainer
from storage.packages import ModelPackage, write_package

Array = np.ndarray[Any, Any]
# RMSE in [0, 1] of a virtual picture: (the cell as it is, what was given of it, what came out)
Error = Callable[[Array, Array, Array], float]

MIN_CONFIDENCE = 0.5  # the calibration puts the 99th percentile of unspoilt patches here
VIEWS = 2  # of each cell, resized a little, for the calibration: there are few cells


@dataclass(frozen=True)
class CardText:
    """What a card says that only the one who trains knows."""

    name: str
    intended_use: str
    training_data: tuple[str, ...]
    limits: tuple[str, ...]
    targets: tuple[str, ...]
    stains: tuple[str, ...] = ("MGG",)
    modalities: tuple[str, ...] = ("brightfield",)
    specimens: tuple[str, ...] = ("blood",)
    pixel_size_um: float | None = None
    version: str = "1"
    error: str = (
        "cycle"  # what the confidence foretells: error of the pair, the cycle or the structure (grey)
    )
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def spoil_picture(picture: Array, rng: np.random.Generator, kind: int | None = None) -> Array:
    """A stained picture with a black square of a fifth of its side, defocused, or without colour."""
    import cv2

    kind = int(rng.integers(3)) if kind is None else kind
    height, width = picture.shape[:2]
    if kind == 0:
        side = max(2, round(0.2 * min(height, width)))
        y, x = (int(rng.uniform(0.2 * n, max(0.8 * n - side, 0.2 * n + 1))) for n in (height, width))
        spoilt = picture.copy()
        spoilt[y : y + side, x : x + side] = 0
        return spoilt
    if kind == 1:
        return cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.025, 0.05)) * min(height, width))
    return np.repeat(grey_picture(picture), 3, axis=2)


SPOILS = ("black_square", "defocus", "no_colour")


def feature_table(
    stainer: PictureStainer, cells: Cells, error: Error, *, spoilt: bool, views: int, seed: int
) -> tuple[Array, Array]:
    """Feature rows (n, k) and errors (n,) of pictures as they are, or spoilt."""
    rng = np.random.default_rng([seed, 77 if spoilt else 78])
    rows, errors = [], []
    for picture in cells.images:
        for view in range(views):
            seen = resized(picture, float(np.exp(rng.uniform(-0.1, 0.1)))) if view else picture
            given = spoil_picture(seen, rng) if spoilt else seen
            stained, _, row = stainer.stain_picture(given, 0)
            rows.append(row)
            errors.append(error(picture, given, to_uint8(stained)))
    return np.stack(rows), np.asarray(errors)


def spoilt_auroc(stainer: PictureStainer, cells: Cells, seed: int) -> dict[str, float]:
    """AUROC of the confidence for each way of spoiling the pictures of `cells`."""
    rng = np.random.default_rng([seed, 79])

    def confidence(pictures: Sequence[Array]) -> Array:
        return stainer.confidence(np.stack([stainer.stain_picture(p, 0)[2] for p in pictures]))

    clean = confidence(cells.images)
    return {
        name: auroc(-clean, -confidence([spoil_picture(p, rng, kind) for p in cells.images]))
        for kind, name in enumerate(SPOILS)
    }


def export_pictures(
    generator: Any,
    recipe: Any,
    text: CardText,
    folder: Path,
    *,
    fit_on: Cells,
    test_on: Cells,
    error: Error,
    scale: float = 1.0,
    given: str = "picture",
    noise: NoiseOptions | None = None,
    seed: int = 0,
    views: int = VIEWS,
) -> ModelPackage:
    """Package of a generator between two stains, whose pictures are at its own scale.

    `error` is what the confidence is to foretell; with `views` above 1 a cell is also given resized.  The
    generator stays where it is: the error of another one's package may ask it.
    """
    noise = noise or NoiseOptions()
    rest: dict[str, Any] = {"name": text.name, "targets": text.targets, "noise": noise}
    stainer = PictureStainer(
        copy.deepcopy(generator).cpu().eval(),
        scale=scale,
        given=given,
        calibration=None,
        min_confidence=MIN_CONFIDENCE,
        **rest,
    )
    tables = [
        feature_table(stainer, fit_on, error, spoilt=spoilt, views=views, seed=seed)
        for spoilt in (False, True)
    ]
    stainer.calibration = fit_calibration(*tables[0], *tables[1])
    _, errors = feature_table(stainer, test_on, error, spoilt=False, views=1, seed=seed)
    metrics = {
        f"{text.error}_rmse": interval(errors, test_on.groups),
        "n": len(test_on),
        "spoilt_auroc": spoilt_auroc(stainer, test_on, seed),
        **text.metrics,
    }
    confidence = stainer.calibration.to_card(stainer.features)
    inputs = {"input": "rgb", "in_channels": 1 if given == "grey" else 3, "scale": scale, "given": given}
    parameters = {"generator": asdict(recipe.generator), **inputs, "noise": asdict(noise)}
    text = replace(text, training={"parameters": count_parameters(generator), **text.training})
    card = _card(recipe, text, metrics, {**parameters, "confidence": confidence}, channels=3)
    return write_package(folder, card, stainer.state_dict())


def export_dic(
    generator: Any,
    polarity: PolarityNet,
    recipe: Any,
    text: CardText,
    folder: Path,
    *,
    validation: Sequence[Any],
    test: Sequence[Any],
    given: str = "picture",
    noise: NoiseOptions | None = None,
    seed: int = 0,
) -> ModelPackage:
    """Package of a generator from DIC; `validation` and `test` are pairs of stainers.pair_sources.Pair."""
    noise = noise or NoiseOptions()
    stainer = DicStainer(
        DicPictures(copy.deepcopy(generator).cpu().eval(), given),
        polarity.cpu().eval(),
        name=text.name,
        targets=text.targets,
        noise=noise,
        calibration=None,
        min_confidence=MIN_CONFIDENCE,
    )
    inputs = {"input": "dic", "in_channels": 1 if given == "grey" else 2, "scale": 1.0, "given": given}
    parameters = {"generator": asdict(recipe.generator), **inputs, "noise": asdict(noise)}
    text = replace(text, training={"parameters": count_parameters(generator), **text.training})
    return export_dic_stainer(
        stainer, recipe, text, folder, parameters, validation=validation, test=test, seed=seed
    )


def export_dic_stainer(
    stainer: DicStainer,
    recipe: Any,
    text: CardText,
    folder: Path,
    parameters: dict[str, Any],
    *,
    validation: Sequence[Any],
    test: Sequence[Any],
    seed: int = 0,
) -> ModelPackage:
    """Calibrate a stainer of DIC, measure it, write its package; `parameters` are those of its builder."""
    from stainers.evaluation import evaluate_pairs
    from stainers.export import calibration_table

    tables = [calibration_table(stainer, validation, spoilt, seed) for spoilt in (False, True)]
    stainer.calibration = fit_calibration(*tables[0], *tables[1])
    metrics = {**evaluate_pairs(stainer, test, spoilt_inputs=False, seed=seed), **text.metrics}
    confidence = stainer.calibration.to_card(stainer.features)
    card = _card(recipe, text, metrics, {**parameters, "confidence": confidence}, channels=1)
    return write_package(folder, card, stainer.state_dict())


def _card(
    recipe: Any, text: CardText, metrics: dict[str, Any], parameters: dict[str, Any], *, channels: int
) -> dict[str, Any]:
    return {
        "name": text.name,
        "version": text.version,
        "task": "stainer",
        "architecture": recipe.architecture,
        "weights": "safetensors",
        "licence": "AGPL-3.0-or-later",
        "intended_use": text.intended_use,
        "modalities": text.modalities,
        "stains": text.stains,
        "specimens": text.specimens,
        "pixel_size_um": text.pixel_size_um,
        "channels": channels,
        "training_data": text.training_data,
        "training": {"recipe": asdict(recipe), **text.training},
        "metrics": metrics,
        "limits": text.limits,
        "parameters": {"targets": text.targets, **parameters, "min_confidence": MIN_CONFIDENCE},
    }
