"""Hundreds of damaged files, read as a night reads them: a picture or one sentence, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import Fate, write_corpus

ROOT = Path(__file__).resolve().parent.parent
# Beyond what the readers have loaded: the largest picture that is allowed here takes 180 MB.
MEMORY_MIB, CPU_SECONDS_A_FILE = 700, 10.0


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Fate, dict[str, Any]]]:
    """What became of each file, read in a process of its own under a limit of memory."""
    files = write_corpus(tmp_path_factory.mktemp("corpus"), flips=8)
    done = subprocess.run(
        [sys.executable, "-m", "tests.corpus_reader", str(MEMORY_MIB), *(str(p) for p, _ in files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {line["file"]: line for line in lines if "seconds" in line}
    assert done.returncode == 0, f"died of {lines[-1]['file'] if lines else 'nothing'}: {done.stderr[-1000:]}"
    assert len(found) == len(files) > 400
    return {path.name: (fate, found[path.name]) for path, fate in files}


def _message(found: dict[str, Any]) -> str:
    return found.get("error") or next(iter(found["problems"]), "")


def test_no_damaged_file_crashes_or_hangs_the_reader(read: dict[str, Any]) -> None:
    assert {name: found["crash"] for name, (_, found) in read.items() if "crash" in found} == {}
    assert [n for n, (_, found) in read.items() if found["seconds"] > CPU_SECONDS_A_FILE] == []


def test_each_damaged_file_is_a_picture_or_one_sentence_that_names_it(read: dict[str, Any]) -> None:
    for name, (_, found) in read.items():
        if "shape" in found:
            continue
        for message in [m for m in (_message(found), *found["problems"]) if m]:
            assert name in message
            assert message.isprintable(), message
            assert message.endswith("."), message
            assert len(message) < 600


def test_what_cannot_be_a_picture_is_refused_and_what_is_whole_is_read(read: dict[str, Any]) -> None:
    wrong = {
        name: (fate, _message(found))
        for name, (fate, found) in read.items()
        if fate != "either" and (fate == "read") != ("shape" in found)
    }
    assert wrong == {}


def test_a_picture_that_was_cut_in_its_pixels_is_never_taken_for_a_whole_one(read: dict[str, Any]) -> None:
    # The last 200 bytes may be what stands behind the pixels: text of an OME-TIFF, a slide's macro image.
    size = {n.split("-", 1)[1]: 0 for n in read if n.startswith("whole-")}
    for name in size:
        cuts = [n for n in read if n.startswith(f"cut-{name.rsplit('.', 1)[0]}-")]
        assert len(cuts) >= 12
        longest = sorted(cuts, key=lambda n: int(n.rsplit("-", 1)[1].split(".")[0]))
        assert [n for n in longest[:-2] if "shape" in read[n][1]] == []


def test_memory_does_not_grow_with_what_a_header_claims(read: dict[str, Any]) -> None:
    # The high-water mark of the process: nothing damaged may have raised it by more than a whole picture.
    assert {n: f["mib"] for n, (_, f) in read.items() if f["mib"] > 250} == {}
