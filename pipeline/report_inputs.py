"""What a report is built from besides the cells: quality of the images, the models, the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.types import FocusQuality, Modality, PaintedTarget, Registration, Spec, Stain
from storage.packages import ModelCard, ModelPackage
from storage.registry import Entry

FieldKey = tuple[str, str]  # slide, field
ImageKey = tuple[str, str, str, str]  # slide, field, modality, stain


@dataclass(frozen=True)
class Quality:
    """Quality of the case's images."""

    focus: Mapping[ImageKey, FocusQuality] = field(default_factory=dict)
    registrations: Mapping[FieldKey, Registration] = field(default_factory=dict)


class ModelUse(Spec):
    """A model of the run, and what it was given to read.

    `reads` are the (modality, stain) of its inputs; a virtual image counts as what it shows.
    `seen_pixel_size_um` is the scale of the pixels that the network saw; None where it is not known.
    `found_sha256` is that of the weights on disk.
    """

    name: str
    version: str
    reads: tuple[tuple[Modality, Stain], ...]
    sha256: str | None = None
    card: ModelCard | None = None
    seen_pixel_size_um: float | None = None
    found_sha256: str | None = None

    @classmethod
    def of(
        cls,
        described: ModelPackage | Entry,
        reads: tuple[tuple[Modality, Stain], ...],
        *,
        version: str = "",
        seen_pixel_size_um: float | None = None,
    ) -> ModelUse:
        """From `storage.registry.describe`.

        `version` names a weight-free method's version, that of the software; `seen_pixel_size_um` is the
        scale of what the model was given, None: it is told the scale and resamples to that of its card.
        """
        if isinstance(described, Entry):
            return cls(name=described.architecture, version=version, reads=reads)
        card = described.card
        return cls(
            name=card.name,
            version=card.version,
            sha256=card.sha256,
            card=card,
            reads=reads,
            seen_pixel_size_um=card.pixel_size_um if seen_pixel_size_um is None else seen_pixel_size_um,
            found_sha256=described.found_sha256(),
        )


@dataclass(frozen=True)
class RunInfo:
    """What ran: everything in the result but `created` follows from the fingerprint."""

    fingerprint: str  # of inputs, settings and models
    config_sha256: str
    created: datetime
    models: tuple[ModelUse, ...] = ()
    version: str = "0.1.0"
    commit: str | None = None
    expected_config_sha256: str | None = None  # of a validated configuration, where the laboratory has one
    known_classes: tuple[str, ...] | None = None  # of the classifier; None: read off the probabilities
    min_confidence: float | None = None  # the classifier's calibrated figure
    virtual_min_confidence: float | None = None  # that of virtual cells; None: the same
    painted: PaintedTarget | None = None  # of virtual cells, where the settings name no target

    def doubt_below(self, *, virtual: bool) -> float | None:
        """The confidence below which a cell of real or of virtual stain is in doubt; None: not known."""
        own = self.virtual_min_confidence if virtual else None
        return self.min_confidence if own is None else own
