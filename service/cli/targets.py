"""`tailor targets`, `tailor measure`, `tailor spaces`."""

import time
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from service.cli.connection import DEFAULT_URL, Json, Key, Url, connect, ms, print_json, print_table

app = typer.Typer(help="What a search can aim at.", no_args_is_help=True)
_POLL_SECONDS = 0.5


@app.command("list")
def list_targets(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """List targets."""
    with connect(url, api_key) as client:
        targets = client.targets()
    if json:
        return print_json(targets)
    print_table(
        ["id", "agents online", "target"], [(t.id, t.agents_online, t.name) for t in targets]
    )
    return None


@app.command()
def show(target: str, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Show a target and its latency models."""
    with connect(url, api_key) as client:
        found, models = client.target(target), client.latency_models(target)
    if json:
        document = found.model_dump(mode="json")
        document["latency_models"] = [m.model_dump(mode="json") for m in models]
        return print_json(document)
    print_table(["", ""], [("id", found.id), *found.profile.items()])
    print_table(
        ["latency model", "space", "version", "active", "fastest", "slowest", "error", "stale"],
        [
            (
                m.id,
                m.search_space,
                m.version,
                m.active,
                ms(m.fastest_ms),
                ms(m.slowest_ms),
                f"{m.error:.1%}",
                m.stale["text"] if m.stale else None,
            )
            for m in models
        ],
    )
    return None


def measure(
    target: Annotated[str, typer.Argument(help="Id of the target, tgt_...")],
    space: Annotated[str, typer.Option(help="Search space to measure.")] = "micro",
    again: Annotated[bool, typer.Option(help="Measure anew what has been measured.")] = False,
    until: Annotated[
        str | None,
        typer.Option(
            help="Stop measuring blocks once 9 networks in 10 are predicted to within this, such "
            "as 5%; the rest is predicted."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is measured.")] = True,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Have a search space measured on a target."""
    with connect(url, api_key) as client:
        kit = client.create_kit(target, space, again=again, until_half_width=_share(until))
        columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, disable=json or not wait) as progress:
            task = progress.add_task("", total=kit.total)
            while wait and kit.status == "measuring":
                progress.update(task, completed=kit.completed)
                time.sleep(_POLL_SECONDS)
                kit = client.kit(kit.id)
            progress.update(task, completed=kit.completed)
    if json:
        print_json(kit)
    else:
        print_table(
            ["kit", "status", "measured", "flagged", "failed", "agents online"],
            [
                (
                    kit.id,
                    kit.status,
                    f"{kit.completed}/{kit.total}",
                    kit.flagged,
                    kit.failed,
                    kit.agents_online,
                )
            ],
        )


def _share(text: str | None) -> float | None:
    """``5%`` or ``0.05`` as 0.05."""
    if text is None:
        return None
    try:
        number, percent = float(text.removesuffix("%")), text.endswith("%")
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no share; write 5% or 0.05") from None
    return number / 100.0 if percent else number


def spaces(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """List search spaces."""
    with connect(url, api_key) as client:
        found = client.search_spaces()
    if json:
        return print_json(found)
    print_table(
        ["name", "architectures", "slots", "distinct blocks", "input"],
        [
            (
                f"{s.name}@{s.version}",
                f"{s.size:,}",
                len(s.slots),
                s.n_distinct_blocks,
                f"{s.in_channels}x{s.resolution_px}x{s.resolution_px}, {s.n_classes} classes",
            )
            for s in found
        ],
    )
    return None
