"""Synthetic cases for the tests of counting, flags and reports: counts that are known by construction."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from pipeline.report import build_result
from pipeline.report_inputs import ModelUse, Quality, RunInfo
from pipeline.result import Result
from pipeline.settings import Settings
from pipeline.types import Case, Cell, CellClass, FieldImage, FocusQuality, Registration
from storage.packages import ModelCard

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KNOWN = (
    "blast",
    "immature_granulocyte",
    "neutrophil",
    "eosinophil",
    "basophil",
    "monocyte",
    "lymphocyte",
    "erythroblast",
    "platelet",
    "smudge",
    "artefact",
    "unidentified",
)
BLOOD = {"neutrophil": 120, "lymphocyte": 60, "monocyte": 12, "eosinophil": 6, "basophil": 2}
GOOD_FOCUS = FocusQuality(
    variance=0.02,
    normalised_variance=0.03,
    laplacian_variance=0.004,
    illumination_ratio=0.95,
    saturation_pct=0.1,
)


def image(
    field: str = "F1", modality: str = "brightfield", stain: str = "MGG", slide: str = "s1", **change
) -> FieldImage:
    values = {
        "slide": slide,
        "field": field,
        "modality": modality,
        "stain": stain,
        "file": f"{slide}_{field}_{modality}_{stain}.tif",
        "pixel_size_um": 0.1,
        "pixel_size_source": "manifest",
        "width_px": 2064,
        "height_px": 1544,
        "bits": 8,
        "channels": 3,
    }
    values["sha256"] = "".join(f"{ord(c):02x}" for c in values["file"]).ljust(64, "0")[:64]
    return FieldImage(**{**values, **change})


def a_case(n_fields: int = 5, specimen: str | None = "blood", **change) -> Case:
    values = {
        "case_id": "K-001",
        "specimen": specimen,
        "collected": "2026-01-01",
        "mode": "brightfield",
        "images": tuple(image(f"F{i + 1}") for i in range(n_fields)),
        "n_fields_declared": n_fields,
    }
    return Case(**{**values, **change})


def cells_of(
    counts: dict[str, int],
    n_fields: int = 5,
    *,
    confidence: float = 0.95,
    stain: str = "MGG",
    modality: str = "brightfield",
    start: int = 0,
    virtual: bool = False,
    rs_type: str | None = None,
    rs_type_second: str | None = None,
    rs_finder: str | None = None,
    rs_reader: str | None = None,
    ood: float = 0.5,
    known: tuple[str, ...] = KNOWN,
) -> tuple[tuple[Cell, ...], tuple[CellClass, ...]]:
    """Cells of given classes, dealt to the fields in turn."""
    cells, classes = [], []
    labels = [label for label, n in counts.items() for _ in range(n)]
    for i, label in enumerate(labels):
        field, number = f"F{i % n_fields + 1}", start + i
        x, y = 60.0 + 97 * (number % 19), 60.0 + 83 * (number // 19 % 17)
        cell_id = f"s1/{field}/{number:04d}"
        cells.append(
            Cell(
                cell_id=cell_id,
                slide="s1",
                field=field,
                modality=modality,
                stain=stain,
                bbox_px=(x, y, x + 80, y + 78),
                score=0.9,
                x_um=None,
                y_um=None,
                at_border=False,
            )
        )
        rest = [k for k in known if k != label]
        probabilities = {k: (1 - confidence) / len(rest) for k in rest} | {label: confidence}
        classes.append(
            CellClass(
                cell_id=cell_id,
                label=label,
                probabilities=probabilities,
                confidence=confidence,
                ood=ood,
                virtual=virtual,
                rs_type=rs_type,
                rs_type_second=rs_type_second,
                rs_finder=rs_finder,
                rs_reader=rs_reader,
            )
        )
    return tuple(cells), tuple(classes)


def both(*parts):
    """Cells and classes of several calls of `cells_of`, together."""
    return tuple(c for p in parts for c in p[0]), tuple(k for p in parts for k in p[1])


def a_card(**change) -> ModelCard:
    values = {
        "name": "leukocyte-classes",
        "version": "1.0.0",
        "task": "classifier",
        "architecture": "resnet18",
        "weights": "onnx",
        "sha256": "a" * 64,
        "licence": "CC-BY-4.0",
        "intended_use": "Naming leukocytes of stained blood smears; research only.",
        "modalities": ("brightfield",),
        "stains": ("MGG",),
        "specimens": ("blood",),
        "pixel_size_um": 0.1,
        "classes": KNOWN,
        "training_data": ("synthetic, for tests",),
        "metrics": {},
        "limits": ("blasts were never seen",),
    }
    return ModelCard(**{**values, **change})


def a_model(**change) -> ModelUse:
    card = a_card()
    values = {
        "name": card.name,
        "version": card.version,
        "sha256": card.sha256,
        "card": card,
        "reads": (("brightfield", "MGG"),),
        "seen_pixel_size_um": 0.1,
        "found_sha256": card.sha256,
    }
    return ModelUse(**{**values, **change})


def a_run(**change) -> RunInfo:
    values = {
        "fingerprint": "f" * 64,
        "config_sha256": "c" * 64,
        "created": CREATED,
        "models": (a_model(),),
        "known_classes": KNOWN,
        "min_confidence": 0.6,
    }
    return RunInfo(**{**values, **change})


def good_quality(case: Case) -> Quality:
    return Quality(focus={(i.slide, i.field, i.modality, i.stain): GOOD_FOCUS for i in case.images})


def aligned(**change) -> Registration:
    values = {
        "status": "ok",
        "matrix": ((1.0, 0.0, 3.0), (0.0, 1.0, -2.0)),
        "ecc": 0.7,
        "residual_px": 0.3,
        "residual_p95_px": 0.8,
        "residual_um": 0.03,
        "residual_p95_um": 0.08,
    }
    return Registration(**{**values, **change})


def a_result(
    counts: dict[str, int] | None = None, case: Case | None = None, settings: Settings | None = None, **change
) -> Result:
    """The result of a blood case of 200 cells, or of what is given."""
    case = case or a_case()
    cells, classes = change.pop("read", None) or cells_of(counts or BLOOD, max(1, len(case.images)))
    run = change.pop("run", None) or a_run()
    quality = change.pop("quality", None) or good_quality(case)
    return build_result(case, cells, classes, quality, run, settings or Settings(), **change)


def a_picture(seed: int = 0, size: int = 96) -> np.ndarray:
    """(size, size, 3) uint8, a disc on a pale ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    disc = (x - size / 2) ** 2 + (y - size / 2) ** 2 < (size * rng.uniform(0.2, 0.4)) ** 2
    picture = np.full((size, size, 3), (232, 222, 226), np.float64)
    picture[disc] = rng.uniform((90, 40, 110), (150, 110, 190))
    return np.clip(picture + rng.normal(0, 5, picture.shape), 0, 255).astype(np.uint8)
