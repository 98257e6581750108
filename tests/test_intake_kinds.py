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
