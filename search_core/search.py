"""The search: one loop from random weights to probabilities over architectures."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter

import torch

from search_core.checkpoints import Checkpoint
from search_core.constraint import Constraint, Constraints, Reward
from search_core.data.dataset import Batch, Dataset
from search_core.decode import decode, k_best
from search_core.errors import (
    BudgetUnreachableError,
    NonFiniteLossError,
    SearchInterrupted,
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
from search_core.freeze import Freezer
from search_core.health import Health, discretisation_gap
from search_core.memory import Rehearsal, explain_out_of_memory
from search_core.nn.supernet import ALL, Supernet, batch_statistics_only
from search_core.randomness import stream
from search_core.space.space import Architecture, SearchSpace
from search_core.train import WeightRecipe, all_finite, fingerprint, set_rate


@dataclass(frozen=True)
class SearchConfig:
    """Everything that decides a search besides space, data and constraints.

    Attributes:
        recipe: how weights are trained, over the search and the child's phase together.
        search_steps: after how many of them the architecture is decided (DSNAS searches 80
            of 240 epochs).
        warmup_steps: first steps that train weights only, on paths drawn from the start.
        largest_share: where the probabilities start: this much on the candidate of each slot
            with the most weights, the rest on the others alike. Young weights flatter whatever
            disturbs them least, so a search of a cell that starts from equal parts falls to
            few operations; one that starts from the largest network asks what can be changed
            in it. None starts from equal parts, as in the papers.
        operation_warmup: during the warm-up a slot runs all of its operations, averaged, with
            a probability that falls linearly from 1 to 0 (TuNAS).
        estimator, estimator_options: of the gradient in the logits, by name.
        held_out_images: training images that only the logits see, class-balanced; asked for
            by the estimators that do not train weights and logits on one batch.
        alpha_every: weight steps for each step of the logits (ProxylessNAS: 5).
        alpha_learning_rate: of Adam on the logits. The published 1e-3 suits 100,000 steps; a
            search of hundreds needs more.
        alpha_betas: of the same; None takes those published with the estimator.
        temperature: (first, last) price of certainty in units of the loss: the divergence
            ``tau sum_k p_k ln(p_k / start_k)`` of every slot is added, with tau falling
            geometrically, so that p stays near ``start exp(-f / tau)`` and nothing is decided
            while weights are young. None adds nothing, as in the papers.
        freeze_threshold: 0.3, from the DSNAS code.
        max_rollbacks: how often a loss that is not finite sends the search back to its last
            checkpoint, at half the rate, before it is given up.
    """

    recipe: WeightRecipe
    search_steps: int
    warmup_steps: int
    seed: int = 0
    largest_share: float | None = None
    operation_warmup: bool = False
    estimator: str = "dsnas"
    estimator_options: Mapping[str, float] = field(default_factory=dict)
    held_out_images: int = 0
    alpha_every: int = 1
    alpha_learning_rate: float = 0.02
    alpha_betas: tuple[float, float] | None = None
    temperature: tuple[float, float] | None = None
    freeze_threshold: float = 0.3
    max_rollbacks: int = 3


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

    def decide(self, constraints: Sequence[Constraint] = ()) -> Architecture:
        """The most probable architecture within every budget; frozen slots stay if they can.

        Raises:
            BudgetUnreachableError: no architecture of the space keeps the budgets.
        """
        problem = Constraints(constraints).knapsack()
        space, utilities = self.supernet.space, self._utilities()
        held = [
            [u if self.frozen.get(slot, k) == k else float("-inf") for k, u in enumerate(row)]
            for slot, row in enumerate(utilities)
        ]
        try:
            return space.architecture(decode(held, *problem))
        except BudgetUnreachableError:
            return space.architecture(decode(utilities, *problem))

    def decide_best(
        self, k: int, constraints: Sequence[Constraint] = ()
    ) -> tuple[Architecture, ...]:
        """The `k` most probable architectures within every budget, most probable first.

        Raises:
            BudgetUnreachableError: as `decide`.
        """
        problem = Constraints(constraints).knapsack()
        best = k_best(self._utilities(), *problem, k=k)
        return tuple(self.supernet.space.architecture(choices) for choices in best)

    def _utilities(self) -> list[list[float]]:
        slots = self.supernet.space.slots
        rows = self.log_probabilities.tolist()
        return [row[: len(slot.candidates)] for row, slot in zip(rows, slots, strict=True)]


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
) -> SearchResult:
    """Search `space` on `data` for the best architecture that keeps every budget.

    Args:
        device: computes and holds the images.
        report: hears progress and a checkpoint after every epoch.
        should_stop: asked after every step.
        resume: a checkpoint of this very search; the run goes on as if never stopped. Only a
            later rollback may differ: it goes back to `resume` at the furthest, where the
            unbroken run would go back to the epoch's start.

    Raises:
        BudgetUnreachableError: before any training: no architecture keeps some budget.
        SearchInterrupted: `should_stop` said so; a checkpoint was reported just before.
        NonFiniteLossError: the loss is not a number any more, however low the rate.
        OutOfMemoryError: a step does not fit; it names a batch size that does.
        CheckpointError: `resume` belongs to another search.
        DatasetError: before any training: a batch is larger than the images it is drawn from.
        UnknownEstimatorError: no estimator has that name.
    """
    # set up: weights, logits, constraints
    recipe, seed = config.recipe, config.seed
    estimator = _estimator(config, constraints)
    prices = Constraints(constraints)
    prices.check_reachable(space)
    identity = fingerprint(
        space.digest, asdict(config), data.digest, asdict(data.augmentation), prices.describe()
    )
    data, held_out = data.to(device), None
    if not estimator.trains_weights:
        data, held_out = data.split(config.held_out_images or data.n_train // 10, seed=0)
        held_out.steps_per_epoch(recipe.batch_size)  # raises now rather than after the warm-up
    supernet = Supernet(space, stream(seed, "weights")).to(device)
    absent = torch.ones(len(space.slots), space.n_candidates, dtype=torch.bool)
    for slot, decision in enumerate(space.slots):
        absent[slot, : len(decision.candidates)] = False
    start = _start(config, space, absent)  # (n_slots, n_candidates)
    logits = (start / start.amax(dim=1, keepdim=True)).log()  # 0 at the likeliest
    logits = logits.masked_fill(absent, 0.0).requires_grad_()
    freezer = Freezer(config.freeze_threshold)
    health = Health(space)
    weight_optimizer = recipe.optimizer(supernet)
    alpha_optimizer = torch.optim.Adam(
        [logits],
        lr=config.alpha_learning_rate,
        betas=config.alpha_betas or estimator.alpha_betas,
    )
    step, rollbacks = 0, 0

    # all state there is; every random draw is a function of (seed, step)
    def checkpoint() -> Checkpoint:
        state = {
            "supernet": supernet.state_dict(),
            "weight_optimizer": weight_optimizer.state_dict(),
            "alpha_optimizer": alpha_optimizer.state_dict(),
            "estimator": estimator.state_dict(),
            "constraints": prices.state_dict(),
            "freezer": freezer.state_dict(),
            "health": health.state_dict(),
            "logits": logits.detach(),
            "rollbacks": rollbacks,
        }
        return Checkpoint("search", step, identity, state)

    def restore(saved: Checkpoint) -> int:
        supernet.load_state_dict(saved.state["supernet"])
        weight_optimizer.load_state_dict(copy.deepcopy(saved.state["weight_optimizer"]))
        alpha_optimizer.load_state_dict(copy.deepcopy(saved.state["alpha_optimizer"]))
        estimator.load_state_dict(saved.state["estimator"])
        prices.load_state_dict(saved.state["constraints"])
        freezer.load_state_dict(saved.state["freezer"])
        health.load_state_dict(saved.state["health"])
        logits.data.copy_(saved.state["logits"])
        return saved.step

    if resume is not None:
        resume.expect("search", identity)
        step, rollbacks = restore(resume), int(resume.state["rollbacks"])
    last_good = copy.deepcopy(checkpoint())

    def probabilities() -> torch.Tensor:
        return freezer.apply(logits.masked_fill(absent, -torch.inf).softmax(dim=1))

    def priced(estimate: Estimate, p: torch.Tensor) -> Estimate:
        alpha_optimizer.zero_grad()
        scale, penalty = prices.objective(estimate.loss, p)
        penalty = penalty + _certainty_price(config, p, start, step)
        if penalty.requires_grad:
            penalty.backward()  # type: ignore[no-untyped-call]
        gradient = scale * estimate.gradient
        if logits.grad is not None:
            gradient = gradient + logits.grad
        if estimate.moves is not None:
            gradient = gradient * estimate.moves
        return replace(estimate, gradient=freezer.mask(gradient))

    def move_logits(estimate: Estimate) -> None:
        logits.grad = estimate.gradient
        before = logits.detach().clone()
        with freezer.holding(alpha_optimizer, logits):
            alpha_optimizer.step()
            logits.data.copy_(estimator.settle(before, logits.detach()))

    epoch_steps = data.steps_per_epoch(recipe.batch_size)
    rehearsal = Rehearsal(supernet, estimator, data, together=config.operation_warmup)
    started, first_step = perf_counter(), step
    supernet.train()
    while step < config.search_steps:
        p = probabilities()  # (n_slots, n_candidates)
        searching = step >= config.warmup_steps
        progress = step / config.search_steps
        estimate = None
        with explain_out_of_memory(recipe.batch_size, rehearsal):
            # weights: one path, one forward, one backward
            batch = data.training_batch(seed, step, recipe.batch_size)
            weight_optimizer.zero_grad()
            if searching and estimator.trains_weights:  # and the logits from the same batch
                estimate = estimator.estimate(
                    supernet,
                    p.detach(),
                    batch,
                    recipe.label_smoothing,
                    stream(seed, "path", step),
                    progress=progress,
                )
                loss = estimate.loss
            else:
                path = _weight_path(config, p.detach(), step)
                loss = _backward(supernet, path, batch, recipe.label_smoothing)
            set_rate(weight_optimizer, recipe.rate_at(step) * 0.5**rollbacks)
            weight_optimizer.step()

            # logits of a two-level method: held-out images, plain cross-entropy
            if searching and held_out is not None and step % config.alpha_every == 0:
                estimate = estimator.estimate(
                    supernet,
                    p.detach(),
                    held_out.plain_batch(seed, step // config.alpha_every, recipe.batch_size),
                    0.0,
                    stream(seed, "alpha", step),
                    progress=progress,
                    objective=prices.objective_of(space) if prices.needs_reward else None,
                )
        if estimate is not None:
            estimate = priced(estimate, p)

        # anything that is not finite: back to the last checkpoint, at half the rate
        ends = (step + 1) % epoch_steps == 0 or step + 1 == config.search_steps
        trouble = _trouble(loss, estimate, supernet if ends else None)
        if trouble is not None:
            rollbacks += 1
            if rollbacks > config.max_rollbacks:
                raise NonFiniteLossError(
                    f"{trouble} at step {step}, after {config.max_rollbacks} rollbacks "
                    f"at ever lower rates; lower the learning rate of {recipe.learning_rate:g}"
                )
            report(Notice("rollback", f"{trouble} at step {step}; back to {last_good.step}"))
            step = restore(last_good)
            continue
        if estimate is not None:
            move_logits(estimate)
            health.observe(estimate)
        step += 1

        # once an epoch: freeze, price, report, checkpoint
        if ends:
            if step > config.warmup_steps:
                freezer.update(probabilities().detach(), step)
            p = probabilities().detach()
            current = space.architecture(p.argmax(dim=1).tolist())
            if step > config.warmup_steps:
                prices.update(current)
            for notice in health.end_epoch(p):
                report(notice)
            metrics = {
                "train_loss": loss,
                "frozen_slots": float(len(freezer.frozen)),
                **health.metrics(),
                **prices.metrics(p, current),
            }
            left = remaining_seconds(started, first_step, step, config.search_steps)
            report(Progress("searching", step, config.search_steps, metrics, left))
            last_good = copy.deepcopy(checkpoint())
            report(CheckpointReady(last_good))
        if should_stop():
            report(CheckpointReady(checkpoint() if all_finite(supernet) else last_good))
            raise SearchInterrupted(f"stopped after search step {step}")

    log_probabilities = logits.detach().masked_fill(absent, -torch.inf).log_softmax(dim=1)
    p = probabilities().detach()
    freezer.finish(p)  # the deadline
    verdict = health.verdict(p)
    summary: dict[str, object] = {
        "freezing": freezer.report(len(space.slots)),
        "health": health.metrics(),
        "rollbacks": rollbacks,
        "collapse": None if verdict is None else asdict(verdict),
        "discretisation_gap": _gap(supernet, data, p, config, step),
    }
    return SearchResult(supernet, p, log_probabilities, dict(freezer.frozen), step, summary)


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


def _certainty_price(
    config: SearchConfig, p: torch.Tensor, start: torch.Tensor, step: int
) -> torch.Tensor | float:
    if config.temperature is None:
        return 0.0
    first, last = config.temperature
    done = (step - config.warmup_steps) / max(1, config.search_steps - config.warmup_steps)
    ratio = p.clamp_min(1e-300) / start.clamp_min(1e-300)
    price: float = first * (last / first) ** done
    return price * (p * ratio.log()).sum()


def _backward(
    supernet: Supernet, path: tuple[int, ...], batch: Batch, label_smoothing: float
) -> float:
    """The loss of `path`; the gradients of its weights are left in ``.grad``."""
    loss = batch.loss(supernet(batch.images, path), label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def _trouble(loss: float, estimate: Estimate | None, supernet: Supernet | None) -> str | None:
    """What is not finite, if anything is."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if estimate is not None and not math.isfinite(estimate.loss):
        return f"the loss of held-out images is {estimate.loss}"
    if estimate is not None and not bool(estimate.gradient.isfinite().all()):
        return "the gradient of the logits is not finite"
    if supernet is not None and not all_finite(supernet):
        return "a weight is not finite"
    return None


def _weight_path(config: SearchConfig, p: torch.Tensor, step: int) -> tuple[int, ...]:
    """The path of a step that trains weights only; `ALL` where a slot runs every candidate."""
    generator = stream(config.seed, "path", step)
    path = sample_path(p, generator)
    if step >= config.warmup_steps or not config.operation_warmup:
        return path
    together = torch.rand(len(path), generator=generator) < 1.0 - step / config.warmup_steps
    return tuple(ALL if t else k for t, k in zip(together.tolist(), path, strict=True))
