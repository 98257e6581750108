"""Tables of labelled cells as people write them: read whole, or refused by the line that cannot be used."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from classifiers.sources import read_samples
from pipeline.errors import BadInput
from stainers.cell_sets import read_cells
from stainers.families import train_by_recipe
from storage.tables import read_table


def write_cells(folder: Path, n: int) -> Path:
    folder.mkdir(exist_ok=True)
    lines = ["image,source,class"]
    for i in range(n):
        for k, source in enumerate(("mine", "theirs")):
            image = np.random.default_rng(2 * i + k).integers(60, 250, (40, 40, 3), np.uint8)
            cv2.imwrite(str(folder / f"{source}{i}.png"), image)
            lines.append(f"{source}{i}.png,{source},lymphocyte")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_table_keeps_every_row_whatever_its_encoding_mark_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfimage,class\na.png,x,\n\nb.png,\n")
    assert read_table(tmp_path / "a.csv", ("image",), filled=("image",)) == [
        {"image": "a.png", "class": "x"},
        {"image": "b.png", "class": ""},
    ]
    with pytest.raises(BadInput, match="cannot be read"):
        read_table(tmp_path / "none.csv", ("image",))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b",mine,x", "line 2 says no image"),
        (b"a.png,mine", "line 2 has fewer cells"),
        (b"a.png,mine,\xe9", "not in UTF-8"),
        (b"gone.png,mine,x", r"gone\.png: the image does not exist"),
    ],
)
def test_a_row_of_cells_that_cannot_be_used_is_named(tmp_path: Path, row: bytes, said: str) -> None:
    (tmp_path / "labels.csv").write_bytes(b"image,source,class\n" + row + b"\n")
    with pytest.raises(BadInput, match=said):
        read_cells(tmp_path, "mine")
    if b"gone" not in row:  # a classifier reads the same table, and its images later
        with pytest.raises(BadInput, match=said):
            read_samples(tmp_path)


def test_a_table_may_name_images_that_lie_elsewhere(tmp_path: Path) -> None:
    write_cells(tmp_path / "here", 2)
    (tmp_path / "list").mkdir()
    rows = "".join(f"{tmp_path}/here/mine{i}.png,mine,x\n" for i in range(2))
    (tmp_path / "list" / "labels.csv").write_text("image,source,class\n" + rows)
    found = read_cells(tmp_path / "list", "mine")
    assert found.groups == tuple(f"{tmp_path}/here/mine{i}" for i in range(2))


def test_a_normalizer_of_one_image_a_stain_is_refused_in_one_sentence(tmp_path: Path) -> None:
    data = write_cells(tmp_path / "cells", 1)
    recipe = tmp_path / "own.yaml"
    recipe.write_text("architecture: reinhard\ndata:\n  source: mine\n  target: theirs\n")
    with pytest.raises(BadInput, match="too few images that differ"):
        train_by_recipe(data, tmp_path / "out", recipe)
