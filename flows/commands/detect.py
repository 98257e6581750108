"""`smearflow detect IMAGE…`."""

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
    progress,
    read_with_modality,
    say_inferred,
    stated_pixel_size,
)


@click.command(name="detect")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--modality", type=click.Choice(["brightfield", "dic"]), default=None, help="[read from the image]"
)
@pixel_size_option("Micrometres a pixel [from the file, else inferred from the red cells, and said].")
@click.option(
    "--model", default=None, help="Detector [the settings' choice for the modality]; see `smearflow models`."
)
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=None, help="Leave out boxes below this score."
)
@config_option
@json_option
def command(
    images: tuple[str, ...],
    modality: str | None,
    pixel_size: float | None,
    model: str | None,
    threshold: float | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Find leukocytes in images and whole slides; boxes in pixels of the file.

    A slide is looked at as a whole, window by window; to have the fields that are worth it counted, make it
    a case: smearflow run.
    """
    from detectors.contrast import faint_red_cells
    from detectors.painted import leukocyte_detector
    from detectors.scale import contradicted_scale, infer_pixel_size_um
    from pipeline.errors import BadInput
    from pipeline.settings import detection_threshold, load_settings
    from storage.images import is_noise
    from storage.registry import modalities
    from storage.slide_windows import SlideWindows
    from storage.slides import SlideReader, is_slide

    loaded = load_settings(config)
    settings, max_pixels = loaded.detection, loaded.intake.max_image_pixels

    def detector_of(kind: str) -> tuple[str, Any]:
        name = model or (settings.dic_detector if kind == "dic" else settings.brightfield_detector)
        return name, leukocyte_detector(name, painted=settings.dic_painted)

    reads: tuple[str, ...] = ()
    if model is not None:  # a wrong name is said once, before any image is read
        reads = modalities("detector", model)
        detector_of("")
    if modality and reads and modality not in reads:
        raise BadInput(
            f"--modality {modality}: '{model}' was made for {' and '.join(reads)} images; leave out --model, "
            "or name another."
        )

    def one(path: Path) -> dict[str, Any]:
        # A detector that has no windows reads an image as a whole; then a slide is an image like any other.
        if is_slide(path, max_pixels=max_pixels) and hasattr(detector_of("brightfield")[1], "in_windows"):
            return on_slide(path)
        # Of a grey image the modality is a guess, and who names a model for DIC knows better.
        image, kind = read_with_modality(
            path, modality, grey="dic" if reads == ("dic",) else None, max_pixels=max_pixels
        )
        if is_noise(image):
            raise BadInput(f"{path}: the image is nothing but noise; hand in one of a smear.")
        return found_in(path, image, kind, *stated_pixel_size(path, pixel_size))

    def on_slide(path: Path) -> dict[str, Any]:
        if modality == "dic":
            raise BadInput(
                f"{path}: a whole slide is read as stained brightfield only; export DIC as fields."
            )
        with (
            SlideReader(path) as reader,
            progress(None, total=reader.width_px * reader.height_px, what=path.name) as bar,
        ):
            size = f"{reader.width_px} x {reader.height_px} pixels"
            click.echo(one_line(f"{path}: a whole slide of {size}, looked at window by window."), err=True)
            stated = reader.file_pixel_size_um
            scale = (stated, "file") if pixel_size is None else (pixel_size, "command line")
            return found_in(path, SlideWindows(reader, seen=bar.update), "brightfield", *scale)

    def found_in(path: Path, image: Any, kind: str, size: float | None, source: str) -> dict[str, Any]:
        name, detector = detector_of(kind)
        made_for = modalities("detector", name)
        if made_for and kind not in made_for:
            raise BadInput(
                f"{path}: this is a {kind} image, and '{name}' was made for {' and '.join(made_for)} "
                f"images; leave out --model, or give --modality {made_for[0]} if it is one."
            )
        if size is None:
            estimate = infer_pixel_size_um(image, kind)
            size, source = estimate.pixel_size_um, f"inferred: {estimate.how}"
            say_inferred(path, estimate)
        other = None
        if kind == "brightfield" and source in ("file", "command line") and hasattr(detector, "look"):
            other = contradicted_scale(image, size, detector)
        if other is not None:
            say = (
                f"{path}: {size:g} µm a pixel by the {source}, but its {other.n_red_cells} red cells speak "
                f"for {other.pixel_size_um:.3g} µm; give --pixel-size if they do."
            )
            click.echo(one_line(say), err=True)
        faint = None
        if kind == "brightfield" and hasattr(detector, "look"):
            faint = faint_red_cells(image, size, detector)
        if faint is not None:
            say = (
                f"{path}: its red cells are only {faint:.0f} of 255 levels darker than the glass (haze, a "
                "pale stain or a flat camera curve); leukocytes can be missed."
            )
            click.echo(one_line(say), err=True)
        boxes, scores = detector.detect(image, size)
        keep = scores >= (threshold or 0.0)
        return {
            "file": str(path),
            "modality": kind,
            "pixel_size_um": round(float(size), 5),
            "pixel_size_source": source,
            "inferred_pixel_size_um": None if other is None else round(other.pixel_size_um, 5),
            "boxes": [[round(float(v), 2) for v in box] for box in boxes[keep]],
            "scores": [round(float(s), 5) for s in scores[keep]],
        }

    with output(as_json) as show:
        results, refused = each_image(images, "detect", one)
        lines = []
        for r in results:
            cut = threshold if threshold is not None else detection_threshold(settings, r["modality"])
            number = sum(x >= cut for x in r["scores"])
            lines.append(
                one_line(r["file"]) + f": {number} leukocyte{'' if number == 1 else 's'} ({r['modality']}, "
                f"{r['pixel_size_um']:.3f} µm/px, {r['pixel_size_source']})"
            )
        show(results, "\n".join(lines))
    finish(refused)
