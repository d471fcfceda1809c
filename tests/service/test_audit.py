"""The audit log: one entry for each change that somebody made, in the transaction of the change."""

import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service.app import create_app
from service.auth.access import RequiredScope
from service.dependencies import _write_session
from service.settings import Settings

RECORDS_ITSELF = {"/v1/datasets/uploads"}  # it takes its body in before it has a transaction
STORES_NOTHING = {
    "/v1/predictions",
    "/v1/latency-models/{model_id}/predictions",
    "/v1/latency-models/{model_id}/what-if",
    "/v1/targets/{target_id}/predictions",
}


def entries(api, **filters: object) -> list[dict]:
    answer = api.http.get("/v1/audit", params=filters)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def new_key(api, **changes: object) -> dict:
    return api.http.post("/v1/keys", json={"name": "a key", **changes}).json()


def calls(dependant):
    for inner in dependant.dependencies:
        yield inner.call
        yield from calls(inner)


def test_every_route_of_a_person_that_may_change_something_is_audited(tmp_path):
    app = create_app(Settings(home=tmp_path))
    missing = set()
    apart = STORES_NOTHING | RECORDS_ITSELF
    for context in iter_route_contexts(app.routes):
        if not (context.methods or set()) - {"GET", "HEAD"} or context.path in apart:
            continue
        asked = list(calls(context.dependant))
        if any(isinstance(call, RequiredScope) for call in asked) and _write_session not in asked:
            missing.add(context.path)
    assert missing == set()


def test_a_change_is_told_with_who_made_it_what_it_made_and_where_from(api_on_both):
    api = api_on_both
    own = api.http.get("/v1/keys/self").json()
    answer = api.http.post("/v1/keys", json={"name": "x"}, headers={"X-Request-Id": "mine-7"})
    (entry,) = entries(api, object=answer.json()["id"])
    assert entry.pop("id").startswith("aud_")
    assert entry.pop("created_at") >= answer.json()["created_at"]
    assert entry == {
        "object": "audit_entry",
        "account": own["account"],
        "key_id": own["id"],
        "key_name": own["name"],
        "session_id": None,
        "action": "POST /v1/keys",
        "parameters": {},
        "object_id": answer.json()["id"],
        "request_id": "mine-7",
        "address": "127.0.0.1",
    }


def test_a_path_is_told_by_its_template_and_its_parameters(api):
    made = new_key(api)
    api.http.delete(f"/v1/keys/{made['id']}")
    last, first = entries(api, object=made["id"])
    assert (first["action"], first["parameters"]) == ("POST /v1/keys", {})
    assert last["action"] == "DELETE /v1/keys/{key_id}"
    assert last["parameters"] == {"key_id": made["id"]}


def test_a_route_without_the_prefix_is_told_as_it_was_asked_for(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    made = api.http.post("/searches", json=body)
    assert made.status_code == 201
    assert entries(api)[0]["action"] == "POST /searches"


def test_a_refused_change_is_not_told(api):
    before = api.stored()["audit_entries"]
    user = api.client(new_key(api)["token"])
    assert user.post("/v1/keys", json={"name": "x"}).status_code == 403
    assert api.client("tlr_nobody").post("/v1/keys", json={"name": "x"}).status_code == 401
    assert api.http.post("/v1/keys", json={"name": ""}).status_code == 422
    assert api.http.delete("/v1/keys/key_nobody").status_code == 404
    assert api.stored()["audit_entries"] == before + 1  # the user's own key


def test_what_changes_nothing_is_not_told(api, measured):
    body = {"target": measured.target_id, "latency_budget_ms": 0.03}
    before = api.stored()
    assert api.http.post("/v1/searches", json=body, params={"dry_run": True}).status_code == 200
    assert api.stored() == before
    headers = {"Idempotency-Key": "once"}
    asked = [api.http.post("/v1/searches", json=body, headers=headers).json() for _ in range(2)]
    assert asked[0]["id"] == asked[1]["id"]
    assert api.stored()["audit_entries"] == before["audit_entries"] + 1


def test_an_entry_is_written_with_the_change_or_not_at_all(api, monkeypatch):
    def refuse(*_):
        raise RuntimeError("the log is full")

    before = api.stored()
    monkeypatch.setattr("service.audit.record.append_entry", refuse)
    assert api.http.post("/v1/keys", json={"name": "x"}).status_code == 500
    assert api.stored() == before


def test_an_enrolment_is_told_as_the_doing_of_who_gave_the_code_away(api):
    giver = new_key(api, account="givers")
    code = api.client(giver["token"]).post("/v1/enrolment-codes").json()["code"]
    body = {"code": code, "name": "n", "agent_version": "1"}
    body["profiles"] = [api.profile_of(api.enrol())]
    made = api.client().post("/v1/agents", json=body).json()
    (entry,) = entries(api, object=made["id"])
    assert (entry["action"], entry["account"], entry["key_id"]) == (
        "POST /v1/agents",
        "givers",
        giver["id"],
    )
    assert code not in str(entries(api, actor="givers"))


def test_what_agents_do_at_their_work_is_not_told(api):
    device = api.enrol_with_kit()
    before = api.stored()["audit_entries"]
    device.heartbeat()
    device.answer_everything()
    assert api.stored()["audit_entries"] == before
    api.http.delete(f"/v1/agents/{device.agent_id}")
    assert entries(api)[0]["action"] == "DELETE /v1/agents/{agent_id}"


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_entries SET account = 'nobody'", "DELETE FROM audit_entries"]
)
def test_no_statement_changes_the_log(api_on_both, statement):
    new_key(api_on_both)
    before = entries(api_on_both)
    refused = pytest.raises(DBAPIError, match="append-only")
    with refused, api_on_both.database.transaction() as session:
        session.execute(text(statement))
    assert entries(api_on_both) == before


def test_entries_are_found_by_actor_action_and_object(api):
    team = new_key(api, scope="admin", account="a team")
    client = api.client(team["token"])
    made = client.post("/v1/keys", json={"name": "x"}).json()
    client.delete(f"/v1/keys/{made['id']}")
    for actor in (team["id"], "a team"):
        found = [e["action"] for e in entries(api, actor=actor)]
        assert found == ["DELETE /v1/keys/{key_id}", "POST /v1/keys"]
    assert {e["key_id"] for e in entries(api, actor="a team", action="DELETE")} == {team["id"]}
    assert entries(api, actor="a team", action="POST /v1/searches") == []
    assert entries(api, action="%") == []  # no pattern, but a beginning
    assert entries(api, object="nothing") == []


def test_the_log_is_read_page_by_page(api):
    for _ in range(3):
        new_key(api)
    whole = entries(api, limit=200)
    first = api.http.get("/v1/audit", params={"limit": 2}).json()
    rest = api.http.get("/v1/audit", params={"limit": 200, "cursor": first["next_cursor"]}).json()
    assert first["items"] + rest["items"] == whole
    assert [e["id"] for e in whole] == sorted((e["id"] for e in whole), reverse=True)


def test_tailor_audit(tailor_json, tailor, api):
    made = new_key(api)
    (entry,) = tailor_json("audit", "--object", made["id"])
    assert entry["action"] == "POST /v1/keys"
    assert len(tailor_json("audit", "--limit", 1)) == 1
    shown = tailor("audit", "--action", "POST /v1/keys", "--actor", entry["account"])
    assert made["id"] in shown.out
