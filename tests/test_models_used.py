"""Which models a report names, and what they are said to have read."""

from __future__ import annotations

import pytest

from flows.cluster import Workers
from flows.findings import models_used
from flows.runs import open_run
from tests.report_cases import a_case, a_run, cells_of, image
from tests.test_flags import flags


@pytest.fixture
def used(tmp_path):
    """The models of a case with such images and cells."""
    (tmp_path / "K-001").mkdir()
    with Workers() as workers:
        run = open_run(tmp_path / "K-001", str(tmp_path / "store"), {}, workers)
        yield lambda case, read: models_used(run, case, *read, None)


@pytest.mark.parametrize(("stain", "fires"), [("MGG", True), ("unstained", False)])
def test_dic_of_a_stain_that_the_models_were_not_made_for_is_a_domain_mismatch(used, stain, fires):
    case = a_case(images=(image("F1", "dic", stain),), mode="dic")
    read = cells_of({"neutrophil": 200}, 1, stain=stain, modality="dic", virtual=True)
    models = used(case, read)
    said = flags(case=case, read=read, run=a_run(models=models)).get("DOMAIN_MISMATCH")
    foreign = ("leukocyte-dic", "dic-to-mgg", "virtual-leukocytes")
    assert all(
        (said is not None and f"{name} was not made for MGG DIC" in said.message) is fires for name in foreign
    )


def test_dic_beside_its_mgg_image_is_no_mismatch_for_no_model_reads_it(used):
    case = a_case(images=(image("F1"), image("F1", "dic", "MGG")), mode="paired")
    read = cells_of({"neutrophil": 200}, 1)
    assert "DOMAIN_MISMATCH" not in flags(case=case, read=read, run=a_run(models=used(case, read)))


def test_the_perls_detector_took_part_where_it_found_nothing(used):
    case = a_case(images=(image("P1", stain="Perls"),))
    assert [m.name for m in used(case, ((), ()))] == ["marrow-perls"]
