"""`tailor search events` and `tailor search metrics`: what a search has told."""

from typing import Annotated

import typer

from service.cli.connection import DEFAULT_URL, Json, Key, Url, connect, print_json, print_table

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40


def events(
    search_id: str,
    after: Annotated[int, typer.Option(min=0, help="Number of the last event seen.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", help="Until the search has ended.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Print the events of a search, one a line; with `--json` as JSON lines."""
    with connect(url, api_key) as client:
        told = (
            client.stream(search_id, after=after)
            if follow
            else client.past_events(search_id, after)
        )
        for event in told:
            if json:
                print(event.model_dump_json(), flush=True)  # noqa: T201
            else:
                said = ", ".join(f"{name} {value}" for name, value in event.data.items())
                time = f"{event.created_at:%Y-%m-%d %H:%M:%S}"
                print(f"{event.number:6}  {time}  {event.type:12} {said}", flush=True)  # noqa: T201


def metrics(
    search_id: str,
    name: Annotated[list[str] | None, typer.Option(help="Only this metric; repeat it.")] = None,
    max_points: Annotated[int, typer.Option(min=4, max=10_000, help="Of each curve.")] = 500,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Print the metrics of a search as curves."""
    with connect(url, api_key) as client:
        found = client.metrics(search_id, name or [], max_points)
    if json:
        return print_json(found)
    return print_table(
        ["phase", "metric", "points", "steps", "first", "last", "least", "most", "curve"],
        [
            (
                curve.phase,
                curve.name,
                curve.n_points,
                f"{curve.steps[0]} to {curve.steps[-1]}",
                *(f"{v:.4g}" for v in (curve.values[0], curve.values[-1])),
                *(f"{v:.4g}" for v in (min(curve.values), max(curve.values))),
                sparkline(curve.values),
            )
            for curve in found.items
        ],
    )


def sparkline(values: list[float]) -> str:
    """A curve as a line of bars, at most `_WIDTH` wide."""
    shown = [values[i * len(values) // _WIDTH] for i in range(_WIDTH)]
    if len(values) < _WIDTH:
        shown = values
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)
