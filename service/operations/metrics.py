"""What Prometheus is told: what this process has seen, and what the store says now.

The store's numbers are the same from every API of an installation; the requests are those of
the process that answers.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from service.db.database import Database
from service.operations import repository
from service.searches.feed import SearchFeed
from service.settings import Settings
from service.telemetry import logger
from service.version import VERSION

FRESH_SECONDS = 5.0
"""How old the store's numbers may be."""

SLOW_SECONDS = 60.0
"""The same for those that grow with everything that ever happened."""

_BUCKETS_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_QUANTILES = (0.5, 0.9)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time for every series, which nobody asks for
_log = logger(__name__)


class Instruments:
    """Counts what this process does, and asks the store for the rest when it is scraped."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "tailor_http_request_seconds",
            "Requests by route template; a streamed answer until its end.",
            ["method", "route", "status"],
            buckets=_BUCKETS_SECONDS,
            registry=self._registry,
        )
        self._items = Counter(
            "tailor_uploaded_items",
            "Items of uploads to this process, by what was answered.",
            ["outcome", "reason"],
            registry=self._registry,
        )
        self._streams = Gauge(
            "tailor_event_streams",
            "Clients that follow events of this process.",
            registry=self._registry,
        )
        Gauge(
            "tailor_build_info", "What is installed.", ["version"], registry=self._registry
        ).labels(VERSION).set(1)

    def watch(self, settings: Settings, database: Database, feed: SearchFeed) -> None:
        """Ask the feed and the store from now on, whenever the metrics are asked for."""
        self._streams.set_function(lambda: feed.open_streams)
        parts = [_Part(_now(settings), FRESH_SECONDS), _Part(_history, SLOW_SECONDS)]
        self._registry.register(_StoreCollector(database, parts))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(method, route, status).observe(seconds)

    def uploaded(self, reason: str | None) -> None:
        """Count one item of an upload; `reason` says why it was refused."""
        outcome = "accepted" if reason is None else "rejected"
        code = (reason or "").partition(":")[0]
        self._items.labels(outcome, code).inc()

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


def _instruments(request: Request) -> Instruments:
    instruments: Instruments = request.app.state.instruments
    return instruments


CurrentInstruments = Annotated[Instruments, Depends(_instruments)]


class _StoreCollector(Collector):
    """Asks the store no oftener than it must, however many scrape; says when it is silent."""

    def __init__(self, database: Database, parts: list["_Part"]) -> None:
        self._database = database
        self._parts = parts
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """Nothing: the store is not asked before somebody scrapes."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The store's numbers, and whether it answered."""
        with self._lock:
            answered = True
            for part in self._parts:
                try:
                    part.refresh(self._database)
                except Exception:  # the rest of the metrics says what this process has seen
                    _log.exception("the store does not answer the metrics")
                    answered = False
            yield _gauge("store_up", "Whether the store answered.", [], [(int(answered),)])
            if answered:
                for part in self._parts:
                    yield from part.found


class _Part:
    """Numbers that are read together, and how old they may be."""

    def __init__(self, read: Callable[[Session], Iterable[Metric]], seconds: float) -> None:
        self.found: list[Metric] = []
        self._read = read
        self._seconds = seconds
        self._until = 0.0

    def refresh(self, database: Database) -> None:
        """Read them again if they are too old."""
        if time.monotonic() >= self._until:
            with database.reading() as session:
                self.found = list(self._read(session))
            self._until = time.monotonic() + self._seconds


def _now(settings: Settings) -> Callable[[Session], Iterator[Metric]]:
    def read(session: Session) -> Iterator[Metric]:
        yield from _queue(session)
        yield _gauge(
            "searches",
            "Searches that have not ended.",
            ["status"],
            repository.open_searches(session),
        )
        yield from _devices(session, settings)
        yield from _predictors(session)

    return read


def _queue(session: Session) -> Iterator[Metric]:
    depths = repository.queue_depths(session)
    yield _gauge(
        "queue_depth", "Jobs that wait for a worker.", ["kind"], [(d.kind, d.n) for d in depths]
    )
    yield _gauge(
        "queue_oldest_seconds",
        "How long the oldest of them has existed.",
        ["kind"],
        [(d.kind, d.oldest_seconds) for d in depths],
    )
    jobs = repository.open_jobs(session)
    yield _gauge(
        "jobs",
        "Jobs that have not ended; blocked ones wait for a measurement or a model.",
        ["kind", "status"],
        [(kind, "blocked" if blocked else status, n) for kind, status, blocked, n in jobs],
    )
    overdue = repository.overdue_leases(session)
    yield _gauge("job_leases_overdue", "Leases that ran out, not yet reaped.", [], [(overdue,)])


def _devices(session: Session, settings: Settings) -> Iterator[Metric]:
    agents = repository.agents_online(session, settings.agent_offline_seconds)
    labels = ["target", "target_name"]
    yield _gauge("agents", "Agents enrolled.", labels, [(t, name, n) for t, name, n, _ in agents])
    yield _gauge(
        "agents_online",
        "Agents heard of lately.",
        labels,
        [(t, name, n) for t, name, _, n in agents],
    )
    accepted, rejected, flagged = repository.uploaded_items(session)
    yield _counter(
        "measurements",
        "Items that agents uploaded to any process.",
        ["outcome"],
        [("accepted", accepted), ("rejected", rejected), ("flagged", flagged)],
    )
    n, slots = repository.workers_online(session, settings.worker_offline_seconds)
    yield _gauge("workers_online", "Workers that are there.", [], [(n,)])
    yield _gauge("worker_slots", "Attempts that they run at once.", [], [(slots,)])


def _predictors(session: Session) -> Iterator[Metric]:
    labels = ["target", "target_name", "space"]
    models = repository.active_models(session)
    for name, text in (
        ("mape", "Mean absolute error of the active model on networks it has not seen, relative."),
        ("within_10", "Share of these that it predicts within 10 %."),
    ):
        rows = [(t, n, space, errors[name]) for t, n, space, errors in models if errors]
        yield _gauge(f"predictor_{name}", text, labels, rows)


def _history(session: Session) -> Iterator[Metric]:
    outcomes = repository.search_outcomes(session)
    yield _counter(
        "searches_ended",
        "Searches that ended, by status and reason.",
        ["status", "reason"],
        [(status, reason or "", n) for status, reason, n in outcomes],
    )
    attempts = repository.attempt_outcomes(session)
    yield _counter("job_attempts", "Attempts that ended.", ["outcome"], attempts.items())
    yield _counter(
        "job_leases_expired",
        "Attempts whose worker was lost.",
        [],
        [(attempts.get("worker_lost", 0),)],
    )
    yield _gauge(
        "search_phase_seconds",
        "What the latest 200 searches that ended spent in a phase.",
        ["phase", "quantile"],
        [
            (phase, str(q), seconds[min(len(seconds) - 1, int(q * len(seconds)))])
            for phase, seconds in repository.phase_seconds(session).items()
            for q in _QUANTILES
        ],
    )
    yield _gauge(
        "webhook_deliveries",
        "Deliveries in the log, by status.",
        ["status"],
        repository.deliveries(session),
    )


def _gauge(name: str, text: str, labels: list[str], rows: Iterable[Iterable[object]]) -> Metric:
    return _filled(GaugeMetricFamily(f"tailor_{name}", text, labels=labels), rows)


def _counter(name: str, text: str, labels: list[str], rows: Iterable[Iterable[object]]) -> Metric:
    return _filled(CounterMetricFamily(f"tailor_{name}", text, labels=labels), rows)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, rows: Iterable[Iterable[object]]
) -> Metric:
    """The family with a sample a row: its labels, then its value."""
    for row in rows:
        *labels, value = row
        family.add_metric([str(label) for label in labels], float(str(value)))
    return family
