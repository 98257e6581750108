"""Every flag, firing and not firing, on cases whose counts are known."""

from __future__ import annotations

import pytest

from flows.cluster import Workers
from flows.findings import models_used
from flows.runs import open_run
from pipeline.flags import RULES
from pipeline.report_inputs import Quality
from pipeline.settings import CountingSettings, Settings
from pipeline.types import Problem, Registration
from tests.report_cases import (
    BLOOD,
    GOOD_FOCUS,
    KNOWN,
    a_card,
    a_case,
    a_model,
    a_result,
    a_run,
    aligned,
    both,
    cells_of,
    good_quality,
    image,
)

QUICK = Settings(counting=CountingSettings(bootstrap_draws=200))
MARROW_MODEL = a_run(models=(a_model(card=a_card(specimens=("blood", "bone_marrow"))),))
MARROW = {
    "neutrophil": 250,
    "immature_granulocyte": 80,
    "monocyte": 20,
    "lymphocyte": 50,
    "erythroblast": 100,
}


def flags(**change):
    return {f.code: f for f in a_result(settings=QUICK, **change).flags}


def marrow(counts=None, read=None, images=None, **change):
    images = images or tuple(image(f"F{i + 1}") for i in range(5))
    case = a_case(specimen="bone_marrow", images=images)
    return flags(counts=counts or MARROW, read=read, case=case, run=change.pop("run", MARROW_MODEL), **change)


def iron(stain="Perls", virtual=False, **types):
    images = (*(image(f"F{i + 1}") for i in range(5)), image("P1", stain="Perls", slide="s2"))
    parts = [
        cells_of(
            {"erythroblast": n},
            5,
            rs_type=t.removeprefix("t").split("_")[0],
            rs_type_second=t.split("_")[1] if "_" in t else None,
            start=1000 * (i + 1),
            stain=stain,
            virtual=virtual,
        )
        for i, (t, n) in enumerate(types.items())
    ]
    return marrow(read=both(cells_of(MARROW), *parts), images=images)


def with_focus(**change):
    case = a_case()
    quality = good_quality(case)
    soft = {("s1", "F2", "brightfield", "MGG"): GOOD_FOCUS.model_copy(update=change)}
    return flags(case=case, quality=Quality(focus={**quality.focus, **soft}))


def registered(found: Registration):
    images = tuple(
        image(f"F{i + 1}", m, s) for i in range(5) for m, s in (("brightfield", "MGG"), ("dic", "unstained"))
    )
    case = a_case(images=images, mode="paired")
    quality = Quality(
        registrations={("s1", f"F{i + 1}"): aligned() for i in range(4)} | {("s1", "F5"): found}
    )
    return flags(case=case, quality=quality, read=cells_of(BLOOD))


def lost(n, of=10):
    images = tuple(image(f"F{i + 1}") for i in range(of - n))
    gone = tuple(
        Problem(code="UNREADABLE", message="it is truncated.", slide="s1", field=f"F{of - i}", file="x.tif")
        for i in range(n)
    )
    case = a_case(images=images, n_fields_declared=of, problems=gone)
    return flags(case=case, read=cells_of(BLOOD, of - n))


def uneven():
    a, b = cells_of({"neutrophil": 100}, 1), cells_of({"lymphocyte": 100}, 1, start=200)
    cells = tuple(c.model_copy(update={"field": f"F{i % 3 + 1}"}) for i, c in enumerate(a[0]))
    cells += tuple(c.model_copy(update={"field": f"F{i % 3 + 4}"}) for i, c in enumerate(b[0]))
    return flags(case=a_case(6), read=(cells, a[1] + b[1]))


def run_of(**change):
    return flags(run=a_run(models=(a_model(**change),)))


DOUBTED = both(cells_of({"neutrophil": 170}), cells_of({"lymphocyte": 30}, confidence=0.5, start=500))
FEW_DOUBTED = both(cells_of({"neutrophil": 190}), cells_of({"lymphocyte": 10}, confidence=0.5, start=500))
STRANGE = both(cells_of({"neutrophil": 190}), cells_of({"lymphocyte": 10}, ood=0.995, start=500))
ONE_STRANGE = both(cells_of({"neutrophil": 198}), cells_of({"lymphocyte": 2}, ood=0.995, start=500))

# code: (severity, a case where it fires, one where it does not)
CASES = {
    "NOT_REVIEWED": ("review", lambda: flags(), lambda: flags(status="final")),
    "LOW_COUNT": ("review", lambda: flags(counts={"neutrophil": 199}), lambda: flags()),
    "VERY_LOW_COUNT": (
        "block",
        lambda: flags(counts={"neutrophil": 99}),
        lambda: flags(counts={"neutrophil": 100}),
    ),
    "NEAR_LIMIT_RS": ("review", lambda: iron(t0=88, t3=12), lambda: iron(t0=198, t3=1)),
    "RS_LOW_COUNT": ("review", lambda: iron(t0=98, t3=1), lambda: iron(t0=98, t3=2)),
    "NEAR_LIMIT_BLAST": (
        "review",
        lambda: flags(counts=BLOOD | {"blast": 5}),
        lambda: flags(counts={"neutrophil": 200}),
    ),
    "BLAST_PRESENT": (
        "review",
        lambda: flags(counts=BLOOD | {"blast": 1}),
        lambda: marrow(MARROW | {"blast": 3}),
    ),
    "ZERO_BOUND": (
        "info",
        lambda: flags(),
        lambda: flags(counts=BLOOD | {"blast": 1, "immature_granulocyte": 1}),
    ),
    "VIRTUAL_STAIN": (
        "review",
        lambda: flags(read=cells_of(BLOOD, virtual=True, modality="dic"), status="final"),
        lambda: flags(),
    ),
    "VIRTUAL_RS_POSITIVE": (
        "review",
        lambda: iron("MGG", True, t0=200),  # without a measured model nothing bounds it from above
        lambda: iron(t0=200, t3=40),
    ),
    "RS_READERS_DISAGREE": (
        "review",
        lambda: iron(t0_0=60, t3_3=35, t0_3=5),
        lambda: iron(t0_0=60, t3_3=36, t0_3=4),
    ),
    "RS_INDETERMINATE": (
        "review",
        lambda: iron(t0=180, t3=20, tindeterminate=11),
        lambda: iron(t0=180, t3=20, tindeterminate=3),
    ),
    "UNIDENTIFIED_HIGH": (
        "review",
        lambda: flags(counts=BLOOD | {"unidentified": 11}),
        lambda: flags(counts=BLOOD | {"unidentified": 10}),
    ),
    "LOW_CONFIDENCE": ("review", lambda: flags(read=DOUBTED), lambda: flags(read=FEW_DOUBTED)),
    "OOD": ("review", lambda: flags(read=STRANGE), lambda: flags(read=ONE_STRANGE)),
    "SMUDGE_HIGH": (
        "review",
        lambda: flags(counts=BLOOD | {"smudge": 21}),
        lambda: flags(counts=BLOOD | {"smudge": 20}),
    ),
    "NRBC_CORRECT": (
        "review",
        lambda: flags(counts=BLOOD | {"erythroblast": 10}),
        lambda: flags(counts=BLOOD | {"erythroblast": 9}),
    ),
    "ERYTHROID_ZERO": ("info", lambda: marrow({"neutrophil": 500}), lambda: marrow()),
    "FIELD_LOSS": ("review", lambda: lost(3), lambda: lost(2)),
    "FIELD_HETEROGENEITY": ("review", uneven, lambda: flags()),
    "QC_FOCUS": (
        "review",
        lambda: with_focus(normalised_variance=0.002, laplacian_variance=0.0001),
        lambda: with_focus(normalised_variance=0.002),
    ),
    "QC_ILLUMINATION": (
        "review",
        lambda: with_focus(illumination_ratio=0.79),
        lambda: with_focus(illumination_ratio=0.8),
    ),
    "QC_REGISTRATION": (
        "review",
        lambda: registered(aligned(residual_um=0.51)),
        lambda: registered(aligned(residual_um=0.5, residual_p95_um=1.0)),
    ),
    "NO_PIXEL_SIZE": (
        "block",
        lambda: run_of(seen_pixel_size_um=0.111),
        lambda: run_of(seen_pixel_size_um=0.109),
    ),
    "DOMAIN_MISMATCH": ("review", lambda: run_of(reads=(("brightfield", "Perls"),)), lambda: flags()),
    "MODEL_HASH": ("block", lambda: run_of(found_sha256="b" * 64), lambda: flags()),
}


@pytest.mark.parametrize("code", [r.code for r in RULES])
def test_a_flag_fires_where_its_rule_holds_and_only_there(code):
    severity, fires, silent = CASES[code]
    fired = fires()
    assert code in fired
    assert fired[code].severity == severity
    assert fired[code].message.endswith(".")
    assert fired[code].rule
    assert code not in silent()


def test_the_table_holds_every_flag_of_the_conventions_once():
    assert sorted(r.code for r in RULES) == sorted(CASES)
    assert len(RULES) == 26


def test_blocking_flags_stand_first():
    ranks = [("block", "review", "info").index(f.severity) for f in flags(counts={"neutrophil": 20}).values()]
    assert ranks == sorted(ranks)
    assert ranks[0] == 0


def test_the_loss_of_over_half_of_the_fields_blocks():
    assert lost(6)["FIELD_LOSS"].severity == "block"
    assert lost(5)["FIELD_LOSS"].severity == "review"


def test_near_a_limit_the_flag_says_how_many_more_cells_settle_it():
    flag = iron(t0=88, t3=12)["NEAR_LIMIT_RS"]
    assert "15 % stays open, about 455 more erythroblasts would settle it" in flag.message
    assert flag.value == 12.0
    assert "cannot be settled" in iron(t0=85, t3=15)["NEAR_LIMIT_RS"].message


def test_where_one_erythroblast_is_more_than_a_limit_the_percentage_blocks_and_is_not_told():
    raised = iron(t3=2)
    assert raised["RS_LOW_COUNT"].severity == "block"
    assert iron(t0=18, t3=2)["RS_LOW_COUNT"].severity == "review"
    raised = iron(t0=17, t3=2)
    assert "10.5 %" not in raised["NEAR_LIMIT_RS"].message.split("interval")[0]
    assert raised["NEAR_LIMIT_RS"].value is None


def test_a_limit_that_reader_error_alone_leaves_open_is_flagged():
    def near(errors):
        settings = Settings(counting=CountingSettings(bootstrap_draws=0, rs_reader_errors=errors))
        images = (image("F1"), image("P1", stain="Perls", slide="s2"))
        read = both(
            cells_of({"erythroblast": 90}, 1, rs_type="0", stain="Perls"),
            cells_of({"erythroblast": 12}, 1, rs_type="3", stain="Perls", start=1000),
        )
        case = a_case(specimen="bone_marrow", images=images, mode="mgg_perls")
        return {f.code: f for f in a_result(case=case, read=read, settings=settings).flags}["NEAR_LIMIT_RS"]

    message = near((45, 5, 90, 10)).message
    sampling, reading = message.split("with reader error")
    assert "by sampling alone" in sampling
    assert "15 % stays open" in sampling
    assert "5 % stays open" not in sampling.replace("15 % stays open", "")
    assert "5 % cannot be settled" in reading


def test_stained_cells_are_not_held_to_the_confidence_of_virtual_ones():
    read = both(
        cells_of({"neutrophil": 100}, confidence=0.65),
        cells_of({"neutrophil": 100}, confidence=0.75, virtual=True, modality="dic", start=500),
    )

    def doubted(stained, virtual):
        run = a_run(min_confidence=stained, virtual_min_confidence=virtual)
        return flags(read=read, run=run).get("LOW_CONFIDENCE")

    assert doubted(0.6, 0.7) is None
    assert doubted(0.7, 0.6).value == 50.0
    assert "0.60 or 0.70, each of its own classifier" in doubted(0.7, 0.6).message
    assert doubted(0.7, None).value == 50.0


@pytest.mark.parametrize(("limit", "blasts"), [(2, 4), (5, 10), (20, 40)])
def test_blood_blasts_are_held_against_two_five_and_twenty_percent(limit, blasts):
    flag = flags(counts={"neutrophil": 201 - blasts, "blast": blasts})["NEAR_LIMIT_BLAST"]
    assert f"{limit} % stays open" in flag.message


def test_a_withheld_percentage_of_blasts_stands_in_no_flag():
    flag = flags(counts={"neutrophil": 23, "blast": 1})["NEAR_LIMIT_BLAST"]
    assert flag.message.startswith("Blasts (1 of 24), interval 0.1-21.1 %: 2 % stays open")
    assert flag.value is None


def test_a_classifier_without_blasts_raises_no_flag_of_blasts():
    known = tuple(k for k in KNOWN if k != "blast")
    found = flags(read=cells_of({"neutrophil": 100}, known=known), run=a_run(known_classes=known))
    assert not {"NEAR_LIMIT_BLAST", "BLAST_PRESENT"} & set(found)


def test_the_flag_of_a_virtual_stain_stays_when_the_report_is_final():
    found = flags(read=cells_of(BLOOD, virtual=True, modality="dic"), status="final")
    assert "VIRTUAL_STAIN" in found
    assert "NOT_REVIEWED" not in found


def test_indeterminate_cells_that_alone_decide_a_limit_are_flagged_though_few():
    flag = iron(t0=190, t3=9, tindeterminate=3)["RS_INDETERMINATE"]
    assert "5 %" in flag.message
    assert flag.value < 5


def test_a_failed_registration_is_flagged_by_field():
    flag = registered(Registration(status="failed", reason="no peak"))["QC_REGISTRATION"]
    assert "could not be aligned: s1 F5" in flag.message


def test_saturation_is_said_under_illumination():
    assert "saturated" in with_focus(saturation_pct=1.2)["QC_ILLUMINATION"].message


def test_a_coarse_image_an_unknown_specimen_and_a_foreign_specimen_are_domain_mismatches():
    coarse = a_case(images=tuple(image(f"F{i + 1}", pixel_size_um=0.25) for i in range(5)))
    assert "enlarged" in flags(case=coarse)["DOMAIN_MISMATCH"].message
    assert "not stated" in flags(case=a_case(specimen=None))["DOMAIN_MISMATCH"].message
    assert "bone marrow" in marrow(run=a_run())["DOMAIN_MISMATCH"].message


def test_a_changed_configuration_blocks():
    found = flags(run=a_run(expected_config_sha256="d" * 64))
    assert found["MODEL_HASH"].value == "the configuration"
    assert "MODEL_HASH" not in flags(run=a_run(expected_config_sha256="c" * 64))


def test_focus_of_too_few_fields_is_not_ranked():
    case = a_case(3)
    quality = good_quality(case)
    soft = GOOD_FOCUS.model_copy(update={"normalised_variance": 1e-4, "laplacian_variance": 1e-6})
    focus = {**quality.focus, ("s1", "F2", "brightfield", "MGG"): soft}
    found = a_result(case=case, quality=Quality(focus=focus), settings=QUICK)
    assert "QC_FOCUS" not in {f.code for f in found.flags}
    assert all(q.focus_z is None for f in found.fields for q in f.focus)


def test_no_flag_names_a_diagnosis():
    words = ("leukaemia", "leukemia", "anaemia", "dysplas", "mds", "syndrome", "infection", "malignan")
    for _, fires, _ in CASES.values():
        text = " ".join(f"{f.message} {f.rule}".lower() for f in fires().values())
        assert not any(w in text for w in words)


def test_readers_that_stand_on_two_sides_of_a_limit_are_flagged_however_few_differ():
    flag = iron(t0_0=85, t3_3=14, t0_3=1)["RS_READERS_DISAGREE"]
    assert "15 %" in flag.message
    assert "RS_READERS_DISAGREE" not in iron(t0_0=80, t3_3=19, t0_3=1)


def test_a_case_of_perls_fields_alone_is_not_blamed_for_its_missing_differential():
    case = a_case(specimen="bone_marrow", images=(image("P1", stain="Perls", slide="s2"),))
    read = cells_of({"erythroblast": 40}, 1, rs_type="0", stain="Perls")
    found = flags(case=case, read=read, run=MARROW_MODEL)
    assert not {"LOW_COUNT", "VERY_LOW_COUNT", "ERYTHROID_ZERO"} & set(found)


def test_a_class_that_a_reviewer_took_away_has_an_upper_limit_too():
    cells, classes = both(cells_of({"neutrophil": 197}), cells_of({"basophil": 3}, start=300))
    away = {c.cell_id: "neutrophil" for c in classes if c.label == "basophil"}
    zero = flags(read=(cells, classes), reviewed=away)["ZERO_BOUND"]
    assert "basophils" in zero.message
    assert "basophils" not in flags(read=(cells, classes))["ZERO_BOUND"].message


@pytest.mark.parametrize(("patches_um", "fires"), [(0.2, True), (0.1, False)])
def test_a_stainer_that_was_given_patches_of_another_scale_blocks_the_report(tmp_path, patches_um, fires):
    (tmp_path / "K-001").mkdir()
    case = a_case(images=(image("F1", "dic", "unstained"),), mode="dic")
    cells, classes = cells_of({"neutrophil": 3}, 1, stain="unstained", modality="dic", virtual=True)
    with Workers() as workers:
        given = {"patches": {"pixel_size_um": patches_um}, "detection": {"dic_painted": False}}
        run = open_run(tmp_path / "K-001", str(tmp_path / "store"), given, workers)
        used = models_used(run, case, cells, classes, None)
    found = flags(case=case, read=(cells, classes), run=a_run(models=used))
    assert ("NO_PIXEL_SIZE" in found) is fires
    if fires:
        assert "dic-to-mgg saw 0.2 µm a pixel and was trained at 0.1" in found["NO_PIXEL_SIZE"].message
