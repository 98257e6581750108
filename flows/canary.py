"""The canary: a phantom of known truth that runs before a night's cases, through the stages that name cells.

A model file that was swapped, a worker with another library, a GPU that computes nonsense: each would give
fifty reports that look like reports.  So the night begins with a case whose truth is known, and is stopped
where its figures moved.

Two questions are asked of each figure.  Against the truth of the phantom: is the machine fit to work at
all?  The limits are wide, since a phantom is no smear and models may miss some of its cells.  Against the
record of the first good night with the same models and settings: has anything moved?  The limits are
narrow.  The same software on the same machine gives the same figures exactly; another worker (a GPU for a
CPU, other vector instructions) differs in the last digits of a sum, which can carry one cell over a
threshold.  Hence one cell of the count, two hundredths of a mean probability, a tenth of a pixel.

Models, settings or software that were changed on purpose have a record of their own, begun on their first
night; the summary says so.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flows import stages, unit_stages
from flows.cluster import Workers
from flows.runs import open_run, settings_of
from pipeline.errors import SmearflowError
from pipeline.settings import Settings, named_models
from storage.fingerprint import fingerprint
from storage.json_text import json_text
from storage.store import CaseBusy, Store
from storage.whole_files import write_whole

log = logging.getLogger("smearflow.canary")

CASE_ID = "canary"
FOLDER = "nights"
VERSION = 1  # raised where the phantom or the figures change: older records no longer apply
SEED = 20261121
PHANTOM = {"n_fields": 2, "width_px": 900, "height_px": 700, "n_leukocytes_per_field": 8}
DIC_ONLY_FIELD = "F002"  # its brightfield image is left out, so that virtual staining is tried too

WAIT_S = 180.0  # for another night's canary

# figure: how far it may be from the phantom's truth
TRUTH_TOLERANCE = {"share_of_cells_found": 0.4, "registration_error_px": 1.5}
# figure: how far it may be from the first good night with the same models and settings
RECORD_TOLERANCE = {
    "cells": 1.0,
    "cells_virtual": 1.0,
    "cells_named": 1.0,
    "mean_confidence": 0.02,
    "mean_novelty": 0.02,
    "mean_stain_confidence": 0.02,
    "mean_area_um2": 2.0,
    "registration_error_px": 0.1,
    "share_of_cells_found": 0.07,
}


def sing(store: Store, settings: dict[str, Any] | None, workers: Workers) -> dict[str, Any]:
    """Run the canary; {"status": ok, first, off or alarm, "message", "figures", "checks", "seconds"}.

    `first` is a night without a record to compare with.  What keeps it from running is an alarm as well.
    """
    found = settings_of(settings)
    if not found.night.canary:
        return {"status": "off", "message": "the canary is turned off (night.canary)"}
    if store.folder is None and workers.scheduler is not None and found.night.canary_folder is None:
        message = (
            "the canary was not run: with a remote store and workers elsewhere, night.canary_folder has to "
            "name a folder that every worker sees"
        )
        log.warning(message)
        return {"status": "not run", "message": message}
    started = time.monotonic()
    try:
        figures = _patiently(lambda: measure(store, found, settings, workers))
        answer = judge(figures, _record(store, key_of(found)))
        if answer["status"] in ("ok", "first"):
            _keep(store, key_of(found), answer["figures"])
    except Exception as error:
        log.exception("the canary could not be run")
        answer = {
            "status": "alarm",
            "message": f"CANARY: the canary case could not be run, and no case was touched: "
            f"{type(error).__name__}: {error}",
        }
    return {**answer, "seconds": round(time.monotonic() - started, 2)}


def _patiently(measured: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The figures; where a second night runs the canary just now, after it."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return measured()
        except CaseBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def key_of(settings: Settings) -> str:
    """What figures may be compared: the same phantom, stages, models, settings and release."""
    from importlib.metadata import version

    return fingerprint(
        "canary",
        VERSION,
        version("smearflow"),
        stages.VERSIONS,
        settings.model_dump(mode="json", exclude={"night", "report", "counting"}),
        {key: stages.model_sha(task, name) for key, (task, name) in named_models(settings).items()},
    )


def _folder(store: Store, settings: Settings) -> Path:
    """Where the canary's images and store lie; every worker has to see it."""
    if settings.night.canary_folder:
        return Path(settings.night.canary_folder)
    if store.folder is not None:
        return store.folder / FOLDER / CASE_ID
    return Path(tempfile.gettempdir()) / f"smearflow-{CASE_ID}"


def measure(
    store: Store, settings: Settings, values: dict[str, Any] | None, workers: Workers
) -> dict[str, float]:
    """Run the phantom from intake to the names of its cells, nothing reused, and take its figures.

    Not run are the choice of a target, virtual Perls, explanation, patient and report.  Raises OSError where
    what was computed last night cannot be removed.
    """
    folder = _folder(store, settings)
    place = Store(folder / "store")
    with place.writing(CASE_ID):
        for old in ("work", "case.zarr", "progress"):  # what was computed last night says nothing of tonight
            place.delete(f"{CASE_ID}/{old}")
        case_dir = _phantom(folder)
        run = open_run(case_dir, place.url, values, workers)
        run.ledger.begin()
        try:
            figures = _figures(run, json.loads((case_dir / "truth.json").read_text())["fields"])
        except BaseException as error:
            run.end(error)
            raise
        run.end()
        if run.reused:
            raise SmearflowError(f"the canary took what an earlier night had computed ({run.reused})")
        return figures


def _phantom(folder: Path) -> Path:
    """The case folder: drawn once, and drawn again where it is not exactly what was drawn."""
    from phantoms.cases import simulate_case

    case_dir, seal = folder / CASE_ID, folder / f"{CASE_ID}.seal.json"
    wanted = {"version": VERSION, "seed": SEED, **PHANTOM}
    if seal.is_file() and case_dir.is_dir():
        try:
            kept = json.loads(seal.read_text())
        except ValueError:
            kept = {}
        if kept.get("phantom") == wanted and kept.get("files") == _hashes(case_dir):
            return case_dir
    if case_dir.exists():
        shutil.rmtree(case_dir)
    simulate_case(case_dir, case_id=CASE_ID, seed=SEED, **PHANTOM)  # type: ignore[arg-type]
    manifest = case_dir / "manifest.csv"
    rows = manifest.read_text().splitlines()
    kept_rows = [r for r in rows if not (f",{DIC_ONLY_FIELD}," in r and ",brightfield," in r)]
    write_whole(manifest, ("\n".join(kept_rows) + "\n").encode())
    write_whole(seal, json_text({"phantom": wanted, "files": _hashes(case_dir)}).encode())
    return case_dir


def _hashes(case_dir: Path) -> dict[str, str]:
    from storage.fingerprint import sha256_of

    return {p.name: sha256_of(p) for p in sorted(case_dir.iterdir()) if p.is_file()}


def _figures(run: Any, truth: dict[str, Any]) -> dict[str, float]:
    case = stages.intake(run)
    registrations, _ = stages.registration(run, case)
    detections, _, _, _ = stages.detection(run, case)
    cells = stages.cells(run, case, detections, registrations)
    patches_mark = unit_stages.patches(run, case, cells)
    staining_mark, doubt = unit_stages.staining(run, case, cells, patches_mark)
    classes = unit_stages.classification(run, cells, patches_mark, staining_mark, doubt)
    true_boxes = {
        field: known["leukocytes_dic_xyxy" if field == DIC_ONLY_FIELD else "leukocytes_xyxy"]
        for field, known in truth.items()
    }
    n_true = sum(len(boxes) for boxes in true_boxes.values())
    n_found = sum(_hits([c.bbox_px for c in cells if c.field == f], boxes) for f, boxes in true_boxes.items())
    areas = [c.area_um2 for c in classes if c.area_um2 is not None]
    figures = {
        "cells": len(cells),
        "cells_virtual": sum(c.modality == "dic" for c in cells),
        "cells_named": sum(c.label not in ("unidentified", "artefact") for c in classes),
        "share_of_cells_found": n_found / n_true,
        "registration_error_px": _registration_error(registrations, truth),
        "mean_confidence": _mean([c.confidence for c in classes]),
        "mean_novelty": _mean([c.ood for c in classes]),
        "mean_stain_confidence": _mean([v for v, _ in doubt.values()]),
        "mean_area_um2": _mean(areas),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _hits(found: list[Any], true: list[Any]) -> int:
    """True boxes whose middle lies in a box that was found."""
    middles = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in true]
    return sum(any(f[0] <= x <= f[2] and f[1] <= y <= f[3] for f in found) for x, y in middles)


def _registration_error(registrations: dict[Any, Any], truth: dict[str, Any]) -> float:
    """Mean distance of a grid from where the phantom put it, pixels; 99 where one was not aligned."""
    width, height = PHANTOM["width_px"], PHANTOM["height_px"]
    grid = np.array([[x, y, 1.0] for x in (50, width / 2, width - 50) for y in (50, height / 2, height - 50)])
    errors = []
    for (_, field), found in registrations.items():
        if found.matrix is None:
            return 99.0
        difference = np.array(found.matrix) - np.array(truth[field]["brightfield_to_dic"])
        errors.append(np.linalg.norm(grid @ difference.T, axis=1).mean())
    return _mean(errors) if errors else 99.0


def judge(figures: dict[str, float], record: dict[str, float] | None) -> dict[str, Any]:
    """Compare figures with truth and with the record of the first good night, where there is one."""
    perfect = {"share_of_cells_found": 1.0, "registration_error_px": 0.0}
    checks = [
        _check(name, figures[name], perfect[name], tolerance, "truth")
        for name, tolerance in TRUTH_TOLERANCE.items()
    ]
    if record is not None:
        checks += [
            _check(name, figures[name], record[name], tolerance, "record")
            for name, tolerance in RECORD_TOLERANCE.items()
            if name in record
        ]
    moved = [c for c in checks if not c["ok"]]
    answer: dict[str, Any] = {"figures": figures, "checks": checks}
    if not moved:
        status = "ok" if record is not None else "first"
        return {**answer, "status": status, "message": f"{len(checks)} figures of the canary are as expected"}
    said = "; ".join(
        f"{c['figure'].replace('_', ' ')} is {c['value']}, expected {c['expected']} ± {c['tolerance']} "
        f"({c['against']})"
        for c in moved
    )
    return {
        **answer,
        "status": "alarm",
        "message": f"CANARY: the figures of the canary case moved, and no case was touched: {said}. Compare "
        "the model packages, the libraries and the workers with those of the first good night.",
    }


def _check(figure: str, value: float, expected: float, tolerance: float, against: str) -> dict[str, Any]:
    return {
        "figure": figure,
        "value": value,
        "expected": expected,
        "tolerance": tolerance,
        "against": against,
        "ok": bool(abs(value - expected) <= tolerance + 1e-9),
    }


def _record_key(key: str) -> str:
    return f"{FOLDER}/{CASE_ID}-{key[:16]}.json"


def _record(store: Store, key: str) -> dict[str, float] | None:
    """The figures of the first good night with this key; they stay, so that a slow drift adds up."""
    if not store.exists(_record_key(key)):
        return None
    try:
        found = store.read_json(_record_key(key))
        return {str(k): float(v) for k, v in found["figures"].items()} if found["key"] == key else None
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("the canary's record was damaged; tonight's figures take its place")
        return None


def _keep(store: Store, key: str, figures: dict[str, float]) -> None:
    if _record(store, key) is None:
        store.write_json(_record_key(key), {"key": key, "figures": figures})
