"""The Corpus tab in a real browser."""

from __future__ import annotations

import gzip

import pytest

pytestmark = pytest.mark.browser
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect
expect.set_options(timeout=20_000)

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> & \"quoted\"\n"


def choose(page, title: str) -> None:
    page.locator("#corpus-source label", has_text=title).click()


def test_tiny_tales_is_chosen_and_described_at_the_start(page):
    expect(page.locator("#corpus-report .fl-tile").first).to_contain_text("Characters")
    expect(page.locator("#corpus-source input:checked")).to_have_attribute("value", "tiny-tales")
    expect(page.locator("#corpus-report .fl-char").first).to_contain_text("·")
    assert page.locator("#corpus-tokens .fl-token").count() > 200
    expect(page.locator("#corpus-notices .fl-notice-error")).to_have_count(0)


def test_byte_pairs_are_fewer_tokens(page):
    expect(page.locator("#corpus-tokens .fl-note")).to_contain_text("1.0 characters each")
    characters = page.locator("#corpus-tokens .fl-token").count()
    page.get_by_label("Byte pairs (BPE)").click()
    expect(page.locator("#corpus-tokens .fl-note")).not_to_contain_text("1.0 characters each")
    assert page.locator("#corpus-tokens .fl-token").count() < characters / 2


def test_hostile_text_is_shown_as_text(page):
    choose(page, "Your text")
    expect(page.locator("#corpus-notices")).to_contain_text("paste")
    page.locator("#corpus-text textarea").fill(HOSTILE * 30)
    expect(page.locator("#corpus-report .fl-preview")).to_contain_text("<script>document.title='owned'</script>")
    expect(page.locator("#corpus-tokens .fl-tokens-text")).to_contain_text("<img·src=x·onerror=")
    expect(page.locator("#corpus-report .fl-tile").first).to_contain_text(f"{len(HOSTILE) * 30:,}")
    assert page.title() != "owned"
    assert page.locator("img[src='x']").count() == 0


def test_files_are_read_and_a_bad_one_changes_nothing(page, tmp_path):
    choose(page, "Your files")
    one, two, bad = tmp_path / "one.txt", tmp_path / "two.txt", tmp_path / "picture.png"
    one.write_text("Ein Fuchs lief durch den Wald. " * 60, encoding="utf-8")
    two.write_text("Größe und Übermut. " * 60, encoding="latin-1")
    bad.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40)
    upload = page.locator("#corpus-files input[type=file]")
    upload.set_input_files([one, two])
    expect(page.locator("#corpus-report .fl-preview")).to_contain_text("Ein Fuchs lief")
    expect(page.locator("#corpus-report .fl-chars")).to_contain_text("ß")
    page.locator("#corpus-files").get_by_label("Clear").click()
    page.locator("#corpus-files input[type=file]").set_input_files([bad])
    error = page.locator("#corpus-notices .fl-notice-error")
    expect(error).to_have_count(1)
    expect(error).to_contain_text("picture.png")
    expect(page.locator("#corpus-report .fl-preview")).to_contain_text("Ein Fuchs lief")


def test_a_small_bomb_is_refused(page, tmp_path):
    bomb = tmp_path / "bomb.txt.gz"
    bomb.write_bytes(gzip.compress(bytes(2_000_000)))
    choose(page, "Your files")
    page.locator("#corpus-files input[type=file]").set_input_files([bomb])
    error = page.locator("#corpus-notices .fl-notice-error")
    expect(error).to_contain_text("bomb.txt")
    expect(error).not_to_contain_text("/")


def test_on_a_phone_nothing_is_wider_than_the_screen(page):
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator("#corpus-report .fl-tile").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
