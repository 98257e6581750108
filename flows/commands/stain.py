"""`smearflow stain IMAGE… --out DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flows.console import (
    config_option,
    each_image,
    finish,
    json_option,
    output,
    output_folder,
    read_rgb_or_grey,
    unique_output,
)


@click.command(name="stain")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder for the virtual images.")
@click.option("--model", default=None, help="Stainer [the settings' choice for DIC].")
@click.option("--target", default=None, help="Stain domain to stain for [the model's first].")
@config_option
@json_option
def command(
    images: tuple[str, ...],
    out: str,
    model: str | None,
    target: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Stain images virtually; writes a PNG an image with its confidence."""
    from pipeline.settings import load_settings
    from stainers import stain_image
    from storage.registry import load
    from storage.whole_files import write_png

    settings = load_settings(config).staining
    stainer = load("stainer", model or settings.dic_stainer)
    folder = output_folder(out)
    taken: set[Path] = set()

    def one(path: Path) -> dict[str, Any]:
        image, confidence, uncertainty, _map = stain_image(
            stainer, read_rgb_or_grey(path), target or settings.target
        )
        written = unique_output(folder, path, "_virtual.png", taken)
        write_png(written, image)
        return {
            "file": str(path),
            "output": str(written),
            "confidence": round(float(confidence), 6),
            "uncertainty": round(float(uncertainty), 6),
        }

    with output(as_json) as show:
        results, refused = each_image(images, "stain", one)
        show(
            results,
            "\n".join(f"{r['file']} -> {r['output']} (confidence {r['confidence']:.2f})" for r in results),
        )
    finish(refused)
