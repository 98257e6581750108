"""docs/reliability.md promises nothing that no test keeps."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def promises() -> list[tuple[str, list[str]]]:
    """(promise, [file::test]) of every row of the page's tables that make promises."""
    rows = []
    inside = False
    for line in PAGE.read_text().splitlines():
        if line.startswith("| promise"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            cells = [c.strip() for c in line.strip("|").split("|")]
            rows.append((cells[0], re.findall(r"`([\w/.]+::\w+)`", cells[-1])))
    return rows


def test_each_promise_names_a_test_that_exists() -> None:
    rows = promises()
    assert rows
    missing = []
    for promise, names in rows:
        if not names:
            missing.append(f"{promise}: names no test")
        for name in names:
            file, test = name.split("::")
            path = ROOT / file
            if not path.is_file() or test not in names_in(path):
                missing.append(f"{promise}: {name}")
    assert not missing, "\n".join(missing)
