"""`tailor webhooks`."""

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
    print_json,
    print_table,
)
from service.webhooks.schemas import DeliveryRead, WebhookRead, WebhookSecret

app = typer.Typer(help="Tell other systems what happens, signed and retried.", no_args_is_help=True)

Events = Annotated[
    list[str] | None,
    typer.Option("--event", help="search.succeeded, search.phase, target.stale, ...; repeat it."),
]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", help="name=value that a search must have; repeat it.")
]


@app.command()
def create(
    receiver: Annotated[str, typer.Argument(help="URL that is posted to.")],
    event: Events = None,
    tag: Tags = None,
    description: str = "",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Create a webhook; its secret is shown this once."""
    asked = {"events": event, "tags": _tags(tag)} if event else {"tags": _tags(tag)}
    with connect(url, api_key) as client:
        made = client.create_webhook(receiver, description=description, **asked)
    _print_secret(made, json=json)


@app.command("list")
def list_webhooks(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """List webhooks, without their secrets."""
    with connect(url, api_key) as client:
        webhooks = client.webhooks()
    if json:
        return print_json(webhooks)
    return _print_webhooks(webhooks)


@app.command()
def show(webhook_id: str, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Show a webhook, and why it was switched off if it was."""
    with connect(url, api_key) as client:
        webhook = client.webhook(webhook_id)
    if json:
        return print_json(webhook)
    return _print_webhooks([webhook])


@app.command()
def change(
    webhook_id: str,
    receiver: Annotated[str | None, typer.Option(help="URL that is posted to.")] = None,
    event: Events = None,
    tag: Tags = None,
    description: str | None = None,
    active: Annotated[bool | None, typer.Option("--active/--off")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Change what is given; `--active` forgives earlier failures."""
    asked = {
        "url": receiver,
        "events": event,
        "tags": _tags(tag) if tag is not None else None,
        "description": description,
        "active": active,
    }
    with connect(url, api_key) as client:
        webhook = client.change_webhook(webhook_id, **asked)
    if json:
        return print_json(webhook)
    return _print_webhooks([webhook])


@app.command()
def delete(webhook_id: str, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Remove a webhook and its delivery log."""
    with connect(url, api_key) as client:
        client.delete_webhook(webhook_id)


@app.command("rotate-secret")
def rotate_secret(
    webhook_id: str, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False
) -> None:
    """Make a new secret; for a day, deliveries are signed with the old one as well."""
    with connect(url, api_key) as client:
        made = client.rotate_webhook_secret(webhook_id)
    _print_secret(made, json=json)


@app.command("test")
def try_out(
    webhook_id: str, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False
) -> None:
    """Send a `webhook.test`, and say what came of it."""
    with connect(url, api_key) as client:
        sent = client.test_webhook(webhook_id)
    if json:
        print_json(sent)
    else:
        _print_deliveries([sent])
    if sent.status != "delivered":
        raise typer.Exit(EXIT_STATUS["failed"])


@app.command()
def deliveries(
    webhook_id: str,
    status: Annotated[str | None, typer.Option(help="pending, delivered or failed")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """List what was sent, newest first, with what came of it."""
    with connect(url, api_key) as client:
        pages = client.webhook_deliveries(webhook_id, status)
        found = [delivery for delivery, _ in zip(pages, range(limit), strict=False)]
    if json:
        return print_json(found)
    return _print_deliveries(found)


@app.command()
def redeliver(
    webhook_id: str,
    delivery_id: str,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Send a delivery that has ended once more, under its old id."""
    with connect(url, api_key) as client:
        queued = client.redeliver(webhook_id, delivery_id)
    if json:
        return print_json(queued)
    return _print_deliveries([queued])


def _tags(given: list[str] | None) -> dict[str, str]:
    tags = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not of the form name=value")
        tags[name] = value
    return tags


def _print_secret(made: WebhookSecret, *, json: bool) -> None:
    if json:
        return print_json(made)
    _print_webhooks([made])
    Console(stderr=True).print("The secret is shown this once; the receiver needs it:")
    return print_table(["secret"], [(made.secret,)])


def _print_webhooks(webhooks: list[WebhookRead] | list[WebhookSecret]) -> None:
    print_table(
        ["id", "receiver", "events", "tags", "state"],
        [(w.id, w.url, ", ".join(w.events), _written(w.tags), _state(w)) for w in webhooks],
    )


def _written(tags: dict[str, str]) -> str | None:
    return ", ".join(f"{name}={value}" for name, value in tags.items()) or None


def _state(webhook: WebhookRead) -> str:
    if webhook.disabled is not None:
        return f"switched off: {webhook.disabled.text}"
    if not webhook.active:
        return "off"
    return f"{webhook.failures} failure(s) in a row" if webhook.failures else "active"


def _print_deliveries(deliveries: list[DeliveryRead]) -> None:
    print_table(
        ["id", "event", "of", "status", "attempts", "latency", "last answer", "created"],
        [
            (
                d.id,
                d.event_type,
                d.subject_id,
                d.status,
                d.attempt,
                f"{d.log[-1].latency_ms:.0f} ms" if d.log else None,
                (d.log[-1].error or d.log[-1].status) if d.log else None,
                d.created_at,
            )
            for d in deliveries
        ],
    )
