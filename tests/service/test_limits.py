"""Limits on requests, on failed sign-ins, and on what an account may have."""

import pytest

from service.auth.limits import Caller, Limits, TokenBuckets
from service.auth.quotas import check_dataset_bytes, check_searches, check_webhooks
from service.client.client import Client
from service.errors import QuotaExceededError, RateLimitedError
from service.settings import Settings


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# -- buckets ---------------------------------------------------------------------------


def test_a_bucket_gives_what_it_holds_and_then_one_token_at_a_time(clock):
    buckets = TokenBuckets(60, clock)
    assert [buckets.take("a").remaining for _ in range(60)] == list(range(59, -1, -1))
    refused = buckets.take("a")
    assert refused.retry_seconds == pytest.approx(1.0)
    clock.now += 1.0
    assert buckets.take("a").retry_seconds == 0.0
    assert buckets.take("a").retry_seconds == pytest.approx(1.0)


def test_a_refused_request_takes_nothing(clock):
    buckets = TokenBuckets(60, clock)
    for _ in range(100):
        buckets.take("a")
    clock.now += 1.0
    assert buckets.take("a").retry_seconds == 0.0


def test_a_bucket_is_full_again_after_what_it_says(clock):
    buckets = TokenBuckets(7, clock)
    for _ in range(3):
        standing = buckets.take("a")
    clock.now += standing.reset_seconds
    assert buckets.look("a").remaining == 7
    clock.now += 1e6
    assert buckets.look("a").remaining == 7  # and never fuller


def test_buckets_of_different_names_are_apart(clock):
    buckets = TokenBuckets(1, clock)
    assert buckets.take("a").retry_seconds == 0.0
    assert buckets.take("b").retry_seconds == 0.0
    assert buckets.take("a").retry_seconds > 0.0


# -- who shares a bucket ---------------------------------------------------------------


def caller(secret: str | None = None, address: str = "10.0.0.1", *, is_agent: bool = False):
    return Caller(secret, address, is_agent, may_fail=secret is not None)


def limits(clock, **changes: int) -> Limits:
    return Limits(
        Settings(**{"requests_per_minute": 2, "failed_sign_ins_per_minute": 3} | changes), clock
    )


def is_refused(limits: Limits, caller: Caller) -> bool:
    try:
        limits.admit(caller)
    except RateLimitedError:
        return True
    return False


def test_a_good_key_has_a_bucket_of_its_own_and_others_that_of_their_address(clock):
    limited = limits(clock)
    limited.succeeded(caller("k1"))
    limited.succeeded(caller("k2"))
    for asking in (caller("k1"), caller("k2"), caller()):
        assert [is_refused(limited, asking) for _ in range(3)] == [False, False, True]
    assert is_refused(limited, caller("guessed"))  # no bucket of its own
    assert not is_refused(limited, caller(address="10.0.0.2"))


def test_a_good_key_has_its_bucket_wherever_it_comes_from(clock):
    limited = limits(clock)
    limited.succeeded(caller("k"))
    asked = [is_refused(limited, caller("k", f"10.0.0.{n}")) for n in range(3)]
    assert asked == [False, False, True]


def test_agents_have_a_larger_bucket_once_they_are_known(clock):
    limited = limits(clock, agent_requests_per_minute=5)
    agent = caller("t", is_agent=True)
    limited.succeeded(agent)
    assert [is_refused(limited, agent) for _ in range(6)] == [False] * 5 + [True]
    assert [is_refused(limited, caller("made up", is_agent=True)) for _ in range(3)][-1]


def test_after_some_failures_an_address_has_no_unknown_secret_looked_up(clock):
    limited = limits(clock, requests_per_minute=0)
    limited.succeeded(caller("good"))
    for n in range(3):
        assert not is_refused(limited, caller(f"guess {n}"))
        limited.failed(caller(f"guess {n}"))
    assert is_refused(limited, caller("guess 4"))
    assert not is_refused(limited, caller("good"))  # who was known before, is not shut out
    assert not is_refused(limited, caller())  # and open pages are open
    assert not is_refused(limited, caller("guess 5", "10.0.0.2"))
    clock.now += 20.0
    assert not is_refused(limited, caller("guess 6"))


def test_a_key_that_fails_is_known_no_longer(clock):
    limited = limits(clock, failed_sign_ins_per_minute=1)
    limited.succeeded(caller("k"))
    limited.failed(caller("k"))
    assert is_refused(limited, caller("k"))


def test_nothing_is_limited_where_the_limit_is_off(clock):
    limited = limits(clock, requests_per_minute=0, failed_sign_ins_per_minute=0)
    for _ in range(1000):
        limited.failed(caller("x"))
        assert limited.admit(caller("x")) is None


@pytest.mark.parametrize(
    ("sent", "secret", "is_agent", "may_fail"),
    [
        ({}, False, False, False),
        ({"authorization": "Bearer tlr_x"}, True, False, True),
        ({"authorization": "Bearer tla_x"}, True, True, True),
        ({"cookie": "a=b; tailor_session=tls_x"}, True, False, True),
        ({"cookie": "a=b"}, False, False, False),
    ],
)
def test_a_caller_is_told_by_what_it_sends(sent, secret, is_agent, may_fail):
    found = Caller.of(scope(sent))
    assert (found.secret is not None, found.is_agent, found.may_fail) == (
        secret,
        is_agent,
        may_fail,
    )
    assert "tl" not in (found.secret or "")  # a hash


def scope(sent: dict[str, str], path: str = "/v1/searches", host: str = "10.0.0.1") -> dict:
    headers = [(name.encode(), value.encode()) for name, value in sent.items()]
    return {"type": "http", "headers": headers, "path": path, "client": (host, 1)}


def test_an_enrolment_code_may_be_guessed_too():
    assert Caller.of(scope({}, "/v1/agents")).may_fail


def test_whoever_has_an_ipv6_address_has_its_network():
    first, second = (Caller.of(scope({}, host=f"2001:db8:1:2::{n}")) for n in (1, 2))
    assert first.address == second.address == "2001:db8:1:2::"
    assert Caller.of(scope({}, host="a socket")).address == "a socket"


# -- served ----------------------------------------------------------------------------


def test_an_answer_tells_how_the_key_stands_and_a_429_when_to_come_again(serve):
    with serve(requests_per_minute=5) as api:
        api.client("tlr_x").get("/v1/targets")  # of the address
        api.http.get("/v1/targets")  # of the address too, for the key is not known yet
        answers = [api.http.get("/v1/targets") for _ in range(6)]
        assert [a.status_code for a in answers] == [200] * 5 + [429]
        assert [a.headers["RateLimit-Remaining"] for a in answers[:5]] == ["4", "3", "2", "1", "0"]
        assert answers[0].headers["RateLimit-Limit"] == "5"
        assert 1 <= int(answers[0].headers["RateLimit-Reset"]) <= 12
        refused = answers[5]
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["code"] == "rate_limited"
        again = int(refused.headers["Retry-After"])
        assert 1 <= again == refused.json()["retry_after_seconds"] <= 12
        assert api.client().get("/healthz").status_code == 200  # never refused


def test_guessing_is_stopped_and_others_go_on(serve):
    with serve(failed_sign_ins_per_minute=3) as api:
        assert api.http.get("/v1/targets").status_code == 200
        guesses = [api.client(f"tlr_{n}").get("/v1/targets").status_code for n in range(4)]
        assert guesses == [401, 401, 401, 429]
        assert api.http.get("/v1/targets").status_code == 200
        assert api.client().get("/version").status_code == 200


def test_guessing_enrolment_codes_is_stopped(serve):
    body = {"name": "n", "agent_version": "1"}
    with serve(failed_sign_ins_per_minute=2) as api:
        body["profiles"] = [api.profile_of(api.enrol())]
        for expected in (401, 401, 429):
            answer = api.client().post("/v1/agents", json={**body, "code": "AAAA-BBBB-CCCC"})
            assert answer.status_code == expected


def test_without_limits_no_answer_tells_of_any(api):
    assert not [name for name in api.http.get("/v1/targets").headers if "ratelimit" in name]


# -- quotas ----------------------------------------------------------------------------


def test_an_account_has_so_many_unfinished_searches_and_no_more(api_on_both, measured_on_both):
    api = api_on_both
    owner = api.http.get("/v1/keys/self").json()["account"]

    def check(limit: int, account: str = owner) -> None:
        with api.database.transaction() as session:
            check_searches(session, Settings(account_unfinished_searches=limit), account)

    search = api.search(measured_on_both.target_id)
    check(2)
    with pytest.raises(QuotaExceededError) as refused:
        check(1)
    assert refused.value.extra == {"used": 1, "limit": 1}
    check(1, "another account")
    check(0)
    api.http.post(f"/v1/searches/{search['id']}/cancel")
    check(1)


@pytest.fixture(scope="module")
def measured_on_both(api_on_both):
    return api_on_both.enrol_measured()


@pytest.mark.parametrize(("used", "more", "fits"), [(0, 10, True), (9, 1, True), (9, 2, False)])
def test_an_account_stores_so_many_bytes(used, more, fits):
    settings = Settings(account_dataset_bytes=10)
    if fits:
        return check_dataset_bytes(settings, used, more)
    with pytest.raises(QuotaExceededError, match="9 of at most 10 bytes"):
        check_dataset_bytes(settings, used, more)


def test_an_account_has_so_many_webhooks():
    check_webhooks(Settings(account_webhooks=2), 1)
    with pytest.raises(QuotaExceededError, match="2 of at most 2 webhooks"):
        check_webhooks(Settings(account_webhooks=2), 2)


# -- the client ------------------------------------------------------------------------


def test_the_client_comes_again_when_it_is_told_to(serve):
    with serve(requests_per_minute=60) as api, Client(api.url, api.admin_key) as client:
        assert [client.key().name for _ in range(62)] == ["tests"] * 62
