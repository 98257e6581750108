"""What the values of a recipe may be: a range or a choice for every key, and what keys must fit each other.

A key without an entry (a name, a switch) is checked by its type alone.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from pipeline.errors import BadInput
from stainers.seeds import LARGEST_SEED
from storage.limits import COUNT, NUMBER, POSITIVE, SHARE, Limit, Range, check_limit

SEED = Range(0, LARGEST_SEED)
ON_OFF = ("auto", "on", "off")
SPEED: dict[str, Limit] = {"precision": ("auto", "fp32", "bf16", "fp16"), "compile": ON_OFF}
WEIGHTS = {"*": NUMBER}  # of losses: every key of the class

LIMITS: dict[str, dict[str, Limit]] = {
    "RunOptions": {
        "epochs": COUNT,
        "steps": NUMBER,
        "batch": COUNT,
        "learning_rate": POSITIVE,
        "decay_from": SHARE,
        "ema": SHARE,
        "seed": SEED,
        "checkpoint_every": COUNT,
        "sample_every": COUNT,
        "choose_every": NUMBER,
        **SPEED,
    },
    "FitOptions": {"steps": NUMBER, "seed": SEED},
    "DrawOptions": {"pairing": ("paired", "random", "label"), "crop_px": COUNT, "zoom": NUMBER},
    "DataOptions": {
        "kind": ("domains", "computed-dic"),
        "source_scale": POSITIVE,
        "target_scale": POSITIVE,
        "size_px": NUMBER,
        "train_share": SHARE,
        "validation_share": SHARE,
        "split_seed": SEED,
        "limit": NUMBER,
    },
    "GeneratorOptions": {
        "kind": ("resnet", "unet"),
        "width": COUNT,
        "blocks": NUMBER,
        "levels": Range(1, 10),
        "norm": ("pixel", "batch", "instance", "none"),
    },
    "DiscriminatorOptions": {
        "layers": Range(1, 10),
        "width": COUNT,
        "norm": ("spectral", "instance", "none"),
        "scales": Range(1, 10),
    },
    "CycleLosses": WEIGHTS,
    "PairLosses": WEIGHTS,
    "ColourLosses": WEIGHTS,
    "CycleGanRecipe": {"pool": NUMBER},
    "ColorizationRecipe": {"grey_jitter": NUMBER},
    "Recipe": {
        "steps": COUNT,
        "batch": COUNT,
        "learning_rate": POSITIVE,
        "warm_up": NUMBER,
        "weight_decay": NUMBER,
        "ema": SHARE,
        "latent_noise": NUMBER,
        "seed": SEED,
        "checkpoint_every": COUNT,
        "sample_every": COUNT,
        "polarity_steps": COUNT,
        "choose_every": COUNT,
        **SPEED,
    },
    "NetworkRecipe": {"widths": COUNT, "blocks": NUMBER, "embedding": COUNT},
    "LossRecipe": {**WEIGHTS, "adversarial_from": SHARE},
    "PairOptions": {
        "crop_px": COUNT,
        "context_px": COUNT,
        "leukocyte_share": SHARE,
        "shear_jitter_deg": NUMBER,
        "scale_jitter": NUMBER,
        "spoilt_share": SHARE,
        "wide_optics": SHARE,
        "off_centre_px": NUMBER,
        "other_looks": SHARE,
        "pool": NUMBER,
    },
    "MultiDomainNetwork": {"*": COUNT, "blocks": NUMBER, "judge_layers": Range(1, 10)},
    "MultiDomainLosses": WEIGHTS,
    "Phases": {"first": SHARE, "second": SHARE, "first_rate": NUMBER, "critic_steps": COUNT},
    "DomainOptions": {
        "cells": COUNT,
        "context_px": COUNT,
        "crop_px": COUNT,
        "pairs_known": SHARE,
        "paired_share": SHARE,
        "rare_share": SHARE,
    },
    "DisentangledNetwork": {"*": COUNT, "blocks": NUMBER, "judge_layers": Range(1, 10)},
    "DisentangledLosses": WEIGHTS,
    "DisentangledRecipe": {"settle_from": SHARE},
}


def limit_of(kind: str, key: str) -> Limit | None:
    """The limit of a key of a recipe's dataclass, by the names of both; None where its type says enough."""
    limits = LIMITS.get(kind, {})
    return limits.get(key, limits.get("*"))


def check_value(kind: str, key: str, value: Any, where: str) -> None:
    """Raise BadInput, beginning with `where`, unless a value, or each of a tuple, is within its limit."""
    check_limit(limit_of(kind, key), key, value, where)


def check_together(recipe: Any, where: str) -> None:
    """Raise BadInput, beginning with `where`, where the keys of a recipe are each right, but not together."""
    parts = {f.name: getattr(recipe, f.name) for f in fields(recipe) if is_dataclass(getattr(recipe, f.name))}
    for name, part in parts.items():
        if hasattr(part, "context_px") and part.crop_px > part.context_px:
            raise BadInput(
                f"{where}: {name}: 'crop_px' {part.crop_px} is more than 'context_px' {part.context_px}, of "
                "which it is cut; lower it."
            )
        if hasattr(part, "train_share") and part.train_share + part.validation_share >= 1:
            raise BadInput(
                f"{where}: {name}: 'train_share' and 'validation_share' must leave cells to test on; lower "
                "them to a sum below 1."
            )
        if hasattr(part, "widths") and not len(part.widths) == len(part.blocks) == 4:
            raise BadInput(f"{where}: {name}: 'widths' and 'blocks' must be four numbers each.")
    crops = [(n, p.crop_px) for n, p in parts.items() if hasattr(p, "crop_px")]
    for name, crop in crops:
        multiple, least = _grid(parts)
        if crop % multiple or crop < least:
            raise BadInput(
                f"{where}: {name}: 'crop_px' must be a multiple of {multiple} and {least} or more for these "
                f"networks, not {crop}."
            )


def _grid(parts: dict[str, Any]) -> tuple[int, int]:
    """Of which number a side must be a multiple, and the least that every network of a recipe can read."""
    if "network" in parts:
        return 16, 16
    generator = parts["generator"]
    if "discriminator" in parts:
        multiple = 2**generator.levels
        return multiple, max(multiple, parts["discriminator"].smallest_px())
    return 8, max(8, 2**generator.judge_layers)
