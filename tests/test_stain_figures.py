"""What stands behind a figure of a stainer: what is drawn again for its interval, and where there is none."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from stainers.data import Smear
from stainers.pair_sources import Pair

pytest.importorskip("torch")


def smear_of(file: str, split: str, seed: int) -> Smear:
    """A field (600, 600, 3) of blotches that no other field has."""
    import cv2

    noise = np.random.default_rng(seed).uniform(0, 255, (600, 600, 3)).astype(np.float32)
    image = np.clip(128 + 12 * (cv2.GaussianBlur(noise, (0, 0), 9) - 128), 0, 255).astype(np.uint8)
    none = np.zeros((0, 4), np.float32)
    return Smear(file, "bccd", split, image, none, none, (230.0, 230.0, 230.0), 0.1)


def test_cells_of_cases_are_of_the_photograph_they_were_cut_from_and_none_of_it_was_trained_on(tmp_path):
    from benchmarks.stain_confidence import not_trained_on

    smears = [
        smear_of(f, s, i) for i, (f, s) in enumerate((("a", "train"), ("b", "test"), ("c", "validation")))
    ]

    def cell(smear: Smear, y: int, x: int, source: str) -> Pair:
        part = smear.image[y : y + 256, x : x + 256]
        return Pair(part[..., :1], part, "bccd", source)

    a, b, c = smears
    cut = [cell(a, 0, 0, "S1/0"), cell(b, 9, 90, "S1/1"), cell(c, 200, 30, "S1/2"), cell(b, 300, 200, "S1/3")]
    held = not_trained_on(cut, smears, tmp_path / "smears.json")
    assert [p.source for p in held] == ["b", "c", "b"]
    assert json.loads((tmp_path / "smears.json").read_text())["S1/0"] == "a"
    blank = [replace(s, image=np.zeros_like(s.image)) for s in smears]
    assert [p.source for p in not_trained_on(cut, blank, tmp_path / "smears.json")] == ["b", "c", "b"]
