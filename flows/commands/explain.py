"""`smearflow explain IMAGE… --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flows.console import (
    config_option,
    each_image,
    file_ids,
    finish,
    json_option,
    not_blank,
    one_line,
    output,
    output_folder,
    pixel_size_option,
    read_rgb_or_grey,
    stated_pixel_size,
    unfamiliar,
    unique_output,
)


@click.command(name="explain")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, callback=not_blank, help="Folder for the pictures.")
@pixel_size_option()
@click.option("--model", default=None, help="Classifier [the settings' choice].")
@click.option("--class", "label", default=None, help="Class to explain [the one that is named].")
@click.option(
    "--method",
    type=click.Choice(["integrated-gradients", "grad-cam", "occlusion"]),
    default="integrated-gradients",
    show_default=True,
)
@config_option
@json_option
def command(
    images: tuple[str, ...],
    out: str,
    pixel_size: float | None,
    model: str | None,
    label: str | None,
    method: str,
    config: Path | None,
    as_json: bool,
) -> None:
    """Show which pixels speak for (orange) and against (blue) the class of the cell in each image."""
    from classifiers.explaining import classes_of, draw, explain, explainable
    from pipeline.classification import classify_patches
    from pipeline.settings import load_settings
    from storage.images import as_rgb
    from storage.registry import load
    from storage.whole_files import write_png

    settings = load_settings(config).classification
    name = model or settings.classifier
    classifier = explainable(load("classifier", name))
    if label is not None:
        classes_of(classifier, label)
    folder = output_folder(out)
    taken: set[Path] = set()
    inputs = file_ids(images)

    def one(path: Path) -> dict[str, Any]:
        target = unique_output(folder, path, ".png", taken, inputs)
        image = as_rgb(read_rgb_or_grey(path, "classifier", name))
        size, _source = stated_pixel_size(path, pixel_size)
        named = classify_patches(image[None], size, classifier, settings).cells([str(path)])[0]
        found = explain(classifier, image, size, label or named.label, method)
        write_png(target, draw(image, found))
        return {
            "file": str(path),
            "class": named.label,
            "explained": found.label,
            "probability": round(found.probability, 6),
            **unfamiliar(path, named.ood),
            "output": str(target),
            "method": found.method,
            "model": classifier.name,
            "view_px": [round(v, 1) for v in found.view_px],
            "share_for": round(found.share_for, 4),
        }

    with output(as_json) as show:
        results, refused = each_image(images, "explain", one)
        show(
            results,
            "\n".join(
                one_line(f"{r['file']}: {r['explained']} (p {r['probability']:.2f}) -> {r['output']}")
                for r in results
            ),
        )
    finish(refused)
