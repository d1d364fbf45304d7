"""The Compare tab in a real browser, on the bundled model."""

from __future__ import annotations

import itertools
import re

import pytest

from fundamentallm.data.tiny_tales import tiny_tales

pytestmark = pytest.mark.browser
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect
expect.set_options(timeout=20_000)


@pytest.fixture
def compare(kept_page):
    """The tab as it is at first, but for the text that an earlier test may have left."""
    page = kept_page
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#compare-write")).to_be_enabled()
    page.locator("#compare-prompt textarea").fill("Once upon a time")
    page.get_by_label("Seed").fill("1")
    length(page, 200)
    return page


def length(page, tokens: int) -> None:
    page.get_by_label("number input for Length in tokens").fill(str(tokens))
    page.get_by_label("number input for Length in tokens").blur()


def write(page) -> None:
    # So that nobody takes the end of the last writing for the end of this one.
    page.evaluate("document.querySelector('#compare-columns .fl-compare').dataset.state = 'asked'")
    page.locator("#compare-write").click()


def written(page) -> list[str]:
    return page.locator("#compare-columns .fl-column .fl-rest").all_inner_texts()


def done(page) -> None:
    expect(page.locator("#compare-columns .fl-compare")).to_have_attribute("data-state", "done", timeout=20_000)


def test_four_columns_are_written_from_one_prompt(compare):
    expect(compare.locator("#compare-columns .fl-column h3")).to_have_text(["Greedy", "Temperature", "Top-k", "Top-p"])
    write(compare)
    done(compare)
    expect(compare.locator("#compare-columns .fl-prompt").first).to_have_text("Once upon a time")
    assert all(len(text) > 20 for text in compare.locator("#compare-columns .fl-written").all_inner_texts())
    expect(compare.locator("#compare-columns .fl-speed").first).to_contain_text("/s")
    # Every column but greedy says where it leaves greedy, or that it never does.
    partings = compare.locator("#compare-columns .fl-parting").all_inner_texts()
    assert partings[0] == ""
    assert all("greedy" in parting for parting in partings[1:])
    # Another seed, another text; the same seed, the same text.
    columns = compare.locator("#compare-columns .fl-written")
    first = columns.all_text_contents()
    for seed, check in (("2", expect(columns.nth(1)).not_to_have_text), ("1", expect(columns.nth(1)).to_have_text)):
        compare.get_by_label("Seed").fill(seed)
        write(compare)
        check(first[1])
    done(compare)
    expect(columns).to_have_text(first)


def test_stop_ends_the_writing_and_keeps_the_text(compare):
    length(compare, 2000)
    # Pressed by the page itself, as soon as there is text: a hand of ours could come after the end.
    compare.evaluate("""() => new MutationObserver((changes, observer) => {
        const stop = document.querySelector("#compare-stop");
        if (!stop?.checkVisibility() || !document.querySelector("#compare-columns .fl-rest")?.textContent) return;
        observer.disconnect();
        stop.click();
    }).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true})""")
    write(compare)
    stop = compare.locator("#compare-stop")
    expect(compare.locator("#compare-columns .fl-compare")).to_have_attribute("data-state", "stopped")
    expect(stop).to_be_hidden()
    expect(compare.locator("#compare-write")).to_be_enabled()
    text = written(compare)
    compare.wait_for_timeout(600)
    assert written(compare) == text
    assert len(text[0]) < 2000


def test_what_was_copied_from_the_training_text_is_told_and_underlined(compare):
    write(compare)
    done(compare)
    notes = compare.locator("#compare-columns .fl-copied")
    expect(notes.first).to_contain_text("stands in the training text")
    expect(notes.first).to_have_attribute("title", re.compile("from character [0-9,]+ of the training text"))
    marked = "[...(CSS.highlights.get('fl-copied') || [])].map((range) => range.toString())"
    assert compare.evaluate(marked) == []
    notes.first.click()
    pieces = compare.evaluate(marked)
    text = "".join(compare.locator("#compare-columns .fl-written").all_text_contents())
    assert pieces and all(piece in text for piece in pieces)
    corpus = tiny_tales()
    whole = [piece for piece in pieces if len(piece) >= 24]  # where columns part a piece lies in two nodes
    assert whole and all(piece in corpus for piece in whole)
    notes.first.click()
    assert compare.evaluate(marked) == []


def test_unknown_characters_are_named_and_html_stays_text(compare):
    prompt = "日 <img src=x onerror=\"document.title='owned'\"> <script>document.title='owned'</script>"
    compare.locator("#compare-prompt textarea").fill(prompt)
    write(compare)
    done(compare)
    expect(compare.locator("#compare-notices .fl-notice")).to_contain_text("日")
    expect(compare.locator("#compare-columns .fl-prompt").first).to_have_text(prompt)
    assert compare.title() != "owned"
    assert compare.locator("img[src='x']").count() == 0


def test_an_empty_prompt_works(compare):
    compare.locator("#compare-prompt textarea").fill("")
    write(compare)
    done(compare)
    assert all(len(text) > 20 for text in compare.locator("#compare-columns .fl-written").all_inner_texts())


def test_the_next_token_follows_the_prompt(compare):
    lines = compare.locator("#compare-next li")
    expect(lines).to_have_count(10)
    compare.locator("#compare-prompt textarea").fill("Once upon a tim")
    expect(lines.first.locator(".fl-glyph")).to_have_text("e")
    expect(lines.first.locator(".fl-kept-yes").first).to_have_text("greedy")


def test_columns_stack_on_a_phone(compare):
    compare.set_viewport_size({"width": 390, "height": 844})
    boxes = [compare.locator("#compare-columns .fl-column").nth(index).bounding_box() for index in range(4)]
    assert all(lower["y"] > upper["y"] for upper, lower in itertools.pairwise(boxes))
    assert compare.evaluate("document.documentElement.scrollWidth") <= 390
