"""One laboratory for all fault tests: its processes start once, and are mended between tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Lab, make_inbox


@pytest.fixture(scope="package")
def running_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


@pytest.fixture
def lab(running_lab: Lab) -> Lab:
    running_lab.mend()
    return running_lab


@pytest.fixture(scope="package")
def inbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny phantom cases, C-1 and C-2."""
    return make_inbox(tmp_path_factory.mktemp("inbox"), cases=2)


@pytest.fixture(scope="package")
def undisturbed(running_lab: Lab, inbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a night to which nothing happened; what every other night is compared with."""
    store = tmp_path_factory.mktemp("undisturbed")
    running_lab.mend()
    summary = running_lab.night(inbox, store).summary()
    assert summary["counts"]["processed"] == 2
    return store
