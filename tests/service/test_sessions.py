"""Browsers sign in with a key: a cookie no script reads, and a token no other site has."""

from datetime import timedelta

import httpx
import pytest
from sqlalchemy import update

from service.auth.principal import Principal
from service.auth.repository import create_key, revoke_key
from service.db.base import utc_now
from service.db.database import Database
from service.sessions.csrf import csrf_token
from service.sessions.models import SessionRow
from service.sessions.repository import create_session, find_session, note_use

HOUR = timedelta(hours=1)


class Browser:
    """A client that signed in: it keeps the cookie and says where its page is from."""

    def __init__(self, api, token: str | None = None) -> None:
        self.http = api.client()
        self.http.headers["Origin"] = api.url
        sent = {"Authorization": f"Bearer {token or api.admin_key}"}
        answer = self.http.post("/v1/sessions", headers=sent)
        assert answer.status_code == 201, answer.text
        self.cookie = answer.headers["Set-Cookie"]
        self.session = answer.json()
        self.csrf = {"X-CSRF-Token": self.session["csrf_token"]}

    def make_key(self, **headers: str) -> httpx.Response:
        """A change, made with the token unless `headers` say otherwise."""
        return self.http.post("/v1/keys", json={"name": "x"}, headers=self.csrf | headers)

    def is_signed_in(self) -> bool:
        return self.http.get("/v1/sessions/self").status_code == 200


@pytest.fixture
def browser(api) -> Browser:
    return Browser(api)


def new_key(api, **changes: object) -> dict:
    return api.http.post("/v1/keys", json={"name": "a key", **changes}).json()


def test_no_script_can_read_the_cookie_and_no_other_site_sends_it(browser):
    name, *attributes = browser.cookie.lower().split("; ")
    assert name.startswith("tailor_session=tls_")
    assert {"httponly", "samesite=strict", "path=/", "max-age=43200"} <= set(attributes)
    assert "secure" not in attributes  # it is http


def test_the_cookie_is_for_https_alone_where_people_come_by_https(serve):
    with serve(public_url="https://tailor.example") as api:
        assert "Secure" in Browser(api).cookie


def test_a_session_reads_what_its_key_reads(browser, api):
    own = api.http.get("/v1/keys/self").json()
    assert browser.http.get("/v1/keys/self").json()["id"] == own["id"]
    read = browser.http.get("/v1/sessions/self").json()
    assert read == browser.session
    assert (read["key_id"], read["account"], read["scope"]) == (
        own["id"],
        own["account"],
        own["scope"],
    )


def test_a_session_changes_what_its_key_may_change_and_the_audit_log_tells_of_both(browser, api):
    made = browser.make_key()
    assert made.status_code == 201
    (entry,) = api.http.get("/v1/audit", params={"object": made.json()["id"]}).json()["items"]
    assert entry["session_id"] == browser.session["id"]
    assert entry["key_id"] == browser.session["key_id"]


def test_a_viewers_session_is_a_viewers(api):
    assert Browser(api, new_key(api, scope="viewer")["token"]).make_key().status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": "0" * 64},
        {"X-CSRF-Token": csrf_token("tls_of_another_session")},
        {"X-CSRF-Token": "\u00e9".encode("latin-1")},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
    ],
)
def test_a_forged_change_is_refused_and_changes_nothing(browser, api, headers):
    before = api.stored()
    answer = browser.make_key(**headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert api.stored() == before


def test_a_change_without_an_origin_is_refused(browser, api):
    del browser.http.headers["Origin"]
    assert browser.make_key().status_code == 403


def test_behind_a_proxy_the_origin_is_the_one_people_see(serve):
    with serve(public_url="https://tailor.example/") as api:
        browser = Browser(api)
        browser.http.cookies = {"tailor_session": browser.cookie.split(";")[0].split("=")[1]}
        assert browser.make_key(Origin=api.url).status_code == 403
        assert browser.make_key(Origin="https://tailor.example").status_code == 201


def test_a_key_needs_no_token_against_forgery(api):
    assert api.http.post("/v1/keys", json={"name": "x"}).status_code == 201


def test_the_key_goes_before_the_cookie(browser, api):
    viewer = new_key(api, scope="viewer")
    sent = {"Authorization": f"Bearer {viewer['token']}"}
    assert browser.http.get("/v1/keys/self", headers=sent).json()["id"] == viewer["id"]


def test_a_session_token_is_no_key_and_a_key_is_no_session(browser, api):
    token = browser.http.cookies["tailor_session"]
    assert api.client(token).get("/v1/keys/self").status_code == 401
    other = api.client()
    other.cookies["tailor_session"] = api.admin_key
    assert other.get("/v1/keys/self").status_code == 401


def test_signing_out_ends_the_session_at_once(browser, api):
    token = browser.http.cookies["tailor_session"]
    answer = browser.http.delete("/v1/sessions/self", headers=browser.csrf)
    assert answer.status_code == 204
    assert "tailor_session" not in browser.http.cookies
    browser.http.cookies["tailor_session"] = token
    assert not browser.is_signed_in()


def test_who_is_signed_in_signs_in_with_a_key_alone(browser):
    answer = browser.http.post("/v1/sessions", headers=browser.csrf)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_a_key_has_no_session_to_read_or_to_end(api):
    assert api.http.get("/v1/sessions/self").status_code == 404
    assert api.http.delete("/v1/sessions/self").status_code == 404


def test_revoking_the_key_ends_its_sessions_at_once(api):
    made = new_key(api)
    browser = Browser(api, made["token"])
    assert browser.is_signed_in()
    api.http.delete(f"/v1/keys/{made['id']}")
    assert not browser.is_signed_in()


def test_rotating_the_key_without_grace_ends_the_sessions_of_the_old_secret(api):
    made = new_key(api)
    old = Browser(api, made["token"])
    body = {"grace_minutes": 0}
    token = api.http.post(f"/v1/keys/{made['id']}/rotate", json=body).json()["token"]
    assert not old.is_signed_in()
    assert Browser(api, token).is_signed_in()


# -- how long it lasts -----------------------------------------------------------------


@pytest.fixture
def signed_in(database):
    """A store, and the principal and the secret of a session in it."""
    with database.transaction() as session:
        key, _ = create_key(session, "somebody", "user")
        session.flush()
        row, token = create_session(session, key.principal(), 12 * HOUR)
    return database, row, token


def find(database, token: str, idle: timedelta = HOUR) -> Principal | None:
    with database.reading() as session:
        return find_session(session, token, idle)


def change(database, **values: object) -> None:
    with database.transaction() as session:
        session.execute(update(SessionRow).values(**values))


def test_a_session_that_is_not_used_ends(signed_in):
    database, row, token = signed_in
    change(database, last_used_at=utc_now() - HOUR)
    assert find(database, token) is None
    assert find(database, token, 2 * HOUR).session_id == row.id


def test_a_session_that_is_used_goes_on(signed_in):
    database, row, token = signed_in
    change(database, last_used_at=utc_now() - HOUR)
    with database.transaction() as session:
        note_use(session, {row.id: utc_now()})
    assert find(database, token).session_id == row.id


def test_a_session_ends_after_its_hours_however_much_it_is_used(signed_in):
    database, _, token = signed_in
    change(database, expires_at=utc_now())
    assert find(database, token) is None


def test_a_session_ends_with_its_key(signed_in):
    database, row, token = signed_in
    with database.transaction() as session:
        revoke_key(session, row.key_id)
    assert find(database, token) is None


def test_a_session_lasts_no_longer_than_its_key(database):
    ends = utc_now() + HOUR
    with database.transaction() as session:
        key, _ = create_key(session, "passing", "user", expires_at=ends)
        session.flush()
        row, _ = create_session(session, key.principal(), 12 * HOUR)
    assert row.expires_at == ends


def test_sessions_that_have_ended_are_swept_when_somebody_signs_in(signed_in):
    database, row, _ = signed_in
    change(database, expires_at=utc_now())
    with database.transaction() as session:
        other = create_key(session, "another", "user")[0]
        session.flush()
        create_session(session, other.principal(), HOUR)
    with database.reading() as session:
        assert session.get(SessionRow, row.id) is None


def test_the_last_use_is_written_down(serve):
    with serve() as api:
        browser = Browser(api)
        long_ago = utc_now() - timedelta(minutes=30)
        change(api.database, last_used_at=long_ago)
        assert browser.is_signed_in()
        settings = api.settings
    database = Database(settings.resolved_database_url)  # the API is gone and has written it
    with database.reading() as session:
        assert session.get(SessionRow, browser.session["id"]).last_used_at > long_ago
    database.dispose()
