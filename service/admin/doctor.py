"""What is wrong with an installation, and what to do about each thing."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from service.admin import repository
from service.admin.cleaning import orphans
from service.artifacts import ArtifactStore
from service.db.base import utc_now
from service.db.database import Database, store_time
from service.db.migrate import newest_revision, revision_of
from service.errors import NotFoundError
from service.operations.checks import local_folders
from service.operations.repository import agents_online, workers_online
from service.settings import Settings
from service.telemetry import logger

_SKEW_SECONDS = 2.0
_SAMPLE = 50
_NAMED = 5

_log = logger(__name__)


Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    Attributes:
        level: an `error` keeps something from working, a `warning` will or might.
        text: what it is and what to do.
    """

    level: Level
    check: str
    text: str


@dataclass(frozen=True)
class Examination:
    """What was looked at, and what was found."""

    checks: list[str]
    findings: list[Finding]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing was found that keeps something from working."""
        return all(finding.level != "error" for finding in self.findings)


@dataclass(frozen=True)
class _Installation:
    settings: Settings
    database: Database
    artifacts: ArtifactStore
    deep: bool


_Found = Iterator[tuple[Level, str]]


def examine(
    settings: Settings, database: Database, artifacts: ArtifactStore, *, deep: bool
) -> Examination:
    """Look at everything; `deep` reads every file and compares its hash."""
    installation = _Installation(settings, database, artifacts, deep)
    findings: list[Finding] = []
    for name, check in _CHECKS.items():
        try:
            findings += [Finding(level, name, text) for level, text in check(installation)]
        except Exception as error:  # one part that does not answer must not hide the others
            _log.exception("a check failed", check=name)
            text = f"{type(error).__name__} while it was looked at; the log says more"
            findings.append(Finding("error", name, text))
        if name == "store" and findings:
            return Examination([name], findings)  # all others ask the store
    return Examination(list(_CHECKS), findings)


def _store(its: _Installation) -> _Found:
    found, newest = revision_of(its.database), newest_revision()
    if found != newest:
        yield _error(
            f"the store's schema is {found or 'empty'}, this version's is {newest}; run "
            "`tailor admin migrate`"
        )


def _artifacts(its: _Installation) -> _Found:
    its.artifacts.check()
    yield from ()


def _disk(its: _Installation) -> _Found:
    for folder in local_folders(its.settings):
        free = shutil.disk_usage(folder).free
        if free < its.settings.free_disk_bytes:
            yield _error(f"{folder} has {free / 2**20:.0f} MiB left; make room")
        elif free < 4 * its.settings.free_disk_bytes:
            yield _warning(f"{folder} has {free / 2**20:.0f} MiB left; make room soon")


def _clock(its: _Installation) -> _Found:
    with its.database.reading() as session:
        now = store_time(session)
    skew = (now - utc_now()).total_seconds()
    if abs(skew) > _SKEW_SECONDS:
        yield _warning(
            f"the clock of the database is {skew:+.1f} s off this machine's; keep both in step "
            "(NTP), since leases and signatures are told by them"
        )


def _workers(its: _Installation) -> _Found:
    with its.database.reading() as session:
        n, _ = workers_online(session, its.settings.worker_offline_seconds)
    if n == 0:
        yield _warning("no worker is online, so every search waits; start `tailor worker`")


def _agents(its: _Installation) -> _Found:
    with its.database.reading() as session:
        found = agents_online(session, its.settings.agent_offline_seconds)
    for of in found:
        if not of.n_online:
            yield _warning(
                f"none of the {of.n} agents of {of.name} is online, so nothing is measured there; "
                "start `tailor agent run` on one"
            )


def _stuck(its: _Installation) -> _Found:
    with its.database.reading() as session:
        overdue = repository.jobs_overdue(session, its.settings.job_lease_seconds)
        orphaned = repository.searches_without_job(session)
    if overdue:
        yield _error(
            f"{_listed(overdue, 'job')} have leases that ran out and that nobody reaps; start an "
            "API or a worker"
        )
    if orphaned:
        yield _error(
            f"{_listed(orphaned, 'search')} will never end, as no job is left to end them; cancel "
            "them with `tailor search cancel`"
        )


def _files(its: _Installation) -> _Found:
    with its.database.reading() as session:
        named = (
            sorted(set(repository.artifact_references(session)))
            if its.deep
            else repository.latest_artifacts(session, _SAMPLE)
        )
    bad = [sha256 for sha256 in named if not _is_whole(its.artifacts, sha256, deep=its.deep)]
    if bad:
        yield _error(
            f"{_listed(bad, 'file')} are missing from the artifact store or damaged; bring them "
            "back from a backup"
        )


def _is_whole(artifacts: ArtifactStore, sha256: str, *, deep: bool) -> bool:
    if not deep:
        return artifacts.has(sha256)
    try:
        return artifacts.digest(sha256) == sha256
    except (NotFoundError, OSError):
        return False


def _keys(its: _Installation) -> _Found:
    with its.database.reading() as session:
        n_admins, expired = repository.admin_keys(session), repository.expired_keys(session)
    if n_admins == 0:
        yield _error("no admin key is valid; make one with `tailor admin key NAME`")
    if expired:
        yield (
            "warning",
            f"{_listed(expired, 'key')} have expired; revoke them with `tailor keys revoke`",
        )


def _webhooks(its: _Installation) -> _Found:
    with its.database.reading() as session:
        disabled = repository.disabled_webhooks(session)
    if disabled:
        yield _warning(
            f"{_listed(disabled, 'webhook')} were switched off as nobody answered; see "
            "`tailor webhooks list`"
        )


def _orphans(its: _Installation) -> _Found:
    oldest_kept = utc_now() - timedelta(hours=its.settings.artifact_grace_hours)
    found = list(orphans(its.database, its.artifacts, oldest_kept))
    if found:
        size = sum(file.n_bytes for file in found) / 2**20
        yield _warning(
            f"{len(found)} files of {size:.1f} MiB are named by no row; `tailor admin gc` removes "
            "them"
        )


def _error(text: str) -> tuple[Level, str]:
    return "error", text


def _warning(text: str) -> tuple[Level, str]:
    return "warning", text


def _listed(names: Sequence[str], what: str) -> str:
    """``2 jobs (a, b)``: the first few by name."""
    more = ", ..." if len(names) > _NAMED else ""
    plural = {"search": "searches"}.get(what, f"{what}s")
    return f"{len(names)} {plural} ({', '.join(names[:_NAMED])}{more})"


_CHECKS: dict[str, Callable[[_Installation], _Found]] = {
    "store": _store,
    "artifacts": _artifacts,
    "disk": _disk,
    "clock": _clock,
    "workers": _workers,
    "agents": _agents,
    "stuck": _stuck,
    "files": _files,
    "orphans": _orphans,
    "keys": _keys,
    "webhooks": _webhooks,
}
