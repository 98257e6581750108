"""What intake makes of images by their kind, and of fields that lose one of two kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.intake import read_case
from tests.case_folders import S, make_case, manifest_rows, the_problem, write_manifest


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    return make_case(tmp_path / "C1")


def test_dic_of_a_perls_stain_is_left_out_for_iron_is_read_on_brightfield(paired: Path) -> None:
    write_manifest(paired, *manifest_rows(paired)[:3], "s1,F2,dic,Perls,F2_DIC.tif,0.1")
    case = read_case(paired, S)
    assert not any(i.stain == "Perls" for i in case.images)
    assert "brightfield" in the_problem(case, "PERLS_DIC").message


def test_a_field_that_keeps_its_perls_image_alone_is_lost_to_the_differential(paired: Path) -> None:
    rows = ("s1,F1,brightfield,MGG,gone.tif,0.1", "s1,F1,brightfield,Perls,F1_BF.tif,0.1")
    write_manifest(paired, *rows, "s1,F2,brightfield,MGG,F2_BF.tif,0.1")
    case = read_case(paired, S)
    problem = the_problem(case, "MISSING_FILE")
    assert problem.fatal_for_field
    assert "No differential is counted on the field; iron is read on its brightfield image (Perls)." in (
        problem.message
    )
    assert [(i.field, i.stain) for i in case.lost] == [("F1", "MGG")]
    assert case.n_fields_declared == 2


def test_two_rows_for_one_image_lose_it_and_the_stain_is_known(paired: Path) -> None:
    perls = "s1,F1,brightfield,Perls"
    write_manifest(paired, *manifest_rows(paired), f"{perls},a.tif,0.1", f"{perls},b.tif,0.1")
    case = read_case(paired, S)
    assert "No iron is read on the field" in the_problem(case, "DUPLICATE_FIELD").message
    assert [i.stain for i in case.lost] == ["Perls"]


def test_dic_is_no_partner_of_perls(paired: Path) -> None:
    perls = "s2,P1,brightfield,Perls,F1_BF.tif,0.1"
    write_manifest(paired, *(r for r in manifest_rows(paired) if ",dic," in r), perls)
    assert read_case(paired, S).problems == ()


def test_dic_beside_perls_alone_is_no_pair(paired: Path) -> None:
    rows, perls = manifest_rows(paired), "s2,P1,brightfield,Perls,F1_BF.tif,0.1"
    write_manifest(paired, *(r for r in rows if ",dic," in r), perls)
    assert read_case(paired, S).mode == "dic"
    write_manifest(paired, *rows[1:], perls)
    assert read_case(paired, S).mode == "paired"
