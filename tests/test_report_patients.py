"""'The cells together' on the page: what the two readings say in words, and pictures that count once."""

from __future__ import annotations

import re

import pytest

from pipeline.report_html import render_html
from pipeline.settings import CountingSettings, Settings
from pipeline.types import AttendedCell, PatientPattern
from tests.report_cases import a_result, cells_of
from tests.test_report_html import overview, pictures_of

QUICK = Settings(counting=CountingSettings(bootstrap_draws=100))


def page_of(attention: tuple[float, float], histogram: tuple[float, float]) -> str:
    cells, classes = cells_of({"neutrophil": 20, "lymphocyte": 10})
    names = ("left_shift", "lymphocytosis")
    pattern = PatientPattern(
        model="patterns",
        n_cells=len(cells),
        probabilities=dict(zip(names, attention, strict=True)),
        histogram=dict(zip(names, histogram, strict=True)),
        top=tuple(
            AttendedCell(cell_id=cells[i].cell_id, attention=0.1, speaks_for="lymphocytosis") for i in (25, 3)
        ),
    )
    result = a_result(settings=QUICK, read=(cells, classes), patient=pattern)
    return render_html(result, pictures_of(cells), [overview("F1")])


@pytest.mark.parametrize(
    ("attention", "histogram", "said"),
    [
        ((0.9, 0.1), (0.8, 0.2), "Both readings name the same pattern"),
        ((0.9, 0.1), (0.2, 0.8), "The two readings disagree"),
        ((0.9, 0.1), (0.3, 0.4), "By the histogram no pattern stands out (40 % at most)"),
        ((0.4, 0.3), (0.2, 0.8), "By attention no pattern stands out (40 % at most)"),
        ((0.4, 0.3), (0.3, 0.4), "Neither reading gives a pattern half of its weight"),
    ],
)
def test_readings_are_compared_only_where_each_names_a_pattern(attention, histogram, said):
    html = page_of(attention, histogram)
    told = re.findall(r"Both readings name|The two readings disagree|no pattern stands out", html)
    assert said in html
    assert len(told) == 1


@pytest.mark.browser
def test_a_cell_shown_twice_counts_once_and_opens_from_both_places(browser, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page_of((0.9, 0.1), (0.8, 0.2)), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(file.as_uri())
    assert page.locator("#shown").inner_text() == "30 of 30 cells shown"
    together = page.locator("section[aria-labelledby=h-patient] a.card")
    page.select_option("#pick", "neutrophil")
    assert together.count() == page.locator("a.card:visible").count() == 2
    together.first.click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert "s1/F1/0025" in dialog.locator("dl").inner_text()
    word = together.first.locator(".cap span")
    assert word.bounding_box()["height"] < 20  # one line: a pattern's name is not broken
    page.close()
