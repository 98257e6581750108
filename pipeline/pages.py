"""What every page that is written shares: templates, filters, and styles and scripts in the page itself."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).with_name("templates")


@cache
def environment() -> Any:
    """The Jinja environment of all pages: what is filled in is escaped, and nothing may be missing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["id"] = id
    found.filters["pct"] = lambda v: "–" if v is None else f"{100 * v:.0f} %"
    found.filters["fixed"] = lambda v, n=1: "–" if v is None else f"{round(v, n) + 0.0:.{n}f}"
    found.filters["words"] = lambda v: str(v).replace("_", " ")
    found.filters["short"] = lambda v: "–" if v is None else str(v)[:12]
    return found


@cache
def asset(name: str) -> Any:
    """A style or a script of the templates' folder as markup, to stand in a page."""
    from markupsafe import Markup

    return Markup((TEMPLATES / f"{name}.j2").read_text(encoding="utf-8"))


def source_hash(script: Any) -> str:
    """What a page's Content-Security-Policy calls its one script by: base64 of its sha256."""
    return base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
