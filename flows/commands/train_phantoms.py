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


def _finder() -> tuple[Callable[..., Any], Any]:
    from detectors.perls_nuclei_training import NucleiRecipe, train_perls_finder

    return train_perls_finder, NucleiRecipe()


def _reader() -> tuple[Callable[..., Any], Any]:
    from classifiers.sideroblasts_training import ReaderRecipe, train_reader

    return train_reader, ReaderRecipe()


def _classifier() -> tuple[Callable[..., Any], Any]:
    from classifiers.erythroblasts_training import RECIPE, train_erythroblasts

    return train_erythroblasts, RECIPE


def _command(what: str, model: str, shipped: str, by: Callable[[], tuple[Callable[..., Any], Any]]) -> Any:
    """The command `train WHAT`; `by` gives the trainer and its recipe, imported where they are used."""
    text = f"""Train {model}.

    It learns from phantoms only: marrows that are drawn here.  There is no DATA.  The shipped package is
    `train {what} {shipped}`.
    """

    @click.command(name=what, help=text)
    @_options
    def command(**given: Any) -> None:
        _train(what, *by(), **given)

    return command


PHANTOM_COMMANDS = tuple(
    _command(*one)
    for one in (
        (
            "perls-finder",
            "the finder of erythroblasts in Perls fields",
            "--seed 1 --out marrow-perls",
            _finder,
        ),
        (
            "perls-reader",
            "the second reader of iron, which reads sideroblast types beside the rule",
            "--seed 1 --out iron-types",
            _reader,
        ),
        (
            "marrow-classifier",
            "the classifier of erythroblasts in MGG marrow",
            "--out marrow-erythroblasts",
            _classifier,
        ),
    )
)
