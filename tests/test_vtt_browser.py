"""The Visual Turing Test in a browser: an expert's way through it, by keyboard and on a small screen."""

from __future__ import annotations

import csv

import pytest

from pipeline.vtt import draw_test, read_candidates, read_key, write_test
from pipeline.vtt_answers import read_answers
from pipeline.vtt_score import score_test
from tests.test_vtt import images, write_images  # noqa: F401  (a fixture)


def press_answers(page, key, n: int) -> None:
    """Answer the next n images by keyboard as the key says, but take every virtual one for real."""
    truth = {i["id"]: i for i in key["images"]}
    order = [i["id"] for i in key["images"]]
    for _ in range(n):
        place = page.locator("#place").inner_text()
        image = truth[order[int(place.split()[1]) - 1]]
        page.keyboard.press("r")
        page.keyboard.press("p" if image["positive"] else "n")
        page.wait_for_function(
            "p => document.querySelector('#place').textContent !== p"
            " || !document.querySelector('#done').hidden",
            arg=place,
        )


@pytest.mark.browser
def test_an_expert_works_through_the_page_by_keyboard_resumes_downloads_and_is_scored(
    browser,
    images,  # noqa: F811
    tmp_path,
):
    test = draw_test(read_candidates(images), n=12, seed=1)
    path = tmp_path / "vtt.html"
    key = read_key(write_test(test, path))
    context = browser.new_context(viewport={"width": 1200, "height": 860}, accept_downloads=True)
    context.set_offline(True)
    page = context.new_page()
    seen: list[str] = []
    page.on("request", lambda r: seen.append(r.url))
    page.on("console", lambda m: seen.append(f"console {m.text}"))
    page.on("pageerror", lambda e: seen.append(f"error {e}"))
    page.goto(path.as_uri())
    page.keyboard.type("=Dr. Näf")
    page.keyboard.press("Enter")
    press_answers(page, key, 5)
    assert page.locator("#count").inner_text() == "5 of 12 answered"

    page.keyboard.press("ArrowLeft")  # back to a full one: its answers are shown and can be changed
    page.keyboard.press("f")
    assert page.locator("[data-q=real][data-v=false]").get_attribute("aria-pressed") == "true"
    assert page.locator("#place").inner_text() == "Image 5 of 12"
    page.reload()
    assert page.locator("#count").inner_text() == "5 of 12 answered"
    assert page.locator("#place").inner_text() == "Image 5 of 12"
    assert page.locator("[data-q=real][data-v=false]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("r")
    page.keyboard.press("u")  # taken back: open again
    assert page.locator("#count").inner_text() == "4 of 12 answered"
    press_answers(page, key, 8)
    assert page.locator("#done").is_visible()

    files = []
    for button in ("#json", "#csv"):
        with page.expect_download() as download:
            page.click(button)
        files.append(tmp_path / download.value.suggested_filename)
        download.value.save_as(files[-1])
    outside = [u for u in seen if not u.startswith(("data:", "blob:")) and u != path.as_uri()]
    assert outside == []
    by_json, by_csv = (read_answers(f) for f in files)
    assert dict(by_json.by_id) == dict(by_csv.by_id)
    assert by_json.expert == "=Dr. Näf"
    with files[1].open(encoding="utf-8") as stream:
        assert {row["expert"] for row in csv.DictReader(stream)} == {"'=Dr. Näf"}
    found = score_test(key, [by_json])["experts"][0]
    assert found["realism"]["confusion"] == {"tp": 6, "fn": 0, "fp": 6, "tn": 0}
    assert found["label"]["virtual"]["confusion"] == {"tp": 3, "fn": 0, "fp": 0, "tn": 3}

    # On another computer: the downloaded file goes on where the first one stopped.
    elsewhere = browser.new_context().new_page()
    elsewhere.goto(path.as_uri())
    elsewhere.set_input_files("#load", files[0])
    elsewhere.wait_for_selector("#test:not([hidden])")
    assert elsewhere.locator("#count").inner_text() == "12 of 12 answered"
    elsewhere.context.close()
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [340, 820, 1200])
def test_the_page_fits_a_screen_without_scrolling_sideways(
    browser,
    images,  # noqa: F811
    tmp_path,
    width,
):
    path = tmp_path / "vtt.html"
    write_test(draw_test(read_candidates(images), n=12, seed=1), path)
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.fill("#expert", "A")
    page.press("#expert", "Enter")
    page.wait_for_selector("#picture")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
