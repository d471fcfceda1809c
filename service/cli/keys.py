"""`tailor keys` and `tailor whoami`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from service.auth.schemas import KeyCreated
from service.cli.connection import DEFAULT_URL, Json, Key, Url, connect, print_json, print_table

app = typer.Typer(
    help="API keys (other keys than one's own need an admin's).", no_args_is_help=True
)


@app.command()
def create(
    name: str,
    scope: Annotated[str, typer.Option(help="viewer, user, operator or admin")] = "user",
    account: Annotated[
        str | None, typer.Option(help="Whose key it is; by default an account of its name.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="For how long it is good.", min=0)] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Create a key; its secret is shown this once."""
    expires_at = datetime.now(UTC) + timedelta(days=days) if days is not None else None
    with connect(url, api_key) as client:
        _print(client.create_key(name, scope, account=account, expires_at=expires_at), json)


@app.command("list")
def list_keys(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """List keys, without their secrets."""
    with connect(url, api_key) as client:
        keys = client.keys()
    if json:
        return print_json(keys)
    print_table(
        ["id", "name", "account", "scope", "created", "last used", "expires", "revoked"],
        [
            (
                key.id,
                key.name,
                key.account,
                key.scope,
                key.created_at,
                key.last_used_at,
                key.expires_at,
                key.revoked_at,
            )
            for key in keys
        ],
    )
    return None


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="Of the key; by default your own.")] = "self",
    grace_minutes: Annotated[
        float, typer.Option(help="For how long the old secret stays good.", min=0)
    ] = 60.0,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Give a key a new secret, which is shown this once."""
    with connect(url, api_key) as client:
        _print(client.rotate_key(key_id, grace_minutes=grace_minutes), json)


@app.command()
def revoke(key_id: str, url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Revoke a key, and end the sessions that were opened with it."""
    with connect(url, api_key) as client:
        client.revoke_key(key_id)
    if json:
        print_json({"id": key_id, "revoked": True})


def whoami(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """Show whose key this is, and what it may do."""
    with connect(url, api_key) as client:
        key = client.key()
    if json:
        return print_json(key)
    print_table(
        ["id", "name", "account", "scope", "expires"],
        [(key.id, key.name, key.account, key.scope, key.expires_at)],
    )
    return None


def _print(key: KeyCreated, json: bool) -> None:
    if json:
        return print_json(key)
    print_table(
        ["id", "name", "account", "scope", "secret"],
        [(key.id, key.name, key.account, key.scope, key.token)],
    )
    return None
