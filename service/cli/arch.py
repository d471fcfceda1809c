"""`tailor arch`: search spaces and their networks, described offline."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from search_core.errors import SearchCoreError
from search_core.space.describe import DescribedLayer, Description, describe
from search_core.space.files import load_space
from search_core.space.presets import get_space, space_names
from search_core.space.published import published_names
from search_core.space.space import SearchSpace
from service.cli.connection import EXIT_USAGE, Json, print_json, print_table

app = typer.Typer(help="Architectures: what a string stands for, offline.", no_args_is_help=True)

Width = Annotated[
    int | None,
    typer.Option(min=1, help="For 22 tokens of proxyless_imagenet.", show_default=False),
]


@app.command("list")
def list_architectures(json: Json = False) -> None:
    """List search spaces and the published networks of each."""
    spaces = [get_space(name) for name in space_names()]
    if json:
        print_json(
            {
                "spaces": [
                    {
                        "name": space.name,
                        "version": space.version,
                        "digest": space.digest,
                        "size": space.size,
                        "slots": len(space.slots),
                        "published": published_names(space.name),
                    }
                    for space in spaces
                ]
            }
        )
        return
    print_table(
        ["space", "slots", "architectures", "channels", "px", "classes", "published networks"],
        [
            (
                f"{space.name}@{space.version}",
                len(space.slots),
                _size(space.size),
                space.in_channels,
                space.resolution_px,
                space.n_classes,
                ", ".join(published_names(space.name)) or None,
            )
            for space in spaces
        ],
    )


@app.command("describe")
def describe_architecture(
    space: Annotated[str, typer.Option(help="Search space, or a file that describes one.")],
    arch: Annotated[str, typer.Option(help="Compact string, or a published network's name.")],
    stem_channels: Width = None,
    mix_channels: Width = None,
    json: Json = False,
) -> None:
    """Show a network layer by layer, with parameters and multiply-accumulates."""
    with _one_line_errors():
        found = describe(
            _space(space), arch, stem_channels=stem_channels, mix_channels=mix_channels
        )
    if json:
        print_json(_document(found))
        return
    rows = [_row(layer) for layer in found.layers]
    total = ["total"] + [None] * (len(_COLUMNS) - 3)
    print_table(_COLUMNS, [*rows, (*total, f"{found.graph.parameters:,}", f"{found.graph.macs:,}")])


def _size(size: int) -> str:
    """Every digit of a small number, the order of magnitude of a large one."""
    return f"{size:,}" if size < _MANY else f"about 10^{len(str(size)) - 1}"


_MANY = 10**9
_COLUMNS = ("layer", "block", "in", "out", "kernel", "stride", "px", "params", "MACs")


def _space(name: str) -> SearchSpace:
    return load_space(name) if name.endswith((".yaml", ".yml", ".json")) else get_space(name)


def _row(layer: DescribedLayer) -> tuple[object, ...]:
    block = layer.block
    return (
        layer.name,
        block.kind if block.expansion == 1 else f"{block.kind} x{block.expansion}",
        block.in_channels,
        block.out_channels,
        block.kernel,
        block.stride,
        block.resolution_px,
        f"{block.parameters:,}",
        f"{block.macs:,}",
    )


def _document(found: Description) -> dict[str, object]:
    return {
        "space": found.space,
        "architecture": found.architecture,
        "params": found.graph.parameters,
        "macs": found.graph.macs,
        "layers": [
            {
                "name": layer.name,
                "block": str(layer.block),
                "kind": str(layer.block.kind),
                "in_channels": layer.block.in_channels,
                "out_channels": layer.block.out_channels,
                "kernel": layer.block.kernel,
                "expansion": layer.block.expansion,
                "stride": layer.block.stride,
                "resolution_px": layer.block.resolution_px,
                "source": layer.source,
                "target": layer.target,
                "params": layer.block.parameters,
                "macs": layer.block.macs,
            }
            for layer in found.layers
        ],
    }


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except SearchCoreError as error:
        Console(stderr=True).print(f"[red]error[/red] {error}", soft_wrap=True)
        raise typer.Exit(EXIT_USAGE) from error
