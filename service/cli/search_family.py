"""`tailor search clone|extend|derive|reproduce`, and what searches look like side by side."""

from typing import Annotated

import typer
from rich.tree import Tree

from service.cli.connection import (
    DEFAULT_URL,
    Json,
    Key,
    Url,
    connect,
    ms,
    print_json,
    print_table,
    print_text,
)
from service.cli.plot import Dot, scatter
from service.cli.progress import accuracy, finish, fraction, measured_ms
from service.cli.search_options import (
    AnotherTarget,
    Follow,
    GpuHours,
    IdempotencyKey,
    Search,
    TagsGiven,
    Timeout,
    Wait,
    WallMinutes,
    pairs,
)
from service.client.asking import given
from service.searches.schemas import Front, FrontPoint, Lineage

_LETTERS = {"found": "F", "derived": "D", "random": "r", "hand_made": "h", "probe": "."}


def clone(
    search: Search,
    target: AnotherTarget = None,
    budget_ms: Annotated[float | None, typer.Option(help="Another budget.")] = None,
    space: Annotated[str | None, typer.Option(help="Another search space.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Another data set.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Another length.")] = None,
    algorithm: Annotated[str | None, typer.Option(help="Another algorithm.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed.")] = None,
    priority: Annotated[int | None, typer.Option(help="Another priority.")] = None,
    tag: TagsGiven = None,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = False,
    follow: Follow = False,
    timeout_minutes: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Queue the same search once more, with what the options change."""
    changes = given(
        {
            "target": target,
            "latency_budget_ms": budget_ms,
            "search_space": space,
            "dataset": dataset,
            "epochs": epochs,
            "algorithm": algorithm,
            "seed": seed,
            "priority": priority,
            "tags": pairs(tag) or None,
        }
    )
    with connect(url, api_key) as client:
        made = client.clone_search(search, idempotency_key=idempotency_key, **changes)
        finish(client, made, wait=wait, follow=follow, minutes=timeout_minutes, json=json)


def extend(
    search: Search,
    epochs: Annotated[int | None, typer.Option(min=1, help="More than it had.")] = None,
    wall_minutes: WallMinutes = None,
    gpu_hours: GpuHours = None,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Let it run to its end.")] = False,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = False,
    follow: Follow = False,
    timeout_minutes: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Go on with a search that has ended: more epochs, or other limits."""
    limits = given({"wall_minutes": wall_minutes, "gpu_hours": gpu_hours})
    with connect(url, api_key) as client:
        made = client.extend_search(
            search,
            epochs=epochs,
            limits=limits if limits or no_limits else None,
            idempotency_key=idempotency_key,
        )
        finish(client, made, wait=wait, follow=follow, minutes=timeout_minutes, json=json)


def derive(
    search: Search,
    budget_ms: Annotated[
        list[float] | None, typer.Option("--budget-ms", help="May be repeated.")
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="So many budgets, spread over what the target can do.")
    ] = None,
    target: AnotherTarget = None,
    train_epochs: Annotated[
        int, typer.Option(min=0, help="Of training each on; 0 takes the supernet's weights.")
    ] = 0,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = False,
    follow: Follow = False,
    timeout_minutes: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Networks at other budgets from a search's supernet, without searching again."""
    with connect(url, api_key) as client:
        made = client.derive(
            search,
            budgets_ms=budget_ms or (),
            points=points,
            target=target,
            train_epochs=train_epochs,
            idempotency_key=idempotency_key,
        )
        finish(client, made, wait=wait, follow=follow, minutes=timeout_minutes, json=json)


def reproduce(
    search: Search,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = False,
    follow: Follow = False,
    timeout_minutes: Timeout = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Run a search once more and say whether it comes out the same."""
    with connect(url, api_key) as client:
        made = client.reproduce_search(search, idempotency_key=idempotency_key)
        finish(client, made, wait=wait, follow=follow, minutes=timeout_minutes, json=json)


def compare(
    searches: Annotated[list[str], typer.Argument(help="Two to six ids.", show_default=False)],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Show searches side by side: what they do not share, and what they found."""
    with connect(url, api_key) as client:
        found = client.compare(searches)
    if json:
        return print_json(found)
    rows: list[tuple[object, ...]] = [("status", *(item.status for item in found.items))]
    rows += [(name, *values) for name, values in found.differs.items()]
    rows += [
        ("measured", *(ms(measured_ms(item)) for item in found.items)),
        ("accuracy", *(accuracy(item) for item in found.items)),
    ]
    print_table(["", *(item.id for item in found.items)], rows)
    if found.agreement is not None:
        print_text(f"Their networks decide {found.agreement:.0%} of the slots alike.")
    return None


def front(search: Search, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Show accuracy against latency of a search's networks and of those derived from it."""
    with connect(url, api_key) as client:
        found = client.front(search)
    if json:
        return print_json(found)
    print_text(*_pictures(found))
    print_table(
        ["source", "measured", "accuracy", "on the front", "verified", "target", "architecture"],
        [
            (
                point.source,
                ms(point.measured_ms),
                fraction(point.test_accuracy),
                "knee" if point.knee else "yes" if point.on_front else "",
                "yes" if point.verified else "",
                point.target,
                point.architecture,
            )
            for point in sorted(found.items, key=lambda point: point.measured_ms or 0.0)
        ],
    )
    if found.best is not None:
        best = f"{found.best.architecture}, {ms(found.best.measured_ms)}"
        print_text(f"Best within the budget: {best}")
    return None


def _pictures(found: Front) -> list[str]:
    """A picture a target, of the networks whose accuracy is known."""
    pictures = []
    known = [p for p in found.items if p.measured_ms is not None and p.test_accuracy is not None]
    for target in sorted({point.target for point in known}):
        dots = [_dot(point) for point in known if point.target == target]
        name = f"accuracy on {target}; F found, D derived, r random, h hand-made"
        pictures.append(scatter(dots, "measured ms", name))
    return pictures


def _dot(point: FrontPoint) -> Dot:
    return Dot(point.measured_ms or 0.0, point.test_accuracy or 0.0, _LETTERS[point.source])


def lineage(
    search: Search, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False
) -> None:
    """Show what a search comes from and what came of it."""
    with connect(url, api_key) as client:
        found = client.lineage(search)
    if json:
        return print_json(found)
    print_text(_tree(found))
    return None


def _tree(found: Lineage) -> Tree:
    tree = Tree(found.search)
    groups = {
        "comes from": found.ancestors,
        "led to": found.children,
        "priced by": [
            f"{m.id}, version {m.version}, of {m.measurements} measurements on {m.target}"
            for m in found.latency_models
        ],
        "measured": [
            f"{m.id}: {ms(m.latency_ms)} by {m.agent} on {m.target}, {m.measured_at:%Y-%m-%d %H:%M}"
            for m in found.measurements
        ],
    }
    for name, lines in groups.items():
        if lines:
            branch = tree.add(name)
            for line in lines:
                branch.add(line)
    return tree


COMMANDS = (clone, extend, derive, reproduce, compare, front, lineage)
