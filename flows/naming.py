"""Which classifiers name the cells of a case, and what they say of themselves together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.settings import Settings, StainingSettings
from pipeline.types import Cell

if TYPE_CHECKING:
    from storage.packages import ModelPackage
    from storage.registry import Entry


def namers(settings: Settings, found: Iterable[Cell]) -> tuple[str, ...]:
    """The classifiers of stained and of virtual cells that these cells need; that of stained ones where there
    are none.  Cells on Perls are read, not named."""
    virtual = {c.modality == "dic" for c in found if c.stain != "Perls"} or {False}
    return tuple(dict.fromkeys(settings.classification.namer(virtual=v) for v in sorted(virtual)))


def naming_settings(settings: Settings) -> dict[str, Any]:
    """What the names of cells are made by, beside the models: not what is done with the names afterwards."""
    afterwards = {"min_seen", "min_confidence", "classifier", "virtual_classifier"}
    return settings.classification.model_dump(mode="json", exclude=afterwards)


def painting_settings(settings: StainingSettings) -> dict[str, Any]:
    """What DIC is painted by, beside the model: not what is done with its confidence afterwards."""
    return settings.model_dump(mode="json", include={"dic_stainer", "target", "size_px"})


def _described(settings: Settings, found: Iterable[Cell]) -> list[ModelPackage | Entry]:
    from storage.registry import describe

    return [describe("classifier", name) for name in namers(settings, found)]


def calibrated_confidence(settings: Settings, found: Iterable[Cell]) -> float | None:
    """The confidence below which a cell is in doubt: the settings', else the classifier's own, else None.

    Where one classifier names the stained and another the virtual cells of a case, that of stained ones.
    """
    stated = _stated_confidences(settings, found)
    return stated[0] if stated else None


def virtual_confidence(settings: Settings, found: Iterable[Cell]) -> float | None:
    """The same of the virtual cells of a case."""
    stated = _stated_confidences(settings, found)
    return stated[-1] if stated else None


def _stated_confidences(settings: Settings, found: Iterable[Cell]) -> list[float]:
    """Of the classifiers of a case, that of stained cells first; empty where one states none."""
    from storage.packages import ModelPackage

    if settings.classification.min_confidence is not None:
        return [settings.classification.min_confidence]
    stated = [
        used.card.parameters.get("min_confidence") if isinstance(used, ModelPackage) else None
        for used in _described(settings, found)
    ]
    known = [float(s) for s in stated if s is not None]
    return known if len(known) == len(stated) else []


def known_classes(settings: Settings, found: Iterable[Cell]) -> tuple[str, ...] | None:
    """The classes that cells can be given; None where a classifier without a card names some."""
    from storage.packages import ModelPackage

    classes: dict[str, None] = {}
    for used in _described(settings, found):
        if not isinstance(used, ModelPackage):
            return None
        classes |= dict.fromkeys(used.card.known_classes)
    return tuple(classes)


def made_for(namer: str, stainer: str) -> bool | None:
    """Whether a classifier learned from just this stainer's pictures; None: of real stain, reads any."""
    from pipeline.virtual_naming import STAINER_SHA
    from storage.packages import ModelPackage
    from storage.registry import describe

    reader, painter = describe("classifier", namer), describe("stainer", stainer)
    learned = reader.card.parameters.get(STAINER_SHA) if isinstance(reader, ModelPackage) else None
    if learned is None:
        return None
    return isinstance(painter, ModelPackage) and painter.card.sha256 == learned


def check_painter(settings: Settings) -> None:
    """Raises BadInput where the classifier of virtual cells learned from another stainer's pictures."""
    from pipeline.errors import BadInput

    namer, stainer = settings.classification.namer(virtual=True), settings.staining.dic_stainer
    if made_for(namer, stainer) is False:
        raise BadInput(
            f"classification.virtual_classifier '{namer}' was not made for what staining.dic_stainer "
            f"'{stainer}' paints; train one for it (`smearflow train virtual-classifier`), or set "
            "classification.virtual_classifier to null."
        )


def check_painted_scale(settings: Settings) -> None:
    """Raises BadInput where patches are cut at another scale than the stainer of DIC paints: it takes what it
    is given for its own."""
    from pipeline.errors import BadInput
    from storage.packages import ModelPackage
    from storage.registry import describe

    stainer, given = describe("stainer", settings.staining.dic_stainer), settings.patches.pixel_size_um
    wanted = stainer.card.pixel_size_um if isinstance(stainer, ModelPackage) else None
    if wanted is not None and not math.isclose(given, wanted, rel_tol=1e-3):
        raise BadInput(
            f"patches.pixel_size_um is {given:g}, but staining.dic_stainer '{settings.staining.dic_stainer}' "
            f"paints DIC at {wanted:g} µm a pixel; set patches.pixel_size_um to {wanted:g}, or name "
            f"a stainer of {given:g}."
        )
