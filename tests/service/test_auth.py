"""Who may do what: keys are on by default, and only their hashes are kept."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.auth.repository import find_key
from service.db.database import Database
from service.settings import Settings

OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/version"), ("POST", "/v1/agents")}
BY_AGENTS = {
    ("POST", "/v1/measurement-tasks/lease"),
    ("GET", "/v1/models/{sha256}"),
    ("POST", "/v1/measurements"),
    ("GET", "/v1/agents/self"),
    ("POST", "/v1/agents/self/heartbeat"),
}
BY_ADMINS = {("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/{key_id}")}


def routes(api) -> set[tuple[str, str]]:
    """Every method and path the API documents."""
    paths = api.client().get("/openapi.json").json()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def ask(client: httpx.Client, route: tuple[str, str]) -> httpx.Response:
    method, path = route
    return client.request(method, re.sub(r"\{\w+\}", "x", path))


def refusals(client: httpx.Client, asked: set[tuple[str, str]]) -> set[tuple[int, str, str]]:
    """Status, media type and code of every answer."""
    answers = [ask(client, route) for route in sorted(asked)]
    return {(a.status_code, a.headers["content-type"], a.json().get("code")) for a in answers}


UNAUTHENTICATED = {(401, "application/problem+json", "unauthenticated")}
FORBIDDEN = {(403, "application/problem+json", "forbidden")}


def test_every_route_but_the_open_ones_asks_for_a_key(api):
    assert routes(api) >= OPEN | BY_AGENTS | BY_ADMINS
    assert refusals(api.client(), routes(api) - OPEN) == UNAUTHENTICATED


def test_a_route_without_the_prefix_asks_for_a_key_too(api):
    assert refusals(api.client(), {("GET", "/searches"), ("POST", "/searches")}) == UNAUTHENTICATED


def test_an_unknown_key_is_no_key(api):
    assert refusals(api.client("tlr_guessed"), routes(api) - OPEN) == UNAUTHENTICATED


@pytest.mark.parametrize("header", ["", "tlr_x", "Basic dGxyOng=", "Bearer", "Bearer x y"])
def test_a_malformed_header_is_no_key(api, header):
    answer = api.client().get("/v1/searches", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_a_revoked_key_is_no_key(api):
    made = api.http.post("/v1/keys", json={"name": "short-lived"}).json()
    client = api.client(made["token"])
    assert client.get("/v1/searches").status_code == 200
    assert api.http.delete(f"/v1/keys/{made['id']}").status_code == 204
    assert refusals(client, {("GET", "/v1/searches")}) == UNAUTHENTICATED


def test_a_user_key_serves_for_everything_but_keys(api):
    made = api.http.post("/v1/keys", json={"name": "a user"}).json()
    assert made["scope"] == "user"
    client = api.client(made["token"])
    assert refusals(client, BY_ADMINS) == FORBIDDEN
    for method, path in routes(api) - OPEN - BY_AGENTS - BY_ADMINS:
        if method == "GET" and "{" not in path:
            query = {"search_space": "micro"} if "kit-files" in path else {}
            assert client.get(path, params=query).status_code == 200


def test_a_user_key_that_tries_to_make_a_key_makes_none(api):
    client = api.client(api.http.post("/v1/keys", json={"name": "a user"}).json()["token"])
    before = api.stored()
    assert client.post("/v1/keys", json={"name": "x", "scope": "admin"}).status_code == 403
    assert api.stored() == before


def test_an_agent_token_serves_on_the_routes_of_agents_alone(api):
    client = api.enrol().http
    assert refusals(client, routes(api) - OPEN - BY_AGENTS) == UNAUTHENTICATED
    assert {route: ask(client, route).status_code for route in BY_AGENTS} == {
        ("POST", "/v1/measurement-tasks/lease"): 422,
        ("GET", "/v1/models/{sha256}"): 404,
        ("POST", "/v1/measurements"): 422,
        ("GET", "/v1/agents/self"): 200,
        ("POST", "/v1/agents/self/heartbeat"): 422,
    }


def test_a_key_does_not_serve_on_the_routes_of_agents(api):
    assert refusals(api.http, BY_AGENTS) == UNAUTHENTICATED


def test_keys_are_listed_without_their_secrets(api):
    made = api.http.post("/v1/keys", json={"name": "listed", "scope": "admin"}).json()
    assert made["token"].startswith("tlr_")
    (listed,) = [k for k in api.http.get("/v1/keys").json()["items"] if k["id"] == made["id"]]
    assert listed == {name: made[name] for name in made if name != "token"}


def test_revoking_a_key_that_does_not_exist_is_a_404(api):
    assert api.http.delete("/v1/keys/key_nobody").status_code == 404


def test_secrets_are_not_stored(api):
    secrets = [
        api.admin_key,
        api.http.post("/v1/keys", json={"name": "the name of a key"}).json()["token"],
        api.enrol().token,
        api.code(),
    ]
    files = [path for path in Path(api.settings.home).rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert b"the name of a key" in content  # what is stored would be found
    assert [secret for secret in secrets if secret.encode() in content] == []


def start_and_stop(settings: Settings) -> None:
    async def cycle() -> None:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(cycle())


def test_the_first_start_prints_a_working_admin_key_and_later_ones_none(tmp_path, capfd):
    settings = Settings(home=tmp_path)
    start_and_stop(settings)
    first = capfd.readouterr()
    (token,) = re.findall(r"^TAILOR_API_KEY=(tlr_\S+)$", first.out, re.MULTILINE)
    assert token not in first.err  # never in the log
    start_and_stop(settings)
    assert "TAILOR_API_KEY" not in capfd.readouterr().out
    database = Database(settings.resolved_database_url)
    with database.reading() as session:
        assert find_key(session, token).scope == "admin"
    database.dispose()
