"""`train locator`: from boxed cells to a folder that a classifier takes its locator from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from flows.cli import group
from pipeline.errors import BadInput, BadModelPackage

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of discs on fields, with their boxes."""
    folder = tmp_path_factory.mktemp("boxed")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    lines = ["image,class,source,x,y,side"]
    for i in range(16):
        cx, cy, radius = rng.uniform(30, 66), rng.uniform(30, 66), rng.uniform(10, 16)
        disc = np.hypot(x - cx, y - cy)[..., None] < radius
        pixels = np.where(disc, (90, 40, 120), (235, 230, 235)) + rng.normal(0, 6, (96, 96, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        name = ("lymphocyte", "neutrophil")[i % 2]
        lines.append(f"{i}.png,{name},drawn,{cx + 0.5:.1f},{cy + 0.5:.1f},{2 * radius:.1f}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def train(what: str, data: Path, out: Path, *more: object) -> Result:
    return CliRunner().invoke(
        group, [str(a) for a in ("train", what, data, "--out", out, *more, "--json")], catch_exceptions=True
    )


def test_a_classifier_takes_the_locator_that_a_command_trained(data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from classifiers.timm_classifier import locator_weights

    out = tmp_path / "locator"
    done = train("locator", data, out, "--steps", 3)
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    told = json.loads(done.stdout)
    assert (told["model"], told["package"]) == ("locator", None)
    assert told["metrics"] == json.loads((out / "locator.json").read_text())
    assert told["metrics"]["cells"]["drawn"] + told["metrics"]["held_out"]["n"] == 16
    assert told["metrics"]["held_out"]["side_error"] > 0
    found = locator_weights(str(out))
    kept = load_file(out / "locator.safetensors")
    assert found.keys() == kept.keys()

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text("input_px: 32\ncached_px: 48\nepochs: 1\nbatch: 4\nsamples_per_epoch: 4\n")
    made = train("classifier", data, tmp_path / "mine", "--recipe", recipe, "--locator", out)
    assert made.exit_code == 0, f"{made.output} {made.exception!r}"
    taken = locator_weights(str(tmp_path / "mine"))
    assert all(torch.equal(taken[k].float(), kept[k].float()) for k in kept)


def test_a_locator_whose_training_was_cut_off_ends_as_one_that_was_not(data: Path, tmp_path: Path) -> None:
    from classifiers.locating import train_locator
    from classifiers.readers import read_cells

    samples, checkpoint = read_cells(data), tmp_path / "checkpoint.pt"
    whole = train_locator(samples, steps=4, batch=4).state_dict()
    train_locator(samples, steps=4, batch=4, checkpoint=checkpoint, stop_after=2)
    resumed = train_locator(samples, steps=4, batch=4, checkpoint=checkpoint, resume=True).state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    with pytest.raises(BadInput, match="another recipe or other settings"):
        train_locator(samples, steps=5, batch=4, checkpoint=checkpoint, resume=True)


def test_a_locator_learns_nothing_of_the_cells_that_a_classifier_of_the_same_data_holds_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from classifiers import locating
    from classifiers.readers import read_cells
    from classifiers.sources import split_by_group, with_copies_together

    learned: list[set[str]] = []

    def spy(samples, **_options):
        learned.append({s.path.name for s in samples})
        return locating.Locator().eval()

    monkeypatch.setattr(locating, "train_locator", spy)
    locating.write_locator(data, tmp_path / "out", seed=7)
    samples = with_copies_together(read_cells(data))
    held = {samples[i].path.name for i in split_by_group(samples, 0.15, 7)[1]}
    assert held
    assert learned == [{s.path.name for s in samples} - held]


def test_cells_without_boxes_and_a_damaged_locator_are_refused_in_one_sentence(tmp_path: Path) -> None:
    from classifiers.timm_classifier import locator_weights

    rng = np.random.default_rng(1)
    for name in ("lymphocyte", "monocyte"):
        (tmp_path / "crops" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "crops" / name / f"{i}.png")
    done = train("locator", tmp_path / "crops", tmp_path / "out", "--steps", 1)
    assert isinstance(done.exception, BadInput)
    assert "no sample has a box" in str(done.exception)
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "locator.safetensors").write_bytes(b"hello")
    with pytest.raises(BadInput, match=r"no locator .*train locator. makes one"):
        locator_weights(str(folder))
    from safetensors.torch import save_file

    save_file({"head.weight": torch.zeros(3)}, folder / "locator.safetensors")
    with pytest.raises(BadModelPackage, match="missing from the weights"):
        locator_weights(str(folder))
    with pytest.raises(BadInput, match="nor a folder of one"):
        locator_weights(str(tmp_path / "nowhere"))
