"""Phantom data and reduced recipes of the virtual Perls benchmark; phantoms are drawn, not photographed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from phantoms.stain_patches import paper_patches, patch_case
from stainers.cell_sets import Cells, StainSet
from stainers.recipes import read_recipe

Array = np.ndarray[Any, Any]

CONFIGURATIONS = ("1", "2", "3", "4", "5", "6", "7")  # the columns of table 2
LABELLED = "L"  # configuration 3 whose judges also name the label; not the paper's
FIELD_UM = 12.8  # side of a patch
DRAWN_PX = 96  # all patches are drawn so; discriminators of five layers need as many
USUAL_PX = 64  # what every other configuration is given
TRAIN_SCALE = 0.3  # of the numbers of table 1; the imbalance is the paper's, the test set is whole
VALIDATION_PATIENTS = (10, 11)  # of the twelve training patients
CASES = 20  # unseen cases of 0 to 60 % ring sideroblasts


def side_px(recipe: Any) -> int:
    """The side of a patch that a reduced recipe is trained on; FIELD_UM over it is the pixel size."""
    return int(recipe.draw.crop_px)


def reduced_recipe(name: str, steps: int, width: int = 8) -> Any:
    """The recipe of a column of table 2 at a size that one core allows; what the columns differ in stays."""
    recipe = read_recipe(f"perls-{3 if name == LABELLED else name}")
    px = DRAWN_PX if recipe.discriminator.layers == 5 else USUAL_PX
    levels = 2 if recipe.generator.kind == "resnet" else 5
    run = replace(
        recipe.run,
        steps=steps,
        batch=4,
        learning_rate=1e-3,
        ema=0.98,
        checkpoint_every=20,
        sample_every=100,
        choose_every=max(steps, 1),
    )
    return replace(
        recipe,
        generator=replace(recipe.generator, width=width, levels=levels, residual=True),
        discriminator=replace(recipe.discriminator, width=width),
        losses=replace(recipe.losses, identity=0.0),
        data=replace(recipe.data, size_px=px),
        draw=replace(recipe.draw, crop_px=px, zoom=0.0),
        run=run,
    )


def drawn(stain: Any, split: Any, cache: Path, *, correlate: float = 1.0, scale: float = 1.0) -> Any:
    """{images (N, 96, 96, 3), types (N,), patients (N,)} of a row of table 1; kept in `cache`."""
    path = cache / f"{stain}-{split}-{correlate:g}-{scale:g}.npz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        found = paper_patches(
            stain,
            split,
            correlate=correlate,
            size_px=DRAWN_PX,
            pixel_size_um=FIELD_UM / DRAWN_PX,
            scale=scale,
        )
        draft = path.with_suffix(".tmp.npz")
        np.savez_compressed(draft, images=found.images, types=found.rs_types, patients=found.patients)
        draft.replace(path)
    with np.load(path) as kept:
        return {k: kept[k] for k in ("images", "types", "patients")}


def at_side(images: Array, px: int) -> Array:
    """Patches (N, 96, 96, 3) uint8 at another side, by area."""
    import cv2

    if images.shape[1] == px:
        return images
    return np.stack([cv2.resize(i, (px, px), interpolation=cv2.INTER_AREA) for i in images])


def training_set(cache: Path, px: int, correlate: float = 1.0) -> StainSet:
    """MGG and Perls patches to train on and, of two patients, to choose checkpoints by; unpaired."""
    domains = []
    for stain in ("MGG", "Perls"):
        found = drawn(
            stain, "train", cache, correlate=correlate if stain == "MGG" else 1.0, scale=TRAIN_SCALE
        )
        domains.append(
            Cells(
                stain,
                tuple(at_side(found["images"], px)),
                tuple("positive" if t == 3 else "negative" for t in found["types"]),
                tuple(f"patient-{p}" for p in found["patients"]),
                tuple("validation" if p in VALIDATION_PATIENTS else "train" for p in found["patients"]),
            )
        )
    return StainSet(*domains)


def unseen_cases(cache: Path, correlate: float, n_cells: int, seed: int = 7) -> list[dict[str, Array]]:
    """The 20 unseen cases in MGG, 0 to 60 % rings: {images (n, 64, 64, 3), types (n,)}; kept in `cache`.

    At another strength they are the same cells of the same cases, showing more or less of their type.
    """
    path = cache / f"cases-{correlate:g}-{n_cells}-{seed}.npz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        shares = np.linspace(0, 0.6, CASES)
        made = [
            patch_case(
                i,
                float(s),
                n_cells=n_cells,
                seed=seed,
                correlate=correlate,
                size_px=USUAL_PX,
                pixel_size_um=FIELD_UM / USUAL_PX,
            )
            for i, s in enumerate(shares)
        ]
        draft = path.with_suffix(".tmp.npz")
        np.savez_compressed(
            draft, images=np.stack([c.images for c in made]), types=np.stack([c.rs_types for c in made])
        )
        draft.replace(path)
    with np.load(path) as kept:
        return [{"images": i, "types": t} for i, t in zip(kept["images"], kept["types"], strict=True)]
