"""Erythroblasts in whole MGG fields of unseen phantom marrows: found by the detector, named by classifiers.

    python -m benchmarks.marrow_erythroblasts --work DIR [--cases 8] [--development]

Marrows are drawn once into DIR and kept.  Phantoms only: what is said here is of drawn cells.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detectors.boxes import iou_matrix
from phantoms.cases import simulate_case
from phantoms.marrow import ERYTHROID, NORMAL_MARROW
from phantoms.marrow_fields import ERYTHROID_RICH
from pipeline.statistics import clopper_pearson

PX, PATCH_PX, SIDE_PX, THRESHOLD = 0.1, 256, 960, 0.4
UNSEEN_SEED, DEVELOPMENT_SEED = 98_000, 31_000
RS_FRACTION, CORRELATE = 0.3, 0.5


@dataclass(frozen=True)
class Found:
    """A true nucleated cell or a false box: its kind ("nothing" for a box on none), stage, iron type, whether
    a box is on it, and which classifiers call it an erythroblast."""

    kind: str
    stage: str
    rs_type: int | None
    boxed: bool
    named: dict[str, bool] = field(default_factory=dict)

    @property
    def erythroid(self) -> bool:
        return self.kind in ERYTHROID


def make_case(root: Path, seed: int) -> Path:
    """A marrow of two small MGG fields, every other one rich in erythroblasts, drawn once."""
    folder = root / f"mgg-{seed}"
    if not (folder / "truth.json").is_file():
        simulate_case(
            folder,
            case_id=f"mgg-{seed}",
            seed=seed,
            n_fields=2,
            width_px=SIDE_PX,
            height_px=SIDE_PX,
            pixel_size_um=PX,
            modalities=("brightfield",),
            specimen="bone_marrow",
            composition=ERYTHROID_RICH if seed % 2 else NORMAL_MARROW,
            n_leukocytes_per_field=27,
            rs_fraction=RS_FRACTION,
            correlate=CORRELATE,
        )
    return folder


def read_case(folder: Path, finder: Any, classifiers: dict[str, Any]) -> list[Found]:
    """Find the cells of both fields and name them as the virtual Perls stage does."""
    from pipeline.patches import crop_patches
    from pipeline.virtual_perls import erythroblasts_of
    from storage.images import read_rgb

    truth = json.loads((folder / "truth.json").read_text())
    cells = {c["id"]: c for c in truth["cells"]}
    out: list[Found] = []
    for name, seen in truth["fields"].items():
        image = read_rgb(folder / f"{name}_BF.tif")
        boxes, scores = finder.detect(image, PX)
        boxes = boxes[scores >= THRESHOLD]
        overlaps = iou_matrix(boxes, np.array(seen["leukocytes_xyxy"], np.float32).reshape(-1, 4))
        centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
        patches = crop_patches(
            image, centres, size_px=PATCH_PX, pixel_size_um=PX, target_pixel_size_um=PX, fill="reflect"
        )
        said = {k: erythroblasts_of(patches, PX, c) for k, c in classifiers.items()}
        taken: set[int] = set()
        for i in range(len(boxes)):
            named = {k: bool(v[i]) for k, v in said.items()}
            j = int(overlaps[i].argmax()) if overlaps.shape[1] else -1
            if j < 0 or overlaps[i, j] < 0.5 or j in taken:
                out.append(Found("nothing", "", None, True, named))
                continue
            taken.add(j)
            out.append(_true(cells[seen["cell_ids"][j]], True, named))
        missed = (cells[c] for j, c in enumerate(seen["cell_ids"]) if j not in taken)
        out += [_true(cell, False, dict.fromkeys(classifiers, False)) for cell in missed]
    return out


def _true(cell: dict[str, Any], boxed: bool, named: dict[str, bool]) -> Found:
    return Found(cell["class"], cell.get("stage") or "", cell.get("rs_type"), boxed, named)


def report(found: Sequence[Found], names: Sequence[str]) -> str:
    """The tables as text."""
    true = [f for f in found if f.kind != "nothing"]
    erythroid = [f for f in true if f.erythroid]
    lines = [
        f"nucleated cells boxed {share([f.boxed for f in true])}; boxes on a cell "
        f"{share([f.kind != 'nothing' for f in found if f.boxed])}"
    ]
    for name in names:
        mine = [f for f in found if f.named[name]]
        lines.append(
            f"{name}: erythroblasts found and named {share([f.named[name] for f in erythroid])}; of cells "
            f"named so, erythroblasts {share([f.erythroid for f in mine])}"
        )
        kinds = {(f.kind, f.stage) for f in erythroid}
        for kind, stage in sorted(kinds):
            those = [f.named[name] for f in erythroid if (f.kind, f.stage) == (kind, stage)]
            lines.append(f"  {kind} {stage}: {sum(those)}/{len(those)}")
        rings = [f.named[name] for f in erythroid if f.rs_type == 3]
        others = [f.named[name] for f in erythroid if f.rs_type != 3]
        lines.append(f"  ring sideroblasts {share(rings)}, others {share(others)}")
        wrong = [f.kind for f in mine if not f.erythroid]
        lines.append(f"  wrongly named: { {k: wrong.count(k) for k in sorted(set(wrong))} }")
    return "\n".join(lines)


def share(hits: Sequence[bool]) -> str:
    k, n = sum(hits), len(hits)
    low, high = clopper_pearson(k, n) if n else (0.0, 1.0)
    return f"{k}/{n} = {k / max(1, n):.3f} ({low:.3f}-{high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--development", action="store_true", help="seeds that figures may be set on")
    parser.add_argument("--finder", default="leukocyte-brightfield")
    parser.add_argument("--classifiers", default="marrow-erythroblasts,leukocyte-classes")
    given = parser.parse_args()
    from storage.registry import load

    names = [n for n in given.classifiers.split(",") if n]
    finder, classifiers = load("detector", given.finder), {n: load("classifier", n) for n in names}
    base = DEVELOPMENT_SEED if given.development else UNSEEN_SEED
    started = time.time()
    found: list[Found] = []
    for i in range(given.cases):
        found += read_case(make_case(given.work / "mgg-marrows", base + i), finder, classifiers)
    print(report(found, names))
    machine = f"{os.cpu_count()} cores {platform.machine()}"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
