"""JSON that every reader takes: it has no word for NaN and infinities, so they are null."""

from __future__ import annotations

import json
import math
from typing import Any


def finite(value: Any) -> Any:
    """The value with NaN and infinities as null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any) -> str:
    """The value as an indented JSON document without a newline at its end."""
    return json.dumps(finite(value), indent=1, allow_nan=False)
