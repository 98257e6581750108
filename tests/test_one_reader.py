"""Labelled pictures are read as a run reads a case: every training and every evaluation, one way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from classifiers.evaluation import evaluate_classifier
from classifiers.sources import boxed_cells, read_samples
from detectors.segment_data import read_labelled_cells
from pipeline.errors import UnreadableImage
from stainers.cell_sets import read_cells
from stainers.data import load_smears
from storage.image_folders import sources_of
from storage.images import read_grey, read_rgb
from tests.stainer_scenes import smear_folder, smear_name

SIDE = (48, 64)  # height, width: a turned picture has other sides


def picture() -> np.ndarray:
    """(48, 64, 3) uint8: a dark cell on bright glass, no axis like another."""
    image = np.full((*SIDE, 3), (225, 215, 235), np.uint8)
    image[10:40, 14:44] = (120, 60, 150)
    image[14:26, 18:40] = (70, 20, 110)
    return image


def twelve_bit(path: Path, image: np.ndarray) -> None:
    """The picture as a 12-bit camera keeps it, in 16 bits."""
    tifffile.imwrite(path, image.astype(np.uint16) * 16, photometric="rgb")


def turned(path: Path, image: np.ndarray) -> None:
    """The picture with an EXIF tag that asks a viewer to turn it."""
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(image).save(path, quality=95, subsampling=0, exif=tag)


KEPT = {"twelve.tif": twelve_bit, "turned.jpg": turned}


def by_classifiers(folder: Path) -> np.ndarray:
    seen = []

    def classify(patches: np.ndarray, _size: float | None) -> SimpleNamespace:
        seen.append(patches[0])
        return SimpleNamespace(probabilities=np.array([[0.4, 0.6]]), ood=np.zeros(1))

    model = SimpleNamespace(classes=("lymphocyte", "neutrophil"), name="two", classify=classify)
    evaluate_classifier(model, read_samples(folder))  # type: ignore[arg-type]
    return seen[0]


def by_stainers(folder: Path) -> np.ndarray:
    return read_cells(folder, "neutrophil").images[0]


def by_segmenters(folder: Path) -> np.ndarray:
    shown = next((folder / "neutrophil").iterdir())
    mask = np.zeros(SIDE, np.uint8)
    mask[10:40, 14:44] = 128
    mask[14:26, 18:40] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "labels.csv").write_text(f"image,mask\nneutrophil/{shown.name},mask.png\n")
    return read_labelled_cells(folder)[0].image


@pytest.mark.parametrize("name", list(KEPT))
@pytest.mark.parametrize("read", [by_classifiers, by_stainers, by_segmenters])
def test_sixteen_bits_and_an_orientation_tag_are_read_by_all_as_a_run_reads_them(
    read: Callable[[Path], np.ndarray], name: str, tmp_path: Path
) -> None:
    (tmp_path / "neutrophil").mkdir()
    KEPT[name](tmp_path / "neutrophil" / name, picture())
    seen = read(tmp_path)
    assert seen.shape == (*SIDE, 3)
    assert np.abs(seen.astype(int) - picture()).mean() < 3
    np.testing.assert_array_equal(seen, read_rgb(tmp_path / "neutrophil" / name))


@pytest.mark.parametrize("name", list(KEPT))
def test_smears_of_sixteen_bits_or_with_an_orientation_tag_teach_stainers_what_they_show(
    name: str, tmp_path: Path
) -> None:
    plain = smear_folder(tmp_path / "plain", 1)
    other = Path(shutil.copytree(plain, tmp_path / "other"))
    for path in sorted(other.rglob("*.jpg")):
        image = np.asarray(Image.open(path))
        path.unlink()
        KEPT[name](path.with_suffix(Path(name).suffix), image)
    for a, b in zip(load_smears(plain), load_smears(other), strict=True):
        assert (a.file, a.domain, a.image.shape) == (b.file, b.domain, b.image.shape)
        assert np.abs(a.image.astype(int) - b.image).mean() < 3
        np.testing.assert_array_equal(a.red_cells, b.red_cells)


def test_a_smear_that_cannot_be_read_is_named_and_not_left_out(tmp_path: Path) -> None:
    folder = smear_folder(tmp_path, 1)
    (folder / "images" / "train" / f"{smear_name(416, 0)}.jpg").write_bytes(b"\xff\xd8\xff torn")
    with pytest.raises(UnreadableImage, match=r"416-0\.jpg: "):
        load_smears(folder)


def test_a_mask_is_read_in_grey_whatever_it_is_stored_as(tmp_path: Path) -> None:
    mask = np.zeros(SIDE, np.uint8)
    mask[5:20, 7:30] = 255
    Image.fromarray(mask).save(tmp_path / "8.png")
    Image.fromarray(np.dstack([mask] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(mask > 0).save(tmp_path / "1.png")
    tifffile.imwrite(tmp_path / "16.tif", mask.astype(np.uint16) * 257, photometric="minisblack")
    for name in ("8.png", "rgb.png", "1.png", "16.tif"):
        np.testing.assert_array_equal(read_grey(tmp_path / name), mask)


def test_classifiers_and_stainers_name_the_source_of_a_smear_alike(tmp_path: Path) -> None:
    public = smear_folder(tmp_path / "public", 1)
    own = smear_folder(tmp_path / "My Lab", 1, sizes=((500, 90), (416, 80)))
    for folder, names in ((public, {"barcelona", "bccd", "raabin"}), (own, {"my-lab"})):
        assert {s.domain for s in load_smears(folder)} == names
        assert {s.source for s in boxed_cells(folder, 100)} == {f"smears-{n}" for n in names}
    paths = [Path(f"{smear_name(size, 0)}.png") for size in (416, 364)]
    assert sources_of(public, paths, [(640, 480), (364, 370)]) == ["bccd", "barcelona"]
