"""Patient-level patterns on phantom patients: attention over cells beside the histogram of classes.

    python benchmarks/patients.py [--train 16] [--test 10] [--cells 80] [--cache DIR] [--write]

Patients are phantoms of known composition (phantoms.patients): nothing here was measured on people.  Test
patients are drawn from seeds that training never saw.  With --write the package `weights/patient-patterns`
is made from the same run.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

KEY_CELLS = {
    "unremarkable": (),
    "left_shift": ("neutrophil_band", "metamyelocyte", "myelocyte", "promyelocyte"),
    "lymphocytosis": ("lymphocyte", "lymphocyte_reactive"),
    "eosinophilia": ("eosinophil",),
    "blasts": ("blast",),
}
SIZES = (5, 10, 20, 40, 80)


def embedded(classifier, pattern: str, seed: int, cells: int, cache: Path | None):
    """A phantom patient through the cell classifier; kept in `cache`, as drawing is slow."""
    from classifiers.patients_training import EmbeddedPatient
    from phantoms.patients import PATTERNS, PIXEL_SIZE_UM, phantom_patient

    index = list(PATTERNS).index(pattern)
    path = cache / f"{pattern}-{seed}-{cells}.npz" if cache else None
    if path is not None and path.is_file():
        with np.load(path) as kept:
            return EmbeddedPatient(index, kept["embeddings"], kept["probabilities"], kept["key"])
    patient = phantom_patient(pattern, cells, np.random.default_rng([seed, index]))
    embeddings, probabilities = classifier.bag(patient.patches, PIXEL_SIZE_UM)
    key = np.isin(patient.kinds, KEY_CELLS[pattern])
    if path is not None:
        np.savez(path, embeddings=embeddings, probabilities=probabilities, key=key)
    return EmbeddedPatient(index, embeddings, probabilities, key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=16, help="patients a pattern")
    parser.add_argument("--test", type=int, default=10)
    parser.add_argument("--cells", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()

    import torch

    from classifiers.patients_training import PatientRecipe, accuracy_by_bag, train_patients
    from phantoms.patients import PATTERNS
    from pipeline.settings import Settings
    from storage.packages import find_package, write_package
    from storage.registry import load

    name = Settings().classification.classifier
    classifier, package = load("classifier", name), find_package(name)
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
    began = time.time()

    def draw(first: int, n: int):
        return [
            embedded(classifier, pattern, first + i, options.cells, options.cache)
            for i in range(n)
            for pattern in PATTERNS
        ]

    train, test = draw(1_000, options.train), draw(50_000, options.test)
    recipe = PatientRecipe(epochs=options.epochs)
    net = train_patients(train, len(PATTERNS), recipe)
    rows = accuracy_by_bag(net, test, SIZES)
    limit = float(net.strangeness_limit)
    strange = np.array([float(net.strangeness(torch.from_numpy(p.embeddings))) for p in test])
    familiar = f"{int((strange <= limit).sum())} of {len(test)} unseen phantom patients"
    print(f"judged as of the training's kind: {familiar} (at most {strange.max():.2f}, limit {limit:.2f})\n")
    print(f"### patient-level patterns on phantoms ({time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores)\n")
    print(f"{len(train)} phantom patients trained on, {len(test)} tested, {len(PATTERNS)} patterns "
          f"(chance {1 / len(PATTERNS):.2f}), {time.time() - began:.0f} s\n")  # fmt: skip
    print(
        "| cells a patient | attention | histogram | key cells ranked by attention (AUC) |\n|---|---|---|---|"
    )
    for r in rows:
        rank = "-" if r["key_cell_rank_auc"] is None else f"{r['key_cell_rank_auc']:.2f}"
        print(f"| {r['cells']} | {r['attention']:.2f} ± {r['attention_se']:.2f} | "
              f"{r['histogram']:.2f} ± {r['histogram_se']:.2f} | {rank} |")  # fmt: skip
    if options.write:
        write_package(
            Path(__file__).resolve().parent.parent / "weights" / "patient-patterns",
            {
                "name": "patient-patterns", "version": "0.5.0", "task": "patient-classifier",
                "architecture": "attention-mil", "weights": "safetensors", "sha256": "",
                "licence": "AGPL-3.0-or-later",
                "intended_use": "Research: which pattern the cells of one blood film make together, and "
                "which cells that rests on. Never a diagnosis.",
                "modalities": ["brightfield"], "stains": ["MGG"], "specimens": ["blood"],
                "pixel_size_um": None, "classes": list(PATTERNS),
                "training_data": [f"{len(train)} phantom patients of {options.cells} drawn cells "
                                  "(phantoms.patients); no real patient"],
                "training": {"recipe": vars(recipe), "split": "by phantom patient"},
                "metrics": {"measured_on": f"{len(test)} unseen phantom patients", "by_bag_size": rows,
                            "of_the_training_s_kind": familiar},
                "limits": [
                    "Trained and tested on phantoms; cells of real patients are unlike them and are not read",
                    "The patterns and their compositions are made up; real disease is not among them",
                    "Of cells like those of its training it names one of its patterns even where none fits",
                ],
                "parameters": {
                    "features": net.mean.shape[0], "width": recipe.width, "hidden": recipe.hidden,
                    "cell_classes": list(classifier.classes), "cell_classifier": name,
                    "cell_classifier_sha256": package.card.sha256,
                },
            },
            net.state_dict(),
        )  # fmt: skip


if __name__ == "__main__":
    main()
