import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fundamentallm.cli.commands import cli
from fundamentallm.config import Config

COMMANDS = ("train", "generate", "evaluate", "info", "runs", "playground")
OPTIONS = {
    "train": "--preset --config --set --run-dir --epochs --max-steps --minutes --batch-size --learning-rate --device "
    "--seed --resume --from --quiet --json --debug",
    "generate": "--prompt --max-tokens --strategy --temperature --top-k --top-p --min-p --repetition-penalty --seed "
    "--num-samples --stop --json --interactive --debug",
    "evaluate": "--stride --json --output --debug",
    "info": "--debug",
    "runs": "--debug",
    "playground": "--host --port --runs-dir --public --debug",
}


def call(*arguments, **options):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a model of 27 characters that has learned nothing."""
    from fundamentallm.checkpoint import save_checkpoint
    from fundamentallm.config import DataConfig
    from fundamentallm.data.tokenizers import CharacterTokenizer
    from fundamentallm.models import build_model

    tokenizer = CharacterTokenizer.train(["abcdefghijklmnopqrstuvwxyz\nO "], DataConfig())
    config = Config().with_values(
        model={
            "d_model": 16,
            "num_heads": 2,
            "num_layers": 1,
            "sequence_length": 16,
            "vocab_size": tokenizer.vocab_size,
        },
        generation={"max_tokens": 12},
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_checkpoint(folder, build_model(config.model), tokenizer, config)
    return folder


def test_help_of_everything_shows_an_example():
    overview = call("--help")
    assert overview.exit_code == 0
    assert call().output == overview.output
    for command in COMMANDS:
        assert f"  {command} " in overview.output
        result = call(command, "--help")
        assert result.exit_code == 0
        assert f"Example: fundamentallm {command}" in result.output
        shown = set(re.findall(r"(?<!\w)--[a-z-]+", result.output.split("Options:")[1].split("Example:")[0]))
        assert shown - {"--help", "--prompt"} == set(OPTIONS[command].split()) - {"--prompt"}


def test_version():
    assert call("--version").output.startswith("fundamentallm 0.")


def test_help_loads_neither_torch_nor_gradio():
    script = (
        "import sys; from fundamentallm.cli.commands import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'gradio', 'plotly', 'pydantic', 'yaml', 'rich'} & set(sys.modules)\n"
        "print('loaded:', *heavy)"
    )
    overview = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True)
    assert overview.stdout.splitlines()[-1] == "loaded:"
    train = subprocess.run(
        [sys.executable, "-c", script, "train", "--help"], capture_output=True, text=True, check=True
    )
    assert not {"torch", "gradio", "plotly"} & set(train.stdout.splitlines()[-1].split())


BAD = {
    "unknown command": (["trian"], "trian"),
    "unknown group option": (["--fast"], "--fast"),
    "unknown option": (["train", "tiny-tales", "--fast"], "--fast"),
    "no data": (["train"], "DATA"),
    "missing text": (["train", "missing.txt"], "missing.txt"),
    "binary text": (["train", "binary.bin"], "binary"),
    "empty text": (["train", "empty.txt"], "empty"),
    "short text": (["train", "short.txt", "--preset", "small", "--quiet"], "12 characters"),
    "unknown preset": (["train", "text.txt", "--preset", "huge"], "huge"),
    "preset and config": (["train", "text.txt", "--preset", "small", "--config", "x.yaml"], "not both"),
    "missing config": (["train", "text.txt", "--config", "x.yaml"], "x.yaml"),
    "unknown field": (["train", "text.txt", "--set", "model.d_modle=3"], "d_model"),
    "no override": (["train", "text.txt", "--set", "seed"], "section.field=value"),
    "impossible value": (["train", "text.txt", "--set", "model.d_model=130"], "divisible"),
    "negative steps": (["train", "text.txt", "--max-steps", "-1"], "max_steps"),
    "steps in words": (["train", "text.txt", "--max-steps", "many"], "many"),
    "missing device": (["train", "text.txt", "--device", "tpu", "--max-steps", "1", "--quiet"], "tpu"),
    "occupied directory": (["train", "text.txt", "--run-dir", "folder"], "folder"),
    "resume nothing": (["train", "--resume", "nothing"], "nothing"),
    "resume with text": (["train", "text.txt", "--resume", "nothing"], "--resume"),
    "generate from nothing": (["generate", "nothing"], "nothing"),
    "generate from text": (["generate", "text.txt"], "text.txt"),
    "generate from a foreign folder": (["generate", "folder"], "folder"),
    "generate without checkpoint": (["generate"], "CHECKPOINT"),
    "impossible top-p": (["generate", "CHECKPOINT", "--top-p", "1.5"], "top_p"),
    "impossible temperature": (["generate", "CHECKPOINT", "--temperature", "-1"], "temperature"),
    "unknown strategy": (["generate", "CHECKPOINT", "--strategy", "beam"], "beam"),
    "empty stop": (["generate", "CHECKPOINT", "--stop", ""], "stop_sequences"),
    "no tokens": (["generate", "CHECKPOINT", "--max-tokens", "0"], "max_tokens"),
    "interactive json": (["generate", "CHECKPOINT", "--interactive", "--json"], "--interactive"),
    "evaluate without run": (["evaluate", "CHECKPOINT"], "run"),
    "evaluate empty": (["evaluate", "CHECKPOINT", "empty.txt"], "empty"),
    "evaluate missing": (["evaluate", "CHECKPOINT", "missing.txt"], "missing.txt"),
    "impossible stride": (["evaluate", "CHECKPOINT", "text.txt", "--stride", "17"], "stride"),
    "output into nowhere": (["evaluate", "CHECKPOINT", "text.txt", "--output", "no/where.json"], "no/where.json"),
    "info of nothing": (["info", "nothing"], "nothing"),
    "runs nowhere": (["runs", "nowhere"], "nowhere"),
    "port": (["playground", "--port", "70000"], "70000"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_exit_code_2_and_one_line_on_standard_error(name, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("once upon a time " * 400)
    Path("short.txt").write_text("hello world!")
    Path("empty.txt").write_text("")
    Path("binary.bin").write_bytes(bytes(range(256)) * 8)
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("not ours")
    before = sorted(Path().rglob("*"))
    arguments, named = BAD[name]
    result = call(*(checkpoint if argument == "CHECKPOINT" else argument for argument in arguments))
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert named.lower() in lines[0].lower()
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert [path for path in sorted(Path().rglob("*")) if path != Path("runs")] == before


def test_debug_shows_the_traceback():
    result = call("info", "nothing", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "CheckpointError" in result.stderr
    assert "Traceback" in call("--debug", "info", "nothing").stderr
    assert "Traceback" not in call("info", "nothing").stderr


def test_an_unexpected_operating_system_error_is_one_sentence(checkpoint, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied", "secret.txt")

    monkeypatch.setattr("fundamentallm.language_model.load", denied)
    result = call("generate", checkpoint)
    assert result.exit_code == 2
    assert result.stderr == "'secret.txt': Permission denied.\n"


def test_generate_prints_prompt_and_continuation(checkpoint):
    first = call("generate", checkpoint, "--prompt", "once", "--seed", "1")
    assert first.exit_code == 0
    assert first.stdout.startswith("once")
    assert len(first.stdout) > len("once\n")
    assert call("generate", checkpoint, "--prompt", "once", "--seed", "1").stdout == first.stdout
    assert call("generate", checkpoint, "--prompt", "once", "--seed", "2").stdout != first.stdout


def test_generate_json_says_how_to_write_it_again(checkpoint):
    result = call(
        "generate", checkpoint, "--prompt", "a", "--prompt", "bcd", "--num-samples", "2", "--json", "--top-k", 5
    )
    texts = [json.loads(line) for line in result.stdout.splitlines()]
    assert [text["prompt"] for text in texts] == ["a", "a", "bcd", "bcd"]
    assert all(set(text) == {"prompt", "text", "tokens", "seed", "settings"} for text in texts)
    assert texts[0]["settings"]["top_k"] == 5
    assert texts[0]["tokens"] == len(texts[0]["text"]) > 0
    for text in texts:
        again = call("generate", checkpoint, "--prompt", text["prompt"], "--seed", text["seed"], "--top-k", 5, "--json")
        assert json.loads(again.stdout)["text"] == text["text"]


def test_several_prompts_have_headings(checkpoint):
    result = call("generate", checkpoint, "--prompt", "a", "--prompt", "b", "--seed", 0)
    assert re.findall(r"^--- (\d of \d) ---$", result.stdout, re.MULTILINE) == ["1 of 2", "2 of 2"]


def test_temperature_zero_is_greedy(checkpoint):
    texts = {
        call("generate", checkpoint, "--prompt", "a", "--seed", seed, *options).stdout
        for seed in (1, 2)
        for options in (("--temperature", 0), ("--strategy", "greedy"))
    }
    assert len(texts) == 1


def test_stop_ends_the_text(checkpoint):
    command = ("generate", checkpoint, "--prompt", "a", "--seed", 1, "--json")
    whole = json.loads(call(*command).stdout)["text"]
    stop = whole[4:6]
    assert len(stop) == 2
    part = json.loads(call(*command, "--stop", stop).stdout)["text"]
    assert part == whole[: whole.index(stop)]


def test_unseen_characters_are_named(checkpoint):
    result = call("generate", checkpoint, "--prompt", "aé中", "--seed", 1)
    assert result.exit_code == 0
    assert "'é', '中'" in result.stderr
    assert result.stdout.startswith("aé中")


def test_evaluate_json_and_output(checkpoint, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("once upon a time\n" * 20 + "é")
    result = call("evaluate", checkpoint, text, "--json", "--output", tmp_path / "result.json")
    numbers = json.loads(result.stdout)
    assert set(numbers) == {
        "loss", "perplexity", "bits_per_character", "bits_per_byte", "accuracy",
        "tokens", "characters", "bytes", "unknown_characters",
    }  # fmt: skip
    assert (numbers["tokens"], numbers["characters"], numbers["bytes"]) == (341, 341, 342)
    assert numbers["unknown_characters"] == 1
    assert json.loads((tmp_path / "result.json").read_text()) == numbers
    shown = call("evaluate", checkpoint, text, "--stride", 16)
    assert shown.exit_code == 0
    assert "bits per byte" in shown.stdout


def test_info_shows_the_network(checkpoint):
    result = call("info", checkpoint)
    assert result.exit_code == 0
    assert "transformer" in result.stdout
    assert "16 tokens" in result.stdout


def test_runs_without_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("runs")
    assert result.exit_code == 0
    assert "fundamentallm train" in result.stdout
    assert call("runs", tmp_path).exit_code == 0


def test_interactive_session_from_a_pipe(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        "/help", "once", "", "/set temperature=0.5 top_k=3", "/settings", "/set temperature=-1", "/set colour=red",
        "/set", r"""/set top_k=none stop_sequences="\n the end" """, "/settings", "/compare", "/compare ab", "//slash",
        "/history", "/save story.txt",
        "/save story.txt", "/save", "/dance", "/quit", "never",
    ]  # fmt: skip
    result = call("generate", checkpoint, "--interactive", "--seed", 1, input="\n".join(lines) + "\n")
    assert result.exit_code == 0, result.output
    for command in ("/set temperature=0.7", "/settings", "/compare", "/history", "/save FILE", "/quit"):
        assert command in result.stdout
    assert re.search(r"temperature +0\.5", result.stdout)
    assert re.search(r"top_k +3[^0-9]", result.stdout)
    assert re.search(r"top_k +none", result.stdout)
    assert r"('\n the end',)" in result.stdout
    assert "\n/slash" in result.stdout
    assert "never" not in result.stdout
    for strategy in ("greedy", "temperature", "top-k", "top-p"):
        assert strategy in result.stdout
    for complaint in ("temperature", "colour", "exists already", "/save story.txt", "/dance"):
        assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert Path("story.txt").read_text().startswith("once")


def test_compare_needs_a_text_first(checkpoint):
    result = call("generate", checkpoint, "--interactive", input="/compare\n/history\n")
    assert "Once upon a time" in result.stderr
    assert "Nothing has been written yet" in result.stdout


def test_ctrl_c_while_writing_keeps_the_session(checkpoint, monkeypatch):
    def interrupted(self, prompt="", **options):
        yield "xy"
        raise KeyboardInterrupt

    monkeypatch.setattr("fundamentallm.language_model.LanguageModel.stream", interrupted)
    result = call("generate", checkpoint, "--interactive", input="once\n/history\n")
    assert result.exit_code == 0
    assert result.stdout.count("oncexy") == 2
    assert "Stopped" in result.stderr


def test_ctrl_c_while_writing_without_session_exits_as_shells_expect(checkpoint, monkeypatch):
    def interrupted(self, prompt="", **options):
        yield "xy"
        raise KeyboardInterrupt

    monkeypatch.setattr("fundamentallm.language_model.LanguageModel.stream", interrupted)
    result = call("generate", checkpoint, "--prompt", "once")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_playground_gets_its_options(monkeypatch):
    calls = []
    # In place of the real page, whose import takes seconds.
    page = SimpleNamespace(launch=lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "fundamentallm.playground.page", page)
    assert call("playground").exit_code == 0
    assert call("playground", "--host", "0.0.0.0", "--port", 8000, "--runs-dir", "r", "--public").exit_code == 0
    assert calls == [("127.0.0.1", None, None, None), ("0.0.0.0", 8000, Path("r"), True)]


def test_control_characters_of_a_model_do_not_reach_a_terminal():
    from fundamentallm.cli.output import printable

    assert printable("a\x1b[2Jb\n\tc\x7f\x9b", always=True) == "a␛[2Jb\n\tc␡\ufffd"
    assert printable("a\x1b", always=False) == "a\x1b"


def test_durations():
    from fundamentallm.cli.output import duration

    assert [duration(seconds) for seconds in (None, 4.4, 185, 7800)] == ["", "4 s", "3 min 5 s", "2 h 10 min"]


def test_displays(capsys):
    import io

    from rich.console import Console

    from fundamentallm.cli.console import BarDisplay, JsonDisplay, LogDisplay, display
    from fundamentallm.runs import Metrics
    from fundamentallm.training.callbacks import (
        CheckpointSaved,
        Evaluated,
        Sampled,
        StepLogged,
        TrainingEnded,
        TrainingStarted,
        Working,
        notify,
    )  # fmt: skip

    events = [
        Working("Preparing the text", 0.5),
        Working("Preparing the text", 1.0),
        TrainingStarted(Path("run"), 7, 100, 1234567, 65, 1000, 100, 64, "CPU, 1 threads, fp32"),
        StepLogged(Metrics(10, 640, 1.5, 2.5, None, 0.1, 1.0, 426.7), 100, 0.1, 13.5),
        Sampled(10, "Once", " <b>[red]\x1b[2J"),
        Evaluated(10, 2.25, 2.25, True),
        StepLogged(Metrics(20, 1280, 3.0, 2.0, None, 0.1, 1.0, 426.7), None, 0.2, None),
        CheckpointSaved(20, Path("run/checkpoints/step-000020"), True),
        TrainingEnded("max_steps", 100, 10, 2.25, 15.0, "All 100 steps are done."),
    ]
    for event in events:
        notify([JsonDisplay()], event)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in printed] == [
        "working", "working", "training_started", "step_logged", "sampled", "evaluated", "step_logged",
        "checkpoint_saved", "training_ended",
    ]  # fmt: skip
    assert printed[3]["metrics"]["train_loss"] == 2.5
    assert printed[7]["path"].endswith("step-000020")

    log = LogDisplay()
    for event in events:
        notify([log], event)
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Preparing the text"
    assert "Resuming at step 7" in lines[1]
    assert "1,234,567 parameters" in lines[1]
    for part in ("step 10", "loss 2.5000", "427 tokens/s", "validation loss 2.2500 (best)", "14 s left"):
        assert part in lines[2]
    assert lines[3:] == ["All 100 steps are done."]

    screen = io.StringIO()
    bar = BarDisplay(Console(file=screen, force_terminal=True, width=160, markup=False, highlight=False))
    for event in events:
        notify([bar], event)
        bar._bar.refresh()
    bar.close()
    for part in (
        "Preparing",
        "loss 2.5000",
        "427 tokens/s",
        "validation 2.2500",
        "14 s left",
        "<b>[red]␛[2J",
        "All 100",
    ):
        assert part in screen.getvalue()

    quiet = display(quiet=True, as_json=False)
    for event in events:
        notify([quiet], event)
    assert capsys.readouterr() == ("", "")
    assert isinstance(display(quiet=False, as_json=True), JsonDisplay)
    assert isinstance(display(quiet=False, as_json=False), LogDisplay)
