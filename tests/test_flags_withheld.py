"""What the flags say where a figure is withheld, or rests on virtual iron."""

from __future__ import annotations

import pytest

from pipeline.report_inputs import ModelUse
from pipeline.virtual_perls_evidence import measured_evidence
from tests.report_cases import a_run, both, cells_of
from tests.test_flags import flags, iron, marrow
from tests.test_virtual_perls import card, some_cases


def test_where_percentages_are_withheld_the_flag_of_blasts_gives_none():
    flag = flags(counts={"neutrophil": 9, "blast": 1})["NEAR_LIMIT_BLAST"]
    assert flag.value is None
    assert "10.0 %" not in flag.message
    assert "Blasts (1 of 10), interval 0.3-44.5 %" in flag.message
    told = flags(counts={"neutrophil": 90, "blast": 10})["NEAR_LIMIT_BLAST"]
    assert (told.value, "Blasts 10.0 % (10 of 100)" in told.message) == (10.0, True)


def virtual_iron(made_up: float, **types: int):
    """The flag of indeterminate iron, read by a model that draws rings on the share `made_up` of others."""
    evidence = measured_evidence(some_cases(20, 60, 0.9, made_up), "phantom cases")
    stainer = ModelUse(name="mgg-to-perls", version="1", card=card(virtual_perls=evidence), reads=())
    parts = []
    for i, (t, n) in enumerate(types.items()):
        cells, classes = cells_of({"erythroblast": n}, rs_type=t.removeprefix("t"), start=1000 * i)
        parts.append((cells, tuple(c.model_copy(update={"rs_virtual": True}) for c in classes)))
    return marrow(read=both(*parts), run=a_run(models=(stainer,))).get("RS_INDETERMINATE")


def test_where_the_image_supports_no_virtual_iron_no_limit_is_judged_on_it():
    assert virtual_iron(0.3, t3=12, t0=68, tindeterminate=20) is None


@pytest.mark.parametrize(("rings", "crossed"), [(34, True), (29, False)])
def test_indeterminate_virtual_iron_is_said_to_be_virtual_and_judged_by_the_corrected_share(rings, crossed):
    flag = virtual_iron(0.05, t3=rings, t0=198 - rings, tindeterminate=2)
    assert (flag is not None) is crossed
    if flag is not None:
        assert "on virtual Perls" in flag.message


def test_where_the_percentage_of_rings_is_withheld_indeterminate_cells_decide_no_limit():
    assert "decide" not in iron(t0=9, t3=1, tindeterminate=2)["RS_INDETERMINATE"].message
