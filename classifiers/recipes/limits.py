"""What the values of a classifier's recipe may be: their kind by the dataclass, their range by a table."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from pipeline.errors import BadInput
from storage.limits import COUNT, NUMBER, PART, POSITIVE, SHARE, Limit, Range, check_limit

LIMITS: dict[str, dict[str, Limit]] = {
    "Recipe": {
        "modality": ("brightfield", "dic"),
        "input_px": COUNT,  # the least is the backbone's
        "start_px": COUNT,
        "cached_px": Range(16),
        "zoom": POSITIVE,
        "nuclear_hue": SHARE,
        "epochs": COUNT,
        "batch": Range(2),  # of one view batch normalisation has no spread
        "learning_rate": POSITIVE,
        "weight_decay": NUMBER,
        "loss": ("cross_entropy", "focal"),
        "focal_gamma": NUMBER,
        "smoothing": PART,
        "none_share": PART,
        "balance": SHARE,
        "source_balance": SHARE,
        "ema": SHARE,
        "drop_rate": PART,
        "samples_per_epoch": COUNT,
        "start_share": PART,
    },
    "Companion": {"epochs": COUNT, "samples_per_epoch": COUNT, "weight": POSITIVE},
    "Augmentation": {
        "scale": POSITIVE,
        "shift": SHARE,
        "squeeze": PART,
        "stain_mix": NUMBER,
        "stain_gain": NUMBER,
        "transfer": SHARE,
        "hue": NUMBER,
        "grey": SHARE,
        "brightness": SHARE,
        "blur": SHARE,
        "noise": NUMBER,
        "erase": SHARE,
    },
}
WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null"}


def check_values(part: Any, where: str) -> None:
    """Raise BadInput, beginning with `where`, unless the values of a recipe's dataclass are of their kind and
    within their limits; those of a dataclass in it are its own to check."""
    limits = LIMITS[type(part).__name__]
    for name, hint in _hints(part).items():
        value = getattr(part, name)
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if not any(_fits(value, kind) for kind in kinds):
            wanted = " or ".join(dict.fromkeys(_words(kind) for kind in kinds))
            spelling = " (YAML reads 1e-3 as a word; write 1.0e-3)" if _is_number(value) else ""
            raise BadInput(f"{where}: '{name}' must be {wanted}, not {value!r}{spelling}.")
        if value is not None:
            check_limit(limits.get(name), name, value, where)


def _hints(part: Any) -> dict[str, Any]:
    hints = get_type_hints(type(part))
    return {f.name: hints[f.name] for f in fields(part) if not is_dataclass(hints[f.name])}


def _words(kind: Any) -> str:
    return WORDS.get(kind) or f"a list of {'words' if get_args(kind)[0] is str else 'numbers'}"


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        items = get_args(kind)
        of_length = ... in items or (isinstance(value, tuple) and len(value) == len(items))
        return isinstance(value, tuple) and of_length and all(_fits(v, items[0]) for v in value)
    if isinstance(value, bool) != (kind is bool):
        return False
    return isinstance(value, int | float if kind is float else kind)
