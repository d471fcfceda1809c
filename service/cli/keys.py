"""`tailor keys`."""

from typing import Annotated

import typer

from service.cli.connection import DEFAULT_URL, Json, Key, Url, connect, print_json, print_table

app = typer.Typer(help="API keys (needs an admin key).", no_args_is_help=True)


@app.command()
def create(
    name: str,
    scope: Annotated[str, typer.Option(help="user or admin")] = "user",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    json: Json = False,
) -> None:
    """Create a key; its secret is shown this once."""
    with connect(url, api_key) as client:
        key = client.create_key(name, scope)
    if json:
        print_json(key)
    else:
        print_table(["id", "name", "scope", "secret"], [(key.id, key.name, key.scope, key.token)])


@app.command("list")
def list_keys(url: Url = DEFAULT_URL, api_key: Key = None, json: Json = False) -> None:
    """List keys, without their secrets."""
    with connect(url, api_key) as client:
        keys = client.keys()
    if json:
        return print_json(keys)
    print_table(
        ["id", "name", "scope", "created", "revoked"],
        [(k.id, k.name, k.scope, k.created_at, k.revoked_at) for k in keys],
    )
    return None


@app.command()
def revoke(key_id: str, url: Url = DEFAULT_URL, api_key: Key = None) -> None:
    """Revoke a key at once."""
    with connect(url, api_key) as client:
        client.revoke_key(key_id)
