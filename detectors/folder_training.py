"""A detector trained on a folder of labelled images: its parts, the training, the package, its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detectors.data_scale import scales_of
from detectors.datasets import read_yolo_folder
from detectors.parts import PARTS, n_without_label_file, parts_of, remarks_on, write_split
from detectors.starting import said_of
from detectors.training import CANVAS_PX, FRACTIONS, Recipe, dic_look, train
from pipeline.errors import BadInput


def train_detector(
    data_dir: Path,
    out_dir: Path,
    modality: str = "brightfield",
    epochs: int = 60,
    resume: bool = False,
    seed: int = 20261121,
    start: Path | None = None,
    canvases_per_epoch: int | None = None,
    batch: int = 8,
    canvas_px: int = CANVAS_PX,
    stop_at: float | None = None,
    name: str | None = None,
    pixel_size_um: float | None = None,
    log: Any = print,
) -> dict[str, Any]:
    """Train on any YOLO-format folder and write an ONNX model package to `out_dir/package`.

    A folder's own parts (train, val, test) are kept; one without is split, near-duplicates on one side.  The
    split is written to `out_dir` and the package (split.csv); the test part is looked at once, for the card.
    `pixel_size_um` is that of every image, where given; else each has its own (`read_yolo_folder`).
    `modality` "dic" trains on DIC computed from the stained images.  Returns {"epochs", "best",
    "history", "n_images", "n_without_label_file", "remarks", "test", "package"}; package is None where
    `stop_at` ended the run early.  Raises BadInput for a folder without images or leukocytes.
    """
    from storage.packages import check_package_place, write_package

    data_dir = Path(data_dir)
    name = name or f"leukocyte-{modality}-{data_dir.resolve().name}"
    folder = Path(out_dir) / "package"
    check_package_place(folder)
    samples = read_yolo_folder(data_dir, pixel_size_um)
    log(json.dumps({"pixel_size_from": scales_of(samples)}, ensure_ascii=False), flush=True)
    parts, parted = parts_of(data_dir, samples, FRACTIONS, seed)
    if not any(len(s.of(0)) for s in parts["train"]):
        raise BadInput(f"{data_dir} has no box of class 0 (leukocyte) to learn from.")
    recipe = Recipe(
        modality=modality,
        epochs=epochs,
        canvases_per_epoch=canvases_per_epoch or max(batch, len(parts["train"]) // 4),
        batch=batch,
        canvas_px=canvas_px,
        seed=seed,
    )
    about = {
        "n_images": {part: len(parts[part]) for part in PARTS},
        "n_without_label_file": n_without_label_file(samples),
        "remarks": remarks_on(parts),
    }
    log(json.dumps({"split": parted, **about}, ensure_ascii=False), flush=True)
    result = train(parts, Path(out_dir), recipe, start=start, resume=resume, stop_at=stop_at, log=log) | about
    write_split(parts, data_dir, Path(out_dir))
    if result["epochs"] < recipe.epochs:
        return result | {"package": None}  # interrupted: resume finishes and packs it
    from detectors.evaluation import evaluate_detector
    from detectors.export import detector_card, write_detector_package
    from detectors.yolo_onnx import YoloOnnxDetector

    data = (f"{data_dir}: {len(parts['train'])} images", *(said_of(start) if start else ()))
    limits = ("trained by smearflow train detector; judge it before use", *about["remarks"])
    card = detector_card(name, recipe, data, {}, limits, training={"split": parted, **about})
    package = write_detector_package(Path(out_dir) / "best.pt", folder, card)
    if parts["test"]:
        look = dic_look if modality == "dic" else None
        report = evaluate_detector(
            YoloOnnxDetector(package), parts["test"], Path(out_dir) / "test", look=look
        )
        metrics = {"held-out part": report["all"], **{f"source {k}": v for k, v in report["sources"].items()}}
        package = write_package(folder, card | {"metrics": metrics}, package.weights_path)
        result |= {"test": report["all"]}
    write_split(parts, data_dir, package.folder)
    return result | {"package": str(package.folder)}
