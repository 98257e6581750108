"""Training recipes of cell classifiers: one YAML file each, read strictly."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from classifiers.augment import Augmentation
from classifiers.networks import BACKBONES
from classifiers.recipes.limits import check_values
from pipeline.errors import BadInput

RECIPES = Path(__file__).parent


@dataclass(frozen=True)
class Companion:
    """A further network of an ensemble: trained as the first is, for another length.

    `weight` is that of its logits in the mean; the first's is 1.
    """

    epochs: int
    samples_per_epoch: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_values(self, "recipe: companions")


@dataclass(frozen=True)
class Recipe:
    """Everything that one training run is made of; a YAML file in this folder is one.

    `level` is one of `classifiers.taxonomy.LEVELS`, a dialect (its classes), or a list of classes.
    `learning_rate` None: the peak of the 1cycle policy (Smith 2018) is found by a range test before the
    training.  `experiment` names the paper's experiment that the recipe stands for, and where it is told.
    """

    backbone: str = "resnet18_slim"
    level: str | tuple[str, ...] = "eight"
    modality: str = "brightfield"
    reader: str = "folders"  # of the data that the recipe was written for
    experiment: str = ""
    input_px: int = 96
    start_px: int | None = None  # views grow from here to input_px over the first 60 % of the epochs
    cached_px: int = 160
    zoom: float = 1.7  # side of the view, in sides of the cell
    # Nuclei are brought to one density (`views.anchored`): 0 by one gain, 1 also in hue; None: as it is.
    nuclear_hue: float | None = None
    epochs: int = 40
    batch: int = 32
    learning_rate: float | None = 2e-3
    weight_decay: float = 0.05
    loss: str = "cross_entropy"  # or focal
    focal_gamma: float = 2.0
    smoothing: float = 0.05
    none_share: float = 0.12  # of each batch: views of what is none of the classes
    balance: float = 0.6  # 0: classes as frequent as they are, 1: all alike
    source_balance: float = 0.0  # the same for the sources of one class
    ema: float = 0.995
    drop_rate: float = 0.2
    samples_per_epoch: int | None = None
    # Of the classifier begun from, in the mean of both networks' weights that is kept: what is learned anew
    # keeps part of what was known before (WiSE-FT; Wortsman et al. 2022, CVPR, equation 1).
    start_share: float = 0.0
    companions: tuple[Companion, ...] = ()
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        from classifiers.sources import level_classes

        check_values(self, "recipe")
        check_values(self.augmentation, "recipe: augmentation")
        if self.backbone not in BACKBONES:
            raise BadInput(f"recipe: backbone '{self.backbone}' is not one of {', '.join(BACKBONES)}.")
        least = BACKBONES[self.backbone]
        if self.input_px < least:
            raise BadInput(
                f"recipe: {self.backbone} needs input_px of at least {least}, not {self.input_px}."
            )
        if self.start_px is not None and not least <= self.start_px <= self.input_px:
            raise BadInput(
                f"recipe: 'start_px' must be from {least}, the least of {self.backbone}, to input_px "
                f"({self.input_px}), not {self.start_px}."
            )
        if self.modality == "dic" and (self.augmentation.flips or self.augmentation.rotation):
            raise BadInput(
                "recipe: DIC shadows have a direction, which flips and rotation turn; set augmentation.flips"
                " and augmentation.rotation to false."
            )
        low, high = self.augmentation.scale
        if low > high:
            raise BadInput(f"recipe: augmentation: 'scale' must be the less and the more, not {low}, {high}.")
        level_classes(self.level)

    @property
    def members(self) -> tuple[Recipe, ...]:
        """A recipe for each network; one without `companions`."""
        first = replace(self, companions=())
        return first, *(
            replace(first, epochs=c.epochs, samples_per_epoch=c.samples_per_epoch) for c in self.companions
        )

    @property
    def member_weights(self) -> tuple[float, ...]:
        """Of each network's logits in their mean."""
        return 1.0, *(c.weight for c in self.companions)

    def with_epochs(self, epochs: int) -> Recipe:
        """The same recipe for another length; its companions' are scaled, to one epoch at least."""
        scale = epochs / self.epochs
        scaled = (replace(c, epochs=max(1, round(scale * c.epochs))) for c in self.companions)
        return replace(self, epochs=epochs, companions=tuple(scaled))

    @property
    def views(self) -> int:
        """Symmetric views that are averaged at inference: mirrored ones only where mirroring was learned."""
        return 4 if self.augmentation.flips else 1

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """Read a recipe by its name in this folder or its path; an unknown key is refused."""
        import yaml

        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = RECIPES / f"{name_or_path}.yaml"
        if not path.is_file():
            raise BadInput(f"{path}: no such recipe; known are: {', '.join(recipe_names())}.")
        try:
            data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadInput(
                f"{path}: not a YAML recipe ({error}); docs/classification.md names some."
            ) from error
        if not isinstance(data, dict):
            raise BadInput(f"{path} must hold keys and values, not {type(data).__name__}.")
        strengths = data.pop("augmentation", None) or {}
        companions = data.pop("companions", None) or []
        if not isinstance(strengths, dict):
            raise BadInput(f"{path}: augmentation must hold keys and values, not {strengths!r}.")
        if not (
            isinstance(companions, list) and all(isinstance(c, dict) and "epochs" in c for c in companions)
        ):
            raise BadInput(f"{path}: companions is no list of entries that each state their epochs.")
        for given, target in ((data, cls), (strengths, Augmentation), *((c, Companion) for c in companions)):
            unknown = set(given) - {f.name for f in fields(target)}
            if unknown:
                raise BadInput(
                    f"{path}: unknown keys {sorted(unknown)}; see classifiers/recipes/__init__.py."
                )
        for values in (data, strengths):
            values.update({k: tuple(v) for k, v in values.items() if isinstance(v, list)})
        try:
            others = tuple(Companion(**c) for c in companions)
            return cls(**data, companions=others, augmentation=Augmentation(**strengths))
        except BadInput as error:
            raise BadInput(f"{path}: {str(error).removeprefix('recipe: ')}") from error


def recipe_names() -> list[str]:
    """The recipes that are shipped."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))
