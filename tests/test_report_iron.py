"""The page and the text of a case read for iron: figures, intervals and limits of ring sideroblasts."""

from __future__ import annotations

from pipeline.report_html import render_html
from pipeline.report_text import render_text
from pipeline.settings import CountingSettings, Settings
from tests.report_cases import a_case, a_result, both, cells_of, image
from tests.test_report_html import QUICK, page


def iron_page(rings, others, settings=QUICK, **change):
    images = (*(image(f"F{i + 1}") for i in range(5)), image("P1", stain="Perls", slide="s2"))
    read = both(
        cells_of({"neutrophil": 300}),
        cells_of({"erythroblast": others}, rs_type="0", stain="Perls", start=1000, **change),
        cells_of({"erythroblast": rings}, rs_type="3", stain="Perls", start=2000, **change),
    )
    case = a_case(specimen="bone_marrow", images=images, mode="mgg_perls")
    result = a_result(settings=settings, case=case, read=read)
    return render_html(result, {}), render_text(result)


def test_blocking_flags_stand_before_the_figure_of_ring_sideroblasts():
    html, _ = iron_page(12, 88)
    assert html.index('id="h-flags"') < html.index('id="h-rs"') < html.index('id="h-dx"')


def test_two_rings_of_two_erythroblasts_are_no_hundred_percent():
    for text in iron_page(2, 0):
        assert "withheld" in text
        assert "100.0 % =" not in text
        assert ">100.0 %<" not in text
        assert "the whole interval" not in text
        assert "at or over 15" not in text
    assert "One of 2 cells is more than the lowest limit" in iron_page(2, 0)[0]


def test_where_reader_error_is_known_a_limit_is_settled_by_sampling_alone_in_words():
    html, text = iron_page(30, 80, rs_finder="marrow-perls", rs_reader="rule")
    assert "By sampling alone: at or over <b>15 %</b>" in html
    assert "by sampling alone at or over 15 %" in text


def test_a_laboratorys_own_errors_claim_no_precision():
    own = Settings(counting=CountingSettings(bootstrap_draws=0, rs_reader_errors=(45, 5, 90, 10)))
    html, _ = iron_page(30, 80, own)
    assert "was not measured" in html
    assert "100.0 % of what is counted" not in html


def test_ring_sideroblasts_stand_before_the_differential_with_their_evidence():
    images = (*(image(f"F{i + 1}") for i in range(5)), image("P1", stain="Perls", slide="s2"))
    case = a_case(specimen="bone_marrow", images=images, mode="mgg_perls")
    stained = both(
        cells_of({"neutrophil": 300}),
        cells_of({"erythroblast": 88}, rs_type="0", stain="Perls", start=1000),
        cells_of({"erythroblast": 12}, rs_type="3", stain="Perls", start=2000),
    )
    html = page(case=case, read=stained)
    assert html.index('id="h-rs"') < html.index('id="h-dx"')
    assert "12.0 %" in html
    assert 'about <b class="num">455</b> more erythroblasts' in html
    assert 'class="rs rs-virtual' not in html
    virtual = both(
        cells_of({"neutrophil": 300}),
        cells_of({"erythroblast": 88}, rs_type="0", virtual=True, start=1000),
        cells_of({"erythroblast": 12}, rs_type="3", virtual=True, start=2000),
    )
    html = page(case=case, read=virtual)
    assert 'class="rs rs-virtual' in html
    assert "from virtual Perls, not from a stain" in html
