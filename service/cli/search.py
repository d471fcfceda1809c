"""`tailor search`: ask for searches, watch them, act on them. `search_family` has the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.connection import (
    DEFAULT_URL,
    EXIT_STATUS,
    EXIT_USAGE,
    Json,
    Key,
    Url,
    connect,
    ms,
    print_json,
    print_table,
    print_text,
)
from service.cli.progress import accuracy, effort_table, finish, measured_ms, print_search
from service.cli.search_options import (
    Algorithm,
    Budgets,
    Dataset,
    Epochs,
    Follow,
    GpuHours,
    Gpus,
    IdempotencyKey,
    Ids,
    Labels,
    Search,
    Space,
    TagsGiven,
    Targets,
    Timeout,
    Together,
    Wait,
    WallMinutes,
    pairs,
)
from service.client.asking import given
from service.searches.schemas import Feasibility, SearchRead

app = typer.Typer(help="Searches: a budget in, a measured network out.", no_args_is_help=True)


# -- asking for searches ---------------------------------------------------------------


@app.command()
def create(
    target: Targets,
    budget_ms: Budgets,
    together: Together = None,
    space: Space = "micro",
    dataset: Dataset = "digits",
    epochs: Epochs = 24,
    train_epochs: Annotated[
        int | None, typer.Option(help="Of training a decided network on.", show_default="the rest")
    ] = None,
    algorithm: Algorithm = "dsnas",
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
    random_baseline: Annotated[bool, typer.Option(help="Compare with a random network.")] = True,
    hand_made_baseline: Annotated[bool, typer.Option(help="And with a uniform one.")] = True,
    warm_start: Annotated[
        str | None, typer.Option(help="A search of the same space to take the weights of.")
    ] = None,
    priority: Annotated[int, typer.Option(help="From -100 to 100; larger goes first.")] = 0,
    wall_minutes: WallMinutes = None,
    gpu_hours: GpuHours = None,
    queue_minutes: Annotated[
        float | None, typer.Option(help="Until a worker begins, then it is ended.")
    ] = None,
    stop_on_collapse: Annotated[
        bool,
        typer.Option("--stop-on-collapse", help="End it when next to nothing is left to choose."),
    ] = False,
    gpus: Gpus = 0,
    label: Labels = None,
    tag: TagsGiven = None,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = False,
    follow: Follow = False,
    timeout_minutes: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Queue a search."""
    limits = {
        "wall_minutes": wall_minutes,
        "gpu_hours": gpu_hours,
        "queue_minutes": queue_minutes,
        "stop_on_collapse": stop_on_collapse or None,
    }
    optional = {"together": together, "train_epochs": train_epochs, "warm_start": warm_start}
    spec = {
        **_aims(target, budget_ms),
        "search_space": space,
        "dataset": dataset,
        "epochs": epochs,
        "algorithm": algorithm,
        "seed": seed,
        "random_baseline": random_baseline,
        "hand_made_baseline": hand_made_baseline,
        "priority": priority,
        "limits": given(limits),
        "worker": {"gpus": gpus, "labels": pairs(label)},
        "tags": pairs(tag),
        **given(optional),
    }
    with connect(url, api_key) as client:
        search = client.create_search(idempotency_key=idempotency_key, **spec)
        finish(client, search, wait=wait, follow=follow, minutes=timeout_minutes, json=json)


@app.command()
def preflight(
    target: Targets,
    budget_ms: Budgets,
    together: Together = None,
    space: Space = "micro",
    dataset: Dataset = "digits",
    epochs: Epochs = 24,
    algorithm: Algorithm = "dsnas",
    gpus: Gpus = 0,
    label: Labels = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Say which budgets the target can meet and what the search will cost, before it starts."""
    with connect(url, api_key) as client:
        found = client.preflight(
            **_aims(target, budget_ms),
            **given({"together": together}),
            search_space=space,
            dataset=dataset,
            epochs=epochs,
            algorithm=algorithm,
            worker={"gpus": gpus, "labels": pairs(label)},
        )
    if json:
        return print_json(found)
    _print_feasibility(found)
    return None


def _aims(targets: Sequence[str], budgets_ms: Sequence[float]) -> dict[str, Any]:
    """Targets and budgets as a request has them."""
    if len(targets) == len(budgets_ms) == 1:
        return {"target": targets[0], "latency_budget_ms": budgets_ms[0]}
    n = max(len(targets), len(budgets_ms))
    if {len(targets), len(budgets_ms)} - {1, n}:
        raise typer.BadParameter(
            f"{len(targets)} targets and {len(budgets_ms)} budgets do not go together; give as "
            "many of both, or one of either"
        )
    names = targets if len(targets) == n else list(targets) * n
    limits = budgets_ms if len(budgets_ms) == n else list(budgets_ms) * n
    rows = zip(names, limits, strict=True)
    return {"targets": [{"target": t, "latency_budget_ms": budget} for t, budget in rows]}


def _print_feasibility(found: Feasibility) -> None:
    columns = ["feasible", "fastest", "slowest", "missing measurements", "agents online"]
    several = len(found.targets) > 1
    print_table(
        (["target", "budget"] if several else []) + columns,
        [
            (
                *((one.target, ms(one.latency_budget_ms)) if several else ()),
                "unknown" if one.feasible is None else one.feasible,
                ms(one.fastest_ms),
                ms(one.slowest_ms),
                one.missing_measurements,
                one.agents_online,
            )
            for one in found.targets
        ],
    )
    if found.service is not None and found.service.code != "ready":
        print_text(found.service.text)
    if found.effort is not None:
        print_text(effort_table(found.effort))
    elif found.no_effort is not None:
        print_text(f"Time and memory are not known. {found.no_effort.text}")


# -- watching them ---------------------------------------------------------------------


@app.command("list")
def list_searches(
    status: Annotated[str | None, typer.Option(help="Only those with this status.")] = None,
    kind: Annotated[str | None, typer.Option(help="search, derive, extend or reproduce.")] = None,
    target: Annotated[str | None, typer.Option(help="Only of this target.")] = None,
    tag: TagsGiven = None,
    owner: Annotated[str | None, typer.Option(help="Only of this account.")] = None,
    parent: Annotated[str | None, typer.Option(help="Only made from this search.")] = None,
    archived: Annotated[
        bool | None, typer.Option(help="Only archived ones, or none of them.")
    ] = None,
    oldest_first: Annotated[bool, typer.Option("--oldest-first")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """List searches, newest first."""
    with connect(url, api_key) as client:
        wanted = client.searches(
            status,
            kind=kind,
            target=target,
            tags=pairs(tag),
            owner=owner,
            parent=parent,
            archived=archived,
            oldest_first=oldest_first,
        )
        found = [search for search, _ in zip(wanted, range(limit), strict=False)]
    if json:
        return print_json(found)
    print_table(["id", "status", "budget", "measured", "accuracy", "tags"], [*map(_row, found)])
    return None


def _row(search: SearchRead) -> tuple[object, ...]:
    return (
        search.id,
        search.status if search.status in EXIT_STATUS else f"{search.status}: {search.phase}",
        ", ".join(ms(budget.latency_budget_ms) for budget in search.spec.budgets),
        ms(measured_ms(search)),
        accuracy(search),
        " ".join(f"{name}={value}" for name, value in search.tags.items()),
    )


@app.command()
def show(search: Search, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Show a search."""
    with connect(url, api_key) as client:
        print_search(client.search(search), json=json)


@app.command()
def follow(search: Search, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Show a search's progress until it ends; while it is paused, that it is."""
    with connect(url, api_key) as client:
        finish(client, client.search(search), follow=True, json=json)


@app.command()
def wait(
    search: Search,
    timeout_minutes: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Return when a search has ended, with an exit status that says how."""
    with connect(url, api_key) as client:
        found = client.search(search)
        finish(client, found, wait=True, minutes=timeout_minutes, json=json)


# -- acting on them --------------------------------------------------------------------


@app.command()
def cancel(search: Ids, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Stop searches for good."""
    _act("cancel", search, url, api_key, json=json)


@app.command()
def pause(search: Ids, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Keep what searches have reached and give their workers back."""
    _act("pause", search, url, api_key, json=json)


@app.command()
def resume(search: Ids, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Queue paused searches again; they go on from their last checkpoints."""
    _act("resume", search, url, api_key, json=json)


@app.command()
def archive(
    search: Ids,
    undo: Annotated[bool, typer.Option("--undo", help="Fetch them back.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Put searches away: `list --no-archived` does not show them."""
    _act("unarchive" if undo else "archive", search, url, api_key, json=json)


@app.command()
def tag(
    search: Search,
    tags: Annotated[list[str] | None, typer.Argument(help="NAME=VALUE ...")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Name of a tag; may be repeated.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Give a search tags, or take some from it; the others stay."""
    changes = {**pairs(tags), **dict.fromkeys(remove or ())}
    with connect(url, api_key) as client:
        changed = client.tag_search(search, changes)
    if json:
        return print_json(changed)
    print_table(["tag", "value"], list(changed.tags.items()))
    return None


@app.command()
def priority(
    search: Search,
    value: Annotated[int, typer.Argument(help="Larger goes first.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Give a search another place in the queue. After `--`, the value may be negative."""
    with connect(url, api_key) as client:
        print_search(client.update_search(search, priority=value), json=json)


def _act(
    action: str, search_ids: Sequence[str], url: str, api_key: str | None, *, json: bool
) -> None:
    """One action on one search, which is shown then, or on many, each told of in a row."""
    with connect(url, api_key) as client:
        alone = {
            "cancel": client.cancel_search,
            "pause": client.pause_search,
            "resume": client.resume_search,
        }
        if len(search_ids) == 1 and action in alone:
            return print_search(alone[action](search_ids[0]), json=json)
        done = client.bulk(action, search_ids)
    if json:
        print_json(done)
    else:
        print_table(
            ["id", "done", "status", "why not"],
            [(item.id, item.done, item.status, item.detail) for item in done.items],
        )
    if not all(item.done for item in done.items):
        raise typer.Exit(EXIT_USAGE)
    return None


# -- what they found -------------------------------------------------------------------


@app.command()
def architecture(
    search: Search, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False
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
    search: Search,
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
            print_text(str(path))
