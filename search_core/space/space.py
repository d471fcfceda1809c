"""Search spaces and architectures: plain, frozen, hashable, printable and parseable."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from search_core.errors import ArchitectureSyntaxError
from search_core.space.blocks import BlockKind, BlockSpec


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
    """

    blocks: tuple[BlockSpec, ...]
    slot: int | None = None


@dataclass(frozen=True)
class Architecture:
    """One choice for each slot of the space whose digest it carries."""

    space_digest: str
    choices: tuple[int, ...]


@dataclass(frozen=True)
class SearchSpace:
    """A family of chain networks: layers in order, each fixed or decided by a slot.

    Attributes:
        name, version: a released version never changes its meaning.
        in_channels, resolution_px, n_classes: the shape of the task.
    """

    name: str
    version: int
    in_channels: int
    resolution_px: int
    n_classes: int
    slots: tuple[Slot, ...]
    layers: tuple[Layer, ...]
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

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 over everything that gives an architecture its meaning."""
        meaning = {
            "name": self.name,
            "version": self.version,
            "input": [self.in_channels, self.resolution_px, self.n_classes],
            "slots": [[slot.name, list(slot.candidates)] for slot in self.slots],
            "layers": [[layer.slot, [str(b) for b in layer.blocks]] for layer in self.layers],
        }
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
        blocks = (b for layer in self.layers for b in layer.blocks if b.kind is not BlockKind.ZERO)
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
        """The compact string: one token a slot, joined by spaces."""
        self._own(architecture)
        chosen = zip(self.slots, architecture.choices, strict=True)
        return " ".join(slot.candidates[choice] for slot, choice in chosen)

    def parse(self, text: str) -> Architecture:
        """The architecture of a compact string; the inverse of `format`.

        Raises:
            ArchitectureSyntaxError: naming the token and what its slot accepts.
        """
        tokens = text.split()
        if len(tokens) != len(self.slots):
            raise ArchitectureSyntaxError(
                f"{self.name} needs {len(self.slots)} tokens, got {len(tokens)}: {text!r}"
            )
        choices = []
        for slot, known, token in zip(self.slots, self._by_token, tokens, strict=True):
            if token not in known:
                raise ArchitectureSyntaxError(
                    f"slot {slot.name} knows {', '.join(slot.candidates)}; got {token!r}"
                )
            choices.append(known[token])
        return self.architecture(choices)

    def blocks(self, architecture: Architecture) -> tuple[BlockSpec, ...]:
        """The network as a chain of blocks, the fixed ones included."""
        self._own(architecture)
        return tuple(
            layer.blocks[0 if layer.slot is None else architecture.choices[layer.slot]]
            for layer in self.layers
        )

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture drawn uniformly."""
        return self.architecture([rng.randrange(len(slot.candidates)) for slot in self.slots])

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
        return sum(block.macs for block in self.blocks(architecture))

    def parameters(self, architecture: Architecture) -> int:
        """Trainable scalars of the derived network."""
        return sum(block.parameters for block in self.blocks(architecture))

    def _own(self, architecture: Architecture) -> None:
        if architecture.space_digest != self.digest:
            raise ArchitectureSyntaxError(
                f"the architecture belongs to space {architecture.space_digest[:12]}, "
                f"not to {self.name}@{self.version} ({self.digest[:12]})"
            )
