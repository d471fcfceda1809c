"""The search: one loop from random weights to probabilities over architectures."""

from dataclasses import asdict, dataclass

import torch

from search_core.checkpoints import Checkpoint
from search_core.constraint import AugmentedLagrangian
from search_core.costs import DifferentiableCost, SeparableCost
from search_core.data.dataset import ImageDataset
from search_core.decode import decode
from search_core.errors import BudgetUnreachableError, SearchInterrupted
from search_core.estimators.base import Estimator
from search_core.estimators.dsnas import DSNAS
from search_core.events import CheckpointReady, Progress, Report, ShouldStop, ignore, never
from search_core.freeze import Freezer
from search_core.nn.supernet import Supernet
from search_core.randomness import stream
from search_core.space.space import Architecture, SearchSpace
from search_core.train import WeightRecipe, check_finite, fingerprint, set_rate

ESTIMATORS: dict[str, type[DSNAS]] = {DSNAS.name: DSNAS}


@dataclass(frozen=True)
class SearchConfig:
    """Everything that decides a search besides space, data and cost.

    Attributes:
        recipe: how weights are trained, over the search and the child's phase together.
        search_steps: after how many of them the architecture is decided (DSNAS searches 80
            of 240 epochs).
        warmup_steps: first steps that train weights only, on uniformly drawn paths.
        budget: upper bound on the cost, in its unit; None searches without one.
        spend_budget: pull the cost up to the budget as well as down to it. DSNAS compares an
            operation with nothing, to the advantage of cheap ones; this holds against it.
        alpha_learning_rate, alpha_betas: Adam on the logits; (0.5, 0.999) as in DSNAS. The
            published rate of 1e-3 suits 100,000 steps; a search of hundreds needs more.
        freeze_threshold: 0.3, from the DSNAS code.
        rho: curvature of the augmented Lagrangian.
    """

    recipe: WeightRecipe
    search_steps: int
    warmup_steps: int
    seed: int = 0
    estimator: str = "dsnas"
    budget: float | None = None
    spend_budget: bool = False
    alpha_learning_rate: float = 0.02
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    freeze_threshold: float = 0.3
    rho: float = 0.3


@dataclass(frozen=True)
class SearchResult:
    """What a search knows when it ends.

    Attributes:
        supernet: with trained weights; `supernet.derive(architecture)` is a child.
        probabilities: (n_slots, n_candidates) float64, frozen rows one-hot.
        log_probabilities: of the logits themselves, -inf at absent candidates.
        frozen: slot -> candidate, of the slots that froze before the deadline.
        steps: weight steps taken.
    """

    supernet: Supernet
    probabilities: torch.Tensor
    log_probabilities: torch.Tensor
    frozen: dict[int, int]
    steps: int

    def decide(self, cost: SeparableCost, budget: float | None) -> Architecture:
        """The most probable architecture within `budget`; frozen slots first stay as they are.

        Raises:
            BudgetUnreachableError: no architecture of the space is that cheap.
        """
        space = self.supernet.space
        limit = float("inf") if budget is None else budget - cost.offset
        n_candidates = [len(slot.candidates) for slot in space.slots]
        utilities = [
            row[:n] for row, n in zip(self.log_probabilities.tolist(), n_candidates, strict=True)
        ]
        held = [
            [u if self.frozen.get(slot, k) == k else float("-inf") for k, u in enumerate(row)]
            for slot, row in enumerate(utilities)
        ]
        try:
            return space.architecture(decode(held, cost.table, limit))
        except BudgetUnreachableError:
            return space.architecture(decode(utilities, cost.table, limit))


def run_search(
    space: SearchSpace,
    config: SearchConfig,
    data: ImageDataset,
    cost: DifferentiableCost,
    *,
    report: Report = ignore,
    should_stop: ShouldStop = never,
    resume: Checkpoint | None = None,
) -> SearchResult:
    """Search `space` on `data` for the best architecture whose `cost` meets the budget.

    Args:
        report: hears progress and a checkpoint after every epoch.
        should_stop: asked after every step.
        resume: a checkpoint of this very search; the run goes on as if never stopped.

    Raises:
        SearchInterrupted: `should_stop` said so; a checkpoint was reported just before.
        NonFiniteLossError: the loss is not a number any more.
        CheckpointError: `resume` belongs to another search.
    """
    # set up: weights, logits, constraint
    recipe, seed = config.recipe, config.seed
    estimator: Estimator = ESTIMATORS[config.estimator]()
    supernet = Supernet(space, stream(seed, "weights"))
    absent = torch.ones(len(space.slots), space.n_candidates, dtype=torch.bool)
    for slot, decision in enumerate(space.slots):
        absent[slot, : len(decision.candidates)] = False
    logits = torch.zeros_like(absent, dtype=torch.float64, requires_grad=True)
    constraint = (
        AugmentedLagrangian(config.budget, config.rho, equality=config.spend_budget)
        if config.budget is not None
        else None
    )
    freezer = Freezer(config.freeze_threshold)
    weight_optimizer = recipe.optimizer(supernet)
    alpha_optimizer = torch.optim.Adam(
        [logits], lr=config.alpha_learning_rate, betas=config.alpha_betas
    )
    step = 0

    # resume: all state there is; every random draw is a function of (seed, step)
    identity = fingerprint(space.digest, asdict(config), data.name)
    if resume is not None:
        resume.expect("search", identity)
        supernet.load_state_dict(resume.state["supernet"])
        weight_optimizer.load_state_dict(resume.state["weight_optimizer"])
        alpha_optimizer.load_state_dict(resume.state["alpha_optimizer"])
        estimator.load_state_dict(resume.state["estimator"])
        logits.data.copy_(resume.state["logits"])
        freezer.frozen = dict(resume.state["frozen"])
        if constraint is not None:
            constraint.multiplier = resume.state["multiplier"]
        step = resume.step

    def probabilities() -> torch.Tensor:
        return freezer.apply(logits.masked_fill(absent, -torch.inf).softmax(dim=1))

    def checkpoint() -> CheckpointReady:
        state = {
            "supernet": supernet.state_dict(),
            "weight_optimizer": weight_optimizer.state_dict(),
            "alpha_optimizer": alpha_optimizer.state_dict(),
            "estimator": estimator.state_dict(),
            "logits": logits.detach(),
            "frozen": freezer.frozen,
            "multiplier": constraint.multiplier if constraint else 0.0,
        }
        return CheckpointReady(Checkpoint("search", step, identity, state))

    epoch_steps = data.steps_per_epoch(recipe.batch_size)
    supernet.train()
    while step < config.search_steps:
        # one path, one forward, one backward: weights and logits from the same batch
        batch = data.training_batch(seed, step, recipe.batch_size)
        p = probabilities()  # (n_slots, n_candidates)
        weight_optimizer.zero_grad()
        estimate = estimator.estimate(
            supernet, p.detach(), batch, recipe.label_smoothing, stream(seed, "path", step)
        )
        check_finite(estimate.loss, step)
        set_rate(weight_optimizer, recipe.rate_at(step))
        weight_optimizer.step()

        # logits: the estimate plus the exact gradient of the expected cost
        if step >= config.warmup_steps:
            alpha_optimizer.zero_grad()
            if constraint is not None:
                constraint.penalty(cost.expected(p)).backward()  # type: ignore[no-untyped-call]
            searched = torch.ones(len(space.slots), 1, dtype=torch.float64)
            searched[list(freezer.frozen)] = 0.0
            penalty_gradient = 0.0 if logits.grad is None else logits.grad
            before = logits.detach().clone()
            logits.grad = (estimate.gradient + penalty_gradient) * searched
            alpha_optimizer.step()
            logits.data.copy_(torch.where(searched > 0, logits.data, before))
        step += 1

        # once an epoch: freeze, price, report, checkpoint
        if step % epoch_steps == 0 or step == config.search_steps:
            if step > config.warmup_steps:
                freezer.update(probabilities().detach())
            p = probabilities().detach()
            current = space.architecture(p.argmax(dim=1).tolist())
            if constraint is not None and step > config.warmup_steps:
                constraint.update(cost.exact(current))
            metrics = {
                "train_loss": estimate.loss,
                "signal": estimate.signal,
                "entropy": float(-(p * p.clamp_min(1e-300).log()).sum(dim=1).mean()),
                "frozen_slots": float(len(freezer.frozen)),
                "expected_cost": float(cost.expected(p)),
                "current_cost": cost.exact(current),
                "multiplier": constraint.multiplier if constraint else 0.0,
            }
            report(Progress("searching", step, config.search_steps, metrics))
            report(checkpoint())
        if should_stop():
            report(checkpoint())
            raise SearchInterrupted(f"stopped after search step {step}")

    log_probabilities = logits.detach().masked_fill(absent, -torch.inf).log_softmax(dim=1)
    return SearchResult(
        supernet, probabilities().detach(), log_probabilities, dict(freezer.frozen), step
    )
