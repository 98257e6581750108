"""What commands say of images that show no cell, of names that are wrong, and of lines they cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import flows.console
from detectors.scale import guess_modality, is_surely_dic
from flows.cli import group, main
from storage.images import is_blank, is_noise, read_image
from storage.whole_files import write_png
from tests.detector_scenes import smear
from tests.test_detect import relief
from tests.test_segment import draw_cell

NOISE = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def call(*args: object) -> tuple[Result, list[dict[str, Any]]]:
    done = CliRunner().invoke(group, [*map(str, args), "--json"])
    return done, json.loads(done.stdout) if done.stdout else []


def dic() -> np.ndarray:
    """Relief of many red cells, (300, 300) uint8."""
    cells = [(float(x), float(y)) for x in (12, 30, 48) for y in (12, 30, 48)]
    dark = 255.0 - smear((60, 60), cells, 0.2)[0].mean(-1)
    return np.clip(128 + np.roll(dark, 2, 1) - np.roll(dark, -2, 1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("command", ["segment", "classify", "explain"])
def test_what_shows_no_stained_cell_is_refused_and_costs_only_itself(command: str, tmp_path: Path) -> None:
    pictures = {
        "black": np.zeros((64, 64, 3), np.uint8),
        "white": np.full((64, 64), 230, np.uint8),
        "noise": NOISE,
        "dic": dic(),
        "cell": draw_cell(),
    }
    for name, picture in pictures.items():
        write_png(tmp_path / f"{name}.png", picture)
    images = [tmp_path / f"{name}.png" for name in pictures]
    out = [] if command == "classify" else ["--out", tmp_path / "out"]
    done, rows = call(command, *images, *out)
    assert done.exit_code == 2
    assert [Path(r["file"]).name for r in rows] == ["cell.png"]
    said = [line for line in done.stderr.splitlines() if line.startswith("smearflow: ")]
    for line, image, why in zip(said, images, ("blank", "blank", "noise", "relief as DIC"), strict=False):
        assert line.startswith(f"smearflow: {image}: ")
        assert why in line
    assert len(said) == 4


def test_little_contrast_is_said(tmp_path: Path) -> None:
    write_png(tmp_path / "plain.png", draw_cell())
    write_png(tmp_path / "hazy.png", np.rint(200 + (draw_cell() - 200.0) * 0.3).astype(np.uint8))
    for name, said in (("plain", False), ("hazy", True)):
        done, rows = call("segment", tmp_path / f"{name}.png", "--out", tmp_path / "out")
        assert ("little contrast" in done.stderr) is said
        assert len(rows) == 1


@pytest.mark.parametrize("command", ["classify", "explain"])
def test_a_cell_unlike_those_learned_from_is_said_in_the_json_and_on_stderr(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "a.png", draw_cell())
    out = [] if command == "classify" else ["--out", tmp_path / "out", "--method", "grad-cam"]
    for ood, above in ((0.995, True), (0.4, False)):
        monkeypatch.setattr(
            f"flows.commands.{command}.unfamiliar",
            lambda path, _found, ood=ood: flows.console.unfamiliar(path, ood),
        )
        done, (row,) = call(command, tmp_path / "a.png", *out)
        assert (done.exit_code, row["ood"], row["ood_limit"]) == (0, ood, 0.99)
        assert row["above_ood_limit"] is above
        assert ("unlike the cells that the classifier learned from" in done.stderr) is above


def test_no_real_cell_is_taken_for_blank_noise_or_dic(real_data: Path) -> None:
    cells = sorted((real_data / "cells").glob("*/*/*.jpg"))[::5]
    smears = sorted((real_data / "smears" / "images").rglob("*.jpg"))[::60]
    images = [read_image(p) for p in cells + smears]
    crops = [im[:side, :side] for im in images[-len(smears) :] for side in (96, 160, 256)]
    assert len(cells) > 40
    for image in (*images, *crops):
        assert not any(test(image) for test in (is_blank, is_noise, is_surely_dic))


def test_dic_of_a_case_is_surely_dic_and_no_noise(real_data: Path) -> None:
    for path in sorted((real_data / "cases").glob("*/*_DIC.tif"))[::4]:
        field = read_image(path)
        for image in (field, field[:256, :256], field[700:1060, 900:1260]):
            assert guess_modality(image) == "dic"
            assert is_surely_dic(image)
            assert not is_noise(image)


def test_noise_is_no_smear_to_detect_in_and_empty_glass_is_no_noise(tmp_path: Path) -> None:
    write_png(tmp_path / "noise.png", NOISE)
    done, rows = call("detect", tmp_path / "noise.png", "--pixel-size", 0.1)
    assert (done.exit_code, rows) == (2, [])
    assert "nothing but noise" in done.stderr
    glass = np.random.default_rng(0).normal(225, 4, (96, 96)).clip(0, 255).astype(np.uint8)
    assert not is_noise(glass)
    assert not is_noise(relief((20, 220), 8))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["detect", "--model", "WRONG"], "'WRONG'"),
        (["detect", "--model", "leukocyte-dic", "--modality", "brightfield"], "was made for dic"),
        (["stain", "--target", "wrong", "--out", "out"], "no target 'wrong'"),
        (["explain", "--class", "wrong", "--out", "out"], "'wrong'"),
    ],
)
def test_a_wrong_name_is_said_once_and_before_any_image_is_read(
    line: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.console._read_pixels", lambda _path: pytest.fail("an image was read"))
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, draw_cell())
    with pytest.raises(SystemExit) as done:
        main([*line, "a.png", "b.png"])
    told = capsys.readouterr().err.strip().splitlines()
    assert (done.value.code, len(told)) == (2, 1)
    assert said in told[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["detect"], "Missing argument 'IMAGES...'; smearflow detect --help"),
        (["detect", "--threshold", "1.5", "x.png"], "'--threshold': 1.5 is not in the range"),
        (["train", "detector", "--bogus"], "'--bogus'"),
        (["bogus"], "No such command 'bogus'; smearflow --help"),
        (["--bogus"], "'--bogus'"),
        (["simulate", "x", "--modality", "a\nb"], "--modality"),
    ],
)
def test_a_line_that_cannot_be_read_is_one_sentence_and_exit_status_2(
    line: list[str], said: str, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as done:
        main(line)
    caught = capsys.readouterr()
    assert (done.value.code, caught.out) == (2, "")
    (told,) = caught.err.splitlines()
    assert told.startswith("smearflow: ")
    assert said in told


def test_a_folder_in_a_files_place_is_called_one(tmp_path: Path) -> None:
    done, rows = call("detect", tmp_path)
    assert (done.exit_code, rows) == (2, [])
    assert "this is a folder; name a file" in done.stderr


def test_a_newline_in_a_name_breaks_no_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.png"
    write_png(path, dic())
    done = CliRunner().invoke(group, ["stain", str(path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "a\\nb.png: no pixel size; 0.1 µm a pixel is assumed" in done.stderr
    assert all("a\\nb" in line for line in (*done.stdout.splitlines(), *done.stderr.splitlines()))


def test_no_pixel_size_is_assumed_aloud_for_a_file_that_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "small.png", np.zeros((8, 8), np.uint8))
    done, rows = call("stain", tmp_path / "small.png", "--out", tmp_path / "out")
    assert (done.exit_code, rows) == (2, [])
    assert "is assumed" not in done.stderr
