"""`smearflow align BRIGHTFIELD DIC`."""

from __future__ import annotations

from pathlib import Path

import click

from flows.console import (
    config_option,
    existing,
    file_ids,
    json_option,
    one_line,
    output,
    output_folder,
    pixel_size_option,
    say_notes,
    unique_output,
)


@click.command(name="align")
@click.argument("brightfield", type=click.Path(path_type=Path))
@click.argument("dic", type=click.Path(path_type=Path))
@pixel_size_option(
    "Micrometres a brightfield pixel, and a DIC pixel without --dic-pixel-size [from the files; else 0.1, "
    "and said]."
)
@pixel_size_option(
    "Micrometres a DIC pixel [--pixel-size, else from the file, else the brightfield's].", "--dic-pixel-size"
)
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
    dic_pixel_size: float | None,
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
    from storage.images import read_image
    from storage.whole_files import write_png

    settings = load_settings(config)
    with output(as_json) as show:
        bf_image, dic_image = read_image(existing(brightfield)), read_image(existing(dic))
        size, dic_size = _pixel_sizes(brightfield, dic, pixel_size, dic_pixel_size)
        found = register(
            dic_image, bf_image, settings.registration, pixel_size_um=size, dic_pixel_size_um=dic_size
        )
        document = {
            "status": found.status,
            "reason": found.reason,
            "matrix": [list(row) for row in found.matrix] if found.matrix else None,
            "ecc": found.ecc,
            "residual_px": found.residual_px,
            "residual_um": found.residual_um,
            "expected_error_px": found.expected_error_px,
            "forward_backward_px": found.forward_backward_px,
            "p_false_accept": found.p_false_accept,
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
        if picture is not None:  # after the answer, which a folder that takes no picture must not cost
            drawn = quality_picture(dic_image, bf_image, found)
            inputs = file_ids([brightfield, dic])
            write_png(
                unique_output(output_folder(picture), brightfield, "-alignment.png", set(), inputs), drawn
            )


def _pixel_sizes(
    brightfield: Path, dic: Path, pixel_size: float | None, dic_pixel_size: float | None
) -> tuple[float, float]:
    """Micrometres a pixel of both files, as asked for or as they state them; what is assumed is said."""
    from storage.images import image_info

    infos = {path: image_info(path) for path in (brightfield, dic)}
    for path, info in infos.items():
        say_notes(path, info)
    in_brightfield, in_dic = infos[brightfield].pixel_size_um, infos[dic].pixel_size_um
    size = pixel_size or in_brightfield
    dic_size = dic_pixel_size or pixel_size or in_dic
    if size is None:
        size, how = (0.1, "") if dic_size is None else (dic_size, ", as of the DIC,")
        say = f"{brightfield}: no pixel size in the file; {size:g} µm a pixel{how} is assumed"
        click.echo(one_line(f"{say} for the residual in µm (give --pixel-size)."), err=True)
    dic_size = dic_size or size
    if dic_pixel_size is None and abs(dic_size / size - 1) > 0.02:
        say = f"{dic}: its pixels are {dic_size:g} µm by the file, those of the brightfield {size:g} µm"
        click.echo(one_line(f"{say}; where that is wrong, give --dic-pixel-size."), err=True)
    return size, dic_size
