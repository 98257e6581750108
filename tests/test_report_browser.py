"""The page in a real browser: offline, on a phone, with the keyboard, and with hostile input."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report_html import render_html
from pipeline.settings import CountingSettings, Settings
from pipeline.types import Problem
from tests.report_cases import a_case, a_picture, a_result, both, cells_of, image
from tests.test_report_html import HOSTILE, overview, pictures_of

pytestmark = pytest.mark.browser
QUICK = Settings(counting=CountingSettings(bootstrap_draws=100))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory) -> Path:
    """A marrow case with Perls whose every free text tries to run a script."""
    images = (
        *(image(f"F{i + 1}", file=HOSTILE + f"{i}.tif") for i in range(5)),
        image("P1", stain="Perls", slide="s2"),
    )
    problem = Problem(code="UNREADABLE", message=HOSTILE, slide="s1", field=HOSTILE, file=HOSTILE)
    case = a_case(
        case_id=HOSTILE, specimen="bone_marrow", images=images, mode="mgg_perls", problems=(problem,)
    )
    read = both(
        cells_of({"neutrophil": 40, "lymphocyte": 20, "blast": 4}),
        cells_of({"monocyte": 6}, confidence=0.4, start=300),
        cells_of({"eosinophil": 3}, virtual=True, ood=0.999, start=400),
        cells_of({"erythroblast": 20}, rs_type="0", stain="Perls", start=500),
        cells_of({"erythroblast": 5}, rs_type="3", stain="Perls", start=600),
    )
    rename = {c.cell_id: HOSTILE + c.cell_id for c in read[0][:4]}
    read = tuple(
        tuple(c.model_copy(update={"cell_id": rename.get(c.cell_id, c.cell_id)}) for c in part)
        for part in read
    )
    result = a_result(settings=QUICK, case=case, read=read)
    html = render_html(
        result, pictures_of(read[0]), [overview("F1"), overview("F2")], {("s1", "F1"): a_picture()}
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, hostile_page):
    """The page on a phone's screen, and everything that it tried to load, said or ran."""
    page = browser.new_page(viewport={"width": 375, "height": 740})
    seen: dict[str, list[str]] = {"requests": [], "console": [], "errors": [], "dialogs": []}
    page.on("request", lambda r: seen["requests"].append(r.url))
    page.on("console", lambda m: seen["console"].append(m.text))
    page.on("pageerror", lambda e: seen["errors"].append(str(e)))
    page.on("dialog", lambda d: (seen["dialogs"].append(d.message), d.dismiss()))
    page.goto(hostile_page.as_uri())
    yield page, seen
    page.close()


def visible_cards(page) -> int:
    return page.locator(".card:visible").count()


def test_the_page_asks_nothing_of_the_network_and_no_text_of_the_case_runs(opened, hostile_page):
    page, seen = opened
    page.locator(".card").first.click()
    page.wait_for_timeout(200)
    assert [u for u in seen["requests"] if not u.startswith("data:")] == [hostile_page.as_uri()]
    assert (seen["console"], seen["errors"], seen["dialogs"]) == ([], [], [])
    assert "onerror" in page.locator("h1").inner_text()
    assert page.locator("h1 img").count() == 0


def test_the_policy_stops_a_script_that_was_put_into_the_page(opened):
    page, _ = opened
    ran = page.evaluate(
        """() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';
        document.body.appendChild(s); return window.ran === 1; }"""
    )
    assert ran is False


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_nothing_scrolls_sideways(opened, width):
    page, _ = opened
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_picture_is_a_picture(opened):
    page, _ = opened
    broken = page.evaluate(
        """async () => { const all = [...document.querySelectorAll('main img')];
        await Promise.all(all.map(i => i.decode().catch(() => 0)));
        return [all.length, all.filter(i => !i.naturalWidth).length]; }"""
    )
    assert broken[0] > 90
    assert broken[1] == 0


def test_filters_show_one_class_the_doubtful_and_the_virtual(opened):
    page, _ = opened
    assert visible_cards(page) == 98
    page.select_option("#pick", "lymphocyte")
    assert visible_cards(page) == 20
    assert page.locator(".shelf:visible").count() == 1
    page.select_option("#pick", "")
    page.click("button[data-only=doubt]")
    assert visible_cards(page) == 9  # 6 of low confidence and 3 unfamiliar
    page.click("button[data-only=virtual]")
    assert visible_cards(page) == 3
    assert page.locator("#shown").inner_text() == "3 of 98 cells shown"
    assert page.locator("button[data-only=virtual]").get_attribute("aria-pressed") == "true"


def test_a_cell_is_enlarged_by_keyboard_and_escape_gives_the_focus_back(opened):
    page, _ = opened
    page.locator(".card").nth(1).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    first = dialog.locator("dl").inner_text()
    page.keyboard.press("ArrowRight")
    assert dialog.locator("dl").inner_text() != first
    assert dialog.locator(".probs li").count() >= 1
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.classList.contains('card')")


def test_a_box_in_a_field_opens_its_cell_and_the_cell_shows_its_box(opened):
    page, _ = opened
    page.locator(".views a[data-card]").first.click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    page.click("[data-z=field]")
    assert not dialog.is_visible()
    assert page.locator("rect.lit").count() == 1


def test_without_scripts_the_page_shows_every_cell(browser, hostile_page):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 375, "height": 740})
    page = context.new_page()
    page.goto(hostile_page.as_uri())
    assert visible_cards(page) == 98
    assert not page.locator(".tools").is_visible()
    context.close()


def test_text_has_the_contrast_that_the_web_guidelines_ask_for(opened):
    page, _ = opened
    low = page.evaluate(
        """() => {
        const linear = x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
        const lum = c => { const v = c.map(x => linear(x / 255));
            return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
        const rgb = s => (s.match(/[\\d.]+/g) || []).map(Number);
        const back = e => { for (; e; e = e.parentElement) {
            const c = rgb(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
        const bad = new Set();
        for (const e of document.querySelectorAll('main *, header *, footer *')) {
            if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
            const a = lum(rgb(getComputedStyle(e).color).slice(0, 3)), b = lum(back(e));
            const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
            if (ratio < 4.5) bad.add(e.className + ': ' + e.textContent.slice(0, 30));
        }
        return [...bad]; }"""
    )
    assert low == []


def test_a_print_of_the_page_leaves_out_the_tools_and_breaks_no_class_name(opened):
    page, _ = opened
    page.set_viewport_size({"width": 700, "height": 1000})
    page.emulate_media(media="print")
    names = page.locator(".dx tbody th", has_text="Neutrophils")
    assert names.first.bounding_box()["height"] < 60
    assert not page.locator(".tools").is_visible()
    assert page.locator(".flag").first.is_visible()


@pytest.mark.parametrize("scripts", [True, False])
def test_what_is_folded_on_the_page_is_printed(browser, hostile_page, scripts):
    context = browser.new_context(java_script_enabled=scripts)
    page = context.new_page()
    page.goto(hostile_page.as_uri())
    folded = page.locator("details table").first
    seen = "e => e.checkVisibility({contentVisibilityAuto: true, visibilityProperty: true})"
    assert not folded.evaluate(seen)
    page.emulate_media(media="print")
    assert folded.evaluate(seen)
    context.close()
