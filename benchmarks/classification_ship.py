"""Make the shipped classifier of two trainings: the mean of their weights, calibrated on what neither saw.

    python -m benchmarks.classification_ship RUN RUN --out DIR

RUN is a package of `smearflow train classifier`; all are of one recipe but for its augmentation, one split
and one start.  Networks tuned from the same start lie in one basin, and the mean of their weights holds
better than each on images that are unlike the training's (model soups, Wortsman et al., ICML 2022).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.classification_cells import DATA
from classifiers.calibration import finish_package
from classifiers.networks import CellNet
from classifiers.readers import read_cells
from classifiers.recipes import Recipe
from classifiers.sources import level_classes, split_by_group
from classifiers.training import cell_set
from pipeline.errors import BadInput
from storage.packages import find_package

TEXT = {
    "version": "0.3.0",
    "intended_use": "Research: naming single leukocytes, erythroblasts and platelets in brightfield images "
    "of MGG, Giemsa or Wright stained blood smears, at any scale.",
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


def mean_state(
    states: list[dict[str, torch.Tensor]], own: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The mean of state dicts, in the types of `own`; whole numbers are the first one's."""
    return {
        k: (
            torch.stack([s[k].float() for s in states]).mean(0) if v.is_floating_point() else states[0][k]
        ).to(v.dtype)
        for k, v in own.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    packages = [find_package(str(run)) for run in options.runs]
    if any(p is None for p in packages):
        raise BadInput("each RUN has to be a folder with a model package.")
    trainings = [p.card.training for p in packages]
    if len({(t["seed"], t["holdout"], t["recipe"]["backbone"]) for t in trainings}) > 1:
        raise BadInput("the runs differ in split or backbone; average only runs of one split.")
    recipe, first = Recipe.load("leukocytes"), trainings[0]
    net = CellNet(recipe.backbone, len(level_classes(recipe.level)), locator=True, none_output=True)
    net.load_state_dict(mean_state([p.state_dict() for p in packages], net.state_dict()))
    samples = read_cells(DATA, "project")
    train, held = split_by_group(samples, first["holdout"], first["seed"])
    cells = cell_set([samples[i] for i in train], recipe, net.eval())
    training = {
        "mean_of": [{"recipe": t["recipe"], "pretrained": t["pretrained"]} for t in trainings],
        **{k: first[k] for k in ("seed", "holdout", "trained_cells", "recipe")},
    }
    metrics = finish_package(
        net, cells, [samples[i] for i in held], recipe, options.out, "leukocyte-classes", training, TEXT
    )
    shown = {
        k: [v["n"], v["top1"], v["macro_f1"], v["ece"]] for k, v in metrics.items() if isinstance(v, dict)
    }
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
