"""The Evaluate tab in a real browser, on the bundled model."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect
expect.set_options(timeout=20_000)


@pytest.fixture
def evaluation(kept_page):
    page = kept_page
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_role("tab", name="Evaluate").click()
    expect(page.locator("#evaluate-start")).to_be_enabled()
    page.evaluate("document.querySelector('#evaluate-numbers .fl-about')?.replaceChildren()")
    return page


def choose(page, title: str) -> None:
    page.locator("#evaluate-source label", has_text=title).click()


def test_the_stored_numbers_are_there_at_once(evaluation):
    expect(evaluation.locator("#evaluate-numbers .fl-tile dt")).to_have_text(
        [
            "Perplexity",
            "Loss",
            "Accuracy",
            "Bits per character",
            "Bits per byte",
            "Tokens",
            "Characters",
            "Bytes",
            "Unknown characters",
        ]
    )
    expect(evaluation.locator("#evaluate-ladder .bars .point")).to_have_count(8)


def test_a_text_of_ones_own_is_measured(evaluation):
    choose(evaluation, "Your text")
    text = "Once upon a time there was a little fox named 日. <script>document.title='owned'</script>\n"
    evaluation.locator("#evaluate-text textarea").fill(text)
    evaluation.locator("#evaluate-start").click()
    expect(evaluation.locator("#evaluate-numbers .fl-about")).to_contain_text("your text", timeout=30_000)
    tiles = evaluation.locator("#evaluate-numbers .fl-tile")
    expect(tiles.filter(has_text="Length of the text as one reads it")).to_contain_text(str(len(text)))
    expect(evaluation.locator("#evaluate-ladder .bars .point")).to_have_count(8)
    expect(evaluation.locator("#evaluate-start")).to_be_enabled()
    assert evaluation.title() != "owned"


def test_a_file_is_measured(evaluation, tmp_path):
    file = tmp_path / "story.txt"
    file.write_text("Once upon a time there was an owl. " * 20, encoding="utf-16")
    choose(evaluation, "Your file")
    evaluation.locator("#evaluate-file input[type=file]").set_input_files(file)
    expect(evaluation.locator("#evaluate-file")).to_contain_text("story")
    evaluation.locator("#evaluate-start").click()
    expect(evaluation.locator("#evaluate-numbers .fl-about")).to_contain_text("your text", timeout=30_000)


def test_nothing_to_measure_is_said_in_one_sentence(evaluation):
    choose(evaluation, "Your text")
    evaluation.locator("#evaluate-text textarea").fill("")
    evaluation.locator("#evaluate-start").click()
    expect(evaluation.locator("#evaluate-numbers .fl-notice-error")).to_contain_text("There is no text yet")
    expect(evaluation.locator("#evaluate-start")).to_be_enabled()
    expect(evaluation.locator("#evaluate-stop")).to_be_hidden()


def test_measuring_shows_progress_and_can_be_stopped(evaluation):
    choose(evaluation, "Your text")
    evaluation.locator("#evaluate-text textarea").fill("Once upon a time there was a little fox. " * 4_000)
    evaluation.locator("#evaluate-start").click()
    expect(evaluation.locator("#evaluate-numbers progress")).to_be_visible()
    evaluation.locator("#evaluate-stop").click()
    expect(evaluation.locator("#evaluate-numbers")).to_contain_text("Stopped")
    expect(evaluation.locator("#evaluate-start")).to_be_enabled()
    expect(evaluation.locator("#evaluate-stop")).to_be_hidden()


def test_on_a_phone_nothing_is_wider_than_the_screen(evaluation):
    evaluation.set_viewport_size({"width": 390, "height": 844})
    choose(evaluation, "Your text")
    evaluation.locator("#evaluate-text textarea").fill("Once upon a time there was an owl.")
    evaluation.locator("#evaluate-start").click()
    expect(evaluation.locator("#evaluate-numbers .fl-tile").first).to_be_visible()
    assert evaluation.evaluate("document.documentElement.scrollWidth") <= 390
