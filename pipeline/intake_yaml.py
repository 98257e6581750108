"""case.yaml: the specimen and the day of collection, and nothing else that YAML could do."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any, get_args

from pipeline.errors import BadInput, shown
from pipeline.intake_files import read_small
from pipeline.types import Specimen
from storage.tables import decoded

CASE_YAML = "case.yaml"
MAX_YAML_BYTES = 64 << 10


def _plain_document(text: str) -> Any:
    """A YAML document without anchors, aliases and tags of its own.

    Two keys need none of them, and aliases of aliases grow to gigabytes when they are merged or shown.
    """
    import yaml

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("anchors and aliases are not taken")
    return yaml.safe_load(text)


def _text(path: Path, key: str, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise BadInput(f"{path}: '{key}' holds no text but a {type(value).__name__}; write one word or date.")


def read_case_yaml(case_dir: Path) -> tuple[Specimen | None, str | None]:
    """Specimen and collection date of case.yaml; (None, None) where there is none.  Raises BadInput."""
    import yaml

    path = case_dir / CASE_YAML
    data = read_small(case_dir, CASE_YAML, MAX_YAML_BYTES)
    if data is None:
        return None, None
    try:
        document = _plain_document(decoded(path, data, "text"))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        detail = shown(" ".join(str(error).split()), 160)
        raise BadInput(
            f"{path} is no valid YAML ({detail}); write lines such as 'specimen: blood'."
        ) from error
    if document is None:
        return None, None
    if not isinstance(document, dict):
        raise BadInput(f"{path} holds no keys; write lines such as 'specimen: blood'.")
    unknown = [k for k in document if k not in ("specimen", "collected")]
    if unknown:
        name = unknown[0] if isinstance(unknown[0], str) else type(unknown[0]).__name__
        raise BadInput(f"{path} has the unknown key '{shown(name)}'; the keys are specimen and collected.")
    specimen: Specimen | None = None
    if document.get("specimen") is not None:
        given = _text(path, "specimen", document["specimen"])
        known = {name.lower(): name for name in get_args(Specimen)}
        if given.lower() not in known:
            raise BadInput(
                f"{path}: the specimen '{shown(given)}' is not known; use one of {', '.join(known)}."
            )
        specimen = known[given.lower()]
    if document.get("collected") is None:
        return specimen, None
    collected = _text(path, "collected", document["collected"])
    try:
        datetime.fromisoformat(collected)
    except ValueError as error:
        raise BadInput(
            f"{path}: 'collected' is '{shown(collected)}'; write a date such as 2026-11-01."
        ) from error
    return specimen, collected
