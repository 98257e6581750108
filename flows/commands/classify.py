"""`smearflow classify IMAGE…`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flows.console import (
    config_option,
    each_image,
    finish,
    json_option,
    one_line,
    output,
    pixel_size_option,
    read_rgb_or_grey,
    stated_pixel_size,
    unfamiliar,
)


@click.command(name="classify")
@click.argument("images", nargs=-1, required=True)
@pixel_size_option()
@click.option("--model", default=None, help="Classifier [the settings' choice].")
@config_option
@json_option
def command(
    images: tuple[str, ...], pixel_size: float | None, model: str | None, config: Path | None, as_json: bool
) -> None:
    """Name the cell in the middle of each image."""
    from pipeline.classification import classify_patches
    from pipeline.settings import load_settings
    from storage.images import as_rgb
    from storage.registry import load

    settings = load_settings(config).classification
    name = model or settings.classifier
    classifier = load("classifier", name)

    def one(path: Path) -> dict[str, Any]:
        image = as_rgb(read_rgb_or_grey(path, "classifier", name))
        size, _source = stated_pixel_size(path, pixel_size)
        found = classify_patches(image[None], size, classifier, settings).cells([str(path)])[0]
        return {
            "file": str(path),
            "class": found.label,
            "probabilities": {k: round(float(v), 6) for k, v in found.probabilities.items()},
            **unfamiliar(path, found.ood),
        }

    with output(as_json) as show:
        results, refused = each_image(images, "classify", one)
        text = "\n".join(
            f"{one_line(r['file'])}: {r['class']} (p {max(r['probabilities'].values()):.2f}"
            f"{', unlike the training cells' if r['above_ood_limit'] else ''})"
            for r in results
        )
        show(results, text)
    finish(refused)
