"""Muon: momentum whose every direction moves a matrix equally far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fundamentallm.devices import resolve_precision
from fundamentallm.training.base_optimizer import Optimizer, with_gradient

# The quintic a·x + b·x³ + c·x⁵ with the steepest slope at zero whose iterates stay near 1 (Jordan 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# In bfloat16 the rounding of XXᵀ adds up with every step taken on it alone. From singular values between 1e-4 and 1,
# five end with some at 4; three, then two from a fresh XXᵀ, end where five on X itself do, between 0.05 and 1.2.
_STEPS_ON_ROUNDED_GRAM = 3


def orthogonalize(matrices: Tensor, *, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring all singular values of each matrix near 1 (between 0.7 and 1.2), keeping its singular vectors.

    Newton–Schulz iteration on XXᵀ, which needs nothing but matrix products.

    Args:
        matrices: (N, R, C), N matrices of one shape.
        steps: Iterations; five suffice for singular values down to a thousandth of the norm.
        dtype: Arithmetic of the products; bfloat16 is precise enough.

    Returns:
        (N, R, C) in ``dtype``.

    Source: Keller Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT  # XXᵀ is then the smaller of the two products
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if x.size(-1) >= 1.5 * x.size(-2):
        at_once = steps if dtype == torch.float32 else _STEPS_ON_ROUNDED_GRAM
        for first in range(0, steps, at_once):
            x = _iterate_on_gram(x, min(at_once, steps - first))
    else:
        for _ in range(steps):
            gram = x @ x.mT
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b·G + c·G²
            x = torch.baddbmm(x, polynomial, x, beta=a)  # a·X + (b·G + c·G²)·X
    return x.mT if tall else x


def _iterate_on_gram(x: Tensor, steps: int) -> Tensor:
    """The same iteration on wide matrices (N, R, C), with two products of their length instead of two a step.

    X becomes P·X with P = a·I + b·G + c·G², so G = XXᵀ becomes P·G·P, and X is multiplied once, at the end, with the
    product of all P. Measured for six 256 × 1344 matrices: in float32 166 → 79 ms, equal to 7e-7.
    """
    a, b, c = _NEWTON_SCHULZ
    gram = x @ x.mT
    product: Tensor | None = None
    for step in range(steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ (polynomial @ gram)
    return x if product is None else product @ x


class Muon(Optimizer):
    """Momentum, orthogonalized: every direction of a weight matrix moves equally far.

    Each update is the Nesterov momentum of the gradient with its singular values set to about 1, times
    √max(1, rows/columns), so that layers of all shapes change their outputs alike. Weight decay is decoupled.
    Matrices of one shape are orthogonalized together, as one batch.

    Args:
        matrices: Two-dimensional parameters.
        lr: Learning rate; the spectral norm of a step.
        momentum: Of the exponential moving average of gradients.
        weight_decay: Per step a matrix shrinks by the factor ``1 - lr · weight_decay``.

    Source: Keller Jordan et al. 2024; decoupled decay as in Loshchilov & Hutter 2019.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__([{"params": list(matrices), "weight_decay": weight_decay}], lr=lr, momentum=momentum)
        assert all(p.ndim == 2 for group in self.param_groups for p in group["params"]), "Muon takes matrices only"

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in with_gradient(group):
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group)

    def _update(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        weights: list[Tensor] = list(matrices)
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momenta = self.averages("momentum", matrices)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
        directions = orthogonalize(torch.stack(nesterov), dtype=_arithmetic(matrices[0].device))  # (N, R, C)
        rows, columns = matrices[0].shape
        directions = directions.float() * (-group["lr"] * max(1.0, rows / columns) ** 0.5)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(directions.unbind()))


def _arithmetic(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if resolve_precision("auto", device) == "bf16" else torch.float32
