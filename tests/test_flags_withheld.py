"""What the flags say where a figure is withheld, or rests on virtual iron."""

from __future__ import annotations

from tests.test_flags import flags


def test_where_percentages_are_withheld_the_flag_of_blasts_gives_none():
    flag = flags(counts={"neutrophil": 9, "blast": 1})["NEAR_LIMIT_BLAST"]
    assert flag.value is None
    assert "10.0 %" not in flag.message
    assert "Blasts (1 of 10), interval 0.3-44.5 %" in flag.message
    told = flags(counts={"neutrophil": 90, "blast": 10})["NEAR_LIMIT_BLAST"]
    assert (told.value, "Blasts 10.0 % (10 of 100)" in told.message) == (10.0, True)
