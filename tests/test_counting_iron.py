"""Ring sideroblasts with reader error and a second reader: what the result says of them."""

from __future__ import annotations

import shutil

import pytest

from pipeline.settings import CountingSettings, Settings
from pipeline.types import CellClass
from storage.packages import find_package
from tests.report_cases import a_case, a_result, both, cells_of, image

METHOD = {"rs_finder": "marrow-perls", "rs_reader": "rule"}
IMAGES = (image("F1"), image("P1", stain="Perls", slide="s2"))


def iron(settings: Settings | None = None, **groups: tuple[int, str, str | None]):
    """Sideroblasts of a marrow case: groups of (how many, first reader's type, second reader's)."""
    parts = [
        cells_of(
            {"erythroblast": n},
            1,
            rs_type=a,
            rs_type_second=b,
            **METHOD,
            stain="Perls",
            start=1000 * i,
        )
        for i, (n, a, b) in enumerate(groups.values(), 1)
    ]
    case = a_case(specimen="bone_marrow", images=IMAGES, mode="mgg_perls")
    read = both(cells_of({"neutrophil": 20}, 1), *parts)
    settings = settings or Settings(counting=CountingSettings(bootstrap_draws=0))
    found = a_result(settings=settings, case=case, read=read).sideroblasts
    assert found is not None
    return found


def test_the_sampling_interval_stays_the_default_and_reader_error_stands_beside_it() -> None:
    found = iron(rings=(20, "3", None), others=(80, "0", None))
    assert (found.rs_pct, found.ci_low, found.ci_high) == (20.0, 12.67, 29.18)
    assert found.reader is not None
    assert found.reader.ci_low < found.ci_low
    assert found.reader.ci_high > found.ci_high
    assert found.reader.rs_pct == pytest.approx(20.0, abs=1)
    assert "phantom" in found.reader.measured_on
    by_limit = {s.limit: s for s in found.reader.standings}
    assert by_limit[5.0].standing == "at_or_over"
    assert by_limit[15.0].standing == "spans"
    plain = {s.limit: s for s in found.standings}[15.0].more_cells
    more = by_limit[15.0].more_cells
    assert plain == 128
    assert more is not None
    assert more > plain


def test_a_laboratorys_own_errors_take_the_place_of_the_cards() -> None:
    own = Settings(counting=CountingSettings(bootstrap_draws=0, rs_reader_errors=(45, 5, 90, 10)))
    found = iron(own, rings=(20, "3", None), others=(80, "0", None))
    assert found.reader is not None
    assert (found.reader.sensitivity, found.reader.specificity) == (0.9, 0.9)
    assert found.reader.rs_pct == pytest.approx(12.5)  # (0.2 + 0.9 - 1) / (0.9 + 0.9 - 1)
    assert "laboratory" in found.reader.measured_on
    assert found.reader.precision is None  # false cells are not asked for


def test_what_was_never_measured_has_no_such_interval() -> None:
    case = a_case(specimen="bone_marrow", images=IMAGES, mode="mgg_perls")
    by = {"rs_finder": "perls-classical", "rs_reader": "rule"}
    read = cells_of({"erythroblast": 20}, 1, rs_type="0", stain="Perls", **by)
    settings = Settings(
        counting=CountingSettings(bootstrap_draws=0), detection={"perls_detector": "perls-classical"}
    )
    found = a_result(settings=settings, case=case, read=read).sideroblasts
    assert found is not None
    assert found.reader is None
    assert found.agreement is None


def test_a_finder_of_any_name_is_told_from_its_reader(tmp_path) -> None:
    package = find_package("marrow-perls")
    shutil.copytree(package.folder, tmp_path / "ours + theirs")
    by = {"rs_finder": str(tmp_path / "ours + theirs"), "rs_reader": "rule"}
    read = cells_of({"erythroblast": 20}, 1, rs_type="0", stain="Perls", **by)
    found = a_result(settings=Settings(), case=a_case(specimen="bone_marrow", images=IMAGES), read=read)
    assert found.sideroblasts.chosen_by == by["rs_finder"]
    assert found.sideroblasts.reader is not None


def test_a_record_of_an_earlier_version_names_finder_and_reader() -> None:
    (read,) = cells_of({"erythroblast": 1}, 1, rs_type="0")[1]
    kept = read.model_dump(exclude={"rs_finder", "rs_reader"})
    assert CellClass.model_validate({**kept, "rs_method": None}) == read
    old = CellClass.model_validate({**kept, "rs_method": "marrow-perls + rule"})
    assert (old.rs_finder, old.rs_reader) == ("marrow-perls", "rule")


def test_a_second_reader_is_compared_and_never_counted() -> None:
    found = iron(
        same_ring=(18, "3", "3"),
        only_first=(2, "3", "1"),
        same_other=(70, "0", "0"),
        other_type=(6, "1", "2"),
        only_second=(2, "2", "3"),
        undecided=(2, "0", "indeterminate"),
    )
    assert (found.type3, found.n_erythroblasts) == (20, 100)
    a = found.agreement
    assert a is not None
    assert (a.n_both, a.same_ring, a.same_type, a.indeterminate) == (98, 94, 88, 2)
    assert (a.type3, a.n_decided) == (20, 98)
    # Cohen: observed 94/98, by chance (20 * 20 + 78 * 78) / 98².
    assert a.kappa == pytest.approx((94 / 98 - 6484 / 9604) / (1 - 6484 / 9604), abs=1e-4)


def test_a_case_of_perls_alone_is_not_told_what_a_classifier_of_cells_does_not_know() -> None:
    alone = a_case(
        specimen="bone_marrow", images=(image("P1", stain="Perls", slide="s2"),), mode="brightfield"
    )
    read = both(cells_of({"erythroblast": 20}, rs_type="0", stain="Perls"))
    codes = {n.code for n in a_result(case=alone, read=read).not_assessed}
    assert "CLASS_UNKNOWN_TO_MODEL" not in codes
    assert "PERLS_ONLY" in codes


def test_a_laboratorys_own_errors_rest_on_all_the_erythroblasts_that_it_read() -> None:
    own = Settings(counting=CountingSettings(bootstrap_draws=0, rs_reader_errors=(45, 5, 90, 10)))
    found = iron(own, rings=(20, "3", None), others=(80, "0", None))
    assert found.reader is not None
    assert found.reader.n_measured == 150


def mixed(*by: tuple[str, str]):
    """Sideroblasts of a case whose erythroblasts were found and read in several ways, 60 in each."""
    parts = [
        cells_of(
            {"erythroblast": 60}, 1, rs_type="0", rs_finder=f, rs_reader=r, stain="Perls", start=1000 * i
        )
        for i, (f, r) in enumerate(by, 1)
    ]
    case = a_case(specimen="bone_marrow", images=IMAGES, mode="mgg_perls")
    settings = Settings(counting=CountingSettings(bootstrap_draws=0))
    return a_result(settings=settings, case=case, read=both(*parts)).sideroblasts


def test_cells_that_two_readers_read_have_no_measured_reader_error_and_one_finder_still_chose_them() -> None:
    assert mixed(("marrow-perls", "rule")).reader is not None
    found = mixed(("marrow-perls", "rule"), ("marrow-perls", "iron-types"))
    assert (found.reader, found.chosen_by) == (None, "marrow-perls")


def test_where_more_than_one_model_told_the_erythroblasts_apart_none_of_them_chose() -> None:
    for order in ((0, 1), (1, 0)):
        pair = (("marrow-perls", "rule"), ("perls-classical", "rule"))
        found = mixed(pair[order[0]], pair[order[1]])
        assert (found.reader, found.chosen_by) == (None, None)


def test_what_either_reader_left_open_is_not_compared_and_only_the_second_s_is_told_apart() -> None:
    a = iron(both=(30, "0", "0"), first_open=(4, "indeterminate", "3"), second_open=(3, "0", "indeterminate"))
    assert (a.indeterminate, a.n_erythroblasts) == (4, 33)
    found = a.agreement
    assert found is not None
    assert (found.n_both, found.same_type, found.same_ring) == (30, 30, 30)
    assert (found.n_decided, found.type3, found.indeterminate) == (34, 4, 3)
