import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import DEVICE

from fundamentallm.errors import ConfigError, CorpusError
from fundamentallm.evaluation import EvaluationStopped, evaluate, mean_loss, token_losses

VOCAB, CONTEXT = 11, 8
NEWLINE, UNKNOWN = 3, 1


class Recorder(torch.nn.Module):
    """A causal model whose logits depend on all tokens before: an embedding's running mean. Counts what it is fed."""

    def __init__(self, sequence_length: int = CONTEXT) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCAB, VOCAB)
        self.config = SimpleNamespace(sequence_length=sequence_length, vocab_size=VOCAB)
        self.largest = 0

    def forward(self, tokens):
        assert not self.training
        assert tokens.shape[1] <= self.config.sequence_length
        self.largest = max(self.largest, tokens.numel())
        embedded = self.embedding(tokens)
        return 3 * embedded.cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]


def tokenizer(newline=NEWLINE, prefix=()):
    encode = lambda text: np.array([newline] * len(text), np.uint32)  # noqa: E731
    return SimpleNamespace(vocab_size=VOCAB, unk_id=UNKNOWN, prefix=prefix, encode=encode)


def by_definition(model, tokens, first, stride):
    """Log-probabilities one by one: each token from all that its window holds before it."""
    stream = ([] if first is None else [first]) + list(map(int, tokens))
    result = [] if first is not None else [-math.log(VOCAB)]
    with torch.no_grad():
        for target in range(1, len(stream)):
            window = max(0, math.ceil((target - CONTEXT) / stride)) * stride
            logits = model.eval()(torch.tensor([stream[window:target]]))[0, -1]
            result.append(float(logits.log_softmax(-1)[stream[target]]))
    return result


@given(
    tokens=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=50),
    stride=st.sampled_from([None, 1, 3, 4, 8]),
    previous=st.sampled_from([None, 5]),
    batch_size=st.sampled_from([None, 1, 2]),
)
@settings(deadline=None, max_examples=60)
def test_every_token_is_scored_once_as_defined(tokens, stride, previous, batch_size):
    model = Recorder().train()
    ids = np.array(tokens, np.uint16)
    result = evaluate(
        model,
        tokenizer(),
        tokens=ids,
        characters=len(ids),
        bytes=2 * len(ids),
        previous_token=previous,
        stride=stride,
        batch_size=batch_size,
    )
    assert model.training
    wanted = by_definition(model, ids, NEWLINE if previous is None else previous, stride or CONTEXT // 2)
    assert result.tokens == len(ids) == len(wanted)
    assert result.loss == pytest.approx(-np.mean(wanted), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_character == pytest.approx(result.loss / math.log(2))
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2) / 2)
    assert result.unknown_characters == tokens.count(UNKNOWN)


@given(
    tokens=st.lists(st.integers(0, VOCAB - 1), max_size=50),
    previous=st.sampled_from([None, 5]),
    newline=st.sampled_from([NEWLINE, UNKNOWN]),
)
@settings(deadline=None, max_examples=40)
def test_token_losses_are_the_terms_of_the_loss(tokens, previous, newline):
    model = Recorder()
    ids = np.array(tokens, np.uint16)
    losses = token_losses(model, tokenizer(newline), ids, previous_token=previous)
    assert losses.shape == ids.shape
    if tokens:
        first = NEWLINE if previous is None and newline == NEWLINE else previous
        assert losses == pytest.approx(-np.array(by_definition(model, ids, first, CONTEXT // 2)), rel=1e-5)


def test_a_vocabulary_without_newline_charges_the_first_token_a_guess():
    model = Recorder()
    ids = np.array([4, 5, 6])
    in_two = SimpleNamespace(vocab_size=VOCAB, unk_id=None, prefix=(), encode=lambda text: [7, 8])
    for odd in (tokenizer(newline=UNKNOWN), in_two):
        result = evaluate(model, odd, tokens=ids, characters=3, bytes=3)
        assert result.loss == pytest.approx(-np.mean(by_definition(model, ids, None, 4)), rel=1e-5)
    foreign = evaluate(model, tokenizer(prefix=(9,)), tokens=ids, characters=3, bytes=3)
    assert foreign.loss == pytest.approx(-np.mean(by_definition(model, ids, 9, 4)), rel=1e-5)
    alone = evaluate(model, tokenizer(newline=UNKNOWN), tokens=ids[:1], characters=1, bytes=1)
    assert alone.loss == pytest.approx(math.log(VOCAB))


def test_stride_of_a_context_is_the_plain_windowed_loss():
    model = Recorder()
    ids = np.random.default_rng(0).integers(0, VOCAB, 8 * 20 + 1)
    plain = mean_loss(model, ids, CONTEXT)
    result = evaluate(
        model, tokenizer(), tokens=ids[1:], characters=160, bytes=160, previous_token=int(ids[0]), stride=CONTEXT
    )
    assert result.loss == pytest.approx(plain, rel=1e-6)


def test_text_is_measured_in_characters_and_bytes():
    result = evaluate(Recorder(), tokenizer(), "aé€😀")
    assert (result.tokens, result.characters, result.bytes) == (4, 4, 10)
    assert set(result.as_dict()) == {
        "loss", "perplexity", "bits_per_character", "bits_per_byte", "accuracy",
        "tokens", "characters", "bytes", "unknown_characters",
    }  # fmt: skip


def test_accuracy_counts_first_guesses():
    model = Recorder()
    with torch.no_grad():
        model.embedding.weight.zero_()[:, 2] = 1.0  # always guesses token 2
    result = evaluate(model, tokenizer(), tokens=np.array([2, 2, 7, 2]), characters=4, bytes=4)
    assert result.accuracy == 0.75


def test_memory_does_not_grow_with_the_text():
    model = Recorder()
    ids = np.zeros(100_000, np.uint16)
    evaluate(model, tokenizer(), tokens=ids, characters=1, bytes=1)
    assert model.largest <= (4096 if DEVICE == "cpu" else 16_384)


def test_progress_and_stop():
    ids = np.zeros(1000, np.uint16)
    shares: list[float] = []
    evaluate(Recorder(), tokenizer(), tokens=ids, characters=1, bytes=1, batch_size=4, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    model = Recorder().train()
    with pytest.raises(EvaluationStopped, match="stopped"):
        evaluate(
            model, tokenizer(), tokens=ids, characters=1, bytes=1, batch_size=4, cancelled=lambda: model.largest > 8
        )
    assert model.training


def test_bad_input_is_one_sentence():
    with pytest.raises(CorpusError, match="empty"):
        evaluate(Recorder(), tokenizer(), "")
    for stride in (0, -1, CONTEXT + 1):
        with pytest.raises(ConfigError, match="stride"):
            evaluate(Recorder(), tokenizer(), "abc", stride=stride)
    with pytest.raises(CorpusError, match="two tokens"):
        mean_loss(Recorder(), np.array([1]), CONTEXT)


@pytest.mark.parametrize("length", [2, 5, 9, 17, 100])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_mean_loss_scores_all_when_not_limited(length, batch_size):
    model = Recorder().train()
    ids = np.random.default_rng(length).integers(0, VOCAB, length).astype(np.uint16)
    wanted = by_definition(model, ids[1:], int(ids[0]), CONTEXT)
    model.train()
    assert mean_loss(model, ids, CONTEXT, batch_size=batch_size) == pytest.approx(-np.mean(wanted), rel=1e-5)
    assert model.training


def test_mean_loss_spreads_its_windows_evenly():
    seen: list[int] = []

    class Spy(Recorder):
        def forward(self, tokens):
            seen.extend(tokens[:, 0].tolist())
            return super().forward(tokens % VOCAB)

    ids = np.arange(1001)
    ids_model = Spy()
    ids_model.embedding = torch.nn.Embedding(1001, 1001)
    mean_loss(ids_model, ids, CONTEXT, max_tokens=40)
    assert seen == [0, 248, 496, 744, 992]


@pytest.mark.parametrize("stride", [None, 5, 16])
def test_perplexity_is_what_transformers_computes_on_the_saved_folder(stride, tmp_path):
    """The definition of Hugging Face's page on perplexity, with the newline of our docstring in front of the text."""
    transformers = pytest.importorskip("transformers")
    from fundamentallm.checkpoint import save_checkpoint
    from fundamentallm.config import Config, DataConfig
    from fundamentallm.data.tokenizers import CharacterTokenizer
    from fundamentallm.models import build_model

    text = "Once upon a time, é, there was a model.\nIt had learned nothing, and so it was surprised by everything.\n"
    own_tokenizer = CharacterTokenizer.train([text.replace("é", "")], DataConfig())
    shape = {"d_model": 32, "num_heads": 4, "num_kv_heads": 2, "num_layers": 2, "sequence_length": 16}
    config = Config().with_values(model=shape | {"vocab_size": own_tokenizer.vocab_size})
    torch.manual_seed(1)
    own = build_model(config.model)
    with torch.no_grad():  # fresh weights are close to zero and hide mistakes
        for parameter in own.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_checkpoint(tmp_path / "folder", own, own_tokenizer, config)
    result = evaluate(own, own_tokenizer, text, stride=stride)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    ids = torch.tensor([tokenizer("\n" + text)["input_ids"]])  # (1, N + 1)
    assert ids.size(1) == result.tokens + 1 == len(text) + 1
    step, log_likelihood, scored = stride or 8, 0.0, 0
    for begin in range(0, ids.size(1) - 1, step):
        end = min(begin + 16, ids.size(1) - 1)  # inputs [begin, end)
        if end <= scored:
            break
        with torch.no_grad():
            logits = model(ids[:, begin:end]).logits[0].log_softmax(-1)
        targets = ids[0, begin + 1 : end + 1]
        likelihoods = logits.gather(1, targets[:, None])[:, 0]
        log_likelihood += float(likelihoods[scored - begin :].double().sum())
        scored = end
    assert scored == result.tokens
    assert result.perplexity == pytest.approx(math.exp(-log_likelihood / scored), rel=1e-5)
    assert result.unknown_characters == 1
