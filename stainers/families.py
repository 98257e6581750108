"""How each architecture is trained: its recipe, and the function that turns a folder into a package.

A new stainer that learns is one entry here and one in `stainers/__init__.py`; the command line, the recipes,
the contract tests and the table over the same pairs (`benchmarks/stain_table.py`) then know it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import UnknownName
from storage.checkpoints import keep_earlier
from storage.packages import check_package_place


@dataclass(frozen=True)
class Family:
    """Where an architecture's code is, as `module:name`; imported when it is asked for.

    recipe: frozen dataclass of everything but the data folder, with defaults.
    train_folder: (data_dir, out_dir, *, recipe, resume, progress) -> metrics; writes `out_dir`/package.
    train_set: (StainSet, out_dir, recipe, *, polarity, resume, stop_at, progress) -> ModelPackage, on a set
    that is in memory; `polarity` is for DIC alone.  "" where the family cannot.
    only_dic: it cannot learn one stain from another.
    """

    recipe: str
    train_folder: str
    train_set: str = ""
    only_dic: bool = False

    def get(self, part: str) -> Any:
        module, name = getattr(self, part).split(":")
        return getattr(importlib.import_module(module), name)


FAMILIES: dict[str, Family] = {
    "multidomain": Family(
        "stainers.multidomain.training:MultiDomainRecipe", "stainers.domain_package:train_folder"
    ),
    "disentangled": Family(
        "stainers.disentangled.training:DisentangledRecipe", "stainers.domain_package:train_folder"
    ),
    "unet-film": Family(
        "stainers.recipes:Recipe",
        "stainers.training:train_stainer",
        "stainers.film_sets:train_set",
        only_dic=True,
    ),
    **{
        name: Family(recipe, "stainers.picture_training:train_folder", "stainers.picture_training:train_set")
        for name, recipe in (
            ("cyclegan", "stainers.cyclegan:CycleGanRecipe"),
            ("pix2pixhd-ac", "stainers.pix2pixhd:Pix2PixHdRecipe"),
            ("colorization", "stainers.colorization:ColorizationRecipe"),
        )
    },
    **{
        name: Family(
            "stainers.normalizer_training:NormalizerRecipe",
            "stainers.normalizer_training:train_folder",
            "stainers.normalizer_training:train_set",
        )
        for name in ("macenko", "reinhard", "landmarks")
    },
}


def family(architecture: str) -> Family:
    """The family of an architecture; raises UnknownName listing those that are trained here."""
    if architecture not in FAMILIES:
        raise UnknownName("trainable stainer", architecture, list(FAMILIES))
    return FAMILIES[architecture]


def train_by_recipe(
    data_dir: Path,
    out_dir: Path,
    recipe: str | Path,
    *,
    steps: int | None = None,
    seed: int | None = None,
    resume: bool = False,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train by a shipped recipe or a recipe file; `steps` and `seed` override it.  Returns the metrics.

    Raises BadInput where `out_dir` holds a checkpoint and `resume` is not asked for, or where a package is to
    be written over something else.
    """
    from stainers.recipes import read_recipe

    plan = with_length(read_recipe(recipe), steps, seed)
    keep_earlier(resume, out_dir / "checkpoint.pt")  # the name that every family gives it
    for name in ("package", "package-backward"):
        check_package_place(out_dir / name)
    trainer = family(plan.architecture).get("train_folder")
    return trainer(data_dir, out_dir, recipe=plan, resume=resume, progress=progress)  # type: ignore[no-any-return]


def with_length(recipe: Any, steps: int | None, seed: int | None) -> Any:
    """The recipe with another number of steps or seed; they stand in it, or in its `run`."""
    given = {k: v for k, v in (("steps", steps), ("seed", seed)) if v is not None}
    if hasattr(recipe, "run"):
        return replace(recipe, run=replace(recipe.run, **given))
    return replace(recipe, **given)
