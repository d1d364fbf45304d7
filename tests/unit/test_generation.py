"""Writing: samplers as distributions, the generator against a naive loop without a cache."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from on_device import DEVICE, seeded
from torch import Tensor

from fundamentallm import registry
from fundamentallm.config import GenerationConfig, ModelConfig
from fundamentallm.errors import ConfigError
from fundamentallm.generation import BaseSampler, build_sampler, generate
from fundamentallm.generation.samplers import (
    FilteringSampler,
    GreedySampler,
    TemperatureSampler,
    inverse_cdf,
    keep_min_p,
    keep_top_k,
    keep_top_p,
)
from fundamentallm.models import BaseModel, KVCache, build_model
from fundamentallm.models.functions import attend

logits_rows = arrays("float32", (3, 17), elements=st.floats(-20, 20, width=32)).map(torch.tensor)
draws = st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=3, max_size=3).map(torch.tensor)
any_sampler = st.builds(
    FilteringSampler,
    st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 30),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
)


@given(any_sampler, logits_rows)
def test_probabilities_are_a_distribution_that_keeps_the_likeliest(sampler: FilteringSampler, logits: Tensor) -> None:
    probabilities = sampler.probabilities(logits)
    assert probabilities.ge(0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))
    assert probabilities.gather(-1, logits.argmax(-1, keepdim=True)).gt(0).all()


@given(any_sampler, logits_rows, draws)
def test_what_is_drawn_was_possible(sampler: FilteringSampler, logits: Tensor, draw: Tensor) -> None:
    probabilities = sampler.probabilities(logits)
    assert probabilities.gather(-1, sampler.sample(logits, draw)[:, None]).gt(0).all()


@given(logits_rows, draws)
def test_inverse_cdf_is_the_inverse(logits: Tensor, draw: Tensor) -> None:
    probabilities = logits.softmax(-1)
    token = inverse_cdf(probabilities, draw)[:, None]
    cumulative = probabilities.double().cumsum(-1)
    upto = cumulative.gather(-1, token)[:, 0]
    before = upto - probabilities.double().gather(-1, token)[:, 0]
    threshold = draw.double() * cumulative[:, -1]
    assert (threshold < upto).all()
    assert (before <= threshold + 1e-12).all()


def test_the_largest_draw_never_picks_an_impossible_token() -> None:
    largest = torch.tensor([1 - 2**-24])
    for seed in range(200):
        probabilities = torch.rand(1, 50, generator=seeded(seed))
        probabilities[:, 40:] = 0
        assert inverse_cdf(probabilities, largest).item() < 40


def test_drawing_often_gives_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]])
    sampler = FilteringSampler(0.7, top_k=3)
    draw = torch.rand(20_000, generator=seeded(0))
    counts = sampler.sample(logits.expand(20_000, -1), draw).bincount(minlength=5) / 20_000
    torch.testing.assert_close(counts, sampler.probabilities(logits)[0], atol=0.012, rtol=0)
    assert counts[3:].sum() == 0


@given(logits_rows, st.integers(1, 25))
def test_top_k_keeps_k_and_ties(logits: Tensor, k: int) -> None:
    kept = keep_top_k(logits, k).isfinite()
    assert (kept.sum(-1) >= min(k, 17)).all()
    for row in range(3):
        kth = logits[row].sort(descending=True).values[min(k, 17) - 1]
        assert torch.equal(kept[row], logits[row] >= kth)


@given(logits_rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_nucleus(logits: Tensor, p: float) -> None:
    probabilities = logits.softmax(-1)
    kept = keep_top_p(logits, p).isfinite()
    for row in range(3):
        inside = probabilities[row][kept[row]]
        assert inside.sum() >= p - 1e-5
        assert inside.sum() - inside.min() < p + 1e-5
        if not kept[row].all():
            assert inside.min() >= probabilities[row][~kept[row]].max()


@given(logits_rows, st.floats(0, 1))
def test_min_p_is_relative_to_the_likeliest(logits: Tensor, p: float) -> None:
    probabilities = logits.softmax(-1)
    expected = probabilities >= p * probabilities.amax(-1, keepdim=True)
    assert torch.equal(keep_min_p(logits, p).isfinite(), expected)


@given(logits_rows, draws)
@settings(max_examples=50)
def test_filters_that_filter_nothing_change_nothing(logits: Tensor, draw: Tensor) -> None:
    plain = TemperatureSampler(0.9)
    idle = FilteringSampler(0.9, top_k=17, top_p=1.0, min_p=0.0)
    assert torch.equal(plain.sample(logits, draw), idle.sample(logits, draw))


@given(logits_rows, draws)
@settings(max_examples=50)
def test_temperature_zero_top_one_and_greedy_agree(logits: Tensor, draw: Tensor) -> None:
    logits = logits + torch.linspace(0, 0.5, 17)  # breaks ties, which top-k keeps
    unique = logits.amax(-1) > logits.topk(2).values[:, 1]
    likeliest = logits.argmax(-1)
    for sampler in (FilteringSampler(0.0, top_p=0.5), FilteringSampler(1.3, top_k=1), GreedySampler(0.0)):
        assert torch.equal(sampler.sample(logits, draw)[unique], likeliest[unique])


def test_repetition_penalty_makes_what_occurred_less_likely() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5]])
    history = torch.tensor([[0, 2, 0]])
    plain = FilteringSampler(1.0).probabilities(logits, history)
    penalised = FilteringSampler(1.0, repetition_penalty=1.5).probabilities(logits, history)
    assert torch.equal(torch.tensor([[True, False, True, False]]), penalised < plain)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"strategy": "greedy", "temperature": 1.0}, (0.0, None, None, None)),
        ({"strategy": "top-k"}, (0.8, 40, None, None)),
        ({"strategy": "top-k", "top_k": 3, "top_p": 0.5}, (0.8, 3, 0.5, None)),
        ({"strategy": "top-p"}, (0.8, None, 0.9, None)),
        ({"strategy": "min-p", "temperature": 1.2}, (1.2, None, None, 0.05)),
        ({"strategy": "temperature"}, (0.8, None, None, None)),
        ({"top_k": 5, "top_p": 0.7, "min_p": 0.1}, (0.8, 5, 0.7, 0.1)),
    ],
)
def test_settings_compose_and_none_is_dropped(config: dict[str, object], expected: tuple[object, ...]) -> None:
    sampler = build_sampler(GenerationConfig.model_validate(config))
    assert isinstance(sampler, FilteringSampler)
    assert (sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p) == expected


def test_third_party_samplers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Last(GreedySampler):
        pass

    monkeypatch.setattr(registry.samplers, "_classes", dict(registry.samplers._classes))
    registry.samplers.add("last", Last)
    assert registry.samplers.get("last") is Last
    assert isinstance(build_sampler(GenerationConfig(strategy="last")), Last)
    with pytest.raises(ConfigError, match="already taken"):
        registry.samplers.add("greedy", Last)


# The generator ------------------------------------------------------------------------------------------------------

CONTEXT = 12


def network(**changes: object) -> BaseModel:
    base = {"vocab_size": 11, "d_model": 16, "num_heads": 2, "num_layers": 2, "sequence_length": CONTEXT}
    torch.manual_seed(3)
    model = build_model(ModelConfig.model_validate(base | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12)  # a random network that has opinions
    return model


@torch.inference_mode()
def naive(model: BaseModel, prompt: list[int], sampler: BaseSampler, seed: int, count: int) -> list[int]:
    """The oracle: no cache, every token from all that came before, read anew.

    A model that rolls attends to the last CONTEXT tokens at every layer; it is given a context long enough for the
    whole text, and attention that is masked beyond the band. One that does not roll starts over from half a window.
    """
    draw = torch.rand(count, generator=torch.Generator().manual_seed(seed), device="cpu").to(DEVICE)
    window = list(prompt)
    if len(window) > CONTEXT:
        window = window[-CONTEXT if model.rolls else -CONTEXT // 2 :]
    whole = build_model(model.config.model_copy(update={"sequence_length": 200 if model.rolls else CONTEXT})).eval()
    whole.load_state_dict(model.state_dict())
    written = []
    for step in range(count):
        if len(window) > CONTEXT and not model.rolls:
            window = window[-CONTEXT // 2 :]
        logits = whole(torch.tensor([window]))[:, -1]
        token = int(sampler.sample(logits, draw[step : step + 1], torch.tensor([window[-CONTEXT:]])))
        window.append(token)
        written.append(token)
    return written


def banded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, dropout: float) -> Tensor:
    if causal:
        distance = torch.arange(q.size(2))[:, None] - torch.arange(k.size(2))
        mask, causal = (distance >= 0) & (distance < CONTEXT), False
    return attend(q, k, v, mask, causal=causal, dropout=dropout)


@pytest.mark.parametrize(
    "changes",
    [{}, {"pos_encoding": "learned"}, {"num_kv_heads": 1, "pos_encoding": "none"}, {"architecture": "bigram"}],
    ids=str,
)
@pytest.mark.parametrize("prompt", [[1], [1, 2, 3, 4, 5], list(range(11)), [i % 11 for i in range(40)]], ids=len)
def test_the_generator_equals_the_naive_loop(
    changes: dict[str, object], prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sampler = network(**changes), TemperatureSampler(1.0)
    written = [step[0] for step in generate(model, [prompt], [sampler], [5], max_tokens=40)]
    monkeypatch.setattr("fundamentallm.models.transformer.attend", banded)
    assert written == naive(model, prompt, sampler, 5, 40)


@pytest.mark.parametrize("pos_encoding", ["rope", "learned"])
@pytest.mark.parametrize(
    "prompts",
    [
        [[1], [4, 5, 6, 7], [i % 11 for i in range(30)], [2, 2]],
        [[4, 5, 6, 7]] * 4,  # read once
        [[i % 11 for i in range(30)]] * 4,
    ],
    ids=["different", "alike", "alike and longer than the context"],
)
def test_a_batch_of_prompts_and_samplers_equals_each_alone(pos_encoding: str, prompts: list[list[int]]) -> None:
    model = network(pos_encoding=pos_encoding)
    samplers: list[BaseSampler] = [
        GreedySampler(0.0),
        TemperatureSampler(0.9),
        FilteringSampler(1.0, top_k=3),
        FilteringSampler(1.0, repetition_penalty=1.3),
    ]
    together = list(generate(model, prompts, samplers, [1, 2, 3, 4], max_tokens=40))
    for row, (prompt, sampler) in enumerate(zip(prompts, samplers, strict=True)):
        alone = [step[0] for step in generate(model, [prompt], [sampler], [row + 1], max_tokens=40)]
        assert [step[row] for step in together] == alone


@torch.inference_mode()
def test_a_prompt_alike_for_all_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(sequence_length=1500)
    read: list[tuple[int, ...]] = []
    forward = type(model).forward

    def spy(self: BaseModel, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        read.append(tuple(tokens.shape))
        return forward(self, tokens, cache)

    monkeypatch.setattr(type(model), "forward", spy)
    prompt = [i % 11 for i in range(1100)]  # more than a cache has room for at first
    samplers = [GreedySampler(0.0), TemperatureSampler(1.0), TemperatureSampler(1.0)]
    steps = list(generate(model, [prompt] * 3, samplers, [1, 2, 2], max_tokens=3))
    assert read[0] == (1, 1100)
    if DEVICE == "cpu":
        assert read == [(1, 1100)]  # what follows is decoded in NumPy
    assert set(read[1:]) <= {(3, 1)}
    assert [step[1] for step in steps] == [step[2] for step in steps]


def test_the_same_seed_writes_the_same_and_length_does_not_matter() -> None:
    model, sampler = network(), TemperatureSampler(1.0)
    long = [step[0] for step in generate(model, [[1]], [sampler], [7], max_tokens=60)]
    short = [step[0] for step in generate(model, [[1]], [sampler], [7], max_tokens=25)]
    other = [step[0] for step in generate(model, [[1]], [sampler], [8], max_tokens=60)]
    assert long[:25] == short
    assert long != other


def test_a_sequence_ends_at_the_end_token_and_the_others_go_on() -> None:
    model, sampler = network(), TemperatureSampler(1.5)
    free = list(generate(model, [[1], [1]], [sampler] * 2, [1, 2], max_tokens=50))
    first, second = ([step[i] for step in free] for i in (0, 1))
    end = next(token for token in first if token in first and token is not None)
    stopped = list(generate(model, [[1], [1]], [sampler] * 2, [1, 2], max_tokens=50, end_token=end))
    for row, column in enumerate((first, second)):
        until = column.index(end) if end in column else len(column)
        got = [step[row] for step in stopped]
        assert got[:until] == column[:until][: len(got)]
        assert all(token is None for token in got[until:])


def test_closing_the_iterator_stops_and_gradients_are_untouched() -> None:
    model = network()
    steps = generate(model, [[1]], [TemperatureSampler(1.0)], [0], max_tokens=1_000_000)
    assert len(list(islice(steps, 3))) == 3
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    steps.close()


def test_greedy_text_of_transformers_is_ours() -> None:
    import transformers

    from fundamentallm.models.interchange import export_weights, transformers_config

    config = network().config
    model = network()
    described = transformers_config(config, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**described)).eval()
    theirs.load_state_dict(export_weights(model.state_dict(), config), strict=False)
    theirs.tie_weights()
    prompt = torch.tensor([[1, 2, 3]])
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    ours = [step[0] for step in generate(model, [[1, 2, 3]], [GreedySampler(0.0)], [0], max_tokens=8)]
    assert ours == expected[0, 3:].tolist()
    assert math.isfinite(float(expected.sum()))
