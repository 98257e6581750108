"""From a trained generator to a model package: calibrate, measure, write the card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stainers.confidence import NoiseOptions, fit_calibration
from stainers.data import DOMAINS, PIXEL_SIZE_UM, Smear, targets_of
from stainers.evaluation import evaluate_pairs
from stainers.image_errors import image_errors
from stainers.networks import PolarityNet, UNetFilm, count_parameters
from stainers.pair_sources import Pair, calibration_pairs, computed_pairs
from stainers.patch_stainer import to_uint8
from stainers.polarity import polarity_accuracy
from stainers.recipes import Recipe
from stainers.spoiling import spoil_for_calibration
from stainers.unet_film import DicStainer
from storage.packages import ModelPackage, write_package

Array = np.ndarray[Any, Any]

MIN_CONFIDENCE = 0.5  # the calibration puts the 99th percentile of unspoilt validation patches here
TXL_PBC = "TXL-PBC smears (MIT): Raabin, Barcelona and BCCD stained blood fields"
COMPUTED = "their DIC is computed by phantoms.optics with random optics, never photographed"
LIMITS = (
    "Trained on computed DIC alone: never tried on photographed DIC of the same cells.",
    "The colour of the glass and the strength of a stain differ between images of one target and cannot be "
    "seen in DIC; the stainer gives the target's typical look.",
    "Blood only; marrow cells (erythroblasts, immature granulocytes) are hardly in the training data.",
    "Iron, parasites and anything that only a stain shows cannot be drawn from DIC.",
    "Confidence foretells the share of the structure that is not shown, lamp and strength of the stain left "
    "out, which no DIC shows; it was calibrated on computed DIC with rectangles, defocus and brightfield "
    "images as spoilt inputs; other damage may pass.",
)


def calibration_table(
    stainer: DicStainer, pairs: Sequence[Pair], spoilt: bool, seed: int
) -> tuple[Array, Array]:
    """Feature rows (n, k) and true structure errors (n,) of pairs as they are, or spoilt."""
    from stainers.dic_input import to_grey
    from stainers.polarity import find_shear

    rng = np.random.default_rng([seed, 31])
    rows, errors = [], []
    for pair in pairs:
        grey = to_grey(spoil_for_calibration(pair, rng) if spoilt else pair.dic)
        angle = find_shear(stainer.polarity, grey).angle_deg
        stained, _, row = stainer.stain_grey(grey, stainer.target_index(pair.target), angle)
        rows.append(row)
        errors.append(image_errors(to_uint8(stained), pair.stained)["structure_error"])
    return np.stack(rows), np.asarray(errors)


def export_package(
    generator: UNetFilm,
    polarity: PolarityNet,
    smears: Sequence[Smear],
    recipe: Recipe,
    folder: Path,
    *,
    name: str | None = None,
    version: str = "1",
    noise: NoiseOptions | None = None,
    steps_done: int,
    checkpoint: tuple[str, int] | None = None,
    cells_per_domain: int = 40,
    extra_metrics: dict[str, Any] | None = None,
) -> ModelPackage:
    """Calibrate on the validation smears, measure on the test smears, write the package.

    Without a name it is `dic-to-mgg`, or that of the smears' own stains.  `checkpoint` is how the generator's
    was chosen and its step; without it, the last.
    """
    noise, targets = noise or NoiseOptions(), targets_of(smears)
    name = name or ("dic-to-mgg" if targets == DOMAINS else f"dic-to-{'-'.join(targets)}")
    chosen, chosen_step = checkpoint or ("last", steps_done)
    trained_on = str(next(generator.parameters()).device)
    used = sum(s.split == "train" for s in smears)
    given = (
        TXL_PBC if set(targets) <= set(DOMAINS) else f"stained smears of the user's own: {', '.join(targets)}"
    )
    stainer = DicStainer(
        generator.cpu().eval(),
        polarity.cpu().eval(),
        name=name,
        targets=targets,
        noise=noise,
        calibration=None,
        min_confidence=MIN_CONFIDENCE,
    )
    pairs = calibration_pairs(smears, cells_per_domain, recipe.seed)
    clean = calibration_table(stainer, pairs, False, recipe.seed)
    spoilt = calibration_table(stainer, pairs, True, recipe.seed)
    stainer.calibration = fit_calibration(*clean, *spoilt)
    test = [s for s in smears if s.split == "test"]
    metrics = evaluate_pairs(stainer, computed_pairs(test, seed=recipe.seed + 6, limit=cells_per_domain))
    right, asked = polarity_accuracy(polarity, test, 4 * cells_per_domain, recipe.seed + 4)
    metrics["shear_polarity_right"] = [right, asked]
    card = {
        "name": name,
        "version": version,
        "task": "stainer",
        "architecture": recipe.architecture,
        "weights": "safetensors",
        "licence": "AGPL-3.0-or-later",
        "intended_use": "Virtual MGG look of unstained blood cells from DIC, 0.1 µm a pixel. Research only.",
        "modalities": ("dic",),
        "stains": ("unstained",),
        "specimens": ("blood",),
        "pixel_size_um": PIXEL_SIZE_UM,
        "input_px": None,
        "channels": 1,
        "training_data": (f"{given}, {used} images used; {COMPUTED}",),
        "training": {
            "recipe": asdict(recipe),
            "steps_done": steps_done,
            "checkpoint": chosen,
            "checkpoint_step": chosen_step,
            "parameters": count_parameters(generator),
            "split": "by source image, near-duplicates together; 80 / 8 / 12 % train / validation / test",
            "trained_on": trained_on,
        },
        "metrics": {**metrics, **(extra_metrics or {})},
        "limits": LIMITS,
        "parameters": {
            "targets": targets,
            "network": asdict(recipe.network),
            "noise": asdict(noise),
            "confidence": stainer.calibration.to_card(stainer.features),
            "min_confidence": MIN_CONFIDENCE,
        },
    }
    return write_package(folder, card, stainer.state_dict())
