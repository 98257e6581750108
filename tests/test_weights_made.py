"""Every model that is shipped is made by a command that its page states."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from flows.commands.train import command as train

ROOT = Path(__file__).resolve().parent.parent

# Of each package: the page, and the command as it stands there.
MADE = {
    "cellavision-to-tecom": ("staining", "python -m benchmarks.stain_transfer --work DIR --ship FOLDER"),
    "dic-to-mgg": ("staining", "smearflow train stainer SMEARS --recipe dic-to-mgg --out dic-to-mgg/"),
    "iron-types": ("sideroblasts", "smearflow train perls-reader --seed 1 --out iron-types --work DIR"),
    "leukocyte-brightfield": ("detection", "python -m benchmarks.detection_ship brightfield"),
    "leukocyte-classes": ("classification", "python -m benchmarks.classification_ship RUN --out DIR"),
    "leukocyte-dic": ("detection", "python -m benchmarks.detection_ship dic"),
    "marrow-erythroblasts": (
        "sideroblasts",
        "smearflow train marrow-classifier --out marrow-erythroblasts --work DIR",
    ),
    "marrow-perls": ("sideroblasts", "smearflow train perls-finder --seed 1 --out marrow-perls --work DIR"),
    "mgg-to-perls": ("virtual-perls", "python -m benchmarks.virtual_perls ship"),
    "nucleus-cytoplasm": (
        "segmentation",
        "smearflow train segmenter wbc-masks --boxes smears --out nucleus-cytoplasm",
    ),
    "patient-patterns": ("patients", "python benchmarks/patients.py --train 16 --test 10 --write"),
    "tecom-to-cellavision": ("staining", "python -m benchmarks.stain_transfer --work DIR --ship FOLDER"),
    "virtual-leukocytes": (
        "virtual-naming",
        "smearflow train virtual-classifier SMEARS --crops CELLS --crops-pixel-size 0.106 "
        "--out virtual-leukocytes",
    ),
}


def test_every_shipped_package_has_a_command_that_makes_it():
    assert set(MADE) == {card.parent.name for card in (ROOT / "weights").glob("*/card.json")}


@pytest.mark.parametrize("name", MADE)
def test_the_command_that_makes_a_shipped_package_is_documented_and_there(name):
    page, line = MADE[name]
    assert line in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    words = shlex.split(line)
    if words[0] == "smearflow":
        assert words[1] == "train"
        known = {o for p in train.commands[words[2]].params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= known
    else:
        module = words[words.index("-m") + 1] if "-m" in words else next(w for w in words if ".py" in w)
        script = ROOT / (module.removesuffix(".py").replace(".", "/") + ".py")
        source = script.read_text(encoding="utf-8")
        assert all(f'"{w}"' in source for w in words if w.startswith("--"))
