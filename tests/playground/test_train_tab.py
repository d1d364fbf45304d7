"""The Train tab in a real browser with real, tiny trainings; and the sentence about a curve without a browser."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest
from conftest import end_trainings
from playwright.sync_api import expect

import fundamentallm as fl
from fundamentallm.config import Config, load_config
from fundamentallm.data.corpus import text_corpus
from fundamentallm.playground import charts
from fundamentallm.playground.train_form import (
    FIELDS,
    button_label,
    changed_settings,
    duration,
    field_values,
    parse_settings,
    preset_choices,
)
from fundamentallm.runs.run_directory import Metrics, RunDirectory

HOSTILE = "<b>bold</b> <img src=x onerror=\"document.title='owned'\"> & so on\n"
WATCHED = """
training.log_every_n_steps=1
training.eval_every_n_steps=20
training.save_every_n_steps=20
training.eval_tokens=256
"""
TINY = (
    """
model.num_layers=1
model.d_model=16
model.num_heads=2
model.sequence_length=16
training.batch_size=4
"""
    + WATCHED
)
# As slow as a real training, and as sparing with points, checkpoints and samples.
PACED = (
    """
model.num_layers=1
model.d_model=128
model.num_heads=2
model.sequence_length=64
training.batch_size=32
"""
    + WATCHED
)
SLOW = 120_000


def setup(page, text: str, more: str = TINY, minutes: str | None = None) -> None:
    """Paste a text and set a tiny model up."""
    page.locator("#corpus-source label", has_text="Your text").click()
    page.locator("#corpus-text textarea").fill(text)
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Advanced").click()
    page.locator("#more-settings textarea").fill(more)
    if minutes is not None:
        page.locator("#time label", has_text="Custom").click()
        page.locator("#minutes input").fill(minutes)
        page.locator("#minutes input").blur()
    expect(page.locator("#command textarea")).to_have_value(re.compile(r"model\.num_layers=1 .*eval_tokens=256"))


def start(page) -> None:
    page.locator("#start").click()
    expect(page.locator("#header-status .fl-status")).to_have_attribute(
        "data-state", re.compile("starting|running"), timeout=SLOW
    )


def wait_for_state(page, state: str) -> None:
    expect(page.locator("#header-status .fl-status")).to_have_attribute("data-state", state, timeout=SLOW)


# Nothing is drawn before the first point has come.
DRAWN_STEPS = "(document.querySelector('.fl-loss-chart')?.data?.[0]?.x ?? [])"


def points(page) -> int:
    return len(steps(page))


def steps(page) -> list[int]:
    return page.evaluate(DRAWN_STEPS)


def wait_for_step(page, condition: str) -> None:
    page.wait_for_function(f"{DRAWN_STEPS}.at(-1) {condition}", timeout=SLOW)


def wait_for_points(page, more_than: int) -> int:
    page.wait_for_function(f"{DRAWN_STEPS}.length > {more_than}", timeout=SLOW)
    return points(page)


def newest_run(server) -> RunDirectory:
    return RunDirectory(max(p for p in server.runs_directory.iterdir() if (p / "status.json").exists()))


@pytest.fixture(autouse=True)
def nothing_at_work(request):
    """A test that fails half way must not train on beside the next one."""
    yield
    if "server" in request.fixturenames:
        end_trainings(request.getfixturevalue("server").runs_directory)


@pytest.mark.browser
def test_the_button_says_what_it_will_do_and_the_speed_is_measured(page):
    page.get_by_role("tab", name="Train").click()
    button, command = page.locator("#start"), page.locator("#command textarea")
    expect(button).to_have_text("Train small on Tiny Tales for 1 min")
    expect(command).to_have_value("fundamentallm train tiny-tales --preset small --minutes 1")
    expect(page.locator("#estimate .fl-estimate")).to_have_attribute("data-state", "known", timeout=SLOW)
    expect(page.locator("[data-figure=parameters]")).to_have_text(re.compile(r"\d+K"))
    expect(page.locator(".fl-estimate-note")).to_contain_text("a step")
    page.locator("#time label", has_text="30 s").click()
    expect(button).to_have_text("Train small on Tiny Tales for 30 s")
    page.locator("#time label", has_text="Custom").click()
    page.locator("#minutes input").fill("3")
    expect(button).to_have_text("Train small on Tiny Tales for 3 min")
    page.get_by_role("button", name="Advanced").click()
    page.locator("#field-num_layers input").fill("3")
    expect(command).to_have_value("fundamentallm train tiny-tales --preset small --minutes 3 --set model.num_layers=3")
    page.locator("#preset label", has_text="Default").click()
    expect(button).to_have_text("Train default on Tiny Tales for 3 min")
    expect(page.locator("#field-d_model input")).to_have_value("192")
    expect(command).to_have_value("fundamentallm train tiny-tales --preset default --minutes 3")


@pytest.mark.browser
def test_a_setting_that_cannot_work_is_refused_in_one_sentence(page, server):
    before = sorted(server.runs_directory.iterdir())
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Advanced").click()
    page.locator("#field-d_model input").fill("130")
    expect(page.locator(".fl-estimate-note")).to_contain_text("must be divisible by num_heads", timeout=SLOW)
    page.locator("#start").click()
    expect(page.locator(".toast-body")).to_contain_text("must be divisible by num_heads")
    expect(page.locator("#start")).to_be_enabled()
    assert sorted(server.runs_directory.iterdir()) == before


@pytest.mark.browser
def test_train_an_upload_to_the_end_and_see_the_curve_grow(page, server, tmp_path):
    file = tmp_path / "my story.txt"
    file.write_text(HOSTILE * 200, encoding="utf-8")
    page.locator("#corpus-source label", has_text="Your files").click()
    page.locator("#corpus-files input[type=file]").set_input_files(file)
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Advanced").click()
    page.locator("#more-settings textarea").fill(TINY + "training.max_steps=200\ntraining.sample_prompt=<b>\n")
    expect(page.locator("#start")).to_have_text("Train small on my story.txt for 1 min", timeout=SLOW)
    start(page)
    first = wait_for_points(page, 0)
    wait_for_points(page, first)
    wait_for_state(page, "finished")
    wait_for_step(page, "=== 200")
    xs = steps(page)
    assert xs == sorted(set(xs)), "every step once, in order"
    validation = page.evaluate("document.querySelector('.fl-loss-chart').data[2].y")
    assert len(validation) >= 10 and validation[-1] < validation[0]
    labels = "document.querySelector('.fl-loss-chart').layout.shapes.map((shape) => shape.label.text)"
    page.wait_for_function(f"{labels}.includes('trigram')")
    page.get_by_text("Baselines").click()
    page.wait_for_function(f"{labels}.length === 0")
    # What a model trained on HTML writes is text.
    samples = page.locator(".fl-samples li")
    assert samples.count() >= 10
    expect(samples.first.locator("mark")).to_have_text("<b>")
    assert page.title() != "owned"
    assert page.locator(".fl-samples img, .fl-samples b").count() == 0
    expect(page.locator(".fl-phase")).to_contain_text("Finished after 200 steps")
    run = newest_run(server)
    assert [path.read_text(encoding="utf-8") for path in (run.path / "text").iterdir()] == [HOSTILE * 200]
    page.locator("#to-compare").click()
    expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")


@pytest.mark.browser
def test_reload_second_tab_stop_and_resume(page, server, open_page):
    setup(page, HOSTILE * 300, PACED, minutes="5")
    start(page)
    wait_for_points(page, 10)
    title = page.locator(".fl-run-name").inner_text()

    page.reload()
    page.get_by_role("tab", name="Train").click()
    wait_for_points(page, 20)
    expect(page.locator(".fl-run-name")).to_have_text(title)
    second = open_page(server.url)
    second.get_by_role("tab", name="Train").click()
    wait_for_points(second, 20)
    expect(second.locator(".fl-run-name")).to_have_text(title)

    # Zoom survives, and the drawing is extended, not made anew.
    page.evaluate("""async () => {
        const chart = document.querySelector('.fl-loss-chart');
        window.drawing = chart.querySelector('.main-svg');
        await Plotly.relayout(chart, {'xaxis.range': [2, 9]});
    }""")
    before = points(page)
    wait_for_points(page, before)
    assert page.evaluate("document.querySelector('.fl-loss-chart').layout.xaxis.range") == [2, 9]
    assert page.evaluate("window.drawing === document.querySelector('.fl-loss-chart .main-svg')")

    second.locator("#stop").click()
    wait_for_state(page, "stopped")
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator(".fl-phase")).to_contain_text("Resume continues the same curve")
    run = newest_run(server)
    assert run.has_checkpoint
    stopped_at = run.status().step

    expect(page.locator("#resume")).to_be_visible()
    page.locator("#resume").click()
    wait_for_state(page, "running")
    expect(page.locator("#resume")).to_be_hidden()
    wait_for_step(page, f"> {stopped_at + 5}")
    xs = steps(page)
    assert xs[0] <= 1 and xs == sorted(set(xs)), "one curve from the first step on"
    expect(page.locator(".fl-run-name")).to_have_text(title)
    page.locator("#stop").click()
    wait_for_state(page, "stopped")


@pytest.mark.browser
def test_a_killed_training_says_so_and_resumes(page, server):
    setup(page, "one two three four five six seven\n" * 300, PACED, minutes="5")
    start(page)
    wait_for_step(page, "> 24")  # beyond the first checkpoint
    run = newest_run(server)
    os.kill(run.status().pid, signal.SIGKILL)
    expect(page.locator("#header-status .fl-status")).to_have_attribute("data-state", "failed", timeout=6_000)
    expect(page.locator(".fl-phase")).to_contain_text("Training stopped unexpectedly", timeout=10_000)
    killed_at = max(steps(page))
    page.locator("#resume").click()
    wait_for_state(page, "running")
    wait_for_step(page, f"> {killed_at}")
    xs = steps(page)
    assert xs == sorted(set(xs)), "the repeated steps replace the lost ones"
    page.locator("#stop").click()
    wait_for_state(page, "stopped")


@pytest.mark.browser
def test_a_restarted_server_shows_the_running_training_again(tmp_path, runs, open_page, serve):
    with serve(tmp_path) as first:
        page = open_page(first.url)
        setup(page, "one two three four five six seven\n" * 300, PACED, minutes="5")
        start(page)
        wait_for_points(page, 10)
    run = newest_run(first)
    assert run.status().state == "running", "training outlives the server"
    with serve(tmp_path, port=first.port) as second:
        again = open_page(second.url)
        again.get_by_role("tab", name="Train").click()
        wait_for_points(again, 20)
        again.locator("#stop").click()
        wait_for_state(again, "stopped")


@pytest.mark.browser
def test_switches_and_earlier_runs(server, open_page):
    for name, level in (("first", 3.0), ("second", 2.0), ("third", 1.0)):
        run = RunDirectory.create(server.runs_directory, name, config=load_config(preset="small"))
        for step in range(0, 200, 10):
            loss = level + 1 / (1 + step)
            run.append_metrics(Metrics(step, step * 64, step / 10, loss, loss + 0.1, 1e-3, 1.0, 1000.0))
        run.write_status(run.status().__class__("finished", step=190, progress=1.0))
        time.sleep(0.02)
    page = open_page(server.url)
    page.get_by_role("tab", name="Train").click()
    page.locator("#run-selector input").click()
    page.get_by_role("option", name=re.compile("^third")).first.click()
    wait_for_points(page, 10)
    traces = "document.querySelector('.fl-loss-chart').data.length"
    page.get_by_text("Earlier runs").click()
    page.wait_for_function(f"{traces} >= 5")
    names = page.evaluate("document.querySelector('.fl-loss-chart').data.slice(3).map(t => t.name)")
    assert names[0].endswith("second") and names[1].endswith("first")
    page.get_by_text("Earlier runs").click()
    page.wait_for_function(f"{traces} === 3")
    page.get_by_text("Log", exact=True).click()
    page.wait_for_function("document.querySelector('.fl-loss-chart').layout.yaxis.type === 'log'")
    page.get_by_text("Smooth").click()
    page.wait_for_function("document.querySelector('.fl-loss-chart').data[1].visible === false")


@pytest.mark.browser
def test_a_text_of_line_breaks_alone_says_so(server, open_page):
    config = Config().with_values(
        model={"d_model": 16, "num_heads": 1, "num_layers": 1, "sequence_length": 16},
        training={"max_steps": 20, "batch_size": 8, "device": "cpu"},
    )
    fl.train(text_corpus("\n" * 4000 + "ab" * 10), config=config, run_dir=server.runs_directory / "breaks")
    page = open_page(server.url)
    page.get_by_role("tab", name="Train").click()
    says = "node => getComputedStyle(node, '::before').content"
    assert page.locator(".fl-samples li p").first.evaluate(says) == '"Only spaces and line breaks so far."'
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-prompt textarea").fill("")
    page.locator("#compare-write").click()
    greedy = page.locator("#compare-columns .fl-written.fl-blank").first
    expect(greedy).to_be_visible()
    assert greedy.evaluate(says) == '"Only spaces and line breaks so far."'


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(server, open_page, scheme):
    page = open_page(server.url, width=390, height=844, scheme=scheme)
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#start")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.mouse.wheel(0, 2000)
    page.wait_for_timeout(300)
    box = page.locator("#header").bounding_box()
    assert box["y"] == pytest.approx(0, abs=1), "the header stays in sight"


def row(step: int, train: float | None, val: float | None = None) -> dict[str, object]:
    return {"step": step, "train_loss": train, "val_loss": val}


def curve(train, val, count: int = 200) -> list[dict[str, object]]:
    return [row(i, train(i / count), val(i / count) if i % 10 == 0 else None) for i in range(count + 1)]


def test_the_phases_of_a_curve():
    assert charts.describe_curve([]).kind == "starting"
    falling = curve(lambda f: 4 - 2 * f, lambda f: 4.1 - 2 * f)
    assert charts.describe_curve(falling).kind == "fast"
    slowing = curve(lambda f: 1 + 3 * 2.718 ** (-4 * f), lambda f: 1.1 + 3 * 2.718 ** (-4 * f))
    assert charts.describe_curve(slowing).kind == "slowing"
    flat = curve(lambda f: 1 + 3 * 2.718 ** (-30 * f), lambda f: 1.1 + 3 * 2.718 ** (-30 * f))
    assert charts.describe_curve(flat).kind == "flat"
    rising = curve(lambda f: 3 - 2 * f if f < 0.5 else 2 + 4 * (f - 0.5), lambda f: 3.0)
    assert charts.describe_curve(rising).kind == "rising"


def test_overfitting_is_dated_to_the_best_validation_loss():
    rows = curve(lambda f: 3 - 2.5 * f, lambda f: 2 + (f - 0.5) ** 2 * 4)
    phase = charts.describe_curve(rows)
    assert (phase.kind, phase.since_step) == ("overfitting", 100)
    assert "step 100" in phase.sentence and phase.sentence.count("\n") == 0
    # One noisy measurement is no overfitting.
    noisy = curve(lambda f: 3 - 2 * f, lambda f: 3.1 - 2 * f + (0.5 if f > 0.99 else 0))
    assert charts.describe_curve(noisy).kind != "overfitting"


def test_repeated_steps_replace_what_they_repeat():
    rows = [row(1, 3.0), row(2, 2.0), row(3, 1.0), row(2, 2.5), row(3, 2.2), row(4, 2.0)]
    assert [(r["step"], r["train_loss"]) for r in charts.in_order(rows)] == [(1, 3.0), (2, 2.5), (3, 2.2), (4, 2.0)]


def test_history_is_thinned_but_keeps_validation_and_the_end():
    rows = [row(i, 1.0, 2.0 if i % 1000 == 7 else None) for i in range(100_000)]
    kept = charts.thinned(rows)
    assert len(kept) <= charts.MAX_POINTS + 200
    assert kept[-1]["step"] == 99_999
    assert {i for i in range(100_000) if i % 1000 == 7} <= {r["step"] for r in kept}


def test_only_new_rows_are_sent(tmp_path):
    run = RunDirectory.create(tmp_path, "x", config=load_config(preset="small"))
    for step in range(1000):
        run.append_metrics(Metrics(step, step, step, 1.0, None, 1e-3, None, None))
    first = charts.tail(run, 0, 0)
    assert len(first["columns"]["step"]) == 1000
    run.append_metrics(Metrics(1000, 1, 1.0, float("nan"), None, 1e-3, None, None))
    run.append_sample(1000, "Once", "<b>")
    second = charts.tail(run, first["offset"], first["samples_total"])
    assert second["columns"]["step"] == [1000] and second["columns"]["train_loss"] == [None]
    assert [s["text"] for s in second["samples"]] == ["<b>"]
    assert len(json.dumps(second)) < 1500


def test_the_form_says_what_differs_from_the_preset():
    assert changed_settings("small", "", field_values("small")) == {}
    values = field_values("small")
    values[[field.path for field in FIELDS].index("model.d_model")] = 64
    assert changed_settings("small", "training.seed=5\n\n# a remark", values) == {
        "model.d_model": 64,
        "training.seed": 5,
    }
    assert parse_settings("model.qk_norm = false") == {"model.qk_norm": False}
    with pytest.raises(Exception, match=r"section\.field=value"):
        parse_settings("nonsense")
    assert [name for _, name in preset_choices()][:3] == ["small", "default", "large"]


@pytest.mark.parametrize(
    ("minutes", "said"), [(0.5, "30 s"), (1, "1 min"), (1.25, "75 s"), (5, "5 min"), (120, "2 h"), (2.5, "2.5 min")]
)
def test_durations_for_people(minutes, said):
    assert duration(minutes) == said
    assert button_label("paste", None, "small", minutes) == f"Train small on your text for {said}"
