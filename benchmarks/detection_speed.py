"""Speed and memory of the leukocyte detector beside its peers on the CPU, in one run.

    python -m benchmarks.detection_speed [--threads 1] [--repeats 5] [--slide-px 40000]

Peers run the same network (its weights put back into an ultralytics model): ultralytics' own `predict`
at its default size, and at the size at which it works at our physical scale, which is what it needs to
reach our AP; and sliced inference as SAHI documents it (by the `sahi` package where it is installed, else
by the same algorithm written here).  Ours and a peer take turns on every image, and the ratio is the
median over images and repeats of their times of the same turn, so that what else the machine does falls on
both; processor time stands beside wall time, since it says what a core did.  The AP of each stands
beside its time.

With --slide-px a tiled, JPEG-compressed pyramid of that side is written (repeated fields; a sparse file
for the rest), and the peak memory of choosing its fields, of reading and detecting them, and of running
the detector over the whole slide is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SEED = 20261121
CONF = 0.01
SLICE_PX, SLICE_OVERLAP = 512, 0.2
Run = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]


def torch_network(onnx_path: Path) -> Any:
    """An ultralytics model with the weights of an ONNX package (its convolutions, norms folded in).

    Weights of 8 bits are multiplied out, so that the peer has the very numbers that ours has.
    """
    from detectors.starting import folded_state
    from detectors.training import build_network

    network = build_network().fuse(verbose=False).eval()
    network.load_state_dict(folded_state(onnx_path, network.state_dict()))
    return network


def domains(data: Path, count: int) -> dict[str, list[tuple[np.ndarray, np.ndarray, float]]]:
    """(image, truth boxes, pixel size) of whole fields, and of held-out smear images by source."""
    from detectors.datasets import LEUKOCYTE, read_yolo_folder, split
    from detectors.training import FRACTIONS
    from storage.images import read_rgb

    found: dict[str, list] = {"fields 2064x1544": []}
    for folder in sorted((data / "cases").iterdir()):
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        for name, entry in truth["fields"].items():
            image = read_rgb(folder / f"{name}_BF.tif")
            found["fields 2064x1544"].append(
                (image, np.array(entry["leukocytes_xyxy"]), truth["pixel_size_um"])
            )
    for sample in split(read_yolo_folder(data / "smears"), FRACTIONS, SEED)["test"]:
        item = (read_rgb(sample.path), sample.of(LEUKOCYTE), sample.pixel_size_um)
        found.setdefault(f"smears {sample.source}", []).append(item)
    return {k: v[:: max(1, len(v) // count)][:count] for k, v in found.items() if len(v) >= 5}


class Peers:
    """The peers, all with one network."""

    def __init__(self, weights: Path, pixel_size_um: float, threads: int) -> None:
        import torch

        network = torch_network(weights)  # first: it tells ultralytics its folder
        from ultralytics import YOLO

        self.model = YOLO("yolo11n.yaml", verbose=False)
        self.model.model = network
        self.pixel_size_um = pixel_size_um
        torch.set_num_threads(threads)

    def predict(self, image: np.ndarray, size: Any) -> tuple[np.ndarray, np.ndarray]:
        result = self.model.predict(
            image[..., ::-1], imgsz=size, conf=CONF, classes=[0], device="cpu", verbose=False
        )[0].boxes
        return result.xyxy.numpy(), result.conf.numpy()

    def default(self, image: np.ndarray, um: float) -> tuple[np.ndarray, np.ndarray]:
        return self.predict(image, 640)

    def _matched(self, image: np.ndarray, um: float) -> tuple[int, int]:
        factor = um / self.pixel_size_um
        return tuple(max(32, -(-round(s * factor) // 32) * 32) for s in image.shape[:2])

    def matched(self, image: np.ndarray, um: float) -> tuple[np.ndarray, np.ndarray]:
        """imgsz such that its letterbox comes to our scale: the multiple of 32 next above."""
        return self.predict(image, self._matched(image, um))

    def sliced(self, image: np.ndarray, um: float) -> tuple[np.ndarray, np.ndarray]:
        """SAHI's algorithm: slices of 512 px overlapping by a fifth, the whole image beside them, and
        greedy merging by intersection over the smaller box (Akyon et al. 2022, ICIP)."""
        import cv2

        from detectors.boxes import suppress

        factor = um / self.pixel_size_um
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
        height, width = small.shape[:2]
        boxes, scores = [], []
        step = round(SLICE_PX * (1 - SLICE_OVERLAP))
        parts = [(0, 0, width, height)]
        if max(height, width) > SLICE_PX:
            for y in range(0, max(1, height - SLICE_PX + step), step):
                for x in range(0, max(1, width - SLICE_PX + step), step):
                    x0, y0 = max(0, min(x, width - SLICE_PX)), max(0, min(y, height - SLICE_PX))
                    parts.append((x0, y0, min(width, x0 + SLICE_PX), min(height, y0 + SLICE_PX)))
        for x0, y0, x1, y1 in parts:
            part = np.ascontiguousarray(small[y0:y1, x0:x1])
            size = tuple(-(-s // 32) * 32 for s in part.shape[:2])
            found, score = self.predict(part, size)
            boxes.append(found + np.tile([x0, y0], 2))
            scores.append(score)
        everything, score = np.concatenate(boxes), np.concatenate(scores)
        keep = suppress(everything, score, 0.9, 0.5)
        return everything[keep] / factor, score[keep]


def compare(ours: Run, peer: Run, images: list, repeats: int) -> tuple[list[float], list[float], list, list]:
    """Median wall and processor seconds of ours and of the peer, median ratios of a turn (wall, processor),
    and what both found."""
    for run in (ours, peer):
        run(*images[0][::2])  # warm
    times: list[tuple[float, ...]] = []
    found: tuple[list, list] = ([], [])
    for turn in range(repeats):
        for image, _, um in images:
            # Who begins changes with the turn.
            order = (0, 1) if turn % 2 == 0 else (1, 0)
            measured = {}
            for who in order:
                began, worked = time.perf_counter(), time.process_time()
                result = (ours, peer)[who](image, um)
                measured[who] = time.perf_counter() - began, time.process_time() - worked
                if turn == 0:
                    found[who].append(result)
            times.append((*measured[0], *measured[1]))
    t = np.array(times)
    medians = [float(v) for v in np.median(t, axis=0)]
    return medians, [float(np.median(t[:, 2 + k] / t[:, k])) for k in (0, 1)], *found


def difference(ours: list, peer: list, truth: list, draws: int = 200) -> tuple[float, float]:
    """95 % interval of the difference in AP50-95 on the same images (bootstrap over images)."""
    from detectors.evaluation import average_precision

    rng, found = np.random.default_rng(SEED), []
    for _ in range(draws):
        pick = rng.integers(0, len(truth), len(truth))
        a, b = (
            average_precision([x[i][0] for i in pick], [x[i][1] for i in pick], [truth[i] for i in pick])[1]
            for x in (ours, peer)
        )
        found.append(a - b)
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def speed(data: Path, detector: str, threads: int, count: int, repeats: int) -> str:
    from detectors.evaluation import average_precision
    from storage.packages import find_package
    from storage.registry import load

    package = find_package(detector)
    assert package is not None
    ours = load("detector", detector)
    peers = Peers(package.weights_path, ours.pixel_size_um, threads)
    rows = [
        ("ultralytics predict, imgsz as needed", peers.matched),
        ("ultralytics predict, default imgsz 640", peers.default),
        ("sliced inference (SAHI's algorithm), 512 px", peers.sliced),
    ]
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {threads} thread(s), "
        f"load {os.getloadavg()[0]:.1f}; {detector}, median times of {repeats} turns",
        "",
        "| images | n | peer | ours, wall / CPU s | peer, wall / CPU s | ratio, wall | ratio, CPU | "
        "ours AP50 / 50-95 | peer AP50 / 50-95 | AP50-95, ours less peer's, 95 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for domain, images in domains(data, count).items():
        truth = [t for _, t, _ in images]
        for name, peer in rows:
            if peer == peers.sliced and "fields" not in domain:
                continue
            medians, ratios, a, b = compare(ours.detect, peer, images, repeats)
            wall, work, its_wall, its_work = medians
            low, high = difference(a, b, truth)
            ap = [average_precision([f[0] for f in x], [f[1] for f in x], truth)[:2] for x in (a, b)]
            lines.append(
                f"| {domain} | {len(images)} | {name} | {wall:.3f} / {work:.3f} | "
                f"{its_wall:.3f} / {its_work:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} | "
                f"{ap[0][0]:.3f} / {ap[0][1]:.3f} | {ap[1][0]:.3f} / {ap[1][1]:.3f} | "
                f"{low:+.3f} to {high:+.3f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", default="leukocyte-brightfield")
    parser.add_argument("--images", type=int, default=6, help="of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slide-px", type=int, default=0, help="side of a slide; 0 leaves memory out")
    parser.add_argument("--only-slide", action="store_true", help="memory alone")
    arguments = parser.parse_args()
    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    if not arguments.only_slide:
        import cv2

        cv2.setNumThreads(arguments.threads)
        print(
            speed(data, arguments.detector, arguments.threads, arguments.images, arguments.repeats),
            flush=True,
        )
    if arguments.slide_px:
        from benchmarks.slide_memory import measure

        print(measure(data, arguments.slide_px, arguments.detector))


if __name__ == "__main__":
    if "--threads" in sys.argv:
        wanted = sys.argv[sys.argv.index("--threads") + 1]
    else:
        wanted = "1"
    if os.environ.get("OMP_NUM_THREADS") != wanted:  # libraries read it when they are loaded, so start anew
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.detection_speed", *sys.argv[1:]],
            os.environ | {"OMP_NUM_THREADS": wanted, "OPENBLAS_NUM_THREADS": wanted},
        )
    main()
