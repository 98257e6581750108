"""Make shipped detectors cheap for a processor: sparse box head and 8-bit trunk (detectors.compact).

    python -m benchmarks.detection_compact [NAME …] [--out DIR] [--float]

Reads a package of detectors.export, calibrates on canvases of the training part (SMEARFLOW_DATA), measures
AP on the validation part before and after, and writes the package anew, in its place or under --out.
Of four draws of canvases the one with the best AP50-95 is taken, and a package whose AP50-95 falls by more
than 0.005 is left as it is.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261121
CALIBRATION, CALIBRATION_PX, DRAWS = 32, 320, 4
MAX_LOSS = 0.005


def canvases(samples: list, pixel_size_um: float, dic: bool, draw: int) -> list[np.ndarray]:
    """Canvases as in training, half of them as photographed and half varied a little."""
    from detectors.packing import endless, pack
    from detectors.training import dic_look

    rng = np.random.default_rng(SEED + draw)
    stream = endless(samples, rng)
    look = dic_look if dic else None
    return [
        pack(stream, CALIBRATION_PX, pixel_size_um, rng, look, strength)[0]
        for strength in (0.0, 0.35) * (CALIBRATION // 2)
    ]


def convert(name: str, out: Path | None, parts: dict, to_float: bool) -> bool:
    import onnx

    from detectors.compact import compact
    from detectors.evaluation import evaluate_detector
    from detectors.export import halve
    from detectors.training import dic_look
    from detectors.yolo_onnx import YoloOnnxDetector
    from storage.packages import find_package, write_package

    package = find_package(name)
    if package is None or package.card.pixel_size_um is None:
        sys.exit(f"{name}: there is no such detector package; see `smearflow models`.")
    if "inference" in package.card.training:
        print(f"{name}: is compact already.")
        return True
    card, dic = package.card, package.card.modalities == ("dic",)
    look = dic_look if dic else None

    def figures(detector: YoloOnnxDetector) -> dict:
        return evaluate_detector(detector, parts["val"], None, detector.threshold, look=look)["all"]

    with tempfile.TemporaryDirectory() as temporary:
        kind = "sparse box head" if to_float else "sparse box head, 8-bit trunk"
        changed = card.model_dump() | {
            "training": {**card.training, "inference": f"{kind} (detectors.compact)"}
        }
        before, after, path = figures(YoloOnnxDetector(package)), {"ap50_95": -1.0}, Path()
        # What 8 bits lose depends on the canvases that they are fitted to by a few thousandths of AP.
        for draw in range(1 if to_float else DRAWS):
            images = None if to_float else canvases(parts["train"], card.pixel_size_um or 0.25, dic, draw)
            tried = Path(temporary) / f"model-{draw}.onnx"
            onnx.save(halve(compact(onnx.load(str(package.weights_path)), images)), str(tried))
            draft = write_package(Path(temporary) / package.folder.name, changed, tried)
            found = figures(YoloOnnxDetector(draft))
            if found["ap50_95"] > after["ap50_95"]:
                after, path = found, tried
        print(
            f"{name}, validation part, {before['n_images']} images: "
            f"AP50 {before['ap50']:.4f} -> {after['ap50']:.4f}, "
            f"AP50-95 {before['ap50_95']:.4f} -> {after['ap50_95']:.4f}; "
            f"{package.weights_path.stat().st_size / 2**20:.1f} -> {path.stat().st_size / 2**20:.1f} MiB"
        )
        if after["ap50_95"] < before["ap50_95"] - MAX_LOSS:
            print(f"{name}: that is a loss of more than {MAX_LOSS}; the package stays as it is.")
            return False
        write_package((out or package.folder.parent) / package.folder.name, changed, path)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=["leukocyte-brightfield", "leukocyte-dic"])
    parser.add_argument("--out", type=Path, help="folder for the packages [their own]")
    parser.add_argument("--float", action="store_true", help="sparse box head only")
    arguments = parser.parse_args()
    from detectors.datasets import read_yolo_folder, split
    from detectors.training import FRACTIONS

    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    parts = split(read_yolo_folder(data / "smears"), FRACTIONS, SEED)
    done = [convert(name, arguments.out, parts, arguments.float) for name in arguments.names]
    sys.exit(not all(done))


if __name__ == "__main__":
    main()
