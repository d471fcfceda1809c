"""Webhooks, delivered to real receivers on a loopback network that is allowed."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from sqlalchemy import func, select

from service.auth.principal import Principal
from service.client.client import Client
from service.client.webhooks import verify
from service.db.base import new_id, utc_now
from service.db.database import Database
from service.errors import ConflictError
from service.searches.models import Search
from service.settings import Settings
from service.webhooks import lifecycle
from service.webhooks.models import Webhook, WebhookDelivery
from service.webhooks.outbox import queue_deliveries, queue_stale_target
from service.webhooks.repository import forget_deliveries, is_due, take
from service.webhooks.schemas import WebhookCreate, WebhookUpdate
from service.webhooks.sender import Outcome

ME = Principal("key_1", "me", "me", "user")
OK = Outcome(200, 1.0, None)
DOWN = Outcome(503, 1.0, "the receiver answered 503")
LOOPBACK = {"webhook_allowed_networks": "127.0.0.0/8", "webhook_ports": ""}
QUICK = {**LOOPBACK, "webhook_poll_seconds": 0.02, "webhook_retry_seconds": 0.02}


class Receiver:
    """An HTTP server that keeps what it is sent, and answers as the test wants it."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = answering(200)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((dict(self.headers), body))
                receiver.answer(self)

            do_GET = do_POST  # noqa: N815 - what a followed redirect would ask

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook?a=b"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def bodies(self) -> list[dict]:
        return [json.loads(body) for _, body in self.requests]


def answering(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def hooked(serve):
    """An API that delivers to this machine, quickly."""
    with serve(**QUICK) as api:
        yield api


@pytest.fixture(scope="module")
def measured_target(hooked):
    """The id of a target that has its latency model."""
    return hooked.enrol_measured().target_id


@pytest.fixture
def client(hooked):
    with Client(hooked.url, hooked.admin_key) as connected:
        yield connected


def search_of(owner: str, **fields: object) -> Search:
    """A search as `queue_deliveries` sees it."""
    return Search(
        id=new_id("srch"),
        owner=owner,
        status="succeeded",
        phase="done",
        status_reason=None,
        target_id="tgt_1",
        **{"tags": {}, **fields},
    )


def happen(api, event_type: str = "search.succeeded", **fields: object) -> Search:
    """Something happens to a search of the account that the API's clients are of."""
    owner = api.http.get("/v1/keys/self").json()["account"]
    search = search_of(owner, **fields)
    with api.database.transaction() as session:
        queue_deliveries(session, search, event_type, {"told": 1})
    return search


# -- delivering ------------------------------------------------------------------------


def test_what_happens_is_delivered_and_signed(hooked, client, receiver, eventually):
    webhook = client.create_webhook(receiver.url, events=["search.succeeded"])
    search = happen(hooked)
    (sent,) = eventually(lambda: receiver.requests, "nothing was delivered")
    headers, body = sent
    event = verify(webhook.secret, headers, body)
    assert (event.type, headers["X-Tailor-Event"]) == ("search.succeeded",) * 2
    assert event.data["search"]["id"] == search.id
    assert event.data["told"] == 1
    assert headers["Host"] == f"127.0.0.1:{receiver.port}"

    def logged() -> list:
        return list(client.webhook_deliveries(webhook.id, "delivered"))

    (delivery,) = eventually(logged, "the delivery is not in the log")
    assert delivery.id == headers["X-Tailor-Delivery"]
    assert delivery.subject_id == search.id
    (attempt,) = delivery.log
    assert (attempt.number, attempt.status, attempt.error) == (1, 200, None)
    assert attempt.latency_ms > 0
    assert client.webhook_delivery(webhook.id, delivery.id).payload == json.loads(body)
    client.delete_webhook(webhook.id)


def test_a_receiver_that_fails_is_tried_again_with_the_same_words(
    hooked, client, receiver, eventually
):
    webhook = client.create_webhook(receiver.url, events=["search.failed"])
    receiver.answer = answering(500)
    happen(hooked, "search.failed")
    eventually(lambda: len(receiver.requests) >= 3, "it is not tried again")
    assert client.webhook(webhook.id).failures >= 2
    receiver.answer = answering(204)
    (delivery,) = eventually(
        lambda: list(client.webhook_deliveries(webhook.id, "delivered")), "never delivered"
    )
    assert len({body for _, body in receiver.requests}) == 1
    assert {headers["X-Tailor-Delivery"] for headers, _ in receiver.requests} == {delivery.id}
    assert [attempt.status for attempt in delivery.log][-2:] == [500, 204]
    assert client.webhook(webhook.id).failures == 0
    client.delete_webhook(webhook.id)


def test_a_slow_receiver_holds_up_nobody_else_and_not_the_shutdown(serve, receiver, eventually):
    released = threading.Event()
    slow = Receiver()
    slow.answer = lambda handler: (released.wait(), answering(200)(handler))
    try:
        with (
            serve(**QUICK, webhook_timeout_seconds=20.0) as api,
            Client(api.url, api.admin_key) as client,
        ):
            held_up = client.create_webhook(slow.url, events=["search.succeeded"])
            client.create_webhook(receiver.url, events=["search.succeeded"])
            for _ in range(3):
                happen(api)
            eventually(lambda: len(receiver.requests) == 3, "the slow one holds it up")
            assert len(slow.requests) == 1
        database = Database(api.settings.resolved_database_url)
        with database.reading() as session:
            mine = WebhookDelivery.webhook_id == held_up.id
            waiting = session.scalars(select(WebhookDelivery).where(mine)).all()
            # the shutdown has not waited for the attempt, which nobody has written down
            assert [(d.status, d.log) for d in waiting] == [("pending", [])] * 3
        database.dispose()
    finally:
        released.set()
        slow.close()


def test_a_receiver_that_answers_byte_by_byte_has_its_time_and_no_more(serve, receiver, eventually):
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        try:
            while not over.wait(0.02):  # each byte comes long before any pause is too long
                handler.wfile.write(b"x")
        except OSError:
            return

    over = threading.Event()
    receiver.answer = drip
    with (
        serve(**QUICK, webhook_timeout_seconds=0.3) as api,
        Client(api.url, api.admin_key) as client,
    ):
        webhook = client.create_webhook(receiver.url)
        sent = client.test_webhook(webhook.id, wait_seconds=60)
    over.set()
    assert (sent.status, sent.log[-1].error) == ("failed", "no answer within 0.3 s")


def test_no_redirect_is_followed(hooked, client, receiver, eventually):
    inside = Receiver()
    try:
        receiver.answer = answering(302, Location=inside.url)
        webhook = client.create_webhook(receiver.url)
        sent = client.test_webhook(webhook.id)
        assert sent.status == "failed"
        assert "redirects are not followed" in sent.log[-1].error
        assert inside.requests == []
        client.delete_webhook(webhook.id)
    finally:
        inside.close()


def test_a_receiver_that_talks_and_talks_is_cut_off(hooked, client, receiver):
    def talk(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            cut_off.set()

    cut_off = threading.Event()
    receiver.answer = talk
    webhook = client.create_webhook(receiver.url)
    assert client.test_webhook(webhook.id).status == "delivered"
    assert cut_off.wait(30)
    client.delete_webhook(webhook.id)


def test_a_target_that_is_no_longer_what_was_measured_is_told_once(
    hooked, client, receiver, eventually
):
    webhook = client.create_webhook(receiver.url, events=["target.stale"])
    device = hooked.enrol_measured()
    changed = {**hooked.profile_of(device), "runtime_version": "2"}
    for _ in range(2):
        device.heartbeat(changed)
    (told,) = eventually(
        lambda: list(client.webhook_deliveries(webhook.id, "delivered")), "nobody was told"
    )
    assert told.subject_id == device.target_id
    assert "runtime version 1 -> 2" in receiver.bodies[0]["data"]["reason"]
    client.delete_webhook(webhook.id)


def test_what_becomes_of_a_search_is_told(hooked, client, receiver, measured_target, eventually):
    webhook = client.create_webhook(
        receiver.url, events=["search.queued", "search.cancelled"], tags={"team": "edge"}
    )
    search = hooked.search(measured_target, tags={"team": "edge"})
    hooked.search(measured_target)
    client.cancel_search(search["id"])
    eventually(lambda: len(receiver.requests) == 2, "not all was told")
    said = [(body["type"], body["data"]["search"]["id"]) for body in receiver.bodies]
    assert said == [("search.queued", search["id"]), ("search.cancelled", search["id"])]
    client.delete_webhook(webhook.id)


# -- the resource ----------------------------------------------------------------------


def test_a_webhook_is_made_changed_and_removed(hooked, client, receiver):
    made = client.create_webhook(receiver.url, tags={"team": "edge"}, description="ours")
    assert made.secret.startswith("whsec_")
    assert made.events == [
        "search.succeeded",
        "search.infeasible",
        "search.failed",
        "search.cancelled",
    ]
    read = client.webhook(made.id)
    assert read.model_dump() == {k: v for k, v in made.model_dump().items() if k != "secret"}
    assert made.secret not in hooked.http.get("/v1/webhooks").text
    changed = client.change_webhook(made.id, events=["search.phase", "search.phase"], tags={})
    assert (changed.events, changed.tags, changed.url) == (["search.phase"], {}, receiver.url)
    assert client.webhooks()[0] == changed
    client.delete_webhook(made.id)
    assert hooked.http.get(f"/v1/webhooks/{made.id}").status_code == 404
    assert hooked.http.delete(f"/v1/webhooks/{made.id}").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": ""},
        {"url": "http://127.0.0.1/", "events": []},
        {"url": "http://127.0.0.1/", "events": ["search.exploded"]},
        {"url": "http://127.0.0.1/", "secret": "mine"},
        {"url": "http://127.0.0.1/", "tags": {"a": 1}},
        {"url": "ftp://127.0.0.1/"},
        {"url": "//127.0.0.1/"},
        {"url": "http://me:secret@127.0.0.1/"},
        {"url": "http://127.0.0.1/#x"},
        {"url": "http://127.0.0.1:0/"},
        {"url": "http://127.0.0.1:99999/"},
        {"url": "http://127.0.0.1/\n"},
        {"url": "http://127.0.0.1/\0"},
        {"url": "http://10.0.0.1/"},
        {"url": "http://" + "a" * 64 + ".invalid/"},
        {"url": "http://nowhere.invalid/"},
        {"url": "http://127.0.0.1/" + "a" * 2000},
    ],
)
def test_what_cannot_be_a_webhook_is_refused_and_leaves_no_trace(hooked, body):
    before = hooked.stored()
    answer = hooked.http.post("/v1/webhooks", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]
    assert "me:secret" not in answer.text
    assert hooked.stored() == before


def test_another_accounts_webhook_does_not_exist(hooked, client, receiver):
    webhook = client.create_webhook(receiver.url)
    sent = client.test_webhook(webhook.id)
    made = hooked.http.post("/v1/keys", json={"name": "stranger", "scope": "user"}).json()
    stranger = hooked.client(made["token"])
    assert stranger.get("/v1/webhooks").json()["items"] == []
    base = f"/v1/webhooks/{webhook.id}"
    for method, path in (
        ("GET", base),
        ("PATCH", base),
        ("DELETE", base),
        ("POST", f"{base}/test"),
        ("POST", f"{base}/rotate-secret"),
        ("GET", f"{base}/deliveries"),
        ("GET", f"{base}/deliveries/{sent.id}"),
        ("POST", f"{base}/deliveries/{sent.id}/redeliver"),
    ):
        body = {"active": False} if method == "PATCH" else None
        answer = stranger.request(method, path, json=body)
        assert answer.status_code == 404, (method, path, answer.text)
    mine = stranger.post("/v1/webhooks", json={"url": receiver.url}).json()
    assert stranger.get(f"/v1/webhooks/{mine['id']}/deliveries/{sent.id}").status_code == 404
    assert client.webhook(webhook.id).active
    client.delete_webhook(webhook.id)


def test_an_account_has_as_many_webhooks_as_it_may(serve, receiver):
    with serve(**LOOPBACK, account_webhooks=2) as api:
        answers = [api.http.post("/v1/webhooks", json={"url": receiver.url}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]
    problem = answers[-1].json()
    assert (problem["code"], problem["used"], problem["limit"]) == ("quota_exceeded", 2, 2)


def test_a_rotated_secret_signs_beside_the_old_one(hooked, client, receiver):
    made = client.create_webhook(receiver.url)
    rotated = client.rotate_webhook_secret(made.id)
    assert rotated.secret != made.secret
    assert client.test_webhook(made.id).status == "delivered"
    headers, body = receiver.requests[-1]
    for secret in (made.secret, rotated.secret):
        assert verify(secret, headers, body).type == "webhook.test"
    with hooked.database.transaction() as session:
        session.get_one(Webhook, made.id).previous_secret_until = utc_now()
    assert client.test_webhook(made.id).status == "delivered"
    assert receiver.requests[-1][0]["X-Tailor-Signature"].count("v1=") == 1
    client.delete_webhook(made.id)


def test_a_test_is_sent_once_and_is_no_failure_of_the_webhook(hooked, client, receiver):
    webhook = client.create_webhook(receiver.url, active=False)
    receiver.answer = answering(500)
    sent = client.test_webhook(webhook.id)
    assert (sent.status, sent.attempt, sent.log[-1].status) == ("failed", 1, 500)
    assert client.webhook(webhook.id).failures == 0
    client.delete_webhook(webhook.id)


def test_a_delivery_is_sent_again_when_asked(hooked, client, receiver, eventually):
    webhook = client.create_webhook(receiver.url)
    sent = client.test_webhook(webhook.id)
    assert client.redeliver(webhook.id, sent.id).status == "pending"
    eventually(lambda: len(receiver.requests) == 2, "it is not sent again")
    assert receiver.requests[0][1] == receiver.requests[1][1]
    eventually(
        lambda: client.webhook_delivery(webhook.id, sent.id).attempt == 2, "it is not logged"
    )
    client.delete_webhook(webhook.id)


# -- the outbox and what follows from an outcome, on both stores -----------------------


@contextmanager
def changing(database: Database):
    with database.transaction() as session:
        yield session


def hook(database, settings=None, **fields: object) -> str:
    asked = WebhookCreate(url="http://192.0.2.1/", **{"events": ["search.succeeded"], **fields})
    with changing(database) as session:
        return lifecycle.create(session, settings or Settings(), ME, asked).id


def queue(database, **fields: object) -> None:
    with changing(database) as session:
        queue_deliveries(session, search_of("me", **fields), "search.succeeded", {})


def take_one(database, lease_seconds: float = 60.0):
    with changing(database) as session:
        taken = take(session, [], 10, lease_seconds)
    assert len(taken) <= 1
    return taken[0] if taken else None


def settle(database, sending, outcome: Outcome, **settings: object) -> None:
    with changing(database) as session:
        lifecycle.settle(session, Settings(**settings), sending, outcome)


def delivery(database) -> WebhookDelivery:
    with database.reading() as session:
        (row,) = session.scalars(select(WebhookDelivery)).all()
        return row


def webhook(database, webhook_id: str) -> Webhook:
    with database.reading() as session:
        return session.get_one(Webhook, webhook_id)


def make_due(database) -> None:
    with changing(database) as session:
        for row in session.scalars(
            select(WebhookDelivery).where(WebhookDelivery.due_at.is_not(None))
        ):
            row.due_at = utc_now()


def n_deliveries(database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(WebhookDelivery))


def test_nothing_is_delivered_of_what_was_rolled_back(database):
    hook(database)

    def fail() -> None:
        with changing(database) as session:
            queue_deliveries(session, search_of("me"), "search.succeeded", {})
            session.flush()
            raise RuntimeError("the transaction of the event fails")

    with pytest.raises(RuntimeError):
        fail()
    assert n_deliveries(database) == 0


@pytest.mark.parametrize(
    ("fields", "tags", "told"),
    [
        ({}, {}, True),
        ({}, {"team": "edge"}, True),
        ({"tags": {"team": "edge"}}, {"team": "edge", "x": "y"}, True),
        ({"tags": {"team": "edge"}}, {"team": "core"}, False),
        ({"tags": {"team": "edge"}}, {}, False),
        ({"events": ["search.failed"]}, {}, False),
        ({"active": False}, {}, False),
    ],
)
def test_a_webhook_is_told_what_it_asked_for(store, fields, tags, told):
    hook(store, **fields)
    queue(store, tags=tags)
    assert n_deliveries(store) == told


def test_nobody_elses_searches_are_told_and_stale_targets_to_all_who_want(database):
    hook(database)
    hook(database, events=["target.stale"])
    with changing(database) as session:
        queue_deliveries(session, search_of("them"), "search.succeeded", {})
        queue_stale_target(session, "tgt_1", "its runtime has changed")
    assert delivery(database).event_type == "target.stale"
    assert json.loads(delivery(database).body)["data"]["reason"] == "its runtime has changed"


def test_senders_at_once_never_take_the_same_delivery(database):
    for _ in range(4):
        hook(database)
    queue(database)

    def work(_: int) -> list[str]:
        with changing(database) as session:
            return [sending.delivery_id for sending in take(session, [], 4, 60.0)]

    with ThreadPoolExecutor(4) as pool:
        taken = [one for ones in pool.map(work, range(8)) for one in ones]
    assert len(taken) == len(set(taken)) == 4


def test_each_webhook_is_sent_one_delivery_at_a_time_oldest_first(database):
    first, second = hook(database), hook(database)
    queue(database)
    queue(database)
    with changing(database) as session:
        taken = take(session, [], 10, 60.0)
        assert sorted(sending.webhook_id for sending in taken) == sorted([first, second])
        assert is_due(session, [])
        assert not is_due(session, [first, second])
        (other,) = take(session, [first], 10, 60.0)
    assert other.webhook_id == second


def test_a_delivery_whose_sender_died_is_sent_again_and_the_dead_one_has_no_say(database):
    hook(database)
    queue(database)
    dead = take_one(database, lease_seconds=-1.0)
    alive = take_one(database)
    assert (dead.delivery_id, dead.body) == (alive.delivery_id, alive.body)
    settle(database, dead, OK)
    assert delivery(database).status == "pending"
    settle(database, alive, OK)
    assert delivery(database).status == "delivered"
    assert [entry["number"] for entry in delivery(database).log] == [2]
    settle(database, alive, DOWN)
    assert delivery(database).status == "delivered"


def test_attempts_are_further_and_further_apart_for_about_a_day(store):
    hook(store)
    queue(store)
    settings = Settings()
    waits = []
    while delivery(store).status == "pending":
        sending = take_one(store)
        settle(store, sending, DOWN, webhook_failures=1000)
        row = delivery(store)
        if row.due_at is not None:
            waits.append((row.due_at - utc_now()).total_seconds())
            with changing(store) as session:  # as if the time had passed
                due = session.scalars(select(WebhookDelivery)).one()
                due.queued_at -= timedelta(seconds=waits[-1])
                due.due_at = utc_now()
    assert 2.0 < waits[0] <= 5.0
    assert all(later > 0.9 * earlier / 2 for earlier, later in pairwise(waits))
    assert max(waits) <= settings.webhook_longest_retry_seconds
    assert 15 * 3600 < sum(waits) <= 24 * 3600
    assert delivery(store).status == "failed"
    assert len({lifecycle.delay_seconds(settings, 3) for _ in range(20)}) == 20


def test_a_receiver_that_asks_to_be_left_alone_is(store):
    hook(store)
    queue(store)
    settle(store, take_one(store), Outcome(429, 1.0, "the receiver answered 429", 600.0))
    left_alone = delivery(store).due_at - utc_now()
    assert timedelta(seconds=590) < left_alone <= timedelta(seconds=600)


def test_a_webhook_that_fails_and_fails_is_switched_off_and_says_why(database):
    failing = hook(database)
    hook(database, events=["webhook.disabled"])
    for _ in range(3):
        queue(database)
    for _ in range(3):
        make_due(database)
        settle(database, take_one(database), DOWN, webhook_failures=3, webhook_failing_hours=0)
    off = webhook(database, failing)
    assert (off.active, off.failures) == (False, 3)
    assert off.disabled["code"] == "too_many_failures"
    assert "503" in off.disabled["text"]
    told = take_one(database)
    assert told.event_type == "webhook.disabled"
    assert json.loads(told.body)["data"]["webhook"]["id"] == failing
    with changing(database) as session:
        lifecycle.change(session, session.get_one(Webhook, failing), WebhookUpdate(active=True))
    on = webhook(database, failing)
    assert (on.active, on.failures, on.disabled) == (True, 0, None)


def test_a_burst_of_failures_does_not_switch_off(store):
    failing = hook(store)
    for _ in range(5):
        queue(store)
    for _ in range(5):
        settle(store, take_one(store), DOWN, webhook_failures=3)
    assert webhook(store, failing).active
    assert webhook(store, failing).failures == 5


def test_a_receiver_that_is_gone_is_not_asked_again(store):
    gone = hook(store)
    queue(store)
    settle(store, take_one(store), Outcome(410, 1.0, "the receiver answered 410"))
    assert webhook(store, gone).disabled["code"] == "gone"
    assert delivery(store).status == "failed"
    with pytest.raises(ConflictError, match="switched off"), changing(store) as session:
        lifecycle.send_again(webhook(store, gone), session.scalars(select(WebhookDelivery)).one())


def test_what_is_on_its_way_is_not_sent_twice(store):
    made = hook(store)
    queue(store)
    with pytest.raises(ConflictError, match="on its way"):
        lifecycle.send_again(webhook(store, made), delivery(store))


def test_old_deliveries_are_forgotten(database):
    hook(database)
    queue(database)
    with changing(database) as session:
        assert forget_deliveries(session, utc_now() - timedelta(days=1)) == 0
    with changing(database) as session:
        assert forget_deliveries(session, utc_now() + timedelta(seconds=1)) == 1
    assert n_deliveries(database) == 0


def test_a_webhook_can_be_deleted_while_something_is_queued_for_it(database):
    deleted = hook(database)
    queued, gone = threading.Event(), threading.Event()

    def delete() -> None:
        queued.wait()
        with changing(database) as session:
            session.delete(session.get_one(Webhook, deleted))
        gone.set()

    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(delete)
        with changing(database) as session:
            queue_deliveries(session, search_of("me"), "search.succeeded", {})
            session.flush()
            queued.set()
            assert not gone.wait(0.2)  # it waits for this transaction
        deleting.result()
    assert n_deliveries(database) == 0


# -- the command line ------------------------------------------------------------------


@pytest.fixture
def api(hooked):
    """What `tailor` talks to."""
    return hooked


def test_webhooks_on_the_command_line(tailor, tailor_json, receiver):
    made = tailor_json(
        "webhooks", "create", receiver.url, "--event", "search.phase", "--tag", "team=edge"
    )
    assert (made["events"], made["tags"]) == (["search.phase"], {"team": "edge"})
    assert made["id"] in tailor("webhooks", "list").out
    assert tailor_json("webhooks", "test", made["id"])["status"] == "delivered"
    (sent,) = tailor_json("webhooks", "deliveries", made["id"])
    assert tailor_json("webhooks", "redeliver", made["id"], sent["id"])["id"] == sent["id"]
    receiver.answer = answering(500)
    failed = tailor("webhooks", "test", made["id"])
    assert failed.status == 4
    assert "answered 500" in failed.out
    assert tailor_json("webhooks", "rotate-secret", made["id"])["secret"] != made["secret"]
    assert tailor_json("webhooks", "change", made["id"], "--off")["active"] is False
    assert "off" in tailor("webhooks", "show", made["id"]).out
    assert tailor("webhooks", "delete", made["id"]).status == 0
    assert made["id"] not in tailor("webhooks", "list").out
    assert tailor("webhooks", "create", receiver.url, "--tag", "team").status == 2


def test_the_secret_is_shown_once_to_people_too(tailor, receiver):
    made = tailor("webhooks", "create", receiver.url)
    assert "whsec_" in made.out
    assert "once" in made.err
    assert "whsec_" not in tailor("webhooks", "list").out
