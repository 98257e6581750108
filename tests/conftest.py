"""Shared fixtures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; a test that needs it is skipped, and says so, where it is absent."""
    folder = Path(os.environ.get("SMEARFLOW_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not (folder / "README.md").is_file():
        pytest.skip(f"no real images at {folder}; set SMEARFLOW_DATA")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium; a test that needs it is skipped, and says so, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("SMEARFLOW_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here; set SMEARFLOW_CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield opened
        opened.close()
