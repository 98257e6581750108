"""A classifier of what a stainer paints: what it learns from, how it is trained, and whom it may read."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from classifiers.base import Classified
from flows.cli import main
from flows.execute import up_to_date
from flows.naming import calibrated_confidence, check_painter, known_classes, namers, virtual_confidence
from pipeline.errors import BadInput
from pipeline.settings import ClassificationSettings, Settings, StainingSettings
from pipeline.virtual_naming import namer_of, train_virtual_classifier
from stainers.data import load_smears
from stainers.virtual_cells import (
    PATCH_PX,
    Painter,
    VirtualCellOptions,
    mark_of_subjects,
    named_crops,
    subjects,
    write_virtual_cells,
)
from storage.images import read_rgb
from storage.packages import find_package, read_package
from storage.registry import load
from tests.case_folders import make_case
from tests.report_cases import both, cells_of
from tests.stainer_scenes import FakeStainer, smear_folder, smear_name

TWO = VirtualCellOptions(draws=2, held_draws=1, seed=3)


class EveryOther:
    """Names by how dark a patch is, and is sure of it, but in doubt of the darkest."""

    name, min_confidence = "every-other", 0.7
    classes = ("lymphocyte", "neutrophil")

    def classify(self, patches, pixel_size_um):
        assert pixel_size_um == 0.1
        sure = 0.9 if patches.mean() > 100 else 0.6
        dark = patches.mean() < 180
        row = [sure if dark else 1 - sure, 1 - sure if dark else sure]
        return Classified(np.array([row], np.float32), np.zeros(1, np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return smear_folder(tmp_path_factory.mktemp("smears"))


@pytest.fixture(scope="module")
def smears(folder):
    return [s for s in load_smears(folder) if s.domain == "bccd"]


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_leukocyte_is_painted_under_as_many_optics_as_asked_for_and_keeps_its_name(smears, tmp_path):
    cells = subjects(smears)
    assert sum(c.name is None for c in cells) == sum(len(s.leukocytes) for s in smears) == 9
    assert [c.name for c in cells if c.name] == ["other"]  # 15 of a hundred
    table = write_virtual_cells(cells, FakeStainer(), lambda patch: "monocyte", tmp_path, TWO)
    rows = rows_of(table)
    assert len(rows) == 2 * len(cells)
    assert {r["class"] for r in rows} == {"monocyte", "other"}
    assert {r["source"] for r in rows} == {"virtual-bccd"}
    assert {r["patient"] for r in rows} == {s.file for s in smears}  # the unit of every split
    pictures = [read_rgb(tmp_path / r["image"]) for r in rows]
    assert all(p.shape == (PATCH_PX, PATCH_PX, 3) for p in pictures)
    assert all((a != b).any() for a, b in zip(pictures[::2], pictures[1::2], strict=True))


def test_a_cell_that_the_namer_doubts_teaches_nothing(smears, tmp_path):
    cells = [c for c in subjects(smears) if c.name is None]
    seen = []

    def name(patch):
        seen.append(patch)
        return None if len(seen) > 2 else "neutrophil"

    rows = rows_of(write_virtual_cells(cells, FakeStainer(), name, tmp_path / "a", TWO))
    assert (len(seen), len(rows)) == (len(cells), 2 * TWO.draws)
    with pytest.raises(BadInput, match="no cell was named"):
        write_virtual_cells(cells, FakeStainer(), lambda patch: None, tmp_path / "b", TWO)


def test_two_images_of_one_name_are_refused_for_their_pictures_would_be_mixed_up(smears, tmp_path):
    with pytest.raises(BadInput, match=f"two images hold a cell '{smear_name(416, 0)}-0'"):
        write_virtual_cells(
            subjects([smears[0], smears[0]]), FakeStainer(), lambda patch: "neutrophil", tmp_path, TWO
        )


def test_a_run_that_was_cut_off_goes_on_and_ends_with_the_same_pictures(smears, tmp_path):
    cells = subjects(smears)[:3]

    def name(patch):
        return "eosinophil"

    whole = write_virtual_cells(cells, FakeStainer(), name, tmp_path / "a", TWO)
    files = sorted(whole.parent.glob("*.png"))
    before = {p.name: p.read_bytes() for p in files}
    table = whole.read_bytes()
    whole.unlink()
    files[1].unlink()
    kept = files[0].stat().st_mtime_ns
    again = write_virtual_cells(cells, FakeStainer(), name, tmp_path / "a", TWO)
    assert {p.name: p.read_bytes() for p in again.parent.glob("*.png")} == before
    assert again.read_bytes() == table
    assert files[0].stat().st_mtime_ns == kept  # not painted again
    other = write_virtual_cells(cells, FakeStainer(), name, tmp_path / "b", replace(TWO, seed=4))
    assert {p.read_bytes() for p in other.parent.glob("*.png")}.isdisjoint(before.values())


def test_what_paints_without_a_confidence_paints_the_same():
    stainer = load("stainer", "dic-to-mgg")
    patch = np.random.default_rng(0).normal(128, 20, (64, 72, 1)).clip(0, 255).astype(np.uint8)
    assert isinstance(stainer, Painter)
    assert not isinstance(FakeStainer(), Painter)
    whole = stainer.stain(patch[None], "raabin", shear_angle_deg=[130.0]).image[0]
    np.testing.assert_array_equal(stainer.paint(patch, "raabin", shear_angle_deg=130.0), whole)


def test_a_crop_that_shows_a_smear_again_is_left_out_and_others_come_to_the_stainers_scale(smears, tmp_path):
    copy, new = tmp_path / "copy.png", tmp_path / "new.png"
    Image.fromarray(smears[0].image).resize((200, 200)).save(copy)
    noise = np.random.default_rng(1).integers(0, 255, (6, 6, 3), np.uint8)
    Image.fromarray(noise).resize((120, 120), Image.Resampling.NEAREST).save(new)
    found = named_crops([(copy, "ig"), (new, "erythroblast")], 0.2, read_rgb, smears)
    assert [(c.name, c.smear.image.shape) for c in found] == [("erythroblast", (240, 240, 3))]
    assert found[0].centre_xy == (120, 120)


def test_a_name_is_taken_where_the_classifier_is_sure_of_it():
    name = namer_of(EveryOther())
    assert name(np.full((32, 32, 3), 150, np.uint8)) == "lymphocyte"
    assert name(np.full((32, 32, 3), 220, np.uint8)) == "neutrophil"
    assert name(np.full((32, 32, 3), 50, np.uint8)) is None


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    """A few steps from the shipped classifier on, on drawn cells; smears numbered 0 are held out."""
    place = tmp_path_factory.mktemp("virtual")
    recipe = yaml.safe_load((Path("classifiers/recipes/virtual-leukocytes.yaml")).read_text())
    recipe |= {"input_px": 64, "cached_px": 80, "batch": 4, "samples_per_epoch": 8}
    (place / "short.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "stainers.data.split_of", lambda name, seed: "validation" if name.endswith("-0") else "train"
        )
        return train_virtual_classifier(
            folder,
            place / "named",
            stainer=(load("stainer", "dic-to-mgg"), find_package("dic-to-mgg")),
            namer=(EveryOther(), find_package("leukocyte-classes")),
            recipe=str(place / "short.yaml"),
            epochs=1,
            draws=1,
        )


def test_a_trained_package_names_cells_and_its_card_says_whose_pictures_it_read(trained):
    card = read_package(trained).card
    stainer, namer = find_package("dic-to-mgg").card, find_package("leukocyte-classes").card
    assert (card.classes, card.modalities, card.stains) == (namer.classes, ("dic",), ("unstained",))
    assert card.parameters["stainer_sha256"] == stainer.sha256
    assert card.parameters["backbone"] == namer.parameters["backbone"]  # not lost beside the stainer's
    assert card.training["pretrained"]["sha256"] == namer.sha256
    # 18 leukocytes and 3 red cells of two smears a stain teach; 9 leukocytes, two pictures each, judge
    assert card.training["trained_cells"] == 21
    assert card.metrics["all"]["n"] == 18
    found = load("classifier", str(trained)).classify(np.full((1, 64, 64, 3), 200, np.uint8), 0.1)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)


def test_pictures_of_another_seed_are_never_taken_for_ones_own(trained, folder, monkeypatch):
    monkeypatch.setattr(
        "stainers.data.split_of", lambda name, seed: "validation" if name.endswith("-0") else "train"
    )
    asked = {
        "stainer": (load("stainer", "dic-to-mgg"), find_package("dic-to-mgg")),
        "namer": (EveryOther(), find_package("leukocyte-classes")),
    }
    kept = sorted((trained.parent / ".named.cells").rglob("*.png"))
    assert len(kept) == 21 + 2 * (9 + 1)
    with pytest.raises(BadInput, match="another seed; leave out --resume"):
        train_virtual_classifier(folder, trained, **asked, seed=1, resume=True)
    assert sorted((trained.parent / ".named.cells").rglob("*.png")) == kept


def test_pictures_of_other_boxes_are_never_taken_for_ones_own(trained, folder, tmp_path, monkeypatch):
    asked = {
        "stainer": (load("stainer", "dic-to-mgg"), find_package("dic-to-mgg")),
        "namer": (EveryOther(), find_package("leukocyte-classes")),
        "draws": 1,
        "resume": True,
    }
    monkeypatch.setattr(
        "stainers.data.split_of", lambda name, seed: "validation" if name.endswith("-0") else "train"
    )
    monkeypatch.setattr("classifiers.training.train_classifier", lambda *given, **more: given[1])
    assert train_virtual_classifier(folder, trained, **asked) == trained
    moved = shutil.copytree(folder, tmp_path / "moved")
    for label in (moved / "labels").rglob("*.txt"):
        label.write_text(label.read_text().replace("0 0.", "1 0.", 1))
    with pytest.raises(BadInput, match=r"of other smears, boxes or crops .*leave out --resume"):
        train_virtual_classifier(moved, trained, **asked)


def test_the_mark_of_cells_is_of_what_their_pictures_show(smears, folder, tmp_path):
    again = [s for s in load_smears(folder) if s.domain == "bccd"]
    mark = mark_of_subjects(subjects(smears))
    assert mark_of_subjects(subjects(again)) == mark
    again[0].leukocytes[0] += 3
    assert mark_of_subjects(subjects(again)) != mark
    assert mark_of_subjects(subjects([replace(s, image=s.image[::-1]) for s in smears])) != mark
    noise = np.random.default_rng(1).integers(0, 255, (6, 6, 3), np.uint8)
    Image.fromarray(noise).resize((120, 120), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    crops = [named_crops([(tmp_path / "a.png", "monocyte")], um, read_rgb, smears) for um in (0.1, 0.2)]
    assert mark_of_subjects(crops[0]) != mark_of_subjects(crops[1])


def test_it_reads_its_own_stainer_and_refuses_any_other_in_one_sentence(trained):
    def settings(namer, stainer="dic-to-mgg"):
        return Settings(
            classification=ClassificationSettings(virtual_classifier=namer),
            staining=StainingSettings(dic_stainer=stainer),
        )

    check_painter(settings(str(trained)))
    check_painter(settings(None, "mgg-to-perls"))  # a classifier of real stain reads whatever is painted
    with pytest.raises(BadInput, match=r"was not made for what staining.dic_stainer 'mgg-to-perls' paints"):
        check_painter(settings(str(trained), "mgg-to-perls"))


def test_patches_of_another_scale_than_the_stainer_paints_are_refused_before_any_work(tmp_path):
    make_case(tmp_path / "K-001", fields=1)
    with pytest.raises(BadInput, match=r"paints DIC at 0.1 µm a pixel; set patches.pixel_size_um to 0.1"):
        up_to_date(tmp_path / "K-001", str(tmp_path / "store"), {"patches": {"pixel_size_um": 0.2}})
    make_case(tmp_path / "K-002", fields=1, paired=False)  # nothing is painted
    assert (
        up_to_date(tmp_path / "K-002", str(tmp_path / "store"), {"patches": {"pixel_size_um": 0.2}}) is None
    )


def test_the_shipped_pair_of_stainer_and_classifier_fits():
    check_painter(Settings())
    namer = find_package(Settings().classification.virtual_classifier)
    assert namer.card.parameters["stainer"] == Settings().staining.dic_stainer


def test_stained_and_virtual_cells_have_their_own_classifier():
    chosen = ClassificationSettings(classifier="a", virtual_classifier="b")
    assert (chosen.namer(virtual=False), chosen.namer(virtual=True)) == ("a", "b")
    alone = ClassificationSettings(classifier="a", virtual_classifier=None)
    assert alone.namer(virtual=True) == "a"


def test_a_mixed_case_holds_each_cell_to_the_threshold_of_its_own_classifier(trained):
    stained, _ = both(cells_of({"neutrophil": 2}))
    virtual = tuple(c.model_copy(update={"modality": "dic", "stain": "unstained"}) for c in stained)
    own = Settings(classification=ClassificationSettings(virtual_classifier=str(trained)))
    real, read = find_package("leukocyte-classes").card, read_package(trained).card
    limits = [c.parameters["min_confidence"] for c in (real, read)]
    assert [calibrated_confidence(own, cells) for cells in (stained, virtual)] == limits
    assert limits[0] != limits[1]
    assert calibrated_confidence(own, stained + virtual) == limits[0]
    assert virtual_confidence(own, stained + virtual) == virtual_confidence(own, virtual) == limits[1]
    assert namers(own, stained + virtual) == (real.name, str(trained))
    assert namers(own, ()) == namers(own, stained) == (real.name,)
    assert known_classes(own, stained + virtual) == real.classes


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"recipe": "nope"}, "nope"),
        ({"stainer": "tecom-to-cellavision"}, "'tecom-to-cellavision' reads brightfield, and virtual cells"),
        ({"crops_pixel_size_um": 0.2}, "--crops-pixel-size is the scale of labelled crops"),
    ],
)
def test_what_cannot_be_trained_is_said_before_a_cell_is_painted(folder, tmp_path, monkeypatch, wrong, said):
    def painted(*_, **__):
        pytest.fail("cells were painted")

    monkeypatch.setattr("pipeline.virtual_naming.write_virtual_cells", painted)
    name = wrong.pop("stainer", "dic-to-mgg")
    with pytest.raises(BadInput, match=said):
        train_virtual_classifier(
            folder,
            tmp_path / "out",
            stainer=(FakeStainer(), find_package(name)),
            namer=(EveryOther(), find_package("leukocyte-classes")),
            **wrong,
        )
    assert not list(tmp_path.iterdir())


def test_a_wrong_folder_is_one_sentence_and_status_2(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, said in (("none", "no such folder"), ("empty", "give a YOLO-format folder")):
        with pytest.raises(SystemExit) as stop:
            main(["train", "virtual-classifier", str(tmp_path / name), "--out", str(tmp_path / "o")])
        assert stop.value.code == 2
        told = capsys.readouterr().err.strip()
        assert said in told
        assert str(tmp_path / name) in told
        assert "\n" not in told
