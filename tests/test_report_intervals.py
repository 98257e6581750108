"""What page and notes say of the intervals, where there are such and where there are none."""

from __future__ import annotations

from pipeline.report_html import render_html
from pipeline.settings import CountingSettings, Settings
from tests.report_cases import a_case, a_result


def test_a_report_without_draws_over_fields_says_so_and_describes_none():
    def page_and_codes(draws: int):
        settings = Settings(counting=CountingSettings(bootstrap_draws=draws))
        result = a_result(settings=settings, case=a_case(12))
        return render_html(result, {}), {n.code for n in result.not_assessed}

    page, codes = page_and_codes(0)
    assert "NO_BOOTSTRAP" in codes
    assert "bootstrap over whole fields" not in page
    assert "There is no interval between fields here. It leaves out errors" in page
    page, codes = page_and_codes(100)
    assert "NO_BOOTSTRAP" not in codes
    assert "bootstrap over whole fields, which shows clustering. Both leave out errors" in page
