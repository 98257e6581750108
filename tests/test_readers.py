"""Readers of public sets: each layout as it is downloaded, and the traps in its labels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifiers.readers import READERS, Reader, read_cells, reader_of, register_reader
from classifiers.set_layouts import read_mll_patients
from classifiers.sources import split_by_group
from classifiers.taxonomy import CELL_TYPES
from pipeline.errors import BadInput, UnknownName


def put(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    value = tuple(np.random.default_rng(len(str(path))).integers(0, 255, len(mode)).tolist())
    Image.new(mode, (8, 8), value).save(path)
    return path


@pytest.fixture
def lmu(tmp_path):
    """The archive unpacked beside its table, as The Cancer Imaging Archive gives them."""
    root = tmp_path / "AML-Cytomorphology_LMU"
    for name in ("BAS/BAS_0001.tiff", "MYB/MYB_0001.tiff", "MYO/MYO_0001.tiff", "KSC/KSC_0001.tiff"):
        put(root / name, "RGBA")
    (tmp_path / "annotations.dat").write_text(
        "BAS/BAS_0001.tiff BAS nan nan\nMYB/MYB_0001.tiff MYB MYB PMO\n"
        "MYO/MYO_0001.tiff MYO MOB MYO\nKSC/KSC_0001.tiff KSC nan nan\n"
    )
    return tmp_path


def test_lmu_takes_labels_from_its_table_and_trusts_disputed_ones_half(lmu):
    found = {s.path.name: s for s in read_cells(lmu, "lmu")}
    assert found["MYB_0001.tiff"].label == "myelocyte"
    assert found["MYB_0001.tiff"].weight == 0.5
    # Myeloblast or monoblast: both are blasts here, so nobody disagrees.
    assert (found["MYO_0001.tiff"].label, found["MYO_0001.tiff"].weight) == ("blast", 1.0)
    assert found["KSC_0001.tiff"].label == "smudge"
    assert all(s.is_crop for s in found.values())


def test_lmu_without_its_table_is_read_by_its_folders(lmu):
    (lmu / "annotations.dat").unlink()
    assert Counter(s.label for s in read_cells(lmu, "lmu")) == {
        "basophil": 1,
        "myelocyte": 1,
        "blast": 1,
        "smudge": 1,
    }


def test_lmu_names_the_line_of_a_missing_image(lmu):
    (lmu / "AML-Cytomorphology_LMU" / "MYO" / "MYO_0001.tiff").unlink()
    with pytest.raises(BadInput, match=r"line 3: .*MYO_0001"):
        read_cells(lmu, "lmu")


def test_lmu_refuses_a_code_it_does_not_have(lmu):
    (lmu / "annotations.dat").write_text("BAS/BAS_0001.tiff XYZ nan nan\n")
    with pytest.raises(UnknownName, match="XYZ"):
        read_cells(lmu, "lmu")


@pytest.fixture
def mll(tmp_path):
    root = tmp_path / "AML-Cytomorphology_MLL_Helmholtz_v1"
    for patient in ("data/NPM1/AAA", "data/NPM1/BBB", "data/control/CCC", "data/PML_RARA/DDD"):
        for i in range(3):
            put(root / patient / f"image_{i}.tif")
    (root / "metadata.csv").write_text(
        "patient_id,sex_1f_2m,age,bag_label,instance_count\nAAA,1,50,NPM1,3\nCCC,2,40,control,3\n"
    )
    return root


def test_mll_labels_are_of_patients_and_never_of_cells(mll):
    with pytest.raises(BadInput, match="diagnoses of patients, not names of cells"):
        read_cells(mll, "mll-helmholtz")
    patients = read_mll_patients(mll)
    assert {p.patient: p.diagnosis for p in patients} == {
        "AAA": "NPM1",
        "BBB": "NPM1",
        "CCC": "control",
        "DDD": "PML_RARA",
    }
    assert all(len(p.images) == 3 for p in patients)


def test_mll_cells_without_names_are_never_split_within_a_patient(mll):
    samples = READERS["mll-helmholtz"].read(mll)
    assert {s.label for s in samples} == {"other"}
    train, held = split_by_group(samples, 0.25, 3)
    assert held
    assert not {samples[i].group for i in train} & {samples[i].group for i in held}
    assert len({samples[i].group for i in held}) < 4


def test_mll_says_where_its_table_and_folders_disagree(mll):
    (mll / "metadata.csv").write_text("patient_id,bag_label\nAAA,control\n")
    with pytest.raises(BadInput, match="AAA is control"):
        read_mll_patients(mll)


def test_bm21_is_read_through_its_ranges_of_a_thousand(tmp_path):
    root = tmp_path / "BM_cytomorphology_data"
    for name in ("ABE/ABE_00001.jpg", "NIF/0001-1000/NIF_00001.jpg", "NIF/1001-2000/NIF_01001.jpg"):
        put(root / name)
    put(root / "BLA" / "0001-1000" / "BLA_00001.jpg")
    found = Counter(s.label for s in read_cells(tmp_path, "bm-21"))
    assert found == {"eosinophil": 1, "unidentified": 2, "blast": 1}
    put(root / "BLA" / "0001-1000" / "EBO_00001.jpg")
    with pytest.raises(BadInput, match="EBO in the folder BLA"):
        read_cells(tmp_path, "bm-21")


def test_pbc_takes_the_finer_label_of_the_prefix_and_skips_hidden_files(tmp_path):
    root = tmp_path / "PBC_dataset_normal_DIB"
    for name in (
        *("ig/MMY_100001.jpg", "ig/MY_100002.jpg", "ig/PMY_100003.jpg", "ig/IG_100004.jpg"),
        *("neutrophil/SNE_1.jpg", "neutrophil/BNE_2.jpg", "neutrophil/NEUTROPHIL_3.jpg"),
        *("erythroblast/ERB_1.jpg", "platelet/PLATELET_1.jpg"),
    ):
        put(root / name)
    (root / "neutrophil" / ".DS_169665.jpg").write_bytes(b"junk")
    assert Counter(s.label for s in read_cells(tmp_path, "pbc-8")) == {
        "metamyelocyte": 1,
        "myelocyte": 1,
        "promyelocyte": 1,
        "immature_granulocyte": 1,
        "neutrophil_segmented": 1,
        "neutrophil_band": 1,
        "neutrophil": 1,
        "erythroblast": 1,
        "platelet": 1,
    }
    put(root / "monocyte" / "LY_1.jpg")
    with pytest.raises(BadInput, match="prefix says lymphocyte"):
        read_cells(tmp_path, "pbc-8")


@pytest.fixture
def raabin(tmp_path):
    for part, name in (
        *(("Train", "Neutrophil/20190528_162951_0.jpg"), ("Train", "Neutrophil/20190528_162951_1.jpg")),
        *(("Train", "Lymphocyte/20190528_170000_0.jpg"), ("TestA", "Basophil/95-4-1_2.jpg")),
        ("TestB", "Lymphocyte/7_1.jpg"),
    ):
        put(tmp_path / part / name)
    return tmp_path


def test_raabin_says_the_part_and_keeps_crops_of_a_photograph_together(raabin):
    samples = read_cells(raabin, "raabin")
    assert Counter(s.source for s in samples) == {"raabin-train": 3, "raabin-testa": 1, "raabin-testb": 1}
    groups = [s.group for s in samples if s.label == "neutrophil"]
    assert groups[0] == groups[1]
    assert len({s.group for s in samples}) == 4


def test_one_part_of_raabin_can_be_read_alone(raabin):
    assert {s.source for s in read_cells(raabin / "TestB", "raabin")} == {"raabin-testb"}


def test_a_patient_column_keeps_patients_whole(tmp_path):
    lines = ["image,class,source,patient"]
    for i in range(20):
        put(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'monocyte' if i % 2 else 'lymphocyte'},ward,p{i // 5}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    samples = read_cells(tmp_path)
    train, held = split_by_group(samples, 0.3, 0)
    assert {samples[i].group for i in held}.isdisjoint(samples[i].group for i in train)
    assert len({s.group for s in samples}) == 4


@pytest.mark.parametrize("name", ["lmu", "bm-21", "pbc-8", "raabin", "project"])
def test_another_folder_is_refused_with_the_set_that_was_expected(name, tmp_path):
    put(tmp_path / "holiday" / "beach.jpg")
    with pytest.raises(BadInput, match="here"):
        read_cells(tmp_path, name)


def test_an_unknown_reader_is_refused_with_those_that_exist(tmp_path):
    with pytest.raises(UnknownName, match="pbc-8"):
        read_cells(tmp_path, "nature")
    with pytest.raises(ValueError, match="twice"):
        register_reader(Reader("lmu", lambda _: [], "x", "y"))


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_says_what_it_reads_under_which_licence(name):
    reader = reader_of(name)
    assert reader.citation.strip()
    assert reader.licence.strip()
    assert reader.pixel_size_um is None or 0.02 < reader.pixel_size_um < 0.5


@pytest.mark.real
def test_the_local_cells_are_read_with_their_classes(real_data):
    samples = read_cells(real_data / "cells")
    assert len(samples) == 274
    assert {s.label for s in samples} <= set(CELL_TYPES)
