"""Settings: precedence, one sentence for every mistake, every file in configs/ loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fundamentallm.config import (
    CONFIGS_DIRECTORY,
    Config,
    DataConfig,
    GenerationConfig,
    ModelConfig,
    TrainingConfig,
    field_help,
    load_config,
    presets,
)
from fundamentallm.errors import ConfigError

SECTIONS = {"data": DataConfig, "model": ModelConfig, "training": TrainingConfig, "generation": GenerationConfig}


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.upper().startswith("FUNDAMENTALLM_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("path", sorted(CONFIGS_DIRECTORY.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_in_configs_loads_and_says_nothing_unknown(path: Path) -> None:
    config = load_config(file=path)
    assert config == load_config(preset=path.stem)
    for section, fields in yaml.safe_load(path.read_text()).items():
        for field, value in fields.items():
            assert getattr(getattr(config, section), field) == value


def test_the_promised_presets_are_there() -> None:
    assert {"small", "default", "large"} <= set(presets())
    assert load_config(preset="default").model == Config().model


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_documented(section: str) -> None:
    for field in SECTIONS[section].model_fields:
        assert re.search(r"\w.*\.$", field_help(section, field).strip(), re.DOTALL), field


def test_later_layers_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("training: {seed: 1, batch_size: 2, learning_rate: 1e-4}\nmodel: {d_model: 64}\n")
    monkeypatch.setenv("FUNDAMENTALLM_TRAINING__SEED", "3")
    monkeypatch.setenv("FUNDAMENTALLM_TRAINING__BATCH_SIZE", "4")
    config = load_config(file=file, overrides=["training.batch_size=5", "training.learning_rate=3e-4"])
    assert (config.training.seed, config.training.batch_size, config.training.learning_rate) == (3, 5, 3e-4)
    assert config.model.d_model == 64
    assert load_config(file=file, environment=False).training.seed == 1
    assert load_config(file=file, overrides=["training.seed=5"], values={"training": {"seed": 6}}).training.seed == 6


@pytest.mark.parametrize(
    ("override", "ends"),
    [
        ("training.max_minutes=1", (None, None, 1.0)),
        ("training.max_epochs=2", (None, 2.0, None)),
        ("training.max_steps=7", (7, None, None)),
        ("training.seed=7", (450, None, None)),
    ],
)
def test_an_end_of_training_replaces_the_presets(override: str, ends: tuple[object, ...]) -> None:
    base = load_config(preset="small", overrides=["training.max_steps=450"])
    section, field = override.partition("=")[0].split(".")
    for config in (
        load_config(preset="small", overrides=["training.max_steps=450", override]),
        base.with_values(**{section: {field: yaml.safe_load(override.partition("=")[2])}}),
    ):
        assert (config.training.max_steps, config.training.max_epochs, config.training.max_minutes) == ends


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["training.learning_rte=1"], r"no setting training\.learning_rte: did you mean training\.learning_rate\?"),
        (["trainig.seed=1"], r"no setting trainig: did you mean training\?"),
        (["training.seed"], r"'training\.seed' is not an override: write section\.field=value"),
        (["seed=1"], r"is not an override"),
        (["training.batch_size=0"], r"training\.batch_size is 0, which cannot work: input should be greater than"),
        (["training.batch_size=many"], r"training\.batch_size is 'many', which cannot work"),
        (
            ["model.activation=tanh"],
            r"model\.activation is 'tanh', which cannot work: input should be 'swiglu', 'gelu'",
        ),
        (
            ["model.d_model=130"],
            r"D_model \(130\) must be divisible by num_heads \(4\): try 128 or 132|d_model \(130\)",
        ),
        (["model.dropout=.nan"], r"model\.dropout is nan"),
        (["training.max_steps=null"], r"needs an end"),
        (["generation.stop_sequences=['']"], r"empty text"),
    ],
)
def test_a_mistake_gets_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(overrides=overrides)
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and "pydantic" not in text
    assert text[0].isupper() or text.split(maxsplit=1)[0].count(".") == 1 or text.startswith("'")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("training: [1, 2", "cannot be read as YAML"),
        ("- a\n- b", "must hold sections"),
        ("training: 3", "training"),
        ("training:\n  sead: 3", "did you mean training.seed"),
    ],
)
def test_a_bad_file_gets_one_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(file=file)
    assert "\n" not in str(caught.value)


def test_missing_files_and_presets_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no configuration file 'nowhere\.yaml'"):
        load_config(file="nowhere.yaml")
    with pytest.raises(ConfigError, match="no preset named 'huge': choose one of default"):
        load_config(preset="huge")
    with pytest.raises(ConfigError, match="not both"):
        load_config(preset="small", file="x.yaml")


@given(
    st.builds(
        dict,
        seed=st.integers(0, 2**40),
        learning_rate=st.floats(1e-7, 1, exclude_min=True),
        max_steps=st.integers(1, 10**9),
        sample_prompt=st.text(max_size=20),
    )
)
def test_what_is_saved_is_what_was_set(training: dict[str, object]) -> None:
    config = Config().with_values(training=training)
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().training.seed = 3  # type: ignore[misc]
