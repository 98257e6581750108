"""The class hierarchy: every trap of the dialects by name, and sums that stay sums."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers import taxonomy as t
from pipeline.errors import BadInput, UnknownName


@pytest.mark.parametrize("dialect", ["lmu", "bm-21", "LMU"])
def test_myb_is_a_myelocyte_and_no_blast(dialect):
    assert t.to_canonical(dialect, "MYB") == "myelocyte"


@pytest.mark.parametrize("dialect", ["lmu", "bm-21"])
def test_ksc_is_a_smudge_cell(dialect):
    assert t.to_canonical(dialect, "KSC") == "smudge"


def test_nif_is_not_identifiable():
    assert t.to_canonical("bm-21", "NIF") == "unidentified"


def test_lya_maps_to_a_parent_of_reactive_and_abnormal():
    label = t.to_canonical("lmu", "LYA")
    assert set(t.children(label)) == {"lymphocyte_reactive", "lymphocyte_abnormal"}
    assert "lymphocyte" in t.ancestors(label)


def test_lmu_ebo_leaves_the_stage_open():
    assert t.is_a("proerythroblast", t.to_canonical("lmu", "EBO"))
    assert t.to_canonical("bm-21", "PEB") == "proerythroblast"


def test_pmb_and_fgc_are_atypical_and_under_no_immature_granulocyte():
    assert t.to_canonical("lmu", "PMB") == t.to_canonical("bm-21", "FGC") == "promyelocyte_atypical"
    assert not t.is_a("promyelocyte_atypical", "immature_granulocyte")


def test_immature_granulocyte_is_the_parent_of_three_stages():
    assert set(t.children("immature_granulocyte")) == {"promyelocyte", "myelocyte", "metamyelocyte"}
    assert t.to_canonical("pbc-8", "ig") == "immature_granulocyte"


def test_neutrophil_is_the_parent_of_segmented_and_band():
    assert set(t.children("neutrophil")) == {"neutrophil_segmented", "neutrophil_band"}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("BNE_12.jpg", "neutrophil_band"),
        ("some/folder/SNE_1.jpg", "neutrophil_segmented"),
        ("NEUTROPHIL_4.jpg", "neutrophil"),
        ("MY_3.jpg", "myelocyte"),
        ("MMY_3.jpg", "metamyelocyte"),
        ("PMY_3.jpg", "promyelocyte"),
        ("IG_3.jpg", "immature_granulocyte"),
        ("ERB_9.jpg", "erythroblast"),
        ("PLATELET_9.jpg", "platelet"),
    ],
)
def test_a_barcelona_file_prefix_says_the_stage(name, label):
    assert t.from_file_prefix(name) == label


def test_my_of_the_thesis_is_a_myelocyte_and_mo_a_monocyte():
    assert t.to_canonical("thesis", "MY") == "myelocyte"
    assert t.to_canonical("thesis", "MO") == "monocyte"
    assert t.to_canonical("thesis", "NRBC") == "erythroblast"


def test_patient_labels_are_refused():
    with pytest.raises(BadInput, match="patients"):
        t.to_canonical("AML-Cytomorphology_MLL_Helmholtz", "CBFB_MYH11")


def test_unknown_codes_and_dialects_name_the_known():
    with pytest.raises(UnknownName, match="MYB"):
        t.to_canonical("lmu", "XYZ")
    with pytest.raises(UnknownName, match="thesis"):
        t.to_canonical("nobody", "NGS")


@pytest.mark.parametrize(("dialect", "count"), [("lmu", 15), ("bm-21", 21), ("thesis", 16)])
def test_a_dialect_holds_all_its_classes(dialect, count):
    assert len(t.DIALECTS[dialect]) == count


def test_every_dialect_maps_into_the_tree():
    for codes in t.DIALECTS.values():
        assert set(codes.values()) <= set(t.CELL_TYPES)


def test_the_tree_has_no_loops_and_known_parents():
    for label in t.CELL_TYPES:
        assert label not in t.ancestors(label)
        assert len(set(t.ancestors(label))) == len(t.ancestors(label))


@given(st.dictionaries(st.sampled_from(sorted(t.CELL_TYPES)), st.floats(0, 1), min_size=1))
def test_rolling_up_keeps_the_sum(probabilities):
    for level in t.LEVELS:
        assert sum(t.roll_up(probabilities, level).values()) == pytest.approx(sum(probabilities.values()))


def test_roll_up_sums_children_into_their_parent():
    p = {"neutrophil_band": 0.3, "neutrophil_segmented": 0.25, "neutrophil": 0.05, "lymphocyte": 0.4}
    assert t.roll_up(p, "eight") == pytest.approx({"neutrophil": 0.6, "lymphocyte": 0.4})
    assert t.roll_up(p, "leukocyte") == pytest.approx({"leukocyte": 1.0})
    assert t.roll_up({"smudge": 1.0}, "five") == {"smudge": 1.0}


def test_denominators_follow_the_specimen():
    assert t.in_denominator("proerythroblast", "bone_marrow")
    assert not t.in_denominator("erythroblast", "blood")
    for label in ("smudge", "artefact", "unidentified", "platelet", "megakaryocyte"):
        assert not t.in_denominator(label, "blood")
        assert not t.in_denominator(label, "bone_marrow")
    for specimen in ("blood", "bone_marrow", None):
        both = t.denominator_classes(specimen) + t.excluded_classes(specimen)
        assert sorted(both) == sorted(t.CELL_TYPES)


def test_myeloid_and_erythroid_are_apart():
    assert not any(t.is_myeloid(x, blasts=True) and t.is_erythroid(x) for x in t.CELL_TYPES)
    assert t.is_myeloid("monocyte")
    assert not t.is_myeloid("monocyte", monocytes=False)
    assert not t.is_myeloid("blast")
    assert not t.is_leukocyte("erythroblast")
    assert t.is_erythroblast("proerythroblast")


def test_compatible_labels_lie_on_one_branch():
    assert t.compatible("neutrophil", "neutrophil_band")
    assert not t.compatible("neutrophil_segmented", "neutrophil_band")


def test_reports_read_in_order_of_maturation():
    assert t.report_order(["platelet", "neutrophil", "blast"]) == ["blast", "neutrophil", "platelet"]
    assert len({x.display for x in t.CELL_TYPES.values()}) == len(t.CELL_TYPES)


def test_the_taxonomy_needs_no_torch():
    code = "import sys, classifiers.taxonomy; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
