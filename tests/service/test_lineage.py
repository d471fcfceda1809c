"""Where searches come from: parents, children, whose they are, and which supernet is taken."""

import pytest

from predictor.network import NetworkLatencyModel
from search_core.space.presets import get_space
from service.jobs import repository as jobs
from service.latency_models.repository import activate, add_model
from service.searches.creation import SUPERNET
from service.searches.lifecycle import end
from service.searches.models import Search, SearchArtifact
from service.searches.repository import get_search, targets_of

MICRO = get_space("micro")
MOST_ANCESTORS = 100
MOST_CHILDREN = 200
BUDGETS = {"budgets_ms": [0.03]}


@pytest.fixture(scope="module")
def api(api_on_both):
    return api_on_both


@pytest.fixture(scope="module")
def device(api):
    """An agent of a target whose latency model prices every network alike."""
    device = api.enrol_new_target()
    table = tuple((1e-3,) * len(slot.candidates) for slot in MICRO.slots)
    model = NetworkLatencyModel(MICRO.digest, 0.01, table, 0.05)
    with api.database.transaction() as session:
        report = {"measurements": {"n": 7}}
        activate(session, add_model(session, device.target_id, "micro", model, report))
    return device


@pytest.fixture
def root(api, device) -> dict:
    """A search that comes from none."""
    return api.search(device.target_id)


@pytest.fixture
def other(api):
    """Another account's HTTP session."""
    made = api.http.post("/v1/keys", json={"name": "other", "account": "others"})
    return api.client(made.json()["token"])


def made_from(api, parent: dict, action: str = "clone", body: dict | None = None) -> dict:
    answer = api.http.post(f"/v1/searches/{parent['id']}/{action}", json=body or {})
    assert answer.status_code == 201, answer.text
    return answer.json()


def ended(api, search: dict, *files: str) -> dict:
    """The search, ended with these files and without a network."""
    _, context = api.claim(search)
    with context.transaction() as (session, job):
        for name in files:
            row = {"sha256": "0" * 64, "size_bytes": 1, "media_type": "a/b"}
            session.add(SearchArtifact(search_id=search["id"], name=name, **row))
        end(session, get_search(session, search["id"], lock=True), "failed", code="tested")
        jobs.finish(session, job, "failed")
    return api.read(search)


def lineage(api, search: dict, client=None) -> dict:
    answer = (client or api.http).get(f"/v1/searches/{search['id']}/lineage")
    assert answer.status_code == 200, answer.text
    return answer.json()


def copies(api, search: dict, parents: list[str | None], prefix: str) -> list[str]:
    """Rows like that of the search: ids in order, the parent of each, `None`: the one before."""
    ids = [f"{prefix}_{place:04}" for place in range(len(parents))]
    with api.database.transaction() as session:
        first = session.get_one(Search, search["id"])
        columns = {c.key: getattr(first, c.key) for c in Search.__table__.columns}
        before = search["id"]
        for id_, parent in zip(ids, parents, strict=True):
            session.add(Search(**{**columns, "id": id_, "parent_id": parent or before}))
            session.flush()
            before = id_
    return ids


# -- parents and children --------------------------------------------------------------


def test_a_search_from_nothing_has_no_relations(api, root):
    found = lineage(api, root)
    assert found.pop("search") == root["id"]
    assert found.pop("object") == "lineage"
    assert set(map(tuple, found.values())) == {()}


def test_the_latency_models_are_those_that_an_attempt_has_priced_by(api, device, root):
    with api.database.transaction() as session:
        (row,) = targets_of(session, root["id"])
        row.latency_model_id = root["latency_model"]
    (model,) = lineage(api, root)["latency_models"]
    assert model.pop("created_at")
    assert model == {
        "id": root["latency_model"],
        "target": device.target_id,
        "version": 1,
        "measurements": 7,
    }
    again = made_from(api, ended(api, root, "manifest.json"), "reproduce")
    assert [one["id"] for one in lineage(api, again)["latency_models"]] == [model["id"]]


def test_ancestors_are_told_the_nearest_first_and_children_the_latest_first(api, root):
    first, second = made_from(api, root), made_from(api, root)
    grandchild = made_from(api, first)
    assert lineage(api, root)["children"] == [second["id"], first["id"]]  # not grandchildren
    assert lineage(api, grandchild)["ancestors"] == [first["id"], root["id"]]
    assert lineage(api, second)["ancestors"] == [root["id"]]


def test_every_kind_is_a_child_of_what_it_was_made_from(api, root):
    parent = ended(api, root, SUPERNET, "manifest.json")
    bodies = {"clone": {}, "extend": {"epochs": 1}, "derive": BUDGETS, "reproduce": None}
    made = [made_from(api, parent, action, body) for action, body in bodies.items()]
    assert [one["kind"] for one in made] == ["search", "extend", "derive", "reproduce"]
    assert lineage(api, parent)["children"] == [one["id"] for one in reversed(made)]
    for one in made:
        assert lineage(api, one)["ancestors"] == [parent["id"]]


def test_a_warm_start_makes_no_child(api, device, root):
    start = ended(api, root, SUPERNET)
    warmed = api.search(device.target_id, warm_start=start["id"])
    assert lineage(api, warmed)["ancestors"] == []
    assert lineage(api, start)["children"] == []


def test_other_owners_ancestors_and_children_are_not_told(api, root, other):
    child = made_from(api, root)
    grandchild = made_from(api, child)
    with api.database.transaction() as session:
        session.get_one(Search, child["id"]).owner = "others"
    assert lineage(api, child, other) == {
        **lineage(api, child),
        "ancestors": [],
        "children": [],
    }
    assert lineage(api, child)["ancestors"] == [root["id"]]  # an admin sees everyone's
    assert lineage(api, child)["children"] == [grandchild["id"]]
    assert other.get(f"/v1/searches/{root['id']}/lineage").status_code == 404
    with api.database.transaction() as session:
        session.get_one(Search, grandchild["id"]).owner = "others"
        session.get_one(Search, child["id"]).owner = "tests"
        session.get_one(Search, root["id"]).owner = "others"
    found = lineage(api, grandchild, other)
    assert found["ancestors"] == [root["id"]]  # what lies beyond somebody else's is still his


def test_a_deep_chain_is_told_up_to_a_hundred_ancestors(api, root):
    chain = [
        root["id"],
        *copies(api, root, [None] * (MOST_ANCESTORS + 2), "deep" + root["id"][-8:]),
    ]
    last_but = {n: {"id": chain[n]} for n in (MOST_ANCESTORS, MOST_ANCESTORS + 2)}
    whole = lineage(api, last_but[MOST_ANCESTORS])["ancestors"]
    assert whole == chain[:MOST_ANCESTORS][::-1]
    nearest = lineage(api, last_but[MOST_ANCESTORS + 2])["ancestors"]
    assert nearest == chain[2 : MOST_ANCESTORS + 2][::-1]


def test_of_many_children_the_latest_are_told(api, root):
    ids = copies(api, root, [root["id"]] * (MOST_CHILDREN + 1), "wide" + root["id"][-8:])
    assert lineage(api, root)["children"] == ids[:0:-1]


# -- which supernet a derivation takes -------------------------------------------------


def test_a_derivation_of_a_derivation_rests_on_the_search_that_kept_a_supernet(api, root):
    """A derivation keeps none, however many of them lie between."""
    newest = ended(api, root, SUPERNET)
    told = []
    for _ in range(3):
        newest = ended(api, made_from(api, newest, "derive", BUDGETS))
        told.insert(0, newest["id"])
    again = made_from(api, newest, "derive", BUDGETS)
    assert (again["kind"], again["parent"]) == ("derive", newest["id"])
    assert lineage(api, again)["ancestors"] == [*told, root["id"]]


@pytest.mark.parametrize("kept_by", ["search", "extend"])
def test_the_nearest_ancestor_that_is_no_derivation_must_have_kept_it(api, root, kept_by):
    """Not the one before it: an extension that lost its supernet has none to give."""
    extension = made_from(api, ended(api, root, SUPERNET), "extend", {"epochs": 1})
    ended(api, extension, SUPERNET)
    derived = ended(api, made_from(api, extension, "derive", BUDGETS))
    lost_by = {"search": extension, "extend": root}[kept_by]
    with api.database.transaction() as session:
        session.delete(session.get_one(SearchArtifact, (lost_by["id"], SUPERNET)))
    answer = api.http.post(f"/v1/searches/{derived['id']}/derive", json=BUDGETS)
    if kept_by == "extend":
        assert answer.status_code == 201
    else:
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert f"search {extension['id']} kept no supernet" in answer.json()["detail"]
