"""A network with every decision made, as plain values: blocks between numbered nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

from search_core.space.blocks import FREE, BlockKind, BlockSpec


@dataclass(frozen=True)
class Graph:
    """Blocks in an order in which they can run; a node's value is the sum of what arrives.

    Attributes:
        blocks: each reads one node and adds its output to another.
        edges: for each block the nodes (source, target); node 0 is the input, the target of
            the last block the output.
    """

    blocks: tuple[BlockSpec, ...]
    edges: tuple[tuple[int, int], ...]

    @classmethod
    def chain(cls, blocks: Sequence[BlockSpec]) -> "Graph":
        """Each block takes the output of the one before it."""
        return cls(tuple(blocks), tuple((i, i + 1) for i in range(len(blocks))))

    @classmethod
    def of(cls, network: "Graph | Sequence[BlockSpec]") -> "Graph":
        """`network` itself, or the chain of these blocks."""
        return network if isinstance(network, Graph) else cls.chain(network)

    @property
    def is_chain(self) -> bool:
        """Whether it could have been made by `chain`."""
        return self.edges == tuple((i, i + 1) for i in range(len(self.edges)))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image (convolution and classifier weights)."""
        return sum(block.macs for block in self.blocks)

    @property
    def parameters(self) -> int:
        """Trainable scalars."""
        return sum(block.parameters for block in self.blocks)

    @property
    def idle(self) -> frozenset[int]:
        """Indices of the blocks that no path from the input to the output runs through."""
        reached = {0}
        for block, (source, target) in zip(self.blocks, self.edges, strict=True):
            if source in reached and block.kind is not BlockKind.NONE:
                reached.add(target)
        wanted, idle = {self.edges[-1][1]}, set()
        for index in reversed(range(len(self.blocks))):
            source, target = self.edges[index]
            passes = self.blocks[index].kind is not BlockKind.NONE and source in reached
            if passes and target in wanted:
                wanted.add(source)
            else:
                idle.add(index)
        return frozenset(idle)

    @property
    def live(self) -> tuple[tuple[int, BlockSpec], ...]:
        """Position and kind of every block that is not idle: equal where networks do the same."""
        idle = self.idle
        return tuple((i, block) for i, block in enumerate(self.blocks) if i not in idle)

    @property
    def wastes(self) -> bool:
        """Whether some block that takes time is idle: paid for, and without any effect."""
        return any(self.blocks[index].kind not in FREE for index in self.idle)

    def last_uses(self) -> dict[int, int]:
        """Node -> index of the last block that reads it."""
        return {source: index for index, (source, _) in enumerate(self.edges)}
