"""SGD on the weights of one path: what a step costs does not grow with the candidates."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from search_core.nn.supernet import Supernet
from search_core.train import WeightRecipe, set_rate


class PathSGD:
    """Steps of `torch.optim.SGD` that look at the weights of the path and at no others.

    The same, weight for weight and moment for moment, as SGD on all weights of the supernet
    where those off the path have no gradient: it passes them over, and neither decays them nor
    lets their momentum run. But it asks every one of them, and so does clearing the gradients.

    Args:
        recipe: of the optimiser.
        supernet: whose operations are not replaced afterwards.
    """

    def __init__(self, recipe: WeightRecipe, supernet: Supernet) -> None:
        self._recipe, self._supernet = recipe, supernet
        self._sgd = recipe.optimizer(supernet)
        group_of = {p: g for g, group in enumerate(self._sgd.param_groups) for p in group["params"]}
        self._parameters: dict[nn.Module, list[list[nn.Parameter]]] = {}
        for candidates in supernet.layers:
            assert isinstance(candidates, nn.ModuleList)
            for operation in candidates:
                of_operation: list[list[nn.Parameter]] = [[] for _ in self._sgd.param_groups]
                for parameter in operation.parameters():
                    of_operation[group_of[parameter]].append(parameter)
                self._parameters[operation] = of_operation
        self._without_momenta = set(self._parameters) if recipe.momentum else set()

    def step(self, choices: Sequence[int], rate: float) -> None:
        """Move the weights of a path by their gradients, and clear these.

        Args:
            choices: of the path, as `Supernet.forward` takes them.
            rate: learning rate of this step.
        """
        groups = self._sgd.param_groups
        everything = [group["params"] for group in groups]
        set_rate(self._sgd, rate)
        for group in groups:
            group["params"] = []
        for operation in self._supernet.operations(choices):
            if operation in self._without_momenta:
                self._make_momenta(operation)
            for group, parameters in zip(groups, self._parameters[operation], strict=True):
                group["params"] += parameters
        try:
            self._sgd.step()
            for group in groups:
                for parameter in group["params"]:
                    parameter.grad = None
        finally:
            for group, parameters in zip(groups, everything, strict=True):
                group["params"] = parameters

    def _make_momenta(self, operation: nn.Module) -> None:
        """Zero momenta for weights that learn for the first time.

        The fused step makes its own only where none of the weights has any; the first update
        is the same, ``0 + gradient``.
        """
        state, complete = self._sgd.state, True
        for parameter in operation.parameters():
            if parameter.grad is None:
                complete = False
            elif "momentum_buffer" not in state[parameter]:
                state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        if complete:
            self._without_momenta.remove(operation)

    def state_dict(self) -> dict[str, Any]:
        """That of `torch.optim.SGD` on all weights of the supernet."""
        return self._sgd.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s answer, of which nothing is kept."""
        self._sgd.load_state_dict(copy.deepcopy(dict(state)))
        self._without_momenta = set(self._parameters) if self._recipe.momentum else set()
