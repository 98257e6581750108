"""Training of a picture stainer from end to end: the set, the run, the choice of a checkpoint, the package.

Which family it is makes no difference here: each has a module with `train`, found by its architecture.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import BadInput
from stainers.cell_sets import StainSet
from stainers.choice import best_of
from stainers.dic_sets import DicSet
from stainers.gan_export import VIEWS, CardText, Error, export_dic, export_pictures
from stainers.gan_records import run_on_picture
from stainers.gan_training import GanRun, Progress, Score
from stainers.networks import PolarityNet
from stainers.picture_data import DataOptions, accuracy_score, check_parts, read_set
from stainers.picture_stainer import grey_picture
from storage.packages import ModelPackage

Array = np.ndarray[Any, Any]

MODULES = {
    "cyclegan": "stainers.cyclegan",
    "pix2pixhd-ac": "stainers.pix2pixhd",
    "colorization": "stainers.colorization",
}
POLARITY_STEPS = 600
SPLIT = "by image, near-duplicates together, by the hash of the name"


def train_set(
    data: StainSet,
    out_dir: Path,
    recipe: Any,
    *,
    polarity: PolarityNet | None = None,
    resume: bool = False,
    stop_at: int | None = None,
    scores: Mapping[str, Score] | None = None,
    chosen: str = "loss",
    scale: tuple[float, float] = (1.0, 1.0),
    text: Callable[[str], CardText] | None = None,
    progress: Progress | None = None,
) -> ModelPackage:
    """Train on a set and write `out_dir`/package, and package-backward where there is a way back.

    The checkpoint is the best by `chosen`: `loss`, `last`, or the name of one of `scores`; the last, and the
    card says so, where this run measured none.  `scale` is that of the source and the target pictures; `text`
    gives the card's words of a generator.
    """
    run = importlib.import_module(MODULES[recipe.architecture]).train(
        data, out_dir, recipe, resume=resume, stop_at=stop_at, scores=scores, progress=progress
    )
    best = best_of(out_dir, chosen)
    if best is None:
        chosen = "last"
    else:
        run.take_averages(best)
    words = text or (lambda name: plain_text(recipe, data, name, chosen, run))
    if data.source.modality == "dic":
        return _export_dic(run, data, out_dir, recipe, polarity, words("forward"))
    packages = [
        export_run(run, data, name, scale, out_dir / _folder(name), words(name)) for name in run.generators
    ]
    return packages[0]


def _folder(generator: str) -> str:
    return "package" if generator == "forward" else f"package-{generator}"


def plain_text(recipe: Any, data: StainSet, generator: str, chosen: str, run: GanRun) -> CardText:
    """A card's words where nobody knows more than the set."""
    ends = (data.source.domain, data.target.domain)
    source, target = ends if generator == "forward" else ends[::-1]
    counts = ", ".join(f"{len(c.part('train'))} of {c.domain}" for c in (data.source, data.target))
    dic = data.source.modality == "dic"
    return CardText(
        name=f"{source}-to-{target}",
        intended_use=f"The look of {target} for cells seen in {source}. Research only.",
        training_data=(
            f"{counts}" + ("; DIC computed by phantoms.optics, never photographed" if dic else ""),
        ),
        limits=("Never tried on images of other sources.",),
        targets=(target,),
        stains=("unstained",) if dic else ("MGG",),
        modalities=("dic",) if dic else ("brightfield",),
        pixel_size_um=0.1 if dic else None,
        error="pair" if data.paired else "cycle" if "backward" in run.averages else "structure",
        training={
            "steps_done": run.step,
            "checkpoint": chosen,
            "checkpoint_step": run.checkpoint_step,
            "split": SPLIT,
            "trained_on": str(run.device),
        },
    )


def export_run(
    run: GanRun, data: StainSet, generator: str, scale: tuple[float, float], folder: Path, text: CardText
) -> ModelPackage:
    """Package of one generator between stains.  What its confidence foretells is the error against the pair
    where there are pairs, else that of the cycle, else that of colouring the target's own grey."""
    forward = generator == "forward"
    given = getattr(run, "given_kind", "picture")
    cells = data.source if forward else data.target
    errors = _errors(run, data, generator)
    fit_on = cells.take([i for i, s in enumerate(cells.splits) if s != "test"][:40])
    fit_on = fit_on if not data.paired else cells.part("validation")
    return export_pictures(
        run.averages[generator],
        run.recipe,
        text,
        folder,
        fit_on=fit_on,
        test_on=cells.part("test"),
        error=errors,
        views=1 if data.paired else VIEWS,
        scale=scale[0] if forward else scale[1],
        given=given,
        seed=run.options.seed,
    )


def _errors(run: GanRun, data: StainSet, generator: str) -> Error:
    other = {"forward": "backward", "backward": "forward"}[generator]
    ends = (data.source.images, data.target.images)
    sides = zip(*(ends if generator == "forward" else ends[::-1]), strict=False)
    partner = {id(cell): real for cell, real in sides} if data.paired else {}

    @torch.no_grad()
    def error(cell: Array, given: Array, stained: Array) -> float:
        if data.paired:
            return _rmse(stained, partner[id(cell)])
        if other in run.averages:
            return _rmse(run_on_picture(run.averages[other], stained, run.device), given)
        return _rmse(grey_picture(stained), grey_picture(given))

    return error


def _rmse(a: Array, b: Array) -> float:
    return float(np.sqrt(np.mean(((a.astype(np.float32) - b.astype(np.float32)) / 255) ** 2)))


def _export_dic(
    run: GanRun, data: StainSet, out_dir: Path, recipe: Any, polarity: PolarityNet | None, text: CardText
) -> ModelPackage:
    """Package of a generator from DIC, with a polarity network (trained here where none is given)."""
    if not isinstance(data, DicSet):
        raise BadInput("a stainer of DIC is calibrated on the images of a computed set; give one of dic_set.")
    if polarity is None:
        raise BadInput("a stainer of DIC needs a polarity network; see stainers.polarity.train_polarity.")
    return export_dic(
        run.averages["forward"],
        polarity,
        recipe,
        text,
        out_dir / "package",
        validation=data.pairs_of("validation"),
        test=data.pairs_of("test"),
        given=getattr(run, "given_kind", "picture"),
        seed=run.options.seed,
    )


def train_folder(
    data_dir: Path,
    out_dir: Path,
    *,
    recipe: Any,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read the recipe's data set from a folder, train, write `out_dir`/package; returns its metrics."""
    options: DataOptions = recipe.data
    data = read_set(data_dir, options)
    check_parts(data, data_dir, options)  # before minutes of training the polarity network
    polarity = None
    if options.kind == "computed-dic":
        from stainers.data import load_smears
        from stainers.polarity import train_polarity

        polarity = train_polarity(
            load_smears(data_dir, seed=options.split_seed), POLARITY_STEPS, recipe.run.seed
        )
    scores: dict[str, Score] = {}
    chosen = options.chooser or "loss"
    if chosen not in ("loss", "last"):
        scores, chosen = {"forward": accuracy_score(options.chooser, data, "source")}, "forward"
    package = train_set(
        data,
        out_dir,
        recipe,
        polarity=polarity,
        resume=resume,
        scores=scores,
        chosen=chosen,
        scale=(options.source_scale, options.target_scale),
        progress=progress,
    )
    return package.card.metrics
