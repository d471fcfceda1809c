"""The measuring page's files as they are served: types, headers, and nothing beyond the list."""

import gzip
import hashlib
import re
from pathlib import Path

import pytest

import service.measure_page
from service.version import VERSION

STATIC = Path(service.measure_page.__file__).parent / "static"
VENDORED = "vendor/onnxruntime-web-1.30.0"
OWN = sorted(path.name for path in STATIC.iterdir() if path.suffix in (".js", ".css", ".svg"))


@pytest.fixture(scope="module")
def http(api):
    return api.client()


def directives(answer) -> dict[str, str]:
    policy = answer.headers["Content-Security-Policy"]
    return dict(part.strip().split(" ", 1) for part in policy.split(";"))


def assert_isolated(answer) -> None:
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert directives(answer)["default-src"] == "'none'"


def test_the_page_opens_for_any_code_and_names_its_version(http):
    answer = http.get("/measure/ABCD-EFGH-JKLM")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert f'<meta name="tailor-version" content="{VERSION}">' in answer.text
    assert "{{" not in answer.text
    assert_isolated(answer)


def test_a_code_with_markup_in_it_is_not_written_into_the_page(http):
    answer = http.get("/measure/%3Cscript%3Ealert(1)")
    assert answer.status_code == 200
    assert "alert(1)" not in answer.text


def test_the_policy_lets_nothing_run_that_is_not_ours(http):
    policy = directives(http.get("/measure/X"))
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    page = (STATIC / "page.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)


@pytest.mark.parametrize("name", OWN)
def test_each_of_the_pages_own_files_is_served_and_asked_for_again(http, name):
    answer = http.get(f"/measure-page/{name}")
    assert answer.content == (STATIC / name).read_bytes()
    kind = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert answer.headers["Content-Type"].startswith(kind[Path(name).suffix])
    assert answer.headers["Cache-Control"] == "no-cache"
    assert_isolated(answer)


def test_no_own_file_names_another_host():
    for path in STATIC.iterdir():
        if path.is_file():
            named = set(re.findall(r"\b(?:https?:)?//[\w.-]+\.[a-z]{2,}", path.read_text()))
            assert named <= {"http://www.w3.org"}, path.name


@pytest.mark.parametrize("accepted", ["gzip, deflate, br", "*", "br, gzip;q=0.5", "GZIP"])
def test_the_runtime_is_served_as_it_is_stored_to_who_accepts_gzip(http, accepted):
    name = f"{VENDORED}/ort-wasm-simd-threaded.wasm"
    with http.stream(
        "GET", f"/measure-page/{name}", headers={"Accept-Encoding": accepted}
    ) as answer:
        sent = b"".join(answer.iter_raw())
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Content-Type"] == "application/wasm"
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert sent == (STATIC / f"{name}.gz").read_bytes()


@pytest.mark.parametrize("accepted", ["identity", "br", "gzip;q=0", "gzip; q=0.0"])
def test_the_runtime_is_unpacked_for_who_does_not_accept_gzip(http, accepted):
    name = f"{VENDORED}/ort-wasm-simd-threaded.wasm"
    answer = http.get(f"/measure-page/{name}", headers={"Accept-Encoding": accepted})
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Content-Type"] == "application/wasm"
    assert answer.content[:4] == b"\0asm"
    assert answer.content == gzip.decompress((STATIC / f"{name}.gz").read_bytes())


@pytest.mark.parametrize(
    "path",
    [
        "",
        "nothing.js",
        "page.html",
        "../routes.py",
        "..%2Froutes.py",
        "%2e%2e/routes.py",
        "vendor/../../routes.py",
        "vendor%2F..%2F..%2Froutes.py",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "..\\routes.py",
        f"{VENDORED}/VENDOR.md",
        f"{VENDORED}/ort-wasm-simd-threaded.wasm.gz",
        f"{VENDORED}/",
    ],
)
def test_nothing_else_is_served(http, path):
    answer = http.get(f"/measure-page/{path}")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "not_found"


def test_what_is_vendored_is_what_its_record_says():
    folder = STATIC / VENDORED
    record = (folder / "VENDOR.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\| `(\w{64})` \| `(\w{64})` \|$", record, re.MULTILINE)
    assert {name for name, _, _ in rows} == {path.name for path in folder.iterdir()} - {"VENDOR.md"}
    for name, stored, unpacked in rows:
        data = (folder / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == stored, name
        data = gzip.decompress(data) if name.endswith(".gz") else data
        assert hashlib.sha256(data).hexdigest() == unpacked, name


def test_the_page_runs_the_version_that_is_vendored():
    script = (STATIC / "runtime.js").read_text()
    assert f"vendor/onnxruntime-web-{'${RUNTIME_VERSION}'}" in script
    assert 'RUNTIME_VERSION = "1.30.0"' in script
    assert "v1.30.0" in (STATIC / VENDORED / "ort.wasm.min.mjs").read_text()[:200]
