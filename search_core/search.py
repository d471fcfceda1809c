"""The search: one loop from random weights to probabilities over architectures."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter

import torch

from search_core.checkpoints import Checkpoint, KeptCheckpoint
from search_core.config import SearchConfig
from search_core.constraint import Constraint, Constraints, Reward
from search_core.costs import DifferentiableCost, NearlySeparableCost, SeparableCost
from search_core.data.dataset import Dataset
from search_core.errors import (
    BudgetUnreachableError,
    CheckpointError,
    NonFiniteLossError,
    SearchInterrupted,
    SeveredError,
    UnknownEstimatorError,
)
from search_core.estimators.base import Estimate, Estimator, sample_path
from search_core.estimators.presets import ESTIMATORS
from search_core.events import (
    CheckpointReady,
    Notice,
    Progress,
    Report,
    ShouldStop,
    ignore,
    never,
    remaining_seconds,
)
from search_core.health import Health, discretisation_gap
from search_core.logits import Logits
from search_core.losses import Losses
from search_core.memory import Rehearsal, explain_out_of_memory
from search_core.nn.batch_norm import batch_statistics_only
from search_core.nn.supernet import Supernet
from search_core.path_sgd import PathSGD
from search_core.randomness import stream
from search_core.space.space import Architecture, SearchSpace
from search_core.steps import Steps
from search_core.train import all_finite, fingerprint


@dataclass(frozen=True)
class SearchResult:
    """What a search knows when it ends.

    Attributes:
        supernet: with trained weights; `supernet.derive(architecture)` is a child.
        probabilities: (n_slots, n_candidates) float64, frozen rows one-hot.
        log_probabilities: of the logits themselves, -inf at absent candidates.
        frozen: slot -> candidate, of the slots that froze before the deadline.
        steps: weight steps taken.
        summary: how it went: frozen slots, health, rollbacks; plain values for a report.
    """

    supernet: Supernet
    probabilities: torch.Tensor
    log_probabilities: torch.Tensor
    frozen: dict[int, int]
    steps: int
    summary: dict[str, object] = field(default_factory=dict)

    def decide(
        self, constraints: Sequence[Constraint] = (), *, at_least: float | None = None
    ) -> Architecture:
        """The most probable architecture within every budget; frozen slots stay if they can.

        Args:
            at_least: how much of the first budget is to be spent where some architecture can.
                Each candidate is then paid for what it costs, at the lowest price (a Lagrange
                multiplier, bisected) at which the best architecture spends that much; where
                none does, the answer is the one that spends most.

        Raises:
            BudgetUnreachableError: no architecture of the space keeps the budgets.
        """
        problem = Constraints(constraints)
        space, utilities = self.supernet.space, self._utilities()
        held = [
            [u if self.frozen.get(slot, k) == k else float("-inf") for k, u in enumerate(row)]
            for slot, row in enumerate(utilities)
        ]

        def best(rows: list[list[float]]) -> tuple[float, Architecture]:
            if at_least is None:
                return math.inf, problem.best(space, rows)[0]
            return _spending(problem, space, rows, constraints[0].cost, at_least)

        try:
            found = best(held)
        except (BudgetUnreachableError, SeveredError):
            return best(utilities)[1]
        if at_least is not None and found[0] < at_least:
            found = max(found, best(utilities), key=lambda pair: pair[0])
        return found[1]

    def decide_best(
        self, k: int, constraints: Sequence[Constraint] = ()
    ) -> tuple[Architecture, ...]:
        """The `k` most probable architectures within every budget, most probable first.

        Raises:
            BudgetUnreachableError: as `decide`.
        """
        return tuple(Constraints(constraints).best(self.supernet.space, self._utilities(), k))

    def _utilities(self) -> list[list[float]]:
        slots = self.supernet.space.slots
        rows = self.log_probabilities.tolist()
        return [row[: len(slot.candidates)] for row, slot in zip(rows, slots, strict=True)]


_PRICE_STEPS = 12
"""Of raising the price of unspent budget fourfold; 12 make it all that counts."""

_BISECTIONS = 6


def _spending(
    problem: Constraints,
    space: SearchSpace,
    utilities: list[list[float]],
    cost: DifferentiableCost,
    at_least: float,
) -> tuple[float, Architecture]:
    """The best architecture that costs `at_least`, or the one that costs most, with its cost."""
    table = _table_of(cost)

    def at_price(price: float) -> tuple[float, Architecture]:
        paid = [
            [u + price * c for u, c in zip(row, costs, strict=True)]
            for row, costs in zip(utilities, table, strict=True)
        ]
        best = problem.best(space, paid)[0]
        return cost.exact(best), best

    found = at_price(0.0)
    if found[0] >= at_least:
        return found
    widest = max(max(row) - min(row) for row in table)
    if widest == 0.0:
        return found
    gain = max(_spread(row) for row in utilities)
    low, price = 0.0, 0.01 * (gain or 1.0) / widest
    for _ in range(_PRICE_STEPS):
        found = max(found, at_price(price), key=lambda pair: pair[0])
        if found[0] >= at_least:
            break
        low, price = price, 4.0 * price
    else:
        return found
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + price)
        between = at_price(middle)
        if between[0] >= at_least:
            found, price = between, middle
        else:
            low = middle
    return found


def _spread(row: list[float]) -> float:
    finite = [u for u in row if math.isfinite(u)]
    return max(finite) - min(finite)


def _table_of(cost: DifferentiableCost) -> Sequence[Sequence[float]]:
    match cost:
        case SeparableCost(table=table):
            return table
        case NearlySeparableCost(separable=near):
            return near.table
    raise TypeError("only what is nearly a sum over the slots can be spent")


@dataclass(frozen=True)
class WarmStart:
    """Another search of the same space that this one goes on from.

    Attributes:
        checkpoint: where that one stood.
        whole: go on at its step with its logits, optimisers and frozen slots, on this search's
            schedule; otherwise its weights alone are taken over, and everything else begins.
    """

    checkpoint: Checkpoint
    whole: bool = False


def search_identity(
    space: SearchSpace,
    config: SearchConfig,
    data: Dataset,
    constraints: Sequence[Constraint] = (),
    warm_start: WarmStart | None = None,
) -> str:
    """The fingerprint of a search's checkpoints: equal for searches that do the same."""
    before = (
        ()
        if warm_start is None
        else (warm_start.checkpoint.fingerprint, warm_start.checkpoint.step, warm_start.whole)
    )
    told = Constraints(constraints).describe()
    parts = (space.digest, asdict(config), data.digest, asdict(data.augmentation), told)
    return fingerprint(*parts, *before)


def finished_search(
    space: SearchSpace, config: SearchConfig, checkpoint: Checkpoint
) -> SearchResult:
    """What a search knew when it wrote its last checkpoint, without its data or its budgets.

    Raises:
        CheckpointError: the checkpoint is not of a search of this space.
    """
    if checkpoint.stage != "search":
        raise CheckpointError(f"the checkpoint is of a {checkpoint.stage} run, not of a search")
    logits = Logits(space, config, _estimator(config, ()), Constraints(()))
    supernet = Supernet(space, stream(config.seed, "weights"))
    try:
        supernet.load_state_dict(checkpoint.state["supernet"])
        logits.load_state_dict(checkpoint.state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint is not of {space.name}: {error}") from error
    p, log_probabilities = logits.probabilities, logits.log_probabilities
    logits.finish()
    frozen = dict(logits.freezer.frozen)
    return SearchResult(supernet, p, log_probabilities, frozen, checkpoint.step)


def run_search(
    space: SearchSpace,
    config: SearchConfig,
    data: Dataset,
    constraints: Sequence[Constraint] = (),
    *,
    device: torch.device | str = "cpu",
    report: Report = ignore,
    should_stop: ShouldStop = never,
    resume: Checkpoint | None = None,
    warm_start: WarmStart | None = None,
) -> SearchResult:
    """Search `space` on `data` for the best architecture that keeps every budget.

    Args:
        device: computes and holds the images.
        report: hears progress and a checkpoint after every epoch.
        should_stop: asked after every step.
        resume: a checkpoint of this very search; the run goes on as if never stopped. Only a
            later rollback may differ: it goes back to `resume` at the furthest, where the
            unbroken run would go back to the epoch's start.
        warm_start: another search to go on from; `resume`, if any, is one of this search.

    Raises:
        BudgetUnreachableError: before any training: no architecture keeps some budget.
        SearchInterrupted: `should_stop` said so; a checkpoint was reported just before.
        NonFiniteLossError: the loss is not a number any more, however low the rate.
        OutOfMemoryError: a step does not fit; it names a batch size that does.
        CheckpointError: `resume` belongs to another search, or `warm_start` to another space.
        DatasetError: before any training: a batch is larger than the images it is drawn from.
        UnknownEstimatorError: no estimator has that name.
    """
    # set up: weights, logits, constraints
    recipe, seed = config.recipe, config.seed
    estimator = _estimator(config, constraints)
    prices = Constraints(constraints)
    prices.check_reachable(space)
    identity = search_identity(space, config, data, constraints, warm_start)
    data, held_out = data.to(device), None
    if not estimator.trains_weights:
        data, held_out = data.split(config.held_out_images or data.n_train // 10, seed=0)
        held_out.steps_per_epoch(recipe.batch_size)  # raises now rather than after the warm-up
    supernet = Supernet(space, stream(seed, "weights")).to(device)
    logits = Logits(space, config, estimator, prices)
    health = Health(space)
    weights = PathSGD(recipe, supernet)
    reward = prices.objective_of(space) if prices.needs_reward else None
    steps = Steps(config, supernet, estimator, weights, reward)
    step, rollbacks = 0, 0

    # all state there is; every random draw is a function of (seed, step)
    def checkpoint() -> Checkpoint:
        state = {
            "supernet": supernet.state_dict(),
            "weight_optimizer": weights.state_dict(),
            "estimator": estimator.state_dict(),
            "constraints": prices.state_dict(),
            "health": health.state_dict(),
            "rollbacks": rollbacks,
            **logits.state_dict(),
        }
        return Checkpoint("search", step, identity, state)

    def restore(saved: Checkpoint) -> int:
        supernet.load_state_dict(saved.state["supernet"])
        weights.load_state_dict(saved.state["weight_optimizer"])
        estimator.load_state_dict(saved.state["estimator"])
        prices.load_state_dict(saved.state["constraints"])
        health.load_state_dict(saved.state["health"])
        logits.load_state_dict(saved.state)
        return saved.step

    if warm_start is not None and resume is None:
        found = finished_search(space, config, warm_start.checkpoint)
        supernet.load_state_dict(found.supernet.state_dict())
        if warm_start.whole:
            step = min(restore(warm_start.checkpoint), config.search_steps)
        report(CheckpointReady(checkpoint()))
    if resume is not None:
        resume.expect("search", identity)
        step, rollbacks = restore(resume), int(resume.state["rollbacks"])
    last_good = KeptCheckpoint(checkpoint())
    losses = Losses()  # of the weights' steps; the host does not wait for each

    epoch_steps = data.steps_per_epoch(recipe.batch_size)
    rehearsal = Rehearsal(supernet, estimator, data, together=config.operation_warmup)
    started, first_step = perf_counter(), step
    supernet.train()
    while step < config.search_steps:
        p = logits.probabilities  # (n_slots, n_candidates)
        searching = step >= config.warmup_steps
        estimate = None
        with explain_out_of_memory(recipe.batch_size, rehearsal):
            # weights: one path, one forward, one backward
            batch = data.training_batch(seed, step, recipe.batch_size)
            rate = recipe.rate_at(step) * 0.5**rollbacks
            if searching and estimator.trains_weights:  # and the logits from the same batch
                estimate = steps.train_and_search(batch, p, step, rate)
                losses.add(step, estimate.loss)
            else:
                losses.add(step, steps.train(batch, p, step, rate))

            # logits of a two-level method: held-out images, plain cross-entropy
            if searching and held_out is not None and step % config.alpha_every == 0:
                turn = step // config.alpha_every
                batch = held_out.plain_batch(seed, turn, recipe.batch_size)
                estimate = steps.search(batch, p, step)
        if estimate is not None:
            estimate = logits.priced(estimate, step)

        # anything that is not finite: back to the last checkpoint, at half the rate
        ends = (step + 1) % epoch_steps == 0 or step + 1 == config.search_steps
        trouble = _trouble(step, estimate, losses, supernet if ends else None)
        if trouble is not None:
            rollbacks += 1
            if rollbacks > config.max_rollbacks:
                raise NonFiniteLossError(
                    f"{trouble}, after {config.max_rollbacks} rollbacks "
                    f"at ever lower rates; lower the learning rate of {recipe.learning_rate:g}"
                )
            report(Notice("rollback", f"{trouble}; back to {last_good.step}"))
            step = restore(last_good.read())
            continue
        if estimate is not None:
            logits.move(estimate)
            health.observe(estimate)
        step += 1

        # once an epoch: freeze, price, report, checkpoint
        if ends:
            if step > config.warmup_steps:
                logits.freeze(step)
            p = logits.probabilities
            current = space.architecture(p.argmax(dim=1).tolist())
            if step > config.warmup_steps:
                prices.update(current)
            for notice in health.end_epoch(p):
                report(notice)
            metrics = {
                "train_loss": losses.latest,
                "frozen_slots": float(len(logits.freezer.frozen)),
                **health.metrics(),
                **prices.metrics(p, current),
            }
            left = remaining_seconds(started, first_step, step, config.search_steps)
            rows = logits.probabilities.tolist()
            report(Progress("searching", step, config.search_steps, metrics, left, rows))
            last_good = KeptCheckpoint(checkpoint())
            report(CheckpointReady(checkpoint()))
        if should_stop():
            sound = losses.first_not_finite() is None and all_finite(supernet)
            report(CheckpointReady(checkpoint() if sound else last_good.read()))
            raise SearchInterrupted(f"stopped after search step {step}")

    p, log_probabilities = logits.probabilities, logits.log_probabilities
    logits.finish()
    verdict = health.verdict(p)
    summary: dict[str, object] = {
        "freezing": logits.freezer.report(len(space.slots)),
        "health": health.metrics(),
        "rollbacks": rollbacks,
        "collapse": None if verdict is None else asdict(verdict),
        "discretisation_gap": _gap(supernet, data, p, config, step),
    }
    frozen = dict(logits.freezer.frozen)
    return SearchResult(supernet, p, log_probabilities, frozen, step, summary)


_GAP_PATHS = 8


@torch.no_grad()
def _gap(
    supernet: Supernet, data: Dataset, p: torch.Tensor, config: SearchConfig, step: int
) -> float:
    """Loss of the most probable path, less the mean of paths drawn from `p`, on one batch."""
    batch = data.plain_batch(config.seed, step, config.recipe.batch_size)
    generator = stream(config.seed, "gap", step)
    drawn = [sample_path(p, generator) for _ in range(_GAP_PATHS)]
    with batch_statistics_only(supernet):
        decided, *sampled = (
            batch.loss(supernet(batch.images, path)).item()
            for path in (tuple(p.argmax(dim=1).tolist()), *drawn)
        )
    return discretisation_gap(sum(sampled) / len(sampled), decided)


def _estimator(config: SearchConfig, constraints: Sequence[Constraint]) -> Estimator:
    if config.estimator not in ESTIMATORS:
        raise UnknownEstimatorError(
            f"no estimator is called {config.estimator!r}; known: {', '.join(sorted(ESTIMATORS))}"
        )
    rewarded = [c.name for c in constraints if isinstance(c.rule, Reward)]
    if rewarded and config.estimator != "reinforce":
        raise ValueError(
            f"the rule of {rewarded[0]} defines a reward, which only the estimator 'reinforce' "
            f"can follow; {config.estimator!r} needs a penalty"
        )
    return ESTIMATORS[config.estimator](**config.estimator_options)


def _trouble(
    step: int, estimate: Estimate | None, losses: Losses, supernet: Supernet | None
) -> str | None:
    """What is not finite, and at which step, if anything is.

    Losses of the weights are looked at when the host waits for the device anyway.
    """
    if estimate is None and supernet is None:
        return None
    bad = losses.first_not_finite()
    if bad is not None:
        return f"the loss is {bad.value} at step {bad.step}"
    if estimate is not None and not math.isfinite(estimate.loss):
        return f"the loss of held-out images is {estimate.loss} at step {step}"
    if estimate is not None and not bool(estimate.gradient.isfinite().all()):
        return f"the gradient of the logits is not finite at step {step}"
    if supernet is not None and not all_finite(supernet):
        return f"a weight is not finite at step {step}"
    return None
