"""The command line against a served API: what it prints and how it exits."""

import json
import re
import signal

import pytest

from service.cli.progress import duration
from service.machines.repository import keep_profile
from service.version import VERSION


def one_line(text: str) -> str:
    """What was printed, which must be one line."""
    (line,) = text.strip().splitlines()
    return line


def test_the_version_is_printed(tailor):
    assert tailor("version").out.strip() == VERSION


def test_a_word_it_does_not_know_is_a_usage_error(tailor):
    assert tailor("searhc").status == 2
    assert tailor("search", "create").status == 2  # target and budget are missing


def test_spaces_are_listed(tailor, tailor_json):
    assert "micro" in [space["name"] for space in tailor_json("spaces")]
    assert "micro@1" in tailor("spaces").out


def test_a_target_is_shown_with_its_latency_models(tailor, tailor_json, measured):
    assert measured.target_id in [target["id"] for target in tailor_json("targets", "list")]
    shown = tailor_json("targets", "show", measured.target_id)
    assert [model["search_space"] for model in shown["latency_models"]] == ["micro"]
    for words in (("targets", "list"), ("targets", "show", measured.target_id)):
        ran = tailor(*words)
        assert ran.status == 0
        assert measured.target_id in ran.out


def test_measuring_asks_for_a_kit(tailor, tailor_json, api):
    target = api.enrol_new_target().target_id
    kit = tailor_json("measure", target, "--no-wait")
    assert (kit["target"], kit["status"], kit["completed"]) == (target, "measuring", 0)
    assert kit["id"] in tailor("measure", target, "--no-wait").out


def test_measuring_waits_until_everything_is_measured(tailor_json, api):
    device = api.enrol_new_target()
    with device.answering():
        kit = tailor_json("measure", device.target_id)
    assert (kit["status"], kit["completed"]) == ("measured", kit["total"])


def test_a_search_is_created_shown_listed_and_cancelled(tailor, tailor_json, measured):
    words = ("--target", measured.target_id, "--budget-ms", 0.03, "--epochs", 8, "--seed", 3)
    made = tailor_json("search", "create", *words)
    assert (made["spec"]["epochs"], made["spec"]["seed"]) == (8, 3)
    assert tailor_json("search", "show", made["id"]) == made
    assert made["id"] in tailor("search", "show", made["id"]).out
    assert tailor_json("search", "list", "--limit", 1) == [made]
    assert made["id"] in tailor("search", "list").out
    assert tailor_json("search", "cancel", made["id"])["status"] == "cancelled"
    assert (
        tailor_json("search", "list", "--status", "cancelled", "--limit", 1)[0]["id"] == made["id"]
    )


def test_preflight_tells_the_band(tailor, tailor_json, measured):
    words = ("search", "preflight", "--target", measured.target_id, "--budget-ms")
    found = tailor_json(*words, 0.03)
    assert found["fastest_ms"] < 0.03 < found["slowest_ms"]
    assert "True" in tailor(*words, 0.03).out
    assert "False" in tailor(*words, 0.001).out


def test_preflight_of_an_unmeasured_target_is_unknown(tailor, api):
    words = ("--target", api.enrol_new_target().target_id, "--budget-ms", 0.03)
    assert "unknown" in tailor("search", "preflight", *words).out


def test_preflight_tells_the_effort_or_why_it_cannot(tailor, tailor_json, serve, new_profile):
    with serve() as api:
        device = api.enrol_measured()
        words = ("search", "preflight", "--target", device.target_id, "--budget-ms", 0.03)
        words = (*words, "--url", api.url, "--api-key", api.admin_key)
        assert "tailor worker" in tailor(*words).out
        with api.database.transaction() as session:
            keep_profile(session, "here", "workshop", new_profile())
        out = tailor(*words).out
        for told in ("GPU-hours", "core-hours", "MiB", "workshop", "training the child on"):
            assert told in out
        short = tailor_json(*words, "--epochs", 8)["effort"]
        long = tailor_json(*words, "--epochs", 80, "--algorithm", "dsnas_paired")["effort"]
        assert short["seconds"] < long["seconds"]


def test_machines_are_listed(tailor, tailor_json, api, new_profile):
    with api.database.transaction() as session:
        machine = keep_profile(session, "here", "workshop", new_profile()).id
    assert [m["id"] for m in tailor_json("machines", "list")] == [machine]
    assert machine in tailor("machines", "list").out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.42, "8.4 s"), (59.0, "59 s"), (750.0, "12 min 30 s"), (18720.0, "5 h 12 min")],
)
def test_a_length_of_time_is_told_in_two_units_at_most(seconds, text):
    assert duration(seconds) == text


def test_an_impossible_budget_exits_with_3_and_one_line(tailor, measured):
    words = ("--target", measured.target_id, "--budget-ms", 0.001)
    refused = tailor("search", "create", *words)
    assert (refused.status, refused.out) == (3, "")
    assert "budget_unreachable" in one_line(refused.err)
    assert "ms" in one_line(refused.err)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("search", "show", "srch_nobody"), "not_found"),
        (("search", "architecture", "srch_nobody"), "not_found"),
        (("search", "create", "--target", "tgt_x", "--budget-ms", "1"), "invalid_request"),
        (("search", "create", "--target", "tgt_x", "--budget-ms", "-1"), "invalid_request"),
        (("search", "create", "--target", "tgt_x", "--budget-ms", "nan"), "invalid_request"),
        (("keys", "revoke", "key_nobody"), "not_found"),
        (("targets", "list", "--api-key", "tlr_guessed"), "unauthenticated"),
    ],
)
def test_a_problem_is_one_line_with_its_code_and_exit_status_2(tailor, words, code):
    refused = tailor(*words)
    assert (refused.status, refused.out) == (2, "")
    assert code in one_line(refused.err)


def test_a_silent_address_is_one_line_and_exit_status_2(tailor, monkeypatch):
    monkeypatch.setattr("service.client.retrying.PATIENCE_SECONDS", 0.2)
    refused = tailor("targets", "list", "--url", "http://127.0.0.1:9")
    assert (refused.status, refused.out) == (2, "")
    assert "tailor api" in one_line(refused.err)


def test_following_a_cancelled_search_exits_with_5(tailor, api, measured):
    search = api.search(measured.target_id)
    api.http.post(f"/v1/searches/{search['id']}/cancel")
    followed = tailor("search", "follow", search["id"], "--json")
    assert followed.status == 5
    assert json.loads(followed.out)["status"] == "cancelled"


def test_the_key_the_demo_left_is_used(tailor, api, monkeypatch, tmp_path):
    monkeypatch.delenv("TAILOR_API_KEY")
    assert tailor("targets", "list").status == 2
    (tmp_path / "api-key").write_text(api.admin_key + "\n")
    assert tailor("targets", "list").status == 0


def test_keys_are_created_listed_and_revoked(tailor, tailor_json, api):
    made = tailor_json("keys", "create", "a person")
    assert (made["name"], made["scope"]) == ("a person", "user")
    assert api.client(made["token"]).get("/v1/searches").status_code == 200
    listed = tailor("keys", "list")
    assert made["id"] in listed.out
    assert made["token"] not in listed.out
    assert tailor("keys", "revoke", made["id"]).status == 0
    assert api.client(made["token"]).get("/v1/searches").status_code == 401


def test_an_agent_enrols_with_a_code_and_keeps_its_token_to_itself(tailor_json, api, tmp_path):
    code = tailor_json("agent", "code")["code"]
    made = tailor_json("agent", "enrol", code, "--state", tmp_path / "agent", "--name", "here")
    path = tmp_path / "agent" / "identity.json"
    identity = json.loads(path.read_text())
    assert (identity["agent_id"], list(identity["runtimes"])) == (made["agent"], [made["target"]])
    assert identity["token"] not in json.dumps(made)
    assert path.stat().st_mode & 0o777 == 0o600
    profile = api.http.get(f"/v1/targets/{made['target']}").json()["profile"]
    assert (profile["runtime"], profile["threads"]) == ("onnxruntime", 1)


def test_a_wrong_code_enrols_nobody(tailor, api, tmp_path):
    before = api.stored()
    refused = tailor("agent", "enrol", "ABCD-EFGH-JKLM", "--state", tmp_path / "agent")
    assert (refused.status, refused.out) == (2, "")
    assert "tailor agent code" in one_line(refused.err)
    assert not (tmp_path / "agent").exists()
    assert api.stored() == before


def test_an_agent_that_was_not_enrolled_does_not_run(tailor, tmp_path):
    refused = tailor("agent", "run", "--state", tmp_path / "agent")
    assert refused.status == 2
    assert re.search(r"tailor\s+agent\s+enrol", refused.err)


def test_agents_are_listed_and_revoked(tailor, tailor_json, api):
    device = api.enrol_new_target()
    assert device.agent_id in [agent["id"] for agent in tailor_json("agent", "list")]
    assert device.agent_id in tailor("agent", "list").out
    assert tailor("agent", "revoke", device.agent_id).status == 0
    assert device.http.post("/v1/measurement-tasks/lease", json={}).status_code == 401


# -- agents ----------------------------------------------------------------------------


def enrolled(tailor_json, tmp_path, *words: object) -> dict:
    """What enrolling this host prints; its identity lies in `tmp_path / "agent"`."""
    code = tailor_json("agent", "code")["code"]
    return tailor_json("agent", "enrol", code, "--state", tmp_path / "agent", *words)


def as_device(api, measured, tmp_path):
    """The agent that was enrolled on the command line, answering by the formula."""
    identity = json.loads((tmp_path / "agent" / "identity.json").read_text())
    (target_id,) = identity["runtimes"]
    token = identity["token"]
    return type(measured)(api.client(token), identity["agent_id"], target_id, token)


def test_a_code_is_told_with_both_ways_to_use_it(tailor, tailor_json, api):
    made = tailor_json("agent", "code", "--space", "micro")
    assert made["search_space"] == "micro"
    assert made["measure_url"] == f"{api.url}/measure/{made['code']}"
    ran = tailor("agent", "code")
    (code,) = re.findall(r"\b[A-Z0-9]{4}-[A-Z0-9]{4}-[A-Z0-9]{4}\b", ran.out)
    assert f"tailor agent run --code {code} --url {api.url}" in ran.err
    assert f"{api.url}/measure/{code}" in ran.err
    assert "▀" in ran.err or "█" in ran.err  # a code for a camera


def test_a_code_for_an_unknown_space_is_a_problem(tailor):
    refused = tailor("agent", "code", "--space", "nowhere")
    assert (refused.status, refused.out) == (2, "")
    assert "invalid_request" in one_line(refused.err)


def test_each_thread_count_is_a_target(tailor_json, api, tmp_path):
    made = enrolled(tailor_json, tmp_path, "--threads", 1, "--threads", 2, "--name", "both")
    assert len(set(made["targets"])) == 2
    profiles = [api.http.get(f"/v1/targets/{t}").json()["profile"] for t in made["targets"]]
    assert [profile["threads"] for profile in profiles] == [1, 2]
    assert api.http.get(f"/v1/agents/{made['agent']}").json()["target_ids"] == made["targets"]


def test_each_precision_is_a_target_and_the_batch_is_part_of_it(tailor_json, api, tmp_path):
    words = ("--precision", "float32", "--precision", "int8", "--batch", 4)
    made = enrolled(tailor_json, tmp_path, *words)
    profiles = [api.http.get(f"/v1/targets/{t}").json()["profile"] for t in made["targets"]]
    assert [(p["precision"], p["batch"]) for p in profiles] == [("float32", 4), ("int8", 4)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--precision", "float16"), "float16"),
        (("--runtime", "abacus"), "no runtime is called 'abacus'"),
        (("--batch", "0"), "batch"),
    ],
)
def test_a_runtime_that_cannot_be_leaves_the_code_unused(
    tailor, tailor_json, tmp_path, words, told
):
    code = tailor_json("agent", "code")["code"]
    state = ("--state", tmp_path / "agent")
    refused = tailor("agent", "enrol", code, *state, *words)
    assert (refused.status, refused.out) == (2, "")
    assert told in refused.err
    assert tailor("agent", "enrol", code, *state).status == 0


def test_an_agent_is_drained_and_resumed(tailor, api):
    device = api.enrol_with_kit()

    def state_of() -> str:
        return next(x for x in tailor("agent", "list").out.splitlines() if device.agent_id in x)

    assert "online" in state_of()
    assert tailor("agent", "drain", device.agent_id).status == 0
    assert device.lease() == []
    assert "draining, online" in state_of()
    assert tailor("agent", "resume", device.agent_id).status == 0
    assert len(device.lease(1)) == 1
    assert "draining" not in state_of()
    assert "1 leased" in state_of()
    for action in ("drain", "resume", "revoke"):
        assert "not_found" in one_line(tailor("agent", action, "agt_nobody").err)


def test_an_agent_that_is_too_old_is_listed_as_such(tailor, api):
    device = api.enrol_new_target()
    device.heartbeat(agent_version="0.0.9")
    line = next(x for x in tailor("agent", "list").out.splitlines() if device.agent_id in x)
    assert "0.0.9 (too old)" in line


def test_the_status_of_this_device_tells_what_its_measurements_gave(
    tailor, tailor_json, api, measured, tmp_path
):
    enrolled(tailor_json, tmp_path)
    device = as_device(api, measured, tmp_path)
    state = ("--state", tmp_path / "agent")
    kit = api.ask_for_kit(device)
    device.answer(device.lease(5))
    assert f"5/{kit['total']}" in tailor("agent", "status", *state).out
    device.answer_everything()
    api.run_fit(kit)
    told = tailor_json("agent", "status", *state)
    (target,) = told["targets"]
    assert target["id"] == device.target_id
    assert target["kits"][0]["status"] == "measured"
    assert target["latency_models"][0]["report"]["held_out"]["mape"] < 0.001
    assert told["unsent_batches"] == 0
    assert "100%" in tailor("agent", "status", *state).out


def test_there_is_no_status_of_a_device_that_was_not_enrolled(tailor, tmp_path):
    refused = tailor("agent", "status", "--state", tmp_path / "nobody")
    assert refused.status == 2
    assert "tailor agent enrol" in refused.err


@pytest.fixture
def kept_signals():
    """What was to happen on SIGINT and SIGTERM happens again after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("kept_signals")
def test_an_agent_whose_runtime_was_updated_says_so_and_does_not_measure(
    tailor, tailor_json, api, measured, tmp_path, monkeypatch
):
    # threads of its own: a target that no other test of this module measures
    enrolled(tailor_json, tmp_path, "--threads", 3)
    device = as_device(api, measured, tmp_path)
    kit = api.ask_for_kit(device)
    device.answer_everything()
    api.run_fit(kit)
    assert "enrol it again" not in tailor("targets", "show", device.target_id).out
    monkeypatch.setattr("onnxruntime.__version__", "99.9")
    ran = tailor("agent", "run", "--state", tmp_path / "agent")
    assert ran.status == 2
    assert "enrol it again" in ran.err
    assert "-> 99.9" in ran.err
    (model,) = api.latency_models(device)
    assert model["stale"]["code"] == "profile_changed"
    shown = tailor_json("targets", "show", device.target_id)
    assert shown["latency_models"][0]["stale"] == model["stale"]


def test_a_target_may_be_measured_again(tailor_json, api):
    device = api.enrol_with_kit()
    device.answer_everything()
    kit = tailor_json("measure", device.target_id, "--no-wait")
    assert kit["status"] == "measured"
    kit = tailor_json("measure", device.target_id, "--again", "--no-wait")
    assert (kit["status"], kit["completed"]) == ("measuring", 0)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05)])
def test_a_kit_stops_at_a_share_written_either_way(api, tailor_json, text, share):
    device = api.enrol_new_target()
    kit = tailor_json("measure", device.target_id, "--until", text, "--no-wait")
    assert kit["until_half_width"] == share


def test_a_share_that_is_none_says_how_to_write_one(api, tailor):
    ran = tailor("measure", api.enrol_new_target().target_id, "--until", "soon")
    assert ran.status == 2
    assert "write 5% or 0.05" in " ".join(ran.err.replace("│", " ").split())


def test_a_share_out_of_range_names_the_field(api, tailor):
    ran = tailor("measure", api.enrol_new_target().target_id, "--until", "90%")
    assert ran.status != 0
    assert "until_half_width" in ran.err
