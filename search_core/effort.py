"""What a search costs in time and memory, told before it starts: plain Python.

A block's time is the sum over its steps of what a call costs and what its work costs, each a
coefficient times an amount. A `MachineProfile` holds the coefficients of one machine, which
`search_core.calibration` finds by timing it; `predict` adds them up over a `SearchPlan`.

Which networks will be trained is not known beforehand. The first steps draw every candidate
alike; the decided network spends its budget, so it is taken as a draw from the distribution
that is as even as the budget allows (`spending`); a search moves from the one to the other.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from search_core.errors import ProfileDocumentError, UnknownEstimatorError
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.primitives import Primitive, Step
from search_core.space.space import SearchSpace

FORMAT = "tailor-machine-profile/1"

Work = Mapping[str, float]
"""Unit -> amount; see `UNITS`."""

Row = tuple[float, ...]

STEM_CHANNELS = 4
"""A convolution of at most so many channels is the first one: slow for what it computes."""

CONVOLUTIONS = (
    "pointwise",
    "dense",
    "stem",
    "grouped",
    "dilated",
    "depthwise3",
    "depthwise5",
    "depthwise7",
)
"""Kinds of convolution; their work is in multiply-accumulates."""

_OTHERS = {
    Primitive.BATCH_NORM: "norm",
    Primitive.RELU: "pass",
    Primitive.RELU6: "clip",
    Primitive.ADD: "pass",
    Primitive.AVG_POOL: "pool",
    Primitive.MAX_POOL: "pool",
    Primitive.GLOBAL_POOL: "linear",
    Primitive.LINEAR: "linear",
}
"""Kinds whose work is in scalars read; what is left only moves them."""

BLOCK_UNITS = (
    "convolution call",
    "convolution scalar",  # of its input
    "weight",  # of a convolution or linear step, however large the batch
    "call",
    *CONVOLUTIONS,
    *dict.fromkeys(_OTHERS.values()),
    "move",
)

UNITS: Mapping[str, tuple[str, ...]] = {
    "forward": BLOCK_UNITS,
    "unrecorded": BLOCK_UNITS,  # forward without anything kept for backward
    "inputs": BLOCK_UNITS,  # backward with respect to the input alone
    "weights": BLOCK_UNITS,  # what the gradients of the weights add to it
    "kept bytes": BLOCK_UNITS,  # what forward keeps for backward, of one image
    "step": ("call", "logits", "tensor", "scalar", "pixel"),  # of the loop, beside the network
    "epoch": ("tensor",),  # the checkpoints
}
"""Activity -> what it is paid by. Seconds a unit, but for the bytes."""

FLOAT_BYTES = 4
_JUDGING_BATCH = 256  # of accuracy and of BatchNorm's recalibration
_TEMPORARIES = 4  # values inside a block that runs
_KEPT_BYTES = 32 * 2**20  # of a value, up to which no freed block is of use to another phase
_GAP_PATHS = 9  # looked at when a search ends
_DRAWN = 64  # paths from which the idle share of a cell's layers is told


@dataclass(frozen=True)
class MachineProfile:
    """What a machine needs for training.

    Attributes:
        device: ``cpu``, or the type of the accelerator.
        name: of the processor, for people.
        threads: that torch computes with.
        coefficients: activity -> unit -> seconds, all of `UNITS`; bytes for ``kept bytes``.
        start_up_seconds: until an attempt has loaded what it needs.
        set_up_seconds: from then until it trains.
        byte_seconds: for a byte of memory used for the first time.
        base_bytes: resident before anything is trained.
        error: typical relative error of a block's predicted time when it was left out of the fit.
    """

    device: str
    name: str
    threads: int
    torch: str
    coefficients: Mapping[str, Mapping[str, float]]
    start_up_seconds: float
    set_up_seconds: float
    byte_seconds: float
    base_bytes: int
    error: float

    def price(self, activity: str, work: Work) -> float:
        """What `work` takes, in seconds (in bytes for ``kept bytes``)."""
        coefficients = self.coefficients[activity]
        return sum(coefficients[unit] * amount for unit, amount in work.items())

    def to_document(self) -> dict[str, Any]:
        """A JSON-able document; `from_document` reads it back."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "MachineProfile":
        """The profile that `to_document` wrote.

        Raises:
            ProfileDocumentError: the document is damaged or of an unknown format.
        """
        if document.get("format") != FORMAT:
            raise ProfileDocumentError(
                f"a machine profile is {FORMAT}, got {document.get('format')!r}; "
                "start a worker of this version, which makes a new one"
            )
        try:
            given = document["coefficients"]
            profile = cls(
                device=str(document["device"]),
                name=str(document["name"]),
                threads=int(document["threads"]),
                torch=str(document["torch"]),
                coefficients={
                    activity: {unit: float(given[activity][unit]) for unit in units}
                    for activity, units in UNITS.items()
                },
                start_up_seconds=float(document["start_up_seconds"]),
                set_up_seconds=float(document["set_up_seconds"]),
                byte_seconds=float(document["byte_seconds"]),
                base_bytes=int(document["base_bytes"]),
                error=float(document["error"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProfileDocumentError(f"damaged machine profile: {error!r}") from error
        if not all(math.isfinite(value) and value >= 0.0 for value in profile._numbers()):
            raise ProfileDocumentError("damaged machine profile: a number is no amount")
        return profile

    def _numbers(self) -> Iterator[float]:
        yield from (self.start_up_seconds, self.set_up_seconds, self.byte_seconds)
        yield from (self.base_bytes, self.error, self.threads)
        for coefficients in self.coefficients.values():
            yield from coefficients.values()


@dataclass(frozen=True)
class SearchPlan:
    """Everything about a search that decides what it costs.

    Attributes:
        search_steps, warmup_steps: of the search, and the first of them that train weights only.
        training_steps: of the decided network, after the search.
        baseline_steps: of the network that it is compared with; 0 without one.
        alpha_every: weight steps for each step of the logits of a two-level method.
    """

    space: SearchSpace
    n_train: int
    n_test: int
    batch_size: int
    search_steps: int
    warmup_steps: int
    training_steps: int
    baseline_steps: int = 0
    estimator: str = "dsnas"
    alpha_every: int = 1

    def epochs(self, steps: int) -> int:
        """How many epochs `steps` steps end, the last one's remainder included."""
        return -(-steps // max(1, self.n_train // self.batch_size))


@dataclass(frozen=True)
class Effort:
    """What a search is expected to cost.

    Attributes:
        seconds_by_phase: of ``starting``, and of each phase of a search.
        memory_bytes: resident at the worst moment; on an accelerator, of its memory.
        basis: ``model``, or ``history`` where earlier searches have corrected it.
        n_earlier: how many of them.
    """

    seconds_by_phase: Mapping[str, float]
    memory_bytes: int
    device: str
    threads: int
    basis: str = "model"
    n_earlier: int = 0

    @property
    def seconds(self) -> float:
        """All phases together."""
        return sum(self.seconds_by_phase.values())

    @property
    def gpu_hours(self) -> float:
        """Hours of one accelerator; 0 on a CPU."""
        return 0.0 if self.device == "cpu" else self.seconds / 3600.0

    @property
    def core_hours(self) -> float:
        """Hours of one processor core."""
        return self.seconds * self.threads / 3600.0

    def plus(self, seconds_by_phase: Mapping[str, float]) -> "Effort":
        """The same with more seconds in some phases."""
        phases = dict(self.seconds_by_phase)
        for phase, seconds in seconds_by_phase.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
        return replace(self, seconds_by_phase=phases)

    def corrected(self, factors: Mapping[str, float], n_earlier: int) -> "Effort":
        """The same with each phase multiplied by its factor, from `n_earlier` searches."""
        phases = {
            phase: seconds * factors.get(phase, 1.0)
            for phase, seconds in self.seconds_by_phase.items()
        }
        return replace(self, seconds_by_phase=phases, basis="history", n_earlier=n_earlier)


@dataclass(frozen=True)
class LogitStep:
    """What one step of the logits runs beside the weights' own forward and backward.

    Attributes:
        trains_weights: whether the weights' step serves the logits as well.
        looks: paths run forward without recording.
        every_candidate: whether every candidate off the path is run, too.
        backward: whether the path runs forward and, for its gates alone, backward once more.
    """

    trains_weights: bool = True
    looks: int = 0
    every_candidate: bool = False
    backward: bool = False


LOGIT_STEPS: Mapping[str, LogitStep] = {
    "dsnas": LogitStep(),
    "dsnas_path_integrated": LogitStep(),
    "gumbel": LogitStep(),
    "dsnas_paired": LogitStep(looks=1),
    "proxyless": LogitStep(trains_weights=False, every_candidate=True, backward=True),
    "proxyless_two_path": LogitStep(trains_weights=False, looks=1, backward=True),
    "reinforce": LogitStep(trains_weights=False, looks=8),
}
"""Every estimator of `search_core.estimators.presets`, which needs torch to be loaded."""


def predict(
    plan: SearchPlan, machine: MachineProfile, decided: Sequence[Row] | None = None
) -> Effort:
    """The effort of `plan` on `machine`.

    Args:
        decided: one row a slot, the probabilities of its candidates in the decided network
            (see `spending`); None takes every candidate alike.

    Raises:
        UnknownEstimatorError: no estimator has the plan's name.
    """
    return _Prediction(plan, machine, decided or even(plan.space)).effort()


@dataclass(frozen=True)
class StepSeconds:
    """What one step of a search takes.

    Attributes:
        weights: of the weights of a path, with the loop around it.
        logits: what moving the logits adds.
        network: forward and backward of the path alone.
    """

    weights: float
    logits: float
    network: float


def predict_step(
    plan: SearchPlan, machine: MachineProfile, probabilities: Sequence[Row] | None = None
) -> StepSeconds:
    """A step on a path drawn from `probabilities`, of every candidate alike if None."""
    rows = probabilities or even(plan.space)
    prediction = _Prediction(plan, machine, rows)
    method = _logit_step(plan.estimator)
    return StepSeconds(
        prediction.weights_step_seconds(rows),
        prediction.logits_step_seconds(method, rows),
        prediction.step_seconds(rows),
    )


def trains_weights(estimator: str) -> bool:
    """Whether a child goes on from the weights of a search with this estimator.

    Raises:
        UnknownEstimatorError: no estimator has that name.
    """
    return _logit_step(estimator).trains_weights


def even(space: SearchSpace) -> tuple[Row, ...]:
    """Every candidate of each slot as likely as any other."""
    return tuple((1.0 / len(slot.candidates),) * len(slot.candidates) for slot in space.slots)


def spending(costs: Sequence[Row], budget: float) -> tuple[Row, ...]:
    """Probabilities of each slot's candidates under which a network costs `budget` on average.

    ``p_k ~ exp(-lam t_k)``, the distribution of greatest entropy at that mean, by bisection
    on lam. A budget out of reach gives the cheapest or the dearest network.

    Args:
        costs: one row a slot, one entry a candidate.
        budget: for the slots alone, in the unit of `costs`.
    """
    span = max(max(row) - min(row) for row in costs)
    if span <= 0.0:
        return _tilted(costs, 0.0)
    low, high = -60.0 / span, 60.0 / span  # the mean cost falls as lam rises
    for _ in range(60):
        middle = 0.5 * (low + high)
        rows = _tilted(costs, middle)
        if (
            sum(
                p * t
                for row, ts in zip(rows, costs, strict=True)
                for p, t in zip(row, ts, strict=True)
            )
            > budget
        ):
            low = middle
        else:
            high = middle
    return _tilted(costs, 0.5 * (low + high))


def _tilted(costs: Sequence[Row], lam: float) -> tuple[Row, ...]:
    rows = []
    for row in costs:
        exponents = [-lam * cost for cost in row]
        weights = [math.exp(exponent - max(exponents)) for exponent in exponents]
        rows.append(tuple(weight / sum(weights) for weight in weights))
    return tuple(rows)


def block_work(block: BlockSpec, images: int, *, shortcut: bool = True) -> dict[str, float]:
    """What running `block` on a batch takes, by unit; with its shortcut unless told otherwise."""
    work: defaultdict[str, float] = defaultdict(float)
    for step in block.steps:
        unit, amount = _unit(step)
        work[unit] += images * amount
        if step.primitive in (Primitive.CONV, Primitive.LINEAR):
            work["weight"] += step.parameters
        if step.primitive is Primitive.CONV:
            work["convolution call"] += 1.0
            work["convolution scalar"] += images * step.in_channels * step.resolution_px**2
        else:
            work["call"] += 1.0
    if shortcut and block.has_shortcut:
        work["call"] += 1.0
        work["pass"] += images * block.out_channels * block.out_resolution_px**2
    return dict(work)


def _unit(step: Step) -> tuple[str, float]:
    """The kind of a step and its amount for one image."""
    if step.primitive is Primitive.CONV:
        return _convolution(step), float(step.macs)
    scalars = float(max(step.in_channels * step.resolution_px**2, step.out_elements))
    if step.primitive is Primitive.LINEAR:
        scalars = float(step.macs)
    elif step.primitive in (Primitive.AVG_POOL, Primitive.MAX_POOL):
        scalars = float(step.out_elements * step.kernel**2)
    return _OTHERS.get(step.primitive, "move"), scalars


def _convolution(step: Step) -> str:
    if step.dilation > 1:
        return "dilated"
    if step.groups == 1:
        if step.in_channels <= STEM_CHANNELS:
            return "stem"
        return "pointwise" if step.kernel == 1 else "dense"
    if step.groups < step.in_channels:
        return "grouped"
    return f"depthwise{min(7, max(3, step.kernel))}"


def tensors(block: BlockSpec) -> int:
    """Trainable tensors of `block`."""
    count = {Primitive.CONV: 1, Primitive.BATCH_NORM: 2, Primitive.LINEAR: 1}
    return sum(count.get(step.primitive, 0) + step.bias for step in block.steps)


def sums_work(space: SearchSpace, images: int) -> dict[str, float]:
    """What adding up the values that meet in a node takes."""
    work = {"call": 0.0, "pass": 0.0}
    met: set[int] = set()
    for layer, (_, target) in zip(space.layers, space.edges, strict=True):
        if target in met:
            work["call"] += 1.0
            work["pass"] += (
                images * layer.blocks[0].out_channels * layer.blocks[0].out_resolution_px ** 2
            )
        met.add(target)
    return work


def _logit_step(estimator: str) -> LogitStep:
    if estimator not in LOGIT_STEPS:
        raise UnknownEstimatorError(
            f"no estimator is called {estimator!r}; known: {', '.join(sorted(LOGIT_STEPS))}"
        )
    return LOGIT_STEPS[estimator]


@dataclass(frozen=True)
class _Table:
    """A cost of every block of a space: of the fixed layers together, and of each candidate."""

    fixed: float
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, space: SearchSpace, cost: Callable[[BlockSpec], float]) -> "_Table":
        fixed, rows = space.slot_costs(cost)
        return cls(fixed, tuple(map(tuple, rows)))

    def mean(self, probabilities: Sequence[Row]) -> float:
        """Of a network drawn from `probabilities`."""
        drawn = zip(probabilities, self.rows, strict=True)
        return self.fixed + sum(_dot(p, row) for p, row in drawn)

    def largest(self, probabilities: Sequence[Row], draws: int) -> float:
        """About the most that one of so many networks costs, no more than the dearest of all."""
        drawn = list(zip(probabilities, self.rows, strict=True))
        variance = sum(_dot(p, [x * x for x in row]) - _dot(p, row) ** 2 for p, row in drawn)
        spread = math.sqrt(max(0.0, variance) * 2.0 * math.log(max(2, draws)))
        return min(self.fixed + sum(map(max, self.rows)), self.mean(probabilities) + spread)

    @property
    def everything(self) -> float:
        """Of the whole supernet."""
        return self.fixed + sum(map(sum, self.rows))


def _dot(weights: Iterable[float], values: Iterable[float]) -> float:
    return sum(w * v for w, v in zip(weights, values, strict=True))


@dataclass(frozen=True)
class _Prediction:
    """The sums behind `predict`; every table is made once."""

    plan: SearchPlan
    machine: MachineProfile
    decided: Sequence[Row]
    _tables: dict[tuple[str, int], _Table] = field(default_factory=dict)

    def effort(self) -> Effort:
        plan = self.plan
        phases = {
            "starting": self.machine.start_up_seconds,
            "searching": self.set_up_seconds() + self.searching_seconds(),
            "deriving": self.judging_seconds(plan.n_train),
            "training": self.training_seconds(plan.training_steps),
            "verifying": 0.0,
        }
        if plan.baseline_steps:
            phases["comparing"] = self.training_seconds(plan.baseline_steps)
        return Effort(phases, self.memory_bytes(), self.machine.device, self.machine.threads)

    # -- seconds -----------------------------------------------------------------------

    def set_up_seconds(self) -> float:
        """Before the first step is as fast as the others: loading, and filling memory."""
        fresh = self.memory_bytes() - self.machine.base_bytes
        return self.machine.set_up_seconds + self.machine.byte_seconds * fresh

    def searching_seconds(self) -> float:
        plan, method = self.plan, _logit_step(self.plan.estimator)
        uniform = even(plan.space)
        middle = [
            tuple(0.5 * (a + b) for a, b in zip(*rows, strict=True))
            for rows in zip(uniform, self.decided, strict=True)
        ]
        searching = plan.search_steps - plan.warmup_steps
        every = 1 if method.trains_weights else plan.alpha_every
        looked = _GAP_PATHS * self.path_seconds("unrecorded", middle)
        return (
            plan.warmup_steps * self.weights_step_seconds(uniform)
            + searching * self.weights_step_seconds(middle)
            + searching / every * self.logits_step_seconds(method, middle)
            + plan.epochs(plan.search_steps) * self.epoch_seconds(self.tensors.everything)
            + looked
        )

    def weights_step_seconds(self, probabilities: Sequence[Row]) -> float:
        """One step of the weights of a path, the loop around it included."""
        work = {
            "call": 1.0,
            "tensor": self.tensors.mean(probabilities),
            "scalar": self.scalars.mean(probabilities),
            "pixel": self.pixels,
        }
        return self.step_seconds(probabilities) + self.machine.price("step", work)

    def step_seconds(self, probabilities: Sequence[Row]) -> float:
        """Forward and backward of a path."""
        backward = self.path_seconds("inputs", probabilities) + self.path_seconds(
            "weights", probabilities
        )
        return self.path_seconds("forward", probabilities) + backward * self.live_share(
            probabilities
        )

    def logits_step_seconds(self, method: LogitStep, probabilities: Sequence[Row]) -> float:
        """What one step of the logits adds to the weights' own."""
        seconds = self.machine.price("step", {"logits": 1.0})
        if not method.trains_weights:
            seconds += self.machine.price("step", {"pixel": self.pixels})
        seconds += method.looks * self.path_seconds("unrecorded", probabilities)
        if method.every_candidate:
            table = self.table("unrecorded", self.plan.batch_size)
            seconds += table.everything - table.mean(probabilities)
        if method.backward:
            seconds += self.path_seconds("forward", probabilities)
            seconds += self.path_seconds("inputs", probabilities) * self.live_share(probabilities)
        return seconds

    def training_seconds(self, steps: int) -> float:
        """Training a decided network, then judging it on the test images."""
        return (
            steps * self.weights_step_seconds(self.decided)
            + self.plan.epochs(steps) * self.epoch_seconds(self.tensors.mean(self.decided))
            + self.judging_seconds(self.plan.n_train + self.plan.n_test)
        )

    def judging_seconds(self, images: int) -> float:
        """Running the decided network forward on so many images."""
        table = self.table("unrecorded", _JUDGING_BATCH)
        pixels = images * self.pixels / self.plan.batch_size
        looked = images / _JUDGING_BATCH * table.mean(self.decided)
        return looked + self.machine.price("step", {"pixel": pixels})

    def epoch_seconds(self, n_tensors: float) -> float:
        return self.machine.price("epoch", {"tensor": n_tensors})

    def path_seconds(self, activity: str, probabilities: Sequence[Row]) -> float:
        return self.table(activity, self.plan.batch_size).mean(probabilities)

    def table(self, activity: str, images: int) -> _Table:
        def cost(block: BlockSpec) -> float:
            return self.machine.price(activity, block_work(block, images))

        if (activity, images) not in self._tables:
            made = _Table.of(self.plan.space, cost)
            sums = self.machine.price(activity, sums_work(self.plan.space, images))
            self._tables[activity, images] = replace(made, fixed=made.fixed + sums)
        return self._tables[activity, images]

    def live_share(self, probabilities: Sequence[Row]) -> float:
        """Share of a path's work that some gradient reaches: 1 unless a slot may be nothing."""
        space = self.plan.space
        kinds = {block.kind for layer in space.layers for block in layer.blocks}
        if BlockKind.NONE not in kinds:
            return 1.0
        rng, live, all_ = random.Random(0), 0, 1
        for _ in range(_DRAWN):
            choices = [rng.choices(range(len(p)), p)[0] for p in probabilities]
            graph = space.graph(space.architecture(choices))
            live += sum(block.macs for _, block in graph.live)
            all_ += graph.macs
        return live / all_

    # -- memory ------------------------------------------------------------------------

    def memory_bytes(self) -> int:
        """At the worst step of the search, or when a large batch judges a network."""
        plan, space = self.plan, self.plan.space
        images = (plan.n_train + plan.n_test) * self.pixels / plan.batch_size  # uint8
        held = images + 2.0 * FLOAT_BYTES * self.scalars.everything  # weights, momentum
        kept = self.table("kept bytes", 1).largest(even(space), plan.search_steps)
        gradients = FLOAT_BYTES * self.scalars.mean(even(space))
        step = plan.batch_size * (kept + 2.0 * self.widest_bytes) + gradients
        value = _JUDGING_BATCH * self.widest_bytes
        judging = (self.live_values + _TEMPORARIES) * value
        # what one of them has freed stays; where blocks are large, the other reuses half of it
        # (fitted: within 4 % on average over the cases of benchmarks/effort_accuracy.py)
        stays = 1.0 if value <= _KEPT_BYTES else 0.5
        worst = max(step, judging) + stays * min(step, judging)
        return int(self.machine.base_bytes + held + worst)

    @cached_property
    def widest_bytes(self) -> float:
        """The largest value between two steps of any block, of one image."""
        blocks = (block for layer in self.plan.space.layers for block in layer.blocks)
        widest = max(step.out_elements for block in blocks for step in block.steps)
        return float(FLOAT_BYTES * widest)

    @cached_property
    def live_values(self) -> int:
        """The most nodes of a network that are held at once while it runs."""
        edges = self.plan.space.edges
        last_use = {source: i for i, (source, _) in enumerate(edges)}
        first_made = {target: i for i, (_, target) in reversed(list(enumerate(edges)))}
        return max(
            sum(
                first_made.get(node, -1) < i <= last_use.get(node, len(edges))
                for node in {0, *first_made}
            )
            for i in range(len(edges))
        )

    # -- counts ------------------------------------------------------------------------

    @cached_property
    def tensors(self) -> _Table:
        return _Table.of(self.plan.space, lambda block: float(tensors(block)))

    @cached_property
    def scalars(self) -> _Table:
        return _Table.of(self.plan.space, lambda block: float(block.parameters))

    @property
    def pixels(self) -> float:
        """Scalars of a batch of images."""
        space = self.plan.space
        return float(self.plan.batch_size * space.in_channels * space.resolution_px**2)
