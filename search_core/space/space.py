"""Search spaces and architectures: plain, frozen, hashable, printable and parseable."""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import inf, prod

from search_core.errors import ArchitectureSyntaxError
from search_core.space.blocks import FREE, BlockKind, BlockSpec
from search_core.space.graph import Graph


@dataclass(frozen=True)
class Slot:
    """One decision of a space: its name and the tokens it may be decided for."""

    name: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One place in the network.

    Attributes:
        blocks: one block for each candidate of the slot, in its order; a fixed layer has one.
        slot: index of the slot that decides this layer, None for a fixed layer. Several
            layers may share a slot (a cell that is repeated).
        source, target: the nodes it reads and adds its output to; node 0 is the input. None
            stands for the target of the layer before, and for a new node.
    """

    blocks: tuple[BlockSpec, ...]
    slot: int | None = None
    source: int | None = None
    target: int | None = None


@dataclass(frozen=True)
class Architecture:
    """One choice for each slot of the space whose digest it carries."""

    space_digest: str
    choices: tuple[int, ...]


@dataclass(frozen=True)
class SearchSpace:
    """A family of networks: layers between nodes, each fixed or decided by a slot.

    Layers stand in an order in which they can run, the classifier last.

    Attributes:
        name, version: a released version never changes its meaning.
        in_channels, resolution_px, n_classes: the shape of the task.
        notation: how an architecture is written, with ``{}`` for the token of each slot;
            empty stands for tokens joined by spaces.
    """

    name: str
    version: int
    in_channels: int
    resolution_px: int
    n_classes: int
    slots: tuple[Slot, ...]
    layers: tuple[Layer, ...]
    notation: str = ""
    _by_token: tuple[dict[str, int], ...] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        for layer in self.layers:
            n_expected = 1 if layer.slot is None else len(self.slots[layer.slot].candidates)
            if len(layer.blocks) != n_expected:
                raise ValueError(
                    f"{self.name}: a layer of {len(layer.blocks)} blocks where its slot "
                    f"has {n_expected} candidates"
                )
        index = tuple({token: k for k, token in enumerate(s.candidates)} for s in self.slots)
        object.__setattr__(self, "_by_token", index)
        self._check_shapes()

    def _check_shapes(self) -> None:
        shapes = {0: (self.in_channels, self.resolution_px)}
        read: set[int] = set()
        for layer, (source, target) in zip(self.layers, self.edges, strict=True):
            read.add(source)
            for block in layer.blocks:
                held, needed = shapes.get(source), (block.in_channels, block.resolution_px)
                if held != needed:
                    raise ValueError(f"{self.name}: {block} reads node {source}, which is {held}")
                made = (block.out_channels, block.out_resolution_px)
                if target in read or shapes.setdefault(target, made) != made:
                    raise ValueError(f"{self.name}: {block} cannot be added to node {target}")
        given = self.layers[-1].blocks[0].out_channels
        if given != self.n_classes:
            raise ValueError(
                f"{self.name} has {self.n_classes} classes, its last block gives {given}"
            )

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The nodes (source, target) of each layer."""
        edges: list[tuple[int, int]] = []
        last = newest = 0
        for layer in self.layers:
            source = last if layer.source is None else layer.source
            last = newest + 1 if layer.target is None else layer.target
            newest = max(newest, last)
            edges.append((source, last))
        return tuple(edges)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 over everything that gives an architecture its meaning."""
        meaning: dict[str, object] = {
            "name": self.name,
            "version": self.version,
            "input": [self.in_channels, self.resolution_px, self.n_classes],
            "slots": [[slot.name, list(slot.candidates)] for slot in self.slots],
            "layers": [[layer.slot, [str(b) for b in layer.blocks]] for layer in self.layers],
        }
        if any(edge != (i, i + 1) for i, edge in enumerate(self.edges)):
            meaning["edges"] = self.edges
        if self.notation:
            meaning["notation"] = self.notation
        canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def n_candidates(self) -> int:
        """Candidates of the widest slot: the second dimension of every slot table."""
        return max(len(slot.candidates) for slot in self.slots)

    @property
    def size(self) -> int:
        """How many architectures the space holds."""
        return prod(len(slot.candidates) for slot in self.slots)

    @cached_property
    def distinct_blocks(self) -> tuple[BlockSpec, ...]:
        """Every block that takes time, once, in order of appearance."""
        blocks = (b for layer in self.layers for b in layer.blocks if b.kind not in FREE)
        return tuple(dict.fromkeys(blocks))

    def architecture(self, choices: Sequence[int]) -> Architecture:
        """The architecture of these choices.

        Raises:
            ArchitectureSyntaxError: not one valid candidate index for each slot.
        """
        if len(choices) != len(self.slots):
            raise ArchitectureSyntaxError(
                f"{self.name} decides {len(self.slots)} slots, got {len(choices)} choices"
            )
        for slot, choice in zip(self.slots, choices, strict=True):
            if not 0 <= choice < len(slot.candidates):
                raise ArchitectureSyntaxError(
                    f"slot {slot.name} has {len(slot.candidates)} candidates, got choice {choice}"
                )
        return Architecture(self.digest, tuple(int(choice) for choice in choices))

    def format(self, architecture: Architecture) -> str:
        """The compact string: one token a slot, in the space's notation."""
        self._own(architecture)
        chosen = zip(self.slots, architecture.choices, strict=True)
        tokens = [slot.candidates[choice] for slot, choice in chosen]
        return self.notation.format(*tokens) if self.notation else " ".join(tokens)

    def parse(self, text: str) -> Architecture:
        """The architecture of a compact string; the inverse of `format`.

        Raises:
            ArchitectureSyntaxError: naming the token and what its slot accepts.
        """
        tokens = self._tokens(text)
        choices = []
        for slot, known, token in zip(self.slots, self._by_token, tokens, strict=True):
            if token not in known:
                raise ArchitectureSyntaxError(
                    f"slot {slot.name} knows {', '.join(slot.candidates)}; got {token!r}"
                )
            choices.append(known[token])
        return self.architecture(choices)

    def _tokens(self, text: str) -> list[str]:
        if not self.notation:
            tokens = text.split()
            if len(tokens) != len(self.slots):
                raise ArchitectureSyntaxError(
                    f"{self.name} needs {len(self.slots)} tokens, got {len(tokens)}: {text!r}"
                )
            return tokens
        between = [re.escape(piece) for piece in self.notation.split("{}")]
        letters = all(len(token) == 1 for slot in self.slots for token in slot.candidates)
        token = r"([^\s|+~-])" if letters else r"([^\s|+~-]+)"
        match = re.fullmatch(token.join(between), text.strip())
        if match is None:
            example = self.format(self.architecture([0] * len(self.slots)))
            raise ArchitectureSyntaxError(
                f"{self.name} writes an architecture as {example!r}; got {text!r}"
            )
        return list(match.groups())

    def graph(self, architecture: Architecture) -> Graph:
        """The network of `architecture`, the fixed layers included."""
        self._own(architecture)
        return Graph(
            tuple(
                layer.blocks[0 if layer.slot is None else architecture.choices[layer.slot]]
                for layer in self.layers
            ),
            self.edges,
        )

    def blocks(self, architecture: Architecture) -> tuple[BlockSpec, ...]:
        """The blocks of the network of `architecture`, in an order in which they can run."""
        return self.graph(architecture).blocks

    def is_whole(self, architecture: Architecture) -> bool:
        """Whether every block that takes time lies on a path from the input to the output.

        Where it does not, the network is severed, or pays for what changes nothing.
        """
        return not self._gaps or not self.graph(architecture).wastes

    def without_gaps(self, utilities: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
        """`utilities` with ``-inf`` for what cuts off others, where a slot has anything else.

        What is chosen by them is whole.
        """
        if not self._gaps:
            return utilities
        rows = []
        for slot, row in enumerate(utilities):
            kept = [-inf if (slot, k) in self._gaps else u for k, u in enumerate(row)]
            rows.append(kept if max(kept) > -inf else list(row))
        return rows

    @cached_property
    def _gaps(self) -> frozenset[tuple[int, int]]:
        """The slots and their candidates that give nothing, in any of a slot's layers."""
        return frozenset(
            (layer.slot, k)
            for layer in self.layers
            if layer.slot is not None
            for k, block in enumerate(layer.blocks)
            if block.kind is BlockKind.NONE
        )

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture drawn uniformly."""
        return self.architecture([rng.randrange(len(slot.candidates)) for slot in self.slots])

    def __iter__(self) -> Iterator[Architecture]:
        """Every architecture, the last slot's choice changing fastest."""
        every = product(*(range(len(slot.candidates)) for slot in self.slots))
        return (Architecture(self.digest, choices) for choices in every)

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        """Every architecture that differs in exactly one slot."""
        self._own(architecture)
        choices = architecture.choices
        for position, slot in enumerate(self.slots):
            for choice in range(len(slot.candidates)):
                if choice != choices[position]:
                    changed = (*choices[:position], choice, *choices[position + 1 :])
                    yield Architecture(self.digest, changed)

    def slot_costs(self, cost: Callable[[BlockSpec], float]) -> tuple[float, list[list[float]]]:
        """What the fixed layers cost, and what each candidate of each slot costs.

        Returns:
            The fixed sum, and one row a slot with one entry a candidate; a slot that
            decides several layers carries their sum.
        """
        fixed = 0.0
        rows = [[0.0] * len(slot.candidates) for slot in self.slots]
        for layer in self.layers:
            if layer.slot is None:
                fixed += cost(layer.blocks[0])
            else:
                for k, block in enumerate(layer.blocks):
                    rows[layer.slot][k] += cost(block)
        return fixed, rows

    def macs(self, architecture: Architecture) -> int:
        """Multiply-accumulates of one image (convolution and classifier weights)."""
        return self.graph(architecture).macs

    def parameters(self, architecture: Architecture) -> int:
        """Trainable scalars of the derived network."""
        return self.graph(architecture).parameters

    def _own(self, architecture: Architecture) -> None:
        if architecture.space_digest != self.digest:
            raise ArchitectureSyntaxError(
                f"the architecture belongs to space {architecture.space_digest[:12]}, "
                f"not to {self.name}@{self.version} ({self.digest[:12]})"
            )
