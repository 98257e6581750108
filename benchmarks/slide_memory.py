"""Peak memory of a run over a large whole slide, each part in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PIXEL_SIZE_UM = 0.25
PATTERN_PX = 4096
PARTS = {
    "start": "the detector loaded, one field read and detected",
    "choose": "intake: thumbnail, scores, choice and picture",
    "fields": "{fields} fields all over the slide, read and detected one after the other",
    "strip": "a strip as wide as the slide and {strip} px high as one image, detected in windows",
}


def pattern(data: Path) -> np.ndarray:
    """(4096, 4096, 3) uint8 at 0.25 µm: whole real fields side by side, and bare glass between them."""
    import cv2

    from storage.images import read_rgb

    image = np.empty((PATTERN_PX, PATTERN_PX, 3), np.uint8)
    image[:] = (240, 236, 232)
    files = sorted((data / "cases").glob("*/*_BF.tif"))
    factor = 0.1 / PIXEL_SIZE_UM
    fields = [
        cv2.resize(read_rgb(f), None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) for f in files
    ]
    height, width = fields[0].shape[:2]
    i = 0
    for y in range(0, PATTERN_PX - height + 1, height):
        for x in range(0, PATTERN_PX - width + 1, width):
            image[y : y + height, x : x + width] = fields[i % len(fields)]
            i += 1
    return image


def part(name: str, folder: Path, detector: str, n_fields: int, strip_px: int) -> dict[str, Any]:
    """One part, here; peak resident memory in MiB, seconds, and what was found."""
    from pipeline.intake import read_case, read_field
    from pipeline.settings import IntakeSettings
    from storage.registry import load

    settings = IntakeSettings()
    began, fields, cells = time.perf_counter(), 0, 0
    if name == "strip":
        from storage.slide_windows import SlideWindows
        from storage.slides import SlideReader

        with SlideReader(next(folder.glob("*.svs"))) as reader:
            strip: Any = SlideWindows(reader, height_px=strip_px)
            _, scores = load("detector", detector).detect(strip, PIXEL_SIZE_UM)
        fields, cells = 1, int((scores > 0.4).sum())
    else:
        if name == "fields":
            update = {"max_slide_fields": 100_000, "slide_field_choice": "stained area"}
            settings = settings.model_copy(update=update)
        elif name == "start":
            from pipeline.settings import FieldPosition

            settings = settings.model_copy(update={"slide_fields": (FieldPosition(x_px=0, y_px=0),)})
        case = read_case(folder, settings)
        if name == "choose":
            fields = len(case.images)
        else:
            finder = load("detector", detector)
            for image in case.images[:: max(1, len(case.images) // n_fields)][:n_fields]:
                pixels = read_field(folder, image, settings)
                cells += int((finder.detect(pixels, image.pixel_size_um)[1] > 0.4).sum())
                fields += 1
    return {
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds": time.perf_counter() - began,
        "fields": fields,
        "cells": cells,
    }


def measure(data: Path, side_px: int, detector: str, n_fields: int = 120, strip_px: int = 4000) -> str:
    """The table for a slide of `side_px` squared."""
    from phantoms.slides import write_repeated_pyramid

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "M1"
        folder.mkdir()
        path = write_repeated_pyramid(folder / "slide.svs", pattern(data), side_px, PIXEL_SIZE_UM)
        lines = [
            f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, one thread, "
            f"load {os.getloadavg()[0]:.1f}; a slide of {side_px} x {side_px} px at {PIXEL_SIZE_UM} µm "
            f"(JPEG tiles, three levels; "
            f"{side_px**2 * 3 / 2**30:.1f} GiB as pixels, {path.stat().st_size / 2**20:.0f} MiB as a file "
            "of repeated tiles)",
            "",
            "| part | fields | leukocytes over 0.4 | peak memory, MiB | s |",
            "|---|---|---|---|---|",
        ]
        for name, what in PARTS.items():
            # A process of its own: a peak never falls again.
            arguments = [name, str(folder), detector, str(n_fields), str(strip_px)]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.slide_memory", *arguments],
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            r = json.loads(done.stdout.splitlines()[-1])
            shown = what.format(fields=r["fields"], strip=strip_px)
            lines.append(
                f"| {shown} | {r['fields']} | {r['cells']} | {r['peak_mib']:.0f} | {r['seconds']:.0f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(
        description=f"{__doc__}  Prints the figures of one part; the table is of benchmarks.detection_speed."
    )
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("folder", type=Path, help="case folder with the slide")
    parser.add_argument("detector")
    parser.add_argument("fields", type=int)
    parser.add_argument("strip_px", type=int)
    asked = parser.parse_args()
    print(json.dumps(part(asked.part, asked.folder, asked.detector, asked.fields, asked.strip_px)))
