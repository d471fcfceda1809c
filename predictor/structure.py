"""What runs of a network: read off its graph, without running it.

Runtimes differ in how much of a graph they remove, so everything is counted in two readings:

- ``written``: every block runs; an eager or scripted runtime keeps dead branches.
- ``wanted``: a block runs if non-zero blocks lead from it to the output, as when an exporter
  walks back from the output and a compiler folds products with zero.

Whether a runtime computes equal values once, and what it runs inside of a convolution, is left to
the model in the same way: both counts are features. All values are plain Python.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from search_core.space.blocks import WEIGHTLESS, BlockKind, BlockSpec
from search_core.space.graph import Graph
from search_core.space.primitives import Primitive, Step
from search_core.space.space import SearchSpace

READINGS = ("written", "wanted")

_BYTES = 4  # of a float32
_PASSING = (BlockKind.SKIP, BlockKind.ZERO)  # what arrives is what leaves
_ACTIVATIONS = (Primitive.RELU, Primitive.RELU6)
_BEHIND_CONV = (Primitive.BATCH_NORM, *_ACTIVATIONS)

_IN_EACH_READING = (
    "macs",
    "weights",
    "bytes",
    "kernels",  # by themselves: without additions, and without activations that come first
    "additions",
    "distinct_additions",  # without those whose sum is there already
    "plain_additions",  # of these, those with no convolution to run inside of
    "distinct_zeros",  # products with zero, where a runtime computes them
    "distinct_poolings",  # and other blocks without weights, each value computed once
    "distinct_relus",  # values that blocks activate before they read them
    "plain_relus",  # of these, those whose value is read unactivated as well
    "conv_relus",  # of the others, those whose value is one convolution's: run inside of it
)

_Value = int  # the number of a value; equal numbers hold the same


def is_degenerate(graph: Graph) -> bool:
    """Whether the output does not depend on the input.

    A compiler that folds constants leaves next to nothing of such a network, and a relative error
    says nothing about it.
    """
    return not graph.live


def feature_names(space: SearchSpace) -> tuple[str, ...]:
    """Names of what `structural_features` counts in networks of `space`, in its order."""
    counted = [*_tokens(space), *_IN_EACH_READING]
    return tuple(f"{reading}:{name}" for reading in READINGS for name in counted)


def structural_features(space: SearchSpace, graph: Graph) -> list[float]:
    """Counts in `graph`, a network of `space`: one for each of `feature_names`."""
    facts = [_facts(block) for block in graph.blocks]
    written = tuple(range(len(graph.blocks)))
    readings = (written, _wanted(graph))
    return [count for runs in readings for count in _counts(graph, facts, runs, _tokens(space))]


def canonical_digest(graph: Graph) -> str:
    """Hexadecimal digest, equal for networks whose live graphs differ in names and order only.

    Every value is coloured by what it is made of and by what reads it, in one sweep each way
    (Weisfeiler and Leman 1968, on a graph without cycles); the digest is that of all live blocks
    between the colours of their ends. A value computed twice is not mistaken for one used twice.
    """
    facts = [_facts(block) for block in graph.blocks]
    arrivals = _arrivals(graph, [index for index, _ in graph.live])
    value = _values(graph, facts, arrivals)
    operands: dict[_Value, list[tuple[str, _Value]]] = {}  # each value behind those it is made of
    for node, indices in arrivals.items():
        terms = [(facts[i].text, value[graph.edges[i][0]]) for i in indices]
        if value[node] not in (0, *(read for _, read in terms)):
            operands.setdefault(value[node], terms)
    made, readers = {0: "input"}, dict[_Value, list[str]]({0: []})
    for number, terms in operands.items():
        made[number] = _hash(sorted(f"{text} {made[read]}" for text, read in terms))
        readers[number] = []
    for number, terms in reversed(operands.items()):
        by = _hash(sorted(readers[number]))
        for text, read in terms:
            readers[read].append(f"{text} {by}")
    colour = {number: _hash([made[number], *sorted(readers[number])]) for number in made}
    return _hash(
        sorted(
            f"{colour[read]} {text} {colour[number]}"
            for number, terms in operands.items()
            for text, read in terms
        )
    )


def _hash(parts: Iterable[str]) -> str:
    return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _wanted(graph: Graph) -> tuple[int, ...]:
    runs, nodes = list[int](), {graph.edges[-1][1]}
    for index in reversed(range(len(graph.blocks))):
        source, target = graph.edges[index]
        if target in nodes and graph.blocks[index].kind is not BlockKind.NONE:
            nodes.add(source)
            runs.append(index)
    return tuple(reversed(runs))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What counting asks of one block.

    Attributes:
        text: the block itself.
        kernels: launched, with BatchNorm and activations behind a convolution inside of it.
        read_activated, read_as_is: how its steps read its input.
    """

    text: str
    token: str
    macs: int
    weights: int
    traffic_bytes: int
    kernels: int
    is_zero: bool
    passes: bool
    is_weightless: bool
    ends_in_conv: bool
    read_activated: bool
    read_as_is: bool


@lru_cache(maxsize=4096)
def _facts(block: BlockSpec) -> _Facts:
    steps = block.steps
    launched = [step for step in steps if not _runs_inside_another(steps, step)]
    activates = [step.primitive in _ACTIVATIONS for step in steps if 0 in step.inputs]
    return _Facts(
        text=str(block),
        token=_token(block),
        macs=block.macs,
        weights=block.parameters,
        traffic_bytes=_BYTES
        * sum(step.in_channels * step.resolution_px**2 + step.out_elements for step in launched),
        kernels=len(launched),
        is_zero=block.kind is BlockKind.NONE,
        passes=block.kind in _PASSING,
        is_weightless=block.kind in WEIGHTLESS,
        ends_in_conv=bool(steps) and steps[-1].primitive in (Primitive.CONV, Primitive.BATCH_NORM),
        read_activated=any(activates),
        read_as_is=not activates or not all(activates),
    )


def _runs_inside_another(steps: Sequence[Step], step: Step) -> bool:
    if step.primitive not in _BEHIND_CONV:
        return False
    source = step.inputs[0]
    if source == 0:  # left to the value that it reads, which others may activate as well
        return step.primitive in _ACTIVATIONS
    return steps[source - 1].primitive in (Primitive.CONV, *_BEHIND_CONV)


def _token(block: BlockSpec) -> str:
    return f"{block.kind}_k{block.kernel}_e{block.expansion}"


@lru_cache(maxsize=64)
def _tokens(space: SearchSpace) -> tuple[str, ...]:
    return tuple(sorted({_token(block) for layer in space.layers for block in layer.blocks}))


def _arrivals(graph: Graph, runs: Iterable[int]) -> dict[int, list[int]]:
    """Node -> the running blocks that add to it; a node stands behind those it is made of."""
    arrivals: dict[int, list[int]] = {}
    for index in runs:
        target = graph.edges[index][1]
        arrivals[target] = [*arrivals.pop(target, ()), index]
    return arrivals


def _values(
    graph: Graph, facts: Sequence[_Facts], arrivals: dict[int, list[int]]
) -> dict[int, _Value]:
    """Node -> what it holds, by value numbering (Cocke and Schwartz 1970).

    A block with weights is like no other; one without is a function of the value it reads.
    """
    value: dict[int, _Value] = {0: 0}
    known: dict[tuple[object, ...], _Value] = {}

    def number(*key: object) -> _Value:
        return known.setdefault(key, len(known) + 1)

    for node, indices in arrivals.items():
        terms = []
        for i in indices:
            source = graph.edges[i][0]
            read = value[source] if source in value else number("zeros")
            if facts[i].passes:
                terms.append(read)
            else:
                terms.append(number(facts[i].text, read) if facts[i].is_weightless else number(i))
        value[node] = terms[0] if len(terms) == 1 else number("sum", *sorted(terms))
    return value


def _counts(
    graph: Graph, facts: Sequence[_Facts], runs: tuple[int, ...], tokens: tuple[str, ...]
) -> list[float]:
    """How often each of `tokens` runs, then what `_IN_EACH_READING` names."""
    arrivals = _arrivals(graph, runs)
    value = _values(graph, facts, arrivals)
    count = dict.fromkeys(tokens, 0)
    macs = weights = traffic_bytes = kernels = 0
    zeros, poolings, activated, as_is = set(), set(), set(), set()
    for index in runs:
        fact, (source, target) = facts[index], graph.edges[index]
        read = value.get(source)
        count[fact.token] += 1
        macs += fact.macs
        weights += fact.weights
        traffic_bytes += fact.traffic_bytes
        kernels += fact.kernels
        if fact.is_zero:
            zeros.add(read)
        elif fact.is_weightless and fact.kernels:
            poolings.add((fact.text, read))
        if fact.read_activated:
            activated.add(read)
        if fact.read_as_is and read != value[target]:
            as_is.add(read)
    additions, plain_additions, convolved = dict[_Value, int](), dict[_Value, int](), set()
    for node, indices in arrivals.items():
        convolutions = sum(facts[i].ends_in_conv for i in indices)
        additions[value[node]] = len(indices) - 1
        plain_additions[value[node]] = max(0, len(indices) - 1 - convolutions)
        if convolutions == len(indices) == 1:
            convolved.add(value[node])
    totals = (
        macs,
        weights,
        traffic_bytes,
        kernels,
        sum(len(indices) - 1 for indices in arrivals.values()),
        sum(additions.values()),
        sum(plain_additions.values()),
        len(zeros),
        len(poolings),
        len(activated),
        len(activated & as_is),
        len((activated - as_is) & convolved),
    )
    return [float(number) for number in (*count.values(), *totals)]
