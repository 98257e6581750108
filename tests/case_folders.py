"""Small case folders for tests, whole and with one thing wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from pipeline.settings import IntakeSettings
from pipeline.types import Case, Problem

S = IntakeSettings()
HEADER = "slide,field,modality,stain,file,pixel_size_um"


def colour(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((96, 128, 3), (228, 222, 226), np.uint8)
    image[20:60, 30:70] = (120, 70, 160)
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


def grey(seed: int) -> np.ndarray:
    return np.random.default_rng(1000 + seed).integers(90, 160, (96, 128)).astype(np.uint8)


def make_case(folder: Path, fields: int = 2, *, paired: bool = True, header: str = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for n in range(1, fields + 1):
        tifffile.imwrite(folder / f"F{n}_BF.tif", colour(n), photometric="rgb", compression="lzw")
        lines.append(f"s1,F{n},brightfield,MGG,F{n}_BF.tif,0.1")
        if paired:
            tifffile.imwrite(folder / f"F{n}_DIC.tif", grey(n))
            lines.append(f"s1,F{n},dic,unstained,F{n}_DIC.tif,0.1")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_manifest(folder: Path, *rows: str, header: str = HEADER) -> None:
    (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def manifest_rows(folder: Path) -> list[str]:
    return (folder / "manifest.csv").read_text(encoding="utf-8").splitlines()[1:]


def the_problem(case: Case, code: str) -> Problem:
    found = [p for p in case.problems if p.code == code]
    assert len(found) == 1, case.problems
    return found[0]


ROW = "s1,F1,brightfield,MGG,F1_BF.tif,0.1"


def is_one_sentence(message: str) -> None:
    """Whether an error can stand on a terminal as it is."""
    assert message
    assert message.isprintable(), message
    assert len(message) < 1500
