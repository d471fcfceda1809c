"""`tailor search`: every wish as words, many searches at once, and what is shown of them."""

import json
import threading

import pytest

from service.cli.plot import Dot, scatter
from service.client.client import Client
from service.jobs import repository as jobs
from service.searches.creation import SUPERNET
from service.searches.lifecycle import end
from service.searches.models import Search, SearchArtifact
from service.searches.repository import get_search

NETWORK = {
    "architecture": "k3e1c24 k3e1c24 k3e1c40 k3e1c40 k3e1c80 k3e1c80",
    "predicted_ms": 0.02,
    "measured": {
        "median_ms": 0.021,
        "p10_ms": 0.02,
        "p90_ms": 0.022,
        "n": 100,
        "measurement": "msr_x",
    },
    "test_accuracy": 0.9,
    "parameters": 1000,
    "macs": 2000,
}
BASELINES = [
    {
        **NETWORK,
        "kind": kind,
        "test_accuracy": 0.85,
        "gap": {"accuracy": 0.05, "interval95": [0.01, 0.09], "n_images": 360},
    }
    for kind in ("random", "hand_made")
]
RESULT = {
    "network": NETWORK,
    "random_baseline": BASELINES[0],
    "baselines": BASELINES,
    "decodes": [],
    "frozen_slots": 0,
    "onnx_sha256": "0" * 64,
}


@pytest.fixture
def aim(measured) -> tuple[object, ...]:
    return "--target", measured.target_id, "--budget-ms", 0.03


@pytest.fixture
def ended(api, measured):
    """Makes a search that has ended with a result, and a supernet to go on from."""

    def make(result: dict | None = RESULT, status: str = "succeeded", **spec: object) -> dict:
        search = api.search(measured.target_id, **spec)
        _, context = api.claim(search)
        with context.transaction() as (session, job):
            for name in (SUPERNET, "manifest.json"):
                row = {"sha256": "0" * 64, "size_bytes": 1, "media_type": "a/b"}
                session.add(SearchArtifact(search_id=search["id"], name=name, **row))
            row = get_search(session, search["id"], lock=True)
            end(session, row, status, code="tested", text="As tested.", result=result)
            jobs.finish(session, job, {"infeasible": "succeeded"}.get(status, status))
        return api.read(search)

    return make


# -- asking ----------------------------------------------------------------------------


def test_every_option_of_a_search_is_in_its_spec(tailor_json, aim, ended):
    start = ended()
    made = tailor_json(
        *("search", "create", *aim, "--epochs", 8, "--train-epochs", 2, "--seed", 3),
        *("--algorithm", "gumbel", "--no-random-baseline", "--no-hand-made-baseline"),
        *("--warm-start", start["id"], "--priority", 7, "--wall-minutes", 5, "--gpu-hours", 1),
        *(
            "--queue-minutes",
            60,
            "--stop-on-collapse",
            "--gpus",
            1,
            "--label",
            "gpu_model=H*",
            "--tag",
            "team=edge",
        ),
    )
    assert made["spec"] == {
        **start["spec"],
        "epochs": 8,
        "train_epochs": 2,
        "seed": 3,
        "algorithm": "gumbel",
        "random_baseline": False,
        "hand_made_baseline": False,
        "warm_start": start["id"],
        "priority": 7,
        "limits": {
            "wall_minutes": 5.0,
            "gpu_hours": 1.0,
            "queue_minutes": 60.0,
            "stop_on_collapse": True,
        },
        "worker": {"gpus": 1, "memory_bytes": None, "labels": {"gpu_model": "H*"}},
        "tags": {"team": "edge"},
    }


@pytest.mark.parametrize(
    ("n_targets", "budgets_ms", "expected_ms"),
    [(2, [0.03, 0.04], [0.03, 0.04]), (2, [0.03], [0.03, 0.03]), (1, [0.03, 0.04], [0.03, 0.04])],
)
def test_several_targets_and_budgets_go_together(
    tailor_json, api, measured, n_targets, budgets_ms, expected_ms
):
    ids = [measured.target_id, api.enrol_new_target().target_id][:n_targets]
    words = [word for one in ids for word in ("--target", one)]
    words += [word for budget_ms in budgets_ms for word in ("--budget-ms", budget_ms)]
    spec = tailor_json("search", "create", *words, "--together", "each")["spec"]
    assert [budget["latency_budget_ms"] for budget in spec["targets"]] == expected_ms
    assert [budget["target"] for budget in spec["targets"]] == (ids * 2)[:2]
    assert spec["together"] == "each"
    found = tailor_json("search", "preflight", *words, "--together", "each")
    assert len(found["targets"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--target", "a", "--target", "b", "--budget-ms", 1, "--budget-ms", 2, "--budget-ms", 3),
        ("--target", "a", "--budget-ms", 1, "--tag", "edge"),
        ("--target", "a", "--budget-ms", 1, "--label", "=H100"),
        ("--target", "a"),
    ],
)
def test_words_that_mean_nothing_are_a_usage_error(tailor, words):
    assert tailor("search", "create", *words).status == 2


def test_the_same_key_makes_one_search(tailor_json, aim):
    words = ("search", "create", *aim, "--idempotency-key", "from the shell")
    assert tailor_json(*words)["id"] == tailor_json(*words)["id"]


def test_waiting_tells_by_the_exit_status_how_a_search_ended(tailor, api, ended):
    for status, exit_status in (("succeeded", 0), ("infeasible", 3), ("failed", 4)):
        search = ended(RESULT if status != "failed" else None, status)
        ran = tailor("search", "wait", search["id"], "--json")
        assert (ran.status, json.loads(ran.out)["status"]) == (exit_status, status)


def test_waiting_no_longer_than_asked_exits_with_6(tailor, aim):
    ran = tailor("search", "create", *aim, "--wait", "--timeout-minutes", 0)
    assert (ran.status, ran.out) == (6, "")
    assert "is still queued" in ran.err


def test_a_search_is_followed_while_it_is_paused_until_it_ends(tailor, api, measured):
    search = api.search(measured.target_id)
    with Client(api.url, api.admin_key) as other:
        other.pause_search(search["id"])
        canceller = threading.Timer(0.5, other.cancel_search, [search["id"]])
        canceller.start()
        ran = tailor("search", "follow", search["id"])
        canceller.join()
    assert ran.status == 5
    assert "paused, until it is resumed" in ran.err


# -- acting ----------------------------------------------------------------------------


def test_one_search_is_paused_resumed_and_cancelled(tailor_json, api, measured):
    search = api.search(measured.target_id)["id"]
    for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert tailor_json("search", action, search)["status"] == status


def test_of_many_searches_each_is_told_of(tailor, api, measured):
    ids = [api.search(measured.target_id)["id"] for _ in range(2)]
    ran = tailor("search", "pause", *ids)
    assert ran.status == 0
    assert ran.out.count("paused") == 2
    refused = tailor("search", "resume", *ids, "srch_nobody")
    assert refused.status == 2
    assert "no search has id srch_nobody" in refused.out


def test_searches_are_tagged_archived_and_listed_by_it(tailor_json, api, measured):
    search = api.search(measured.target_id, tags={"a": "1", "b": "2"})["id"]
    tagged = tailor_json("search", "tag", search, "c=3", "--remove", "a")
    assert tagged["tags"] == {"b": "2", "c": "3"}
    tailor_json("search", "archive", search)
    words = ("search", "list", "--tag", "c=3")
    assert [found["id"] for found in tailor_json(*words, "--archived")] == [search]
    assert tailor_json(*words, "--no-archived") == []
    tailor_json("search", "archive", search, "--undo")
    assert [found["id"] for found in tailor_json(*words, "--no-archived")] == [search]
    assert tailor_json("search", "priority", search, 5)["priority"] == 5


def test_lists_are_filtered(tailor_json, api, measured):
    target = api.enrol_new_target().target_id
    made = [api.search(target)["id"] for _ in range(3)]
    words = ("search", "list", "--target", target, "--kind", "search", "--owner", "tests")
    assert [found["id"] for found in tailor_json(*words)] == made[::-1]
    assert [found["id"] for found in tailor_json(*words, "--oldest-first")] == made
    assert tailor_json(*words, "--parent", made[0]) == []


# -- others from one -------------------------------------------------------------------


def test_searches_are_made_from_others(tailor_json, ended):
    parent = ended(epochs=8)["id"]
    clone = tailor_json("search", "clone", parent, "--seed", 9, "--tag", "a=b")
    assert (clone["spec"]["seed"], clone["tags"]) == (9, {"a": "b"})
    assert tailor_json("search", "extend", parent, "--epochs", 4)["spec"]["epochs"] == 12
    unlimited = tailor_json("search", "extend", parent, "--no-limits")
    assert unlimited["spec"]["limits"]["wall_minutes"] is None
    derived = tailor_json("search", "derive", parent, "--budget-ms", 0.03, "--budget-ms", 0.04)
    assert [b["latency_budget_ms"] for b in derived["spec"]["targets"]] == [0.03, 0.04]
    assert len(tailor_json("search", "derive", parent, "--points", 3)["spec"]["targets"]) == 3
    assert tailor_json("search", "reproduce", parent)["kind"] == "reproduce"
    lineage = tailor_json("search", "lineage", parent)
    assert len(lineage["children"]) == 6


def test_a_derivation_of_nothing_is_refused(tailor, ended):
    refused = tailor("search", "derive", ended()["id"])
    assert (refused.status, refused.out) == (2, "")
    assert "give budgets_ms or points" in refused.err


# -- what is shown ---------------------------------------------------------------------


def test_a_result_is_shown_beside_its_baselines_with_the_gap(tailor, ended):
    shown = tailor("search", "show", ended()["id"]).out
    for told in ("network found", "random", "hand-made", "+0.0500", "+0.0100 to"):
        assert told in shown


def test_points_and_a_reproduction_are_shown(tailor, ended, measured):
    point = {**NETWORK, "target": measured.target_id, "verified": True, "latency_budget_ms": 0.03}
    missed = {**point, "verified": False, "measured": None, "latency_budget_ms": 0.001}
    reproduction = {
        "of": "srch_first",
        "same": False,
        "logits_equal": False,
        "largest_logit_difference": 0.1,
        "architecture_equal": True,
        "architecture": NETWORK["architecture"],
        "differs": ["logits: by up to 0.1"],
    }
    result = {**RESULT, "points": [missed, point], "reproduction": reproduction}
    shown = tailor("search", "show", ended(result)["id"]).out
    for told in ("verified", "not reached", "srch_first", "by up to 0.1"):
        assert told in shown


def test_a_search_of_several_targets_shows_each_budget(tailor, api, measured):
    other = api.enrol_new_target().target_id
    targets = [{"target": t, "latency_budget_ms": 0.03} for t in (measured.target_id, other)]
    search = api.http.post("/v1/searches", json={"targets": targets}).json()
    for words in (("show", search["id"]), ("list",)):
        ran = tailor("search", *words)
        assert ran.status == 0
        assert ran.out.count("0.03") >= 2


def test_searches_are_compared_side_by_side(tailor, tailor_json, ended):
    ids = [ended(seed=seed)["id"] for seed in (1, 2)]
    assert tailor_json("search", "compare", *ids)["differs"] == {"seed": [1, 2]}
    shown = tailor("search", "compare", *ids).out
    for told in (*ids, "seed", "0.021 ms", "0.9000", "decide 100% of the slots alike"):
        assert told in shown
    assert tailor("search", "compare", ids[0]).status == 2


def test_seeds_agree_in_as_many_slots_as_they_decide_alike(tailor_json, ended):
    other = {**NETWORK, "architecture": NETWORK["architecture"].replace("k3e1c24", "k5e6c24", 1)}
    ids = [ended(seed=1)["id"], ended({**RESULT, "network": other}, seed=2)["id"]]
    assert tailor_json("search", "compare", *ids)["agreement"] == 5 / 6
    lost = ended(None, status="failed")["id"]
    assert tailor_json("search", "compare", ids[0], lost)["agreement"] is None


def test_a_front_is_a_picture_and_a_table(tailor, tailor_json, ended):
    search = ended()["id"]
    shown = tailor("search", "front", search).out
    assert "measured ms" in shown
    assert "hand_made" in shown
    assert "Best within the budget: k3e1c24" in shown
    assert [point["source"] for point in tailor_json("search", "front", search)["items"]] == [
        "found",
        "random",
        "hand_made",
    ]
    empty = ended(None, "failed")["id"]
    assert tailor("search", "front", empty).status == 0


def test_a_lineage_is_a_tree(tailor, tailor_json, ended):
    parent = ended()["id"]
    clone = tailor_json("search", "clone", parent)["id"]
    assert parent in tailor("search", "lineage", clone).out
    assert clone in tailor("search", "lineage", parent).out


def test_a_result_of_an_older_version_is_still_shown(tailor, api, ended):
    """One baseline, and none of the fields that came later."""
    search = ended({k: v for k, v in RESULT.items() if k != "baselines"})
    with api.database.transaction() as session:
        row = session.get_one(Search, search["id"])
        old = ("targets", "together", "limits", "worker", "tags", "priority", "warm_start")
        row.spec = {name: value for name, value in row.spec.items() if name not in old}
    shown = tailor("search", "show", search["id"])
    assert shown.status == 0
    assert "random" in shown.out


# -- the picture -----------------------------------------------------------------------


def test_dots_are_where_they_belong():
    corners = [Dot(1.0, 0.5, "a"), Dot(3.0, 0.9, "b"), Dot(2.0, 0.7, "c")]
    drawn = scatter(corners, "ms", "accuracy", width=5, height=3).splitlines()
    assert drawn == [
        "accuracy",
        "0.9 |    b",
        "    |  c  ",
        "0.5 |a    ",
        "    +-----",
        "     1ms 3",
    ]


def test_one_dot_is_in_the_middle():
    drawn = scatter([Dot(0.0, 2.0, "x")], "ms", "y", width=5, height=3).splitlines()
    assert drawn[2].endswith("|  x  ")
