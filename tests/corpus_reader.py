"""Reads damaged files as intake does, under a limit of memory; run by tests in a process of its own.

    python -m tests.corpus_reader MEMORY_MIB FILE…

Prints one JSON line before a file (`{"file": …}`) and one after it, with what became of it: when the
process dies or hangs, the last line names the file.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _read(path: Path) -> dict[str, Any]:
    from pipeline.errors import BadInput
    from pipeline.intake import Source, inspect_source
    from pipeline.settings import IntakeSettings
    from storage.images import image_info, read_image
    from storage.slides import is_slide

    settings = IntakeSettings(max_image_pixels=60_000_000)
    found: dict[str, Any] = {
        "kind": "slide" if is_slide(path, max_pixels=settings.max_image_pixels) else "field"
    }
    source = Source(
        slide="s1",
        field="F1",
        modality="brightfield",
        stain="MGG",
        file=path.name,
        kind=found["kind"],
        line=2,
        given_pixel_size_um=0.5 if found["kind"] == "slide" else 0.1,
    )
    inspected = inspect_source(path.parent, source, settings)
    found["images"] = len(inspected.images)
    found["problems"] = [p.message for p in inspected.problems if p.fatal_for_field]
    if found["kind"] == "field":
        try:
            image_info(path)
            found["shape"] = list(read_image(path, max_pixels=settings.max_image_pixels).shape)
        except BadInput as error:
            found["error"] = str(error)
    elif inspected.images:
        from pipeline.intake import read_field

        try:
            found["shape"] = list(read_field(path.parent, inspected.images[0], settings).shape)
        except BadInput as error:
            found["error"] = str(error)
    return found


def main() -> None:
    import cv2  # noqa: F401
    import imagecodecs
    import numpy as np
    import openslide  # noqa: F401
    import tifffile  # noqa: F401

    imagecodecs.png_decode(imagecodecs.png_encode(np.zeros((9, 9), np.uint8)))
    limit = _virtual_bytes() + (int(sys.argv[1]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name in sys.argv[2:]:
        path = Path(name)
        print(json.dumps({"file": path.name}), flush=True)
        started, before = time.process_time(), _peak_mib()
        try:
            found = _read(path)
        except Exception as error:
            found = {"crash": f"{type(error).__name__}: {error}"}
        found["seconds"] = round(time.process_time() - started, 3)
        found["mib"] = round(_peak_mib() - before, 1)
        print(json.dumps({"file": path.name, **found}), flush=True)


if __name__ == "__main__":
    main()
