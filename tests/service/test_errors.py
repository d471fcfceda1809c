"""Every error is a problem document that names what is wrong, and stores nothing."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

JSON = {"Content-Type": "application/json"}


def assert_is_problem(answer, status: int, code: str) -> None:
    """The members every problem document has, and the header that goes with it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:tailor:problem:{code}"
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["X-Request-Id"]


def fields(answer) -> list[str]:
    return [error["field"] for error in answer.json().get("errors", [])]


@pytest.mark.parametrize("path", ["/", "/nothing", "/v1", "/v1/nothing", "/v2/searches"])
def test_an_unknown_path_is_a_404(api, path):
    assert_is_problem(api.http.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/v1/searches"), ("DELETE", "/healthz"), ("PATCH", "/v1/keys"), ("POST", "/version")],
)
def test_a_method_a_path_does_not_know_is_a_405_that_tells_those_it_does(api, method, path):
    answer = api.http.request(method, path)
    assert_is_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/searches/srch_nobody",
        "/v1/searches/srch_nobody/events",
        "/v1/searches/srch_nobody/architecture",
        "/v1/searches/srch_nobody/artifacts",
        "/v1/searches/srch_nobody/artifacts/model.onnx",
        "/v1/targets/tgt_nobody",
        "/v1/kits/kit_nobody",
        "/v1/latency-models/lmd_nobody",
        "/v1/search-spaces/nowhere",
    ],
)
def test_what_does_not_exist_is_a_404_that_names_it(api, path):
    answer = api.http.get(path)
    assert_is_problem(answer, 404, "not_found")
    assert path.split("/")[3] in answer.json()["detail"]


@pytest.mark.parametrize(
    "body", ["", "{", "nonsense", "[1, 2", '{"target": }', "[]", '"text"', "1"]
)
def test_a_body_that_is_no_json_object_is_a_422_and_stores_nothing(api, body):
    before = api.stored()
    answer = api.http.post("/v1/searches", content=body, headers=JSON)
    assert_is_problem(answer, 422, "invalid_request")
    assert api.stored() == before


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_a_body_that_cannot_be_decoded_is_a_4xx_and_stores_nothing(api, body):
    before = api.stored()
    answer = api.http.post("/v1/searches", content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    assert_is_problem(answer, answer.status_code, answer.json()["code"])
    assert api.stored() == before


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/searches?limit=0", "limit"),
        ("/v1/searches?limit=201", "limit"),
        ("/v1/searches?limit=many", "limit"),
        ("/v1/searches?status=unknown", "status"),
        (f"/v1/searches?cursor={'x' * 81}", "cursor"),
        ("/v1/measurements?limit=-1", "limit"),
        ("/v1/searches/srch_nobody/events?after=-1", "after"),
        ("/v1/searches/srch_nobody/events?wait=26", "wait"),
        ("/v1/searches/srch_nobody/events?wait=nan", "wait"),
    ],
)
def test_a_wrong_parameter_is_a_422_that_names_it(api, path, field):
    answer = api.http.get(path)
    assert_is_problem(answer, 422, "invalid_request")
    assert fields(answer) == [field]


@pytest.mark.parametrize(
    ("path", "body", "wrong"),
    [
        ("/v1/keys", {}, ["name"]),
        ("/v1/keys", {"name": ""}, ["name"]),
        ("/v1/keys", {"name": "x" * 201}, ["name"]),
        ("/v1/keys", {"name": 1, "scope": "root"}, ["name", "scope"]),
        ("/v1/keys", {"name": "x", "admin": True}, ["admin"]),
        ("/v1/kits", {}, ["target"]),
        ("/v1/kits", {"target": "tgt_nobody"}, ["target"]),
        ("/v1/kits", {"target": "tgt_nobody", "search_space": "nowhere"}, ["search_space"]),
        ("/v1/kits", {"target": "tgt_nobody", "space": "micro"}, ["space"]),
    ],
)
def test_a_wrong_body_is_a_422_that_names_each_field_and_stores_nothing(api, path, body, wrong):
    before = api.stored()
    answer = api.http.post(path, json=body)
    assert_is_problem(answer, 422, "invalid_request")
    assert fields(answer) == wrong
    assert api.stored() == before


def test_an_unexpected_error_is_a_500_that_tells_nothing_but_its_request_id(serve):
    with serve() as api:
        with api.database.transaction() as session:
            session.execute(text("ALTER TABLE searches RENAME TO elsewhere"))
        answer = api.http.get("/v1/searches", headers={"X-Request-Id": "mine"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["request_id"]) == ("internal_error", "mine")
    assert "searches" not in problem["detail"]
    assert "SELECT" not in answer.text


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
FIELDS = {
    "/v1/searches": ["target", "latency_budget_ms", "search_space", "epochs", "seed"],
    "/v1/kits": ["target", "search_space"],
    "/v1/agents": ["code", "name", "agent_version", "profile"],
    "/v1/measurement-tasks/lease": ["limit", "wait_seconds"],
    "/v1/measurements": ["batch_id", "items"],
}


@given(data=st.data(), path=st.sampled_from(sorted(FIELDS)))
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_json_makes_the_api_fail(api, agent, data, path):
    known = {name: data.draw(ANY_JSON) for name in FIELDS[path] if data.draw(st.booleans())}
    body = data.draw(st.just(known) | ANY_JSON)
    client = agent.http if "measurement" in path else api.http
    answer = client.post(path, content=json.dumps(body), headers=JSON)
    assert answer.status_code < 500
    if path != "/v1/measurement-tasks/lease":
        assert answer.status_code >= 400


@pytest.fixture(scope="module")
def agent(api) -> SimpleNamespace:
    return api.enrol()
