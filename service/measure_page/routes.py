"""Routes of the measuring page and of the files it loads; none of them needs a key."""

import gzip
from functools import cache
from html import escape
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response

from service.errors import NotFoundError
from service.version import VERSION

router = APIRouter(tags=["measuring page"], include_in_schema=False)

_STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; style-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    # these two isolate the page: only then are there threads and a clock of 5 µs
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",  # the address holds the enrolment code
    "X-Content-Type-Options": "nosniff",
}


@router.get("/measure/{code}")
def measuring_page(code: str) -> Response:  # noqa: ARG001  the page reads it from its address
    """The page; whether the code is good is said once somebody presses Start."""
    page = (_STATIC / "page.html").read_text(encoding="utf-8")
    return Response(
        page.replace("{{version}}", escape(VERSION, quote=True)),
        media_type="text/html; charset=utf-8",
        headers={**_HEADERS, "Cache-Control": "no-cache"},
    )


@router.get("/measure-page/{path:path}")
def static_file(path: str, accept_encoding: Annotated[str, Header()] = "") -> Response:
    """One of the page's own files, or of the runtime it ships.

    Raises:
        NotFoundError: the page has no such file.
    """
    file = _files().get(path)
    if file is None:
        raise NotFoundError(f"the measuring page has no file {path!r}")
    vendored = path.startswith("vendor/")  # its folder names the version, so it never changes
    headers = {
        **_HEADERS,
        "Cache-Control": "public, max-age=31536000, immutable" if vendored else "no-cache",
    }
    body = file.read_bytes()
    if file.suffix == ".gz":
        headers["Vary"] = "Accept-Encoding"
        if _accepts_gzip(accept_encoding):
            headers["Content-Encoding"] = "gzip"
        else:
            body = gzip.decompress(body)
    return Response(body, media_type=_TYPES[Path(path).suffix], headers=headers)


@cache
def _files() -> dict[str, Path]:
    """What may be asked for, by its path below `static/` without ``.gz``."""
    found = {}
    for file in _STATIC.rglob("*"):
        name = file.relative_to(_STATIC).as_posix().removesuffix(".gz")
        if Path(name).suffix in _TYPES:
            found[name] = file
    return found


def _accepts_gzip(accept_encoding: str) -> bool:
    for item in accept_encoding.lower().split(","):
        name, _, weight = item.partition(";")
        if name.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
