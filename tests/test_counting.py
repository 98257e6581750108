"""What stands in a denominator, what does not, and what is said where nothing can be known."""

from __future__ import annotations

import pytest

from classifiers import taxonomy
from pipeline.counting import count
from pipeline.counting_differential import BLOOD_LOINC
from pipeline.errors import BadInput
from pipeline.settings import CountingSettings
from pipeline.statistics import clopper_pearson, wilson
from tests.report_cases import BLOOD, KNOWN, a_case, both, cells_of, image

FAST = CountingSettings(bootstrap_draws=200)
# The verified codes of blood percentages, each with the class whose share it means.
LOINC_OF = {
    "neutrophil": "26511-6",
    "neutrophil_segmented": "26505-8",
    "neutrophil_band": "26508-2",
    "lymphocyte": "26478-8",
    "lymphocyte_reactive": "13046-8",
    "monocyte": "26485-3",
    "eosinophil": "26450-7",
    "basophil": "30180-4",
    "metamyelocyte": "28541-1",
    "myelocyte": "26498-6",
    "promyelocyte": "26524-9",
    "blast": "26446-5",
    "plasma_cell": "13047-6",
}
VERIFIED_LOINC = {*LOINC_OF.values(), "34992-8", "11138-5"}


def counted(counts, specimen="blood", settings=FAST, known=KNOWN, **change):
    cells, classes = cells_of(counts, known=known)
    return count(a_case(specimen=specimen), cells, classes, settings, known_classes=known, **change)


def row(found, label):
    return next(r for r in found.differential.rows if r.class_ == label)


def notes_of(found):
    return {n.code: n for n in found.not_assessed}


def test_erythroblasts_are_in_the_marrow_denominator_and_not_in_that_of_blood():
    counts = BLOOD | {"erythroblast": 50}
    blood, marrow = counted(counts), counted(counts, "bone_marrow")
    assert blood.differential.n_denominator == 200
    assert marrow.differential.n_denominator == 250
    assert row(marrow, "erythroblast").pct == 20.0
    assert all(r.class_ != "erythroblast" for r in blood.differential.rows)
    assert blood.per_100_wbc.nrbc == 25.0
    assert marrow.per_100_wbc is None
    assert blood.me_ratio is None


@pytest.mark.parametrize("specimen", ["blood", "bone_marrow", None])
@pytest.mark.parametrize(
    "label", ["smudge", "artefact", "unidentified", "platelet", "megakaryocyte", "other"]
)
def test_what_is_no_countable_cell_stands_in_no_denominator(specimen, label):
    found = counted(BLOOD | {label: 40}, specimen).differential
    assert (found.n_detected, found.n_denominator, found.n_excluded) == (240, 200, 40)
    assert next(e.n for e in found.excluded if e.class_ == label) == 40
    assert found.n_unidentified == (40 if label == "unidentified" else 0)


def test_rows_exclude_each_other_and_their_percentages_add_to_a_hundred():
    found = counted({"neutrophil": 67, "lymphocyte": 67, "monocyte": 67, "basophil": 1}).differential
    assert sum(round(10 * r.pct) for r in found.rows) == 1000
    assert sum(r.n_ai for r in found.rows) == found.n_denominator
    for r in found.rows:
        assert r.ci_low <= r.pct <= r.ci_high


def test_a_parent_is_counted_once_and_its_total_stands_apart():
    known = ("neutrophil", "neutrophil_band", "neutrophil_segmented", "lymphocyte", "unidentified")
    counts = {"neutrophil": 10, "neutrophil_band": 20, "neutrophil_segmented": 90, "lymphocyte": 80}
    found = counted(counts, known=known).differential
    assert sum(r.n_ai for r in found.rows) == found.n_denominator == 200
    (total,) = found.groups
    assert (total.class_, total.n_ai, total.pct) == ("neutrophil", 120, 60.0)
    assert total.loinc == "26511-6"
    own = next(r for r in found.rows if r.class_ == "neutrophil")
    assert own.n_ai == 10
    assert own.loinc is None
    assert "not further specified" in own.display


def test_a_leukocyte_that_could_not_be_told_further_stands_in_its_own_row():
    found = counted(BLOOD | {"leukocyte": 10}, known=(*KNOWN, "leukocyte")).differential
    own = next(r for r in found.rows if r.class_ == "leukocyte")
    assert (own.n_ai, own.display) == (10, "Leukocytes (not further specified)")
    assert found.n_denominator == 210
    assert found.groups == ()


def test_a_zero_has_an_upper_limit_and_a_class_unknown_to_the_model_has_no_row():
    found = counted(BLOOD)
    blasts = row(found, "blast")
    assert (blasts.n_ai, blasts.pct, blasts.ci_low) == (0, 0.0, 0.0)
    assert blasts.ci_high == pytest.approx(100 * clopper_pearson(0, 200)[1], abs=0.005)
    without = tuple(k for k in KNOWN if k not in ("blast", "erythroblast", "smudge"))
    found = counted(BLOOD, known=without)
    assert all(r.class_ != "blast" for r in found.differential.rows)
    note = next(n for n in found.not_assessed if n.code == "CLASS_UNKNOWN_TO_MODEL")
    assert "Blasts" in note.what
    assert found.per_100_wbc.nrbc is None
    assert found.per_100_wbc.smudge is None


def test_the_interval_is_the_one_that_the_settings_name_and_the_method_says_which():
    exact = counted(BLOOD)
    score = counted(BLOOD, settings=FAST.model_copy(update={"interval": "wilson"}))
    assert (exact.method.interval, score.method.interval) == ("Clopper-Pearson", "Wilson")
    assert row(exact, "monocyte").ci_high == pytest.approx(100 * clopper_pearson(12, 200)[1], abs=0.005)
    assert row(score, "monocyte").ci_high == pytest.approx(100 * wilson(12, 200)[1], abs=0.005)


def test_nothing_counted_gives_no_percentage_and_an_interval_that_says_nothing():
    found = counted({})
    assert found.differential.n_denominator == 0
    assert found.differential.pct_blocked
    for r in found.differential.rows:
        assert (r.pct, r.ci_low, r.ci_high) == (None, 0.0, 100.0)
    assert found.per_100_wbc.nrbc is None


def test_rates_per_hundred_white_cells_leave_the_others_out_of_the_base():
    found = counted(BLOOD | {"smudge": 30, "erythroblast": 10, "artefact": 4}).per_100_wbc
    assert (found.n_wbc, found.smudge, found.nrbc, found.artefact) == (200, 15.0, 5.0, 2.0)
    assert found.nrbc_ci_low < 5 < found.nrbc_ci_high
    assert found.smudge_loinc == "34992-8"


def test_the_me_ratio_states_its_convention_and_has_no_value_without_erythroblasts():
    counts = {"neutrophil": 200, "immature_granulocyte": 60, "monocyte": 40, "lymphocyte": 50, "blast": 9}
    with_e = counted(counts | {"erythroblast": 100}, "bone_marrow")
    assert (with_e.me_ratio.myeloid, with_e.me_ratio.erythroid, with_e.me_ratio.value) == (300, 100, 3.0)
    assert with_e.me_ratio.ci_low < 3 < with_e.me_ratio.ci_high
    assert "monocytes" in with_e.method.me_convention
    no_mono = FAST.model_copy(update={"monocytes_in_myeloid": False})
    assert counted(counts | {"erythroblast": 100}, "bone_marrow", no_mono).me_ratio.myeloid == 260
    none = counted(counts, "bone_marrow").me_ratio
    assert (none.value, none.ci_low, none.ci_high) == (None, None, None)


def test_an_unknown_specimen_is_said_and_counted_by_the_rules_of_blood():
    found = counted(BLOOD | {"erythroblast": 5}, None)
    assert found.differential.n_denominator == 200
    assert found.per_100_wbc is not None
    assert any(n.code == "SPECIMEN_UNKNOWN" for n in found.not_assessed)
    assert all(r.loinc is None for r in found.differential.rows)
    smudge = counted(BLOOD | {"smudge": 9}, None).per_100_wbc
    assert (smudge.smudge, smudge.smudge_loinc) == (4.5, None)


def test_only_verified_loinc_codes_are_known_and_none_is_printed_for_marrow_percentages():
    assert BLOOD_LOINC == LOINC_OF
    assert all(taxonomy.in_denominator(label, "blood") for label in BLOOD_LOINC)
    blood = counted(BLOOD).differential
    assert {r.loinc for r in blood.rows if r.loinc} <= VERIFIED_LOINC
    assert all(r.loinc_verified == (r.loinc is not None) for r in blood.rows)
    marrow = counted(BLOOD | {"erythroblast": 300}, "bone_marrow")
    assert all(r.loinc is None for r in marrow.differential.rows)
    assert marrow.me_ratio.loinc == "11138-5"


def test_a_cell_without_a_class_counts_as_unidentified_and_is_spoken_of():
    cells, classes = cells_of(BLOOD)
    found = count(a_case(), cells, classes[:-3], FAST, known_classes=KNOWN)
    assert found.differential.n_unidentified == 3
    assert notes_of(found)["NOT_CLASSIFIED"].why.startswith("3 of 200 cells")


def test_a_reviewers_label_counts_and_the_models_is_kept_beside_it():
    cells, classes = cells_of(BLOOD)
    target = next(c for c in classes if c.label == "neutrophil")
    found = count(a_case(), cells, classes, FAST, known_classes=KNOWN, reviewed={target.cell_id: "blast"})
    assert (row(found, "blast").n_ai, row(found, "blast").n_reviewed) == (0, 1)
    assert (row(found, "neutrophil").n_ai, row(found, "neutrophil").n_reviewed) == (120, 119)
    assert row(found, "blast").pct == 0.5


def test_the_mean_confidence_of_a_row_is_the_mean_over_the_model_s_cells():
    cells, classes = both(
        cells_of({"neutrophil": 3}, confidence=0.9), cells_of({"neutrophil": 1}, confidence=0.5, start=9)
    )
    assert (
        row(count(a_case(), cells, classes, FAST, known_classes=KNOWN), "neutrophil").mean_confidence == 0.8
    )


@pytest.mark.parametrize(("specimen", "half"), [("blood", 100), ("bone_marrow", 250)])
def test_half_of_the_target_keeps_its_percentages_and_one_cell_less_does_not(specimen, half):
    assert not counted({"neutrophil": half}, specimen).differential.pct_blocked
    assert counted({"neutrophil": half - 1}, specimen).differential.pct_blocked


SHIPPED = tuple(k for k in KNOWN if k not in ("blast", "smudge", "artefact", "unidentified"))


def renamed(label, n=1, of="lymphocyte", everything=False, counts=BLOOD):
    """The count where a person names n cells otherwise, by a classifier of the shipped one's classes."""
    cells, classes = cells_of(counts, known=SHIPPED)
    said = {c.cell_id: c.label for c in classes} if everything else {}
    said |= {c.cell_id: label for c in [c for c in classes if c.label == of][:n]}
    return count(a_case(), cells, classes, FAST, known_classes=SHIPPED, reviewed=said)


def test_one_cell_that_a_person_named_measures_no_share_of_a_class_that_the_model_cannot_name():
    found = renamed("blast")
    d = found.differential
    assert all(r.class_ != "blast" for r in d.rows)
    (person,) = d.named_by_person
    assert (person.class_, person.n, person.counted_in) == ("blast", 1, None)
    assert (d.n_denominator, d.n_reviewed, sum(r.n_reviewed for r in d.rows)) == (200, 1, 199)
    assert sum(round(10 * r.pct) for r in d.rows) == 995
    assert not found.knows("blast")
    notes = {n.code: n for n in found.not_assessed}
    assert "Blasts" in notes["CLASS_UNKNOWN_TO_MODEL"].what
    assert "blasts: 1" in notes["NAMED_BY_PERSON"].why
    assert "1 of 200 cells" in notes["NAMED_BY_PERSON"].why


def test_a_child_that_only_a_person_can_name_counts_in_its_parents_row_and_has_no_code_of_its_own():
    found = renamed("neutrophil_band", 3, "neutrophil")
    d = found.differential
    assert (row(found, "neutrophil").n_reviewed, row(found, "neutrophil").pct) == (120, 60.0)
    assert row(found, "neutrophil").loinc == "26511-6"
    (person,) = d.named_by_person
    assert (person.class_, person.n, person.counted_in) == ("neutrophil_band", 3, "neutrophil")
    assert (d.groups, sum(round(10 * r.pct) for r in d.rows)) == ((), 1000)
    assert "26508-2" not in d.model_dump_json()


def test_smudge_cells_that_a_person_named_give_no_rate_per_hundred_white_cells():
    rates = renamed("smudge").per_100_wbc
    assert (rates.smudge, rates.smudge_ci_high, rates.smudge_loinc, rates.n_smudge) == (None, None, None, 1)


def test_a_class_has_its_share_where_a_person_named_every_cell():
    found = renamed("blast", everything=True)
    assert (row(found, "blast").n_reviewed, row(found, "blast").pct) == (1, 0.5)
    assert row(found, "blast").loinc == "26446-5"
    assert found.differential.named_by_person == ()
    assert "Blasts" not in next(n for n in found.not_assessed if n.code == "CLASS_UNKNOWN_TO_MODEL").what


MARROW = {"neutrophil": 300, "lymphocyte": 50, "erythroblast": 150}


@pytest.mark.parametrize(
    "made_for", [{"of-both": ("blood", "bone_marrow")}, {"of-blood": ("blood",)}], ids=["both", "blood"]
)
def test_no_me_ratio_is_given_of_too_few_cells(made_for):
    found = counted({"neutrophil": 100, "erythroblast": 50}, "bone_marrow", made_for=made_for)
    ratio, said = found.me_ratio, "150 cells in the denominator are under half"
    assert (ratio.value, ratio.ci_low, ratio.ci_high, ratio.loinc) == (None, None, None, None)
    assert not ratio.loinc_verified
    assert ratio.erythroid == 50
    assert said in ratio.withheld
    assert said in next(n.why for n in found.not_assessed if n.code == "ME_RATIO_WITHHELD")


def test_a_classifier_that_was_made_for_marrow_gives_the_me_ratio_its_code():
    ratio = counted(MARROW, "bone_marrow", made_for={"of-both": ("blood", "bone_marrow")}).me_ratio
    assert (ratio.value, ratio.loinc, ratio.withheld, ratio.caution) == (2.0, "11138-5", None, None)


@pytest.mark.parametrize(
    ("made_for", "said"),
    [({"of-blood": ("blood",)}, "of-blood was not made for bone marrow"), ({}, "no classifier states")],
)
def test_an_me_ratio_by_a_classifier_of_blood_has_a_caution_and_no_code(made_for, said):
    ratio = counted(MARROW, "bone_marrow", made_for=made_for).me_ratio
    assert (ratio.value, ratio.loinc, ratio.loinc_verified, ratio.withheld) == (2.0, None, False, None)
    assert said in ratio.caution


@pytest.mark.parametrize(
    ("fields", "code"), [(1, "ONE_FIELD"), (2, "FEW_FIELDS"), (9, "FEW_FIELDS"), (10, None)]
)
def test_an_interval_between_few_fields_is_said_to_be_too_narrow(fields, code):
    found = count(a_case(fields), *cells_of(BLOOD, fields), FAST, known_classes=KNOWN)
    assert {n.code for n in found.not_assessed} & {"ONE_FIELD", "FEW_FIELDS"} == ({code} if code else set())


def test_a_field_without_cells_of_the_denominator_is_none_to_compare():
    cells, classes = both(cells_of(BLOOD, 1), cells_of({"platelet": 3}, 2, start=500))
    found = count(a_case(2), cells, classes, FAST, known_classes=KNOWN)
    assert found.differential.n_fields == 1
    assert any(n.code == "ONE_FIELD" for n in found.not_assessed)
    assert all(r.boot_low is None for r in found.differential.rows)


def test_a_class_of_no_cell_or_an_unknown_label_is_refused_by_name():
    cells, classes = cells_of(BLOOD)
    stray = classes[0].model_copy(update={"cell_id": "s9/F1/1"})
    with pytest.raises(BadInput, match="s9/F1/1"):
        count(a_case(), cells, (*classes, stray), FAST)
    with pytest.raises(BadInput, match="granulozyt"):
        count(a_case(), cells, (classes[0].model_copy(update={"label": "granulozyt"}), *classes[1:]), FAST)
    with pytest.raises(BadInput, match="twice"):
        count(a_case(), cells, (*classes, classes[0]), FAST)


def test_clustered_cells_widen_the_bootstrap_and_mixed_ones_do_not():
    mixed = counted({"neutrophil": 100, "lymphocyte": 100})
    a, b = cells_of({"neutrophil": 100}, 1), cells_of({"lymphocyte": 100}, 1, start=200)
    cells = tuple(c.model_copy(update={"field": f"F{i % 3 + 1}"}) for i, c in enumerate(a[0]))
    cells += tuple(c.model_copy(update={"field": f"F{i % 3 + 4}"}) for i, c in enumerate(b[0]))
    clustered = count(a_case(6), cells, a[1] + b[1], FAST, known_classes=KNOWN)
    assert clustered.width_ratio["neutrophil"] > 3 > 1.5 > mixed.width_ratio["neutrophil"]


def perls_case(specimen="bone_marrow"):
    images = (*(image(f"F{i + 1}") for i in range(5)), image("P1", stain="Perls", slide="s2"))
    return a_case(specimen=specimen, images=images, mode="mgg_perls")


def iron(types, **change):
    parts = [
        cells_of({"erythroblast": n}, 1, rs_type=t, start=1000 * (i + 1), **change)
        for i, (t, n) in enumerate(types.items())
    ]
    return both(*parts)


def test_ring_sideroblasts_are_type_three_of_the_assessed_and_indeterminate_stand_apart():
    cells, classes = both(
        cells_of(BLOOD), iron({"0": 60, "1": 15, "2": 10, "3": 15, "indeterminate": 7}, stain="Perls")
    )
    found = count(perls_case(), cells, classes, FAST, known_classes=KNOWN)
    rs = found.sideroblasts
    assert (rs.evidence, rs.n_erythroblasts, rs.type3, rs.indeterminate) == ("perls", 100, 15, 7)
    assert (rs.rs_pct, rs.ci_low, rs.ci_high) == (15.0, 8.65, 23.53)
    assert [s.standing for s in rs.standings] == ["at_or_over", "spans"]
    assert rs.standings[1].more_cells is None  # 15 of 100 is the limit itself
    assert found.differential.n_denominator == 200  # the Perls slide's cells are no second differential


def test_a_virtual_ring_sideroblast_is_never_like_a_real_one():
    virtual = iron({"0": 50, "3": 5}, stain="MGG", virtual=True)
    found = count(a_case(specimen="bone_marrow"), *virtual, FAST, known_classes=KNOWN).sideroblasts
    assert found.evidence == "virtual_perls"
    real = iron({"0": 40, "3": 2}, stain="Perls")
    both_read = both(
        virtual,
        (
            tuple(c.model_copy(update={"cell_id": "p" + c.cell_id}) for c in real[0]),
            tuple(c.model_copy(update={"cell_id": "p" + c.cell_id}) for c in real[1]),
        ),
    )
    mixed = count(perls_case(), *both_read, FAST, known_classes=KNOWN).sideroblasts
    assert (mixed.evidence, mixed.n_erythroblasts, mixed.type3) == ("perls", 42, 2)
    assert mixed.code != found.code


def test_no_perls_image_gives_no_sideroblasts_and_the_case_says_why():
    found = counted(BLOOD, "bone_marrow")
    assert found.sideroblasts is None
    assert any(n.code == "NO_PERLS" for n in found.not_assessed)
    unread = count(perls_case(), *cells_of(BLOOD), FAST, known_classes=KNOWN)
    assert unread.sideroblasts is None
    assert any(n.code == "PERLS_NOT_READ" for n in unread.not_assessed)
    assert not any("PERLS" in n.code for n in counted(BLOOD).not_assessed)


def test_the_order_of_the_cells_changes_nothing():
    cells, classes = cells_of(BLOOD | {"smudge": 5})
    one = count(a_case(), cells, classes, FAST, known_classes=KNOWN)
    other = count(a_case(), cells[::-1], classes[::-1], FAST, known_classes=KNOWN)
    assert one.differential == other.differential
