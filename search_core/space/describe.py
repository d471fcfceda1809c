"""A network as a table: every layer with its shape and what it costs."""

from collections import Counter
from dataclasses import dataclass

from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.graph import Graph
from search_core.space.published import find_network
from search_core.space.space import SearchSpace

_CLASSIFIERS = (BlockKind.CLASSIFIER, BlockKind.FC)


@dataclass(frozen=True)
class DescribedLayer:
    """One block of a network.

    Attributes:
        name: of the slot that decided it, or what it is for; unique in its network.
        source, target: the nodes it reads and adds its output to.
    """

    name: str
    block: BlockSpec
    source: int
    target: int


@dataclass(frozen=True)
class Description:
    """A network of a space.

    Attributes:
        architecture: its compact string.
    """

    space: str
    architecture: str
    graph: Graph
    layers: tuple[DescribedLayer, ...]


def describe(
    space: SearchSpace,
    text: str,
    *,
    stem_channels: int | None = None,
    mix_channels: int | None = None,
) -> Description:
    """What `text` names in `space`; arguments and errors are those of `find_network`."""
    architecture, graph = find_network(
        space, text, stem_channels=stem_channels, mix_channels=mix_channels
    )
    rows = zip(_names(space), graph.blocks, graph.edges, strict=True)
    layers = tuple(DescribedLayer(name, block, *edge) for name, block, edge in rows)
    return Description(f"{space.name}@{space.version}", architecture, graph, layers)


def _names(space: SearchSpace) -> list[str]:
    """For each layer the name of its slot where it has one, else what its place tells."""
    names = []
    for index, layer in enumerate(space.layers):
        if layer.slot is not None:
            names.append(space.slots[layer.slot].name)
        elif layer.blocks[0].kind in _CLASSIFIERS:
            names.append("classifier")
        else:
            names.append("stem" if index == 0 else str(layer.blocks[0].kind))
    return _unique(names)


def _unique(names: list[str]) -> list[str]:
    """`names` with ``#1``, ``#2``, ... where one occurs several times."""
    total, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name}#{seen[name]}" if total[name] > 1 else name)
    return numbered
