"""The transformer, to be read from top to bottom; norm, rotary turn, gate and attention itself are in functions.py.

    tokens ─► embedding ─► [ block ] × num_layers ─► norm ─► head ─► logits

    block:    x ─┬► norm ─► attention ────┬─ + ─┬► norm ─► feed-forward ─┬─ + ─►
                 └────────────────────────┘     └────────────────────────┘

The default is the shape of Qwen3 (Yang et al. 2025): RMSNorm (Zhang & Sennrich 2019) before each sublayer, rotary
positions (Su et al. 2021), queries and keys normalised per head (Henry et al. 2020), SwiGLU (Shazeer 2020), no biases,
the output layer tied to the embedding (Press & Wolf 2017). Other choices of ``ModelConfig`` give GPT-2 (Radford et al.
2019), Llama, and what lies between.

Shapes:
    B  sequences in the batch        H  query heads               V  vocabulary
    T  tokens given                  G  key/value heads, G ≤ H
    S  tokens attended to            D  width of one head
    C  width of the residual stream (d_model)                     F  width of the feed-forward layer
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fundamentallm.config import ModelConfig
from fundamentallm.models.base import BaseModel, Decoder
from fundamentallm.models.functions import Rotation, attend, drop, rms_norm, rotary_tables, rotate, swiglu
from fundamentallm.models.kv_cache import KVCache
from fundamentallm.models.numpy_decoder import NumpyDecoder
from fundamentallm.models.recorded_decoder import RecordedDecoder


class RMSNorm(nn.Module):
    """:func:`rms_norm` with a gain that is learned, 1 at first."""

    eps: Tensor

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("eps", torch.tensor(eps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x``."""
        return rms_norm(x, self.weight, self.eps)


def build_norm(width: int, config: ModelConfig) -> nn.Module:
    """RMSNorm, or LayerNorm, which also removes the mean (Ba et al. 2016)."""
    if config.norm == "rmsnorm":
        return RMSNorm(width, eps=config.norm_epsilon)
    return nn.LayerNorm(width, eps=config.norm_epsilon, bias=config.bias)


def sinusoidal_table(length: int, width: int) -> Tensor:
    """The fixed position embedding (length, width) of Vaswani et al. 2017, section 3.5."""
    positions = torch.arange(length)[:, None]
    angles = positions * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()[:, : width // 2]
    return table


class Attention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.num_heads, config.kv_heads, config.head_width
        width = self.head_width
        # One matrix product instead of three: the rows are the queries', the keys' and the values'.
        self.qkv = nn.Linear(config.d_model, (self.heads + 2 * self.kv_heads) * width, bias=config.bias)
        self.output = nn.Linear(self.heads * width, config.d_model, bias=config.bias)
        self.query_norm = RMSNorm(width, config.norm_epsilon) if config.qk_norm else None
        self.key_norm = RMSNorm(width, config.norm_epsilon) if config.qk_norm else None
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, layer: int, mask: Tensor | None
    ) -> Tensor:
        """Mix information between positions; ``x`` and the result are (B, T, C)."""
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, -1, self.head_width)  # (B, T, H + 2G, D)
        # Queries and keys are normed and turned together: half the operations.
        qk, v = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            gains = self.query_norm.weight.expand(self.heads, -1), self.key_norm.weight.expand(self.kv_heads, -1)
            qk = rms_norm(qk, torch.cat(gains), self.query_norm.eps)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(layer, k, v)  # (B, G, S, D)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(q, k, v, mask, causal=cache is None, dropout=dropout)  # (B, H, T, D)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, -1))
        return output


class FeedForward(nn.Module):
    """The same small network at every position: (B, T, C) → (B, T, F) → (B, T, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        if config.activation == "swiglu":
            # Gate and up projection side by side, for one product instead of two.
            self.gate_up = nn.Linear(config.d_model, 2 * config.ffn_width, bias=config.bias)
        else:
            self.up = nn.Linear(config.d_model, config.ffn_width, bias=config.bias)
        self.down = nn.Linear(config.ffn_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every position on its own; ``x`` and the result are (B, T, C)."""
        if self.activation == "swiglu":
            hidden = swiglu(self.gate_up(x))
        elif self.activation == "gelu":
            hidden = F.gelu(self.up(x), approximate="tanh")
        else:
            hidden = F.relu(self.up(x)).square()  # So et al. 2021
        output: Tensor = self.down(hidden)
        return output


class Block(nn.Module):
    """Attention, then feed-forward, each reading a normalised residual stream and adding to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config.d_model, config)
        self.attention = Attention(config)
        self.feed_forward_norm = build_norm(config.d_model, config)
        self.feed_forward = FeedForward(config)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, layer: int, mask: Tensor | None
    ) -> Tensor:
        """One layer of the residual stream, (B, T, C)."""
        dropout = self.dropout if self.training else 0.0
        x = x + drop(self.attention(self.attention_norm(x), rotation, cache, layer, mask), dropout)
        x = x + drop(self.feed_forward(self.feed_forward_norm(x)), dropout)
        return x


class Transformer(BaseModel):
    """A decoder-only transformer language model."""

    replayable = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        length, width = config.sequence_length, config.d_model
        self.rolls = config.pos_encoding in ("rope", "none")
        self.embedding = nn.Embedding(self.vocab_size, width)
        self.positions = nn.Embedding(length, width) if config.pos_encoding == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = build_norm(width, config)
        self.head = nn.Linear(width, self.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        if config.pos_encoding == "rope":
            cosines, sines = rotary_tables(torch.arange(length), config.head_width, config.rope_theta)
            self.register_buffer("cosines", cosines, persistent=False)
            self.register_buffer("sines", sines, persistent=False)
        elif config.pos_encoding == "sinusoidal":
            self.register_buffer("sinusoids", sinusoidal_table(length, width), persistent=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """GPT-2's: normal with deviation 0.02, smaller by √(2·num_layers) where a sublayer adds to the stream.

        Every block adds to the residual stream twice, so that scaling keeps its variance the same at any depth
        (Radford et al. 2019, section 2.3).
        """
        residual_deviation = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                adds_to_stream = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
                nn.init.normal_(parameter, std=residual_deviation if adds_to_stream else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """See :meth:`BaseModel.forward`."""
        length, before = tokens.size(1), 0 if cache is None else cache.length
        if before + length > self.config.sequence_length and not (self.rolls and length == 1):
            raise ValueError(f"{before + length} tokens exceed the context of {self.config.sequence_length}")
        x = drop(self._embed(tokens, cache), self.config.dropout if self.training else 0.0)  # (B, T, C)
        rotation = self._rotation(length, cache)
        mask = None if cache is None else cache.mask(length)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, cache, layer, mask)
        if cache is not None:
            cache.advance(length)
        logits: Tensor = self.head(self.final_norm(x))  # (B, T, V)
        return logits

    def _embed(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        """Token embedding, plus the position's where positions are added; (B, T, C)."""
        x: Tensor = self.embedding(tokens)
        if self.rolls:
            return x
        length = tokens.size(1)
        places = torch.arange(length, device=tokens.device) if cache is None else cache.positions(length)  # (T)
        if cache is not None and cache.padding is not None:
            places = (places - cache.padding[:, None]).clamp(min=0)  # (B, T)
        if self.positions is not None:
            x = x + self.positions(places)
            return x
        assert isinstance(self.sinusoids, Tensor)
        return x + self.sinusoids[places]

    def _rotation(self, length: int, cache: KVCache | None) -> Rotation | None:
        """The rotary tables of the coming tokens; rotation is relative, so padding does not matter."""
        if self.config.pos_encoding != "rope":
            return None
        if cache is not None:  # past the context the angles just go on
            return rotary_tables(cache.positions(length), self.config.head_width, self.config.rope_theta)
        assert isinstance(self.cosines, Tensor) and isinstance(self.sines, Tensor)
        return self.cosines[:length], self.sines[:length]

    def new_cache(self, batch_size: int) -> KVCache:
        """See :meth:`BaseModel.new_cache`."""
        weight, config = self.embedding.weight, self.config
        return KVCache(
            config.num_layers,
            batch_size,
            config.kv_heads,
            config.sequence_length,
            config.head_width,
            dtype=weight.dtype,
            device=weight.device,
        )

    def decoder(self) -> Decoder:
        """See :meth:`BaseModel.decoder`."""
        if NumpyDecoder.suits(self):
            return NumpyDecoder(self)
        return RecordedDecoder(self) if RecordedDecoder.suits(self) else super().decoder()

    def muon_matrices(self) -> list[nn.Parameter]:
        """Every matrix inside the blocks."""
        return [parameter for parameter in self.blocks.parameters() if parameter.ndim == 2]
