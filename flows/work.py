"""What a worker does for an image: from its path to a registration, detections, a picture and small results.

Every function here takes plain values and specs, reads its pixels itself, and returns a
JSON-able dict; models are built once per worker process by the registry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.settings import KEPT_SCORE, Settings
from pipeline.types import FieldImage
from storage.images import as_rgb

OVERVIEW_WIDTH_PX = 900  # reduced field pictures of the report


def limit_threads() -> None:
    """One thread a worker: the processes already fill the cores, and sums stay reproducible."""
    import cv2

    cv2.setNumThreads(1)
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def model(task: Any, name: str) -> Any:
    """The model of a name, kept by this process, on one thread: loading it may have brought torch."""
    from storage.registry import load

    found = load(task, name)
    limit_threads()
    return found


def read_raw(case_dir: str, image: FieldImage, settings: Settings) -> np.ndarray:
    """The pixels of an image of a case as stored, (H, W) or (H, W, 3) uint8 or uint16."""
    from pipeline.intake import read_field

    return read_field(Path(case_dir), image, settings.intake)


def read(case_dir: str, image: FieldImage, settings: Settings) -> np.ndarray:
    """The pixels of an image of a case as 8 bit, (H, W) or (H, W, 3)."""
    return _eight_bits(read_raw(case_dir, image, settings), image)


def _eight_bits(raw: np.ndarray, image: FieldImage) -> np.ndarray:
    """The 8-bit view of the pixels of an image of a case."""
    from storage.images import to_uint8

    return to_uint8(raw, modality=image.modality, at_least_bits=image.camera_bits, brightest=image.brightest)


def put_jpeg(store_url: str, key: str, rgb: np.ndarray) -> None:
    from pipeline.report_images import encode_jpeg
    from storage.store import Store

    Store(store_url).write_bytes(key, encode_jpeg(rgb, quality=82))


def _reduced(image: np.ndarray, width_px: int) -> np.ndarray:
    import cv2

    scale = min(1.0, width_px / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(as_rgb(image), size, interpolation=cv2.INTER_AREA)


def _expected_shift_px(dic: FieldImage, brightfield: FieldImage) -> tuple[float, float] | None:
    """Where the stage says that the brightfield origin lies in the DIC image, if it says so for both."""
    if dic.x_um is None or dic.y_um is None or brightfield.x_um is None or brightfield.y_um is None:
        return None
    return (
        (brightfield.x_um - dic.x_um) / dic.pixel_size_um,
        (brightfield.y_um - dic.y_um) / dic.pixel_size_um,
    )


def align_field(
    case_dir: str,
    store_url: str,
    picture_key: str,
    dic: FieldImage,
    brightfield: FieldImage,
    settings: Settings,
) -> dict[str, Any]:
    """Register a DIC field to its brightfield partner; keep a picture where the result is in doubt."""
    from pipeline.registration import quality_picture, register
    from pipeline.report_quality import is_doubtful

    limit_threads()
    moving = read_raw(case_dir, dic, settings)
    fixed = read_raw(case_dir, brightfield, settings)
    expected = _expected_shift_px(dic, brightfield)
    found = register(
        moving,
        fixed,
        settings.registration,
        pixel_size_um=brightfield.pixel_size_um,
        dic_pixel_size_um=dic.pixel_size_um,
        expected_shift_px=expected,
    )
    doubtful = is_doubtful(found)
    if doubtful:
        picture = quality_picture(_eight_bits(moving, dic), _eight_bits(fixed, brightfield), found)
        put_jpeg(store_url, picture_key, _reduced(picture, OVERVIEW_WIDTH_PX))
    return {
        # The time is kept out: a result must not differ between two runs of the same inputs.
        "registration": found.model_copy(update={"seconds": 0.0}).model_dump(mode="json"),
        "picture": picture_key if doubtful else None,
    }


def find_cells(
    case_dir: str,
    store_url: str,
    picture_key: str,
    image: FieldImage,
    detector: str | None,
    settings: Settings,
) -> dict[str, Any]:
    """Detect the leukocytes of one image and measure its acquisition quality.

    Without a detector (the DIC partner of a brightfield field) only the quality is measured.  `scale` is what
    the red cells of a stained field say against its pixel size, or None; `faint` how little darker than the
    glass they are, where that is little.
    """
    from detectors.painted import leukocyte_detector
    from pipeline.quality import focus_quality

    model = detector and leukocyte_detector(detector, painted=settings.detection.dic_painted)
    limit_threads()  # after the model, which may have brought torch
    raw = read_raw(case_dir, image, settings)
    # Of the pixels as stored: the 8-bit view of 16-bit DIC is stretched to its own contrast, which hides
    # defocus and makes dark corners and saturated pixels where there are none.
    quality = focus_quality(raw, image.modality, at_least_bits=image.camera_bits)
    pixels = _eight_bits(raw, image)
    del raw
    boxes, scores = list[list[float]](), list[float]()
    scale = faint = None
    if model and image.modality == "brightfield" and hasattr(model, "look"):
        from detectors.contrast import faint_red_cells
        from detectors.scale import contradicted_scale

        scale = contradicted_scale(pixels, image.pixel_size_um, model)
        faint = faint_red_cells(pixels, image.pixel_size_um, model)
    if model:
        found, score = model.detect(pixels, image.pixel_size_um)
        keep = score >= KEPT_SCORE
        boxes = [[round(float(v), 2) for v in box] for box in found[keep]]
        scores = [round(float(s), 4) for s in score[keep]]
        put_jpeg(store_url, picture_key, _reduced(pixels, OVERVIEW_WIDTH_PX))
    return {
        "detections": {
            "slide": image.slide,
            "field": image.field,
            "modality": image.modality,
            "stain": image.stain,
            "detector": detector or "",
            "boxes": boxes,
            "scores": scores,
        },
        "quality": quality.model_dump(mode="json"),
        "picture": picture_key if detector is not None else None,
        "scale": scale and {"pixel_size_um": round(scale.pixel_size_um, 4), "n_red_cells": scale.n_red_cells},
        "faint": None if faint is None else round(faint, 1),
    }


def inspect(
    case_dir: str, store_url: str, picture_key: str, source: Any, sha256: str, settings: Settings
) -> dict[str, Any]:
    """Open, hash and decode one source of a case, whose file had this hash a moment ago.

    Of a whole slide the picture of the chosen fields is kept under `picture_key`.
    Raises InputChanged where it is another by now (a copy still under way, a share that went away), so
    that what was seen of it is not kept under the wrong hash.
    """
    from pipeline.errors import InputChanged
    from pipeline.intake import inspect_source

    limit_threads()

    def keep_picture(rgb: np.ndarray) -> str:
        put_jpeg(store_url, picture_key, rgb)
        return picture_key

    found = inspect_source(Path(case_dir), source, settings.intake, keep_picture)
    seen = {image.sha256 for image in found.images} or {source.hash_file(Path(case_dir))}
    if seen != {sha256}:
        raise InputChanged(f"{source.file} was changed while the case was read; run the case again.")
    document: dict[str, Any] = found.model_dump(mode="json")
    return document
