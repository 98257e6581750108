"""Case folders of phantoms: what a laboratory would drop, with the truth beside it.

Everything follows from the seed.  The images are drawn, not photographed; figures measured on them
are to be called so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from phantoms.blood import TrueCell, draw
from phantoms.case_files import SUFFIX, Format, manifest_row, write_image, write_manifest, write_mask
from phantoms.case_truth import cell_truth, class_counts, field_truth
from phantoms.fields import NORMAL_BLOOD, Drawer, FieldLayers, FieldView, lay_fields, populate, render_field
from phantoms.geometry import (
    invert,
    random_deformation,
    random_similarity,
    transform_box,
    warp,
)
from phantoms.marrow import NORMAL_MARROW, add_nuisances, assign_types, marrow_drawer, perls_fields
from phantoms.optics import DicOptics, random_optics, render_dic
from phantoms.stains import DOMAINS, StainStyle, develop, disturb, random_style
from pipeline.errors import BadInput

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Plan:
    """How the fields of a case are taken, once everything that was left open is drawn."""

    folder: Path
    seed: int
    pixel_size_um: float
    modalities: Sequence[str]
    bits: int
    format: Format
    hard: bool
    nuisance: float
    write_masks: bool
    style: StainStyle
    optics: DicOptics
    views: list[FieldView]
    drawer: Drawer


@dataclass
class _Record:
    """What was taken so far: lines of the manifest, truth by field, the fields that each cell is seen in."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    where: dict[int, list[str]] = field(default_factory=dict)


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
    drawer: Drawer = draw
    usual, cover, nuisance = NORMAL_BLOOD, 0.38, 0.0
    if marrow:
        drawer = marrow_drawer("MGG", correlate)
        usual, cover, nuisance = NORMAL_MARROW, 0.22, 0.5
    plan = _Plan(
        folder=folder,
        seed=seed,
        pixel_size_um=pixel_size_um,
        modalities=modalities,
        bits=bits,
        format=format,
        hard=hard,
        nuisance=nuisance if nuisances is None else nuisances,
        write_masks=write_masks,
        style=_style(style, rng, hard),
        optics=optics or (random_optics(rng) if hard else calm_optics(rng)),
        views=lay_fields(n_fields, width_px, height_px, pixel_size_um, overlap_um),
        drawer=drawer,
    )
    cells = populate(
        plan.views,
        pixel_size_um,
        rng,
        composition=usual if composition is None else composition,
        n_leukocytes=n_leukocytes,
        red_cell_cover=cover if red_cell_cover is None else red_cell_cover,
        cut_cells=cut_cells,
        crowding=plan.nuisance if marrow else 0.0,
    )
    if marrow:
        cells = assign_types(cells, rng, rs_fraction)
    record = _Record()
    for number in range(len(plan.views)):
        _take_field(plan, cells, number, record)
    if perls:
        _take_perls(plan, cells, record)
    truth = {
        "case": case_id,
        "phantom": True,
        "seed": seed,
        "stain_domain": style if isinstance(style, str) else "phantom",
        "pixel_size_um": pixel_size_um,
        "specimen": specimen,
        "fields": record.fields,
        "optics": asdict(plan.optics),
        **_truth_of_cells(cells, record.where),
    }
    if marrow:
        truth |= {**_truth_of_iron(truth["cells"]), "correlate": correlate}
    write_manifest(plan.folder / "manifest.csv", record.rows, stage_positions)
    case_yaml = f"specimen: {specimen}\ncollected: 2026-11-01\n"
    (plan.folder / "case.yaml").write_text(case_yaml, encoding="utf-8")
    (plan.folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return plan.folder


def _take_field(plan: _Plan, cells: Sequence[TrueCell], number: int, record: _Record) -> None:
    """Write the images of one field of the MGG slide, and note what is true of it."""
    view, rng = plan.views[number], np.random.default_rng([plan.seed, 1, number])
    layers = render_field(
        cells, view, plan.pixel_size_um, plan.style, margin_px=_margin(view), drawer=plan.drawer
    )
    entry = field_truth(layers, view, plan.pixel_size_um, record.where)
    if "brightfield" in plan.modalities:
        image = _photograph(layers, plan, rng)
        _keep(plan, record, image, "slide-1", view, "brightfield", "MGG")
    if "dic" in plan.modalities:
        image, matrix, rms = _interfere(layers, view, plan, rng)
        _keep(plan, record, image, "slide-1", view, "dic", "unstained")
        entry["brightfield_to_dic"] = [list(r) for r in matrix]
        entry["deformation_rms_px"] = rms
        entry["leukocytes_dic_xyxy"] = [
            [round(v, 2) for v in transform_box(matrix, tuple(b))] for b in entry["leukocytes_xyxy"]
        ]
    _note_field(plan, record, view, layers.labels, entry)


def _take_perls(plan: _Plan, cells: Sequence[TrueCell], record: _Record) -> None:
    """Write the same marrow as a Perls slide, and note what is true of its fields."""
    for view, image, labels, entry in perls_fields(
        cells,
        plan.views,
        plan.pixel_size_um,
        seed=plan.seed,
        bits=plan.bits,
        nuisances=plan.nuisance,
        hard=plan.hard,
        where=record.where,
    ):
        _keep(plan, record, image, "slide-2", view, "brightfield", "Perls")
        _note_field(plan, record, view, labels, entry)


def _keep(
    plan: _Plan, record: _Record, image: Array, slide: str, view: FieldView, modality: str, stain: str
) -> None:
    file = f"{view.name}_{'DIC' if modality == 'dic' else 'BF'}{SUFFIX[plan.format]}"
    write_image(plan.folder / file, image, plan.pixel_size_um, plan.format)
    record.rows.append(manifest_row(slide, view, modality, stain, file, plan.pixel_size_um))


def _note_field(plan: _Plan, record: _Record, view: FieldView, labels: Array, entry: dict[str, Any]) -> None:
    if plan.write_masks:
        write_mask(plan.folder / "truth" / f"{view.name}.png", labels)
    record.fields[view.name] = entry


def _truth_of_cells(cells: Sequence[TrueCell], where: Mapping[int, list[str]]) -> dict[str, Any]:
    seen = [cell_truth(c, where[c.number]) for c in cells if c.number in where]
    return {"cells": seen, "counts": class_counts(seen)}


def _truth_of_iron(cells: list[dict[str, Any]]) -> dict[str, Any]:
    types = [c["rs_type"] for c in cells if c.get("rs_type") is not None]
    return {
        "sideroblasts": {f"type{t}": types.count(t) for t in range(4)},
        "rs_pct": 100.0 * types.count(3) / len(types) if types else None,
    }


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


def _photograph(layers: FieldLayers, plan: _Plan, rng: np.random.Generator) -> Array:
    density, style = np.ascontiguousarray(layers.inner(layers.density)), plan.style
    if plan.nuisance > 0:
        density, style = add_nuisances(density, plan.pixel_size_um, style, rng, plan.nuisance, "MGG")
    return develop(density, plan.pixel_size_um, style, rng, bits=plan.bits)


def _interfere(
    layers: FieldLayers, view: FieldView, plan: _Plan, rng: np.random.Generator
) -> tuple[Array, Any, float]:
    """The DIC partner of a field: (image, matrix brightfield px -> DIC px, rms deformation in px)."""
    shape = (view.height_px, view.width_px)
    matrix = random_similarity(rng, view.width_px, view.height_px, max_shift_px=_max_shift(view))
    rms = 0.3
    displacement = random_deformation(shape, rms, 40.0 / plan.pixel_size_um, rng)
    m = layers.margin_px
    # the layers' pixel (0, 0) is the field's (-m, -m)
    back = np.asarray(invert(matrix))
    back[:, 2] += m
    whole = invert(back)
    path = warp(layers.path, whole, shape, displacement=displacement)
    green = warp(np.ascontiguousarray(layers.density[..., 1]), whole, shape, displacement=displacement)
    image = render_dic(path, plan.pixel_size_um, plan.optics, rng, density=green, bits=plan.bits)
    return image, matrix, rms
