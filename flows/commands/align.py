"""`smearflow align BRIGHTFIELD DIC`."""

from __future__ import annotations

from pathlib import Path

import click

from flows.console import config_option, existing, json_option, output, output_folder, pixel_size_option


@click.command(name="align")
@click.argument("brightfield", type=click.Path(path_type=Path))
@click.argument("dic", type=click.Path(path_type=Path))
@pixel_size_option("Micrometres a brightfield pixel [from the file; else 0.1, and said].")
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    default=None,
    help="Also write a quality picture (PNG) into this folder.",
)
@config_option
@json_option
def command(
    brightfield: Path,
    dic: Path,
    pixel_size: float | None,
    picture: Path | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Align a DIC image to its brightfield partner.

    The matrix takes a brightfield pixel (x, y) to its DIC pixel.  A pair that does not belong together
    has status "failed", with the reason, and no matrix.
    """
    from pipeline.registration import quality_picture, register
    from pipeline.settings import load_settings
    from storage.images import image_info, read_image

    settings = load_settings(config)
    with output(as_json) as show:
        bf_image, dic_image = read_image(existing(brightfield)), read_image(existing(dic))
        size = pixel_size or image_info(brightfield).pixel_size_um
        if size is None:
            size = 0.1
            click.echo(
                f"{brightfield}: no pixel size in the file; 0.1 µm a pixel is assumed for the "
                "residual in µm (give --pixel-size).",
                err=True,
            )
        found = register(dic_image, bf_image, settings.registration, pixel_size_um=size)
        if picture is not None:
            import cv2

            path = output_folder(picture) / f"{brightfield.stem}-alignment.png"
            cv2.imwrite(str(path), quality_picture(dic_image, bf_image, found)[..., ::-1])
        document = {
            "status": found.status,
            "reason": found.reason,
            "matrix": [list(row) for row in found.matrix] if found.matrix else None,
            "ecc": found.ecc,
            "residual_px": found.residual_px,
            "residual_um": found.residual_um,
            "seconds": found.seconds,
        }
        if found.status == "ok":
            text = (
                f"aligned: residual {found.residual_px:.2f} px ({found.residual_um:.3f} µm), "
                f"ECC {found.ecc:.2f}, {found.seconds:.2f} s\n{document['matrix']}"
            )
        else:
            text = f"not aligned: {found.reason}"
        show(document, text)
