"""The transformer once more, for one new token of each sequence, in NumPy.

Writing on a CPU means hundreds of operations on a few hundred numbers each, and there the price of an operation is
what it takes to start it: about 5 µs in PyTorch, 1 µs in NumPy. The mathematics is that of ``transformer.py``, which a
test holds it to; the cache is the model's own memory, seen as arrays. Measured on two cores in float32, four
layers of 128 and six of 256: 442 → 1,700 and 250 → 540 tokens a second.

Shapes, with one new token throughout (T = 1, left out):
    B  sequences in the batch        H  query heads               D  width of one head
    S  tokens attended to            G  key/value heads, G ≤ H    C  width of the residual stream
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fundamentallm.models.kv_cache import KVCache

if TYPE_CHECKING:
    from fundamentallm.models.transformer import Attention, Block, FeedForward, RMSNorm, Transformer

Array = npt.NDArray[np.float32]
Function = Callable[[Array], Array]

# A model that outgrows the processor's cache is read from memory for every token, which PyTorch does faster.
_LARGEST_BYTES = 32_000_000
# Columns of a weight matrix that lie together.
_PANEL = 64


class NumpyDecoder:
    """Reads one token of each sequence into a cache, and gives the logits of the next.

    Args:
        model: In float32 on the CPU; its weights are copied, so later changes to them are not seen.
    """

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self._config = config
        self._embedding = _array(model.embedding.weight)
        self._added = _added_positions(model)
        half = np.arange(0, config.head_width, 2, dtype=np.float32) / np.float32(config.head_width)
        self._frequencies = (config.rope_theta**-half).astype(np.float32)
        self._layers = [
            (
                _norm(block.attention_norm),
                _Attention(block.attention),
                _norm(block.feed_forward_norm),
                _feed_forward(block.feed_forward),
            )
            for block in cast("Iterable[Block]", model.blocks)
        ]
        self._final_norm, self._head = _norm(model.final_norm), _linear(model.head)

    @staticmethod
    def suits(model: Transformer) -> bool:
        """Whether this is faster than the model itself: on a CPU, in float32, and with weights that fit its cache."""
        weights = list(model.parameters())
        plain = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        return plain and sum(4 * weight.numel() for weight in weights) <= _LARGEST_BYTES

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Tokens (B,) to logits (B, V)."""
        position = cache.length
        slot = cache.reserve(1)
        filled = min(position + 1, cache.capacity)
        keys, values = cache.keys.numpy(), cache.values.numpy()  # (L, B, G, S, D)
        mask = cache.mask(1)
        hidden = None if mask is None else ~mask.numpy()[:, :, 0]  # (B, 1, S)
        x = self._embedding[tokens.numpy()]  # (B, C)
        if self._added is not None:
            x = x + self._added[_places(position, cache)]
        rotation = self._rotation(position) if self._config.pos_encoding == "rope" else None
        with np.errstate(over="ignore"):  # SiLU of a very negative number is 0 by way of infinity
            for layer, (attention_norm, attention, feed_forward_norm, feed_forward) in enumerate(self._layers):
                q, k, v = attention.project(attention_norm(x), rotation)
                keys[layer, :, :, slot], values[layer, :, :, slot] = k, v
                x = x + attention.mix(q, keys[layer, :, :, :filled], values[layer, :, :, :filled], hidden)
                x = x + feed_forward(feed_forward_norm(x))
            logits = self._head(self._final_norm(x))
        cache.advance(1)
        return torch.from_numpy(logits)

    def _rotation(self, position: int) -> tuple[Array, Array]:
        """Cosines and signed sines of one position, each (D); see ``rotary_tables``."""
        angles = np.float32(position) * self._frequencies
        cosines, sines = np.cos(angles), np.sin(angles)
        return np.concatenate((cosines, cosines)), np.concatenate((-sines, sines))


class _Attention:
    """The two halves of ``Attention.forward``: before the cache and after it."""

    def __init__(self, attention: Attention) -> None:
        self._heads, self._kv_heads, self._width = attention.heads, attention.kv_heads, attention.head_width
        self._qkv, self._output = _linear(attention.qkv), _linear(attention.output)
        self._qk_norm: Function | None = None
        if attention.query_norm is not None and attention.key_norm is not None:
            gains = [attention.query_norm.weight] * self._heads + [attention.key_norm.weight] * self._kv_heads
            self._qk_norm = _rms_norm(np.stack([_array(gain) for gain in gains]), float(attention.query_norm.eps))

    def project(self, x: Array, rotation: tuple[Array, Array] | None) -> tuple[Array, Array, Array]:
        """(B, C) to queries (B, H, D), keys and values (B, G, D), normed and turned."""
        heads = self._qkv(x).reshape(len(x), -1, self._width)
        together = self._heads + self._kv_heads
        qk, v = heads[:, :together], heads[:, together:]
        if self._qk_norm is not None:
            qk = self._qk_norm(qk)
        if rotation is not None:
            cosines, sines = rotation
            half = self._width // 2
            qk = qk * cosines + np.concatenate((qk[..., half:], qk[..., :half]), axis=-1) * sines
        return qk[:, : self._heads], qk[:, self._heads :], v

    def mix(self, q: Array, keys: Array, values: Array, hidden: npt.NDArray[np.bool_] | None) -> Array:
        """Queries (B, H, D) and the cache's keys and values (B, G, S, D) to (B, C)."""
        batch = len(q)
        # The H / G queries that share a key head stand together.
        grouped = q.reshape(batch, self._kv_heads, -1, self._width) * np.float32(self._width**-0.5)
        scores = grouped @ keys.swapaxes(-1, -2)  # (B, G, H / G, S)
        if hidden is not None:
            scores[np.broadcast_to(hidden[:, :, None], scores.shape)] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        mixed = weights @ values  # (B, G, H / G, D): fewer numbers to divide than S weights are
        mixed /= weights.sum(axis=-1, keepdims=True)
        return self._output(mixed.reshape(batch, -1))


def _feed_forward(layer: FeedForward) -> Function:
    """(B, C) to (B, C)."""
    down = _linear(layer.down)
    if layer.activation == "swiglu":
        gate_up, width = _linear(layer.gate_up), layer.down.in_features

        def swiglu(x: Array) -> Array:
            both = gate_up(x)
            gate, up = both[:, :width], both[:, width:]
            return down(gate / (1 + np.exp(-gate)) * up)

        return swiglu
    up = _linear(layer.up)
    if layer.activation == "gelu":
        return lambda x: down(_gelu(up(x)))
    return lambda x: down(np.square(np.maximum(up(x), 0)))


def _gelu(x: Array) -> Array:
    """By the hyperbolic tangent; Hendrycks & Gimpel 2016."""
    result: Array = 0.5 * x * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3)))
    return result


def _linear(layer: nn.Linear) -> Function:
    # A transposed copy: the product of (4, 192) and (192, 576) takes 10 µs, with the weights as they lie 28, and 67 as
    # x @ weight.T; one row 7 µs instead of 11. In panels, so that what is read next lies next, four sequences of
    # ``default`` take 0.57 instead of 0.65 ms a token, one 0.385 instead of 0.375.
    width = layer.out_features
    panel = _PANEL if width % _PANEL == 0 else width
    panels: Array = layer.weight.detach().unflatten(0, (-1, panel)).mT.contiguous().numpy()  # (panels, C, panel)
    bias = None if layer.bias is None else _array(layer.bias)

    def linear(x: Array) -> Array:
        product = (x @ panels).swapaxes(0, 1).reshape(len(x), width)
        return product if bias is None else product + bias

    return linear


def _norm(module: nn.Module) -> Function:
    if isinstance(module, nn.LayerNorm):
        return _layer_norm(_array(module.weight), None if module.bias is None else _array(module.bias), module.eps)
    norm = cast("RMSNorm", module)
    return _rms_norm(_array(norm.weight), float(norm.eps))


def _layer_norm(gain: Array, bias: Array | None, eps: float) -> Function:
    added, shift = np.float32(eps), np.float32(0) if bias is None else bias

    def norm(x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        result: Array = centred / np.sqrt(variance + added) * gain + shift
        return result

    return norm


def _rms_norm(gain: Array, eps: float) -> Function:
    width, added = gain.shape[-1], np.float32(eps)
    mean = np.full((width, 1), 1 / width, np.float32)  # a product with it costs less than a call of mean()
    return lambda x: x / np.sqrt(np.square(x) @ mean + added) * gain


def _added_positions(model: Transformer) -> Array | None:
    """What is added to the embedding of a token at each place, (sequence_length, C), if anything is."""
    if model.config.pos_encoding == "learned":
        assert model.positions is not None
        return _array(model.positions.weight)
    return _array(model.sinusoids) if model.config.pos_encoding == "sinusoidal" else None


def _places(position: int, cache: KVCache) -> Any:
    """The place of the new token in every sequence: padding on its left does not count."""
    return position if cache.padding is None else (position - cache.padding).clamp(min=0).numpy()


def _array(tensor: Any) -> Array:
    array: Array = tensor.detach().numpy()
    return array
