"""What all optimizers share: groups of parameters, what is remembered of each, and saving both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Group = dict[str, Any]


class Optimizer(ABC):
    """Parameters in groups, each group with its own settings, and what is remembered of every parameter.

    The attributes and the state's form are those of ``torch.optim.Optimizer``, so whatever works on one of those
    (a gradient scaler, a tool that reads checkpoints) works here.

    Args:
        groups: Each with ``params`` and any settings of its own.
        settings: Of every group that does not say otherwise; ``lr`` among them.
    """

    def __init__(self, groups: Sequence[Group], **settings: Any) -> None:
        self.param_groups: list[Group] = [settings | group for group in groups]
        self.state: dict[nn.Parameter, dict[str, Any]] = {}

    @abstractmethod
    def step(self) -> None:
        """Update every parameter that has a gradient."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients.

        Args:
            set_to_none: The next backward pass then writes its own. Otherwise it adds to zeros, in the same memory.
        """
        if set_to_none:
            for parameter in self._parameters():
                parameter.grad = None
        else:
            torch._foreach_zero_([p.grad for p in self._parameters() if p.grad is not None])

    def averages(self, name: str, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """One running average of each parameter's shape, zero at first."""
        states = [self.state.setdefault(parameter, {}) for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if name not in state:
                state[name] = torch.zeros_like(parameter)
        return [state[name] for state in states]

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors only; parameters are numbered in the order of the groups."""
        numbers = {parameter: number for number, parameter in enumerate(self._parameters())}
        groups = [group | {"params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": {numbers[p]: dict(state) for p, state in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            ValueError: It belongs to other parameters.
        """
        parameters = self._parameters()
        if [len(group["params"]) for group in saved["param_groups"]] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("the optimizer has other groups of parameters")
        state = {parameters[number]: _on_device_of(parameters[number], s) for number, s in saved["state"].items()}
        for group, values in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in values.items() if name != "params"})
        self.state = state

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def with_gradient(group: Group) -> list[nn.Parameter]:
    """The parameters of a group that the last backward pass reached."""
    return [parameter for parameter in group["params"] if parameter.grad is not None]


def _on_device_of(parameter: nn.Parameter, state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to(parameter.device) if isinstance(value, Tensor) else value for name, value in state.items()}
