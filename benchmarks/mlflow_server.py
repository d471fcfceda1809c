"""MLflow's tracking server as a process, full of runs, and the requests that are timed there.

MLflow is installed into an environment of its own; nothing of the project imports it.
"""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, create_engine, text

MLFLOW = "mlflow==3.18.0"

_PATIENCE_SECONDS = 180.0


def install(folder: Path) -> Path:
    """The Python of an environment in `folder` that has MLflow, made there if it is not."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, MLFLOW, "psycopg2-binary"], check=True)
    return python


@contextmanager
def mlflow_server(python: Path, database_url: str, folder: Path) -> Iterator[httpx.Client]:
    """A client of a server with one worker process, as many as the API it is compared with has."""
    port = _free_port()
    words = [
        *(
            str(python),
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ),
        *("--backend-store-uri", database_url, "--no-serve-artifacts"),
        *("--default-artifact-root", str(folder / "mlflow-artifacts")),
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    with (
        (folder / "mlflow.log").open("wb") as log,
        subprocess.Popen(words, stdout=log, stderr=log, env=environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client,
    ):
        try:
            _wait(client, process, folder / "mlflow.log")
            yield client
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"MLflow did not start: {log.read_text(encoding='utf-8')[-2000:]}")


# -- content ---------------------------------------------------------------------------


def fill(client: httpx.Client, database_url: str, n_runs: int, n_metrics: int) -> str:
    """So many runs and metric values in one experiment, whose id is returned.

    One run is made over HTTP and its rows are copied, so that each row is as MLflow writes it.
    """
    experiment: str = _post(client, "experiments/create", {"name": "load"})["experiment_id"]
    made = _post(client, "runs/create", {"experiment_id": experiment, "start_time": 1})
    template: str = made["run"]["info"]["run_id"]
    log = {"key": "loss", "value": 0.5, "timestamp": 1, "step": 0}
    tags = [{"key": "project", "value": "p0"}]
    params = [{"key": "lr", "value": "0.1"}]
    _post(
        client,
        "runs/log-batch",
        {"run_id": template, "metrics": [log], "tags": tags, "params": params},
    )
    engine = create_engine(database_url)
    values = {"template": template, "runs": n_runs, "steps": n_metrics // n_runs}
    for table, changes in {
        "runs": {"run_uuid": "md5(n::text)", "start_time": "n * 1000", "status": "'FINISHED'"},
        "tags": {
            "run_uuid": "md5(n::text)",
            "value": "CASE key WHEN 'project' THEN 'p' || n % 20 ELSE value END",
        },
        "params": {"run_uuid": "md5(n::text)"},
        "latest_metrics": {"run_uuid": "md5(n::text)", "step": "CAST(:steps AS int) - 1"},
    }.items():
        _copy(engine, table, changes, "generate_series(1, CAST(:runs AS int)) n", values)
    steps = {"run_uuid": "md5(n::text)", "step": "m", "timestamp": "m", "value": "1.0 / (1 + m)"}
    series = (
        "generate_series(1, CAST(:runs AS int)) n, generate_series(0, CAST(:steps AS int) - 1) m"
    )
    _copy(engine, "metrics", steps, series, values)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()
    return experiment


def _copy(
    engine: Engine, table: str, changes: dict[str, str], series: str, values: dict[str, Any]
) -> None:
    """Rows like those of the template run, one for each row of the series."""
    with engine.begin() as connection:
        found = connection.execute(
            text("SELECT column_name FROM information_schema.columns WHERE table_name = :table"),
            {"table": table},
        )
        columns = list(found.scalars())
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no key checks
        selected = ", ".join(changes.get(column, f'"{column}"') for column in columns)
        names = ", ".join(f'"{column}"' for column in columns)
        statement = (
            f"INSERT INTO {table} ({names}) SELECT {selected} FROM {table}, {series} "
            "WHERE run_uuid = :template"
        )
        used = {name: value for name, value in values.items() if f":{name}" in statement}
        connection.execute(text(statement), used)


# -- requests --------------------------------------------------------------------------


def requests(
    client: httpx.Client, experiment: str, n_runs: int, batch: int
) -> dict[str, Callable[[], None]]:
    """What is timed, by the same names as the service's."""
    numbers = count(1)
    run = {"run_id": _run_id(n_runs // 2)}
    search = {"experiment_ids": [experiment], "max_results": 50}
    newest_first = {**search, "order_by": ["attributes.start_time DESC"]}

    def log_batch() -> None:
        first = next(numbers) * batch
        metrics = [
            {"key": "loss", "value": 0.5, "timestamp": 1, "step": 1_000_000 + first + i}
            for i in range(batch)
        ]
        _post(client, "runs/log-batch", {**run, "metrics": metrics})

    def list_runs(**more: Any) -> Callable[[], None]:
        return lambda: _expect_runs(_post(client, "runs/search", {**newest_first, **more}))

    return {
        "create": lambda: _ok(
            _post(client, "runs/create", {"experiment_id": experiment, "start_time": 10**15})
        ),
        "log_batch": log_batch,
        "list_first": list_runs(),
        "list_deep": list_runs(page_token=_page_token(int(0.9 * n_runs))),
        "list_by_status": list_runs(filter="attributes.status = 'FINISHED'"),
        "list_by_tag": list_runs(filter="tags.project = 'p7'"),
        "read": lambda: _ok(_get(client, "runs/get", run)),
        "events_page": lambda: _ok(
            _get(client, "metrics/get-history", {**run, "metric_key": "loss", "max_results": "200"})
        ),
    }


def _run_id(number: int) -> str:
    import hashlib

    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


def _page_token(offset: int) -> str:
    """What MLflow gives for the page that begins after so many runs."""
    return base64.b64encode(json.dumps({"offset": offset}).encode()).decode()


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return _answer(client.post(f"/api/2.0/mlflow/{path}", json=body))


def _get(client: httpx.Client, path: str, query: dict[str, str]) -> dict[str, Any]:
    return _answer(client.get(f"/api/2.0/mlflow/{path}", params=query))


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        raise RuntimeError(f"{response.request.url}: {response.status_code} {response.text[:500]}")
    answer: dict[str, Any] = response.json()
    return answer


def _ok(answer: dict[str, Any]) -> None:
    if not answer:
        raise RuntimeError("MLflow answered nothing")


def _expect_runs(answer: dict[str, Any]) -> None:
    if not answer.get("runs"):
        raise RuntimeError("MLflow found no runs")
