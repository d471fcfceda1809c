"""What people do with searches: act on them, change them, find them, make others from them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from service.db.base import utc_now
from service.jobs import repository as jobs
from service.searches.creation import SUPERNET
from service.searches.lifecycle import end, start
from service.searches.models import Search, SearchArtifact
from service.searches.repository import get_search

TERMINAL = ("succeeded", "infeasible", "failed", "cancelled")
NETWORK = {
    "architecture": "k3e1c24 k3e1c24 k3e1c40 k3e1c40 k3e1c80 k3e1c80",
    "predicted_ms": 0.02,
    "measured": None,
    "test_accuracy": 0.9,
    "parameters": 1,
    "macs": 1,
}
RESULT = {"network": NETWORK, "decodes": [], "frozen_slots": 0, "onnx_sha256": "0" * 64}


@pytest.fixture(scope="module")
def api(api_on_both):
    return api_on_both


@pytest.fixture(scope="module")
def device(api):
    return api.enrol_measured()


@pytest.fixture
def other(api):
    """Another account's HTTP session."""
    made = api.http.post("/v1/keys", json={"name": "other", "account": "others"})
    return api.client(made.json()["token"])


def post(client, search: dict, action: str, body: dict | None = None, **headers: str):
    return client.post(f"/v1/searches/{search['id']}/{action}", json=body, headers=headers)


def run(api, search: dict):
    """An attempt of the search has begun: its context."""
    _, context = api.claim(search)
    with context.transaction() as (session, _):
        start(session, get_search(session, search["id"], lock=True))
    return context


def ended(api, search: dict, status: str = "succeeded", *, supernet: bool = True) -> dict:
    """The search, ended as an attempt would have it, with a supernet to go on from."""
    context = run(api, search)
    with context.transaction() as (session, job):
        if supernet:
            row = {"sha256": "0" * 64, "size_bytes": 1, "media_type": "application/octet-stream"}
            for name in (SUPERNET, "manifest.json")[: 2 if status == "succeeded" else 1]:
                session.add(SearchArtifact(search_id=search["id"], name=name, **row))
        row = get_search(session, search["id"], lock=True)
        end(session, row, status, code="tested", result=RESULT if status == "succeeded" else None)
        jobs.finish(session, job, {"infeasible": "succeeded"}.get(status, status))
    return api.read(search)


def in_status(api, device, status: str) -> dict:
    """A search that has come to be in this status as searches do."""
    search = api.search(device.target_id)
    if status in TERMINAL:
        return ended(api, search, status)
    if status in ("running", "pausing", "cancelling"):
        run(api, search)
    if status in ("pausing", "paused"):
        assert post(api.http, search, "pause").is_success
    if status == "cancelling":
        assert post(api.http, search, "cancel").is_success
    found = api.read(search)
    assert found["status"] == status
    return found


# -- cancel, pause, resume -------------------------------------------------------------

CHANGES = {
    ("queued", "cancel"): (200, "cancelled"),
    ("queued", "pause"): (200, "paused"),
    ("running", "cancel"): (202, "cancelling"),
    ("running", "pause"): (202, "pausing"),
    ("pausing", "cancel"): (202, "cancelling"),
    ("paused", "cancel"): (200, "cancelled"),
    ("paused", "resume"): (200, "queued"),
}
NO_CHANGE = [
    ("queued", "resume"),
    ("running", "resume"),
    ("pausing", "pause"),
    ("paused", "pause"),
    ("cancelling", "cancel"),
    ("cancelled", "cancel"),
]
ALLOWED = {"pausing": ["cancel"], "cancelling": []}
REFUSED = [
    ("pausing", "resume"),
    *(("cancelling", action) for action in ("pause", "resume")),
    *((status, action) for status in TERMINAL for action in ("pause", "resume")),
    *((status, "cancel") for status in TERMINAL if status != "cancelled"),
]


@pytest.mark.parametrize(("status", "action"), CHANGES)
def test_an_action_is_done_at_once_or_accepted(api, device, status, action):
    search = in_status(api, device, status)
    answer = post(api.http, search, action)
    assert (answer.status_code, answer.json()["status"]) == CHANGES[status, action]
    assert answer.json() == api.read(search)
    assert answer.json()["version"] > search["version"]
    assert [e["data"]["status"] for e in api.events(search) if e["type"] == "status"][-1] == (
        answer.json()["status"]
    )


@pytest.mark.parametrize(("status", "action"), NO_CHANGE)
def test_an_action_that_is_done_already_changes_nothing(api, device, status, action):
    search = in_status(api, device, status)
    events = api.events(search)
    answer = post(api.http, search, action)
    assert (answer.status_code, answer.json()["version"]) == (200, search["version"])
    assert api.events(search) == events


@pytest.mark.parametrize(("status", "action"), REFUSED)
def test_an_action_that_is_not_possible_says_what_is(api, device, status, action):
    search = in_status(api, device, status)
    answer = post(api.http, search, action)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (409, "conflict")
    assert problem["current_status"] == status
    assert problem["allowed"] == ALLOWED.get(status, [])
    assert api.read(search)["version"] == search["version"]


def test_a_paused_search_has_a_reason_and_stands_in_no_queue(api, device):
    search = in_status(api, device, "paused")
    assert search["status_reason"]["code"] == "user_paused"
    assert search["status_reason"]["position"] is None
    with api.database.reading() as session:
        assert jobs.of_subject(session, search["id"]).status == "paused"
    resumed = post(api.http, search, "resume").json()
    assert (resumed["phase"], resumed["status_reason"]["code"]) == (
        "waiting_for_worker",
        "no_worker_online",
    )
    assert resumed["status_reason"]["position"] >= 1
    api.claim(search)  # it can be had again


def test_a_search_paused_while_it_waits_for_measurements_goes_on_waiting(api):
    target = api.enrol_new_target()
    search = api.search(target.target_id)
    post(api.http, search, "pause")
    target.answer_everything()
    api.run_fit()
    assert api.read(search)["status"] == "paused"  # a latency model wakes nobody who sleeps
    resumed = post(api.http, search, "resume").json()
    assert (resumed["status"], resumed["phase"]) == ("queued", "waiting_for_worker")


def test_a_search_resumed_before_its_target_is_measured_says_so(api):
    search = api.search(api.enrol_new_target().target_id)
    post(api.http, search, "pause")
    resumed = post(api.http, search, "resume").json()
    assert (resumed["phase"], resumed["status_reason"]["code"]) == (
        "awaiting_measurements",
        "awaiting_measurements",
    )


# -- reading with an ETag --------------------------------------------------------------


def test_an_unchanged_search_is_answered_with_304(api, device):
    search = api.search(device.target_id)
    path = f"/v1/searches/{search['id']}"
    tag = api.http.get(path).headers["ETag"]
    assert tag == f'W/"{search["version"]}"'
    for sent in (tag, tag.removeprefix("W/"), f'"0", {tag}'):
        unchanged = api.http.get(path, headers={"If-None-Match": sent})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
    post(api.http, search, "pause")
    changed = api.http.get(path, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["status"]) == (200, "paused")
    assert changed.headers["ETag"] != tag


def test_a_long_poll_is_answered_when_the_search_changes(api, device):
    search = api.search(device.target_id)
    path, headers = f"/v1/searches/{search['id']}", {"If-None-Match": f'"{search["version"]}"'}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.http.get, path, params={"wait": 30}, headers=headers)
        post(api.client(api.admin_key), search, "pause")
        assert waiting.result(timeout=60).json()["status"] == "paused"
    tag = api.http.get(path).headers["ETag"]
    unchanged = api.http.get(path, params={"wait": 0.1}, headers={"If-None-Match": tag})
    assert (unchanged.status_code, unchanged.headers["ETag"]) == (304, tag)
    assert api.http.get(path, params={"wait": 31}).status_code == 422


# -- changing --------------------------------------------------------------------------


def patch(client, search: dict, tag: str | None = "*", **body: object):
    headers = {"If-Match": tag} if tag else {}
    return client.patch(f"/v1/searches/{search['id']}", json=body, headers=headers)


def test_tags_priority_and_archive_are_changed_at_the_version_that_was_read(api, device):
    search = api.search(device.target_id, tags={"team": "edge"})
    assert search["tags"] == {"team": "edge"}
    first = f'W/"{search["version"]}"'
    answer = patch(api.http, search, first, tags={"team": "core", "run": "7"}, priority=3)
    assert answer.status_code == 200
    assert (answer.json()["tags"], answer.json()["priority"]) == ({"team": "core", "run": "7"}, 3)
    assert answer.headers["ETag"] == f'W/"{answer.json()["version"]}"' != first
    stale = patch(api.http, search, first, tags={})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    assert stale.json()["version"] == answer.json()["version"]
    without = patch(api.http, search, None, tags={})
    assert (without.status_code, without.json()["code"]) == (428, "precondition_required")
    assert api.read(search) == answer.json()


def test_archiving_twice_keeps_the_first_time_and_is_undone(api, device):
    search = api.search(device.target_id)
    archived_at = patch(api.http, search, archived=True).json()["archived_at"]
    assert archived_at is not None
    assert patch(api.http, search, archived=True).json()["archived_at"] == archived_at
    assert patch(api.http, search, archived=False).json()["archived_at"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"priority": 101},
        {"priority": 1.5},
        {"tags": {"a b": "c"}},
        {"tags": {"a": "x" * 201}},
        {"tags": {str(i): "" for i in range(33)}},
        {"status": "succeeded"},
        {"archived": "perhaps"},
    ],
)
def test_a_wrong_change_is_refused_and_changes_nothing(api, device, body):
    search = api.search(device.target_id)
    assert patch(api.http, search, **body).status_code == 422
    assert api.read(search)["version"] == search["version"]


def test_a_larger_priority_goes_first(api, device):
    first, second = (api.search(device.target_id, priority=-100) for _ in range(2))

    def position(search: dict) -> int:
        return api.read(search)["status_reason"]["position"]

    assert position(first) < position(second)
    patch(api.http, second, priority=-99)
    assert position(second) < position(first)


# -- many at once ----------------------------------------------------------------------


def test_a_bulk_action_is_done_or_refused_for_each(api, device, other):
    queued, failed = (in_status(api, device, status) for status in ("queued", "failed"))
    theirs = other.post(
        "/v1/searches", json={"target": device.target_id, "latency_budget_ms": 0.03}
    ).json()
    as_user = api.client(
        api.http.post("/v1/keys", json={"name": "u", "account": "tests"}).json()["token"]
    )
    ids = [failed["id"], "srch_nobody", queued["id"], theirs["id"], queued["id"]]
    answer = as_user.post("/v1/searches/bulk", json={"action": "cancel", "ids": ids})
    assert answer.status_code == 200
    items = answer.json()["items"]
    assert [item["id"] for item in items] == ids
    assert [item["done"] for item in items] == [False, False, True, False, True]
    assert [item["code"] for item in items] == [
        "conflict",
        "not_found",
        None,
        "not_found",
        None,
    ]
    assert api.read(queued)["status"] == "cancelled"
    assert other.get(f"/v1/searches/{theirs['id']}").json()["status"] == "queued"


def test_bulk_tags_are_added_and_searches_archived(api, device):
    made = [api.search(device.target_id, tags={"kept": "1"}) for _ in range(2)]
    ids = [search["id"] for search in made]
    for body in ({"action": "tag", "tags": {"new": "2"}}, {"action": "archive"}):
        assert api.http.post("/v1/searches/bulk", json={**body, "ids": ids}).status_code == 200
    for search in map(api.read, made):
        assert search["tags"] == {"kept": "1", "new": "2"}
        assert search["archived_at"] is not None


@pytest.mark.parametrize(
    "body", [{"action": "cancel", "ids": []}, {"action": "delete", "ids": ["srch_x"]}]
)
def test_a_bulk_action_that_means_nothing_is_refused(api, body):
    assert api.http.post("/v1/searches/bulk", json=body).status_code == 422


def test_searches_are_compared_by_what_their_specs_do_not_share(api, device):
    made = [api.search(device.target_id, seed=seed, epochs=8) for seed in (1, 2, 3)]
    ids = [search["id"] for search in made]
    found = api.http.get("/v1/searches/compare", params={"ids": ids}).json()
    assert [item["id"] for item in found["items"]] == ids
    assert found["differs"] == {"seed": [1, 2, 3]}
    for wrong, status in ((ids[:1], 422), (ids * 3, 422), ([ids[0], "srch_nobody"], 404)):
        answer = api.http.get("/v1/searches/compare", params={"ids": wrong})
        assert answer.status_code == status


# -- finding ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(api, device):
    """Searches of another target with tags, parents and owners, in the order they were made."""
    target = api.enrol_measured().target_id
    plain = api.search(target, tags={"team": "edge"})
    both = api.search(target, tags={"team": "edge", "run.no": "a/1"})
    done = ended(api, api.search(target))
    clone = post(api.http, done, "clone", {"seed": 1}).json()
    two = api.http.post(
        "/v1/searches",
        json={
            "targets": [
                {"target": device.target_id, "latency_budget_ms": 0.03},
                {"target": target, "latency_budget_ms": 0.03},
            ]
        },
    ).json()
    patch(api.http, both, archived=True)
    return {
        "target": target,
        "plain": plain,
        "both": both,
        "done": done,
        "clone": clone,
        "two": two,
    }


def listed(client, shelf: dict, limit: int = 200, **filters: object) -> list[str]:
    """The names of those of the shelf that a filtered list has, page by page."""
    names = {search["id"]: name for name, search in shelf.items() if name != "target"}
    found, cursor = [], None
    while True:
        asked = {"limit": limit, **filters, **({"cursor": cursor} if cursor else {})}
        page = client.get("/v1/searches", params=asked).json()
        found += [names[item["id"]] for item in page["items"] if item["id"] in names]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"status": "succeeded"}, ["done"]),
        ({"tag": ["team:edge"]}, ["both", "plain"]),
        ({"tag": ["team:edge", "run.no:a/1"]}, ["both"]),
        ({"tag": ["team:core"]}, []),
        ({"tag": ["team"]}, []),
        ({"archived": True}, ["both"]),
        ({"archived": False}, ["two", "clone", "done", "plain"]),
        ({"kind": "search"}, ["two", "clone", "done", "both", "plain"]),
        ({"kind": "derive"}, []),
        ({"order": "created_at"}, ["plain", "both", "done", "clone", "two"]),
        ({"owner": "nobody"}, []),
        ({"owner": "tests"}, ["two", "clone", "done", "both", "plain"]),
    ],
)
@pytest.mark.parametrize("limit", [1, 200])
def test_lists_are_filtered_page_by_page(api, shelf, filters, expected, limit):
    assert listed(api.http, shelf, limit, target=shelf["target"], **filters) == expected


def test_children_are_listed_by_their_parent(api, shelf):
    assert listed(api.http, shelf, parent=shelf["done"]["id"]) == ["clone"]


@pytest.mark.parametrize(
    "wrong", [{"status": "gone"}, {"order": "name"}, {"limit": 0}, {"limit": 201}, {"kind": "x"}]
)
def test_a_filter_that_means_nothing_is_refused(api, wrong):
    assert api.http.get("/v1/searches", params=wrong).status_code == 422


# -- whose they are --------------------------------------------------------------------


def test_another_account_sees_nothing_of_a_search(api, device, other):
    search = ended(api, api.search(device.target_id))
    path, before = f"/v1/searches/{search['id']}", api.read(search)
    reads = ("", "/events", "/metrics", "/architecture", "/artifacts", "/lineage", "/front")
    answers = [other.get(path + suffix) for suffix in (*reads, "/artifacts/supernet.pt")]
    answers += [post(other, search, one) for one in ("cancel", "pause", "resume", "reproduce")]
    answers += [post(other, search, one, {}) for one in ("clone", "extend", "derive")]
    answers.append(patch(other, search, tags={}))
    assert [answer.status_code for answer in answers] == [404] * len(answers)
    assert all("no search has id" in answer.json()["detail"] for answer in answers)
    unknown = other.get("/v1/searches/srch_nobody").json()
    assert answers[0].json().keys() == unknown.keys()
    listed = other.get("/v1/searches", params={"limit": 200}).json()["items"]
    assert {item["owner"] for item in listed} <= {"others"}
    assert other.get("/v1/searches", params={"owner": "tests"}).json()["items"] == []
    assert api.read(search) == before


def test_an_operator_sees_and_stops_everybodys(api, device, other):
    body = {"target": device.target_id, "latency_budget_ms": 0.03}
    theirs = other.post("/v1/searches", json=body).json()
    assert theirs["owner"] == "others"
    made = api.http.post("/v1/keys", json={"name": "op", "scope": "operator"}).json()
    operator = api.client(made["token"])
    owned = operator.get("/v1/searches", params={"owner": "others"}).json()["items"]
    assert theirs["id"] in [item["id"] for item in owned]
    assert post(operator, theirs, "cancel").json()["status"] == "cancelled"


def test_a_viewer_reads_and_does_nothing_else(api, device):
    search = api.search(device.target_id)
    made = api.http.post(
        "/v1/keys", json={"name": "v", "scope": "viewer", "account": "tests"}
    ).json()
    viewer = api.client(made["token"])
    assert viewer.get(f"/v1/searches/{search['id']}").json() == api.read(search)
    for answer in (post(viewer, search, "cancel"), patch(viewer, search, tags={})):
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_an_account_has_so_many_unfinished_searches_and_no_more(serve):
    with serve(account_unfinished_searches=2) as api:
        target = api.enrol_new_target().target_id
        first, _ = (api.search(target, seed=seed) for seed in range(2))
        before = api.stored()
        answer = api.http.post("/v1/searches", json={"target": target, "latency_budget_ms": 0.03})
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        assert (answer.json()["used"], answer.json()["limit"]) == (2, 2)
        assert api.stored() == before
        assert post(api.http, first, "pause").is_success  # a paused one is not finished
        assert post(api.http, first, "clone", {}).status_code == 429
        post(api.http, first, "cancel")
        assert post(api.http, first, "clone", {}).status_code == 201


# -- others from one -------------------------------------------------------------------


@pytest.fixture(scope="module")
def parent(api, device) -> dict:
    """A search that has succeeded and kept its supernet."""
    return ended(api, api.search(device.target_id, epochs=8, seed=4, tags={"team": "edge"}))


def test_a_clone_is_the_same_but_for_what_is_changed(api, device, parent):
    answer = post(api.http, parent, "clone", {"seed": 9, "latency_budget_ms": 0.032})
    assert answer.status_code == 201
    clone = answer.json()
    assert answer.headers["Location"] == f"/v1/searches/{clone['id']}"
    assert clone["spec"] == {**parent["spec"], "seed": 9, "latency_budget_ms": 0.032}
    assert (clone["kind"], clone["parent"], clone["status"]) == ("search", parent["id"], "queued")
    assert clone["links"]["parent"] == f"/v1/searches/{parent['id']}"
    assert clone["tags"] == parent["tags"]
    one = [{"target": device.target_id, "latency_budget_ms": 0.04}]
    several = post(api.http, parent, "clone", {"targets": one}).json()
    assert (several["spec"]["targets"], several["spec"]["target"]) == (one, None)
    again = post(api.http, several, "clone", {"target": device.target_id, "latency_budget_ms": 1})
    assert (again.json()["spec"]["targets"], again.json()["spec"]["latency_budget_ms"]) == ([], 1)


def test_a_clone_on_an_unmeasured_target_brings_its_kit(api, parent):
    fresh = api.enrol_new_target()
    clone = post(api.http, parent, "clone", {"target": fresh.target_id}).json()
    assert (clone["status"], clone["phase"]) == ("queued", "awaiting_measurements")
    assert fresh.lease_one()["subject"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"search_space": "nowhere"}, "search_space"),
        ({"target": "tgt_nobody"}, "target"),
        ({"targets": []}, "target"),
        ({"epochs": None}, "epochs"),
        ({"latency_budget_ms": 0.001}, "latency_budget_ms"),
        ({"epochs": 3}, "epochs"),
        ({"kind": "derive"}, "kind"),
    ],
)
def test_a_clone_that_means_nothing_is_refused(api, parent, body, field):
    before = api.stored()
    answer = post(api.http, parent, "clone", body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert api.stored() == before


def test_what_is_asked_for_twice_under_a_key_is_made_once(api, parent):
    key = {"Idempotency-Key": f"clone {parent['id']}"}
    first, again = (post(api.http, parent, "clone", {"seed": 11}, **key) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    patch(api.http, parent, tags={"changed": "meanwhile"})
    assert post(api.http, parent, "clone", {"seed": 11}, **key).json()["id"] == first.json()["id"]
    patch(api.http, parent, tags=parent["tags"])
    assert first.json()["id"] == again.json()["id"]
    for answer in (
        post(api.http, parent, "clone", {"seed": 12}, **key),
        post(api.http, parent, "extend", {"epochs": 1}, **key),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_an_extension_has_more_epochs_or_other_limits(api, parent):
    more = post(api.http, parent, "extend", {"epochs": 4})
    assert more.status_code == 201
    assert (more.json()["kind"], more.json()["parent"]) == ("extend", parent["id"])
    assert more.json()["spec"] == {**parent["spec"], "epochs": 12}
    limits = {"wall_minutes": 5.0, "gpu_hours": None, "queue_minutes": None}
    limits["stop_on_collapse"] = False
    longer = post(api.http, parent, "extend", {"limits": limits}).json()
    assert longer["spec"] == {**parent["spec"], "limits": limits}
    assert longer["latency_model"] == parent["latency_model"]
    nothing = post(api.http, parent, "extend", {})
    assert (nothing.status_code, nothing.json()["errors"][0]["field"]) == (422, "epochs")
    too_many = post(api.http, parent, "extend", {"epochs": 9_999})
    assert (too_many.status_code, too_many.json()["errors"][0]["field"]) == (422, "epochs")


def test_a_derivation_is_of_budgets_or_of_points_over_the_band(api, device, parent):
    answer = post(api.http, parent, "derive", {"budgets_ms": [0.04, 0.03, 0.04]})
    assert answer.status_code == 201
    spec = answer.json()["spec"]
    assert [budget["latency_budget_ms"] for budget in spec["targets"]] == [0.03, 0.04]
    assert {budget["target"] for budget in spec["targets"]} == {device.target_id}
    assert (answer.json()["kind"], spec["together"], spec["train_epochs"]) == ("derive", "each", 0)
    assert not spec["random_baseline"]
    assert not spec["hand_made_baseline"]
    spread = post(api.http, parent, "derive", {"points": 5, "train_epochs": 2}).json()
    budgets_ms = [budget["latency_budget_ms"] for budget in spread["spec"]["targets"]]
    band = api.latency_models(device)[0]
    assert band["fastest_ms"] < budgets_ms[0] < budgets_ms[-1]
    assert budgets_ms[-1] == pytest.approx(band["slowest_ms"], rel=1e-4)
    assert len(budgets_ms) == 5
    assert spread["spec"]["train_epochs"] == 2


def test_a_budget_no_network_meets_is_no_reason_to_refuse_the_others(api, parent):
    answer = post(api.http, parent, "derive", {"budgets_ms": [0.001, 0.03]})
    assert answer.status_code == 201
    assert [t["feasible"] for t in answer.json()["feasibility"]["targets"]] == [False, True]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "budgets_ms"),
        ({"budgets_ms": [0.03], "points": 3}, "budgets_ms"),
        ({"points": 1}, "points"),
        ({"points": 33}, "points"),
        ({"budgets_ms": [-1.0]}, "budgets_ms.0"),
        ({"budgets_ms": [0.03], "target": "tgt_nobody"}, "target"),
    ],
)
def test_a_derivation_that_means_nothing_is_refused(api, parent, body, field):
    before = api.stored()
    answer = post(api.http, parent, "derive", body)
    assert answer.status_code == 422
    assert field in answer.json()["errors"][0]["field"]
    assert api.stored() == before


def test_other_budgets_may_be_derived_for_another_target(api, parent):
    fresh = api.enrol(device_model="a formula in pairs", batch=2)
    refused = post(api.http, parent, "derive", {"points": 3, "target": fresh.target_id})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "points")
    made = post(api.http, parent, "derive", {"budgets_ms": [0.03], "target": fresh.target_id})
    assert (made.status_code, made.json()["phase"]) == (201, "awaiting_measurements")


def test_a_reproduction_has_the_spec_and_the_latency_model_of_the_first(api, parent):
    made = post(api.http, parent, "reproduce")
    assert made.status_code == 201
    assert made.json()["spec"] == parent["spec"]
    assert (made.json()["kind"], made.json()["parent"]) == ("reproduce", parent["id"])
    assert made.json()["latency_model"] == parent["latency_model"]


@pytest.mark.parametrize("action", ["extend", "derive", "reproduce"])
def test_what_has_not_ended_or_kept_nothing_is_gone_on_with_by_nobody(api, device, action):
    bodies = {"extend": {"epochs": 1}, "derive": {"budgets_ms": [0.03]}, "reproduce": None}
    body = bodies[action]
    queued = api.search(device.target_id)
    bare = ended(api, api.search(device.target_id), supernet=False)
    kept_nothing = "has no manifest" if action == "reproduce" else "kept no supernet"
    for search, told in ((queued, "queued"), (bare, kept_nothing)):
        before = api.stored()
        answer = post(api.http, search, action, body)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert told in answer.json()["detail"]
        assert api.stored() == before


def test_only_a_search_with_a_result_is_reproduced(api, device, parent):
    failed = ended(api, api.search(device.target_id), "failed")
    derived = post(api.http, parent, "derive", {"budgets_ms": [0.03]}).json()
    for search in (failed, ended(api, derived)):
        answer = post(api.http, search, "reproduce")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_a_warm_start_is_a_search_of_the_same_space_with_a_supernet(api, device, parent, other):
    def refusal(start: str, **spec: object) -> str:
        body = {"target": device.target_id, "latency_budget_ms": 0.03, "warm_start": start, **spec}
        answer = api.http.post("/v1/searches", json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == "warm_start"
        return answer.json()["detail"]

    assert api.search(device.target_id, warm_start=parent["id"])["status"] == "queued"
    assert "no search has id" in refusal("srch_nobody")
    assert "has no supernet" in refusal(api.search(device.target_id)["id"])
    body = {"target": device.target_id, "latency_budget_ms": 0.03, "warm_start": parent["id"]}
    theirs = other.post("/v1/searches", json=body)
    assert theirs.status_code == 422
    assert theirs.json()["detail"] == f"no search has id {parent['id']}"


# -- several targets -------------------------------------------------------------------


def budgets(*devices, budget_ms: float = 0.03) -> list[dict]:
    return [{"target": d.target_id, "latency_budget_ms": budget_ms} for d in devices]


def test_a_search_waits_for_the_latency_model_of_each_of_its_targets(api):
    devices = sorted((api.enrol_new_target() for _ in range(2)), key=lambda d: d.target_id)
    search = api.http.post("/v1/searches", json={"targets": budgets(*devices)}).json()
    assert search["latency_model"] is None
    for device in devices:
        assert api.read(search)["phase"] == "awaiting_measurements"
        device.answer_everything()
        api.run_fit()
    ready = api.read(search)
    assert (ready["status"], ready["phase"]) == ("queued", "waiting_for_worker")
    api.claim(search)


def test_a_search_fails_when_one_of_its_targets_cannot_be_measured(api, device):
    broken = api.enrol_new_target()
    search = api.http.post("/v1/searches", json={"targets": budgets(device, broken)}).json()
    while tasks := broken.lease():
        broken.report(*(broken.failure(task, "unsupported") for task in tasks))
    api.run_fit()
    failed = api.read(search)
    assert (failed["status"], failed["status_reason"]["code"]) == ("failed", "no_latency_model")


def test_a_preflight_tells_of_each_target(api, device):
    fresh = api.enrol_new_target()
    body = {"targets": budgets(device, fresh)}
    found = api.http.post("/v1/searches", json=body, params={"dry_run": True}).json()
    assert [one["target"] for one in found["targets"]] == [device.target_id, fresh.target_id]
    assert [one["feasible"] for one in found["targets"]] == [True, None]
    assert found["feasible"] is None
    assert found["missing_measurements"] > 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (lambda d: {"targets": budgets(d), "target": d.target_id}, "target"),
        (lambda d: {"targets": budgets(d), "latency_budget_ms": 1.0}, "latency_budget_ms"),
        (lambda d: {"targets": budgets(d, d)}, "targets"),
        (lambda d: {"targets": budgets(d, budget_ms=0.001)}, "targets.0.latency_budget_ms"),
        (lambda d: {"targets": [{"target": d.target_id}]}, "targets.0.latency_budget_ms"),
        (lambda _: {}, "target"),
    ],
)
def test_targets_that_contradict_themselves_are_refused(api, device, body, field):
    before = api.stored()
    answer = api.http.post("/v1/searches", json=body(device))
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert api.stored() == before


def test_one_target_may_have_several_budgets_when_each_gets_its_network(api, device):
    two = [*budgets(device), *budgets(device, budget_ms=0.04)]
    answer = api.http.post("/v1/searches", json={"targets": two, "together": "each"})
    assert answer.status_code == 201


# -- limits ----------------------------------------------------------------------------


def test_a_search_that_nothing_begins_in_time_fails_with_the_reason(api, device, eventually):
    search = api.search(device.target_id, limits={"queue_minutes": 1e-3})

    def failed() -> dict | None:
        found = api.read(search)
        return found if found["status"] == "failed" else None

    found = eventually(failed, "its queue time is not over")
    assert found["status_reason"]["code"] == "queue_time_limit"
    with api.database.reading() as session:
        assert session.get_one(Search, search["id"]).finished_at <= utc_now()
