"""The U-Net of DIC trained on a given set of pairs, to stand in one table with the other families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import BadInput
from stainers.cell_sets import DIC_GAINS, DrawOptions, Sampler, StainSet
from stainers.data import DOMAINS
from stainers.dic_sets import DicSet
from stainers.gan_export import CardText, export_dic_stainer
from stainers.networks import PolarityNet, count_parameters
from stainers.picture_training import plain_text
from stainers.recipes import Recipe
from stainers.training import Progress, Run
from stainers.unet_film import DicStainer


def train_set(
    data: StainSet,
    out_dir: Path,
    recipe: Recipe,
    *,
    polarity: PolarityNet,
    progress: Progress | None = None,
    **_: Any,
) -> Any:
    """Train on the pairs of the part `train` and write `out_dir`/package."""
    if not isinstance(data, DicSet):
        raise BadInput("unet-film stains DIC alone; give a set of dic_set, or use another architecture.")
    if data.target.domain not in DOMAINS:
        raise BadInput(f"unet-film stains for {', '.join(DOMAINS)}, not for '{data.target.domain}'.")
    if recipe.chooser != "last":
        raise BadInput(
            f"chooser {recipe.chooser}: training on a set of pairs ships the last step; set the recipe's "
            "chooser to last."
        )
    run = Run(recipe, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    draw = DrawOptions(pairing="paired", crop_px=recipe.pairs.crop_px, zoom=0.0)
    sampler = Sampler(data.part("train"), draw, recipe.seed, data.classes)
    gains = np.asarray(DIC_GAINS, np.float32)[:, None, None]
    domain = torch.full((recipe.batch,), DOMAINS.index(data.target.domain), device=run.device)
    while run.step < recipe.steps:
        examples = sampler.batch(run.step, recipe.batch)
        source = torch.from_numpy(np.stack([(e.source - 0.5) / gains for e in examples])).to(run.device)
        stained = torch.from_numpy(np.stack([e.target for e in examples])).to(run.device)
        parts = run.train_step(source.contiguous(memory_format=torch.channels_last), stained, domain)
        if progress is not None:
            progress(run.step, recipe.steps, parts)
    text = plain_text(recipe, data, "forward", "last", run)
    return export(run, data, recipe, replace(text, targets=DOMAINS), out_dir / "package", polarity)


def export(
    run: Run, data: DicSet, recipe: Recipe, text: CardText, folder: Path, polarity: PolarityNet
) -> Any:
    from stainers.confidence import NoiseOptions

    noise = NoiseOptions()
    stainer = DicStainer(
        run.average.cpu().eval(),
        polarity.cpu().eval(),
        name=text.name,
        targets=DOMAINS,
        noise=noise,
        calibration=None,
        min_confidence=0.5,
    )
    pairs: Sequence[Sequence[Any]] = (data.pairs_of("validation"), data.pairs_of("test"))
    text = replace(text, training={**text.training, "parameters": count_parameters(run.average)})
    return export_dic_stainer(
        stainer,
        recipe,
        text,
        folder,
        {"network": asdict(recipe.network), "noise": asdict(noise)},
        validation=pairs[0],
        test=pairs[1],
        seed=recipe.seed,
    )
