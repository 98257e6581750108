"""A model is a package: a folder with `card.json` and one weight file, safetensors or ONNX.

Loading is strict: the weight file's sha256 must be the card's, state dicts must match key for key,
and nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import BadInput, BadModelPackage
from storage.fingerprint import sha256_of

CARD_FILE = "card.json"
SPLIT_FILE = "split.csv"  # of a detector that was trained on a folder: which images its training saw
WEIGHT_FILES = {"safetensors": "model.safetensors", "onnx": "model.onnx"}


UNTRAINED = "untrained_classes"  # parameter of a card: classes that have an output and no cell taught


class Normalisation(BaseModel):
    """What is done to a pixel in [0, 1] before the network sees it: (x - mean) / std per channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class ModelCard(BaseModel):
    """What anyone who uses the weights has to know; every field is printed in reports."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    name: str
    version: str
    task: Literal[
        "detector", "segmenter", "stainer", "classifier", "sideroblast-reader", "patient-classifier"
    ]
    architecture: str  # key in the registry
    weights: Literal["safetensors", "onnx"]
    sha256: str
    licence: str
    intended_use: str
    modalities: tuple[str, ...]  # what it reads: brightfield, dic
    stains: tuple[str, ...]  # MGG, Perls, unstained
    specimens: tuple[str, ...] = ("blood",)
    pixel_size_um: float | None  # of the network's input; None where the scale is free
    input_px: tuple[int, int] | None = None  # (height, width) where it is fixed
    channels: int = 3
    classes: tuple[str, ...] = ()
    normalisation: Normalisation = Normalisation()
    training_data: tuple[str, ...]  # name, licence and size of each source
    training: dict[str, Any] = Field(default_factory=dict)  # seed, epochs, augmentation, split
    metrics: dict[str, Any]  # per source and class, with intervals, and what they were measured on
    limits: tuple[str, ...]  # known failures and what it was never tried on
    parameters: dict[str, Any] = Field(default_factory=dict)  # what the builder needs (widths, anchors…)

    @property
    def known_classes(self) -> tuple[str, ...]:
        """The classes that the model can tell: a class without a cell to learn from is not one."""
        return tuple(c for c in self.classes if c not in self.parameters.get(UNTRAINED, ()))


@dataclass(frozen=True)
class ModelPackage:
    """A folder with a card and weights."""

    folder: Path
    card: ModelCard

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def weights_path(self) -> Path:
        return self.folder / WEIGHT_FILES[self.card.weights]

    def verify(self) -> None:
        """Raise BadModelPackage unless the weight file is the one that the card names."""
        if not self.weights_path.is_file():
            raise BadModelPackage(f"{self.weights_path} is missing; reinstall smearflow or restore the file.")
        found = sha256_of(self.weights_path)
        if found != self.card.sha256:
            raise BadModelPackage(
                f"{self.weights_path} is not the file its card names (sha256 {found[:12]}…, card "
                f"{self.card.sha256[:12]}…); restore the weights or retrain the package."
            )

    def found_sha256(self) -> str | None:
        """The hash of the weights as they are on disk; None where they are gone.  A file is read once."""
        try:
            found = self.weights_path.stat()
        except OSError:
            return None
        return _known_sha256(self.weights_path, found.st_mtime_ns, found.st_size)

    def state_dict(self) -> dict[str, Any]:
        """The safetensors weights as torch tensors, on the CPU."""
        from safetensors.torch import load_file

        return load_file(str(self.weights_path), device="cpu")


@cache
def _known_sha256(path: Path, mtime_ns: int, size: int) -> str:
    del mtime_ns, size  # another of either is another file
    return sha256_of(path)


def read_package(folder: Path) -> ModelPackage:
    """Read a package's card; the weights are not opened yet."""
    path = folder / CARD_FILE
    try:
        card = ModelCard.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BadModelPackage(f"{folder} holds no card.json; it is not a model package.") from None
    except (ValueError, ValidationError) as error:
        raise BadModelPackage(f"{path} is not a valid model card: {error}") from error
    return ModelPackage(folder, card)


def check_package_place(folder: Path) -> None:
    """Raise BadInput unless a package may be written at `folder`: nothing there, or no more than a package.

    What else lies there is a person's, and would be lost; a training asks before its first step.
    """
    if not folder.is_symlink() and not folder.exists():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise BadInput(f"{folder}: a model package is a folder, and this is none; name another place.")
    own = {CARD_FILE, SPLIT_FILE, *WEIGHT_FILES.values()}
    for found in sorted(folder.iterdir()):
        if found.name not in own or not found.is_file():
            raise BadInput(
                f"{folder}: it holds '{found.name}', which is no part of a model package and would be lost; "
                "name a new or an empty folder."
            )


def write_package(folder: Path, card: Mapping[str, Any], weights: Path | Mapping[str, Any]) -> ModelPackage:
    """Write a package: `weights` is an ONNX file to copy or a state dict to save as safetensors.

    The card's sha256 is computed here.  The folder is complete or absent: it is written beside its
    place and moved there, over an earlier package.  Raises BadInput where anything else is there.
    """
    import shutil
    import tempfile

    check_package_place(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        draft = Path(temporary) / folder.name
        draft.mkdir()
        target = draft / WEIGHT_FILES[card["weights"]]
        if isinstance(weights, Path):
            shutil.copyfile(weights, target)
        else:
            from safetensors.torch import save_file

            save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, str(target))
        full = ModelCard.model_validate({**card, "sha256": sha256_of(target)})
        (draft / CARD_FILE).write_text(full.model_dump_json(indent=1) + "\n", encoding="utf-8")
        target.chmod((draft / CARD_FILE).stat().st_mode)  # safetensors writes for its owner alone
        if folder.exists():
            check_package_place(folder)
            for name in (CARD_FILE, SPLIT_FILE, *WEIGHT_FILES.values()):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()
        os.replace(draft, folder)
    return ModelPackage(folder, full)


def package_roots() -> list[Path]:
    """Where packages are looked for: SMEARFLOW_WEIGHTS (a path list), then the shipped `weights`.

    Raises BadModelPackage for a path of the list that is no folder here: shipped models would stand in for
    those that were meant.
    """
    extra = [Path(p) for p in os.environ.get("SMEARFLOW_WEIGHTS", "").split(os.pathsep) if p]
    for path in extra:
        if not path.is_dir():
            raise BadModelPackage(
                f"SMEARFLOW_WEIGHTS names {path}, and there is no such folder; correct it or leave it out."
            )
    return [*extra, Path(__file__).resolve().parent.parent / "weights"]


def package_in(place: Path) -> Path | None:
    """The package that a folder is, or that a training wrote to its `package`."""
    return next((p for p in (place, place / "package") if (p / CARD_FILE).is_file()), None)


def list_packages() -> list[ModelPackage]:
    """Every package that can be found; the first of a name wins."""
    found: dict[str, ModelPackage] = {}
    for root in package_roots():
        if root.is_dir():
            for folder in filter(None, map(package_in, (root, *sorted(root.iterdir())))):
                package = read_package(folder)
                found.setdefault(package.name, package)
    return list(found.values())


def is_path(name: str) -> bool:
    """Whether a model is named by its folder alone: `./mine`, `/models/mine`."""
    return any(mark in name for mark in (os.sep, os.altsep) if mark)


def find_package(name: str) -> ModelPackage | None:
    """The package of a name, or of a folder or the OUT of a training; None where there is none.

    A folder that lies where a command is run never stands in for a model of its name: that goes before, but
    for a path (`is_path`).
    """
    folder = package_in(Path(name))
    known = None if is_path(name) else next((p for p in list_packages() if p.name == name), None)
    return known if known is not None or folder is None else read_package(folder)
