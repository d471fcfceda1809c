"""The API under fire: whatever the document allows, and more, is answered as it says.

Two accounts have everything an account can have. What one asks for, rightly or wrongly, never
shows or changes anything of the other.
"""

import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import select

from predictor.network import NetworkLatencyModel
from search_core.space.presets import get_space
from service.app import create_app
from service.db.base import new_id, utc_now
from service.db.models import Base
from service.jobs import repository as jobs
from service.latency_models.repository import activate, add_model
from service.searches.creation import SUPERNET
from service.searches.lifecycle import end, enter_phase, start
from service.searches.models import SearchArtifact
from service.searches.repository import append_event, get_search
from service.settings import Settings
from service.webhooks.models import WebhookDelivery

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "0"))
"""Of each operation; 0: a few, always the same."""

DOCUMENT = create_app(Settings(home=Path(tempfile.gettempdir()))).openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [(m.upper(), path) for path, methods in DOCUMENT["paths"].items() for m in methods]
OPEN = [("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/version"), ("POST", "/v1/agents")]
SLOW = ["/v1/targets/{target_id}/predictions", "/v1/datasets/uploads", "/v1/kit-files"]
PROBLEM = "application/problem+json"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
MICRO = get_space("micro")
LATENCY_MODEL = NetworkLatencyModel(
    space_digest=MICRO.digest,
    offset_ms=0.01,
    table_ms=tuple(
        tuple(0.001 * (n + 1) for n in range(len(slot.candidates))) for slot in MICRO.slots
    ),
    margin=0.02,
)
NETWORK = {
    "architecture": "k3e1c24 k3e1c24 k3e1c40 k3e1c40 k3e1c80 k3e1c80",
    "predicted_ms": 0.02,
    "measured": None,
    "test_accuracy": 0.9,
    "parameters": 1,
    "macs": 1,
}


def fuzz(path: str, examples: int = 10):
    """How often an operation is called; those that start a process less often."""
    return settings(
        max_examples=EXAMPLES or (examples if path not in SLOW else min(examples, 4)),
        derandomize=not EXAMPLES,
        database=None,
        phases=[Phase.generate],  # a request says enough as it is
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def cases(method: str, path: str, *modes: schemathesis.GenerationMode):
    """What the document allows of an operation, or not."""
    operation = SCHEMA[path][method]
    modes = modes or tuple(schemathesis.GenerationMode)
    return st.one_of(*[operation.as_strategy(generation_mode=mode) for mode in modes])


# -- two accounts ----------------------------------------------------------------------


@dataclass
class Account:
    """What an account has; `mark` occurs in every name and text of it.

    Attributes:
        http: with its user's key.
        ids: by the name that paths give to such an id.
        doomed: the same of what may be deleted.
        ended: searches to which nothing will happen any more.
        secrets: nobody but the account ever sees them again.
    """

    name: str
    mark: str
    tokens: dict[str, str]
    http: httpx.Client
    ids: dict[str, list[str]] = field(default_factory=dict)
    doomed: dict[str, list[str]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)

    @property
    def private(self) -> set[str]:
        """Texts that no answer to another account may hold; agents are everybody's."""
        owned = [*self.ids.items(), *self.doomed.items()]
        ids = [one for name, some in owned if name in PRIVATE for one in some]
        return {*ids, *self.secrets, self.mark}


PRIVATE = ("search_id", "webhook_id", "delivery_id", "dataset_id", "key_id")
"""Of the ids in paths, those that only their owner finds."""


def make(client: httpx.Client, path: str, **body: object) -> dict:
    answer = client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def settle_in(api, device, name: str, mark: str) -> Account:
    """A new account with some of everything."""
    keys = {
        scope: make(api.http, "/v1/keys", name=f"{mark} {scope}", account=name, scope=scope)
        for scope in ("user", "viewer")
    }
    tokens = {scope: key["token"] for scope, key in keys.items()}
    who = api.client(tokens["user"])
    wish = {"target": device.target_id, "latency_budget_ms": 0.03, "tags": {mark: f"a {mark}"}}
    made = {
        status: make(who, "/v1/searches", **wish)["id"]
        for status in ("queued", "paused", "cancelled", "running", "succeeded")
    }
    run(api, made["running"], mark)
    succeed(api, made["succeeded"], mark)
    assert who.post(f"/v1/searches/{made['paused']}/pause").json()["status"] == "paused"
    assert who.post(f"/v1/searches/{made['cancelled']}/cancel").json()["status"] == "cancelled"
    agents, hooks, datasets = [], [], []
    for nth in ("kept", "doomed"):
        enrolment = {
            "code": make(who, "/v1/enrolment-codes")["code"],
            "name": f"{nth} agent of {name}",
            "agent_version": "1",
            "profiles": [api.profile_of(device)],
        }
        agents.append(make(api.client(), "/v1/agents", **enrolment))
        hook = {"url": f"http://127.0.0.1:8080/{mark}", "description": f"a {mark}"}
        hooks.append(make(who, "/v1/webhooks", **hook, events=["target.stale"]))
        datasets.append(make(who, "/v1/datasets", name=f"{mark}-{nth}", builtin="digits"))
    tokens["agent"] = agents[0]["token"]
    kept, doomed = (
        {"webhook_id": [hook["id"]], "dataset_id": [dataset["id"]], "agent_id": [agent["id"]]}
        for hook, dataset, agent in zip(hooks, datasets, agents, strict=True)
    )
    return Account(
        name,
        mark,
        tokens,
        who,
        ids={
            **kept,
            "search_id": list(made.values()),
            "delivery_id": [deliver(api, hooks[0]["id"], mark)],
            "key_id": [key["id"] for key in keys.values()],
        },
        doomed=doomed,
        ended=[made["cancelled"], made["succeeded"]],
        secrets=[*tokens.values(), agents[1]["token"], *(hook["secret"] for hook in hooks)],
    )


def run(api, search_id: str, mark: str):
    """An attempt of the search has begun: its context."""
    _, context = api.claim({"id": search_id})
    with context.transaction() as (session, _):
        search = get_search(session, search_id, lock=True)
        start(session, search)
        enter_phase(session, search, "searching")
        for step in range(3):
            append_event(session, search_id, "metrics", {"step": step, mark: 0.5})
    return context


def succeed(api, search_id: str, mark: str) -> None:
    context = run(api, search_id, mark)
    files = {name: context.artifacts.put(f"{mark} {name}".encode()) for name in FILES}
    with context.transaction() as (session, job):
        for name, sha256 in files.items():
            session.add(
                SearchArtifact(
                    search_id=search_id,
                    name=name,
                    sha256=sha256,
                    size_bytes=len(f"{mark} {name}"),
                    media_type="application/octet-stream",
                )
            )
        result = {"network": NETWORK, "decodes": [], "frozen_slots": 0, "onnx_sha256": "0" * 64}
        search = get_search(session, search_id, lock=True)
        end(session, search, "succeeded", code="within_budget", text=mark, result=result)
        jobs.finish(session, job, "succeeded")


FILES = (SUPERNET, "manifest.json", "network.onnx")


def deliver(api, webhook_id: str, mark: str) -> str:
    """The id of a delivery that has ended."""
    now = utc_now()
    row = WebhookDelivery(
        id=new_id("whd"),
        webhook_id=webhook_id,
        event_type="target.stale",
        body=f'{{"told": "{mark}"}}',
        status="delivered",
        attempt=1,
        queued_at=now,
        log=[],
        created_at=now,
        ended_at=now,
    )
    with api.database.transaction() as session:
        session.add(row)
    return row.id


@dataclass
class World:
    """Both accounts, and what belongs to everybody."""

    mine: Account
    theirs: Account
    public: dict[str, list[str]]


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)
def api(request, new_store, serve):
    """An API whose webhooks may point at this machine."""
    url = new_store(request.param, migrated=True)
    with serve(
        database_url=url, webhook_allowed_networks="127.0.0.0/8", account_webhooks=0
    ) as served:
        yield served


@pytest.fixture(scope="module")
def world(api) -> World:
    device = api.enrol_new_target()
    kit = api.ask_for_kit(device)
    task = device.lease_one()
    with api.database.transaction() as session:
        model = add_model(
            session, device.target_id, "micro", LATENCY_MODEL, {"leave_one_out": {"mape": 0.0}}
        )
        activate(session, model)
    return World(
        mine=settle_in(api, device, "aspen", "m1ne"),
        theirs=settle_in(api, device, "birch", "the1rs"),
        public={
            "target_id": [device.target_id],
            "kit_id": [kit["id"]],
            "model_id": [model.id],
            "sha256": [task["model_sha256"]],
            "name": ["micro", *FILES],
        },
    )


def rows_of(api, account: Account) -> dict[str, list]:
    """Everything in the store that belongs to an account, but for when it was used."""
    ids = {
        one for owned in (account.ids, account.doomed) for some in owned.values() for one in some
    }
    found = {}
    with api.database.reading() as session:
        for table in Base.metadata.sorted_tables:
            names = {"id", "owner", "account", "search_id", "webhook_id", "subject_id", "agent_id"}
            columns = [c for c in table.columns if c.name in names]
            statement = select(table).order_by(*table.primary_key)
            rows = session.execute(statement).mappings() if columns else []
            found[table.name] = [
                {name: value for name, value in row.items() if not name.startswith("last_")}
                for row in rows
                if {row[c.name] for c in columns} & {*ids, account.name}
            ]
    return found


# -- the document ----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=str)
def test_every_error_is_documented_as_a_problem(method, path):
    operation = DOCUMENT["paths"][path][method.lower()]
    answers = {int(status): answer for status, answer in operation["responses"].items()}
    errors = {status: answer for status, answer in answers.items() if status >= 400}
    assert {400, 413, 415, 500, 503} <= errors.keys()
    assert ("security" in operation) <= ({401, 403, 429} <= errors.keys())
    for status, answer in errors.items():
        kind = "application/json" if (path, status) == ("/readyz", 503) else PROBLEM
        assert list(answer["content"]) == [kind]


def test_fastapis_own_errors_are_not_in_the_document():
    assert "ValidationError" not in json.dumps(DOCUMENT)
    assert DOCUMENT["components"]["schemas"]["Problem"]["required"][:3] == [
        "type",
        "title",
        "status",
    ]


# -- what was answered with 500 once ---------------------------------------------------

LAST_DAY = "9999-12-31T23:59:59-14:00"
FIRST_DAY = "0001-01-01T00:00:00+14:00"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/searches", {"limits": {"queue_minutes": 1e300}}, "limits.queue_minutes"),
        ("/v1/searches", {"worker": {"memory_bytes": 10**400}}, "worker.memory_bytes"),
        ("/v1/keys", {"expires_at": LAST_DAY}, "expires_at"),
    ],
)
def test_a_number_beyond_all_reason_is_refused(api, world, path, body, field):
    (target,) = world.public["target_id"]
    wish = {"target": target, "latency_budget_ms": 0.03}
    before = api.stored()
    answer = api.http.post(path, json=(wish if "searches" in path else {"name": "x"}) | body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert api.stored() == before


@pytest.mark.parametrize("path", ["/v1/measurements", "/v1/latency-models"])
def test_a_target_whose_name_holds_nul_is_refused(api, path):
    answer = api.http.get(path, params={"target": "x\0"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "target")


def test_a_measurement_from_before_the_calendar_is_rejected(api, world):
    device = api.enrol_with_kit()
    (told,) = device.report(device.result(device.lease_one(), measured_at=FIRST_DAY))
    assert not told["accepted"]
    assert told["reason"].startswith("invalid: ")


def test_a_range_behind_the_end_of_a_file_is_a_problem(api, world):
    path = f"/v1/searches/{world.mine.ended[1]}/artifacts/manifest.json"
    me = world.mine.http
    size = len(me.get(path).content)
    answer = me.get(path, headers={"Range": f"bytes={size}-"})
    assert (answer.status_code, answer.headers["content-type"]) == (416, PROBLEM)
    assert answer.headers["content-range"] == f"bytes */{size}"
    assert answer.json()["code"] == "range_not_satisfiable"


# -- whatever is asked -----------------------------------------------------------------


def aim(case, world: World, draw) -> None:
    """Let a case be about things that are there, so that it goes deeper than `not found`."""
    known = {**world.public, **world.mine.ids}
    if case.method == "DELETE":
        known |= world.mine.doomed
    if case.path.endswith("/events/stream"):  # of one that has not ended, it would not end
        known["search_id"] = world.mine.ended
    for name in case.path_parameters or {}:
        case.path_parameters[name] = draw(st.sampled_from(known.get(name, ["x"])))
    for name, values in (("target", known["target_id"]), ("parent", known["search_id"])):
        if name in (case.query or {}) and draw(st.integers(0, 2)):
            case.query[name] = draw(st.sampled_from(values))
    if isinstance(case.body, dict):
        for name, values in {
            "target": known["target_id"],
            "warm_start": known["search_id"],
            "latency_budget_ms": [0.03],
            "search_space": ["micro"],
            "dataset": ["digits"],
            "architectures": [[NETWORK["architecture"]]],
            "url": ["http://127.0.0.1:8080/hook"],
            "ids": [known["search_id"]],
        }.items():
            if name in case.body and draw(st.integers(0, 3)):
                case.body[name] = draw(st.sampled_from(values))
        if draw(st.integers(0, 3)):
            case.body.pop("targets", None)


def hurry(case) -> None:
    """Nobody has the time to wait for news."""
    if "wait" in (case.query or {}):
        case.query["wait"] = 0
    if isinstance(case.body, dict) and "wait_seconds" in case.body:
        case.body["wait_seconds"] = 0


def ask(api, case, token: str | None):
    """The answer to a case, sent with this token."""
    case.headers.pop("Authorization", None)
    case.cookies.clear()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return case.call(base_url=api.url, headers=headers)


def ask_from_browser(api, case, token: str):
    """The same from a page of the API's own, in a session of its own that is over then."""
    with httpx.Client(base_url=api.url, headers={"Origin": api.url}) as page:
        signed_in = page.post("/v1/sessions", headers={"Authorization": f"Bearer {token}"})
        headers = {"Origin": api.url, "X-CSRF-Token": signed_in.json()["csrf_token"]}
        case.headers.pop("Authorization", None)
        case.cookies = dict(page.cookies)
        answer = case.call(base_url=api.url, headers=headers)
        page.delete("/v1/sessions/self", headers=headers)
    return answer


def check(case, answer) -> None:
    """The document allows this answer; an error says what is wrong."""
    case.validate_response(answer, checks=CHECKS)
    if answer.status_code >= 400 and case.path != "/readyz":
        assert answer.headers["content-type"] == [PROBLEM]
        assert answer.json()["request_id"] == answer.headers["x-request-id"][0]


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=str)
def test_an_operation_answers_as_documented_and_shows_nobody_elses(api, world, method, path):
    before = rows_of(api, world.theirs)
    mine = world.mine
    (target,) = world.public["target_id"]
    fresh = make(mine.http, "/v1/searches", target=target, latency_budget_ms=0.03)
    mine.ids["search_id"][0] = fresh["id"]  # others may have been cancelled meanwhile

    @fuzz(path)
    @given(case=cases(method, path), data=st.data())
    def send(case, data):
        hurry(case)
        if data.draw(st.integers(0, 3)):
            aim(case, world, data.draw)
        who = data.draw(st.sampled_from(["user", "user", "viewer", "agent", "browser"]))
        token = mine.tokens["user" if who == "browser" else who]
        if path == "/v1/keys/{key_id}/rotate" and who != "agent":  # that key would end
            token = make(api.http, "/v1/keys", name="m1ne", account="aspen")["token"]
            case.path_parameters["key_id"] = "self"
        answer = (ask_from_browser if who == "browser" else ask)(api, case, token)
        check(case, answer)
        told = answer.content.decode(errors="replace") + str(answer.headers)
        assert not {text for text in world.theirs.private if text in told}

    send()
    assert rows_of(api, world.theirs) == before
    assert mine.http.get("/v1/keys/self").status_code == 200, "nobody known asked any more"


REFUSED = [(401, "unauthenticated"), (400, "bad_request"), (422, "invalid_request")]


def is_json(body: bytes | str | None) -> bool:
    try:
        json.loads(body or "null")
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("method", "path"), [one for one in OPERATIONS if one not in OPEN], ids=str
)
def test_an_operation_tells_strangers_nothing(api, world, method, path):
    before = api.stored()

    @fuzz(path, 2)
    @given(case=cases(method, path), token=st.sampled_from([None, "tlr_x"]), data=st.data())
    def send(case, token, data):
        aim(case, world, data.draw)
        answer = ask(api, case, token)
        check(case, answer)
        told = answer.status_code, answer.json()["code"]
        if is_json(answer.request.body):
            assert told == (401, "unauthenticated")
        else:  # read before anybody asks who sent it, and never looked into
            assert told in REFUSED

    send()
    assert api.stored() == before


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS")


def is_served(method: str, path: str) -> bool:
    """Whether an operation serves it; `/v1/keys/self` is `/v1/keys/{key_id}` as well."""
    return any(
        method == served and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
        for served, template in OPERATIONS
    )


def test_a_method_that_a_path_does_not_have_is_refused(api, world):
    before = rows_of(api, world.mine)
    for path in DOCUMENT["paths"]:
        for method in METHODS:
            if not is_served(method, path):
                answer = api.http.request(method, path)
                told = answer.status_code, answer.headers["content-type"], answer.json()["code"]
                assert told == (405, PROBLEM, "method_not_allowed"), (method, path)
    assert rows_of(api, world.mine) == before


# -- what is another's -----------------------------------------------------------------

ABOUT_ONE = [
    (method, path)
    for method, path in OPERATIONS
    if any(f"{{{name}}}" in path for name in (*PRIVATE, "agent_id"))
]
BY_ADMINS = "/v1/keys/{key_id}"


@pytest.mark.parametrize(("method", "path"), ABOUT_ONE, ids=str)
def test_what_is_anothers_is_not_there(api, world, method, path):
    before = rows_of(api, world.theirs)
    ids = world.theirs.ids | {"name": list(FILES)}

    @fuzz(path, 3)
    @given(case=cases(method, path, schemathesis.GenerationMode.POSITIVE), data=st.data())
    def send(case, data):
        hurry(case)
        for name in case.path_parameters:
            case.path_parameters[name] = data.draw(st.sampled_from(ids[name]))
        answer = ask(api, case, world.mine.tokens["user"])
        check(case, answer)
        if path.startswith("/v1/agents/"):
            assert answer.status_code == (200 if method == "GET" else 403)
        elif path == BY_ADMINS:
            assert answer.status_code == 403
        else:
            assert answer.status_code in (404, 422), answer.text
        named = set(case.path_parameters.values())
        assert not {one for one in world.theirs.private - named if one in answer.text}

    send()
    assert rows_of(api, world.theirs) == before


def test_a_body_that_names_what_is_anothers_finds_nothing(api, world):
    before = rows_of(api, world.theirs)
    me = world.mine.http
    (target,) = world.public["target_id"]
    mine, theirs = world.mine.ids["search_id"], world.theirs.ids["search_id"]
    wish = {"target": target, "latency_budget_ms": 0.03}
    (hook,), (delivery,) = world.theirs.ids["webhook_id"], world.theirs.ids["delivery_id"]
    (own_hook,) = world.mine.ids["webhook_id"]
    for answer, status in (
        (me.post("/v1/searches", json=wish | {"warm_start": theirs[-1]}), 422),
        (me.post("/v1/searches", json=wish | {"dataset": "the1rs-kept"}), 422),
        (me.post(f"/v1/searches/{mine[-1]}/clone", json={"warm_start": theirs[-1]}), 422),
        (me.get("/v1/searches/compare", params={"ids": [mine[0], theirs[0]]}), 404),
        (me.get(f"/v1/webhooks/{own_hook}/deliveries/{delivery}"), 404),
        (me.post(f"/v1/webhooks/{own_hook}/deliveries/{delivery}/redeliver"), 404),
        (me.get("/v1/datasets/the1rs-kept"), 404),
        (me.delete("/v1/datasets/the1rs-kept"), 404),
        (me.get("/v1/webhooks", params={"cursor": f"{hook}z"}), 200),
        (me.get("/v1/searches", params={"owner": "birch"}), 200),
        (me.get("/v1/searches", params={"parent": theirs[0]}), 200),
        (me.get("/v1/searches", params={"tag": "the1rs:a the1rs"}), 200),
        (me.get("/v1/workers"), 200),
        (me.get("/metrics"), 200),
    ):
        assert answer.status_code == status, answer.text
        asked = str(answer.request.url) + answer.request.content.decode()
        private = {one for one in world.theirs.private if one not in asked}
        assert not {one for one in private if one in answer.text}, answer.text
        if status == 200 and "items" in answer.text:
            assert not {one for one in theirs if one in answer.text}
    for action in ("cancel", "pause", "resume", "archive", "tag"):
        body = {"action": action, "ids": theirs, "tags": {"x": "y"}}
        items = me.post("/v1/searches/bulk", json=body).json()["items"]
        assert [(one["done"], one["code"]) for one in items] == [(False, "not_found")] * len(items)
    assert rows_of(api, world.theirs) == before
