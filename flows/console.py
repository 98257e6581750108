"""What every subcommand shares: JSON on a clean stdout, progress on stderr, input paths, settings."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import BadInput
from stainers.seeds import LARGEST_SEED
from storage.json_text import json_text

if TYPE_CHECKING:
    from detectors.scale import ScaleEstimate
    from storage.images_info import ImageInfo
    from storage.registry import Task

SEEDS = click.IntRange(0, LARGEST_SEED)
MIN_SIDE_PX = 16  # a nucleus of 5 µm at 0.3 µm a pixel; nothing smaller can be named

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else."
)
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=None,
    help="YAML settings file; see docs/settings.md.",
)


LABELLED_SCALE = (
    "Micrometres a pixel of every image [the file's own, else by its labelled cells, else inferred; said]."
)
MASKED_SCALE = (
    "Micrometres a pixel of every image with a mask [the file's own, else by its red cells, else 32 µm "
    "across; said]."
)


def pixel_size_option(
    text: str = "Micrometres a pixel [from the file, else the scale is taken from the image].",
    name: str = "--pixel-size",
) -> Callable[..., Any]:
    """`--pixel-size UM` or another `name`; a size that no image of a smear can have is refused."""

    def checked(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
        from storage.images_info import check_pixel_size

        return None if value is None else check_pixel_size(name, value)

    return click.option(name, type=float, default=None, callback=checked, help=text)


def not_blank(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The value of an option; BadInput where it is an empty text, which a script's unset variable leaves."""
    if value is not None and not value.strip():
        raise BadInput(f"{parameter.opts[0]}: it is empty; fill it, or leave the option out.")
    return value


store_option = click.option(
    "--store",
    envvar="SMEARFLOW_STORE",
    required=True,
    help="Folder or fsspec URL (s3://…) that holds the results [SMEARFLOW_STORE].",
)


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that fills a store."""
    for option in (
        store_option,
        click.option(
            "--scheduler", default=None, help="Address of a running Dask scheduler, tcp://host:port."
        ),
        click.option(
            "--workers", type=click.IntRange(1), default=None, help="Local worker processes [cores]."
        ),
        config_option,
        json_option,
    ):
        command = option(command)
    return command


@contextlib.contextmanager
def reserved_stdout() -> Iterator[Callable[[Any], None]]:
    """Send everything that anybody prints to stderr; only the yielded function reaches stdout.

    The redirection is on the file descriptor, so that native libraries and child processes obey too.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    document: list[str] = []
    try:
        yield lambda value: document.append(json_text(value))
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        if document:
            print(document[-1], flush=True)


@contextlib.contextmanager
def output(as_json: bool) -> Iterator[Callable[[Any, str], None]]:
    """Yield `show(value, text)`: prints the value as JSON or the text, as the person asked."""
    if as_json:
        with reserved_stdout() as write:
            yield lambda value, _text: write(value)
    else:
        yield lambda _value, text: click.echo(text)


def progress(iterable: Any, *, total: int | None = None, what: str = "") -> Any:
    """A progress bar on stderr, where that is a terminal; of None one to be told by its `update`."""
    from tqdm import tqdm

    return tqdm(iterable, total=total, desc=what, file=sys.stderr, leave=False, mininterval=0.5, disable=None)


def existing(path: str | Path, kind: str = "file") -> Path:
    """The path, or BadInput naming it where it is not there or of the other kind."""
    found = Path(path)
    if not found.exists():
        raise BadInput(f"{path}: there is no such {kind}; check the path.")
    if kind == "file" and found.is_dir():
        raise BadInput(f"{path}: this is a folder; name a file, such as one of those in it.")
    if kind == "folder" and found.is_file():
        raise BadInput(f"{path}: this is a file; name a folder, such as the one that it lies in.")
    if (kind == "file") != found.is_file():
        raise BadInput(f"{path}: this is no {kind} but a device or a pipe; name a {kind}.")
    return found


def read_rgb_or_grey(path: Path, task: Task | None = None, model: str = "") -> Any:
    """Read a brightfield image file as (H, W) or (H, W, 3) uint8, for a model where one is named.

    Raises BadInput for a blank image, and for DIC where the model was not made for it.
    """
    from detectors.contrast import CELL_LEVELS, levels_used
    from detectors.scale import is_surely_dic
    from storage.images import is_blank, is_noise, to_uint8
    from storage.registry import modalities

    pixels, bits = _read_pixels(path)
    image = to_uint8(pixels, at_least_bits=bits)
    # Of 8 bits blank as they are stored: brightened, the last levels of a shut shutter are far apart.
    blank = is_blank(image if pixels.dtype != image.dtype else pixels)
    for shows_none, what in ((blank, "blank"), (is_noise(image), "nothing but noise")):
        if shows_none:
            raise BadInput(f"{path}: the image is {what}; hand in one that shows a cell.")
    made_for = modalities(task, model) if task else ()
    if made_for and "dic" not in made_for and is_surely_dic(pixels):
        raise BadInput(
            f"{path}: it shows no stain, but grey relief as DIC does, and '{model}' was made for "
            f"{' and '.join(made_for)} images; stain it first (smearflow stain), or name another model."
        )
    _say_exposure(path, pixels, bits)
    levels = levels_used(image)
    if levels < CELL_LEVELS:
        say = (
            f"{path}: it has little contrast ({levels:.0f} of 255 levels: haze, a pale stain, a flat camera "
            "curve, or no leukocyte); do not rely on what is found in it."
        )
        click.echo(one_line(say), err=True)
    return image


def read_with_modality(
    path: Path, modality: str | None, *, grey: str | None = None, max_pixels: int | None = None
) -> tuple[Any, str]:
    """Read an image file as uint8 as a run reads its modality, and that modality.

    Brightfield is (H, W) or (H, W, 3), DIC (H, W).  Without a modality it is read from the pixels, before
    they are made 8 bit: the grey levels of DIC are scaled in another way.  Of a grey image that is a guess,
    in whose place `grey` stands where it is known.  More than `max_pixels` [the reader's limit] are refused.
    """
    from detectors.scale import guess_modality, is_guess
    from storage.images import luminance, to_uint8, varies_in_colour

    pixels, bits = _read_pixels(path, max_pixels)
    known = modality or (grey if grey and not varies_in_colour(pixels) else None)
    kind = known or guess_modality(pixels)
    if known is None and is_guess(pixels):
        say = (
            f"{path}: it shows no colours of a stain; taken for {kind} by its grey levels, which can be "
            "wrong: give --modality."
        )
        click.echo(one_line(say), err=True)
    grey_or_rgb = luminance(pixels) if kind == "dic" else pixels
    if kind == "brightfield":
        _say_exposure(path, pixels, bits)
    return to_uint8(grey_or_rgb, modality=kind, at_least_bits=bits), kind


def _say_exposure(path: Path, pixels: Any, bits: int | None) -> None:
    """Say on stderr where a brightfield image uses so little of its camera's range that it is brightened."""
    from storage.images import DIM, exposure

    share = exposure(pixels, bits)
    if share < DIM:
        say = (
            f"{path}: it is underexposed (its brightest parts reach {100 * share:.0f} % of the camera's "
            "range) and is brightened; expose longer, until empty glass is near the top."
        )
        click.echo(one_line(say), err=True)


def _read_pixels(path: Path, max_pixels: int | None = None) -> tuple[Any, int | None]:
    """The pixels of an image file as they are stored, and its camera's bits where it states them.

    BadInput for an image too small to show a cell.
    """
    from storage.images import MAX_PIXELS, read_with_info

    info, image = read_with_info(path, max_pixels=max_pixels or MAX_PIXELS)
    if min(image.shape[:2]) < MIN_SIDE_PX:
        raise BadInput(
            f"{path}: the image has only {image.shape[1]} x {image.shape[0]} pixels; hand in the whole cell "
            "or field."
        )
    return image, info.camera_bits


def stated_pixel_size(path: Path, given: float | None) -> tuple[float | None, str]:
    """The pixel size (µm) that is given, else that of the file, which may have none, and where it is from.

    What the reader notes of the file is said on stderr.
    """
    from storage.images import image_info

    info = image_info(path)
    say_notes(path, info)
    return (info.pixel_size_um, "file") if given is None else (given, "command line")


def say_inferred(path: Path, found: ScaleEstimate) -> None:
    """Say on stderr which pixel size was read from the cells of an image, and whether few of them agree."""
    from detectors.scale import UNSURE

    unsure = "; few cells agree, so make sure that it shows a smear" if found.confidence < UNSURE else ""
    say = f"{path}: no pixel size; {found.pixel_size_um:.3f} µm a pixel inferred ({found.how}){unsure}."
    click.echo(one_line(say), err=True)


def say_notes(path: Path, info: ImageInfo) -> None:
    """What the reader knows of a file that a person should know too, on stderr."""
    for note in info.notes:
        click.echo(one_line(f"{path}: {note}."), err=True)


def unfamiliar(path: Path, ood: float) -> dict[str, Any]:
    """What a result says of its `ood`; said on stderr, too, where it is above the limit of a run's flags."""
    from pipeline.flags_counts import OOD_PERCENTILE

    above = ood > OOD_PERCENTILE
    if above:
        say = (
            f"{path}: it looks unlike the cells that the classifier learned from (ood {ood:.2f}, over "
            f"{OOD_PERCENTILE:g}); do not rely on its class (is it one stained cell, in the middle, of the "
            "right pixel size?)."
        )
        click.echo(one_line(say), err=True)
    return {"ood": round(float(ood), 6), "ood_limit": OOD_PERCENTILE, "above_ood_limit": bool(above)}


def output_folder(out: str | Path, what: str = "output folder") -> Path:
    """Make the output folder, or the store, and try to write there, or say why it cannot be: before any work
    is lost."""
    import tempfile

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: the {what} cannot be made ({error.strerror}); choose another.") from error
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".smearflow-"):
            pass
    except OSError as error:
        raise BadInput(
            f"{out}: nothing can be written into the {what} ({error.strerror}); choose another."
        ) from error
    return folder


FileIds = frozenset[tuple[int, int]]


def file_ids(paths: Iterable[str | Path]) -> FileIds:
    """Device and number of each file that is there: the same by whatever path or link it is reached."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            stat = os.stat(path)
            found.add((stat.st_dev, stat.st_ino))
    return frozenset(found)


def unique_output(folder: Path, source: Path, suffix: str, taken: set[Path], inputs: FileIds) -> Path:
    """`<folder>/<stem><suffix>`, numbered where two inputs share a name, so that none overwrites another.

    Raises BadInput where it is itself one of the `inputs` of the command (`file_ids`).
    """
    candidate = folder / f"{source.stem}{suffix}"
    number = 2
    while candidate in taken:
        candidate = folder / f"{source.stem}-{number}{suffix}"
        number += 1
    if file_ids([candidate]) & inputs:
        raise BadInput(
            f"{source}: what is made of it would be written over {candidate}, an image of this command; name "
            "another folder for the output."
        )
    taken.add(candidate)
    return candidate


def each_image(
    images: tuple[str, ...], what: str, one: Callable[[Path], dict[str, Any]]
) -> tuple[list[Any], list[str]]:
    """Apply `one` to every image; a bad image costs only itself.

    Returns the results and one sentence per image that could not be used.
    """
    from pipeline.errors import SmearflowError

    results: list[Any] = []
    refused: list[str] = []
    for name in progress(images, what=what):
        try:
            results.append(one(existing(name)))
        except SmearflowError as error:
            refused.append(str(error) if str(name) in str(error) else f"{name}: {error}")
        except Exception as error:  # a defect of ours; the other images of the line are still answered
            logging.getLogger("smearflow").debug("%s", name, exc_info=True)
            refused.append(f"{name}: it could not be processed {defect(error)}")
    return results, refused


def defect(error: Exception) -> str:
    """What of an error that nobody foresaw a person may know: its kind, its text, and whose fault it is."""
    detail = " ".join(str(error).split())[:200]
    named = f"({type(error).__name__}: {detail})" if detail else f"({type(error).__name__})"
    if isinstance(error, OSError | MemoryError):
        return f"{named}; the machine refused that: look at its disk, its memory and who may use the file."
    return f"{named}; this is a defect of smearflow, please report it."


def row_text(row: dict[str, Any]) -> str:
    """A row of a night's summary, or of a retry, for a terminal."""
    said = f" ({row['asked']})" if row.get("asked") else ""
    return f"{row['case']:<24} {row['status']:<7} {row.get('error') or row.get('report', '')}{said}"


def one_line(text: str) -> str:
    """A sentence as a terminal may see it: names of files can hold newlines and escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def finish(refused: list[str]) -> None:
    """Print the sentences on stderr and exit with 2 if any input was refused."""
    for sentence in refused:
        click.echo(f"smearflow: {one_line(sentence)}", err=True)
    if refused:
        sys.exit(2)
