"""Case folders of phantoms: what a laboratory would drop, with the truth beside it.

Everything follows from the seed.  The images are drawn, not photographed; figures measured on them
are to be called so.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from phantoms.blood import TrueCell, draw
from phantoms.fields import NORMAL_BLOOD, Drawer, FieldLayers, FieldView, lay_fields, populate, render_field
from phantoms.geometry import (
    invert,
    random_deformation,
    random_similarity,
    transform_box,
    warp,
)
from phantoms.optics import DicOptics, random_optics, render_dic
from phantoms.stains import DOMAINS, StainStyle, develop, disturb, random_style
from pipeline.errors import BadInput

Array = np.ndarray[Any, Any]
Format = Literal["tiff", "ome-tiff", "png", "jpeg"]
SUFFIX = {"tiff": ".tif", "ome-tiff": ".ome.tif", "png": ".png", "jpeg": ".jpg"}
WHOLE = 0.5  # a cell counts as seen in a field when at least this share of it is


def simulate_case(
    folder: Path,
    *,
    case_id: str,
    seed: int,
    n_fields: int = 4,
    width_px: int = 2064,
    height_px: int = 1544,
    pixel_size_um: float = 0.1,
    modalities: Sequence[str] = ("brightfield", "dic"),
    specimen: str = "blood",
    composition: Mapping[str, float] | None = None,
    n_leukocytes_per_field: int = 24,
    overlap_um: float = 0.0,
    bits: int = 8,
    perls: bool = False,
    rs_fraction: float = 0.0,
    correlate: float = 0.5,
    format: Format = "tiff",
    style: str | StainStyle | None = None,
    optics: DicOptics | None = None,
    hard: bool = False,
    cut_cells: bool = False,
    red_cell_cover: float | None = None,
    nuisances: float | None = None,
    write_masks: bool = False,
    stage_positions: bool = True,
) -> Path:
    """Write a phantom case: manifest.csv, case.yaml, the images and truth.json; returns the folder.

    `n_leukocytes_per_field` times `n_fields` true leukocytes are shared out by `composition` exactly
    (largest remainder); the default is normal blood, or marrow for `specimen="bone_marrow"`.  A cell in
    the overlap of two fields is one of them.  `style` is a domain ("A", "B", "C"), a StainStyle, or None
    to draw one; `hard` widens what is drawn for stain and optics.  With `perls` the same marrow is also
    shown as a Perls slide, and the share `rs_fraction` of its erythroblasts are ring sideroblasts whose
    look in MGG gives them away by `correlate` (0: not at all).  `nuisances` scales precipitate, haze
    and defocus (default 0, or 0.5 on marrow).  `write_masks` adds truth/<field>.png with labels 0
    background, 1 red cell, 2 cytoplasm, 3 nucleus.  Raises BadInput for what cannot be made.
    """
    n_leukocytes = n_fields * n_leukocytes_per_field
    _check(modalities, specimen, bits, perls, rs_fraction, format, n_fields, n_leukocytes, pixel_size_um)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 0])
    marrow = specimen == "bone_marrow"
    if composition is None:
        composition = NORMAL_BLOOD
        if marrow:
            from phantoms.marrow import NORMAL_MARROW

            composition = NORMAL_MARROW
    chosen = _style(style, rng, hard)
    seen_through = optics or (random_optics(rng) if hard else calm_optics(rng))
    views = lay_fields(n_fields, width_px, height_px, pixel_size_um, overlap_um)
    cover = red_cell_cover if red_cell_cover is not None else (0.22 if marrow else 0.38)
    nuisance = nuisances if nuisances is not None else (0.5 if marrow else 0.0)
    cells = populate(
        views,
        pixel_size_um,
        rng,
        composition=composition,
        n_leukocytes=n_leukocytes,
        red_cell_cover=cover,
        cut_cells=cut_cells,
        crowding=nuisance if marrow else 0.0,
    )
    drawer: Drawer = draw
    if marrow:
        from phantoms.marrow import assign_types, marrow_drawer

        cells = assign_types(cells, rng, rs_fraction)
        drawer = marrow_drawer("MGG", correlate)

    rows: list[dict[str, Any]] = []
    truth: dict[str, Any] = {
        "case": case_id,
        "phantom": True,
        "seed": seed,
        "stain_domain": style if isinstance(style, str) else "phantom",
        "pixel_size_um": pixel_size_um,
        "specimen": specimen,
        "fields": {},
        "optics": asdict(seen_through),
    }
    where: dict[int, list[str]] = {}
    for i, view in enumerate(views):
        field_rng = np.random.default_rng([seed, 1, i])
        margin = _margin(view)
        layers = render_field(cells, view, pixel_size_um, chosen, margin_px=margin, drawer=drawer)
        entry = _field_truth(layers, view, pixel_size_um, where)
        if "brightfield" in modalities:
            image = _photograph(layers, pixel_size_um, chosen, field_rng, bits, nuisance)
            file = f"{view.name}_BF{SUFFIX[format]}"
            _write(folder / file, image, pixel_size_um, format)
            rows.append(_row("slide-1", view, "brightfield", "MGG", file, pixel_size_um))
        if "dic" in modalities:
            image, matrix, rms = _interfere(layers, view, pixel_size_um, seen_through, field_rng, bits)
            file = f"{view.name}_DIC{SUFFIX[format]}"
            _write(folder / file, image, pixel_size_um, format)
            rows.append(_row("slide-1", view, "dic", "unstained", file, pixel_size_um))
            entry["brightfield_to_dic"] = [list(r) for r in matrix]
            entry["deformation_rms_px"] = rms
            entry["leukocytes_dic_xyxy"] = [
                [round(v, 2) for v in transform_box(matrix, tuple(b))] for b in entry["leukocytes_xyxy"]
            ]
        if write_masks:
            _write_mask(folder / "truth" / f"{view.name}.png", layers.labels)
        truth["fields"][view.name] = entry
    if perls:
        from phantoms.marrow import perls_fields

        for view, image, labels, entry in perls_fields(
            cells, views, pixel_size_um, seed=seed, bits=bits, nuisances=nuisance, hard=hard, where=where
        ):
            file = f"{view.name}_BF{SUFFIX[format]}"
            _write(folder / file, image, pixel_size_um, format)
            rows.append(_row("slide-2", view, "brightfield", "Perls", file, pixel_size_um))
            if write_masks:
                _write_mask(folder / "truth" / f"{view.name}.png", labels)
            truth["fields"][view.name] = entry
    truth["cells"] = [_cell_truth(c, where.get(c.number, [])) for c in cells if c.number in where]
    truth["counts"] = _counts(truth["cells"])
    if marrow:
        types = [c["rs_type"] for c in truth["cells"] if c.get("rs_type") is not None]
        truth["sideroblasts"] = {f"type{t}": types.count(t) for t in range(4)}
        truth["rs_pct"] = 100.0 * types.count(3) / len(types) if types else None
        truth["correlate"] = correlate
    _write_manifest(folder / "manifest.csv", rows, stage_positions)
    (folder / "case.yaml").write_text(f"specimen: {specimen}\ncollected: 2026-11-01\n", encoding="utf-8")
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return folder


def _check(
    modalities: Sequence[str],
    specimen: str,
    bits: int,
    perls: bool,
    rs_fraction: float,
    format: str,
    n_fields: int,
    n_leukocytes: int,
    pixel_size_um: float,
) -> None:
    unknown = set(modalities) - {"brightfield", "dic"}
    if unknown or not modalities:
        raise BadInput(f"modalities are brightfield and dic, not {sorted(unknown) or 'none'}.")
    if specimen not in ("blood", "bone_marrow"):
        raise BadInput(f"a specimen is blood or bone_marrow, not '{specimen}'.")
    if bits not in (8, 16) or (bits == 16 and format == "jpeg"):
        raise BadInput(f"{bits} bits cannot be written as {format}; take 8 or 16 bits, 8 for jpeg.")
    if format not in SUFFIX:
        raise BadInput(f"an image format is one of {', '.join(SUFFIX)}, not '{format}'.")
    if (perls or rs_fraction) and specimen != "bone_marrow":
        raise BadInput("sideroblasts and Perls phantoms are of marrow; ask for the specimen bone_marrow.")
    if n_fields < 1 or n_leukocytes < 0 or not pixel_size_um > 0:
        raise BadInput("a case needs a field or more, no negative number of cells, a pixel size above 0.")


def _style(style: str | StainStyle | None, rng: np.random.Generator, hard: bool) -> StainStyle:
    if isinstance(style, StainStyle):
        return style
    if style is None:
        return random_style(rng, spread=1.5 if hard else 0.5)
    if style not in DOMAINS:
        raise BadInput(f"a stain domain is one of {', '.join(sorted(DOMAINS))}, not '{style}'.")
    return disturb(DOMAINS[style], rng, 1.0 if hard else 0.3)


def calm_optics(rng: np.random.Generator) -> DicOptics:
    """A well-set microscope: any shear direction, the rest near the defaults."""
    return replace(
        DicOptics(),
        shear_angle_deg=float(rng.uniform(0, 360)),
        shear_um=float(rng.uniform(0.25, 0.45)),
        bias_rad=float(rng.uniform(1.2, 1.8)),
        phase_strength_rad=float(rng.uniform(0.8, 1.3)),
        blur_um=float(rng.uniform(0.1, 0.16)),
    )


def _margin(view: FieldView) -> int:
    """Pixels beyond a field that its DIC partner may show: shift, rotation and scale at their limits."""
    return int(_max_shift(view) + 0.04 * max(view.width_px, view.height_px)) + 8


def _max_shift(view: FieldView) -> float:
    return min(100.0, 0.06 * min(view.width_px, view.height_px))


def _photograph(
    layers: FieldLayers,
    pixel_size_um: float,
    style: StainStyle,
    rng: np.random.Generator,
    bits: int,
    nuisance: float,
) -> Array:
    density = np.ascontiguousarray(layers.inner(layers.density))
    if nuisance > 0:
        from phantoms.marrow import add_nuisances

        density, style = add_nuisances(density, pixel_size_um, style, rng, nuisance, "MGG")
    return develop(density, pixel_size_um, style, rng, bits=bits)


def _interfere(
    layers: FieldLayers,
    view: FieldView,
    pixel_size_um: float,
    optics: DicOptics,
    rng: np.random.Generator,
    bits: int,
) -> tuple[Array, Any, float]:
    """The DIC partner of a field: (image, matrix brightfield px -> DIC px, rms deformation in px)."""
    shape = (view.height_px, view.width_px)
    matrix = random_similarity(rng, view.width_px, view.height_px, max_shift_px=_max_shift(view))
    rms = 0.3
    displacement = random_deformation(shape, rms, 40.0 / pixel_size_um, rng)
    m = layers.margin_px
    # the layers' pixel (0, 0) is the field's (-m, -m)
    back = np.asarray(invert(matrix))
    back[:, 2] += m
    whole = invert(back)
    path = warp(layers.path, whole, shape, displacement=displacement)
    green = warp(np.ascontiguousarray(layers.density[..., 1]), whole, shape, displacement=displacement)
    return render_dic(path, pixel_size_um, optics, rng, density=green, bits=bits), matrix, rms


def _field_truth(
    layers: FieldLayers, view: FieldView, pixel_size_um: float, where: dict[int, list[str]]
) -> dict[str, Any]:
    """Boxes and classes of a field's leukocytes, and of those that its edge cuts by more than half."""
    x_um, y_um = view.stage_um(pixel_size_um)
    whole = [s for s in layers.seen if s[2] >= WHOLE]
    for cell, *_ in whole:
        where.setdefault(cell.number, []).append(view.name)
    return {
        "x_um": round(x_um, 4),
        "y_um": round(y_um, 4),
        "leukocytes_xyxy": [list(map(float, s[1])) for s in whole],
        "classes": [s[0].kind for s in whole],
        "cell_ids": [s[0].number for s in whole],
        "visible": [round(s[2], 3) for s in whole],
        "cut_xyxy": [list(map(float, s[1])) for s in layers.seen if s[2] < WHOLE],
    }


def _cell_truth(cell: TrueCell, seen_in: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "id": cell.number,
        "class": cell.kind,
        "x_um": round(cell.x_um, 3),
        "y_um": round(cell.y_um, 3),
        "diameter_um": round(cell.diameter_um, 2),
        "seen_in": seen_in,
    }
    if cell.stage is not None:
        out["stage"] = cell.stage
    if cell.rs_type is not None:
        out["rs_type"] = cell.rs_type
    return out


def _counts(cells: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell["class"]] = counts.get(cell["class"], 0) + 1
    return dict(sorted(counts.items()))


def _row(
    slide: str, view: FieldView, modality: str, stain: str, file: str, pixel_size_um: float
) -> dict[str, Any]:
    x_um, y_um = view.stage_um(pixel_size_um)
    return {
        "slide": slide,
        "field": view.name,
        "modality": modality,
        "stain": stain,
        "file": file,
        "pixel_size_um": f"{pixel_size_um:g}",
        "x_um": f"{x_um:.3f}",
        "y_um": f"{y_um:.3f}",
    }


def _write_manifest(path: Path, rows: list[dict[str, Any]], stage_positions: bool) -> None:
    columns = ["slide", "field", "modality", "stain", "file", "pixel_size_um"]
    if stage_positions:
        columns += ["x_um", "y_um"]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write(path: Path, image: Array, pixel_size_um: float, format: str) -> None:
    if format in ("png", "jpeg"):
        import cv2

        bgr = image[..., ::-1] if image.ndim == 3 else image
        options = [cv2.IMWRITE_JPEG_QUALITY, 92] if format == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
        if not cv2.imwrite(str(path), np.ascontiguousarray(bgr), options):
            raise OSError(f"{path} could not be written")
        return
    import tifffile

    per_cm = 1e4 / pixel_size_um
    more: dict[str, Any] = {"metadata": None}
    if format == "ome-tiff":
        more = {
            "ome": True,
            "metadata": {
                "axes": "YXS" if image.ndim == 3 else "YX",
                "PhysicalSizeX": pixel_size_um,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": pixel_size_um,
                "PhysicalSizeYUnit": "µm",
            },
        }
    tifffile.imwrite(
        path,
        image,
        photometric="rgb" if image.ndim == 3 else "minisblack",
        compression="zlib",
        compressionargs={"level": 1},
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
        **more,
    )


def _write_mask(path: Path, labels: Array) -> None:
    import cv2

    path.parent.mkdir(exist_ok=True)
    if not cv2.imwrite(str(path), labels):
        raise OSError(f"{path} could not be written")
