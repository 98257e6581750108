"""Training recipes: one YAML file each, read strictly."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pipeline.errors import BadInput
from stainers.data import PairOptions
from stainers.recipes.limits import ON_OFF, check_together, check_value, limit_of


@dataclass(frozen=True)
class NetworkRecipe:
    """The generator."""

    widths: tuple[int, ...] = (24, 48, 96, 160)
    blocks: tuple[int, ...] = (1, 1, 2, 2)
    embedding: int = 32


@dataclass(frozen=True)
class LossRecipe:
    """Weights of the losses; an adversarial weight above 0 adds a patch discriminator late."""

    l1: float = 1.0
    mse: float = 2.0
    ssim: float = 0.5
    gradient: float = 1.0
    expected_error: float = 0.02
    feature: float = 0.0  # of a frozen classifier, the recipe's judge (stainers.perceptual)
    named: float = 0.0  # the divergence of that classifier's classes
    adversarial: float = 0.0
    adversarial_from: float = 0.7  # share of the steps


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run is made of, but the data folder and the place for its results.

    `precision` and `compile` are those of the adversarial families (`stainers.gan_training.RunOptions`).
    `chooser` says which checkpoint is kept: `last`, without a look at held-out cells; `loss`, for the lowest
    error on them; or the name of a registered classifier, for the most that it names like the real ones.
    """

    architecture: str = "unet-film"
    steps: int = 4000
    batch: int = 8
    learning_rate: float = 1.2e-3
    warm_up: int = 100
    weight_decay: float = 1e-4
    ema: float = 0.998
    latent_noise: float = 0.0  # alpha of the noise put into half of the latents (thesis, section 7.4)
    seed: int = 20261121
    checkpoint_every: int = 200
    sample_every: int = 500
    polarity_steps: int = 600
    start: str = ""  # a DIC stainer with the same network, to go on from instead of random weights
    judge: str = "leukocyte-classes"  # the cell classifier behind `losses.feature` and `losses.named`
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    pairs: PairOptions = field(default_factory=PairOptions)
    losses: LossRecipe = field(default_factory=LossRecipe)
    precision: str = field(default="auto", repr=False)  # later keys: stainers.data_marks.mark_of_recipe
    compile: str = field(default="auto", repr=False)
    chooser: str = field(default="last", repr=False)
    choose_every: int = field(default=200, repr=False)  # steps between looks, where there are any


def _build(kind: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise BadInput(f"{where} must hold keys and values, not {type(values).__name__}.")
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise BadInput(f"{where}: '{key}' is not a key of a recipe; known are: {', '.join(known)}.")
        wanted = hints[key]
        if isinstance(value, bool) and limit_of(kind.__name__, key) == ON_OFF:
            value = "on" if value else "off"  # YAML 1.1 reads both words as truth values
        if is_dataclass(wanted):
            made[key] = _build(wanted, value, f"{where}: {key}")  # type: ignore[arg-type]
        elif wanted in (int, float, str, bool):
            fits = isinstance(value, (int, float) if wanted is float else wanted) and (
                isinstance(value, bool) == (wanted is bool)
            )
            if not fits:
                raise BadInput(f"{where}: '{key}' must be {wanted.__name__}, not {value!r}.")
            made[key] = _number(wanted, value, f"{where}: '{key}'")
        else:
            item = get_args(wanted)[0]
            fits = isinstance(value, list) and all(
                isinstance(v, item) and not isinstance(v, bool) for v in value
            )
            if not fits:
                what = {int: "whole numbers", str: "words"}.get(item, item.__name__)
                raise BadInput(f"{where}: '{key}' must be a list of {what}, not {value!r}.")
            made[key] = tuple(value)
        if key in made and not is_dataclass(made[key]):
            check_value(kind.__name__, key, made[key], where)
    return kind(**made)


def _number(wanted: type[Any], value: Any, where: str) -> Any:
    try:
        return wanted(value)
    except OverflowError as error:  # a whole number beyond every float
        raise BadInput(f"{where} must be a finite number, not {str(value)[:12]}….") from error


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.yaml"))


def read_recipe(name_or_path: str | Path) -> Any:
    """A shipped recipe by name, or a YAML file, as the recipe of its `architecture` (default: unet-film).

    Unknown architectures and keys, wrong kinds of value, and values out of range are refused.
    """
    import yaml

    from stainers.families import family

    path = Path(__file__).parent / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise BadInput(f"recipe '{name_or_path}' is not a file and not one of: {', '.join(recipe_names())}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: not a YAML recipe ({error}); docs/staining.md shows one.") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path} must hold keys and values, not {type(values).__name__}.")
    kind = family(str(values.get("architecture", "unet-film"))).get("recipe")
    recipe = _build(kind, values, str(path))
    check_together(recipe, str(path))
    return recipe
