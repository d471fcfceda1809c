"""`tailor audit`."""

from itertools import islice
from typing import Annotated

import typer

from service.cli.connection import DEFAULT_URL, Json, Key, Url, connect, print_json, print_table


def audit(
    actor: Annotated[str | None, typer.Option(help="Id of a key, or an account.")] = None,
    action: Annotated[
        str | None, typer.Option(help="How it begins: DELETE, POST /v1/keys.")
    ] = None,
    object_id: Annotated[str | None, typer.Option("--object", help="What was changed.")] = None,
    limit: Annotated[int, typer.Option(help="Most entries to show.", min=1)] = 50,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Show who changed what, newest first (needs an admin key)."""
    with connect(url, api_key) as client:
        found = client.audit(actor=actor, action=action, object_id=object_id)
        entries = list(islice(found, limit))
    if json:
        return print_json(entries)
    print_table(
        ["at", "account", "key", "action", "object", "from"],
        [(e.created_at, e.account, e.key_name, e.action, e.object_id, e.address) for e in entries],
    )
    return None
