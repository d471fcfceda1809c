"""Options every command that talks to the API shares, and how it prints."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.table import Table

from service.client.client import Client
from service.settings import Settings

Url = Annotated[str, typer.Option(envvar="TAILOR_URL", help="Where the API answers.")]
Key = Annotated[
    str | None,
    typer.Option("--api-key", envvar="TAILOR_API_KEY", help="tlr_...", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DEFAULT_URL = "http://127.0.0.1:8000"
EXIT_USAGE = 2
EXIT_TIMEOUT = 6
EXIT_STATUS = {"succeeded": 0, "infeasible": 3, "failed": 4, "cancelled": 5}

_WIDTH_OF_A_PIPE = 160
_stdout = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE)
_ID = re.compile(r"[a-z]{3,4}_[0-9A-HJKMNP-TV-Z]{26}")


def connect(url: str, key: str | None) -> Client:
    """A client; without a key, the one the demo left in `TAILOR_HOME` is used."""
    return Client(url, key or saved_key(Settings().home))


def key_path(home: Path) -> Path:
    """Where the demo keeps the key that the API's first start showed."""
    return home / "api-key"


def saved_key(home: Path) -> str | None:
    """The key the demo kept, if it did."""
    path = key_path(home)
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """Print `value` as JSON on standard output, and nothing else."""
    if isinstance(value, BaseModel):
        document: Any = value.model_dump(mode="json")
    elif isinstance(value, dict):
        document = value
    else:
        document = [item.model_dump(mode="json") for item in value]
    print(json.dumps(document, indent=2))  # noqa: T201


def print_text(*lines: RenderableType) -> None:
    """Print what people read: text, which is never broken, or a table of `rich`."""
    for line in lines:
        _stdout.print(line, soft_wrap=isinstance(line, str), highlight=False, markup=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a table; `-` where there is nothing, and no id ever broken in two."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    cells = [[_text(cell) for cell in row] for row in rows]
    for index, column in enumerate(columns):
        is_id = any(_ID.fullmatch(row[index]) for row in cells)
        table.add_column(column, overflow="fold", no_wrap=is_id, min_width=31 if is_id else None)
    for row in cells:
        table.add_row(*row)
    _stdout.print(table)


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:%Y-%m-%d %H:%M}" if isinstance(cell, datetime) else str(cell)


def ms(value: float | None) -> str:
    """A latency for people, with its unit."""
    return "-" if value is None else f"{value:.4g} ms"


@contextmanager
def complaining() -> Iterator[None]:
    """Turns what is wrong with a store or a backup into one line and an exit status."""
    from service.errors import StoreUnfitError

    try:
        yield
    except StoreUnfitError as error:
        Console(stderr=True).print(f"[red]error[/red] {error}", soft_wrap=True)
        sys.exit(EXIT_USAGE)
