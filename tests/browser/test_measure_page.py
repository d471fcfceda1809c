"""The measuring page in a real browser, against a real API: from the code to a usable target."""

import base64
import hashlib
import random
import socket
import threading

import numpy as np
import pytest
import uvicorn
from sqlalchemy import select

from predictor.agent import protocol
from service.measurements.models import Measurement, MeasurementTask

pytestmark = pytest.mark.browser

STATIC = "/measure-page"


@pytest.fixture
def code(api) -> str:
    """A fresh code that brings a kit of `micro`."""
    made = api.http.post("/v1/enrolment-codes", json={"search_space": "micro"})
    assert made.status_code == 201, made.text
    return made.json()["code"]


def measurements(api, visited, *purposes: str) -> list[Measurement]:
    """What the page has measured of its kit; name other purposes to see them, too."""
    with api.database.reading() as session:
        chosen = (
            select(Measurement)
            .join(MeasurementTask, MeasurementTask.id == Measurement.task_id)
            .where(Measurement.agent_id == visited.identity["id"])
            .where(MeasurementTask.purpose.in_(("kit", *purposes)))
        )
        return list(session.scalars(chosen))


def failures(api, visited) -> list[dict]:
    """Why tasks of the page's target have no measurement."""
    with api.database.reading() as session:
        chosen = select(MeasurementTask).where(
            MeasurementTask.target_id == visited.identity["target_id"]
        )
        return [task.failure for task in session.scalars(chosen) if task.failure is not None]


def kit_files(api) -> set[str]:
    """The hashes of every file of a kit."""
    with api.database.reading() as session:
        chosen = select(MeasurementTask.model_sha256).where(MeasurementTask.purpose == "kit")
        return set(session.scalars(chosen))


def all_counted_once(api, visited) -> bool:
    """Whether the server has what the page says, each task once, and nothing was turned away."""
    subjects = [row.subject for row in measurements(api, visited)]
    agent = api.http.get(f"/v1/agents/{visited.identity['id']}").json()
    return len(subjects) == len(set(subjects)) == visited.count and agent["rejected"] == 0


# -- the whole road --------------------------------------------------------------------


def test_a_code_becomes_a_usable_target_through_the_page_alone(api, code, visit):
    page = visit(api.url, code)
    page.start("my laptop")
    page.read("waiting for a worker to fit it")
    api.run_fit()
    page.reach("done")

    (model,) = api.http.get(
        "/v1/latency-models", params={"target": page.identity["target_id"]}
    ).json()["items"]
    slowest_ms = float(f"{model['slowest_ms']:.3g}")
    assert f"to {slowest_ms:g} ms" in page.page.inner_text(".range")
    shown = page.page.inner_text("#bands")
    stored = measurements(api, page)
    assert "Within 10 %" in shown
    assert f"{len(stored)} of {len(stored)} models measured" in shown
    assert all_counted_once(api, page)
    assert {row.provider for row in stored} == {"wasm"}
    assert {row.grade for row in stored} == {"A"}
    assert all(row.facts["signature_checked"] is True for row in stored)
    assert all(row.facts["cross_origin_isolated"] is True for row in stored)

    assert api.http.get(f"/v1/agents/{page.identity['id']}").json()["name"] == "my laptop"
    target = api.http.get(f"/v1/targets/{page.identity['target_id']}").json()
    assert target["profile"]["runtime"] == "onnxruntime-web"
    assert "Chrom" in target["profile"]["system"]

    assert page.complaints == []
    assert [url for url in page.requested if not url.startswith(api.url)] == []
    assert not any(page.identity["token"] in url for url in page.requested)


@pytest.mark.parametrize(
    ("runtime", "provider", "threads"), [("wasm-n", "wasm", 2), ("webgpu", "webgpu", 1)]
)
def test_the_other_runtimes_measure_as_targets_of_their_own(
    api, code, visit, runtime, provider, threads
):
    page = visit(api.url, code)
    page.start(runtime=runtime)
    page.reach_count(1)
    page.pause()
    stored = measurements(api, page, "canary")
    assert {row.provider for row in stored} == {provider}
    profile = page.identity["profile"]
    assert (profile["execution_provider"], profile["threads"] >= threads) == (provider, True)
    assert failures(api, page) == []
    assert page.complaints == []


def test_a_phone_on_plain_http_measures_without_web_crypto(api, code, visit):
    page = visit(api.url.replace("127.0.0.1", "phone.test"), code)
    assert page.page.evaluate("[isSecureContext, Boolean(crypto.subtle)]") == [False, False]
    page.reach("ready")
    assert page.page.locator("input[value=wasm-n]").is_disabled()
    page.start()
    page.reach_count(3)
    page.pause()
    stored = measurements(api, page, "canary")
    assert len(stored) >= 3
    assert all(row.facts["signature_checked"] is False for row in stored)
    assert all(row.facts["cross_origin_isolated"] is False for row in stored)
    assert failures(api, page) == []


# -- faults ----------------------------------------------------------------------------


def test_a_reload_in_the_middle_goes_on_as_the_same_agent(api, code, visit):
    page = visit(api.url, code)
    page.start()
    page.reach_count(20)
    before = page.identity
    page.page.reload()
    page.reach_count(40)
    page.pause()
    assert page.identity == before
    assert all_counted_once(api, page)


def test_what_was_not_acknowledged_is_sent_again_under_the_same_id_after_a_reload(api, code, visit):
    bodies: list[dict] = []

    def lose_the_answer(route):
        bodies.append(route.request.post_data_json)
        if len(bodies) == 1:
            route.fetch()  # the server takes it in, and the page never hears
            route.abort()
        else:
            route.continue_()

    page = visit(api.url, code, routes={"**/v1/measurements": lose_the_answer}, retrySeconds=30)
    page.start()
    page.read("Trying again")
    page.page.reload()
    page.reach_count(16)
    page.pause()
    assert bodies[1] == bodies[0]
    assert all_counted_once(api, page)


def test_a_used_code_says_so_and_what_to_do(api, code, visit):
    first = visit(api.url, code)
    first.start()
    first.reach("measuring")
    second = visit(api.url, code)
    second.start()
    second.reach("error")
    second.read("unknown, used or expired")


def test_a_lost_connection_is_waited_out(api, code, visit):
    page = visit(api.url, code)
    page.start()
    page.reach_count(10)
    page.context.set_offline(True)
    page.page.wait_for_selector("body[data-offline=true]")
    page.read("Nothing measured is lost")
    page.context.set_offline(False)
    page.reach_count(page.count + 16)
    page.pause()
    assert page.page.get_attribute("body", "data-offline") == "false"
    assert all_counted_once(api, page)


def test_a_restart_of_the_api_is_waited_out(api, code, visit):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = ServerAt(api.settings, port)
    page = visit(f"http://127.0.0.1:{port}", code)
    page.start()
    page.reach_count(10)
    server.stop()
    page.page.wait_for_selector("body[data-offline=true]")
    server = ServerAt(api.settings, port)
    page.reach_count(page.count + 16)
    page.pause()
    assert all_counted_once(api, page)
    page.context.close()
    server.stop()


class ServerAt:
    """An API over the store of these settings on a port of one's choice."""

    def __init__(self, settings, port: int) -> None:
        from service.app import create_app

        listener = socket.create_server(("127.0.0.1", port))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            create_app(settings), log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        self._listener, self._server = listener, uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()

    def stop(self) -> None:
        """Until it is gone."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


def test_a_corrupted_download_is_reported_and_never_run(api, code, visit):
    tampered: list[str] = []

    def tamper(route):
        answer = route.fetch()
        sha256 = route.request.url.rsplit("/", 1)[1]
        body = bytearray(answer.body())
        if not tampered and sha256 in kit_files(api):
            body[len(body) // 2] ^= 1
            tampered.append(sha256)
        route.fulfill(response=answer, body=bytes(body))

    page = visit(api.url, code, routes={"**/v1/models/*": tamper})
    page.start()
    page.reach_count(16)
    page.pause()
    (failure,) = failures(api, page)
    assert (failure["code"], failure["reason"]) == ("unsupported", "not_authentic")
    measured = measurements(api, page)
    assert len(measured) == page.count - 1
    assert tampered[0] not in {row.model_sha256 for row in measured}
    assert page.page.inner_text("#n-failed") == "1"


def test_a_task_that_somebody_else_signed_is_never_fetched(api, code, visit):
    def forge(route):
        answer = route.fetch()
        lease = answer.json()
        for task in lease["items"]:
            task["subject"] += " "
        route.fulfill(response=answer, json=lease)

    page = visit(api.url, code, routes={"**/v1/measurement-tasks/lease": forge})
    page.start()
    page.reach_count(8)
    page.pause()
    assert {failure["reason"] for failure in failures(api, page)} == {"not_authentic"}
    assert measurements(api, page) == []
    assert not any("/v1/models/" in url for url in page.requested)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("for (;;);", "hung"),
        ("setTimeout(() => { throw new Error('the page fault of a driver'); });", "crashed"),
    ],
)
def test_a_worker_that_hangs_or_crashes_costs_one_task_and_no_more(api, code, visit, fault, reason):
    served: list[str] = []

    def sabotage(route):
        answer = route.fetch()
        served.append(route.request.url)
        if len(served) > 1:
            return route.fulfill(response=answer)
        script = answer.text().replace("else await perform(data);", f"else {{ {fault} }}")
        assert fault in script
        return route.fulfill(response=answer, body=script)

    page = visit(api.url, code, routes={"**/measuring.js": sabotage}, hangSeconds=3)
    page.start()
    page.reach_count(9)
    page.pause()
    (failure,) = failures(api, page)
    assert (failure["code"], failure["reason"]) == ("unsupported", reason)
    assert len(measurements(api, page, "canary")) >= 8
    assert len(served) == 2


def test_a_revoked_agent_is_told_so(api, code, visit):
    page = visit(api.url, code)
    page.start()
    page.reach("measuring")
    gone = api.http.delete(f"/v1/agents/{page.identity['id']}")
    assert gone.status_code == 204
    page.reach("error")
    page.read("no longer knows this device")


# -- manners ---------------------------------------------------------------------------


def test_pausing_ends_after_the_task_at_hand_uploads_and_survives_a_reload(api, code, visit):
    page = visit(api.url, code)
    page.start()
    page.reach_count(5)
    page.pause()
    paused_at = len(measurements(api, page))
    assert paused_at == page.count > 0
    assert page.page.evaluate("tailor.agent.journal.pending()") == []
    page.page.reload()
    page.reach("paused")
    page.page.get_by_role("button", name="Continue").click()
    page.reach_count(paused_at + 8)
    page.pause()
    assert all_counted_once(api, page)


def test_nothing_counts_that_was_measured_while_the_page_was_hidden(api, code, visit):
    page = visit(api.url, code, efforts={"minSeconds": 0.5})
    page.start()
    page.page.evaluate("""() => {
        window.show = hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        };
    }""")
    # within a measurement: its first slices are shown, and there is more to go
    page.page.wait_for_function(
        "() => document.getElementById('latency').textContent && (show(true), true)"
    )
    page.read("Bring this page to the front")
    page.page.evaluate("document.querySelector('details').open = true")
    page.read("Paused while the page is hidden")
    page.read("what was measured meanwhile is discarded")
    assert page.count == 0
    page.page.evaluate("show(false)")
    page.reach_count(2)
    page.pause()
    assert all_counted_once(api, page)


def test_a_page_that_was_crashed_by_a_task_three_times_gives_that_task_up(api, code, visit):
    page = visit(api.url, code, efforts={"minSeconds": 0.5})
    page.start()
    page.page.wait_for_function("() => document.getElementById('latency').textContent")
    for _ in range(3):
        page.page.reload()
        page.page.wait_for_function("() => document.getElementById('latency').textContent")
    page.reach_count(1)
    page.pause()
    (failure,) = failures(api, page)
    assert (failure["code"], failure["reason"]) == ("unsupported", "crashed")


def test_a_drained_agent_stops_asks_again_and_goes_on_when_resumed(api, code, visit):
    page = visit(api.url, code)
    page.start()
    page.reach("measuring")
    api.http.post(f"/v1/agents/{page.identity['id']}/drain").raise_for_status()
    page.read("asked this device to stop")
    stopped_at = page.count
    assert page.page.get_attribute("body", "data-state") == "waiting"
    api.http.post(f"/v1/agents/{page.identity['id']}/resume").raise_for_status()
    page.reach_count(stopped_at + 3)
    page.pause()
    assert all_counted_once(api, page)


def test_a_second_tab_of_the_same_code_does_not_measure_beside_the_first(api, code, visit):
    page = visit(api.url, code)
    page.start()
    page.reach("measuring")
    second = page.context.new_page()
    second.goto(page.page.url)
    second.wait_for_selector("body[data-state=error]")
    assert "another tab" in second.inner_text("#notices")


def test_another_browser_version_is_another_target_and_is_not_mixed_in(api, code, visit):
    page = visit(api.url, code)
    page.start()
    page.reach("measuring")
    page.page.evaluate("tailor.agent.pause()")
    page.reach("paused")
    page.page.evaluate("""() => {
        const identity = tailor.store.read("identity");
        identity.profile.system = "Linux · Chromium 1";
        tailor.store.write("identity", identity);
    }""")
    before = len(measurements(api, page))
    page.page.reload()
    page.reach("error")
    page.read("system was Linux · Chromium 1")
    assert len(measurements(api, page)) == before


# -- the parts, in the browser's own engine ----------------------------------------------


@pytest.fixture
def blank(visit, api):
    """The page of a code that nobody made, before Start is pressed."""
    page = visit(api.url, "NONE-NONE-NONE")
    page.reach("ready")
    return page.page


def test_sha256_agrees_with_hashlib_on_every_length(blank):
    rng = random.Random(0)
    lengths = [*range(130), *(rng.randrange(200_000) for _ in range(10))]
    texts = [rng.randbytes(n) for n in lengths]
    hashes = blank.evaluate(
        "texts => texts.map(text => tailor.sha256(Uint8Array.from(atob(text), c => "
        "c.charCodeAt(0))))",
        [base64.b64encode(text).decode() for text in texts],
    )
    assert hashes == [hashlib.sha256(text).hexdigest() for text in texts]
    assert hashes[0] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_interval_of_the_median_is_that_of_the_agent(blank):
    rng = random.Random(1)
    rows = [[rng.lognormvariate(0, 0.1) for _ in range(n)] for n in range(10, 200, 7)]
    widths = blank.evaluate(
        f"async rows => {{ const {{ interval }} = await import('{STATIC}/protocol.js');"
        " return rows.map(interval); }",
        rows,
    )
    assert widths == pytest.approx([protocol._interval(np.array(row)) for row in rows])


def settle(blank, *tries: tuple[float | None, str]) -> dict | None:
    return blank.evaluate(
        f"async tries => (await import('{STATIC}/protocol.js')).settle(tries)",
        [
            {"latency_ms": latency, "note": note, "sigma_ms": 0.01, "grade": "B", "flagged": False}
            for latency, note in tries
        ],
    )


def test_a_sound_try_is_taken_with_those_before_it_quarantined(blank):
    taken = settle(blank, (2.0, "drifted"), (None, "never quiet"), (1.0, ""))["measurement"]
    assert taken["latency_ms"] == 1.0
    assert (taken["flagged"], taken["grade"]) == (False, "B")
    assert taken["quarantined"] == [
        {"latency_ms": 2.0, "reason": "drifted"},
        {"latency_ms": None, "reason": "never quiet"},
    ]


def test_a_noisy_task_is_tried_four_times_and_then_stored_flagged_with_its_spread(blank):
    tries = [(2.0, "drifted"), (1.0, "drifted"), (1.5, "p10"), (None, "never quiet")]
    assert settle(blank, *tries[:3]) is None
    taken = settle(blank, *tries)["measurement"]
    assert (taken["latency_ms"], taken["sigma_ms"]) == (1.0, 1.0)
    assert (taken["flagged"], taken["grade"]) == (True, "C")
    assert [q["latency_ms"] for q in taken["quarantined"]] == [2.0, 1.5, None]


def test_a_task_without_any_number_is_too_noisy(blank):
    answer = settle(blank, *[(None, "only 3 of 90 slices were quiet in 4.0 s")] * 4)
    assert answer["failure"]["code"] == "too_noisy"
    assert answer["failure"]["reason"] == "noise"


def test_a_file_that_the_runtime_refuses_is_reported_as_refused(blank):
    reason = blank.evaluate(
        f"""async () => {{
            const {{ Runtime }} = await import('{STATIC}/runtime.js');
            const runtime = await Runtime.open("wasm", 1);
            try {{ await runtime.load(new Uint8Array([1, 2, 3]).buffer); }}
            catch (error) {{ return error.reason; }}
        }}"""
    )
    assert reason == "refused"


def test_slices_beside_a_slow_anchor_do_not_count(blank):
    numbers = blank.evaluate(
        f"""async rules => {{
            const {{ Anchor, measure, RULES }} = await import('{STATIC}/protocol.js');
            const spin = ms => {{
                const end = performance.now() + ms;
                while (performance.now() < end);
            }};
            let disturbed = 0;
            const model = {{ run: () => spin(0.5) }};
            const anchor = {{ isQuiet: () => disturbed++ % 10 !== 0, bestMs: 0.1, calls: 5 }};
            const all = {{ ...RULES, ...rules }};
            return measure(model, anchor, "table", all, 0.005, () => {{}});
        }}""",
        {"driftTolerance": 1000, "decileTolerance": 1000},
    )
    assert numbers["latency_ms"] >= 0.4
    assert numbers["contended_share"] > 0.1  # every tenth look spoils the slices on both sides
    assert numbers["n"] >= 20
