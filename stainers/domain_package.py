"""The multi-domain stainers from a folder of smears to a model package, and back to a stainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import BadInput
from stainers.choice import best_by
from stainers.data import PIXEL_SIZE_UM, Smear, load_smears
from stainers.data_marks import mark_of_smears
from stainers.domain_sets import DIC, DomainOptions, DomainSampler, DomainSet, computed_domains, kept, key_of
from stainers.domain_training import DomainRun, fit_domains, held_pairs
from stainers.downstream import scores_of
from stainers.gan_export import CardText, export_dic
from stainers.gan_training import Progress, total_steps
from stainers.networks import PolarityNet
from stainers.picture_data import namer
from storage.packages import find_package

Array = np.ndarray[Any, Any]

CLASSIFIER, SEGMENTER = "leukocyte-classes", "nucleus-cytoplasm"  # what names and outlines the stained cells
POLARITY_FROM, POLARITY_STEPS = "dic-to-mgg", 600
HELD_OUT_CELLS = 24
LIMITS = (
    "Trained on computed DIC alone: never tried on photographed DIC of the same cells.",
    "Trained for minutes on one CPU core, at a small width: it stands here to be compared, not to be used.",
    "The colour of the glass and the strength of a stain cannot be seen in DIC: the look is a typical one.",
    "Classes and masks of the training cells are pseudo-labels of this project's own models.",
)


def outliner(name: str) -> Callable[[Array], Array]:
    """(N, H, W, 3) uint8 at 0.1 µm a pixel -> labels (N, H, W) uint8, by a registered segmenter."""
    from storage.registry import load

    model = load("segmenter", name)
    return lambda pictures: model.segment(pictures, PIXEL_SIZE_UM)


def frozen_outline(name: str) -> nn.Module:
    """The network of a registered segmenter that works at 0.2 µm a pixel, for the structure loss (6.3)."""
    from stainers.disentangled.objectives import FrozenSegmenter
    from storage.registry import load

    model, package = load("segmenter", name), find_package(name)
    if package is None or not isinstance(getattr(model, "network", None), nn.Module):
        raise BadInput(f"segmenter '{name}' has no network to pass gradients through; name one with weights.")
    if package.card.pixel_size_um != 2 * PIXEL_SIZE_UM:
        raise BadInput(f"segmenter '{name}' does not work at {2 * PIXEL_SIZE_UM} µm a pixel.")
    normalisation = package.card.normalisation
    return FrozenSegmenter(model.network, normalisation.mean[0], normalisation.std[0])


def domains_of(smears: list[Smear], split: str, options: DomainOptions, seed: int, path: Path) -> DomainSet:
    """The set of one split, kept in `path`."""
    part = [s for s in smears if s.split == split and len(s.leukocytes)]
    if not part:
        raise BadInput(f"the smears hold no leukocytes in their {split} part; give more images.")

    def make() -> DomainSet:
        return computed_domains(
            part, options, seed, name=namer(CLASSIFIER, PIXEL_SIZE_UM), outline=outliner(SEGMENTER)
        )

    return kept(path, key_of(options, seed, mark_of_smears(part)), make)


def make_run(recipe: Any, data: DomainSet) -> DomainRun:
    """A run of either family at step 0, on the best device there is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if tuple(recipe.generator.domains) != data.domains:
        raise BadInput(f"the recipe's domains are {recipe.generator.domains}, the data's {data.domains}.")
    total = total_steps(recipe.run, len(data.cells))
    if recipe.architecture == "multidomain":
        from stainers.multidomain.training import MultiDomainRun

        return MultiDomainRun(recipe, len(data.classes), total, device)
    from stainers.disentangled.training import DisentangledRun

    return DisentangledRun(recipe, frozen_outline(SEGMENTER), total, device)


def train_folder(
    data_dir: Path,
    out_dir: Path,
    *,
    recipe: Any,
    resume: bool = False,
    progress: Progress | None = None,
    cells_per_domain: int = 16,
) -> dict[str, Any]:
    """Train on the stained smears of a folder, write `out_dir`/package; returns the metrics of its card."""
    smears = load_smears(data_dir)
    seed = recipe.run.seed
    data = domains_of(smears, "train", recipe.data, seed, out_dir / "pool.npz")
    few = replace(recipe.data, cells=HELD_OUT_CELLS, pairs_known=1.0)
    held_out = domains_of(smears, "validation", few, seed + 1, out_dir / "pool-validation.npz")
    run = make_run(recipe, data)
    sampler = DomainSampler(data, recipe.data, seed)
    scores = scores_of(recipe.data.chooser, "stain", held_pairs(held_out))
    fit_domains(run, sampler, held_out, out_dir, resume=resume, scores=scores, progress=progress)
    return export(run, data, smears, out_dir, cells_per_domain)


def export(
    run: DomainRun, data: DomainSet, smears: list[Smear], out_dir: Path, cells_per_domain: int
) -> dict[str, Any]:
    """Calibrate on validation smears, measure on test smears, write `out_dir`/package."""
    from stainers.pair_sources import computed_pairs

    best, chosen = best_by(out_dir, run.recipe.data.chooser, "stain")
    if best is not None:
        run.take_averages(best)
    net: Any = run.averages["stain"]
    if hasattr(net, "remember_styles"):
        net.remember_styles()
    recipe, seed = run.recipe, run.options.seed
    stains = tuple(d for d in data.domains if d != DIC)
    text = CardText(
        name=recipe.architecture,
        intended_use="Virtual look of three stains for cells seen in DIC, to compare. Research only.",
        training_data=(
            "TXL-PBC smears (MIT): leukocyte crops, "
            + ", ".join(f"{n} {what}" for what, n in data.count().items())
            + "; the DIC is computed by phantoms.optics with random optics, never photographed",
        ),
        limits=LIMITS,
        targets=stains,
        stains=("unstained",),
        modalities=("dic",),
        pixel_size_um=PIXEL_SIZE_UM,
        error="pair",
        training={
            "steps_done": run.step,
            "checkpoint": chosen,
            "checkpoint_step": run.checkpoint_step,
            "pseudo_labels": {"classes": data.pseudo, "by": [CLASSIFIER, SEGMENTER]},
            "split": "by source image, near-duplicates together; 80 / 8 / 12 % train / validation / test",
            "trained_on": str(run.device),
        },
    )
    validation, test = (
        computed_pairs([s for s in smears if s.split == split], seed=seed + k, limit=cells_per_domain)
        for k, split in ((1, "validation"), (3, "test"))
    )
    package = export_dic(
        net,
        polarity_net(smears, seed),
        recipe,
        text,
        out_dir / "package",
        validation=validation,
        test=test,
        seed=seed,
    )
    return package.card.metrics


def polarity_net(smears: list[Smear], seed: int) -> PolarityNet:
    """The polarity network of the shipped DIC stainer; where that is not installed, one trained here."""
    from stainers.polarity import train_polarity
    from storage.registry import load

    if find_package(POLARITY_FROM) is None:
        return train_polarity(smears, POLARITY_STEPS, seed)
    found: PolarityNet = load("stainer", POLARITY_FROM).polarity
    return found


def network_of(architecture: str) -> Callable[[dict[str, Any]], nn.Module]:
    """How the network of a card of an architecture is built from its parameters."""

    def build(parameters: dict[str, Any]) -> nn.Module:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters["generator"].items()}
        if architecture == "multidomain":
            from stainers.multidomain.networks import MultiDomainNetwork, MultiDomainStain

            return MultiDomainStain(MultiDomainNetwork(**options))
        from stainers.disentangled.networks import DisentangledNetwork, DisentangledStain

        return DisentangledStain(DisentangledNetwork(**options))

    return build


def load(package: Any) -> Any:
    """The stainer of a package of either family; see stainers.picture_stainer.load."""
    from stainers.picture_stainer import load as load_picture

    return load_picture(package, network_of(package.card.architecture))
