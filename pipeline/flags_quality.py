"""Rules on the images and on the models that read them."""

from __future__ import annotations

from pipeline.flags_facts import Facts, Finding
from pipeline.report_inputs import ModelUse
from pipeline.report_quality import (
    FOCUS_Z,
    ILLUMINATION_MIN,
    SATURATION_MAX_PCT,
    field_losses,
    shown_modality,
)
from pipeline.result import Severity
from pipeline.types import LOW_CONTRAST, SCALE_DOUBT, UNDEREXPOSED, Case

FIELD_LOSS_REVIEW, FIELD_LOSS_BLOCK = 0.20, 0.50
SCALE_TOLERANCE = 0.10


def field_loss(f: Facts) -> Finding | None:
    """Fields of MGG or DIC and fields of Perls apart: neither stands in for the other."""
    losses = field_losses(f.case, f.fields)
    high = {k: (lost, of) for k, (lost, of) in losses.items() if lost > FIELD_LOSS_REVIEW * of}
    if not high:
        return None
    names = {"differential": "MGG or DIC fields", "iron": "Perls fields"}
    parts = [
        f"{lost} of {of} {names[k] if len(losses) > 1 else 'fields'} could not be used"
        for k, (lost, of) in high.items()
    ]
    share = max(lost / of for lost, of in high.values())
    severity: Severity = "block" if share > FIELD_LOSS_BLOCK else "review"
    return Finding("; ".join(parts) + ".", round(100 * share, 1), severity)


def qc_focus(f: Facts) -> Finding | None:
    soft = [
        (q.focus_z, f"{x.slide_id} {x.field} {q.modality}")
        for x in f.fields
        for q in x.focus
        if q.focus_z is not None and q.focus_z < FOCUS_Z
    ]
    if not soft:
        return None
    return Finding(
        f"Out of focus beside the other fields: {_some([n for _, n in soft])}.", min(z for z, _ in soft)
    )


def qc_illumination(f: Facts) -> Finding | None:
    dark, bright = [], []
    lowest = 1.0
    brightest = 0.0
    for x in f.fields:
        for q in x.focus:
            name = f"{x.slide_id} {x.field} {q.modality}"
            if q.illumination_ratio < ILLUMINATION_MIN:
                dark.append(name)
                lowest = min(lowest, q.illumination_ratio)
            if q.saturation_pct > SATURATION_MAX_PCT:
                bright.append(name)
                brightest = max(brightest, q.saturation_pct)
    dim = [f"{p.slide} {p.field} brightfield" for p in f.case.problems if p.code == UNDEREXPOSED]
    if not dark and not bright and not dim:
        return None
    parts = []
    if dark:
        parts.append(
            f"uneven light (corners under 80 % of the centre; lowest ratio {lowest:g}): {_some(dark)}"
        )
    if bright:
        parts.append(f"over 1 % of pixels saturated (highest share {brightest:g} %): {_some(bright)}")
    if dim:
        parts.append(f"under half of the camera's range used: {_some(dim)}")
    message = "; ".join(parts)
    # One value of two kinds: the ratio, in 0-1, where light is uneven; else the saturated share in percent.
    value = lowest if dark else brightest if bright else None
    return Finding(f"{message[0].upper()}{message[1:]}.", value)


def qc_registration(f: Facts) -> Finding | None:
    found = [(x, x.registration) for x in f.fields if x.registration is not None]
    failed = [f"{x.slide_id} {x.field}" for x, r in found if r.status == "failed"]
    rough = [f"{x.slide_id} {x.field}" for x, r in found if r.doubtful and r.status == "ok"]
    if not failed and not rough:
        return None
    parts = [f"DIC could not be aligned: {_some(failed)}"] if failed else []
    parts += [f"aligned, but over 0.5 µm (median) or 1 µm (p95) off: {_some(rough)}"] if rough else []
    message = "; ".join(parts)
    return Finding(f"{message[0].upper()}{message[1:]}.", len(failed) + len(rough))


def no_pixel_size(f: Facts) -> Finding | None:
    bad = []
    for model in f.run.models:
        trained = model.card.pixel_size_um if model.card else None
        if trained is None:
            continue
        seen = model.seen_pixel_size_um
        if seen is None:
            bad.append(f"{model.name} saw pixels of unknown size")
        elif round(abs(seen / trained - 1), 9) > SCALE_TOLERANCE:  # in floats 0.09 / 0.1 is under 0.9
            bad.append(f"{model.name} saw {seen:.3g} µm a pixel and was trained at {trained:.3g}")
    return Finding("; ".join(bad) + ".", len(bad)) if bad else None


def domain_mismatch(f: Facts) -> Finding | None:
    found = [m for model in f.run.models for m in _mismatches(model, f.case)]
    for code in (SCALE_DOUBT, LOW_CONTRAST):
        doubts = [p.message.rstrip(".") for p in f.case.problems if p.code == code]
        if not doubts:
            continue
        # Of a wrong pixel size every field has one; the problems name them all.
        found.append(doubts[0] + (f" (and {len(doubts) - 1} more like it)" if len(doubts) > 1 else ""))
    if f.case.specimen is None:
        found.append("the specimen is not stated and cannot be compared with the models' cards")
    return Finding("; ".join(found) + ".", len(found)) if found else None


def _mismatches(model: ModelUse, case: Case) -> list[str]:
    card = model.card
    if card is None:
        return []
    found = []
    for modality, stain in sorted(set(model.reads)):
        if modality not in card.modalities or stain not in card.stains:
            what = f"{stain} {shown_modality(modality)}"
            found.append(f"{model.name} was not made for {what} images")
    if case.specimen is not None and case.specimen not in card.specimens:
        found.append(f"{model.name} was not made for {case.specimen.replace('_', ' ')}")
    sources = [i.pixel_size_um for i in case.images if (i.modality, i.stain) in model.reads]
    if card.pixel_size_um and sources and max(sources) > card.pixel_size_um * (1 + SCALE_TOLERANCE):
        found.append(
            f"images of {max(sources):.3g} µm a pixel were enlarged for {model.name}, "
            f"trained at {card.pixel_size_um:.3g}"
        )
    return found


def model_hash(f: Facts) -> Finding | None:
    bad = [m.name for m in f.run.models if m.sha256 is not None and m.found_sha256 != m.sha256]
    expected = f.run.expected_config_sha256
    if expected is not None and expected != f.run.config_sha256:
        bad.append("the configuration")
    return Finding(f"Not what its manifest names: {', '.join(bad)}.", ", ".join(bad)) if bad else None


def _some(names: list[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
