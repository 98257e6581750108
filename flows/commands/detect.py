"""`smearflow detect IMAGE…`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from pipeline.errors import BadInput

if TYPE_CHECKING:
    from pipeline.settings import DetectionSettings


@dataclass(frozen=True)
class _Search:
    """What is asked of every image.

    `reads` are the modalities that the model was made for, where one is named.
    """

    modality: str | None
    pixel_size: float | None
    model: str | None
    threshold: float | None
    settings: DetectionSettings
    max_pixels: int
    reads: tuple[str, ...]

    def detector_of(self, kind: str) -> tuple[str, Any]:
        """The name of the detector for a modality, and the detector."""
        from detectors.painted import leukocyte_detector

        usual = self.settings.dic_detector if kind == "dic" else self.settings.brightfield_detector
        name = self.model or usual
        return name, leukocyte_detector(name, painted=self.settings.dic_painted)

    def in_file(self, path: Path) -> dict[str, Any]:
        """What is found in an image or a slide."""
        from storage.images import is_noise
        from storage.slides import is_slide

        # A detector that has no windows reads an image as a whole; then a slide is an image like any other.
        if is_slide(path, max_pixels=self.max_pixels) and hasattr(
            self.detector_of("brightfield")[1], "in_windows"
        ):
            return self.on_slide(path)
        # Of a grey image the modality is a guess, and who names a model for DIC knows better.
        image, kind = read_with_modality(
            path, self.modality, grey="dic" if self.reads == ("dic",) else None, max_pixels=self.max_pixels
        )
        if is_noise(image):
            raise BadInput(f"{path}: the image is nothing but noise; hand in one of a smear.")
        return self.found_in(path, image, kind, *stated_pixel_size(path, self.pixel_size))

    def on_slide(self, path: Path) -> dict[str, Any]:
        """What is found on a whole slide, window by window."""
        from storage.slide_windows import SlideWindows
        from storage.slides import SlideReader

        if self.modality == "dic":
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
            scale = (stated, "file") if self.pixel_size is None else (self.pixel_size, "command line")
            return self.found_in(path, SlideWindows(reader, seen=bar.update), "brightfield", *scale)

    def found_in(self, path: Path, image: Any, kind: str, size: float | None, source: str) -> dict[str, Any]:
        """What is found in pixels of a modality at a scale, of which `source` says where it is from."""
        from detectors.contrast import faint_red_cells
        from detectors.scale import contradicted_scale, infer_pixel_size_um

        name, detector = self.detector_of(kind)
        _require_made_for(path, name, kind)
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
        keep = scores >= (self.threshold or 0.0)
        return {
            "file": str(path),
            "modality": kind,
            "pixel_size_um": round(float(size), 5),
            "pixel_size_source": source,
            "inferred_pixel_size_um": None if other is None else round(other.pixel_size_um, 5),
            "boxes": [[round(float(v), 2) for v in box] for box in boxes[keep]],
            "scores": [round(float(s), 5) for s in scores[keep]],
        }


def _require_made_for(path: Path, name: str, kind: str) -> None:
    """BadInput where a detector was not made for images of this kind."""
    from storage.registry import modalities

    made_for = modalities("detector", name)
    if made_for and kind not in made_for:
        raise BadInput(
            f"{path}: this is a {kind} image, and '{name}' was made for {' and '.join(made_for)} "
            f"images; leave out --model, or give --modality {made_for[0]} if it is one."
        )


def _search(
    modality: str | None,
    pixel_size: float | None,
    model: str | None,
    threshold: float | None,
    config: Path | None,
) -> _Search:
    """The search that the options ask for; BadInput, before any image is read, where they cannot be had."""
    from pipeline.settings import load_settings
    from storage.registry import modalities

    loaded = load_settings(config)
    reads = () if model is None else modalities("detector", model)
    search = _Search(
        modality, pixel_size, model, threshold, loaded.detection, loaded.intake.max_image_pixels, reads
    )
    if model is not None:
        search.detector_of("")
    if modality and reads and modality not in reads:
        raise BadInput(
            f"--modality {modality}: '{model}' was made for {' and '.join(reads)} images; leave out --model, "
            "or name another."
        )
    return search


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
    from pipeline.settings import detection_threshold

    search = _search(modality, pixel_size, model, threshold, config)
    with output(as_json) as show:
        results, refused = each_image(images, "detect", search.in_file)
        lines = []
        for r in results:
            cut = threshold if threshold is not None else detection_threshold(search.settings, r["modality"])
            number = sum(x >= cut for x in r["scores"])
            lines.append(
                one_line(r["file"]) + f": {number} leukocyte{'' if number == 1 else 's'} ({r['modality']}, "
                f"{r['pixel_size_um']:.3f} µm/px, {r['pixel_size_source']})"
            )
        show(results, "\n".join(lines))
    finish(refused)
