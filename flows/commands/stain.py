"""`smearflow stain IMAGE… --out DIR`."""

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
    read_with_modality,
    say_inferred,
    stated_pixel_size,
    unique_output,
)


@click.command(name="stain")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, callback=not_blank, help="Folder for the virtual images.")
@pixel_size_option("Micrometres a pixel [from the file, else the stainer's own].")
@click.option("--model", default=None, callback=not_blank, help="Stainer [the settings' choice for DIC].")
@click.option(
    "--target", default=None, callback=not_blank, help="Stain domain to stain for [the model's first]."
)
@config_option
@json_option
def command(
    images: tuple[str, ...],
    out: str,
    pixel_size: float | None,
    model: str | None,
    target: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Stain images virtually; writes a PNG an image, of its size, with its confidence.

    An image of another pixel size than the stainer's is brought to that, stained, and brought back.
    """
    from pipeline.settings import load_settings
    from pipeline.staining import min_stain_confidence
    from stainers import stain_image
    from stainers.at_scale import size_at, stain_at
    from stainers.patch_stainer import target_index
    from storage.images import image_info
    from storage.packages import find_package
    from storage.registry import load, modalities
    from storage.whole_files import write_png

    settings = load_settings(config).staining
    name = model or settings.dic_stainer
    stainer, reads = load("stainer", name), modalities("stainer", name)
    target_index(stainer.name, stainer.targets, target or settings.target)  # said once, before any image
    package = find_package(name)
    wanted = None if package is None else package.card.pixel_size_um  # None: it takes any
    least = min_stain_confidence(stainer, settings.min_confidence)
    folder = output_folder(out)
    taken: set[Path] = set()
    inputs = file_ids(images)

    def one(path: Path) -> dict[str, Any]:
        written = unique_output(folder, path, "_virtual.png", taken, inputs)
        size, source = stated_pixel_size(path, pixel_size)
        if wanted is not None:
            info = image_info(path)
            size_at(info.width, info.height, size or wanted, wanted)  # before its pixels are read
        given, kind = read_with_modality(path, reads[0] if len(reads) == 1 else None)
        if size is None:
            size, source = _own_scale(path, given, kind, wanted)
        if size is None or wanted is None:
            image, confidence, uncertainty, _map = stain_image(stainer, given, target or settings.target)
        else:
            image, confidence, uncertainty, _map = stain_at(
                stainer, given, target or settings.target, size, wanted
            )
        write_png(written, image)
        if confidence < least:
            say = (
                f"{path}: confidence {confidence:.2f} is below the stainer's threshold of {least:.2f}; do "
                "not rely on this picture (is it the right kind of image, sharp, of the right pixel size?)."
            )
            click.echo(one_line(say), err=True)
        return {
            "file": str(path),
            "output": str(written),
            "pixel_size_um": None if size is None else round(size, 5),
            "pixel_size_source": source,
            "confidence": round(float(confidence), 6),
            "min_confidence": least,
            "below_threshold": bool(confidence < least),
            "uncertainty": round(float(uncertainty), 6),
        }

    with output(as_json) as show:
        results, refused = each_image(images, "stain", one)
        lines = []
        for r in results:
            doubt = f", below the stainer's threshold {least:.2f}" if r["below_threshold"] else ""
            said = f"{r['file']} -> {r['output']} (confidence {r['confidence']:.2f}{doubt})"
            lines.append(one_line(said))
        show(results, "\n".join(lines))
    finish(refused)


def _own_scale(path: Path, image: Any, kind: str, wanted: float | None) -> tuple[float | None, str]:
    """The pixel size (µm) of an image that states none, and where it is from; said on stderr.

    The stainer's own, unless the red cells contradict it as they would a stated one.
    """
    from detectors.painted import leukocyte_detector
    from detectors.scale import DEFAULT_DETECTORS, contradicted_scale
    from storage.images import as_rgb

    if wanted is None:
        return None, "not needed"
    detector = leukocyte_detector(DEFAULT_DETECTORS[kind], painted=False)
    other = contradicted_scale(as_rgb(image), wanted, detector)
    if other is None:
        say = f"{path}: no pixel size; {wanted:g} µm a pixel is assumed (--pixel-size)."
        click.echo(one_line(say), err=True)
        return wanted, "assumed: the stainer's"
    say_inferred(path, other)
    return other.pixel_size_um, f"inferred: {other.how}"
