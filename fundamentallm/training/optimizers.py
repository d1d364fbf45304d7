"""From gradients to weights: stochastic gradient descent, Adam, AdamW, and which parameters go to which optimizer.

Written out here rather than taken from ``torch.optim``, to be read, and because its first use loads the compiler
(``torch._dynamo``), which costs more than a second at every start. All of a group's tensors are updated together by
``torch._foreach_…`` operations: one call for all of them instead of one for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fundamentallm.config import TrainingConfig
from fundamentallm.models import BaseModel
from fundamentallm.training.base_optimizer import Group, Optimizer, with_gradient
from fundamentallm.training.muon import Muon


class AdamW(Optimizer):
    """Each weight moves by the running mean of its gradients, divided by the root of their running mean square.

    Both averages begin at zero and are corrected for it. Weight decay is decoupled: it shrinks a weight by
    ``lr · weight_decay`` whatever its gradient is.

    Args:
        groups: See :class:`Optimizer`; a group may have its own ``weight_decay``.
        lr: Learning rate; about the most that a weight moves in a step.
        betas: Memory of the two averages.
        eps: Keeps the quotient finite.
        weight_decay: See above.

    Source: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2.
    """

    decoupled = True

    def __init__(
        self,
        groups: Sequence[Group],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self) -> None:
        """See :meth:`Optimizer.step`."""
        for group in self.param_groups:
            parameters = with_gradient(group)
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: Group) -> None:
        weights: list[Tensor] = list(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        if decay and self.decoupled:
            torch._foreach_mul_(weights, 1 - lr * decay)
        elif decay:
            gradients = list(torch._foreach_add(gradients, weights, alpha=decay))
        means, squares = self.averages("exp_avg", parameters), self.averages("exp_avg_sq", parameters)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        steps = [self._count(parameter) for parameter in parameters]
        deviations = torch._foreach_sqrt(squares)
        torch._foreach_div_(deviations, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(deviations, group["eps"])
        torch._foreach_addcdiv_(weights, means, deviations, [-lr / (1 - beta1**step) for step in steps])

    def _count(self, parameter: nn.Parameter) -> int:
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        return int(state["step"])


class Adam(AdamW):
    """Adam with weight decay as part of the gradient, as first published; Kingma & Ba 2015."""

    decoupled = False


class SGD(Optimizer):
    """Stochastic gradient descent with Nesterov momentum, and weight decay as part of the gradient.

    Args:
        groups: See :class:`Optimizer`; a group may have its own ``weight_decay``.
        lr: Learning rate.
        momentum: Share of the last step's velocity that is kept.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
    """

    def __init__(self, groups: Sequence[Group], lr: float, *, momentum: float = 0.9) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, weight_decay=0.0)

    @torch.no_grad()
    def step(self) -> None:
        """See :meth:`Optimizer.step`."""
        for group in self.param_groups:
            parameters = with_gradient(group)
            if not parameters:
                continue
            weights: list[Tensor] = list(parameters)
            gradients = [p.grad for p in parameters if p.grad is not None]
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
            velocities = self.averages("momentum_buffer", parameters)
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, gradients)
            torch._foreach_add_(gradients, velocities, alpha=group["momentum"])
            torch._foreach_add_(weights, gradients, alpha=-group["lr"])


def build_optimizers(model: BaseModel, config: TrainingConfig) -> list[Optimizer]:
    """The optimizers that together update every parameter of ``model`` once per step.

    With ``muon`` the matrices inside the blocks are Muon's and everything else (embedding, output layer, gains) is
    AdamW's without decay. Otherwise one optimizer has all, with weight decay on matrices only. Each parameter group
    keeps its peak learning rate as ``initial_lr``, which schedules multiply.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer != "muon":
        return [_remember_peak(_single_optimizer(parameters, config))]
    matrices = model.muon_matrices()
    chosen = {id(matrix) for matrix in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    optimizers: list[Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, config.muon_learning_rate, weight_decay=config.weight_decay))
    if rest:
        # Faster averages than AdamW's alone: under Muon the features change quickly (modded-nanogpt's choice).
        optimizers.append(AdamW([{"params": rest}], config.learning_rate, betas=(0.8, 0.95)))
    return [_remember_peak(optimizer) for optimizer in optimizers]


def _single_optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return AdamW(groups, config.learning_rate)
    if config.optimizer == "adam":
        return Adam(groups, config.learning_rate)
    return SGD(groups, config.learning_rate)


def _remember_peak(optimizer: Optimizer) -> Optimizer:
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
