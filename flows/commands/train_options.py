"""What the commands of `smearflow train` share: arguments, lines of progress on stderr, the answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flows.console import SEEDS, json_option, output, output_folder

SEED = 20261121


def options(
    *, epochs: int | None, unit: str = "epochs", seed: int | None = SEED
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The arguments that every trainer shares; a length or a seed of None is the recipe's own."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.argument("data", type=click.Path(path_type=Path)),
            click.option(
                "--out", required=True, type=click.Path(path_type=Path), help="Folder of the package."
            ),
            click.option(
                f"--{unit}",
                "length",
                type=click.IntRange(1),
                default=epochs,
                show_default=epochs is not None or "the recipe's",
            ),
            click.option("--seed", type=SEEDS, default=seed, show_default=seed is not None or "the recipe's"),
            click.option("--resume", is_flag=True, help="Go on from the last checkpoint in OUT."),
            json_option,
        ):
            function = option(function)
        return function

    return add


def say(text: Any, **_print_options: Any) -> None:
    """Stands in for `print` where a trainer reports: stdout belongs to the JSON."""
    click.echo(str(text), err=True)


def steps(step: int, total: int, losses: dict[str, float]) -> None:
    if step % 50 == 0 or step == total:
        say(f"step {step}/{total} " + " ".join(f"{k} {v:.4g}" for k, v in losses.items()))


def done(
    as_json: bool, what: str, out: Path, train: Callable[[], dict[str, Any]], *, package: bool = False
) -> None:
    """Train and say so; `package`: OUT is the package itself, and may hold nothing else, not a run folder."""
    from storage.packages import check_package_place, package_in

    with output(as_json) as show:
        if package:
            check_package_place(out)
        output_folder(out)
        metrics = train()
        place = package_in(out)  # a backbone is none
        show(
            {
                "model": what,
                "out": str(out),
                "package": None if place is None else str(place),
                "metrics": metrics,
            },
            f"{what} written to {place or out}",
        )
