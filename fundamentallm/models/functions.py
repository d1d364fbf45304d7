"""What a transformer computes between its matrix products: norm, rotary turn, gate, attention.

On a CPU these read and write far more bytes than they calculate with, so time goes by passes over the data. Where the
derivative that PyTorch composes takes many more passes than needed, it is written out here by hand.

Shapes are those of ``transformer.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fundamentallm.devices import fused_attention_is_faster

Rotation = tuple[Tensor, Tensor]
"""Cosines and signed sines of the angles by which queries and keys are turned, each (T, 1, D), alike for all heads."""

# Attention written out goes over this many queries at a time, and so leaves out most of the keys that no query of the
# block may see. Forward and backward in bf16: 16 × 256 tokens 14.3 → 12.8 ms, 4 × 1024 from 96 in one block to 40.
_QUERY_BLOCK = 128


def rms_norm(x: Tensor, gain: Tensor, eps: Tensor) -> Tensor:
    """Root mean square norm, x / rms(x) · gain, over the last dimension; Zhang & Sennrich 2019, equation 4.

    Args:
        x: (..., C).
        gain: (C), or any shape that the last dimensions of x have.
        eps: A number, added to the mean square; as a tensor it takes part in fewer, larger operations.
    """
    # What reads the result is a matrix product, which under autocast would round it anyway.
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    gain = gain.to(dtype)
    if not torch.is_grad_enabled():
        return _normalise(x, eps, dtype)[0] * gain
    normed: Tensor = _RMSNorm.apply(x, gain, eps, dtype)  # type: ignore[no-untyped-call]
    return normed


def _normalise(x: Tensor, eps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both x · s, in ``dtype``, and s = 1 / √(mean(x²) + eps), (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.addcmul(eps, length, length, value=1 / x.size(-1)).rsqrt_().type_as(x)
    return torch.mul(x, _spread(scale, x), out=x.new_empty(x.shape, dtype=dtype)), scale


def _spread(numbers: Tensor, x: Tensor) -> Tensor:
    """One number for each row, (..., 1), as an operation with ``x`` takes it fastest.

    Repeated in memory where rows are as short as a head: each row is a loop of its own otherwise. (16, 256, 8, 48) in
    bf16, a product with the numbers: 523 µs as they are, 210 with repeating them.
    """
    return numbers.expand_as(x).contiguous() if x.size(-1) < 128 else numbers


class _RMSNorm(torch.autograd.Function):
    """With n = x · s and s = 1 / rms(x):  ∂x = s · (g − n · mean(g · n)),  where g = ∂y · gain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: Tensor, dtype: torch.dtype) -> Tensor:
        normal, scale = _normalise(x, eps, dtype)
        ctx.save_for_backward(normal, scale, gain)
        return normal * gain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        normal, scale, gain = ctx.saved_tensors
        of_gain = (gradient * normal).sum_to_size(gain.shape)
        of_normal = gradient * gain
        mean = torch.linalg.vecdot(of_normal, normal).unsqueeze(-1)
        of_x = torch.addcmul(of_normal, normal, _spread(mean, normal), value=-1 / normal.size(-1))
        of_x = of_x * _spread(scale, of_x)
        return of_x, of_gain, None, None


def rotary_tables(positions: Tensor, head_width: int, theta: float) -> Rotation:
    """Cosines and signed sines, each (T, 1, D), of the angles ``position · theta^(-2i/D)``; Su et al. 2021, eq. 15.

    Both halves of a head carry the same angles: component i is turned together with component i + D/2. The first
    half's sines are negative, which is the sign the second component enters the first with.
    """
    exponents = torch.arange(0, head_width, 2, device=positions.device) / head_width
    angles = torch.outer(positions.float(), theta**-exponents)  # (T, D/2)
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat((cosines, cosines), dim=-1)[:, None], torch.cat((-sines, sines), dim=-1)[:, None]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn every pair of components of ``x`` (B, T, heads, D) by its position's angle, in the arithmetic of ``x``."""
    # Repeated for every head, as in _spread: (16, 256, 8, 48) in bf16 933 → 323 µs.
    cosines, sines = (table.type_as(x).expand(-1, x.size(2), -1).contiguous() for table in rotation)
    turned: Tensor = _Rotate.apply(x, cosines, sines)  # type: ignore[no-untyped-call]
    return turned


def _turn(x: Tensor, cosines: Tensor, sines: Tensor, direction: int) -> Tensor:
    return torch.addcmul(x * cosines, x.roll(x.size(-1) // 2, -1), sines, value=direction)


class _Rotate(torch.autograd.Function):
    """A rotation's derivative is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _turn(x, cosines, sines, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _turn(gradient, cosines, sines, -1), None, None


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up for ``gate_up`` (..., 2F), both halves side by side; (..., F). Shazeer 2020."""
    hidden: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
    return hidden


class _SwiGLU(torch.autograd.Function):
    """Both halves of the derivative are written to where the next product reads them, not put together afterwards."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.mul(gradient, activated, out=of_up)
        torch.ops.aten.silu_backward(gradient * up, gate, grad_input=of_gate)
        return result


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, dropout: float) -> Tensor:
    """Scaled dot-product attention: softmax(q·kᵀ/√D)·v (Vaswani et al. 2017, equation 1).

    Args:
        q: (B, H, T, D).
        k: (B, G, S, D); each key head serves H / G query heads (Ainslie et al. 2023).
        v: (B, G, S, D).
        mask: True where attention is allowed, broadcastable to (B, H, T, S); None allows everything.
        causal: Allow only what is not later, for T = S; excludes ``mask``.
        dropout: Probability of dropping an attention weight.

    Returns:
        (B, H, T, D).
    """
    if k.size(1) != q.size(1):
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
        v = v.repeat_interleave(q.size(1) // v.size(1), dim=1)
    if fused_attention_is_faster(q.device, q.dtype):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)
    q = q * q.size(-1) ** -0.5
    length = q.size(2)
    if causal and length > _QUERY_BLOCK:
        mixed: Tensor = _CausalAttention.apply(q, k, v, dropout)  # type: ignore[no-untyped-call]
        return mixed
    scores = q @ k.mT  # (B, H, T, S)
    if causal:
        scores = scores.add_(_nothing_later(length, scores))
    elif mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return drop(scores.softmax(dim=-1), dropout) @ v


def _nothing_later(length: int, like: Tensor) -> Tensor:
    """What is added to scores (T, T) to hide from every query the keys after it."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)


class _CausalAttention(torch.autograd.Function):
    """Attention to oneself and what came before, for queries that are already scaled; all (B, H, T, D).

    With S = q·kᵀ, P = softmax(S) and y = P·v:

        ∂v = Pᵀ·∂y,   ∂P = ∂y·vᵀ,   ∂S = P ∘ (∂P − Σ P∘∂P),   ∂q = ∂S·k,   ∂k = ∂Sᵀ·q.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        mixed, saved = [], []
        for start, end in _query_blocks(q):
            scores = q[:, :, start:end] @ k[:, :, :end].mT
            scores[..., start:].add_(_nothing_later(end - start, scores))  # the block's queries see all keys before it
            weights = scores.softmax(dim=-1)
            kept, mask = torch.native_dropout(weights, dropout, train=True) if dropout else (weights, None)
            mixed.append(kept @ v[:, :, :end])
            saved += [weights, kept, mask] if any(ctx.needs_input_grad) else []
        ctx.save_for_backward(q, k, v, *saved)
        ctx.dropout = dropout
        return _joined(mixed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *saved = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_q: list[Tensor] = []
        of_k = of_v = torch.empty(0)
        for start, end in reversed(_query_blocks(q)):  # the last block's queries see all keys
            mask, kept, weights = saved.pop(), saved.pop(), saved.pop()
            of_mixed = gradient[:, :, start:end]
            of_weights = of_mixed @ v[:, :, :end].mT
            if mask is not None:
                of_weights = torch.ops.aten.native_dropout_backward(of_weights, mask, 1 / (1 - ctx.dropout))
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q.insert(0, of_scores @ k[:, :, :end])
            of_k_here, of_v_here = of_scores.mT @ q[:, :, start:end], kept.mT @ of_mixed
            if end == q.size(2):
                of_k, of_v = of_k_here, of_v_here
            else:
                of_k[:, :, :end] += of_k_here
                of_v[:, :, :end] += of_v_here
        return _joined(of_q), of_k, of_v, None


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def _query_blocks(q: Tensor) -> list[tuple[int, int]]:
    """Where the blocks of queries start and end."""
    length = q.size(2)
    return [(start, min(start + _QUERY_BLOCK, length)) for start in range(0, length, _QUERY_BLOCK)]


def drop(x: Tensor, probability: float) -> Tensor:
    """Dropout (Srivastava et al. 2014), without the cost of a module call where there is none to do."""
    return F.dropout(x, probability) if probability else x
