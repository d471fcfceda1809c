"""A network as one readable Python file that needs torch and nothing else."""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from textwrap import wrap
from typing import Any

from torch import nn

from search_core.errors import ExportError
from search_core.nn import ops
from search_core.nn.network import Network
from search_core.nn.ops import BN_EPS_TRAIN, operation
from search_core.space.blocks import FREE, BlockKind, BlockSpec
from search_core.space.graph import Graph

_LINE, _INDENT = 100, 8
_LOAD = '''\
def load(path: str) -> Network:
    """The network in evaluation mode, with the weights of a safetensors file."""
    from safetensors.torch import load_file

    network = Network()
    network.load_state_dict(load_file(path))
    return network.eval()
'''


def python_source(network: Network, facts: Mapping[str, object] | None = None) -> str:
    """The source of a module that defines `network` as ``Network`` and reads it by ``load``.

    The block classes are copied from `search_core.nn.ops`, and only those that are used. The
    state dictionary has the names of `network`'s, so its safetensors file fits.

    Args:
        facts: what the head of the file says beside parameters and MACs: architecture,
            space, accuracy, latency, in that order.

    Raises:
        ExportError: a layer was not built by `search_core.nn.ops`.
    """
    calls = {
        index: _constructor(block, layer)
        for index, (block, layer) in enumerate(zip(network.blocks, network.layers, strict=True))
        if block.kind not in FREE
    }
    classes = _definitions(call.func for call in calls.values())
    body = [inspect.getsource(definition).rstrip() + "\n" for definition in classes]
    body += [_network_class(network.graph, calls), _LOAD]
    imports = ["import torch\nfrom torch import nn\n"]
    if any("OrderedDict" in text for text in body):
        imports.insert(0, "from collections import OrderedDict\n")
    return "\n".join([_head(network.graph, facts or {}), *imports]) + "".join(
        f"\n\n{text}" for text in body
    )


def _constructor(block: BlockSpec, layer: nn.Module) -> partial[Any]:
    """The call that builds `layer`, with the BatchNorm epsilon it really has."""
    norms = (part.eps for part in layer.modules() if isinstance(part, nn.BatchNorm2d))
    call = operation(block, next(norms, BN_EPS_TRAIN))
    if type(layer) is not call.func:
        raise ExportError(
            f"{block} is computed by {type(layer).__name__}, which has no source here"
        )
    return call


def _definitions(used: Iterator[Callable[..., Any]]) -> list[Any]:
    """What `used` needs of `search_core.nn.ops`, in the order in which it stands there."""
    found: dict[str, Any] = {}
    waiting = list(used)
    while waiting:
        definition = waiting.pop()
        name = definition.__name__
        if name in found or definition.__module__ != ops.__name__:
            continue
        found[name] = definition
        tree = ast.parse(inspect.getsource(definition))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        known = [getattr(ops, name) for name in names if hasattr(ops, name)]
        waiting += [other for other in known if inspect.isclass(other) or inspect.isfunction(other)]
    return sorted(found.values(), key=lambda definition: inspect.getsourcelines(definition)[1])


def _head(graph: Graph, facts: Mapping[str, object]) -> str:
    first, last = graph.blocks[0], graph.blocks[-1]
    side = first.resolution_px
    lines = [
        "# A network found by Tailor, in plain PyTorch: only torch is needed, and safetensors",
        "# to read its weights.",
        "#",
    ]
    counted = {
        "input": f"(B, {first.in_channels}, {side}, {side}) float32, normalised",
        "output": f"(B, {last.out_channels}) class scores",
        "parameters": f"{graph.parameters:,}",
        "MACs": f"{graph.macs:,}",
    }
    for name, value in {**facts, **counted}.items():
        # one paragraph without line breaks: a fact can never leave its comment
        text = " ".join(f"{name}: {value}".split())
        lines += wrap(
            text,
            _LINE,
            initial_indent="# ",
            subsequent_indent="#   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join([*lines, ""])


def _network_class(graph: Graph, calls: Mapping[int, partial[Any]]) -> str:
    first, last = graph.blocks[0], graph.blocks[-1]
    shape = f"(B, {first.in_channels}, {first.resolution_px}, {first.resolution_px})"
    lines = [
        "class Network(nn.Module):",
        f'    """{shape} -> (B, {last.out_channels}); layers are named by their place."""',
        "",
        "    def __init__(self) -> None:",
        "        super().__init__()",
        "        self.layers = nn.ModuleDict(",
        "            {",
    ]
    resolution_px = 0
    for index, call in calls.items():
        block = graph.blocks[index]
        if block.out_resolution_px != resolution_px and block is not last:
            resolution_px = block.out_resolution_px
            lines.append(f"{' ' * 16}# {resolution_px} x {resolution_px} px")
        lines.append(f'{" " * 16}"{index}": {_call_text(call)},')
    lines += [
        "            }",
        "        )",
        "        self.to(memory_format=torch.channels_last)",
        "",
        "    def forward(self, images: torch.Tensor) -> torch.Tensor:",
        '        """Class scores of normalised images."""',
        "        layers = self.layers",
        *(f"{' ' * _INDENT}{statement}" for statement in _statements(graph)),
    ]
    return "\n".join([*lines, ""])


def _call_text(call: partial[Any]) -> str:
    parameters = inspect.signature(call.func).parameters
    arguments = [_text(value) for value in call.args]
    arguments += [
        f"{name}={_text(value)}"
        for name, value in call.keywords.items()
        if parameters[name].default != value
    ]
    return f"{_text(call.func)}({', '.join(arguments)})"


def _text(value: object) -> str:
    if not isinstance(value, type):
        return repr(value)
    return value.__name__ if value.__module__ == ops.__name__ else f"nn.{value.__name__}"


def _statements(graph: Graph) -> list[str]:
    """The lines of ``forward``: one a node that is read, with the sum of what arrives there."""
    names = {0: "images"}
    arriving: dict[int, list[str]] = {}
    alike: dict[int, int] = {}  # node -> one of the same shape, in case that nothing arrives
    lines: list[str] = []

    def terms_of(node: int) -> list[str]:
        return arriving.get(node) or [f"torch.zeros_like({value(alike[node])})"]

    def value(node: int) -> str:
        if node not in names:
            terms = terms_of(node)
            names[node] = "x" if graph.is_chain else f"x{node}"
            if terms != [names[node]]:
                lines.extend(_sum(f"{names[node]} = ", terms))
        return names[node]

    for index, (block, (source, target)) in enumerate(zip(graph.blocks, graph.edges, strict=True)):
        if block.kind is BlockKind.NONE:
            alike[target] = source
            continue
        features, terms = value(source), arriving.setdefault(target, [])
        term = features if block.kind in FREE else f'layers["{index}"]({features})'
        if block.has_shortcut and block.kind not in FREE:
            term = f"({features} + {term})" if terms else f"{features} + {term}"
        terms.append(term)
    result = terms_of(graph.edges[-1][1])
    return [*lines, *_sum("return ", result)]


def _sum(prefix: str, terms: list[str]) -> list[str]:
    line = prefix + " + ".join(terms)
    if len(line) <= _LINE - _INDENT:
        return [line]
    return [f"{prefix}(", f"    {terms[0]}", *(f"    + {term}" for term in terms[1:]), ")"]
