"""What happens to a search, told by poll, long poll, stream and curves."""

import asyncio
import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest
from httpx_sse import connect_sse
from sqlalchemy import insert
from sqlalchemy.exc import OperationalError

from service.cli.events import sparkline
from service.client.client import Client
from service.db.base import new_id, utc_now
from service.jobs.models import Job, JobAttempt
from service.searches.curves import thinned_curves
from service.searches.feed import SearchFeed
from service.searches.models import Search, SearchEvent


class Story:
    """A search whose events the test writes itself."""

    def __init__(self, api, add_search, owner: str | None = None) -> None:
        self._database, self._n = api.database, 0
        owner = owner or api.http.get("/v1/keys/self").json()["account"]
        with self._database.transaction() as session:
            self.id = add_search(session, owner=owner, status="running", phase="searching").id

    def tell(self, *events: tuple[str, dict]) -> None:
        """Append events in one transaction."""
        with self._database.transaction() as session:
            self._append(session, events)

    def end(self, status: str = "succeeded") -> None:
        """Append the terminal event, with the status itself."""
        with self._database.transaction() as session:
            session.get_one(Search, self.id).status = status
            self._append(session, [("status", {"status": status})])

    def _append(self, session, events) -> None:
        rows = [
            {
                "search_id": self.id,
                "number": self._n + i,
                "type": type_,
                "data": data,
                "created_at": utc_now(),
            }
            for i, (type_, data) in enumerate(events, start=1)
        ]
        session.execute(insert(SearchEvent), rows)
        self._n += len(rows)


@pytest.fixture
def new_story(add_search):
    return lambda api, **changes: Story(api, add_search, **changes)


@pytest.fixture
def story(new_story, api_on_both):
    return new_story(api_on_both)


def told(api, story, **params) -> list[dict]:
    answer = api.http.get(f"/v1/searches/{story.id}/events", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def path(story, rest: str = "events/stream") -> str:
    return f"/v1/searches/{story.id}/{rest}"


def streamed(client: httpx.Client, story, headers=None, **params):
    """A whole stream, event by event."""
    with connect_sse(client, "GET", path(story), headers=headers or {}, params=params) as source:
        yield from (event for event in source.iter_sse() if event.data)


# -- polls -----------------------------------------------------------------------------


def test_events_are_told_after_a_number_and_of_some_types(api_on_both, story):
    story.tell(("status", {"status": "running"}), ("metrics", {"step": 1}), ("warning", {}))
    assert [event["number"] for event in told(api_on_both, story)] == [1, 2, 3]
    assert [event["number"] for event in told(api_on_both, story, after=1, limit=1)] == [2]
    asked = told(api_on_both, story, types="status,warning")
    assert [event["type"] for event in asked] == ["status", "warning"]
    assert told(api_on_both, story, after=3) == []


def test_a_long_poll_answers_when_something_it_asks_for_happens(api_on_both, story):
    story.tell(("metrics", {"step": 1}))
    answers = []
    asking = threading.Thread(
        target=lambda: answers.extend(told(api_on_both, story, types="warning", wait=25))
    )
    asking.start()
    story.tell(("metrics", {"step": 2}))  # not asked for
    assert told(api_on_both, story, types="warning", wait=0.5) == []
    story.tell(("warning", {"code": "x"}))
    asking.join()
    assert [event["data"] for event in answers] == [{"code": "x"}]


def test_a_long_poll_of_a_search_that_has_ended_does_not_wait(api_on_both, story):
    story.end()
    client = api_on_both.client(api_on_both.admin_key)
    answer = client.get(path(story, "events"), params={"after": 1, "wait": 25}, timeout=20)
    assert answer.json()["items"] == []


# -- streams ---------------------------------------------------------------------------


def test_a_stream_tells_what_was_what_happens_and_that_it_is_over(api_on_both, story):
    story.tell(("status", {"status": "running"}))
    events = streamed(api_on_both.client(api_on_both.admin_key), story)
    first = next(events)
    assert (first.id, first.event) == ("1", "status")
    assert json.loads(first.data)["data"] == {"status": "running"}
    story.tell(("metrics", {"step": 1, "text": "two\nlines"}))
    assert json.loads(next(events).data)["data"]["text"] == "two\nlines"
    story.end("infeasible")
    assert next(events).event == "status"
    last = next(events)
    assert (last.event, json.loads(last.data)) == ("end", {"status": "infeasible"})
    assert list(events) == []


def test_a_stream_goes_on_after_the_last_event_seen(api_on_both, story):
    story.tell(*(("metrics", {"step": i}) for i in range(450)))  # more than one reading
    story.end()
    client = api_on_both.client(api_on_both.admin_key)
    seen = [event.id for event in streamed(client, story, {"Last-Event-ID": "5"}, after=2)]
    assert seen[:-1] == [str(number) for number in range(6, 452)]
    assert [event.event for event in streamed(client, story, types="status")] == ["status", "end"]


def test_a_quiet_stream_shows_that_it_is_alive_and_ends_after_a_while(new_story, serve):
    with serve(event_heartbeat_seconds=0.05, event_stream_minutes=0.01) as api:
        story = new_story(api)
        with api.http.stream("GET", path(story)) as answer:
            lines = list(answer.iter_lines())
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert lines.count(": nothing new") >= 2
        assert lines[0] == "retry: 2000"


def test_streams_over_the_limit_are_sent_away_and_places_become_free_again(
    new_story, serve, eventually
):
    with serve(event_streams=1) as api:
        story = new_story(api)
        with api.client(api.admin_key).stream("GET", path(story)) as answer:
            lines = answer.iter_lines()
            next(lines)
            refused = api.http.get(path(story))
            assert (refused.status_code, refused.json()["code"]) == (503, "too_busy")
            assert int(refused.headers["Retry-After"]) > 0
        story.end()  # the client above has gone without reading to the end

        def another() -> bool:
            return api.http.get(path(story)).status_code == 200

        eventually(another, "the place of a client that has gone is not free")


def test_a_client_that_goes_frees_its_place_though_nothing_happens(new_story, serve, eventually):
    with serve(event_streams=1, event_heartbeat_seconds=15) as api:
        story = new_story(api)
        with api.client(api.admin_key).stream("GET", path(story)) as answer:
            lines = answer.iter_lines()
            next(lines)

        def served() -> bool:
            with api.client(api.admin_key).stream("GET", path(story)) as answer:
                return answer.status_code == 200

        eventually(served, "the place is still taken", seconds=10)


def test_a_search_of_another_account_has_no_events(new_story, api_on_both):
    story = new_story(api_on_both, owner="somebody else")
    made = api_on_both.http.post("/v1/keys", json={"name": "stranger", "scope": "user"}).json()
    stranger = api_on_both.client(made["token"])
    for rest in ("events", "events/stream", "metrics"):
        assert stranger.get(path(story, rest)).status_code == 404
        assert api_on_both.http.get(f"/v1/searches/srch_none/{rest}").status_code == 404
    assert told(api_on_both, story) == []  # an admin sees it


def test_nobody_who_waits_holds_a_connection(api_on_both, story):
    n_waiting = 60  # the API's pool has 15 connections on SQLite, 40 on PostgreSQL
    clients = [api_on_both.client(api_on_both.admin_key) for _ in range(n_waiting)]
    open_ = [client.stream("GET", path(story)) for client in clients]
    answers = [stream.__enter__().iter_raw() for stream in open_]
    for answer in answers:
        next(answer)
    assert api_on_both.http.get("/readyz").status_code == 200
    story.end()
    assert all(b"event: end" in b"".join(answer) for answer in answers)
    for stream in open_:
        stream.__exit__(None, None, None)


def test_stopping_the_api_ends_its_streams_at_once(new_story, serve):
    def read() -> list[str]:
        lines = []
        # not of `api.client`: those are closed before the server is stopped
        with httpx.stream("GET", url, headers=headers, timeout=60, verify=False) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                began.set()
        return lines

    began = threading.Event()
    with ThreadPoolExecutor() as pool:
        with serve(event_heartbeat_seconds=15, event_stream_minutes=1) as api:
            url, headers = api.url + path(new_story(api)), api.http.headers
            reading = pool.submit(read)
            began.wait()
        # it was not waited for: the first sign of life would have come after 15 s
        assert ": nothing new" not in reading.result()


def test_closing_the_feed_ends_every_wait(store):
    async def wait_and_close() -> list[bool]:
        feed = SearchFeed(store, poll_seconds=60.0, streams=1)
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(feed.wait("srch_1", 0, 600.0)) for _ in range(3)]
            await asyncio.sleep(0)  # until all wait
            feed.close()
        return [task.result() for task in waiting] + [await feed.wait("srch_1", 0, 600.0)]

    assert asyncio.run(wait_and_close()) == [False] * 4


def test_a_store_that_is_away_for_a_while_does_not_end_the_waiting(store, monkeypatch):
    def away(*_: object) -> None:
        tried.set()
        raise OperationalError("SELECT", {}, Exception("no answer"))

    async def wait_through_it() -> bool:
        feed = SearchFeed(store, poll_seconds=0.01, streams=1)
        running = asyncio.create_task(feed.run())
        monkeypatch.setattr(SearchFeed, "_heads", away)
        waiting = asyncio.create_task(feed.wait("srch_1", 0, 60.0))
        await asyncio.to_thread(tried.wait)
        monkeypatch.setattr(SearchFeed, "_heads", lambda *_: {"srch_1": 1})
        news = await waiting
        running.cancel()
        return news

    tried = threading.Event()
    assert asyncio.run(wait_through_it())


# -- the client ------------------------------------------------------------------------


def test_the_client_streams_and_goes_on_when_the_stream_breaks_off(new_story, serve):
    with serve(event_stream_minutes=0.005) as api, Client(api.url, api.admin_key) as client:
        story = new_story(api)
        events = client.stream(story.id)
        for step in range(4):
            story.tell(("metrics", {"step": step}))
            assert next(events).data == {"step": step}
            time.sleep(0.2)  # meanwhile the server ends the stream
        story.end()
        assert [event.number for event in events] == [5]


def test_the_client_polls_where_no_stream_is_to_be_had(new_story, serve):
    with serve(event_streams=0) as api, Client(api.url, api.admin_key) as client:
        story = new_story(api)
        story.tell(("warning", {}))
        story.end()
        assert [event.number for event in client.stream(story.id)] == [1, 2]


# -- curves ----------------------------------------------------------------------------


def curve(api, story, **params):
    answer = api.http.get(path(story, "metrics"), params=params)
    assert answer.status_code == 200, answer.text
    return {(item["phase"], item["name"]): item for item in answer.json()["items"]}


def metric(step: int, phase: str = "searching", **values: float) -> tuple[str, dict]:
    return "metrics", {"phase": phase, "step": step, "total": 9, **values}


def test_metrics_are_curves_by_phase_and_name(api_on_both, story):
    story.tell(
        metric(1, loss=2.0, accuracy=0.1),
        ("warning", {"code": "x"}),
        metric(2, loss=1.0, accuracy=0.2),
        metric(1, "training", loss=0.5, note="no number", flag=True),
    )
    found = curve(api_on_both, story)
    assert list(found) == [
        ("searching", "accuracy"),
        ("searching", "loss"),
        ("training", "loss"),
    ]
    assert found["searching", "loss"]["steps"] == [1, 2]
    assert found["searching", "loss"]["values"] == [2.0, 1.0]
    assert set(curve(api_on_both, story, names="accuracy")) == {("searching", "accuracy")}


def test_what_a_resumed_attempt_tells_again_replaces_what_was_told(api_on_both, story):
    now = utc_now()
    with api_on_both.database.transaction() as session:
        job = Job(
            id=new_id("job"),
            kind="search",
            subject_id=story.id,
            status="running",
            max_attempts=4,
            available_at=now,
            created_at=now,
        )
        session.add(job)
        session.flush()
        session.add(JobAttempt(job_id=job.id, number=1, worker="w", started_at=now))
    story.tell(*(metric(step, loss=10.0 + step) for step in range(6)))
    with api_on_both.database.transaction() as session:
        session.add(JobAttempt(job_id=job.id, number=2, worker="w", started_at=utc_now()))
    story.tell(metric(4, loss=0.4), metric(5, loss=0.5), metric(6, loss=0.6))
    found = curve(api_on_both, story)["searching", "loss"]
    assert found["steps"] == [0, 1, 2, 3, 4, 5, 6]
    assert found["values"] == [10.0, 11.0, 12.0, 13.0, 0.4, 0.5, 0.6]
    assert found["attempts"] == [
        {"number": 1, "first_step": 0},
        {"number": 2, "first_step": 4},
    ]


def test_a_long_curve_keeps_its_ends_its_extremes_and_each_parts(api_on_both, story):
    n = 5000
    spikes = {1234: 99.0, 4321: -99.0}
    story.tell(*(metric(i, loss=spikes.get(i, (i * 7919) % 101 / 101)) for i in range(n)))
    found = curve(api_on_both, story, max_points=100)["searching", "loss"]
    points = dict(zip(found["steps"], found["values"], strict=True))
    assert len(points) == len(found["steps"]) <= 100
    assert found["n_points"] == n
    assert {0, n - 1, *spikes} <= set(points)
    assert found["steps"] == sorted(found["steps"])
    for part in range(25):  # by hand, what the method promises of each part
        inside = {
            i: spikes.get(i, (i * 7919) % 101 / 101) for i in range(part * 200, part * 200 + 200)
        }
        shown = {i: value for i, value in points.items() if i in inside}
        assert min(shown) == min(inside)
        assert max(shown) == max(inside)
        assert min(shown.values()) == min(inside.values())
        assert max(shown.values()) == max(inside.values())


def test_a_curve_of_any_length_takes_the_memory_of_what_is_shown():
    began, n = utc_now(), 20_000
    backwards = ((began, {"phase": "p", "step": i, "loss": i % 977}) for i in range(n, 0, -1))
    tracemalloc.start()
    try:
        (thinned,) = thinned_curves(backwards, [began - timedelta(seconds=1)], [], 100)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert thinned.n_points == n
    assert 25 <= len(thinned.steps) <= 100
    assert peak_bytes < 100_000  # a list of all the points would take more than ten times that


# -- the command line ------------------------------------------------------------------


def test_events_and_curves_on_the_command_line(new_story, api, tailor, tailor_json):
    story = new_story(api)
    story.tell(("status", {"status": "running"}), metric(1, loss=2.0), metric(2, loss=1.0))
    story.end()
    for follow in ([], ["--follow"]):
        ran = tailor("search", "events", story.id, "--after", 1, "--json", *follow)
        assert [json.loads(line)["number"] for line in ran.out.splitlines()] == [2, 3, 4]
    assert "status running" in tailor("search", "events", story.id).out
    (drawn,) = tailor_json("search", "metrics", story.id, "--name", "loss")["items"]
    assert (drawn["steps"], drawn["values"]) == ([1, 2], [2.0, 1.0])
    assert "█▁" in tailor("search", "metrics", story.id).out


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([1.0], "▁"), ([2.0, 2.0], "▁▁"), ([0.0, 7.0, 3.5], "▁█▅"), (list(range(1000)), 40)],
)
def test_a_sparkline_is_a_curve_of_bars(values, drawn):
    line = sparkline(values)
    assert line == drawn or (len(line) == drawn and list(line) == sorted(line))
