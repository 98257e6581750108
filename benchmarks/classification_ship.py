"""Make the shipped classifier of a training: its card's text, calibrated on what training never saw.

    python -m benchmarks.classification_ship RUN --out DIR

RUN is a package of `smearflow train classifier` with the recipe `leukocytes`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.classification_cells import DATA
from classifiers.calibration import finish_package
from classifiers.cell_set import cell_set
from classifiers.readers import read_cells
from classifiers.recipes import Recipe
from classifiers.sources import split_by_group
from classifiers.timm_classifier import load_strictly
from classifiers.training import new_net
from storage.packages import read_package

TEXT = {
    "version": "0.5.0",
    "intended_use": "Research: naming single leukocytes, erythroblasts and platelets in brightfield images "
    "of MGG, Giemsa or Wright stained blood smears, at any scale.",
    "stains": ("MGG",),
    "specimens": ("blood",),
    "training_data": (
        "Barcelona PBC cells, CC BY 4.0 (Acevedo 2020): 274 labelled single cells",
        "segmentation_WBC, GPL-3.0 (Zheng 2018): 315 leukocytes of two stains, classes unverified",
        "TXL-PBC smears, MIT: boxes of leukocytes, red cells and platelets of three sources; classes of "
        "1,210 leukocytes read by the project from contact sheets, by a machine, not by a haematologist",
        "ImageNet photographs, through published weights of EfficientNet-Lite2 (Apache-2.0), as the start",
    ),
    "limits": (
        "Bands and segmented neutrophils are one class; promyelocytes, myelocytes and metamyelocytes are "
        "one class.",
        "Erythroblasts and immature granulocytes were learnt from about 30 cells each of one laboratory; "
        "bone marrow was never seen.",
        "Blasts, reactive lymphocytes, plasma cells and smudge cells have no class; they should rank as "
        "out-of-distribution, which is not certain.",
        "DIC and virtually stained images were never trained on.",
        "A hospital never seen costs accuracy: docs/classification.md leaves each of five out in turn.",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    package = read_package(options.run)
    recipe, training = Recipe.load("leukocytes"), package.card.training
    net = new_net(recipe, locator=True, seed=0)
    load_strictly(net, package.state_dict(), str(options.run))
    samples = read_cells(DATA, "project")
    train, held = split_by_group(samples, training["holdout"], training["seed"])
    cells = cell_set([samples[i] for i in train], recipe, net.eval())
    metrics = finish_package(
        net, cells, [samples[i] for i in held], recipe, options.out, "leukocyte-classes", training, TEXT
    )
    shown = {
        k: [v["n"], v["top1"], v["macro_f1"], v["ece"]] for k, v in metrics.items() if isinstance(v, dict)
    }
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
