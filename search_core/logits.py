"""The logits of a search and what moves them: gradient, budgets, certainty, freezing."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from search_core.config import SearchConfig
from search_core.constraint import Constraints
from search_core.estimators.base import Estimate, Estimator
from search_core.freeze import Freezer
from search_core.space.space import SearchSpace


class Logits:
    """One row of logits a slot, on the CPU in float64, and Adam on them.

    Attributes:
        values: (n_slots, n_candidates), 0 at the likeliest candidate of the start; absent
            candidates have a logit that nothing reads.
        freezer: which slots are decided.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: SearchConfig,
        estimator: Estimator,
        prices: Constraints,
    ) -> None:
        self._config, self._estimator, self._prices = config, estimator, prices
        self._absent = torch.ones(len(space.slots), space.n_candidates, dtype=torch.bool)
        for slot, decision in enumerate(space.slots):
            self._absent[slot, : len(decision.candidates)] = False
        self._start = _start(config, space, self._absent)
        values = (self._start / self._start.amax(dim=1, keepdim=True)).log()
        self.values = values.masked_fill(self._absent, 0.0).requires_grad_()
        self.freezer = Freezer(config.freeze_threshold)
        self.optimizer = torch.optim.Adam(
            [self.values],
            lr=config.alpha_learning_rate,
            betas=config.alpha_betas or estimator.alpha_betas,
            fused=True,
        )
        self._detached: torch.Tensor | None = None

    @property
    def probabilities(self) -> torch.Tensor:
        """(n_slots, n_candidates) without a gradient; rows of decided slots are one-hot."""
        if self._detached is None:  # between two moves they stay what they are
            self._detached = self._differentiable().detach()
        return self._detached

    @property
    def log_probabilities(self) -> torch.Tensor:
        """Of the logits themselves, whatever is decided; -inf at absent candidates."""
        return self.values.detach().masked_fill(self._absent, -torch.inf).log_softmax(dim=1)

    def priced(self, estimate: Estimate, step: int) -> Estimate:
        """`estimate` with the gradient of the whole objective in the logits."""
        p = self._differentiable()
        scale, penalty = self._prices.objective(estimate.loss, p)
        penalty = penalty + self._certainty_price(p, step)
        gradient = scale * estimate.gradient
        if penalty.requires_grad:
            (of_penalty,) = torch.autograd.grad(penalty, self.values)
            gradient = gradient + of_penalty
        if estimate.moves is not None:
            gradient = gradient * estimate.moves
        return replace(estimate, gradient=self.freezer.mask(gradient))

    def move(self, estimate: Estimate) -> None:
        """One step of the optimiser down the gradient of a priced estimate."""
        self.values.grad = estimate.gradient
        before = self.values.detach().clone()
        with self.freezer.holding(self.optimizer, self.values):
            self.optimizer.step()
            after = self.values.detach()
            settled = self._estimator.settle(before, after)
            if settled is not after:
                after.copy_(settled)
        self.values.grad = self._detached = None

    def freeze(self, step: int) -> None:
        """Decide every slot whose best candidate leads by the threshold."""
        self.freezer.update(self.probabilities, step)
        self._detached = None

    def finish(self) -> None:
        """The deadline: decide every slot that is left for its best candidate."""
        self.freezer.finish(self.probabilities)

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint needs of them."""
        return {
            "logits": self.values.detach(),
            "alpha_optimizer": self.optimizer.state_dict(),
            "freezer": self.freezer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s answer, of which nothing is kept."""
        self.values.data.copy_(state["logits"])
        self.optimizer.load_state_dict(copy.deepcopy(state["alpha_optimizer"]))
        self.freezer.load_state_dict(state["freezer"])
        self._detached = None

    def _differentiable(self) -> torch.Tensor:
        return self.freezer.apply(self.values.masked_fill(self._absent, -torch.inf).softmax(dim=1))

    def _certainty_price(self, p: torch.Tensor, step: int) -> torch.Tensor | float:
        config = self._config
        if config.temperature is None:
            return 0.0
        first, last = config.temperature
        done = (step - config.warmup_steps) / max(1, config.search_steps - config.warmup_steps)
        ratio = p.clamp_min(1e-300) / self._start.clamp_min(1e-300)
        price: float = first * (last / first) ** done
        return price * (p * ratio.log()).sum()


def _start(config: SearchConfig, space: SearchSpace, absent: torch.Tensor) -> torch.Tensor:
    """The probabilities that the search starts from."""
    if config.largest_share is None:
        present = (~absent).double()
        return present / present.sum(dim=1, keepdim=True)
    _, weights = space.slot_costs(lambda block: block.parameters)
    start = torch.zeros(absent.shape, dtype=torch.float64)
    for slot, row in enumerate(weights):
        others = (1.0 - config.largest_share) / max(1, len(row) - 1)
        start[slot, : len(row)] = others
        start[slot, row.index(max(row))] = 1.0 - others * (len(row) - 1)
        if config.largest_share - others >= config.freeze_threshold and len(row) > 1:
            raise ValueError(
                f"largest_share {config.largest_share:g} leads by more than freeze_threshold "
                f"{config.freeze_threshold:g} from the start: nothing would be searched"
            )
    return start
