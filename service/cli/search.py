"""`tailor search`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from service.cli.connection import (
    DEFAULT_URL,
    EXIT_STATUS,
    Json,
    Key,
    Url,
    connect,
    ms,
    print_json,
    print_table,
)
from service.cli.progress import effort_table, follow_search, result_table
from service.searches.schemas import SearchRead

app = typer.Typer(help="Searches: a budget in, a measured network out.", no_args_is_help=True)

Target = Annotated[str, typer.Option(help="Id of the target, tgt_...")]
Budget = Annotated[float, typer.Option(help="Upper bound of the measured median, in ms.")]
Space = Annotated[str, typer.Option(help="Search space.")]
Dataset = Annotated[str, typer.Option(help="Data set.")]
Epochs = Annotated[int, typer.Option(help="Search and training together.")]
Algorithm = Annotated[
    str, typer.Option(help="dsnas, dsnas_paired, proxyless, reinforce, ... (see the API).")
]


@app.command()
def create(
    target: Target,
    budget_ms: Budget,
    space: Space = "micro",
    dataset: Dataset = "digits",
    epochs: Epochs = 24,
    algorithm: Algorithm = "dsnas",
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
    follow: Annotated[bool, typer.Option(help="Show progress until it ends.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Queue a search."""
    with connect(url, api_key) as client:
        search = client.create_search(
            target=target,
            latency_budget_ms=budget_ms,
            search_space=space,
            dataset=dataset,
            epochs=epochs,
            algorithm=algorithm,
            seed=seed,
        )
        if follow:
            search = follow_search(client, search.id, Console(stderr=True))
    _print(search, json=json)
    if follow:
        raise typer.Exit(EXIT_STATUS[search.status])


@app.command()
def preflight(
    target: Target,
    budget_ms: Budget,
    space: Space = "micro",
    dataset: Dataset = "digits",
    epochs: Epochs = 24,
    algorithm: Algorithm = "dsnas",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Say which budgets the target can meet and what the search will cost, before it starts."""
    with connect(url, api_key) as client:
        found = client.preflight(
            target=target,
            latency_budget_ms=budget_ms,
            search_space=space,
            dataset=dataset,
            epochs=epochs,
            algorithm=algorithm,
        )
    if json:
        return print_json(found)
    print_table(
        ["feasible", "fastest", "slowest", "missing measurements", "agents online"],
        [
            (
                "unknown" if found.feasible is None else found.feasible,
                ms(found.fastest_ms),
                ms(found.slowest_ms),
                found.missing_measurements,
                found.agents_online,
            )
        ],
    )
    if found.effort is not None:
        Console().print(effort_table(found.effort))
    elif found.no_effort is not None:
        Console().print(f"Time and memory are not known. {found.no_effort.text}", soft_wrap=True)
    return None


@app.command("list")
def list_searches(
    status: Annotated[str | None, typer.Option(help="Only those with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """List searches, newest first."""
    with connect(url, api_key) as client:
        found = [search for search, _ in zip(client.searches(status), range(limit), strict=False)]
    if json:
        return print_json(found)
    print_table(
        ["id", "status", "budget", "measured", "accuracy"],
        [
            (
                s.id,
                s.status if s.status in EXIT_STATUS else f"{s.status}: {s.phase}",
                ms(s.spec.latency_budget_ms),
                ms(s.result.network.measured.median_ms)
                if s.result and s.result.network.measured
                else None,
                f"{s.result.network.test_accuracy:.4f}"
                if s.result and s.result.network.test_accuracy is not None
                else None,
            )
            for s in found
        ],
    )
    return None


@app.command()
def show(search: str, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Show a search."""
    with connect(url, api_key) as client:
        _print(client.search(search), json=json)


@app.command()
def follow(search: str, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Show a search's progress until it ends."""
    with connect(url, api_key) as client:
        ended = follow_search(client, search, Console(stderr=True))
    _print(ended, json=json)
    raise typer.Exit(EXIT_STATUS[ended.status])


@app.command()
def cancel(search: str, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Stop a search."""
    with connect(url, api_key) as client:
        _print(client.cancel_search(search), json=json)


@app.command()
def architecture(
    search: str, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False
) -> None:
    """Show the network a search found, layer by layer."""
    with connect(url, api_key) as client:
        found = client.architecture(search)
    if json:
        return print_json(found)
    print_table(
        ["slot", "choice", "predicted"],
        [
            (i, token, ms(cost))
            for i, (token, cost) in enumerate(
                zip(found.architecture.split(), found.layer_ms, strict=True)
            )
        ],
    )
    return None


@app.command()
def download(
    search: str,
    folder: Annotated[Path, typer.Option(help="Where to put the files.")] = Path(),
    url: Url = DEFAULT_URL,
    api_key: Key = None,
) -> None:
    """Download a search's files: the network in four forms, and the manifest."""
    with connect(url, api_key) as client:
        folder.mkdir(parents=True, exist_ok=True)
        for artifact in client.artifacts(search).items:
            path = folder / artifact.name
            path.write_bytes(client.download(search, artifact.name))
            Console().print(str(path))


def _print(search: SearchRead, *, json: bool) -> None:
    if json:
        print_json(search)
    else:
        Console().print(result_table(search))
