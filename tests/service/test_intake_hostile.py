"""Bodies that mean harm, sent to what agents may call: answered with reason, nothing stored."""

import asyncio
import copy
import functools
import gzip
import json
import operator
import socket
import time
import uuid
import zlib
from datetime import UTC, datetime, timedelta

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from sqlalchemy import func, select

from service.measurements.models import Measurement, UploadedBatch
from service.middleware import BodyLimit

ROUTES = {
    "/v1/measurements": "agent",
    "/v1/agents": "nobody",
    "/v1/agents/self/heartbeat": "agent",
    "/v1/measurement-tasks/lease": "agent",
    "/v1/enrolment-codes": "key",
}
JSON = {"Content-Type": "application/json"}
GZIP = {**JSON, "Content-Encoding": "gzip"}
MEBIBYTE = 2**20
ANSWER_SECONDS = 20.0  # of a client's 60; on a quiet machine the slowest takes one
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


# -- what is sent ----------------------------------------------------------------------


def packed(body: bytes, level: int = 1) -> bytes:
    return gzip.compress(body, level, mtime=0)


def bomb(n_bytes: int) -> bytes:
    """Gzip of so many zeros, made without ever holding them."""
    machine = zlib.compressobj(9, wbits=31)
    block = bytes(16 * MEBIBYTE)
    parts = [machine.compress(block) for _ in range(n_bytes // len(block))]
    return b"".join([*parts, machine.flush()])


def nested(opening: str, closing: str, depth: int) -> bytes:
    return (opening * depth + "1" + closing * depth).encode()


WHOLE_BODIES: dict[str, tuple[bytes, dict[str, str]]] = {
    "nothing": (b"", JSON),
    "a space": (b" ", JSON),
    "no JSON": (b"batch_id=1&items=2", JSON),
    "text": (b'"text"', JSON),
    "an empty list": (b"[]", JSON),
    "a list of itself": (b"[[[]]]", JSON),
    "true": (b"true", JSON),
    "zero": (b"0", JSON),
    "minus zero": (b"-0.0", JSON),
    "NaN": (b"NaN", JSON),
    "Infinity": (b"-Infinity", JSON),
    "1e400": (b"1e400", JSON),
    "a number of 400 digits": (b"9" * 400, JSON),
    "a number of 5,000 digits": (b"9" * 5000, JSON),
    "a number of a million digits": (b"9" * 10**6, JSON),
    "cut short": (b'{"batch_id": "abcdefgh", "items": [{"task_', JSON),
    "something behind the end": (b'{"agent_version": "1"} {}', JSON),
    "a trailing comma": (b'{"agent_version": "1",}', JSON),
    "a byte order mark": (b"\xef\xbb\xbf[]", JSON),
    "invalid UTF-8": (b'{"agent_version": "\xff\xfe"}', JSON),
    "an overlong NUL": (b'{"agent_version": "\xc0\x80"}', JSON),
    "a surrogate in UTF-8": (b'{"\xed\xa0\x80": "\xed\xa0\x80"}', JSON),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), JSON),
    "NUL bytes": (bytes(1000), JSON),
    "a NUL as a key": (b'{"\\u0000": 1}', JSON),
    "a lone surrogate as a key": (b'{"\\ud800": 1}', JSON),
    "a key of a mebibyte": (b'{"' + b"k" * MEBIBYTE + b'": 1}', JSON),
    "100,000 unknown keys": (json.dumps({f"k{i}": i for i in range(10**5)}).encode(), JSON),
    "100,000 items": (b'{"items": [' + b"{}," * (10**5 - 1) + b"{}]}", JSON),
    "100,000 numbers": (json.dumps(list(range(10**5))).encode(), JSON),
    "a text over the limit": (b'"' + b"x" * (10 * MEBIBYTE) + b'"', JSON),
    "a text just under the limit": (b'"' + b"x" * (8 * MEBIBYTE - 2) + b'"', JSON),
    **{
        f"{depth:,} levels of {kind}{' packed' if headers is GZIP else ''}": (
            packed(nested(opening, closing, depth))
            if headers is GZIP
            else nested(opening, closing, depth),
            headers,
        )
        for depth in (100, 10_000, 100_000)
        for kind, opening, closing in (("arrays", "[", "]"), ("objects", '{"a":', "}"))
        for headers in (JSON, GZIP)
    },
    "100,000 opening brackets": (b"[" * 10**5, JSON),
    "packed, not JSON": (packed(b"hello"), GZIP),
    "packed twice": (packed(packed(b'{"agent_version": "1"}')), GZIP),
    "packed twice, and says so": (
        packed(packed(b"{}")),
        {**JSON, "Content-Encoding": "gzip, gzip"},
    ),
    "said to be packed": (b'{"agent_version": "1"}', GZIP),
    "packed, not said": (packed(b'{"agent_version": "1"}'), JSON),
    "packed and cut short": (packed(b'{"agent_version": "1"}')[:-12], GZIP),
    "packed without its sum": (packed(b'{"agent_version": "1"}')[:-8], GZIP),
    "packed with a wrong sum": (packed(b'{"agent_version": "1"}')[:-8] + bytes(8), GZIP),
    "a gzip header alone": (packed(b"")[:10], GZIP),
    "two members": (packed(b'{"agent_version":') + packed(b'"1"}'), GZIP),
    "something behind the gzip": (packed(b'{"agent_version": "1"}') + b"more", GZIP),
    "deflate": (b"x\x9c\x03\x00\x00\x00\x00\x01", {**JSON, "Content-Encoding": "deflate"}),
    "brotli": (b"\x3b", {**JSON, "Content-Encoding": "br"}),
    "an encoding with a NUL": (b"{}", {**JSON, "Content-Encoding": "gz\x01ip"}),
    "a bomb of 16 MiB": (bomb(16 * MEBIBYTE), GZIP),
    "a bomb of 128 MiB": (bomb(128 * MEBIBYTE), GZIP),
    "a bomb of 1 GiB": (bomb(1024 * MEBIBYTE), GZIP),
    "a bomb in a bomb": (packed(bomb(1024 * MEBIBYTE), 9), GZIP),
    "8 MiB of brackets in a bomb": (packed(b"[" * (8 * MEBIBYTE)), GZIP),
    "another content type": (b'{"agent_version": "1"}', {"Content-Type": "text/plain"}),
    "no content type": (b'{"agent_version": "1"}', {}),
    "a charset nobody knows": (b"\x00{", {"Content-Type": "application/json; charset=none"}),
    "a form": (b"--x\r\n\r\n1\r\n--x--", {"Content-Type": "multipart/form-data; boundary=x"}),
}
OPTIONAL = {  # a code may be asked for without a body
    ("/v1/enrolment-codes", "nothing"),
}

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, -(2**64), 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 5e-324, 1.8e308, -1e-300]),
    st.text(max_size=20),
    st.sampled_from(["", "\0", "\ud800", "a\udfff", "x" * 600, "NaN", "1", "ms", "\u202e", "💥"]),
    st.sampled_from(["1970-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z"]),
)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


# -- who sends it, and what is there afterwards ----------------------------------------


class Sender:
    """Sends to the API as an agent of a target whose kit waits, an API key, or nobody."""

    def __init__(self, api) -> None:
        self.api = api
        self.device = api.enrol_with_kit()
        self.others = {"key": api.http, "nobody": api.client()}
        self._tasks: list[dict] = []

    def post(self, route: str, body: bytes, headers: dict[str, str]):
        who = ROUTES[route]
        client = self.device.http if who == "agent" else self.others[who]
        began = time.monotonic()
        answer = client.post(route, content=body, headers=headers)
        assert time.monotonic() - began < ANSWER_SECONDS
        return answer

    def upload(self, items: list, **more: object):
        body = {"batch_id": uuid.uuid4().hex, "items": items, **more}
        return self.post("/v1/measurements", json.dumps(body).encode(), JSON)

    def tasks(self, n: int) -> list[dict]:
        """Leased tasks of the agent, each given once; a new agent when they are used up."""
        while len(self._tasks) < n:
            leased = self.device.lease()
            if not leased:
                self.device, self._tasks = self.api.enrol_with_kit(), []
            self._tasks += leased
        return [self._tasks.pop() for _ in range(n)]

    def valid(self, task: dict) -> dict:
        """An item that is accepted, with something in every field."""
        return self.device.result(
            task,
            0.25,
            quarantined=[{"latency_ms": 0.3, "reason": "noise"}],
            facts={"load": 0.5, "governor": "performance", "cores": 2, "battery": None},
        )

    def stored(self) -> tuple[int, int]:
        """How many measurements and how many batches there are."""
        with self.api.database.reading() as session:
            return tuple(
                session.scalar(select(func.count()).select_from(model)) or 0
                for model in (Measurement, UploadedBatch)
            )

    def measured(self, task: dict) -> list[Measurement]:
        with self.api.database.reading() as session:
            return list(session.scalars(select(Measurement).filter_by(task_id=task["id"])))


@pytest.fixture(scope="module")
def sender(api_on_both) -> Sender:
    return Sender(api_on_both)


@pytest.fixture(scope="module")
def any_sender(api) -> Sender:
    """For what is refused before a store is asked."""
    return Sender(api)


def assert_problem(answer) -> None:
    """A client's error, told as a problem document that any reader of JSON can read."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:500])
    assert answer.headers["content-type"] == "application/problem+json"
    document = json.loads(answer.content.decode("utf-8"))
    assert json.dumps(document, ensure_ascii=False).encode()  # no lone surrogate has come back
    assert document["status"] == answer.status_code
    assert document["code"]
    assert document["detail"]
    assert len(answer.content) < 100_000


def assert_answered(answer) -> None:
    """Either a success or a problem."""
    if not answer.is_success:
        assert_problem(answer)


# -- whole bodies ----------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE_BODIES)
def test_a_hostile_body_is_refused_whole_on_every_route(any_sender, name):
    body, headers = WHOLE_BODIES[name]
    before = any_sender.api.stored()
    for route in ROUTES:
        answer = any_sender.post(route, body, headers)
        if (route, name) in OPTIONAL:
            assert_answered(answer)
        else:
            assert_problem(answer)
    after = any_sender.api.stored()
    apart = {"enrolment_codes": 0, "audit_entries": 0}  # a code needs no body
    assert after | apart == before | apart


def test_the_bodies_are_as_many_as_promised():
    assert len(WHOLE_BODIES) * len(ROUTES) >= 200


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 100000",  # more than follows
        "Content-Length: 3",  # less than follows
        "Content-Length: -1",
        "Content-Length: +30",
        "Content-Length: 1e3",
        "Content-Length: 99999999999999999999999",
        "Content-Length: 30\r\nContent-Length: 31",
        "Content-Length: 30\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked",  # and no chunk follows
        "Transfer-Encoding: gzip",
        "Expect: 200-maybe\r\nContent-Length: 30",
    ],
)
@pytest.mark.parametrize("encoding", ["", "Content-Encoding: gzip\r\n"])
def test_a_body_of_another_length_than_announced_stores_nothing(any_sender, head, encoding):
    (task,) = any_sender.tasks(1)
    document = {"batch_id": uuid.uuid4().hex, "items": [any_sender.valid(task)]}
    body = json.dumps(document).encode()
    host, port = any_sender.api.url.removeprefix("http://").split(":")
    lines = (
        f"POST /v1/measurements HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {any_sender.device.token}\r\n{encoding}{head}\r\n\r\n"
    )
    before = any_sender.stored()
    with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS) as raw:
        raw.sendall(lines.encode() + (packed(body) if encoding else body))
        raw.shutdown(socket.SHUT_WR)
        answer = b""
        while part := raw.recv(65536):  # the API closes, answered or not
            answer += part
    statuses = [line.split()[1] for line in answer.splitlines() if line.startswith(b"HTTP/1.1 ")]
    assert all(status.startswith(b"4") for status in statuses), answer
    assert any_sender.stored() == before
    assert any_sender.api.client().get("/healthz").status_code == 200


def test_a_body_that_trickles_in_is_refused_in_time():
    async def route(scope, receive, send):
        raise AssertionError("no route sees it")

    async def trickle():
        await asyncio.sleep(1e-3)
        return {"type": "http.request", "body": b" ", "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    limited = BodyLimit(route, max_bytes=10**6, max_small_bytes=10**6, max_seconds=0.05)
    scope = {"type": "http", "path": "/v1/measurements", "headers": [], "state": {}}
    asyncio.run(limited(scope, trickle, send))
    assert sent[0]["status"] == 400
    assert json.loads(sent[1]["body"])["code"] == "bad_request"


# -- arbitrary JSON --------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_arbitrary_json_is_answered_and_measures_nothing(sender, route):
    before = sender.stored()

    @FUZZ
    @given(anything)
    def send(value):
        assert_answered(sender.post(route, json.dumps(value).encode(), JSON))
        assert sender.stored() == before

    send()


@pytest.mark.parametrize("route", ROUTES)
def test_arbitrary_values_in_known_fields_are_answered(sender, route):
    """The names are right, so the values reach what checks them."""
    names = {
        "/v1/measurements": ["batch_id", "items"],
        "/v1/agents": ["code", "name", "agent_version", "profiles"],
        "/v1/agents/self/heartbeat": ["agent_version", "activity", "journal_batches", "profiles"],
        "/v1/measurement-tasks/lease": ["limit"],
        "/v1/enrolment-codes": ["search_space"],
    }[route]
    known = {
        "batch_id": "abcdefgh" + uuid.uuid4().hex,
        "code": "ABCD",
        "agent_version": "1",
        "name": "x",
    }
    profile = st.fixed_dictionaries(
        dict.fromkeys(["device_model", "threads", "batch", "precision"], anything)
    )
    values = st.one_of(
        anything,
        st.lists(profile, max_size=9),
        st.dictionaries(st.text(max_size=8), profile, max_size=3),
    )
    before = sender.stored()[0]

    @FUZZ
    @given(st.fixed_dictionaries({}, optional=dict.fromkeys(names, values)))
    def send(given_values):
        body = {name: value for name, value in known.items() if name in names} | given_values
        assert_answered(sender.post(route, json.dumps(body).encode(), JSON))
        assert sender.stored()[0] == before

    send()


# -- items -----------------------------------------------------------------------------

WRONG = [
    None,
    True,
    False,
    -1,
    0,
    -0.0,
    10**400,
    -(10**400),
    2**64,
    5e-324,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "1",
    "NaN",
    "text",
    "\0",
    "\ud800",
    "x" * 600,
    [],
    [[]],
    [1],
    {},
    {"a": {}},
]
TEXT = ["1", "NaN", "text"]
ALLOWED: dict[tuple, list] = {  # of WRONG, what the field may hold after all
    ("failure",): [None],
    ("measurement", "sigma_ms"): [0, -0.0, 5e-324],
    ("measurement", "thread_cpu_ms"): [None, 0, -0.0, 5e-324],
    ("measurement", "contended_share"): [0, -0.0, 5e-324],
    ("measurement", "provider"): TEXT,
    ("measurement", "note"): ["", *TEXT],
    ("measurement", "flagged"): [False],
    ("measurement", "quarantined"): [[]],
    ("measurement", "quarantined", 0, "latency_ms"): [None],
    ("measurement", "quarantined", 0, "reason"): ["", *TEXT],
    ("measurement", "facts"): [{}],
    ("measurement", "facts", "load"): [
        None,
        True,
        False,
        -1,
        0,
        -0.0,
        2**64,
        5e-324,
        1e308,
        "",
        *TEXT,
    ],
}
FIELDS: list[tuple] = [
    ("task_id",),
    ("fence",),
    ("model_sha256",),
    ("measurement",),
    ("failure",),
    *[
        ("measurement", name)
        for name in (
            "latency_ms",
            "p10_ms",
            "p90_ms",
            "sigma_ms",
            "n",
            "thread_cpu_ms",
            "contended_share",
            "anchor_ms",
            "provider",
            "measured_at",
            "grade",
            "flagged",
            "note",
            "quarantined",
            "protocol_version",
            "unit",
            "facts",
        )
    ],
    ("measurement", "quarantined", 0),
    ("measurement", "quarantined", 0, "latency_ms"),
    ("measurement", "quarantined", 0, "reason"),
    ("measurement", "facts", "load"),
]


REQUIRED = [
    place
    for place in FIELDS
    if place != ("failure",) and "facts" not in place[:-1] and isinstance(place[-1], str)
]


def inside(item: dict, place: tuple):
    """What stands at `place`."""
    return functools.reduce(operator.getitem, place, item)


def changed(item: dict, place: tuple, value: object) -> dict:
    """A copy of `item` with another value at `place`."""
    result = copy.deepcopy(item)
    inside(result, place[:-1])[place[-1]] = value
    return result


def assert_only_the_good_one_is_stored(sender, good: dict, bad: dict, items: list[dict]) -> list:
    """Upload the good item last, beside many of one other task that must all be refused."""
    before = sender.stored()
    answer = sender.upload([*items, sender.valid(good)])
    assert answer.status_code == 200, answer.text[:500]
    *refused, taken = answer.json()["items"]
    accepted = [item for item, told in zip(items, refused, strict=True) if told["accepted"]]
    assert accepted == []
    assert all(told["reason"] for told in refused)
    assert taken == {"task_id": good["id"], "accepted": True, "reason": None}
    assert sender.stored() == (before[0] + 1, before[1] + 1)
    assert len(sender.measured(good)) == 1
    assert sender.measured(bad) == []
    return [told["reason"] for told in refused]


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(map(str, place)))
def test_a_wrong_value_in_any_field_refuses_that_item_alone(sender, place):
    good, bad = sender.tasks(2)
    allowed = [repr(value) for value in ALLOWED.get(place, [])]
    values = [value for value in WRONG if repr(value) not in allowed]
    items = [changed(sender.valid(bad), place, value) for value in values]
    reasons = assert_only_the_good_one_is_stored(sender, good, bad, items)
    for value, reason in zip(values, reasons, strict=True):
        if value == "\ud800":  # that is no JSON, so no field can be named
            assert reason.startswith("invalid: Invalid JSON")
        elif place != ("task_id",) or reason != "unknown_task":  # some are well-formed names
            assert reason.startswith("invalid: "), (value, reason)
            assert place[0] in reason or "measurement or failure" in reason, (value, reason)


@pytest.mark.parametrize("place", REQUIRED, ids=lambda place: ".".join(map(str, place)))
def test_a_field_that_is_missing_or_unknown_refuses_that_item_alone(sender, place):
    good, bad = sender.tasks(2)
    items = [sender.valid(bad), sender.valid(bad)]
    missing, unknown = (inside(item, place[:-1]) for item in items)
    del missing[place[-1]]
    unknown[f"{place[-1]}_"] = 1
    reasons = assert_only_the_good_one_is_stored(sender, good, bad, items)
    named = ".".join(map(str, place))
    if place != ("measurement",):  # which a failure could stand for
        assert reasons[0] == f"invalid: {named}: Field required"
    assert reasons[1] == f"invalid: {named}_: Extra inputs are not permitted"


def test_what_is_well_formed_and_still_wrong_is_refused_with_its_reason(sender):
    good, bad = sender.tasks(2)
    future = (datetime.now(UTC) + timedelta(minutes=10)).isoformat()
    item = sender.valid(bad)
    wrong = {
        "clock_in_future": [(("measurement", "measured_at"), future)],
        "clock_in_past": [(("measurement", "measured_at"), "1969-12-31T23:59:59+00:00")],
        "hash_mismatch": [(("model_sha256",), "0" * 64)],
        "unknown_task": [(("task_id",), "mtk_nobody's"), (("task_id",), "x" * 200)],
        "stale_lease": [(("fence",), bad["fence"] + 1), (("fence",), 2**31 - 1)],
        "invalid": [
            (("measurement", "unit"), "us"),
            (("measurement", "unit"), "s"),
            (("measurement", "protocol_version"), 1),
            (("measurement", "protocol_version"), "2"),
            (("measurement", "grade"), "C"),
            (("measurement", "grade"), "D"),
            (("measurement", "flagged"), 1),
            (("measurement", "n"), 100.5),
            (("measurement", "measured_at"), "2026-01-01T00:00:00"),  # in which zone?
            (("measurement", "measured_at"), 1.7e9),
            (("measurement", "latency_ms"), 6.1e5),
            (("measurement", "latency_ms"), 1e-7),
            (("measurement", "p10_ms"), 0.26),
            (("measurement", "facts"), {str(i): i for i in range(33)}),
            (("measurement", "facts", "load"), "x" * MEBIBYTE),
            (("measurement", "quarantined"), item["measurement"]["quarantined"] * 17),
            (("model_sha256",), "0" * 63 + "\n"),
            (("failure",), {"code": "too_noisy", "reason": "noise", "detail": ""}),
        ],
    }
    expected = [code for code, changes in wrong.items() for _ in changes]
    items = [changed(item, *change) for changes in wrong.values() for change in changes]
    reasons = assert_only_the_good_one_is_stored(sender, good, bad, items)
    assert [reason.split(":")[0] for reason in reasons] == expected


@pytest.mark.parametrize("depth", [100, 900, 10_000])
def test_a_deeply_nested_item_is_refused(sender, depth):
    good, bad = sender.tasks(2)
    before = sender.stored()
    deep = nested('{"a":', "}", depth).decode()
    item = json.dumps(sender.valid(bad)).replace('"performance"', deep)
    body = (
        f'{{"batch_id": "{uuid.uuid4().hex}", "items": [{item}, {json.dumps(sender.valid(good))}]}}'
    ).encode()
    answer = sender.post("/v1/measurements", body, JSON)
    assert sender.measured(bad) == []
    if answer.is_success:  # shallow enough to read: an item like any other
        assert [told["accepted"] for told in answer.json()["items"]] == [False, True]
        assert sender.stored() == (before[0] + 1, before[1] + 1)
    else:
        assert_problem(answer)
        assert sender.stored() == before


def test_of_a_key_given_twice_the_last_counts_and_the_item_is_stored_once(sender):
    (task,) = sender.tasks(1)
    item = json.dumps(sender.valid(task))
    twice = item.replace('"latency_ms": 0.25', '"latency_ms": -1, "latency_ms": 0.25')
    assert twice != item
    body = f'{{"items": [], "batch_id": "{uuid.uuid4().hex}", "items": [{twice}]}}'.encode()
    answer = sender.post("/v1/measurements", body, JSON)
    assert [told["accepted"] for told in answer.json()["items"]] == [True]
    assert [row.latency_ms for row in sender.measured(task)] == [0.25]


def test_a_name_that_no_text_can_hold_is_answered(sender):
    (good,) = sender.tasks(1)
    before = sender.stored()
    odd = [{"\ud800": 1}, {"\0": 1}, {"task_id": {"\udfff": {"\ud800": "\ud800"}}}]
    for item in odd:
        assert_answered(sender.upload([item, sender.valid(good)]))
    assert sender.stored()[0] <= before[0] + 1  # whole or item by item, but once


def test_any_mutation_is_refused_or_stored_as_it_was_sent(sender):
    @FUZZ
    @given(st.lists(st.tuples(st.sampled_from(FIELDS), anything), min_size=1, max_size=3))
    def send(changes):
        good, bad = sender.tasks(2)
        item = sender.valid(bad)
        for place, value in changes:
            try:
                item = changed(item, place, value)
            except (TypeError, KeyError, IndexError):  # an outer part is gone already
                continue
        before = sender.stored()
        answer = sender.upload([item, sender.valid(good)])
        assert answer.status_code == 200, answer.text[:500]
        first, second = answer.json()["items"]
        assert second["accepted"]
        assert len(sender.measured(good)) == 1
        assert sender.stored() == (before[0] + 1 + first["accepted"], before[1] + 1)
        rows = sender.measured(bad)
        assert len(rows) == first["accepted"]
        if rows:
            sent = item["measurement"]
            for name in sent.keys() - {"measured_at", "unit"}:
                assert getattr(rows[0], name) == sent[name]
        else:
            assert first["reason"]

    send()


@pytest.mark.parametrize("named", ["\0", "\ud800", "x\0y\udfff", "x" * 10**5, 7, None, [], {}])
def test_the_report_names_a_strange_task_without_harm(sender, named):
    before = sender.stored()
    answer = sender.upload([{"task_id": named}])
    assert answer.status_code == 200, answer.text[:500]
    (told,) = answer.json()["items"]
    assert not told["accepted"]
    assert told["task_id"] is None or len(told["task_id"]) <= 200
    assert told["reason"].startswith("invalid: ")
    assert sender.stored() == (before[0], before[1] + 1)


# -- what the description of the API gives rise to -------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_cases_made_from_the_openapi_description_are_answered(sender, route):
    who = ROUTES[route]
    token = {"agent": sender.device.token, "key": sender.api.admin_key, "nobody": None}[who]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    schema = schemathesis.openapi.from_url(f"{sender.api.url}/openapi.json")
    operation = schema[route]["POST"]
    before = sender.stored()
    asked: list[int] = []

    @settings(FUZZ, max_examples=25)
    @given(
        case=st.one_of(
            *[operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]
        )
    )
    def send(case):
        if isinstance(case.body, dict) and "wait_seconds" in case.body:
            case.body["wait_seconds"] = 0.0
        response = case.call(headers=headers)
        asked.append(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])
        kind = response.headers.get("content-type", "")
        if response.status_code >= 400:
            assert kind[0].startswith("application/problem+json")
        else:
            assert kind[0].startswith("application/json")

    send()
    assert len(asked) >= 20
    assert sender.stored()[0] == before[0]
