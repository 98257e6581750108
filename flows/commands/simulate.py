"""`smearflow simulate FOLDER`."""

from __future__ import annotations

from pathlib import Path

import click

from flows.console import SEEDS, json_option, output


@click.command(name="simulate")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--case-id", default=None, help="[the folder's name]")
@click.option("--fields", type=click.IntRange(1), default=4, show_default=True)
@click.option(
    "--size",
    type=(click.IntRange(64), click.IntRange(64)),
    default=(2064, 1544),
    show_default=True,
    help="Width and height of a field in pixels.",
)
@click.option(
    "--leukocytes", type=click.IntRange(0), default=25, show_default=True, help="Leukocytes a field."
)
@click.option(
    "--modality",
    "modalities",
    type=click.Choice(["brightfield", "dic"]),
    multiple=True,
    default=("brightfield", "dic"),
    show_default=True,
)
@click.option("--specimen", type=click.Choice(["blood", "bone_marrow"]), default="blood", show_default=True)
@click.option("--perls", is_flag=True, help="Add Perls-stained fields of the same marrow.")
@click.option(
    "--rs-fraction",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Ring sideroblasts among erythroblasts.",
)
@click.option(
    "--overlap",
    "overlap_um",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Overlap of neighbouring fields in micrometres.",
)
@click.option("--bits", type=click.Choice(["8", "16"]), default="8", show_default=True)
@click.option("--seed", type=SEEDS, default=0, show_default=True)
@json_option
def command(
    folder: Path,
    case_id: str | None,
    fields: int,
    size: tuple[int, int],
    leukocytes: int,
    modalities: tuple[str, ...],
    specimen: str,
    perls: bool,
    rs_fraction: float,
    overlap_um: float,
    bits: str,
    seed: int,
    as_json: bool,
) -> None:
    """Write a synthetic case folder with exact truth: a phantom, not a patient."""
    from phantoms.cases import simulate_case
    from pipeline.errors import BadInput

    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder}: the folder is not empty; name a new one so that nothing is overwritten.")
    with output(as_json) as show:
        made = simulate_case(
            folder,
            case_id=case_id or folder.resolve().name,
            seed=seed,
            n_fields=fields,
            width_px=size[0],
            height_px=size[1],
            modalities=modalities,
            specimen=specimen,
            n_leukocytes_per_field=leukocytes,
            overlap_um=overlap_um,
            bits=int(bits),
            perls=perls,
            rs_fraction=rs_fraction,
        )
        show(
            {"case": str(made), "truth": str(made / "truth.json"), "phantom": True},
            f"phantom case written to {made}",
        )
