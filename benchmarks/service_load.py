"""How fast the service answers when it is full, and MLflow's tracking server beside it.

Both get a PostgreSQL database of the same server, with that server's own defaults, and one
process that serves HTTP. The service is filled with searches and events, MLflow with as many
runs and metric values. What is copied is one row that each has written itself: a search that
was measured, trained and verified by a real worker against a device that answers by formula.
Then one client with one connection asks both in turns, a block of requests each:

    what           the service                            MLflow
    create         POST /v1/searches                      runs/create
    log_batch      upload of 100 measurements             runs/log-batch of 100 metric values
    list_first     GET /v1/searches?limit=50              runs/search, 50, newest first
    list_deep      the same, from 90 % of all on          the same, with MLflow's page token
    list_by_status ?status=succeeded                      attributes.status = 'FINISHED'
    list_by_tag    ?tag=project:p7                        tags.project = 'p7'
    read           one search                             runs/get
    events_page    200 events                             metrics/get-history, 200 values

`claim` is the transaction by which a worker takes a job, with two workers at once; `metrics` is
what Prometheus scrapes. MLflow has neither. The nearest equivalent is not the same work: a
created search is checked against a latency model and gets a job, a list says of each search why
it waits; a measurement is checked against its task's lease.

    python -m benchmarks.service_load --json --out benchmarks/results/RECORD.json

While it runs it tells on stderr what it does, and keeps what it knows in RECORD.partial.json.
The last line of the output is JSON: milliseconds by operation, and how many times as long
MLflow took (`mlflow_to_service`). `--quick` is small; it is for trying the benchmark itself.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import psycopg
from sqlalchemy import Connection, create_engine, text

from benchmarks import mlflow_server
from benchmarks.installations import installation
from benchmarks.intake_load import (
    TASKS,
    agent_token,
    api_process,
    empty_store,
    kit_subjects,
    results,
    seed,
)
from benchmarks.records import last_line, new_record, write_record
from search_core.space.blocks import BlockSpec
from search_core.space.presets import get_space
from service.db.database import Database
from service.db.migrate import migrate
from service.jobs import repository as jobs

GOALS_MS = {"list_first": 50.0, "list_deep": 50.0, "list_by_status": 50.0, "list_by_tag": 50.0}
GOALS_MS |= {"create": 30.0, "claim": 20.0}
"""Of the 99th percentile, on two cores with PostgreSQL."""

BATCH = 100
WORKERS = 2

_BUDGET_MS = 0.03
_BLOCK = 25
_WAITING = 0.1
"""Share of the searches that wait for a worker; the others have ended."""

_SETTINGS = {
    "TAILOR_REQUESTS_PER_MINUTE": "0",
    "TAILOR_AGENT_REQUESTS_PER_MINUTE": "0",
    "TAILOR_ACCOUNT_UNFINISHED_SEARCHES": "0",
    "TAILOR_CALIBRATE": "false",
}

_DRIVERS = ("psycopg", "psycopg2")
"""Ours, and the one that MLflow is installed with."""

_BEGAN = time.monotonic()

Requests = dict[str, Callable[[], None]]


@dataclass(frozen=True)
class Sizes:
    """How full the stores are, and how often each request is made."""

    searches: int
    events: int
    requests: int


# -- what is copied --------------------------------------------------------------------


@dataclass(frozen=True)
class Templates:
    """A target that can be searched, a search that succeeded there, and one that waits."""

    target: str
    succeeded: str
    waiting: str


def make_templates(home: Path, database_url: str) -> tuple[Templates, str]:
    """Let an API and a worker make one of each, and give an admin key, too."""
    settings = {"database_url": database_url, "account_unfinished_searches": "0"}
    with (
        installation(home, **settings) as made,
        httpx.Client(
            base_url=made.url, headers={"Authorization": f"Bearer {made.key}"}, timeout=120.0
        ) as client,
        device(client) as target,
    ):
        _posted(client, "/v1/kits", {"target": target, "search_space": "micro"})
        models = {"target": target}
        _until(lambda: client.get("/v1/latency-models", params=models).json()["items"])
        spec = {"target": target, "latency_budget_ms": _BUDGET_MS, "epochs": 4}
        done = _posted(client, "/v1/searches", spec)["id"]
        ended = ("succeeded", "infeasible", "failed", "cancelled")
        _until(lambda: client.get(f"/v1/searches/{done}").json()["status"] in ended)
        status = client.get(f"/v1/searches/{done}").json()["status"]
        if status != "succeeded":
            raise RuntimeError(f"the search that is to be copied has {status}")
    with api_process(database_url, home) as (url, _):
        waiting = httpx.post(
            f"{url}/v1/searches", json=spec, headers={"Authorization": f"Bearer {made.key}"}
        ).json()["id"]
    return Templates(target, done, waiting), made.key


@contextmanager
def device(client: httpx.Client) -> Iterator[str]:
    """A device that answers by formula in a thread, until the block ends; its target's id."""
    code = _posted(client, "/v1/enrolment-codes", {})["code"]
    profile = {
        "device_model": "a formula",
        "machine": "x86_64",
        "system": "none",
        "runtime": "arithmetic",
        "runtime_version": "1",
        "execution_provider": "none",
        "threads": 1,
        "precision": "float32",
        "batch": 1,
        "clock_state": "unmanaged",
    }
    body = {"code": code, "name": "formula", "agent_version": "1", "profiles": [profile]}
    made = _posted(client, "/v1/agents", body)
    stop = threading.Event()

    def work() -> None:
        headers = {"Authorization": f"Bearer {made['token']}"}
        with httpx.Client(base_url=client.base_url, headers=headers, timeout=60.0) as agent:
            while not stop.is_set():
                body = {"limit": 64, "wait_seconds": 0.5}
                if tasks := _posted(agent, "/v1/measurement-tasks/lease", body)["items"]:
                    _upload(agent, [_result(task) for task in tasks])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield made["target_ids"][0]
    finally:
        stop.set()
        thread.join()


def _result(task: dict[str, Any]) -> dict[str, Any]:
    measurement = {
        **results(0, kit_subjects()[:1])[0]["measurement"],
        **dict.fromkeys(("latency_ms", "p10_ms", "p90_ms", "thread_cpu_ms"), _formula_ms(task)),
    }
    named = {name: task[name] for name in ("fence", "model_sha256")}
    return {"task_id": task["id"], **named, "measurement": measurement}


def _formula_ms(task: dict[str, Any]) -> float:
    """A constant, and a price for every block."""
    kind, rest = task["subject"].split(":", 1)
    if kind == "block":
        block, copies = rest.rsplit(":x", 1)
        blocks = [BlockSpec.parse(block)] * int(copies)
    else:
        name, architecture = rest.split(":", 1)
        space = get_space(name.split("@")[0])
        blocks = list(space.blocks(space.parse(architecture)))
    return 0.01 + sum(1e-3 + block.macs * 1e-8 for block in blocks)


def _seed_agents(database_url: str, sizes: Sizes) -> None:
    """Agents with as many leased tasks as are uploaded."""
    database = Database(database_url)
    migrate(database)
    seed(database, -(-(sizes.requests + _BLOCK) * BATCH // TASKS))
    database.dispose()


# -- filling ---------------------------------------------------------------------------


def fill(database_url: str, templates: Templates, sizes: Sizes) -> None:
    """Copy the templates until the store is full; ids count up, and end before today's."""
    n_waiting = int(_WAITING * sizes.searches)
    with create_engine(database_url).begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no key checks
        for template, first, last in (
            (templates.succeeded, 1, sizes.searches - n_waiting),
            (templates.waiting, sizes.searches - n_waiting + 1, sizes.searches),
        ):
            _copy_search(connection, template, first, last)
        n_ended = sizes.searches - n_waiting
        steps = -(-sizes.events // n_ended)
        connection.execute(
            text(
                "INSERT INTO search_events (search_id, number, type, data, created_at) "
                f"SELECT {_ID}, m, 'metrics', jsonb_build_object('phase', 'searching', 'step', m, "
                "'metrics', jsonb_build_object('loss', round(1.0 / (1 + m), 6), "
                "'expected_ms', 0.03)), now() "
                "FROM generate_series(1, CAST(:ended AS int)) n, "
                "generate_series(1, CAST(:steps AS int)) m"
            ),
            {"ended": n_ended, "steps": steps},
        )
    with create_engine(database_url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))  # what autovacuum would soon have done


_ID = "'srch_00' || lpad(n::text, 24, '0')"
_JOB_ID = "'job_00' || lpad(n::text, 24, '0')"


def _copy_search(connection: Connection, template: str, first: int, last: int) -> None:
    """Rows like those of one search, with its job, attempts, targets and files."""
    of_job = "job_id IN (SELECT id FROM jobs WHERE subject_id = :template)"
    at = "now() - (CAST(:last AS int) + 60 - n) * interval '1 second'"
    for table, condition, changes in (
        (
            "searches",
            "id = :template",
            {
                "id": _ID,
                "created_at": at,
                "idempotency_key": "NULL",
                "tags": "jsonb_build_object('project', 'p' || n % 20)",
            },
        ),
        ("search_targets", "search_id = :template", {"search_id": _ID}),
        ("search_artifacts", "search_id = :template", {"search_id": _ID}),
        ("job_attempts", of_job, {"job_id": _JOB_ID}),
        (
            "jobs",
            "subject_id = :template",
            {"id": _JOB_ID, "subject_id": _ID, "created_at": at, "available_at": at},
        ),
    ):
        found = connection.execute(
            text("SELECT column_name FROM information_schema.columns WHERE table_name = :table"),
            {"table": table},
        )
        columns = list(found.scalars())
        selected = ", ".join(changes.get(column, f'"{column}"') for column in columns)
        names = ", ".join(f'"{column}"' for column in columns)
        connection.execute(
            text(
                f"INSERT INTO {table} ({names}) SELECT {selected} FROM {table}, "
                "generate_series(CAST(:first AS int), CAST(:last AS int)) n "
                f"WHERE {condition} ORDER BY n"
            ),
            {"template": template, "first": first, "last": last},
        )


# -- requests --------------------------------------------------------------------------


def requests(
    client: httpx.Client, agents: Callable[[int], httpx.Client], templates: Templates, sizes: Sizes
) -> Requests:
    """What is timed over HTTP, by the names of the table above."""
    spec = {"target": templates.target, "latency_budget_ms": _BUDGET_MS}
    middle = _id(sizes.searches // 2)
    batches = _batches()

    def page(**query: Any) -> Callable[[], None]:
        def ask() -> None:
            if not _got(client, "/v1/searches", limit=50, **query)["items"]:
                raise RuntimeError(f"no searches match {query}")

        return ask

    def log_batch() -> None:
        number, items = next(batches)
        _upload(agents(number), items)

    def scrape() -> None:
        client.get("/metrics").raise_for_status()

    def events() -> None:
        _got(client, f"/v1/searches/{middle}/events", after=100, limit=200)

    return {
        "create": lambda: _created(client, spec),
        "log_batch": log_batch,
        "list_first": page(),
        "list_deep": page(cursor=_id(sizes.searches // 10)),
        "list_by_status": page(status="succeeded"),
        "list_by_tag": page(tag="project:p7"),
        "read": lambda: _read(client, middle),
        "events_page": events,
        "series": lambda: _read(client, f"{middle}/metrics"),
        "metrics": scrape,
    }


def _batches() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """An agent's number and what it uploads next."""
    subjects = kit_subjects()
    for number in count():
        items = results(number, subjects)
        for begin in range(0, len(items), BATCH):
            yield number, items[begin : begin + BATCH]


def _id(number: int) -> str:
    return f"srch_00{number:024}"


def _created(client: httpx.Client, spec: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    _answer(client.post("/v1/searches", json=spec, headers=headers))


def _read(client: httpx.Client, path: str) -> None:
    _got(client, f"/v1/searches/{path}")


def _upload(client: httpx.Client, items: list[dict[str, Any]]) -> None:
    report = _posted(client, "/v1/measurements", {"batch_id": uuid.uuid4().hex, "items": items})
    refused = [item["reason"] for item in report["items"] if not item["accepted"]]
    if refused:
        raise RuntimeError(f"refused: {refused[0]}")


def _posted(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return _answer(client.post(path, json=body))


def _got(client: httpx.Client, path: str, **query: Any) -> dict[str, Any]:
    return _answer(client.get(path, params=query))


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise RuntimeError(f"{response.request.url}: {response.status_code} {response.text[:500]}")
    answer: dict[str, Any] = response.json()
    return answer


def _until(found: Callable[[], Any], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing came of it in {seconds:g} s")
        time.sleep(0.2)


# -- timing ----------------------------------------------------------------------------


def time_requests(
    sides: dict[str, Requests], n: int, tell: Callable[[str, dict[str, list[float]]], None]
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of `n` requests of each kind and side; the sides take turns by the block.

    Args:
        tell: is called with what each kind took, as soon as that is known.
    """
    kinds = list(dict.fromkeys(kind for side in sides.values() for kind in side))
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    for kind in kinds:
        asked = {name: side[kind] for name, side in sides.items() if kind in side}
        for ask in asked.values():
            ask()  # connections, plans and caches, as a server that has run for a while has them
        for _ in range(-(-n // _BLOCK)):
            for name, ask in asked.items():
                found[kind].setdefault(name, []).extend(_timed(ask) for _ in range(_BLOCK))
        tell(kind, found[kind])
    return found


def _timed(ask: Callable[[], None]) -> float:
    began = time.perf_counter()
    ask()
    return 1e3 * (time.perf_counter() - began)


def time_claims(database_url: str, n: int) -> list[float]:
    """Milliseconds of `n` claims that two workers make at once, each until it is committed."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as workers:
        asked = [workers.submit(_claims, database_url, n // WORKERS) for _ in range(WORKERS)]
        return [spent for each in asked for spent in each.result()]


def _claims(database_url: str, n: int) -> list[float]:
    database = Database(database_url)

    def claim() -> None:
        with database.transaction() as session:
            if jobs.claim(session, f"worker {os.getpid()}", 3600.0) is None:
                raise RuntimeError("nothing is left to claim")

    claim()
    spent = [_timed(claim) for _ in range(n)]
    database.dispose()
    return spent


def figures(milliseconds: Sequence[float]) -> dict[str, float | int]:
    """Median, 99th percentile and how many there were."""
    ordered = sorted(milliseconds)
    return {
        "p50_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
        "n": len(ordered),
    }


# -- the record ------------------------------------------------------------------------


def run(sizes: Sizes, work: Path, *, with_mlflow: bool, partial: Path | None) -> dict[str, Any]:
    """Fill both and time both; returns what the record says.

    Args:
        partial: where to write what is known so far.
    """
    known: dict[str, Any] = {}

    def tell(kind: str, by_side: dict[str, list[float]]) -> None:
        known[kind] = {name: figures(spent) for name, spent in by_side.items()}
        _say(f"{kind}: {known[kind]}")
        write_record({"partial": known}, partial)

    os.environ.update(_SETTINGS)
    python = mlflow_server.install(work / "mlflow") if with_mlflow else None
    with (
        tempfile.TemporaryDirectory(prefix="tailor-load-", dir=work) as folder,
        empty_store("postgres", Path(folder)) as (url, _),
    ):
        load_before = os.getloadavg()[0]
        home = Path(folder) / "home"
        _say("agents with tasks, and searches to copy")
        _seed_agents(url, sizes)
        templates, key = make_templates(home, url)
        began = time.monotonic()
        _say(f"filling the service: {sizes.searches:,} searches, {sizes.events:,} events")
        fill(url, templates, sizes)
        filled_seconds = time.monotonic() - began
        with (
            api_process(url, home) as (address, _),
            _clients(address) as new_client,
            _mlflow(python, url, sizes, Path(folder)) as other,
        ):
            client = new_client(key)
            agents = lambda number: new_client(agent_token(number))  # noqa: E731
            sides = {"service": requests(client, agents, templates, sizes), **other}
            found = time_requests(sides, sizes.requests, tell)
        found["claim"] = {"service": time_claims(url, min(sizes.requests, sizes.searches // 20))}
        tell("claim", found["claim"])
        stored = _stored(url)
    result: dict[str, dict[str, Any]] = {
        kind: {name: figures(spent) for name, spent in by_side.items()}
        for kind, by_side in found.items()
    }
    for by_side in result.values():
        if "mlflow" in by_side:
            ratio = by_side["mlflow"]["p50_ms"] / by_side["service"]["p50_ms"]
            by_side["mlflow_to_service"] = round(ratio, 2)
    return {
        "stored": stored,
        "filled_seconds": round(filled_seconds, 1),
        "result": result,
        "goals": {
            kind: {
                "p99_ms": result[kind]["service"]["p99_ms"],
                "goal_ms": goal,
                "met": result[kind]["service"]["p99_ms"] < goal,
            }
            for kind, goal in GOALS_MS.items()
        },
        "machine_load_1min": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "mlflow": mlflow_server.MLFLOW if with_mlflow else None,
        "versions": {name: version(name) for name in ("fastapi", "sqlalchemy", "psycopg")},
    }


@contextmanager
def _clients(address: str) -> Iterator[Callable[[str], httpx.Client]]:
    """Gives the one client of a token, each with one connection that it keeps."""
    clients: dict[str, httpx.Client] = {}

    def of(token: str) -> httpx.Client:
        if token not in clients:
            headers = {"Authorization": f"Bearer {token}"}
            clients[token] = httpx.Client(base_url=address, headers=headers, timeout=60.0)
        return clients[token]

    try:
        yield of
    finally:
        for client in clients.values():
            client.close()


@contextmanager
def _mlflow(
    python: Path | None, url: str, sizes: Sizes, folder: Path
) -> Iterator[dict[str, Requests]]:
    """MLflow's side, on a database of its own of the same server."""
    if python is None:
        yield {}
        return
    plain = url.replace("postgresql+psycopg:", "postgresql:")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE DATABASE mlflow")
    base, _, query = plain.partition("?")
    theirs = f"{base.rsplit('/', 1)[0]}/mlflow?{query}"
    of_driver = {name: theirs.replace("postgresql:", f"postgresql+{name}:") for name in _DRIVERS}
    _say(f"filling MLflow: {sizes.searches:,} runs, {sizes.events:,} metric values")
    with mlflow_server.mlflow_server(python, of_driver["psycopg2"], folder) as client:
        ours = of_driver["psycopg"]
        experiment = mlflow_server.fill(client, ours, sizes.searches, sizes.events)
        yield {"mlflow": mlflow_server.requests(client, experiment, sizes.searches, BATCH)}


def _say(text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - _BEGAN), 60)
    print(f"{minutes:02}:{seconds:02} {text}", file=sys.stderr, flush=True)


def _stored(url: str) -> dict[str, int]:
    tables = ("searches", "search_events", "jobs", "measurements")
    with create_engine(url).connect() as connection:
        return {
            table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in tables
        }


def main() -> None:
    """Time both and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--searches", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--requests", type=int, default=500, help="of each kind")
    parser.add_argument("--quick", action="store_true", help="500 searches, 50,000 events")
    parser.add_argument("--without-mlflow", action="store_true")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "tailor-service-load"
    )
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = (
        Sizes(500, 50_000, 50)
        if options.quick
        else Sizes(options.searches, options.events, options.requests)
    )
    options.work.mkdir(parents=True, exist_ok=True)
    options.work.chmod(0o755)  # PostgreSQL runs as another user where this one is root
    record = new_record("service_load")
    partial = options.out.with_suffix(".partial.json") if options.out is not None else None
    record |= run(sizes, options.work, with_mlflow=not options.without_mlflow, partial=partial)
    if not options.json:
        for kind, by_side in record["result"].items():
            print(f"{kind:15} {by_side}", flush=True)
    write_record(record, options.out)
    if partial is not None:
        partial.unlink()
    last_line(record)


if __name__ == "__main__":
    main()
