"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; a test that needs it is skipped, and says so, where it is absent."""
    folder = Path(os.environ.get("SMEARFLOW_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not (folder / "README.md").is_file():
        pytest.skip(f"no real images at {folder}; set SMEARFLOW_DATA")
    return folder
