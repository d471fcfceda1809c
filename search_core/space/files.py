"""A user's own search space, read from a YAML or JSON file; `docs/howto/own-space.md` is its guide.

Every mistake is answered with file, line, column, the field, what was found there and what is
accepted.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

from search_core.errors import SpaceFileError
from search_core.space.blocks import BlockKind, BlockSpec
from search_core.space.presets import space_names
from search_core.space.space import Layer, SearchSpace, Slot

_LARGEST = 65_536  # of any number in a file
_MOST_REPEATS = 1_000
_MOST_NODES = 16

_SAME_SHAPE = frozenset({BlockKind.SKIP, BlockKind.ZERO, BlockKind.NONE})
_POOLS = frozenset({BlockKind.AVG_POOL, BlockKind.MAX_POOL})
_NORMS = frozenset({BlockKind.BN, BlockKind.BN_RELU})
_UNITS = frozenset({BlockKind.SHUFFLE, BlockKind.XCEPTION})
_SEARCHED = (
    BlockKind.CONV,
    BlockKind.CONV_RELU,
    BlockKind.CONV_LINEAR,
    BlockKind.RELU_CONV,
    BlockKind.PREACT_CONV,
    BlockKind.MBCONV,
    BlockKind.SEP_CONV,
    BlockKind.DIL_CONV,
    BlockKind.SHUFFLE,
    BlockKind.XCEPTION,
    BlockKind.AVG_POOL,
    BlockKind.MAX_POOL,
    BlockKind.SKIP,
)
_IN_STAGES = (*_SEARCHED, BlockKind.ZERO)
_IN_CELLS = (*_SEARCHED, BlockKind.NONE)
_FIXED = (*_SEARCHED[:-1], BlockKind.REDUCTION, BlockKind.BN, BlockKind.BN_RELU)

_RULES = {
    **dict.fromkeys(_UNITS, "it keeps an even width at stride 1 and widens at a larger one"),
    **dict.fromkeys(_POOLS, "it keeps the channels"),
    **dict.fromkeys(_NORMS, "it keeps the channels and takes no stride"),
}


def load_space(path: Path | str) -> SearchSpace:
    """The space that a file describes.

    Raises:
        SpaceFileError: the file cannot be read, or naming the line at fault.
    """
    import yaml

    where = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
        if where.endswith(".json"):
            text = text.replace("\t", " ")  # the one thing of JSON that YAML does not take
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceFileError(where, 1, 1, f"cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise SpaceFileError(where, line, column, f"is no YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:  # a forbidden character, endless brackets
        raise SpaceFileError(where, 1, 1, f"is no YAML: {error}") from error
    if node is None:
        raise SpaceFileError(where, 1, 1, "is empty")
    return _Builder(_Field(where, "", node)).space()


@dataclass(frozen=True)
class _Field:
    """A value of the file, with its name and place for messages."""

    path: str
    name: str
    node: Any

    def __str__(self) -> str:
        return self.name or "the file"

    def fail(self, message: str) -> NoReturn:
        mark = self.node.start_mark
        text = f"{self} {message}"
        raise SpaceFileError(self.path, mark.line + 1, mark.column + 1, text)

    @property
    def found(self) -> str:
        """The value as messages quote it."""
        if self.node.id == "scalar":
            return repr(self.node.value)
        return {"sequence": "a list", "mapping": "a mapping"}[self.node.id]

    def text(self) -> str:
        """A scalar's text."""
        if self.node.id != "scalar":
            self.fail(f"is {self.found}; expected one word")
        return str(self.node.value)

    def number(self, largest: int = _LARGEST) -> int:
        """A whole number from 1 to `largest`."""
        text = self.node.value if self.node.id == "scalar" else ""
        if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII) or int(text) > largest:
            self.fail(f"is {self.found}; expected a whole number from 1 to {largest}")
        return int(text)

    def odd_numbers(self) -> list[int]:
        """Kernels: one odd number or a list of them."""
        numbers = self.numbers()
        for field in self.items() if self.node.id == "sequence" else [self]:
            if field.number() % 2 == 0:
                field.fail(f"is {field.found}; expected an odd number")
        return numbers

    def numbers(self) -> list[int]:
        """One number or a list of different ones."""
        if self.node.id == "scalar":
            return [self.number()]
        numbers = [item.number() for item in self.items()]
        if len(set(numbers)) < len(numbers):
            self.fail("names a number twice")
        return numbers

    def items(self) -> list["_Field"]:
        """The entries of a list, at least one."""
        if self.node.id != "sequence" or not self.node.value:
            self.fail(f"is {self.found}; expected a list")
        return [
            _Field(self.path, f"{self.name}[{index}]", item)
            for index, item in enumerate(self.node.value)
        ]

    def fields(self, required: Sequence[str], optional: Sequence[str] = ()) -> "_Fields":
        """The entries of a mapping of these names."""
        if self.node.id != "mapping":
            self.fail(f"is {self.found}; expected a mapping of {', '.join(required)}")
        known = (*required, *optional)
        found: dict[str, _Field] = {}
        for key, value in self.node.value:
            name = _Field(self.path, f"a key of {self}", key).text()
            entry = _Field(self.path, f"{self.name}.{name}".lstrip("."), value)
            if name not in known or name in found:
                fault = "stands there twice" if name in found else "is not known"
                _Field(self.path, entry.name, key).fail(f"{fault}; {self} takes {', '.join(known)}")
            found[name] = entry
        missing = [name for name in required if name not in found]
        if missing:
            self.fail(f"lacks {', '.join(missing)}")
        return _Fields(found)


@dataclass(frozen=True)
class _Fields:
    """The entries of a mapping, whose names have been checked."""

    entries: dict[str, _Field]

    def __getitem__(self, name: str) -> _Field:
        return self.entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def number(self, name: str, default: int, largest: int = _LARGEST) -> int:
        """The whole number there, else `default`."""
        return self[name].number(largest) if name in self else default


@dataclass(frozen=True)
class _Choice:
    """A token and the block it stands for, with its shape left open."""

    token: str
    kind: BlockKind
    kernel: int
    expansion: int


class _Builder:
    """Follows the file from the input to the classifier, adding layers."""

    def __init__(self, file: _Field) -> None:
        self.file = file
        self.top = file.fields(["name", "input", "stem", "stages"], ["version", "cells", "tail"])
        self.input = self.top["input"].fields(["channels", "resolution", "classes"])
        self.channels = self.input["channels"].number()
        self.resolution_px = self.input["resolution"].number()
        self.layers: list[Layer] = []
        self.slots: list[Slot] = []
        self.node = 0
        self.cells: dict[str, tuple[int, list[_Choice], int]] = {}

    def space(self) -> SearchSpace:
        """The space that the file describes."""
        name = self.top["name"].text()
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) or name in space_names():
            self.top["name"].fail(
                f"is {name!r}; expected small letters, digits and _, and no space of Tailor's own: "
                + ", ".join(space_names())
            )
        in_shape = (self.channels, self.resolution_px)
        n_classes = self.input["classes"].number()
        version = self.top.number("version", 1)
        self.fixed(self.top["stem"])
        if "cells" in self.top:
            self.read_cells(self.top["cells"])
        for stage in self.top["stages"].items():
            self.stage(stage)
        if not self.slots:
            self.top["stages"].fail("decide nothing; expected a stage with choices or a cell")
        if "tail" in self.top:
            for entry in self.top["tail"].items():
                self.fixed(entry)
        shape = (self.channels, n_classes, self.resolution_px)
        self.chain([BlockSpec(BlockKind.CLASSIFIER, 1, 1, 1, *shape)])
        return SearchSpace(
            name, version, *in_shape, n_classes, tuple(self.slots), tuple(self.layers)
        )

    def read_cells(self, cells: _Field) -> None:
        """Note what each cell is made of; its slots are added when it first occurs."""
        if cells.node.id != "mapping":
            cells.fail(f"is {cells.found}; expected a mapping of names")
        names = [_Field(cells.path, "a cell's name", key).text() for key, _ in cells.node.value]
        fields = cells.fields(names)
        for name in names:
            cell = fields[name].fields(["nodes", "choices"])
            n_nodes = cell["nodes"].number(_MOST_NODES)
            if n_nodes == 1:
                cell["nodes"].fail(f"is '1'; expected a whole number from 2 to {_MOST_NODES}")
            self.cells[name] = (n_nodes, self.choices(cell["choices"], _IN_CELLS), -1)

    def stage(self, stage: _Field) -> None:
        """Layers decided one by one, a fixed layer, or a cell."""
        keys = [key.value for key, _ in stage.node.value] if stage.node.id == "mapping" else []
        if "choices" in keys:
            self.decided(stage)
        elif "cell" in keys:
            self.cell(stage.fields(["cell"], ["repeat"]))
        elif "block" in keys:
            self.fixed(stage)
        else:
            stage.fail(f"is {stage.found}; expected a mapping with choices, cell or block")

    def decided(self, stage: _Field) -> None:
        """`repeat` layers, each with a slot of its own; the first may change the shape."""
        fields = stage.fields(["choices"], ["channels", "repeat", "stride"])
        choices = self.choices(fields["choices"], _IN_STAGES)
        channels = fields.number("channels", self.channels)
        first_stride = fields.number("stride", 1)
        for position in range(fields.number("repeat", 1, _MOST_REPEATS)):
            stride = first_stride if position == 0 else 1
            blocks = {
                choice.token: block
                for choice in choices
                for block in [self.block(choice, channels, stride)]
                if _fits(block)
            }
            if not blocks:
                fields["choices"].fail(
                    f"hold nothing that goes from {self.channels} to {channels} channels at "
                    f"stride {stride} on {self.resolution_px} pixels"
                )
            self.chain(list(blocks.values()), len(self.slots))
            self.slots.append(Slot(f"{_short(stage.name)}.{position}", tuple(blocks)))

    def cell(self, fields: _Fields) -> None:
        """A cell, `repeat` times; all that bear its name share its decisions."""
        name = fields["cell"].text()
        if name not in self.cells:
            known = ", ".join(self.cells) or "none"
            fields["cell"].fail(f"is {name!r}; expected one of the cells: {known}")
        n_nodes, choices, first_slot = self.cells[name]
        edges = sorted(combinations(range(n_nodes), 2), key=lambda edge: edge[::-1])
        if first_slot < 0:
            first_slot = len(self.slots)
            self.cells[name] = (n_nodes, choices, first_slot)
            tokens = tuple(choice.token for choice in choices)
            self.slots += [Slot(f"{name}.{source}->{target}", tokens) for source, target in edges]
        blocks = tuple(self.block(choice, self.channels, 1) for choice in choices)
        for block, choice in zip(blocks, choices, strict=True):
            if not _fits(block):
                fields["cell"].fail(f"is {name!r}, whose {choice.token} cannot be built as {block}")
        for _ in range(fields.number("repeat", 1, _MOST_REPEATS)):
            self.layers += [
                Layer(blocks, first_slot + i, self.node + source, self.node + target)
                for i, (source, target) in enumerate(edges)
            ]
            self.node += n_nodes - 1

    def fixed(self, field: _Field) -> None:
        """One layer that is not decided."""
        fields = field.fields(["block"], ["kernel", "expansion", "stride", "channels"])
        kind = _kind(fields["block"], _FIXED)
        kernels = fields["kernel"].odd_numbers() if "kernel" in fields else [1]
        if len(kernels) > 1:
            fields["kernel"].fail("is a list; expected one odd number")
        choice = _Choice("", kind, kernels[0], fields.number("expansion", 1))
        channels = fields.number("channels", self.channels)
        block = self.block(choice, channels, fields.number("stride", 1))
        if not _fits(block):
            field.fail(f"cannot be built as {block}; {_RULES[kind]}")
        self.chain([block])

    def choices(self, field: _Field, kinds: Sequence[BlockKind]) -> list[_Choice]:
        """Every combination that a list of choices stands for."""
        found: list[_Choice] = []
        for item in field.items():
            for choice in self.choice(item, kinds):
                if any(choice.token == other.token for other in found):
                    item.fail(f"gives {choice.token} a second time")
                found.append(choice)
        return found

    def choice(self, field: _Field, kinds: Sequence[BlockKind]) -> Iterator[_Choice]:
        """A kind alone, or with kernels and expansions."""
        if field.node.id == "scalar":
            yield _Choice(_kind(field, kinds).value, _kind(field, kinds), 1, 1)
            return
        fields = field.fields(["block"], ["kernels", "expansions", "name"])
        kind = _kind(fields["block"], kinds)
        kernels = fields["kernels"].odd_numbers() if "kernels" in fields else [1]
        expansions = fields["expansions"].numbers() if "expansions" in fields else [1]
        if "expansions" in fields and kind is not BlockKind.MBCONV:
            fields["expansions"].fail(f"is given for {kind}; only mbconv expands")
        name = fields["name"].text() if "name" in fields else ""
        if name and (len(kernels) * len(expansions) > 1 or not re.fullmatch(r"\w{1,40}", name)):
            fields["name"].fail(
                f"is {name!r}; expected letters, digits and _, for one kernel and one expansion"
            )
        for kernel in kernels:
            for expansion in expansions:
                parts = [str(kind)]
                parts += [f"k{kernel}"] if "kernels" in fields else []
                parts += [f"e{expansion}"] if "expansions" in fields else []
                yield _Choice(name or "_".join(parts), kind, kernel, expansion)

    def block(self, choice: _Choice, channels: int, stride: int) -> BlockSpec:
        """The block of `choice` at the current place."""
        shape = (stride, self.channels, channels, self.resolution_px)
        return BlockSpec(choice.kind, choice.kernel, choice.expansion, *shape)

    def chain(self, blocks: list[BlockSpec], slot: int | None = None) -> None:
        """Add a layer after the last one."""
        self.layers.append(Layer(tuple(blocks), slot, self.node, self.node + 1))
        self.node += 1
        self.channels, self.resolution_px = blocks[0].out_channels, blocks[0].out_resolution_px


def _kind(field: _Field, kinds: Sequence[BlockKind]) -> BlockKind:
    text = field.text()
    if text not in kinds:
        field.fail(f"is {text!r}; expected one of {', '.join(kinds)}")
    return BlockKind(text)


def _short(name: str) -> str:
    """``stages[2]`` as ``stage3``, as the spaces of Tailor name theirs."""
    return f"stage{int(name.rpartition('[')[2].rstrip(']')) + 1}"


def _fits(block: BlockSpec) -> bool:
    """Whether a block of its kind can have its shape."""
    same_channels = block.in_channels == block.out_channels
    if block.kind in _SAME_SHAPE | _NORMS:
        return same_channels and block.stride == 1
    if block.kind in _POOLS:
        return same_channels
    if block.kind in _UNITS:
        even = block.in_channels % 2 == 0
        return (
            (same_channels and even)
            if block.stride == 1
            else (block.out_channels > block.in_channels)
        )
    return True
