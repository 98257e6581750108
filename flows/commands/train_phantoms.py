"""`smearflow train perls-finder | perls-reader | marrow-classifier`: on drawn marrows, on no photograph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flows.commands.train_options import done, say
from flows.console import SEEDS, json_option, output_folder


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    recipes = "the recipe's"
    for option in (
        click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the package."),
        click.option(
            "--work",
            type=click.Path(path_type=Path),
            default=None,
            help="Folder that keeps the drawn marrows, for the next training too [OUT.training].",
        ),
        click.option("--steps", type=click.IntRange(1), default=None, show_default=recipes),
        click.option(
            "--marrows",
            type=click.IntRange(2),
            default=None,
            show_default=recipes,
            help="Phantom marrows to learn from; the recipe's to measure on come on top.",
        ),
        click.option("--seed", type=SEEDS, default=0, show_default=True),
        click.option("--resume", is_flag=True, help="Go on from the checkpoint in OUT.training."),
        json_option,
    ):
        function = option(function)
    return function


def _train(
    what: str,
    train: Callable[..., Any],
    recipe: Any,
    *,
    out: Path,
    work: Path | None,
    steps: int | None,
    marrows: int | None,
    seed: int,
    resume: bool,
    as_json: bool,
) -> None:
    import torch

    torch.set_num_threads(1)  # the networks are small, and the sums of one thread are the same everywhere
    given = {k: v for k, v in {"steps": steps, "n_marrows": marrows}.items() if v is not None}

    def trained() -> dict[str, Any]:
        if work is not None:
            output_folder(work)
        package = train(out, work, replace(recipe, **given), seed=seed, resume=resume, report=say)
        return dict(package.card.metrics)

    done(as_json, what, out, trained, package=True)


@click.command(name="perls-finder")
@_options
def perls_finder(**given: Any) -> None:
    """Train the finder of erythroblasts in Perls fields.

    It learns from phantoms only: marrows that are drawn here.  There is no DATA.  The shipped package is
    `train perls-finder --seed 1 --out marrow-perls`.
    """
    from detectors.perls_nuclei_training import NucleiRecipe, train_perls_finder

    _train("perls-finder", train_perls_finder, NucleiRecipe(), **given)


@click.command(name="perls-reader")
@_options
def perls_reader(**given: Any) -> None:
    """Train the second reader of iron, which reads sideroblast types beside the rule.

    It learns from phantoms only: marrows that are drawn here.  There is no DATA.  The shipped package is
    `train perls-reader --seed 1 --out iron-types`.
    """
    from classifiers.sideroblasts_training import ReaderRecipe, train_reader

    _train("perls-reader", train_reader, ReaderRecipe(), **given)


@click.command(name="marrow-classifier")
@_options
def marrow_classifier(**given: Any) -> None:
    """Train the classifier of erythroblasts in MGG marrow.

    It learns from phantoms only: marrows that are drawn here.  There is no DATA.  The shipped package is
    `train marrow-classifier --out marrow-erythroblasts`.
    """
    from classifiers.erythroblasts_training import RECIPE, train_erythroblasts

    _train("marrow-classifier", train_erythroblasts, RECIPE, **given)


PHANTOM_COMMANDS = (perls_finder, perls_reader, marrow_classifier)
