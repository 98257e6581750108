"""`smearflow segment IMAGE… --out DIR`."""

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
    progress,
    read_rgb_or_grey,
    stated_pixel_size,
    unique_output,
)

MANY_TILES = 50  # of 96 µm, a third of a second of a core each; a field of 2064 x 1544 px at 0.25 µm has 42


@click.command(name="segment")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, callback=not_blank, help="Folder for the label images.")
@pixel_size_option()
@click.option("--model", default=None, help="Segmenter [the settings' choice].")
@config_option
@json_option
def command(
    images: tuple[str, ...],
    out: str,
    pixel_size: float | None,
    model: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Label images: 0 background, 1 red cell, 2 cytoplasm, 3 nucleus, one PNG an image."""
    from detectors.segment import segment_image
    from pipeline.settings import load_settings
    from storage.images import as_rgb
    from storage.registry import load
    from storage.whole_files import write_png

    name = model or load_settings(config).classification.segmenter
    segmenter = load("segmenter", name)
    folder = output_folder(out)
    taken: set[Path] = set()
    inputs = file_ids(images)

    def one(path: Path) -> dict[str, Any]:
        target = unique_output(folder, path, ".png", taken, inputs)
        size, _source = stated_pixel_size(path, pixel_size)

        def each(tiles: list[Any]) -> Any:
            if len(tiles) >= MANY_TILES:
                click.echo(one_line(f"{path}: a large image, labelled in {len(tiles)} tiles."), err=True)
            return progress(tiles, what=path.name)

        labels = segment_image(segmenter, as_rgb(read_rgb_or_grey(path, "segmenter", name)), size, each)
        write_png(target, labels)
        return {"file": str(path), "output": str(target)}

    with output(as_json) as show:
        results, refused = each_image(images, "segment", one)
        show(results, "\n".join(one_line(f"{r['file']} -> {r['output']}") for r in results))
    finish(refused)
