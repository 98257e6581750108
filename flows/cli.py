"""The command line.  Subcommands are imported when called, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import IO, Any

import click

# name: (module, one line for --help); kept as text so that no subcommand is imported to list them.
COMMANDS = {
    "demo": ("demo", "Simulate two cases, run them, and show the way to their reports."),
    "run": ("run", "Process one case folder into a report."),
    "nightly": ("nightly", "Process every case of an inbox."),
    "status": ("status", "List a store's cases: state, what was left out and why, who works on them."),
    "retry": ("retry", "Run a case again, or every case that failed."),
    "report": ("report", "Write a case's report again from what is stored."),
    "review": ("review", "Correct the classes of cells, sign a report, or withdraw it."),
    "export": ("export", "Give a case's report to other systems: FHIR, or CSV."),
    "audit": ("audit", "Show who ran and changed what, and check that the record holds."),
    "simulate": ("simulate", "Write a synthetic case folder with exact truth."),
    "align": ("align", "Align a DIC image to its brightfield partner."),
    "detect": ("detect", "Find leukocytes in images."),
    "segment": ("segment", "Label red cells, cytoplasm and nuclei in images."),
    "classify": ("classify", "Name the cell in each image."),
    "explain": ("explain", "Show which pixels speak for a cell's class."),
    "stain": ("stain", "Stain images virtually."),
    "vtt": ("vtt", "Build and score a Visual Turing Test of virtual images."),
    "train": ("train", "Train a detector, segmenter, stainer or classifier."),
    "evaluate": ("evaluate", "Measure a detector, segmenter, stainer or classifier."),
    "models": ("models", "List the models that can be named, with their cards."),
    "doctor": ("doctor", "Say what is wrong with this installation."),
}


class OneSentence(click.UsageError):
    """A line that click cannot read, said in one sentence as all bad input is; exit status 2."""

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(error.message, error.ctx)
        self.said = " ".join(error.format_message().split()).rstrip(".")

    def show(self, file: IO[Any] | None = None) -> None:
        from flows.console import one_line

        command = self.ctx.command_path if self.ctx else "smearflow"
        click.echo(f"smearflow: {one_line(self.said)}; {command} --help says what it takes.", file, err=True)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn click's own errors of use into one sentence; a bare `smearflow train` still shows its help."""
    try:
        yield
    except (click.exceptions.NoArgsIsHelpError, OneSentence):
        raise
    except click.UsageError as error:
        raise OneSentence(error) from error


class LazyGroup(click.Group):
    """A click group whose commands live in `flows.commands.<module>` and load when asked for."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with one_sentence():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with one_sentence():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"flows.commands.{COMMANDS[cmd_name][0]}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"smearflow {version('smearflow')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
def group() -> None:
    """Digitized blood and marrow smears in, a haematologist's report out.

    For Research Use Only. Not for use in diagnostic procedures.
    """


def main(argv: list[str] | None = None) -> Any:
    """Entry point: bad input is one sentence on stderr and exit status 2.

    So is any other error, with exit status 1; where in the code it happened is told when the environment
    variable SMEARFLOW_DEBUG is set.  A run that SIGTERM ended exits as a shell says it, with 143.
    """
    from flows.stopping import EXIT_STATUS, Stopped
    from pipeline.errors import SmearflowError

    try:
        return group.main(args=argv, prog_name="smearflow", standalone_mode=True)
    except SmearflowError as error:
        from flows.console import one_line

        click.echo(f"smearflow: {one_line(str(error))}", err=True)
        sys.exit(2)
    except Stopped as stopped:
        click.echo(f"smearflow: {stopped}", err=True)
        sys.exit(EXIT_STATUS)
    except Exception as error:  # a defect of ours, or a machine that failed: neither is a page of code
        from flows.console import defect, one_line

        if os.environ.get("SMEARFLOW_DEBUG"):
            traceback.print_exc()
        hint = "" if os.environ.get("SMEARFLOW_DEBUG") else " SMEARFLOW_DEBUG=1 shows where it happened."
        click.echo(f"smearflow: the command could not be ended {one_line(defect(error))}{hint}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
