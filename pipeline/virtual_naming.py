"""A classifier for virtual cells: made for one stainer, taught by the classifier of real stain.

What is learned is how the real stain would have been named, from what the stainer paints in its place,
whichever target it paints towards.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.base import Classifier
from pipeline.classification import classify_patches
from pipeline.errors import BadInput
from pipeline.settings import ClassificationSettings
from stainers.base import Stainer
from stainers.data import PIXEL_SIZE_UM
from stainers.virtual_cells import (
    Subject,
    VirtualCellOptions,
    mark_of_subjects,
    named_crops,
    subjects,
    write_virtual_cells,
)
from storage.checkpoints import keep_earlier
from storage.fingerprint import fingerprint
from storage.packages import ModelPackage
from storage.whole_files import write_text

STAINER_SHA = "stainer_sha256"  # parameter of a card: the weights whose pictures the classifier learned from


def namer_of(classifier: Classifier) -> Callable[[np.ndarray], str | None]:
    """A patch (H, W, 3) uint8 at 0.1 µm a pixel -> its name by a classifier, None where that is in doubt."""
    settings = ClassificationSettings()

    def name(patch: np.ndarray) -> str | None:
        found = classify_patches(patch[None], PIXEL_SIZE_UM, classifier, settings)
        return found.labels[0] if found.confidence[0] >= found.min_confidence else None

    return name


def train_virtual_classifier(
    data: Path,
    out_dir: Path,
    *,
    stainer: tuple[Stainer, ModelPackage],
    namer: tuple[Classifier, ModelPackage],
    crops: Path | None = None,
    crops_pixel_size_um: float | None = None,
    recipe: str = "virtual-leukocytes",
    epochs: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Paint the cells of boxed smears (YOLO-format folder), and of labelled crops, and train on them.

    Cells of the smears that the stainer learned from teach; those of its validation smears set temperature,
    familiarity and the metrics on the card; its test smears are not touched.  Returns the package's folder;
    the pictures lie beside it, and a run that was cut off goes on from them.  Raises BadInput.
    """
    from classifiers.recipes import Recipe
    from classifiers.sources import read_samples
    from classifiers.training import checkpoint_of, train_classifier
    from stainers.data import load_smears
    from storage.images import read_rgb

    # All that can be refused at once is looked at before cells are painted, which takes minutes.
    if crops is None and crops_pixel_size_um is not None:
        raise BadInput(
            "--crops-pixel-size is the scale of labelled crops; name them (--crops), or leave it out."
        )
    painter = stainer[1].card
    if "dic" not in painter.modalities:
        raise BadInput(
            f"stainer '{painter.name}' reads {' and '.join(painter.modalities)}, and virtual cells are "
            "painted from DIC; name a stainer of DIC (--stainer)."
        )
    plan = Recipe.load(recipe)
    keep_earlier(resume, checkpoint_of(out_dir))  # before the cells of that training are painted over
    smears = load_smears(data)
    options = VirtualCellOptions(seed=seed) if draws is None else VirtualCellOptions(draws=draws, seed=seed)
    learned = subjects([s for s in smears if s.split == "train"], seed)
    if crops is not None:
        labelled = [(s.path, s.label) for s in read_samples(crops)]
        learned += named_crops(labelled, crops_pixel_size_um or PIXEL_SIZE_UM, read_rgb, smears)
    held = subjects([s for s in smears if s.split == "validation"], seed)
    if not learned or not held:
        raise BadInput(f"{data}: too few smears with boxed leukocytes to learn from and to hold out.")
    named = namer_of(namer[0])
    mark = fingerprint(painter.sha256, seed, mark_of_subjects([*learned, *held]))
    pictures = _own_folder(out_dir.parent / f".{out_dir.name}.cells", mark, resume)

    def painted(cells: Sequence[Subject], part: str) -> list[Any]:
        held_out = part == "validation"
        return read_samples(
            write_virtual_cells(
                cells, stainer[0], named, pictures / part, options, held=held_out, report=report
            ).parent
        )

    return train_classifier(
        painted(learned, "train"),
        out_dir,
        plan,
        epochs=epochs,
        resume=resume,
        seed=seed,
        start=namer[1].folder,
        held_out=painted(held, "validation"),
        card=_card(data, crops, stainer[1], namer[1], options),
        report=report,
    )


def _own_folder(folder: Path, mark: str, resume: bool) -> Path:
    """The folder of the pictures, emptied but for those that a run to be resumed has painted.

    Raises BadInput where they are another stainer's, of other cells, or of another seed.
    """
    if folder.exists() and not resume:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "painted_by"
    if note.is_file() and note.read_text(encoding="utf-8") != mark:
        raise BadInput(
            f"{folder}: these pictures were painted by another stainer, of other smears, boxes or crops (or "
            "at another scale), or drawn by another seed; leave out --resume and give another folder to "
            "paint them again."
        )
    write_text(note, mark)
    return folder


def _card(
    data: Path, crops: Path | None, stainer: ModelPackage, namer: ModelPackage, options: VirtualCellOptions
) -> Mapping[str, Any]:
    painted = f"{stainer.card.name} {stainer.card.version}"
    given = f"cells of {data.name}" + ("" if crops is None else f" and labelled crops of {crops.name}")
    return {
        "intended_use": f"Research: naming single blood cells that {painted} has painted from DIC.",
        "modalities": ("dic",),
        "stains": ("unstained",),
        "specimens": namer.card.specimens,
        "training_data": (
            f"{given}, painted by {painted} from DIC computed under random optics (phantoms.optics), "
            f"{options.draws} pictures a cell; cells of smears are named by {namer.card.name} "
            f"{namer.card.version} on the real stain, doubtful ones left out",
        ),
        "limits": (
            f"Reads the pictures of {painted} alone. DIC was computed, never photographed.",
            "Its names are those that the classifier of real stain gives, right or wrong.",
        ),
        "parameters": {
            "stainer": stainer.card.name,
            "stainer_version": stainer.card.version,
            STAINER_SHA: stainer.card.sha256,
        },
    }
