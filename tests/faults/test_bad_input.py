"""What a person hands in wrong costs only itself, and is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import dask
import numpy as np
import pytest
import tifffile

from flows.cluster import Workers
from tests.faults import models
from tests.test_case_flow import process


@pytest.fixture(scope="module")
def damaged_case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven paired phantom fields; each but the first has one thing wrong with it."""
    from phantoms.cases import simulate_case

    case = simulate_case(
        tmp_path_factory.mktemp("inbox") / "BAD-1",
        case_id="BAD-1",
        seed=5,
        n_fields=6,
        width_px=640,
        height_px=512,
        n_leukocytes_per_field=4,
    )
    manifest = (case / "manifest.csv").read_text().splitlines()
    name = {(r.split(",")[1], r.split(",")[2]): r.split(",")[4] for r in manifest[1:]}
    fields = sorted({f for f, _ in name})

    truncated = case / name[fields[1], "brightfield"]
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])

    sixteen = case / name[fields[2], "dic"]
    tifffile.imwrite(sixteen, tifffile.imread(sixteen).astype(np.uint16) * 100 + 2000)

    grey = case / name[fields[3], "brightfield"]
    tifffile.imwrite(grey, cv2.cvtColor(tifffile.imread(grey), cv2.COLOR_RGB2GRAY))

    (case / name[fields[4], "dic"]).unlink()  # a field without partner, through a missing file
    duplicate = next(r for r in manifest[1:] if r.split(",")[1] == fields[5] and ",brightfield," in r)
    (case / "manifest.csv").write_text("\n".join([*manifest, duplicate]) + "\n")
    return case


def test_each_bad_field_is_named_and_the_rest_of_the_case_completes(
    damaged_case: Path, tmp_path: Path
) -> None:
    with (
        dask.config.set({"distributed.worker.preload": ["tests.faults.worker"]}),
        Workers(n_workers=1) as workers,
        models.registered(),
    ):
        outcome = process(damaged_case, tmp_path / "store", workers, settings=models.SETTINGS)
    problems = {p["code"]: p for p in outcome.result["problems"]}
    assert {"UNREADABLE", "GREY_BRIGHTFIELD", "MISSING_FILE", "DUPLICATE_FIELD"} <= set(problems)
    assert "F002" in json.dumps(problems["UNREADABLE"])
    assert outcome.result["differential"]["n_detected"] > 0
    html = (tmp_path / "store" / "BAD-1" / "report.html").read_text()
    for problem in outcome.result["problems"]:
        assert problem["file"] in html


def rewrite(case: Path, change: Any) -> None:
    lines = (case / "manifest.csv").read_text().splitlines()
    (case / "manifest.csv").write_text("\n".join(change(lines)) + "\n")


@pytest.mark.parametrize(
    ("what", "change", "named"),
    [
        (
            "a file outside the case folder",
            lambda ls: [ls[0], ls[1].replace("F001_BF", "../x/F001_BF"), *ls[2:]],
            "..",
        ),
        ("an unknown column", lambda ls: [ls[0] + ",colour", *[r + ",red" for r in ls[1:]]], "colour"),
        ("an unknown modality", lambda ls: [r.replace(",dic,", ",phase,") for r in ls], "phase"),
        ("no pixel size", lambda ls: [r.replace(",0.1", ",") for r in ls], "pixel"),
    ],
)
def test_a_wrong_manifest_is_one_sentence_and_exit_status_2(
    tmp_path: Path, what: str, change: Any, named: str
) -> None:
    from phantoms.cases import simulate_case

    case = simulate_case(
        tmp_path / "W-1",
        case_id="W-1",
        seed=1,
        n_fields=1,
        width_px=320,
        height_px=256,
        n_leukocytes_per_field=1,
    )
    for image in case.glob("*.tif"):  # no pixel size in the file either
        tifffile.imwrite(image, tifffile.imread(image))
    rewrite(case, change)
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(case), "--store", str(tmp_path / "store"), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, (what, done.stderr)
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert named in done.stderr
