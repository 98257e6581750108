"""`smearflow train` and `smearflow evaluate` through the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.cli import group
from storage.json_text import finite
from tests.test_detectors_training import yolo_folder  # noqa: F401  (a fixture)


def test_figures_that_are_no_numbers_become_null() -> None:
    assert finite({"a": [1.0, math.nan], "b": (math.inf, "x")}) == {"a": [1.0, None], "b": [None, "x"]}


def test_a_detector_trained_for_an_epoch_can_be_evaluated_by_its_folder(
    yolo_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    trained = CliRunner().invoke(
        group, ["train", "detector", str(yolo_folder), "--out", str(out), "--epochs", "1", "--json"]
    )
    assert trained.exit_code == 0, trained.output
    said = json.loads(trained.stdout)
    assert said["package"] == str(out / "package")
    assert (out / "package" / "card.json").is_file()
    measured = CliRunner().invoke(
        group,
        ["evaluate", "detector", str(yolo_folder), "--model", str(out), "--out", str(tmp_path / "e")],
    )
    assert measured.exit_code == 0, measured.output
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["n_images"] > 0
    assert (tmp_path / "e" / "precision_recall.png").is_file()


@pytest.mark.parametrize(("asked", "used"), [((), 5), (("--seed", "7"), 7)])
@pytest.mark.parametrize(
    "recipe", ["architecture: unet-film\nseed: 5\n", "architecture: cyclegan\nrun:\n  seed: 5\n"]
)
def test_the_seed_of_a_recipe_counts_unless_the_command_gives_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, asked: tuple[str, ...], used: int
) -> None:
    seeds = []

    def train(_data: Path, _out: Path, *, recipe: Any, **_options: Any) -> dict[str, Any]:
        seeds.append(getattr(recipe, "run", recipe).seed)
        return {}

    monkeypatch.setattr("stainers.training.train_stainer", train)
    monkeypatch.setattr("stainers.picture_training.train_folder", train)
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    command = ["train", "stainer", str(tmp_path), "--recipe", str(tmp_path / "recipe.yaml")]
    done = CliRunner().invoke(group, [*command, "--out", str(tmp_path / "out"), *asked])
    assert done.exit_code == 0, done.output
    assert seeds == [used]
