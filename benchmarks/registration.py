"""Registration against its peers, in one run on one core: errors, refusals, false matches, time.

    python -m benchmarks.registration                 # the table
    python -m benchmarks.registration --null          # scores of mismatched pairs, for the stored null

Pairs: real stained fields with a computed DIC counterpart (benchmarks.registration_pairs; the seeds
and photographs are not those that the method was developed on), and the case folders with their own
truth.  Errors are mean distances over a grid, in DIC pixels.  Processor time is given beside wall
time, since it says what a core did when other jobs ran.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from benchmarks.registration_pairs import Pair, case_pairs, grid_error, make_pair
from pipeline.registration import register

Method = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
FIRST_SEED = 1000
ROOT = Path(__file__).resolve().parent.parent


def ours(dic: np.ndarray, brightfield: np.ndarray) -> np.ndarray | None:
    found = register(dic, brightfield, pixel_size_um=0.1)
    return None if found.matrix is None else np.asarray(found.matrix)


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W) uint8 by the real range, which is kinder to the peers than their own reading of 16 bits."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    if grey.dtype == np.uint8:
        return grey
    low, high = np.percentile(grey[::4, ::4], [0.1, 99.9])
    return np.clip((grey - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)


def _gradient(image: np.ndarray) -> np.ndarray:
    grey = cv2.GaussianBlur(_grey(image).astype(np.float32), (0, 0), 1.5)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def _ecc(template: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-5)
    warp = np.eye(2, 3, dtype=np.float32)
    try:
        return cv2.findTransformECC(template, moving, warp, cv2.MOTION_AFFINE, criteria, None, 5)[1]
    except cv2.error:
        return None


def ecc_raw(dic: np.ndarray, brightfield: np.ndarray) -> np.ndarray | None:
    return _ecc(_grey(brightfield), _grey(dic))


def ecc_gradient(dic: np.ndarray, brightfield: np.ndarray) -> np.ndarray | None:
    return _ecc(_gradient(brightfield), _gradient(dic))


def ecc_multiscale(dic: np.ndarray, brightfield: np.ndarray) -> np.ndarray | None:
    """OpenCV 5's own pyramid, on gradients."""
    warp = np.eye(2, 3, dtype=np.float32)
    try:
        return cv2.findTransformECCMultiScale(_gradient(brightfield), _gradient(dic), warp)[1]
    except cv2.error:
        return None


def phase_correlation(dic: np.ndarray, brightfield: np.ndarray) -> np.ndarray | None:
    """Shift only, on gradients, full size."""
    a, b = _gradient(brightfield), _gradient(dic)
    if a.shape != b.shape:
        return None
    (dx, dy), response = cv2.phaseCorrelate(a, b, cv2.createHanningWindow(a.shape[::-1], cv2.CV_32F))
    return np.array([[1, 0, dx], [0, 1, dy]]) if response > 0.03 else None


def _features(maker: Callable[[], cv2.Feature2D], norm: int) -> Method:
    def run(dic: np.ndarray, brightfield: np.ndarray) -> np.ndarray | None:
        finder = maker()
        points_b, marks_b = finder.detectAndCompute(_grey(brightfield), None)
        points_d, marks_d = finder.detectAndCompute(_grey(dic), None)
        if marks_b is None or marks_d is None:
            return None
        pairs = [m for m in cv2.BFMatcher(norm).knnMatch(marks_b, marks_d, k=2) if len(m) == 2]
        good = [a for a, b in pairs if a.distance < 0.8 * b.distance]
        if len(good) < 10:
            return None
        source = np.float32([points_b[m.queryIdx].pt for m in good])
        target = np.float32([points_d[m.trainIdx].pt for m in good])
        matrix, inliers = cv2.estimateAffine2D(source, target, ransacReprojThreshold=3)
        return matrix if matrix is not None and inliers.sum() >= 10 else None

    return run


METHODS: dict[str, tuple[Method, bool]] = {  # and whether it is slow
    "smearflow": (ours, False),
    "phase correlation, gradients": (phase_correlation, False),
    "ORB + RANSAC": (_features(lambda: cv2.ORB_create(4000), cv2.NORM_HAMMING), False),
    "SIFT + RANSAC": (_features(lambda: cv2.SIFT_create(4000), cv2.NORM_L2), True),
    "findTransformECC, raw": (ecc_raw, True),
    "findTransformECC, gradients": (ecc_gradient, True),
    "findTransformECCMultiScale, gradients": (ecc_multiscale, True),
}


def add_optional_peers() -> list[str]:
    """SimpleITK and pystackreg where they are installed; the names of those that are not."""
    missing = [n for n in ("SimpleITK", "pystackreg") if importlib.util.find_spec(n) is None]
    if "SimpleITK" not in missing:
        METHODS["SimpleITK, mutual information"] = (_simpleitk, True)
    if "pystackreg" not in missing:
        METHODS["pystackreg, gradients"] = (_stackreg, True)
    return missing


def _simpleitk(dic: np.ndarray, brightfield: np.ndarray) -> np.ndarray | None:
    import SimpleITK as sitk

    fixed, moving = (sitk.GetImageFromArray(_grey(im).astype(np.float32)) for im in (brightfield, dic))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.05, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([8, 4, 2])
    method.SetSmoothingSigmasPerLevel([4, 2, 1])
    first = sitk.CenteredTransformInitializer(fixed, moving, sitk.AffineTransform(2))
    method.SetInitialTransform(first, inPlace=False)
    try:
        found = method.Execute(fixed, moving)
    except RuntimeError:
        return None
    at = [np.array(found.TransformPoint(p)) for p in ((0.0, 0.0), (1000.0, 0.0), (0.0, 1000.0))]
    return np.column_stack([(at[1] - at[0]) / 1000, (at[2] - at[0]) / 1000, at[0]])


def _stackreg(dic: np.ndarray, brightfield: np.ndarray) -> np.ndarray | None:
    from pystackreg import StackReg

    matrix = StackReg(StackReg.AFFINE).register(_gradient(brightfield), _gradient(dic))
    return np.asarray(matrix)[:2]


def pairs(data: Path, made: int, cases: int | None = None, first_seed: int = FIRST_SEED) -> Iterator[Pair]:
    yield from islice(case_pairs(data), cases)
    for seed in range(first_seed, first_seed + made):
        yield make_pair(data, seed, split="val")


class Tally:
    """What one method did."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.refused = 0
        self.false_matches = 0
        self.mismatches = 0
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def run(self, method: Method, dic: np.ndarray, brightfield: np.ndarray) -> np.ndarray | None:
        wall, cpu = time.perf_counter(), time.process_time()
        matrix = method(dic, brightfield)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return matrix

    def pair(self, method: Method, pair: Pair) -> None:
        matrix = self.run(method, pair.dic, pair.brightfield)
        if matrix is None:
            self.refused += 1
        else:
            self.errors.append(grid_error(matrix, pair.matrix))

    def mismatch(self, method: Method, dic: np.ndarray, brightfield: np.ndarray) -> None:
        self.mismatches += 1
        self.false_matches += self.run(method, dic, brightfield) is not None


def compare(
    data: Path, made: int, slow: int, log: Path | None, cases: int | None = None, first_seed: int = FIRST_SEED
) -> str:
    missing = add_optional_peers()
    tallies = {name: {"cases": Tally(), "made": Tally()} for name in METHODS}
    previous: Pair | None = None
    n = {"cases": 0, "made": 0}
    for pair in pairs(data, made, cases, first_seed):
        group = "cases" if pair.optics is None else "made"
        for name, (method, is_slow) in METHODS.items():
            if is_slow and n[group] >= slow:  # of each kind of pairs
                continue
            tally = tallies[name][group]
            tally.pair(method, pair)
            if previous is not None:  # the field before it: another field, often of the same slide
                tally.mismatch(method, previous.dic, pair.brightfield)
            if name == "smearflow" and log is not None:
                error = tally.errors[-1] if tally.errors else None
                with log.open("a") as lines:
                    about = [pair.name, pair.patches, pair.shift_px, pair.rotation_deg, pair.deformation_px]
                    print(json.dumps([*about, error, tally.refused, tally.cpu[-1]]), file=lines)
        n[group] += 1
        previous = pair
    return table(tallies, n, missing)


def table(tallies: dict[str, dict[str, Tally]], n: dict[str, int], missing: list[str]) -> str:
    base = np.median([*tallies["smearflow"]["cases"].cpu, *tallies["smearflow"]["made"].cpu])
    load = os.getloadavg()[0]
    absent = f"  Not installed, not compared: {', '.join(missing)}." if missing else ""
    heads = ["method", "pairs", "n", "refused", "median px", "p90", "p99", "worst", "over 0.6 px"]
    heads += ["false matches"]
    heads += ["wall s", "CPU s", "CPU, times ours"]
    lines = [
        f"{datetime.date.today()}, OpenCV {cv2.__version__}, Python {sys.version.split()[0]}, one thread on "
        f"a machine of {os.cpu_count()} cores, load {load:.1f}; {n['cases']} case pairs and {n['made']} made "
        f"pairs (computed DIC).{absent}",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
    ]
    for name, groups in tallies.items():
        for group, t in groups.items():
            total = len(t.errors) + t.refused
            if not total:
                continue
            figures = (
                " | ".join(f"{v:.2f}" for v in (*np.percentile(t.errors, [50, 90, 99]), max(t.errors)))
                if t.errors
                else "- | - | - | -"
            )
            over = sum(e > 0.6 for e in t.errors)
            cpu = float(np.median(t.cpu))
            lines.append(
                f"| {name} | {group} | {total} | {t.refused} | {figures} | {over} | "
                f"{t.false_matches} of {t.mismatches} | {np.median(t.wall):.2f} | {cpu:.3f} | "
                f"{cpu / base:.1f} |"
            )
    return "\n".join(lines)


def null(data: Path, made: int) -> str:
    """Search scores and agreeing tiles of mismatched pairs and of true ones, and their Gumbel law."""
    import pipeline.registration_checks as module

    seen: list[tuple[float, float, int]] = []
    original = module.p_false_accept

    def keep(score, evidence):
        seen.append((score, evidence.agreement, evidence.n_tiles))
        return original(score, evidence)

    module.p_false_accept = keep
    everything = list(case_pairs(data)) + [make_pair(data, seed) for seed in range(made)]
    rng = np.random.default_rng(20261121)
    true, wrong, accepted = [], [], 0
    for i, pair in enumerate(everything):
        seen.clear()
        ours(pair.dic, pair.brightfield)
        true += seen
        others = [j for j in range(len(everything)) if j != i]
        for j in rng.choice(others, min(6, len(others)), replace=False):
            seen.clear()
            accepted += ours(pair.dic, everything[j].brightfield) is not None
            wrong += seen
    score = np.array([w[0] for w in wrong])
    scale = float(score.std() * np.sqrt(6) / np.pi)
    mode = float(score.mean() - 0.5772 * scale)
    tiles = np.array([w[1] * w[2] for w in wrong])
    low_score, low_share = min(t[0] for t in true), min(t[1] for t in true)
    return (
        f"{len(wrong)} mismatched pairs, {accepted} accepted: search score mode {mode:.2f}, Gumbel scale "
        f"{scale:.2f}, highest {score.max():.2f}; agreeing tiles at most {tiles.max():.0f}.  "
        f"{len(true)} true pairs: lowest score {low_score:.1f}, lowest agreement {low_share:.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--made", type=int, default=24, help="computed pairs beside the case folders")
    parser.add_argument("--cases", type=int, help="case pairs [all]")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the made pairs")
    parser.add_argument("--slow", type=int, default=3, help="pairs of each kind for the slow peers")
    parser.add_argument("--null", action="store_true", help="measure the null distribution instead")
    parser.add_argument("--log", type=Path, help="file that gets a line for each pair as it is done")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not (data / "cases").is_dir():
        sys.exit(f"no real images at {data}; set SMEARFLOW_DATA")
    if options.null:
        print(null(data, options.made))
    else:
        how = (options.made, options.slow, options.log, options.cases, options.first_seed)
        print(compare(data, *how))


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":  # the libraries read it when they are loaded, so start anew
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.registration", *sys.argv[1:]], os.environ | one
        )
    main()
