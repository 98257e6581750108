"""`smearflow stain`: images of any pixel size, and what is said of a picture that is not to be relied on."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

import storage.registry
from detectors.scale import ScaleEstimate
from flows.cli import group
from pipeline.errors import BadInput
from stainers.at_scale import stain_at
from stainers.base import Stained
from storage.whole_files import write_png


class Copier:
    """Gives back what it was given, in violet, and remembers its size; sure of what has contrast."""

    name, targets, min_confidence = "copier", ("bccd",), 0.5

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def stain(self, patches: np.ndarray, target: str | None = None) -> Stained:
        assert target in (None, *self.targets)
        self.seen.append(patches.shape[1:3])
        grey = patches[..., :1].astype(float)
        sure = np.full(len(patches), 0.9 if grey.std() > 5 else 0.22, np.float32)
        image = np.clip(grey * [0.8, 0.5, 0.9], 0, 255).astype(np.uint8)
        return Stained(image, np.zeros(patches.shape[:3], np.float32), sure)


@pytest.fixture
def copier(monkeypatch: pytest.MonkeyPatch) -> Copier:
    made = Copier()
    monkeypatch.setattr(storage.registry, "load", lambda *_: made)  # its card stays dic-to-mgg's: 0.1 µm
    return made


def relief(height: int = 90, width: int = 120) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (128 + 60 * np.sin(x / 9) * np.cos(y / 11)).astype(np.uint8)


def write_tiff(path: Path, pixel_size_um: float) -> Path:
    per_cm = 1e4 / pixel_size_um
    tifffile.imwrite(path, relief(), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")
    return path


def run(*args: str) -> tuple[list[dict[str, object]], str]:
    done = CliRunner().invoke(group, ["stain", *args, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def test_a_field_is_painted_at_the_stainers_scale_and_comes_back_in_its_own_size(
    tmp_path: Path, copier: Copier
) -> None:
    ((row,), told) = run(str(write_tiff(tmp_path / "a.tif", 0.2)), "--out", str(tmp_path / "out"))
    assert (row["pixel_size_um"], row["pixel_size_source"]) == (0.2, "file")
    assert copier.seen == [(180, 240)]
    painted = cv2.imread(str(row["output"]))
    assert painted.shape == (90, 120, 3)
    assert np.abs(painted[..., 1] - relief() * 0.5).max() < 6
    assert told == ""


def test_the_command_line_counts_before_the_file_and_an_assumed_size_is_said(
    tmp_path: Path, copier: Copier
) -> None:
    tiff = write_tiff(tmp_path / "a.tif", 0.2)
    ((row,), _) = run(str(tiff), "--pixel-size", "0.05", "--out", str(tmp_path / "out"))
    assert (row["pixel_size_source"], copier.seen[-1]) == ("command line", (45, 60))
    write_png(tmp_path / "b.png", relief())
    ((row,), told) = run(str(tmp_path / "b.png"), "--out", str(tmp_path / "out"))
    assert (row["pixel_size_um"], copier.seen[-1]) == (0.1, (90, 120))
    assert "b.png: no pixel size; 0.1 µm a pixel is assumed (--pixel-size)" in told


def test_red_cells_that_contradict_the_stainers_scale_give_theirs_as_in_detect(
    tmp_path: Path, copier: Copier, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ScaleEstimate(0.2, 0.9, 40, "40 red cells of 7.5 µm")
    monkeypatch.setattr("detectors.scale.contradicted_scale", lambda *_: found)
    write_png(tmp_path / "b.png", relief())
    ((row,), told) = run(str(tmp_path / "b.png"), "--out", str(tmp_path / "out"))
    assert (row["pixel_size_um"], copier.seen) == (0.2, [(180, 240)])
    assert row["pixel_size_source"] == "inferred: 40 red cells of 7.5 µm"
    assert "0.200 µm a pixel inferred (40 red cells of 7.5 µm)" in told
    ((row,), _) = run(str(tmp_path / "b.png"), "--pixel-size", "0.1", "--out", str(tmp_path / "out"))
    assert row["pixel_size_um"] == 0.1


def test_a_confidence_below_the_threshold_is_said_everywhere(tmp_path: Path, copier: Copier) -> None:
    write_png(tmp_path / "flat.png", np.full((64, 64), 128, np.uint8))
    out = ["--pixel-size", "0.1", "--out", str(tmp_path / "out")]
    ((row,), told) = run(str(tmp_path / "flat.png"), *out)
    assert (row["below_threshold"], row["min_confidence"]) == (True, 0.5)
    assert "confidence 0.22 is below the stainer's threshold of 0.50" in told
    done = CliRunner().invoke(group, ["stain", str(tmp_path / "flat.png"), *out])
    assert "(confidence 0.22, below the stainer's threshold 0.50)" in done.stdout
    write_png(tmp_path / "fine.png", relief())
    ((row,), told) = run(str(tmp_path / "fine.png"), *out)
    assert (row["below_threshold"], told) == (False, "")


@pytest.mark.parametrize("option", ["--out", "--target", "--model"])
def test_an_option_that_is_left_empty_is_refused(tmp_path: Path, option: str) -> None:
    write_png(tmp_path / "a.png", relief())
    given = {"--out": str(tmp_path / "out"), option: " "}
    done = CliRunner().invoke(
        group, ["stain", str(tmp_path / "a.png"), *(x for kv in given.items() for x in kv)]
    )
    assert isinstance(done.exception, BadInput)
    assert str(done.exception).startswith(f"{option}: it is empty")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "said"), [(5.0, "too many"), (0.01, "too few")])
def test_a_scale_at_which_nothing_can_be_stained_is_refused(size: float, said: str) -> None:
    image = np.zeros((300, 300), np.uint8) if said == "too many" else np.zeros((90, 120), np.uint8)
    with pytest.raises(BadInput, match=f"{said} to stain; correct the pixel size"):
        stain_at(Copier(), image, None, size, 0.1)


@pytest.mark.parametrize(("um", "shape"), [(0.25, (5000, 6000)), (0.1, (11000, 10000))])
def test_an_image_too_large_to_stain_is_refused_by_its_header_with_a_way_out(
    tmp_path: Path, copier: Copier, monkeypatch: pytest.MonkeyPatch, um: float, shape: tuple[int, int]
) -> None:
    path = tmp_path / "large.tif"
    per_cm = 1e4 / um
    tifffile.imwrite(
        path, np.zeros(shape, np.uint8), resolution=(per_cm, per_cm), resolutionunit=3, compression="zlib"
    )
    monkeypatch.setattr("storage.images.read_image", lambda *_, **__: pytest.fail("its pixels were read"))
    done = CliRunner().invoke(group, ["stain", str(path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "at the stainer's 0.1 µm, too many to stain; correct the pixel size" in done.stderr
    assert "else cut the image into fields" in done.stderr
    assert copier.seen == []
