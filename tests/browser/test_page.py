"""The search page in a real Chromium: every way to ask, what is shown, the keyboard, and what a screen reader is told."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from tests.browser.conftest import KEY, Visit
from tests.serving.imfa_run import NUM_ITEMS
from tests.stages.corpus import jpeg

STATUS = re.compile(r"^24 results for ")


def wait_for_results(page: Any, text: str | re.Pattern[str] = STATUS) -> Any:
    """The cards, once the status says that they are there and their pictures are shown."""
    page.locator("#status").filter(has_text=text).wait_for()
    page.locator("#results[aria-busy=false]").wait_for()
    cards = page.locator(".card")
    cards.first.locator("img").wait_for()
    return cards


def ask(page: Any, words: str) -> Any:
    page.get_by_role("searchbox", name="Words to search by").fill(words)
    page.keyboard.press("Enter")
    return wait_for_results(page)


def test_words_give_a_grid_with_score_caption_and_class(visit: Visit) -> None:
    page = visit.page
    page.locator("#about").filter(has_text="24 pictures and 48 captions").wait_for()
    cards = ask(page, "a picture of kind b")
    assert cards.count() == NUM_ITEMS
    first = cards.first
    assert re.fullmatch(r"-?[01]\.\d{3}", first.locator(".number").inner_text())
    assert first.locator(".rank").inner_text() == "1"
    caption = first.locator(".caption").inner_text()
    assert "a picture of kind" in caption
    assert first.locator(".chip").inner_text() in {"kind a", "kind b", "kind c"}
    assert first.locator("img").get_attribute("alt") == caption
    assert int(first.locator("img").evaluate("image => image.naturalWidth")) == 48
    assert "q=a+picture+of+kind+b" in page.url
    # Captions instead of pictures: the same question again.
    page.get_by_text("Captions", exact=True).click()
    page.locator("#results.texts").wait_for()
    assert "in=text" in page.url


def test_a_picture_is_chosen_dropped_and_taken_away(visit: Visit) -> None:
    page = visit.page
    page.locator("#image").set_input_files({"name": "x.jpg", "mimeType": "image/jpeg", "buffer": jpeg(3)})
    cards = wait_for_results(page, "results for your picture")
    assert "a picture of kind a number 3" in cards.first.locator(".caption").inner_text()
    page.get_by_role("button", name="Remove the picture").click()
    assert page.locator("#chosen").is_hidden()
    data = base64.b64encode(jpeg(1000 + 4)).decode()
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], "y.jpg", { type: "image/jpeg" }));
            document.dispatchEvent(new DragEvent("dragover", { dataTransfer, cancelable: true }));
            if (!document.body.classList.contains("dropping")) throw new Error("no sign of dropping");
            document.dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
        }""",
        data,
    )
    page.locator(".caption").first.filter(has_text="kind b number 4").wait_for()
    assert page.locator("#preview").is_visible() and not page.locator("#drop").is_visible()


def test_more_like_this_and_back_by_keyboard(visit: Visit) -> None:
    page = visit.page
    cards = ask(page, "two words")
    caption = cards.nth(2).locator(".caption").inner_text()
    cards.nth(2).get_by_role("button", name=f"More like {caption}").focus()
    page.keyboard.press("Enter")
    again = wait_for_results(page, "results for more like")
    assert again.first.locator(".caption").inner_text() == caption
    assert again.first.locator(".number").inner_text() == "1.000"
    # Where the reader was is gone, so the results take the focus.
    assert page.evaluate("document.activeElement.id") == "results"
    page.locator("#preview").wait_for()
    page.go_back()
    wait_for_results(page, "results for “two words”")
    assert page.locator("#text").input_value() == "two words" and page.locator("#chosen").is_hidden()
    page.locator("#results").focus()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"


def test_classes_filter_and_can_be_taken_away(visit: Visit) -> None:
    page = visit.page
    cards = ask(page, "two words")
    cards.first.get_by_role("button", name="Only class").first.click()
    filtered = wait_for_results(page, re.compile("^8 results"))
    kept = page.locator("#filters .chip").inner_text().removesuffix(" ×")
    assert {chip.inner_text() for chip in filtered.locator(".chip").all()} == {kept}
    other = "kind a" if kept != "kind a" else "kind b"
    page.get_by_label("Add a class to search in").fill(other)
    page.keyboard.press("Enter")
    wait_for_results(page, re.compile("^16 results"))
    page.get_by_role("button", name=f"Stop searching in class {kept} only").click()
    wait_for_results(page, re.compile("^8 results"))
    page.get_by_role("button", name=f"Stop searching in class {other} only").click()
    wait_for_results(page)
    page.get_by_text("Options").click()
    page.get_by_label("Results", exact=True).fill("5")
    page.keyboard.press("Enter")
    wait_for_results(page, re.compile("^5 results"))


def test_the_heat_map_is_drawn_on_hover_and_focus_and_told_in_words(visit: Visit) -> None:
    page = visit.page
    cards = ask(page, "two words")
    second = cards.nth(1)
    assert second.locator("canvas").is_hidden()
    second.hover()
    canvas = second.locator("canvas")
    canvas.wait_for()
    assert canvas.evaluate("canvas => [canvas.width, canvas.height]") == [2, 2]
    assert re.fullmatch(
        r"The model looks most at the \w+( \w+)?\.", second.locator("figcaption").inner_text()
    )
    # 48 x 40 pixels, of which the centre 35 are seen: where the canvas lies over the picture.
    picture, heat = second.locator("img").bounding_box(), canvas.bounding_box()
    assert picture and heat
    assert heat["width"] / picture["width"] == pytest.approx(35 / 48, abs=0.02)
    assert (heat["x"] - picture["x"]) / picture["width"] == pytest.approx(6.5 / 48, abs=0.02)
    assert (heat["y"] - picture["y"]) / picture["height"] == pytest.approx(2.5 / 40, abs=0.02)
    looks = page.get_by_role("button", name="Show what the model looks at")
    assert looks.get_attribute("aria-pressed") == "false"
    looks.click()
    cards.nth(20).locator("canvas").wait_for()
    page.wait_for_timeout(300)
    assert float(cards.nth(20).locator("canvas").evaluate("canvas => getComputedStyle(canvas).opacity")) == 1
    assert page.locator("#looks").get_attribute("aria-pressed") == "true"


def test_every_control_has_a_name_and_the_page_its_landmarks(visit: Visit) -> None:
    page = visit.page
    ask(page, "two words")
    page.get_by_text("Options").click()
    tree = page.locator("body").aria_snapshot()
    for landmark in ("banner", "main", "search", "contentinfo", "status", "list", 'heading "Search pictures'):
        assert landmark in tree, landmark
    nameless = [
        line
        for line in tree.splitlines()
        if re.match(r"\s*- (button|textbox|searchbox|spinbutton|combobox|checkbox|radio|link)(:| *$)", line)
    ]
    assert nameless == [], tree
    status = page.locator("#status")
    assert (status.get_attribute("role"), status.get_attribute("aria-live")) == ("status", "polite")
    # By keyboard, what comes before everything else is a way past the form.
    page.locator(".brand").focus()
    page.keyboard.press("Shift+Tab")
    assert page.locator(".skip").evaluate("link => link === document.activeElement && link.offsetWidth > 50")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    assert page.locator("html").get_attribute("lang") == "en"


def test_a_locked_service_asks_for_its_key_and_shows_pictures_with_it(locked_visit: Visit) -> None:
    page = locked_visit.page
    key = page.get_by_label("This service asks for an API key")
    key.fill("another")
    page.keyboard.press("Enter")
    key.wait_for()
    key.fill(KEY)
    page.keyboard.press("Enter")
    page.locator("#unlock").wait_for(state="hidden")
    cards = ask(page, "two words")
    assert cards.first.locator("img").get_attribute("src").startswith("blob:")
    cards.nth(1).get_by_role("button", name="More like").click()
    wait_for_results(page, "results for more like")
    page.locator("#preview").wait_for()
    assert KEY not in page.url and page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_what_cannot_be_searched_with_is_said_with_its_reason(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Search", exact=True).click()
    alert = page.get_by_role("alert")
    alert.filter(has_text="Type some words or choose a picture").wait_for()
    page.locator("#image").set_input_files({"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"<html>"})
    alert.filter(has_text="not_an_image").wait_for()
    assert "expected: a whole JPEG" in alert.inner_text()
    # What is dangerous as markup is text.
    page.get_by_role("searchbox").fill("<img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    wait_for_results(page)
    assert "<img src=x" in page.locator("#status").inner_text()
    assert page.locator("#status img").count() == 0


def test_a_phone_sees_all_of_it_without_scrolling_sideways(phone_visit: Visit) -> None:
    page = phone_visit.page
    cards = ask(page, "two words")
    cards.nth(1).get_by_role("button", name="More like").tap()
    wait_for_results(page, "results for more like")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    for control in ("#text", ".go", ".pick", "#label"):
        box = page.locator(control).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 32, control
