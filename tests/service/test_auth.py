"""Who may do what: keys are on by default, scoped, and only their hashes are kept."""

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from alembic import command
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import select, text

from service.agents.models import Agent
from service.app import create_app
from service.auth.access import RequiredScope, _current_agent
from service.auth.models import ApiKey
from service.auth.principal import SCOPES, Principal
from service.auth.repository import create_key, find_key, get_key, note_last_use, revoke_key
from service.auth.tokens import token_hash
from service.auth.verification import CACHE_SECONDS, Verifier
from service.db.base import utc_now
from service.db.database import Database
from service.db.migrate import changing_schema, migrate
from service.errors import ConflictError
from service.settings import Settings

OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/version"), ("POST", "/v1/agents")}
BY_AGENTS = {
    ("POST", "/v1/measurement-tasks/lease"),
    ("GET", "/v1/models/{sha256}"),
    ("POST", "/v1/measurements"),
    ("GET", "/v1/agents/self"),
    ("POST", "/v1/agents/self/heartbeat"),
}
OTHERWISE = {  # than that reading needs a viewer's key, and changing a user's
    ("POST", "/v1/predictions"): "viewer",  # stores nothing
    ("POST", "/v1/latency-models/{model_id}/predictions"): "viewer",
    ("POST", "/v1/latency-models/{model_id}/what-if"): "viewer",
    ("POST", "/v1/keys/{key_id}/rotate"): "viewer",  # of the key that asks
    ("POST", "/v1/sessions"): "viewer",
    ("DELETE", "/v1/sessions/self"): "viewer",
    ("POST", "/v1/workers/{worker_id}/drain"): "operator",
    ("POST", "/v1/latency-models/{model_id}/activate"): "admin",
    ("GET", "/v1/keys"): "admin",
    ("POST", "/v1/keys"): "admin",
    ("GET", "/v1/keys/{key_id}"): "admin",
    ("DELETE", "/v1/keys/{key_id}"): "admin",
    ("GET", "/v1/audit"): "admin",
}
BY_ADMINS = {route for route, scope in OTHERWISE.items() if scope == "admin"}


# -- every route, whoever asks ---------------------------------------------------------


def calls(dependant: Dependant):
    """Everything that a route depends on."""
    for inner in dependant.dependencies:
        yield inner.call
        yield from calls(inner)


def declared(dependant: Dependant) -> str | None:
    """The scope that a route asks for, `agent`, or None when anybody may."""
    asked = list(calls(dependant))
    if _current_agent in asked:
        return "agent"
    (scope,) = {call.scope for call in asked if isinstance(call, RequiredScope)} or {None}
    return scope


@pytest.fixture(scope="module")
def scopes(api) -> dict[tuple[str, str], str | None]:
    """What every documented route asks for, read off the code."""
    app = create_app(Settings(home=api.settings.home))
    contexts = [
        c for c in iter_route_contexts(app.routes) if isinstance(c.original_route, APIRoute)
    ]
    found = {(m, c.path): declared(c.dependant) for c in contexts for m in c.methods}
    documented = routes(api)
    assert found.keys() >= documented
    return {route: scope for route, scope in found.items() if route in documented}


@pytest.fixture(scope="module")
def keys(api) -> dict[str, httpx.Client]:
    """A client of each scope, none of an account that owns anything."""
    return {scope: api.client(new_key(api, scope)["token"]) for scope in SCOPES}


def new_key(api, scope: str = "user", **changes: object) -> dict:
    body = {"name": f"a {scope}", "scope": scope, **changes}
    answer = api.http.post("/v1/keys", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


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


def test_every_route_declares_who_may_use_it(scopes):
    expected = {}
    for method, path in scopes:
        usual = "viewer" if method == "GET" else "user"
        expected[method, path] = OTHERWISE.get((method, path), usual)
    expected |= dict.fromkeys(OPEN, None) | dict.fromkeys(BY_AGENTS, "agent")
    assert scopes == expected


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_may_do_what_its_scope_allows_and_no_more(scopes, keys, scope):
    for route, needed in scopes.items():
        if needed in (None, "agent"):
            continue
        status = ask(keys[scope], route).status_code
        is_wide_enough = SCOPES.index(scope) >= SCOPES.index(needed)
        assert (status in (401, 403)) != is_wide_enough, (route, status)
        assert status < 500, (route, status)


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


def test_a_user_key_that_tries_to_make_a_key_makes_none(api):
    client = api.client(new_key(api)["token"])
    before = api.stored()
    assert client.post("/v1/keys", json={"name": "x", "scope": "admin"}).status_code == 403
    assert api.stored() == before


# -- agents ----------------------------------------------------------------------------


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


def enrolled_by(api, client: httpx.Client) -> str:
    """The id of an agent that redeemed this client's code."""
    body = {
        "code": client.post("/v1/enrolment-codes").json()["code"],
        "name": "somebody's",
        "agent_version": "1",
        "profiles": [api.profile_of(api.enrol())],
    }
    answer = api.client().post("/v1/agents", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def test_an_agent_belongs_to_the_account_that_gave_its_code_away(api):
    mine = api.client(new_key(api, account="mine")["token"])
    path = f"/v1/agents/{enrolled_by(api, mine)}"
    assert mine.get(path).json()["owner"] == "mine"
    others = api.client(new_key(api, account="another")["token"])
    assert others.get(path).status_code == 200  # targets and what measures them are everybody's
    for answer in (
        others.post(f"{path}/drain"),
        others.post(f"{path}/resume"),
        others.delete(path),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert not mine.get(path).json()["draining"]
    same_account = api.client(new_key(api, account="mine")["token"])
    assert same_account.post(f"{path}/drain").json()["draining"]
    operator = api.client(new_key(api, "operator")["token"])
    assert not operator.post(f"{path}/resume").json()["draining"]
    assert operator.delete(path).status_code == 204
    assert mine.get(path).json()["revoked_at"]


BEFORE_ACCOUNTS = """
INSERT INTO api_keys (id, name, scope, token_hash, created_at) VALUES ('k1', 'n', 'user', 'a', :at);
INSERT INTO api_keys (id, name, scope, token_hash, created_at) VALUES ('k2', 'n', 'user', 'b', :at);
INSERT INTO enrolment_codes (code_hash, created_by, expires_at, used_at) VALUES
    ('c1', 'k1', :at, :early), ('c2', 'k2', :at, :late), ('c3', 'k1', :at, NULL);
INSERT INTO agents (id, name, version, token_hash, draining, activity, journal_batches, accepted,
    rejected, flagged, created_at, last_seen_at) VALUES
    ('first', 'n', '1', 't1', false, '', 0, 0, 0, 0, :early, :at),
    ('second', 'n', '1', 't2', false, '', 0, 0, 0, 0, :late, :at),
    ('ancient', 'n', '1', 't3', false, '', 0, 0, 0, 0, :at, :at)
"""


def test_an_agent_of_before_belongs_to_whose_code_it_had_redeemed(empty_database):
    hours = {"at": 10, "early": 11, "late": 12}
    times = {name: f"2026-11-01 {hour}:00:00+00:00" for name, hour in hours.items()}
    with changing_schema(empty_database) as config:
        command.upgrade(config, "0005")
    with empty_database.transaction() as session:
        for statement in BEFORE_ACCOUNTS.split(";"):
            used = {name: at for name, at in times.items() if f":{name}" in statement}
            session.execute(text(statement), used)
    migrate(empty_database)
    with empty_database.reading() as session:
        owners = {agent.id: agent.owner for agent in session.scalars(select(Agent))}
    assert owners == {"first": "k1", "second": "k2", "ancient": ""}


# -- the life of a key -----------------------------------------------------------------


def works(api, token: str) -> bool:
    """Whether the API takes this secret."""
    answer = api.client(token).get("/v1/keys/self")
    assert answer.status_code in (200, 401)
    return answer.status_code == 200


def test_a_revoked_key_is_no_key_although_it_was_just_used(api):
    made = new_key(api)
    assert works(api, made["token"])
    assert api.http.delete(f"/v1/keys/{made['id']}").status_code == 204
    assert not works(api, made["token"])


def test_a_revocation_reaches_the_other_processes_within_seconds(api_on_both, serve, eventually):
    made = new_key(api_on_both)
    with serve(database_url=api_on_both.settings.resolved_database_url) as other:
        assert works(other, made["token"])
        api_on_both.http.delete(f"/v1/keys/{made['id']}")
        assert not works(api_on_both, made["token"])
        eventually(lambda: not works(other, made["token"]), "still believed", 2 * CACHE_SECONDS)


def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_remembered(database):
    verifier = Verifier(database, timedelta(hours=1))
    with database.transaction() as session:
        key, token = create_key(session, "unlucky", "user")

    def find_and_revoke(session, secret):
        found = find_key(session, secret)
        with database.transaction() as revoking:
            revoke_key(revoking, key.id)
            verifier.forget_after(revoking)
        return found

    verifier._look_up["key"] = find_and_revoke
    assert asyncio.run(verifier.verify("key", token)).id == key.id  # it was good when asked
    verifier._look_up["key"] = find_key
    assert asyncio.run(verifier.verify("key", token)) is None


def test_a_key_is_remembered_for_some_seconds(database):
    verifier = Verifier(database, timedelta(hours=1))
    with database.transaction() as session:
        key, token = create_key(session, "busy", "user")
    assert asyncio.run(verifier.verify("key", token)).id == key.id
    verifier._look_up["key"] = lambda *_: pytest.fail("looked up again")
    assert asyncio.run(verifier.verify("key", token)).id == key.id


def test_an_unknown_secret_is_looked_up_each_time(database):
    verifier = Verifier(database, timedelta(hours=1))
    key = ApiKey(id="key_later", name="n", account="a", scope="user", created_at=utc_now())
    assert asyncio.run(verifier.verify("key", "tlr_later")) is None
    with database.transaction() as session:
        key.token_hash = token_hash("tlr_later")
        session.add(key)
    assert asyncio.run(verifier.verify("key", "tlr_later")).id == "key_later"


def test_a_key_ends_when_it_expires(api, eventually):
    at = datetime.now(UTC) + timedelta(seconds=1)
    made = new_key(api, expires_at=at.isoformat())
    assert datetime.fromisoformat(made["expires_at"]) == at
    assert works(api, made["token"])
    eventually(lambda: not works(api, made["token"]), "the key outlives its time")
    assert api.http.post(f"/v1/keys/{made['id']}/rotate").status_code == 409


@pytest.mark.parametrize("at", ["2020-01-01T00:00:00Z", "2100-01-01T00:00:00", "soon", 5])
def test_an_end_that_has_passed_or_has_no_zone_is_refused(api, at):
    before = api.stored()
    answer = api.http.post("/v1/keys", json={"name": "x", "expires_at": at})
    if at == 5:  # the fifth second of 1970
        assert "passed" in answer.json()["detail"]
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "expires_at")
    assert api.stored() == before


def test_a_rotated_key_has_a_new_secret_and_the_old_one_for_the_grace_alone(api, eventually):
    made = new_key(api)
    assert works(api, made["token"])
    rotated = api.http.post(f"/v1/keys/{made['id']}/rotate", json={"grace_minutes": 0.02}).json()
    assert rotated["id"] == made["id"]
    assert works(api, made["token"])
    assert works(api, rotated["token"])
    eventually(lambda: not works(api, made["token"]), "the old secret outlives the grace")
    assert works(api, rotated["token"])


def test_without_grace_the_old_secret_ends_at_once(api):
    made = new_key(api)
    assert works(api, made["token"])
    rotated = api.http.post(f"/v1/keys/{made['id']}/rotate", json={"grace_minutes": 0}).json()
    assert not works(api, made["token"])
    assert works(api, rotated["token"])


def test_a_second_rotation_ends_what_the_first_left(api):
    made = new_key(api)
    path = f"/v1/keys/{made['id']}/rotate"
    second, third = (api.http.post(path).json()["token"] for _ in range(2))
    assert [works(api, secret) for secret in (made["token"], second, third)] == [False, True, True]


def test_any_key_may_rotate_itself_and_none_but_an_admin_another(api):
    mine, other = new_key(api, "viewer"), new_key(api, "viewer")
    client = api.client(mine["token"])
    assert client.post(f"/v1/keys/{other['id']}/rotate").status_code == 404
    assert works(api, other["token"])
    for name in ("self", mine["id"]):
        answer = client.post(f"/v1/keys/{name}/rotate")
        assert (answer.status_code, answer.json()["id"]) == (200, mine["id"])
        client = api.client(answer.json()["token"])


def test_the_last_admin_key_that_lasts_cannot_be_revoked(serve):
    with serve() as api:
        new_key(api, "admin")
        in_an_hour = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        passing = new_key(api, "admin", expires_at=in_an_hour)
        own, first = api.http.get("/v1/keys/self").json(), lasting_admins(api)[0]
        assert api.http.delete(f"/v1/keys/{first}").status_code == 204
        last = api.http.delete(f"/v1/keys/{own['id']}")
        assert (last.status_code, last.json()["code"]) == (409, "conflict")
        assert works(api, api.admin_key)
        assert api.http.delete(f"/v1/keys/{passing['id']}").status_code == 204


def lasting_admins(api) -> list[str]:
    """Ids of the admin keys other than the one that asks."""
    own = api.http.get("/v1/keys/self").json()["id"]
    found = api.http.get("/v1/keys").json()["items"]
    return [
        k["id"] for k in found if k["scope"] == "admin" and not k["expires_at"] and k["id"] != own
    ]


def test_two_admins_that_revoke_each_other_leave_one(database):
    with database.transaction() as session:
        ids = [create_key(session, name, "admin")[0].id for name in ("a", "b")]
    started = threading.Barrier(2)

    def revoke(key_id: str) -> bool:
        started.wait()
        try:
            with database.transaction() as session:
                revoke_key(session, key_id)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(revoke, ids)) == [False, True]


def test_the_last_use_of_a_key_is_written_down(serve):
    with serve() as api:
        used, unused = new_key(api), new_key(api)
        before = datetime.now(UTC)
        assert works(api, used["token"])
        home = api.settings
    database = Database(home.resolved_database_url)  # the API is gone and has written it
    with database.reading() as session:
        assert before <= get_key(session, used["id"]).last_used_at <= datetime.now(UTC)
        assert get_key(session, unused["id"]).last_used_at is None
    database.dispose()


def test_a_later_use_is_not_overwritten_by_an_earlier_one(database):
    with database.transaction() as session:
        key, _ = create_key(session, "busy", "user")
    now = utc_now()
    for at in (now, now - timedelta(minutes=1)):
        with database.transaction() as session:
            note_last_use(session, {key.id: at})
    with database.reading() as session:
        assert get_key(session, key.id).last_used_at == now


def test_a_store_that_is_away_keeps_no_request_waiting_and_no_use_is_fatal(tmp_path, caplog):
    database = Database(f"sqlite:///{tmp_path / 'empty.db'}")  # without a single table
    verifier = Verifier(database, timedelta(hours=1))
    verifier._look_up["key"] = lambda *_: Principal("key_x", "x", "x", "user")
    asyncio.run(verifier.verify("key", "tlr_x"))
    verifier.write_uses()
    assert "not written down" in caplog.text
    database.dispose()


def test_a_key_knows_itself(api):
    made = new_key(api, "viewer", account="team")
    found = api.client(made["token"]).get("/v1/keys/self").json()
    assert found == {name: made[name] for name in made if name != "token"}
    assert (found["account"], found["created_by"]) == (
        "team",
        api.http.get("/v1/keys/self").json()["id"],
    )


def test_keys_are_listed_without_their_secrets_page_by_page(api):
    made = [new_key(api) for _ in range(3)]
    assert made[0]["token"].startswith("tlr_")
    listed, cursor = [], {}
    while True:
        page = api.http.get("/v1/keys", params={"limit": 2, **cursor}).json()
        listed += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    ids = [key["id"] for key in listed]
    assert ids == sorted(set(ids), reverse=True)
    for key in made:
        assert {name: key[name] for name in key if name != "token"} in listed


def test_a_key_that_does_not_exist_is_a_404(api):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
        assert api.http.request(method, f"/v1/keys/key_nobody{path}").status_code == 404


def test_a_key_without_an_account_makes_one_of_its_name(api):
    assert new_key(api, name="robot")["account"] == "robot"


@pytest.mark.parametrize("scope", ["root", "", None, 1, "Admin"])
def test_an_unknown_scope_is_refused(api, scope):
    answer = api.http.post("/v1/keys", json={"name": "x", "scope": scope})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "scope")


def test_secrets_are_not_stored(api):
    made = new_key(api, name="the name of a key")
    secrets = [
        api.admin_key,
        made["token"],
        api.client(made["token"]).post("/v1/keys/self/rotate").json()["token"],
        api.client(api.admin_key).post("/v1/sessions").cookies["tailor_session"],
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


# -- the command line ------------------------------------------------------------------


def test_tailor_whoami_and_keys(tailor_json, tailor, api):
    assert tailor_json("whoami")["scope"] == "admin"
    made = tailor_json("keys", "create", "ci", "--scope", "viewer", "--account", "ml", "--days", 9)
    assert (made["scope"], made["account"]) == ("viewer", "ml")
    assert made["id"] in [key["id"] for key in tailor_json("keys", "list")]
    rotated = tailor_json("keys", "rotate", made["id"], "--grace-minutes", 0)
    assert not works(api, made["token"])
    as_viewer = tailor_json("whoami", "--api-key", rotated["token"])
    assert as_viewer["id"] == made["id"]
    assert made["id"] in tailor("keys", "list").out
    assert tailor("keys", "revoke", made["id"]).status == 0
    assert not works(api, rotated["token"])
    refused = tailor("keys", "list", "--api-key", api.client().base_url)
    assert refused.status == 2
