"""Speed and memory of the leukocyte detector beside ultralytics' own `predict`, on the CPU, in one run.

    python benchmarks/detection_speed.py [--fields 4] [--slide-px 40000]

The peer runs the same network (the shipped ONNX file turned into an ultralytics model, torch, and
again through ultralytics' ONNX Runtime backend) on the same fields at the same physical scale, so that
both reach the same AP; the AP of each is printed beside its time.  The slide is virtual: each window is
drawn when it is read, so that the memory measured is the detector's.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def torch_network(onnx_path: Path) -> Any:
    """An ultralytics model with the weights of an ONNX package (its convolutions, norms folded in)."""
    import onnx
    import torch
    from onnx import numpy_helper

    from detectors.training import build_network

    network = build_network().fuse(verbose=False).eval()
    tensors = {
        t.name.removesuffix("_half"): numpy_helper.to_array(t)
        for t in onnx.load(str(onnx_path)).graph.initializer
    }
    state = network.state_dict()
    missing = [k for k in state if k.startswith("model.") and k not in tensors and "dfl" not in k]
    if missing:
        raise SystemExit(f"{onnx_path} lacks {missing[:3]}; the peer cannot be built from it.")
    network.load_state_dict(
        {
            k: torch.from_numpy(np.array(tensors[k], np.float32)) if k in tensors else v
            for k, v in state.items()
        }
    )
    return network


def fields(data: Path, count: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """(image, truth boxes, pixel size) of whole brightfield fields."""
    from detectors.datasets import read_image

    out = []
    for folder in sorted((data / "cases").iterdir()):
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        for name, entry in truth["fields"].items():
            image = read_image(folder / f"{name}_BF.tif")
            out.append((image, np.array(entry["leukocytes_xyxy"]), truth["pixel_size_um"]))
    return out[:: max(1, len(out) // count)][:count]


class VirtualSlide:
    """A slide of one repeated field: pixels exist only while they are read."""

    dtype = np.dtype(np.uint8)

    def __init__(self, field: np.ndarray, side: int) -> None:
        self.field, self.shape = field, (side, side, 3)

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        rows = np.arange(where[0].start, where[0].stop) % self.field.shape[0]
        columns = np.arange(where[1].start, where[1].stop) % self.field.shape[1]
        return self.field[np.ix_(rows, columns)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fields", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slide-px", type=int, default=0, help="side of a virtual slide; 0 leaves it out")
    arguments = parser.parse_args()
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
    import cv2
    import psutil

    from detectors.evaluation import average_precision
    from storage.packages import find_package
    from storage.registry import load

    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    images = fields(data, arguments.fields)
    truth = [t for _, t, _ in images]
    ours = load("detector", "leukocyte-brightfield")
    package = find_package("leukocyte-brightfield")
    rows: dict[str, tuple[float, float]] = {}

    def timed(name: str, run: Any) -> None:
        run(*images[0][::2])  # warm
        best, found = [], []
        for image, _, um in images:
            times = []
            for _ in range(arguments.repeats):
                began = time.perf_counter()
                result = run(image, um)
                times.append(time.perf_counter() - began)
            best.append(min(times))
            found.append(result)
        ap = average_precision([f[0] for f in found], [f[1] for f in found], truth)[0]
        rows[name] = (float(np.mean(best)), ap)

    timed("smearflow", ours.detect)
    from ultralytics import YOLO

    peer = YOLO("yolo11n.yaml", verbose=False)
    peer.model = torch_network(package.weights_path)

    def predict(image: np.ndarray, um: float) -> tuple[np.ndarray, np.ndarray]:
        factor = um / ours.pixel_size_um
        size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        result = peer.predict(
            small[..., ::-1],
            imgsz=(-(-size[1] // 32) * 32, -(-size[0] // 32) * 32),
            conf=0.01,
            classes=[0],
            device="cpu",
            verbose=False,
            max_det=1000,
        )[0].boxes
        return result.xyxy.numpy() / factor, result.conf.numpy()

    timed("ultralytics predict", predict)
    print(f"\n{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {len(images)} fields of 2064 x 1544 px\n")
    print("| | s a field | AP50 |\n|---|---|---|")
    for name, (seconds, ap) in rows.items():
        print(f"| {name} | {seconds:.3f} | {ap:.3f} |")
    print(f"\nratio {rows['ultralytics predict'][0] / rows['smearflow'][0]:.2f}")
    if arguments.slide_px:
        process = psutil.Process()
        before, began = process.memory_info().rss, time.perf_counter()
        boxes, _ = ours.detect(VirtualSlide(images[0][0], arguments.slide_px), images[0][2])
        grown = (process.memory_info().rss - before) / 2**20
        print(
            f"slide of {arguments.slide_px} px: {len(boxes)} boxes, {time.perf_counter() - began:.0f} s, "
            f"{grown:.0f} MiB more than before"
        )


if __name__ == "__main__":
    main()
