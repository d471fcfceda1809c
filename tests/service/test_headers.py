"""What every answer tells a browser, whatever it answers."""

import pytest

DENY_ALL = "default-src 'none'; frame-ancestors 'none'"


@pytest.fixture(scope="module")
def https(serve):
    """An API that people reach by https, under one name."""
    with serve(public_url="https://tailor.example", allowed_hosts="tailor.example, ::1") as api:
        yield api


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        ("/v1/targets", 200),
        ("/v1/targets/tgt_none", 404),
        ("/v1/keys?limit=0", 422),
        ("/nowhere", 404),
        ("/openapi.json", 200),
    ],
)
def test_every_answer_has_the_security_headers(api, path, status):
    answer = api.http.get(path)
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Content-Security-Policy"] == DENY_ALL
    assert "Strict-Transport-Security" not in answer.headers  # it is http


def test_an_answer_that_comes_before_any_route_has_them_too(api):
    answer = api.http.post("/v1/keys", content=b"x" * (api.settings.max_small_body_bytes + 1))
    assert answer.status_code == 413
    assert answer.headers["Content-Security-Policy"] == DENY_ALL


def test_a_failure_of_the_service_has_them_too(api, monkeypatch):
    def fail(*_):
        raise RuntimeError("on purpose")

    monkeypatch.setattr("service.targets.routes.list_targets", fail)
    answer = api.client(api.admin_key).get("/v1/targets")  # a connection that ends with it
    assert answer.status_code == 500
    assert answer.headers["Content-Security-Policy"] == DENY_ALL
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_what_was_asked_for_with_a_key_is_kept_by_nobody(api):
    assert api.http.get("/v1/targets").headers["Cache-Control"] == "no-store"
    assert api.http.get("/v1/targets/tgt_none").headers["Cache-Control"] == "no-store"
    assert "Cache-Control" not in api.client().get("/version").headers


def test_the_measuring_page_keeps_its_own_policy(api):
    headers = api.client().get("/measure/ABCD").headers
    assert "script-src 'self' 'wasm-unsafe-eval'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-cache"
    assert len(headers.get_list("content-security-policy")) == 1


def test_the_interactive_documentation_is_not_shut_out(api):
    policy = api.client().get("/docs").headers["Content-Security-Policy"]
    assert policy == "frame-ancestors 'none'"


def test_over_https_a_browser_is_told_to_forget_http(https):
    answer = https.client().get("/version", headers={"Host": "tailor.example"})
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=63072000")


@pytest.mark.parametrize("host", ["tailor.example", "TAILOR.example:8443", "[::1]:8000", "[::1]"])
def test_the_api_answers_for_its_hosts(https, host):
    assert https.client().get("/version", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "tailor.example.evil", "127.0.0.1", ""])
def test_and_for_no_other(https, host):
    answer = https.client().get("/version", headers={"Host": host})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.headers["Content-Security-Policy"] == DENY_ALL


def test_whoever_restarts_the_process_need_not_know_its_name(https):
    assert https.client().get("/healthz", headers={"Host": "10.1.2.3"}).status_code == 200


# -- small bodies ----------------------------------------------------------------------


def test_anybody_may_send_little_and_agents_much(api):
    device = api.enrol()
    body = b" " * (api.settings.max_small_body_bytes + 1)
    for client, path in ((api.client(), "/v1/agents"), (api.http, "/v1/searches")):
        answer = client.post(path, content=body)
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    for client, path in ((device.http, "/v1/measurements"), (api.http, "/v1/predictions")):
        assert client.post(path, content=body).status_code == 422
