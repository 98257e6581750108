"""Flags of what the images of a case were declared to be and turned out to be."""

from __future__ import annotations

import pytest

from pipeline.types import Case
from tests.report_cases import a_case, cells_of, image
from tests.test_flags import MARROW, MARROW_MODEL, flags

SMEAR = tuple(image(f"F{i + 1}") for i in range(5))
PERLS = tuple(image(f"P{i + 1}", stain="Perls", slide="s2") for i in range(2))


def marrow_of(*images, **change) -> Case:
    return a_case(specimen="bone_marrow", images=images, n_fields_declared=len(images), **change)


@pytest.mark.parametrize(("images", "counts"), [(PERLS, {}), ((*SMEAR, *PERLS), MARROW)])
def test_perls_images_without_an_erythroblast_block_the_report(images, counts):
    read = cells_of(counts)
    raised = flags(case=marrow_of(*images), read=read, run=MARROW_MODEL, status="final")["RS_LOW_COUNT"]
    assert (raised.severity, raised.value) == ("block", 0)
    assert "RS_LOW_COUNT" not in flags(case=marrow_of(*SMEAR), read=cells_of(MARROW), run=MARROW_MODEL)
