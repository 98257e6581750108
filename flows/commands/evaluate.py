"""`smearflow evaluate detector | segmenter | stainer | classifier`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from flows.console import (
    LABELLED_SCALE,
    MASKED_SCALE,
    existing,
    json_option,
    one_line,
    output,
    output_folder,
    pixel_size_option,
)
from storage.json_text import json_text


@click.group(name="evaluate")
def command() -> None:
    """Measure a model on labelled images; figures as JSON, curves and errors as pictures."""


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that every evaluation shares."""
    for option in (
        click.argument("data", type=click.Path(path_type=Path)),
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), help="Folder for figures and pictures."
        ),
        click.option("--model", default=None, help="[the settings' choice]"),
        json_option,
    ):
        function = option(function)
    return function


def _done(as_json: bool, data: Path, out: Path, evaluate: Callable[[], dict[str, Any]]) -> None:
    existing(data, "folder")
    with output(as_json) as show:
        output_folder(out)
        figures = evaluate()
        show(figures, json_text(figures) + f"\npictures in {out}")


@command.command(name="detector")
@click.option(
    "--modality", type=click.Choice(["brightfield", "dic"]), default="brightfield", show_default=True
)
@click.option(
    "--held-out",
    is_flag=True,
    help="DATA holds images that the model was trained on: measure only those that its training never saw.",
)
@pixel_size_option(LABELLED_SCALE)
@options
def detector(
    data: Path,
    out: Path,
    model: str | None,
    as_json: bool,
    modality: str,
    held_out: bool,
    pixel_size: float | None,
) -> None:
    """AP50, AP50-95, precision and recall on a YOLO-format folder.

    With --modality dic the brightfield images of the folder are turned into DIC by the optical model: what
    is measured then is computed DIC.
    """
    from detectors.datasets import read_yolo_folder
    from detectors.evaluation import evaluate_detector
    from detectors.parts import n_without_label_file, unseen
    from detectors.training import dic_look
    from pipeline.settings import Settings, detection_threshold
    from storage.packages import find_package
    from storage.registry import load

    settings = Settings().detection
    name = model or (settings.dic_detector if modality == "dic" else settings.brightfield_detector)

    def evaluate() -> dict[str, Any]:
        samples = read_yolo_folder(data, pixel_size)
        if bare := n_without_label_file(samples):
            count = f"{bare} of {len(samples)} images have no label file and count"
            click.echo(f"{data}: {count} as images without cells.", err=True)
        if held_out:
            samples = unseen(find_package(name), name, data, samples)
        return evaluate_detector(
            load("detector", name),
            samples,
            out,
            threshold=detection_threshold(settings, modality),
            look=dic_look if modality == "dic" else None,
            part="images that the training never saw" if held_out else "all images",
        )

    _done(as_json, data, out, evaluate)


@command.command(name="segmenter")
@click.option(
    "--held-out",
    is_flag=True,
    help="DATA is the folder that the model was trained on: measure only the part it never saw.",
)
@pixel_size_option(MASKED_SCALE)
@options
def segmenter(
    data: Path, out: Path, model: str | None, as_json: bool, held_out: bool, pixel_size: float | None
) -> None:
    """Dice of nucleus and whole cell on images with masks."""
    from detectors.segment_evaluation import evaluate_segmenter
    from pipeline.settings import Settings
    from storage.packages import find_package
    from storage.registry import load

    name = model or Settings().classification.segmenter
    package = find_package(name)
    training = {} if package is None else package.card.training
    _done(
        as_json,
        data,
        out,
        lambda: evaluate_segmenter(
            load("segmenter", name), data, out, training if held_out else None, pixel_size_um=pixel_size
        ),
    )


def _known_classes(name: str) -> tuple[str, ...]:
    """The classes that cells taught a classifier, by its card; of one without weights, those that it has."""
    from storage.packages import ModelPackage
    from storage.registry import describe, load

    found = describe("classifier", name)
    if isinstance(found, ModelPackage):
        return found.card.known_classes
    return tuple(load("classifier", name).classes)


@command.command(name="stainer")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--pairs", type=click.Path(path_type=Path), help="The same as DATA, by its name.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for figures and pictures."
)
@click.option("--model", default=None, help="[the settings' choice]")
@click.option("--target", default=None, help="Stain of pairs that do not name theirs [the stainer's first].")
@click.option(
    "--limit", type=click.IntRange(0), default=60, show_default=True, help="Pairs a target; 0 for all."
)
@click.option(
    "--imagenet-weights",
    type=click.Path(path_type=Path),
    help="Folder with the weights that define LPIPS and FID [torch's cache].",
)
@json_option
def stainer(
    data: Path | None,
    pairs: Path | None,
    out: Path,
    model: str | None,
    target: str | None,
    limit: int,
    imagenet_weights: Path | None,
    as_json: bool,
) -> None:
    """Virtual against real stain: errors, confidence, and whether judges of real stain agree.

    DATA is a folder with dic/ and stained/ (files of the same name), a pairs.csv, a case folder with a known
    matrix, or a folder of stained smears, of which the DIC is computed; docs/stain-evaluation.md says more.
    """
    from classifiers.evaluation import expected_class
    from flows.naming import made_for
    from pipeline.errors import BadInput
    from pipeline.settings import Settings
    from stainers.folder_evaluation import evaluate_stainer
    from storage.packages import find_package
    from storage.registry import load, modalities

    if (data is None) == (pairs is None):
        raise BadInput("name the pairs once: evaluate stainer DATA, or evaluate stainer --pairs DATA.")
    place = data or pairs
    assert place is not None
    existing(place, "file" if place.suffix == ".csv" else "folder")
    if imagenet_weights is not None:
        existing(imagenet_weights, "folder")
    settings = Settings()
    with output(as_json) as show:
        output_folder(out)
        judges = settings.classification
        name, own = model or settings.staining.dic_stainer, judges.virtual_classifier
        judge = find_package(judges.classifier)
        painter = load("stainer", name)
        figures = evaluate_stainer(
            painter,
            place,
            out,
            target=target,
            limit=limit,
            classifier=load("classifier", judges.classifier),
            virtual_classifier=load("classifier", own) if own is not None and made_for(own, name) else None,
            expects=partial(expected_class, known_classes=_known_classes(judges.classifier)),
            virtual_expects=partial(expected_class, known_classes=_known_classes(own or judges.classifier)),
            segmenter=load("segmenter", judges.segmenter),
            named_by=None if judge is None else f"{judge.card.name} {judge.card.version}",
            modalities=modalities("stainer", name) or None,
            weights_dir=imagenet_weights,
        )
        _say_target(place, figures, list(painter.targets))
        show(figures, json_text(figures) + f"\npictures in {out}")


def _say_target(place: Path, figures: dict[str, Any], targets: list[str]) -> None:
    """Where nobody said which of a stainer's targets the pairs are of: which was painted, on stderr."""
    from stainers.pair_sources import BY_CLASSIFIER, BY_DEFAULT

    if figures.get("target_from") == BY_CLASSIFIER:
        sure = ", ".join(f"{look} {value:.2f}" for look, value in figures["target_confidence"].items())
        painted = next(iter(figures["per_target"]))
        say = (
            f"{place}: the pairs do not name their stain; '{painted}' was painted, of which {BY_CLASSIFIER} "
            f"is surest ({sure}); --target names another."
        )
        click.echo(one_line(say), err=True)
    if figures.get("target_from") != BY_DEFAULT or len(targets) < 2:
        return
    say = (
        f"{place}: the pairs do not name their stain; '{targets[0]}' was painted, {BY_DEFAULT} target, and "
        f"the errors are too large where they are of another; give --target ({', '.join(targets)})."
    )
    click.echo(one_line(say), err=True)


@command.command(name="classifier")
@click.option("--reader", default="folders", show_default=True, help="How DATA is laid out.")
@click.option(
    "--held-out",
    is_flag=True,
    help="DATA is the folder that the model was trained on: measure only the part it never saw.",
)
@pixel_size_option(
    "Micrometres a pixel of every image [the reader's, else the scale is taken from each image]."
)
@options
def classifier(
    data: Path,
    out: Path,
    model: str | None,
    as_json: bool,
    reader: str,
    held_out: bool,
    pixel_size: float | None,
) -> None:
    """Top-1, macro-F1, per-class precision and recall with intervals, AUC, calibration, confusion matrix."""
    from classifiers.evaluation import evaluate_classifier, held_out_samples
    from classifiers.readers import read_cells, reader_of
    from pipeline.settings import Settings
    from storage.registry import load

    name = model or Settings().classification.classifier
    size = pixel_size or reader_of(reader).pixel_size_um

    def evaluate() -> dict[str, Any]:
        samples = read_cells(data, reader)
        if held_out:
            samples = held_out_samples(name, samples)
        return evaluate_classifier(
            load("classifier", name), samples, out, pixel_size_um=size, known_classes=_known_classes(name)
        )

    _done(as_json, data, out, evaluate)
