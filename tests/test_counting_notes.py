"""What a count says that it cannot know: classes that nobody could have named, cells of nobody's class."""

from __future__ import annotations

import pytest

from classifiers import taxonomy
from pipeline.counting import count
from pipeline.settings import CountingSettings
from tests.report_cases import BLOOD, KNOWN, a_case, both, cells_of, image

FAST = CountingSettings(bootstrap_draws=0)
# Leaves alone: what stands above them is told by its parts.
LEAVES = tuple(k for k in taxonomy.CELL_TYPES if not taxonomy.descendants(k))
OF_LEAVES = {"neutrophil_segmented": 120, "lymphocyte_reactive": 80}


def notes(known, counts=OF_LEAVES, specimen="blood", **change):
    case = a_case(specimen=specimen)
    found = count(case, *cells_of(counts, known=known), FAST, known_classes=known, **change)
    return {n.code: n for n in found.not_assessed}


@pytest.mark.parametrize("specimen", ["blood", "bone_marrow", None])
def test_a_classifier_that_tells_all_parts_of_a_class_apart_knows_the_class(specimen):
    assert "CLASS_UNKNOWN_TO_MODEL" not in notes(LEAVES, specimen=specimen)


@pytest.mark.parametrize(
    ("label", "specimen", "said"),
    [
        ("smudge", "blood", "Smudge cells"),
        ("plasma_cell", "bone_marrow", "Plasma cells"),
        ("proerythroblast", "blood", "Erythroblasts"),
        ("proerythroblast", None, "Erythroblasts"),
        ("proerythroblast", "bone_marrow", "Erythroblasts"),
    ],
)
def test_the_one_class_that_the_classifier_does_not_know_is_named(label, specimen, said):
    known = tuple(k for k in LEAVES if k != label)
    assert notes(known, specimen=specimen)["CLASS_UNKNOWN_TO_MODEL"].what == said


def test_a_case_with_perls_beside_its_smear_keeps_the_notes_of_the_smear():
    images = (image("F1"), image("P1", stain="Perls", slide="s2"))
    case = a_case(specimen="bone_marrow", images=images, mode="mgg_perls")
    read = both(
        cells_of({"neutrophil": 90}, 2),
        cells_of({"erythroblast": 20}, 1, rs_type="0", stain="Perls", start=900),
    )
    known = tuple(k for k in KNOWN if k != "blast")
    found = count(case, read[0], read[1][:-21] + read[1][-20:], CountingSettings(), known_classes=known)
    codes = {n.code for n in found.not_assessed}
    assert {"CLASS_UNKNOWN_TO_MODEL", "NOT_CLASSIFIED", "FEW_FIELDS", "ME_RATIO_WITHHELD"} <= codes


def test_a_blast_that_only_a_person_can_name_is_no_leukocyte_of_the_models():
    known = tuple(k for k in (*KNOWN, "leukocyte") if k != "blast")
    cells, classes = cells_of(BLOOD | {"leukocyte": 5}, known=known)
    said = {c.cell_id: "blast" for c in classes if c.label == "lymphocyte"}
    found = count(a_case(), cells, classes, FAST, known_classes=known, reviewed=said).differential
    (person,) = found.named_by_person
    assert (person.class_, person.n, person.counted_in) == ("blast", 60, None)
    assert next(r for r in found.rows if r.class_ == "leukocyte").n_reviewed == 5
