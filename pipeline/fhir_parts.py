"""Parts of a FHIR R4B document: codes, quantities, ranges, and the resources that results refer to.

Nothing here names a file, a slide or a person: an image is known by the sha256 of its slide's files.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline.result import USE_LABEL, Result, SlideInfo

Json = dict[str, Any]

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
# Ours: what was measured, a class of the hierarchy, the total of a class and all that lies below it.
CODE, CLASS, TOTAL = "urn:smearflow:code", "urn:smearflow:class", "urn:smearflow:class-total"
CASE, REPORT, IMAGE = "urn:smearflow:case", "urn:smearflow:report", "urn:smearflow:image"
USE = {"system": "urn:smearflow:use", "code": "research-use-only", "display": USE_LABEL}
PERCENT = ("%", "%")
PER_100_WBC = ("/100 WBC", "/100{WBCs}")
RATIO = ("ratio", "{ratio}")


def concept(text: str, code: str = "", system: str = CODE, *, loinc: str | None = None) -> Json:
    """A CodeableConcept: a text with the local code, and LOINC's where a verified one is given."""
    coding = [{"system": LOINC, "code": loinc}] if loinc else []
    coding += [{"system": system, "code": code}] if code else []
    return {**({"coding": coding} if coding else {}), "text": text}


def quantity(value: float, unit: tuple[str, str]) -> Json:
    """A Quantity in a UCUM unit, given as (shown, code)."""
    return {"value": value, "unit": unit[0], "system": UCUM, "code": unit[1]}


def absent(code: str, why: str) -> Json:
    """A dataAbsentReason of FHIR's code system, with our sentence."""
    return {"dataAbsentReason": {"coding": [{"system": ABSENT, "code": code}], "text": why}}


def counted(code: str, text: str, n: int, system: str = CODE) -> Json:
    """A component that holds a number of cells."""
    return {"code": concept(text, code, system), "valueInteger": n}


def between(code: str, text: str, low: float | None, high: float | None, unit: tuple[str, str]) -> list[Json]:
    """A component that holds an interval; none where neither limit is known."""
    limits = {k: quantity(v, unit) for k, v in (("low", low), ("high", high)) if v is not None}
    return [{"code": concept(text, code), "valueRange": limits}] if limits else []


@dataclass
class Entries:
    """The entries of a bundle in their order; each is known by a UUID 5 of its report and its name."""

    report_uuid: str
    resources: list[Json] = field(default_factory=list)

    def refer(self, name: str) -> Json:
        return {"reference": f"urn:uuid:{uuid.uuid5(uuid.UUID(self.report_uuid), name)}"}

    def add(self, name: str, kind: str, **fields: Any) -> Json:
        """Add a resource without the fields that are empty; returns the reference to it."""
        full = {k: v for k, v in fields.items() if v is not None and v != []}
        to = self.refer(name)
        self.resources.append({"fullUrl": to["reference"], "resource": {"resourceType": kind, **full}})
        return to


def add_devices(entries: Entries, result: Result) -> Json:
    """The software, and each of its models as a part of it; returns the reference to the software."""
    software = result.software
    own = entries.add(
        "device",
        "Device",
        deviceName=[{"name": software.name, "type": "model-name"}],
        type={"text": "Software that reads digitised blood and marrow smears"},
        version=_versions(
            ("release", software.version),
            ("commit", software.commit),
            ("sha256 of the settings", software.config_sha256),
        ),
        note=[{"text": USE_LABEL}],
    )
    for model in software.models:
        task = model.card.task if model.card else "method without weights"
        entries.add(
            f"model {model.name}",
            "Device",
            deviceName=[{"name": model.name, "type": "model-name"}],
            type={"text": f"Model of {software.name}: {task}"},
            version=_versions(("release", model.version), ("sha256 of the weights", model.sha256)),
            parent=own,
        )
    return own


def _versions(*known: tuple[str, str | None]) -> list[Json]:
    return [{"type": {"text": what}, "value": value} for what, value in known if value]


def add_specimen(entries: Entries, result: Result) -> Json:
    """What was smeared, known by the case's pseudonym."""
    case = result.case
    what = {"blood": "Blood", "bone_marrow": "Bone marrow", None: "Not stated; counted by the rules of blood"}
    when = moment(case.collected)
    return entries.add(
        "specimen",
        "Specimen",
        accessionIdentifier={"system": CASE, "value": case.pseudo_id},
        type={"text": what[case.specimen]},
        collection={"collectedDateTime": when} if when else None,
    )


def moment(text: str | None) -> str | None:
    """A date, or a time with its zone, as FHIR writes it; of a time without a zone the date."""
    if text is None:
        return None
    found = datetime.fromisoformat(text)
    return found.date().isoformat() if found.tzinfo is None else instant(found)


def instant(when: datetime) -> str:
    """A time with its zone as FHIR writes it, to the second."""
    return when.isoformat(timespec="seconds")


@dataclass(frozen=True)
class Images:
    """References to the images that values come from, and the resources behind them."""

    smears: list[Json]
    perls: list[Json]
    virtual_perls: list[Json]


def add_images(entries: Entries, result: Result, specimen: Json) -> Images:
    """The slides that were read, and the images computed of them, each as `transforms` of its source."""

    def add(slide: SlideInfo, number: int, painted: str | None = None) -> Json:
        name = f"image {slide.sha256} {slide.modality} {slide.stain} {painted}"
        to = entries.refer(name)
        if any(entry["fullUrl"] == to["reference"] for entry in entries.resources):
            return to
        kind = f"{slide.stain} {slide.modality}"
        said = f"Slide {number}, {kind}" + (
            f", painted as {painted}: a VIRTUAL stain, not a stain" if painted else ""
        )
        source = add(slide, number) if painted else None
        return entries.add(
            name,
            "DocumentReference",
            masterIdentifier={
                "system": IMAGE,
                "value": slide.sha256 + (f":virtual-{painted}" if painted else ""),
            },
            status="current",
            type={"text": "Virtually stained images" if painted else "Images of a slide"},
            description=f"{said}; {slide.n_fields_used} of {slide.n_fields} fields used",
            content=[{"attachment": {"title": said}}],
            context={"related": [specimen]},
            relatesTo=[{"code": "transforms", "target": source}] if source else None,
        )

    numbers = {name: i + 1 for i, name in enumerate(dict.fromkeys(s.slide_id for s in result.slides))}
    real = [s for s in result.slides if not s.virtual]

    def of(slides: Sequence[SlideInfo], painted: str | None = None) -> list[Json]:
        return [add(s, numbers[s.slide_id], painted) for s in slides]

    def sources(painted: SlideInfo) -> list[SlideInfo]:
        """The real images that a virtual entry was computed of."""
        return [s for s in real if (s.slide_id, s.sha256) == (painted.slide_id, painted.sha256)]

    smears = of([s for s in real if s.stain == "MGG"])
    smears += [to for v in result.slides if v.virtual for to in of(sources(v), str(v.stain))]
    rs = result.sideroblasts
    perls, drawn = [], []
    if rs is not None and rs.evidence == "perls":
        perls = of([s for s in real if s.stain == "Perls"])
    elif rs is not None:
        drawn = of([s for s in real if s.stain == "MGG"], "Perls")
    return Images(smears=smears, perls=perls, virtual_perls=drawn)
