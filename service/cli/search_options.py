"""The options of `tailor search`, each said once."""

from collections.abc import Sequence
from typing import Annotated

import typer

Search = Annotated[str, typer.Argument(help="srch_...", show_default=False)]
Ids = Annotated[list[str], typer.Argument(help="srch_...", show_default=False)]
Targets = Annotated[
    list[str], typer.Option("--target", help="Id of the target, tgt_...; may be repeated.")
]
Budgets = Annotated[
    list[float],
    typer.Option("--budget-ms", help="Upper bound of the measured median, one a target or one."),
]
Together = Annotated[
    str | None,
    typer.Option(help="Of several: worst_case, one network within all; each, one for each."),
]
Space = Annotated[str, typer.Option(help="Search space.")]
Dataset = Annotated[str, typer.Option(help="Data set.")]
Epochs = Annotated[int, typer.Option(help="Search and training together.")]
Algorithm = Annotated[
    str, typer.Option(help="dsnas, dsnas_paired, proxyless, reinforce, ... (see the API).")
]
Gpus = Annotated[int, typer.Option(min=0, max=1, help="That the worker must have.")]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="NAME=VALUE that the worker must have; may be repeated."),
]
TagsGiven = Annotated[list[str] | None, typer.Option("--tag", help="NAME=VALUE; may be repeated.")]
WallMinutes = Annotated[float | None, typer.Option(help="Of running, then it is ended.")]
GpuHours = Annotated[float | None, typer.Option(help="Of GPUs, then it is ended.")]
IdempotencyKey = Annotated[
    str | None, typer.Option(help="The same key makes the same search once.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Return when it has ended.")]
Follow = Annotated[bool, typer.Option("--follow", help="Show progress until it ends.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout-minutes", help="To wait at most; then exit with 6.")
]
AnotherTarget = Annotated[str | None, typer.Option("--target", help="Another target.")]


def pairs(given_words: Sequence[str] | None) -> dict[str, str]:
    """`NAME=VALUE` words as a dictionary."""
    found = {}
    for word in given_words or ():
        name, is_there, value = word.partition("=")
        if not (name and is_there):
            raise typer.BadParameter(f"{word!r} is not NAME=VALUE")
        found[name] = value
    return found
