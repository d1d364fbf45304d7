from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundamentallm.config import TrainingConfig
from fundamentallm.training import budget as budget_module
from fundamentallm.training.budget import Budget
from fundamentallm.training.schedules import learning_rate_factor

SCHEDULES = ["wsd", "cosine", "linear", "constant"]


@given(
    st.sampled_from(SCHEDULES),
    st.floats(0, 1),
    st.integers(0, 10_000),
    st.floats(0, 0.9),
    st.floats(0, 1),
    st.none() | st.integers(0, 500),
)
def test_a_factor_is_between_0_and_1(
    name: str, progress: float, step: int, warmup: float, floor: float, warmup_steps: int | None
) -> None:
    config = TrainingConfig(lr_scheduler=name, warmup_fraction=warmup, min_lr_ratio=floor, warmup_steps=warmup_steps)
    assert 0 <= learning_rate_factor(config, progress, step) <= 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_rises_while_warming_up_then_never_rises_again(name: str) -> None:
    config = TrainingConfig(lr_scheduler=name, warmup_fraction=0.1, decay_fraction=0.5)
    factors = [learning_rate_factor(config, i / 1000, i) for i in range(1001)]
    peak = factors.index(max(factors))
    assert 50 <= peak <= 100
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(factors[: peak + 1]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors[100:]))


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_ends_at_the_floor(name: str, floor: float) -> None:
    config = TrainingConfig(lr_scheduler=name, min_lr_ratio=floor)
    assert learning_rate_factor(config, 1.0, 800) == pytest.approx(floor)


def test_wsd_stays_and_then_decays_linearly() -> None:
    config = TrainingConfig(lr_scheduler="wsd", warmup_fraction=0.0, decay_fraction=0.4)
    factors = [learning_rate_factor(config, progress, 0) for progress in (0.0, 0.3, 0.6, 0.7, 0.8, 1.0)]
    assert factors == pytest.approx([1, 1, 1, 0.75, 0.5, 0])


def test_warmup_steps_take_precedence_and_the_first_step_learns() -> None:
    config = TrainingConfig(warmup_steps=3, warmup_fraction=0.5, lr_scheduler="constant")
    factors = [learning_rate_factor(config, step / 100, step) for step in range(5)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def simulate(monkeypatch: pytest.MonkeyPatch, config: TrainingConfig, step_seconds: float, pause: float) -> list[float]:
    """The learning rate factors of a training whose steps and measurements take so long, on a clock of its own."""
    now = 100.0
    monkeypatch.setattr(budget_module.time, "perf_counter", lambda: now)
    budget = Budget(config, steps_per_epoch=40)
    budget.start()
    now += pause
    budget.add_measurement(pause)
    factors: list[float] = []
    while budget.used_up(len(factors)) is None:
        factors.append(learning_rate_factor(config, budget.progress_during(len(factors)), len(factors)))
        now += step_seconds
        budget.add_step(step_seconds)
        if len(factors) % config.eval_every_n_steps == 0 and budget.has_time_to_measure():
            now += pause
    assert config.max_minutes is None or now - 100 + pause <= 60 * config.max_minutes + 1e-6
    return factors


@pytest.mark.parametrize("step_seconds", [0.01, 0.7, 3.0])
@pytest.mark.parametrize("pause", [0.0, 0.5, 4.0])
def test_a_time_budget_finishes_the_decay(monkeypatch: pytest.MonkeyPatch, step_seconds: float, pause: float) -> None:
    config = TrainingConfig(max_steps=None, max_minutes=1.0, eval_every_n_steps=9)
    factors = simulate(monkeypatch, config, step_seconds, pause)
    assert len(factors) > 5
    assert factors[-1] <= 1.3 * (2 * step_seconds / 60 / config.decay_fraction)
    assert max(factors) > 0.9


def test_one_slow_step_does_not_end_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(budget_module.time, "perf_counter", lambda: now)
    budget = Budget(TrainingConfig(max_steps=None, max_minutes=1), 10)
    budget.start()
    for seconds in (1.0, 1.0, 1.0, 25.0):
        budget.add_step(seconds)
        budget.add_measurement(seconds)
    now = 50.0
    assert budget.used_up(4) is None and budget.has_time_to_measure()


def test_whichever_limit_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    both = TrainingConfig(max_steps=1000, max_epochs=2, max_minutes=60, eval_every_n_steps=1000)
    assert len(simulate(monkeypatch, both, 0.1, 0.0)) == 80  # two epochs of 40 steps
    assert len(simulate(monkeypatch, both.model_copy(update={"max_epochs": None}), 60, 0.0)) in (59, 60)


def test_epochs_become_whole_steps() -> None:
    assert Budget(TrainingConfig(max_steps=None, max_epochs=0.5), 7).max_steps == 4
    assert Budget(TrainingConfig(max_steps=None, max_epochs=3.0), 0.1 * 10).max_steps == 3
    assert Budget(TrainingConfig(max_steps=None, max_epochs=0.001), 7).max_steps == 1
    assert Budget(TrainingConfig(max_steps=5), 7).used_up(5) == "max_steps"


def test_remaining_time_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(budget_module.time, "perf_counter", lambda: now)
    budget = Budget(TrainingConfig(max_steps=100), 10)
    budget.start(elapsed_seconds=8.0)  # a resumed training
    assert budget.remaining_seconds(0) is None
    now = 2.0
    assert budget.remaining_seconds(20) == pytest.approx(40.0)
