"""The networks: cached equals uncached, batched equals single, ours equals `transformers`, nothing looks ahead."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import transformers
from foreign_models import randomise
from on_device import DEVICE, seeded
from torch import Tensor

from fundamentallm.config import ModelConfig
from fundamentallm.errors import ConfigError
from fundamentallm.models import BaseModel, build_model
from fundamentallm.models.functions import attend, rms_norm, rotary_tables, rotate, swiglu
from fundamentallm.models.interchange import export_weights, family, import_weights, transformers_config
from fundamentallm.models.numpy_decoder import NumpyDecoder

VOCAB, LENGTH = 29, 16


def shape(**changes: object) -> ModelConfig:
    base = {"vocab_size": VOCAB, "d_model": 32, "num_heads": 4, "num_layers": 2, "sequence_length": LENGTH}
    return ModelConfig.model_validate(base | changes)


def tokens(batch: int = 3, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=seeded(seed))


def randomised(config: ModelConfig, seed: int = 0) -> BaseModel:
    """A model whose every parameter is random, gains and biases too: no part can hide behind its initial value."""
    model = build_model(config).eval()
    randomise(model, seed)
    return model


VARIANTS = [
    shape(),
    shape(num_kv_heads=2),
    shape(num_kv_heads=1, qk_norm=False),
    shape(head_dim=6, tie_embeddings=False),
    shape(norm="layernorm", bias=True, activation="gelu", pos_encoding="learned", qk_norm=False),
    shape(norm="layernorm", activation="relu2", pos_encoding="sinusoidal"),
    shape(pos_encoding="none", activation="gelu", ffn_expansion=3.0),
    shape(architecture="bigram"),
]
on_the_processor = pytest.mark.skipif(DEVICE != "cpu", reason="NumPy knows nothing else")
variants = pytest.mark.parametrize(
    "config", VARIANTS, ids=lambda c: f"{c.architecture}-{c.pos_encoding}-{c.activation}"
)


@variants
@torch.inference_mode()
def test_cached_equals_uncached(config: ModelConfig) -> None:
    model, given = randomised(config), tokens()
    whole = model(given)
    for prefill in (1, 5, LENGTH):
        cache = model.new_cache(3)
        parts = [model(given[:, :prefill], cache)]
        parts += [model(given[:, i : i + 1], cache) for i in range(prefill, LENGTH)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)
        assert cache.length == LENGTH


@variants
@torch.inference_mode()
def test_a_padded_batch_equals_each_sequence_alone(config: ModelConfig) -> None:
    model = randomised(config)
    given = [tokens(1, length, seed=length)[0] for length in (3, 7, 9)]
    cache = model.new_cache(3)
    cache.padding = torch.tensor([9 - len(row) for row in given])
    padded = torch.stack([torch.cat((row.new_zeros(9 - len(row)), row)) for row in given])
    together = [model(padded, cache)[:, -1]]
    for step in range(4):
        together.append(model(torch.full((3, 1), step), cache)[:, -1])
    for row, sequence in enumerate(given):
        alone = model(torch.cat((sequence, torch.arange(4)))[None])[0, -5:]
        torch.testing.assert_close(torch.stack(together)[:, row], alone, atol=1e-5, rtol=1e-4)


@on_the_processor
@variants
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_decoder_in_numpy_is_the_same_model(config: ModelConfig, kv_heads: int) -> None:
    if config.architecture == "transformer":
        config = config.model_copy(update={"num_kv_heads": kv_heads})
    model = randomised(config)
    assert isinstance(model.decoder(), NumpyDecoder) == (config.architecture == "transformer")
    caches, decoders = [model.new_cache(3) for _ in range(2)], [model.decoder(), BaseModel.decoder(model)]
    with torch.inference_mode():
        for cache in caches:
            cache.padding = torch.tensor([0, 3, 1])
            model(tokens(3, 4), cache)
    # Past the context too, where the cache rolls.
    for step in range(4, 2 * LENGTH if model.rolls else LENGTH):
        new = tokens(3, 1, seed=step)[:, 0]
        ours, theirs = (decode(new, cache) for decode, cache in zip(decoders, caches, strict=True))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        assert caches[0].length == caches[1].length == step + 1


@on_the_processor
@torch.inference_mode()
@pytest.mark.parametrize("changes", [{}, {"bias": True, "activation": "gelu"}], ids=str)
@pytest.mark.parametrize("rows", [1, 2])
def test_the_decoder_in_numpy_multiplies_by_panels(changes: dict[str, object], rows: int) -> None:
    model = randomised(shape(d_model=64, num_heads=4, **changes))  # 192 queries, keys and values: three panels
    caches = [model.new_cache(rows) for _ in range(2)]
    for cache in caches:
        model(tokens(rows, 5), cache)
    decoders = model.decoder(), BaseModel.decoder(model)
    ours, theirs = (decode(tokens(rows, 1)[:, 0], cache) for decode, cache in zip(decoders, caches, strict=True))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@on_the_processor
def test_numpy_decodes_only_what_suits_it() -> None:
    assert NumpyDecoder.suits(build_model(shape()))
    assert not NumpyDecoder.suits(build_model(shape()).to(torch.bfloat16))
    with torch.device("meta"):
        assert not NumpyDecoder.suits(build_model(shape(d_model=1024, num_layers=4)))


@pytest.mark.parametrize("shape_", [(2, 5, 16), (3, 4, 6, 8)])
def test_the_derivative_of_rms_norm_is_right(shape_: tuple[int, ...]) -> None:
    generator = seeded(1)
    x = torch.randn(shape_, generator=generator, requires_grad=True)
    gain = torch.randn(shape_[2:], generator=generator, requires_grad=True)
    weights = torch.randn(shape_, generator=generator)
    ours = rms_norm(x, gain, torch.tensor(1e-5))
    theirs = torch.nn.functional.rms_norm(x, shape_[-1:], None, 1e-5) * gain
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, gain, torch.tensor(1e-5)), theirs)
    expected = torch.autograd.grad((theirs * weights).sum(), (x, gain))
    for a, b in zip(torch.autograd.grad((ours * weights).sum(), (x, gain)), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "function", [swiglu, lambda x: rotate(x, rotary_tables(torch.arange(3), 8, 100.0))], ids=["swiglu", "rotate"]
)
def test_derivatives_written_by_hand_are_right(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64, generator=seeded(2), requires_grad=True)
    assert torch.autograd.gradcheck(function, x)
    with torch.no_grad():
        untracked = function(x)
    torch.testing.assert_close(function(x), untracked, rtol=0, atol=0)


@variants
def test_nothing_looks_ahead(config: ModelConfig) -> None:
    model, given = randomised(config), tokens(1)
    embedded: list[Tensor] = []
    embedding = model.get_submodule("table" if config.architecture == "bigram" else "embedding")
    embedding.register_forward_hook(lambda *_: embedded.append(_[2].requires_grad_()) or embedded[-1].retain_grad())
    model(given)[0, 7].sum().backward()
    gradient = embedded[0].grad
    assert gradient is not None
    influence = gradient[0].abs().sum(dim=-1)
    assert influence[8:].eq(0).all()
    assert influence[7] > 0
    if config.architecture == "transformer":
        assert influence[:8].gt(0).all()


@variants
def test_a_step_of_gradient_reaches_every_parameter(config: ModelConfig) -> None:
    model = randomised(config).train()
    model(tokens()).logsumexp(dim=-1).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_context_is_a_limit_that_is_said() -> None:
    model = randomised(shape())
    with pytest.raises(ValueError, match="exceed the context"):
        model(tokens(1, LENGTH + 1))


@pytest.mark.parametrize(
    "config",
    [
        shape(),
        shape(num_kv_heads=2, tie_embeddings=False, head_dim=10, rope_theta=500.0),
        shape(qk_norm=False),
        shape(qk_norm=False, num_kv_heads=1, tie_embeddings=False, norm_epsilon=1e-3),
        shape(norm="layernorm", bias=True, activation="gelu", pos_encoding="learned", qk_norm=False),
    ],
    ids=["qwen3", "qwen3-grouped", "llama", "llama-grouped", "gpt2"],
)
@torch.inference_mode()
def test_logits_equal_transformers(config: ModelConfig) -> None:
    model = randomised(config)
    described = transformers_config(config, bos_token_id=2, eos_token_id=3, pad_token_id=0)
    theirs = getattr(transformers, described["architectures"][0])(transformers.AutoConfig.for_model(**described)).eval()
    exported = export_weights(model.state_dict(), config)
    loaded = theirs.load_state_dict(exported, strict=False)
    assert not loaded.unexpected_keys
    assert set(loaded.missing_keys) <= {"lm_head.weight"}
    assert bool(loaded.missing_keys) == config.tie_embeddings
    theirs.tie_weights()
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()), atol=1e-4, rtol=1e-4)


@variants
def test_exported_weights_come_back(config: ModelConfig) -> None:
    model = randomised(config)
    state = model.state_dict()
    back = import_weights(export_weights(state, config), config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_families() -> None:
    assert [family(config) for config in VARIANTS] == [
        "qwen3", "qwen3", "llama", "qwen3", "gpt2", "fundamentallm", "fundamentallm", "fundamentallm",
    ]  # fmt: skip


def test_written_out_attention_equals_the_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(2, heads, 8, 6, generator=seeded(heads)) for heads in (4, 2, 2))
    mask = torch.rand(2, 1, 8, 8, generator=seeded(9)) > 0.4
    mask = mask | torch.eye(8, dtype=torch.bool)
    monkeypatch.setattr("fundamentallm.models.functions._QUERY_BLOCK", 3)  # blocks of 3, 3 and 2 queries
    for given, causal in ((None, True), (mask, False), (None, False)):
        results = []
        for fused in (True, False):
            monkeypatch.setattr("fundamentallm.models.functions.fused_attention_is_faster", lambda *_, f=fused: f)
            results.append(attend(q, k, v, given, causal=causal, dropout=0.0))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("block", [3, 8])
def test_the_derivative_of_attention_is_right(dropout: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fundamentallm.models.functions._QUERY_BLOCK", block)  # of 8 queries
    monkeypatch.setattr("fundamentallm.models.functions.fused_attention_is_faster", lambda *_: False)
    generator = seeded(1)
    inputs = [torch.randn(2, 8, 2, 4, generator=generator, dtype=torch.float64).transpose(1, 2) for _ in range(3)]

    def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(5)  # the same weights are dropped every time
        return attend(q, k, v, None, causal=True, dropout=dropout)

    assert torch.autograd.gradcheck(mixed, [x.requires_grad_() for x in inputs])


def test_rotation_depends_on_distance_alone() -> None:
    rotation = rotary_tables(torch.arange(40), 8, 10_000.0)
    q, k = torch.randn(8), torch.randn(8)
    turned_q, turned_k = (rotate(x.expand(40, 1, 8), rotation)[:, 0] for x in (q, k))
    products = turned_q @ turned_k.T
    for offset in (-7, 0, 3):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


def test_the_untrained_model_guesses_evenly() -> None:
    torch.manual_seed(0)
    for config in VARIANTS:
        logits = build_model(config).eval()(tokens())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens(seed=1).flatten())
        assert abs(loss.item() - math.log(VOCAB)) < 0.2


def test_parameters_are_counted_and_matrices_are_muons() -> None:
    config = shape()
    model = build_model(config)
    per_block = 32 * (3 * 32) + 32 * 32 + 3 * 32 * config.ffn_width + 2 * 32 + 2 * 8
    assert model.num_parameters() == VOCAB * 32 + 2 * per_block + 32
    muon = {id(parameter) for parameter in model.muon_matrices()}
    assert {name for name, p in model.named_parameters() if id(p) in muon} == {
        f"blocks.{i}.{part}.weight"
        for i, part in itertools.product(
            range(2), ("attention.qkv", "attention.output", "feed_forward.gate_up", "feed_forward.down")
        )
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"d_model": 130}, r"d_model \(130\) must be divisible by num_heads \(4\): try 128 or 132"),
        ({"num_heads": 4, "num_kv_heads": 3}, r"num_kv_heads \(3\) must divide num_heads \(4\): try 1, 2, 4"),
        ({"d_model": 20}, "even head width"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        shape(**changes)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="no model named 'mamba'"):
        build_model(shape(architecture="mamba"))
