"""Thirty searches, and every file they exported measured again by someone else.

Three targets of this machine (ONNX Runtime on one thread and on two, WebAssembly in headless
Chromium), five budgets spread over what each can do, two seeds: through the API, a worker and
real agents, as a user would. Then the files are put to the agents again, in random order, in
rounds for which every agent process and the browser are started anew. Of each file this gives
one median a round; their mean has a 95 % interval over the rounds (Student's t), and a file whose
interval holds the budget gets more rounds.

    python -m benchmarks.guarantee --json --out benchmarks/results/RECORD.json --work FOLDER

`above_budget` counts searches whose interval lies above the budget; `median_slack` is the
median of (budget - measured) / budget. Budgets that no network can meet are asked for, too:
how long the refusal takes, and whether it names the fastest reachable latency. Nothing is
dropped: what ended otherwise than `succeeded` and what could not be measured again is counted
by name, and so is each search that was asked for anew because the device was too noisy for it.

A run that was cut off goes on when it is started again with the same ``--work``: searches are
created under idempotency keys, and measurements stay in the store. The last line is JSON.
"""

import argparse
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from benchmarks.installations import Installation, installation
from benchmarks.records import last_line, new_record, plot_intervals, write_record
from service.client.client import Client
from service.client.errors import ApiError
from service.db.database import Database
from service.latency_models.schemas import LatencyModelRead
from service.measurements.models import Measurement, MeasurementTask
from service.measurements.repository import add_task
from service.searches.schemas import TERMINAL, SearchRead
from service.settings import Settings

REACH = {"above_budget": 0, "median_slack": 0.04, "slowest_refusal_seconds": 1.0}
SPACE = "micro"
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
SEEDS = (0, 1)
EPOCHS = 6
ROUNDS, MOST_ROUNDS = 3, 6
IMPOSSIBLE = (0.05, 0.5, 0.9, 0.98)
"""Budgets as shares of the fastest reachable latency."""

_AGAIN = "again"
"""Purpose of the tasks by which files are measured again."""

_RETRIES = 2
"""How often a search that the device was too noisy for is asked for anew."""

_LIMIT_SECONDS = 1800.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Case:
    """One search of the thirty."""

    target_name: str
    share: float
    seed: int


def main() -> int:
    """Search, measure again, refuse; 0 when every number was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one search a target, two rounds")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--json", action="store_true", help="only the record")
    parser.add_argument("--out", type=Path, help="write the record here, and a picture beside it")
    parser.add_argument("--work", type=Path, help="the installation; go on with what is there")
    arguments = parser.parse_args()
    say = (lambda _: None) if arguments.json else partial(print, flush=True)
    shares, seeds, rounds = (SHARES, SEEDS, ROUNDS) if not arguments.quick else ((0.5,), (0,), 2)
    cases = [Case(*each) for each in product(arguments.targets, shares, seeds)]

    with ExitStack() as stack:
        if (work := arguments.work) is None:
            made = tempfile.TemporaryDirectory(prefix="tailor-guarantee-")
            work = Path(stack.enter_context(made))
        began = time.monotonic()
        run = stack.enter_context(_running(work.resolve(), say))
        models = run.prepare(arguments.targets)
        refusals = run.refusals(models)
        searches = run.search(models, cases)
        run.measure_again(searches, rounds)
        record = {
            **new_record("guarantee"),
            "space": SPACE,
            "epochs": EPOCHS,
            "profiles": run.profiles(arguments.targets),
            "minutes": round((time.monotonic() - began) / 60, 1),
            "load_average": round(os.getloadavg()[0], 2),
            **run.verdict(searches, rounds),
            **refusals,
            "to_reach": REACH,
        }
    record["reached"] = (
        record["above_budget"] <= REACH["above_budget"]
        and record["median_slack"] is not None
        and record["median_slack"] <= REACH["median_slack"]
        and record["slowest_refusal_seconds"] < REACH["slowest_refusal_seconds"]
        and record["refused"] == record["impossible"]
        and record["measured_again"] == record["succeeded"] > 0
    )
    write_record(record, arguments.out)
    if arguments.out is not None:
        _plot(record["searches"], arguments.out.with_suffix(".svg"))
    last_line(record, leave_out=("searches", "refusals"))
    return 0 if record["reached"] else 1


# -- devices ---------------------------------------------------------------------------


class _Device:
    """An agent of this machine whose process comes and goes; its state stays."""

    def __init__(self, service: Installation, state: Path) -> None:
        self._service, self._state = service, state

    def code(self, client: Client) -> str:
        """The code it was enrolled with, made when it is asked for first."""
        path = self._state / "code"
        if not path.exists():
            self._state.mkdir(parents=True, exist_ok=True)
            path.write_text(client.create_enrolment_code(SPACE).code, encoding="ascii")
        return path.read_text(encoding="ascii")

    @contextmanager
    def measuring(self, client: Client) -> Iterator[None]:
        """Meanwhile it measures what it is given, in a fresh process."""
        raise NotImplementedError


class _Cpu(_Device):
    """`tailor agent run` with so many threads."""

    def __init__(self, service: Installation, state: Path, threads: int) -> None:
        super().__init__(service, state)
        self._threads = threads

    @contextmanager
    def measuring(self, client: Client) -> Iterator[None]:
        agent = [sys.executable, "-m", "service.cli", "agent"]
        state = ["--state", str(self._state)]
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        if not (self._state / "identity.json").exists():
            words = ["--url", self._service.url, "--threads", str(self._threads)]
            name = ["--name", f"cpu {self._threads}"]
            enrol = [*agent, "enrol", self.code(client), *words, *name, *state]
            subprocess.run(enrol, check=True, env=environment, stdout=subprocess.DEVNULL)
        with (self._state / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                [*agent, "run", *state], env=environment, stdout=log, stderr=log
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


class _Browser(_Device):
    """The measuring page in headless Chromium, as a person would have it open."""

    _FLAGS = (
        *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    )

    @contextmanager
    def measuring(self, client: Client) -> Iterator[None]:
        from playwright.sync_api import sync_playwright

        names = ("chromium", "chromium-browser", "google-chrome")
        found = os.environ.get("TAILOR_CHROMIUM") or next(
            filter(None, map(shutil.which, names)), None
        )
        with sync_playwright() as playwright:
            context = playwright.chromium.launch_persistent_context(
                self._state / "profile", executable_path=found, args=list(self._FLAGS)
            )
            page = context.new_page()
            page.goto(f"{self._service.url}/measure/{self.code(client)}")
            page.wait_for_selector("body:not([data-state=loading])")
            if page.evaluate("tailor.store.read('identity')") is None:
                page.wait_for_selector("body[data-state=ready]")
                page.get_by_label("Name of this device").fill("browser")
                page.get_by_role("button", name="Start").click()
            try:
                yield
            finally:
                context.close()


TARGETS: dict[str, Callable[[Installation, Path], _Device]] = {
    "cpu-1": lambda service, state: _Cpu(service, state, 1),
    "cpu-2": lambda service, state: _Cpu(service, state, 2),
    "wasm": _Browser,
}


# -- the run ---------------------------------------------------------------------------


@contextmanager
def _running(work: Path, say: Callable[[str], None]) -> Iterator["_Run"]:
    home = work / "service"
    with installation(home, attempt_threads="1") as service:
        database = Database(Settings(home=home).resolved_database_url)
        with Client(service.url, service.key) as client:
            yield _Run(work, service, client, database, say)
        database.dispose()


class _Run:
    """One installation with its devices."""

    def __init__(
        self,
        work: Path,
        service: Installation,
        client: Client,
        database: Database,
        say: Callable[[str], None],
    ) -> None:
        self._service, self._client, self._database, self._say = service, client, database, say
        self._devices = {n: make(service, work / f"device {n}") for n, make in TARGETS.items()}
        self._targets: dict[str, str] = {}
        self._tries: dict[Case, int] = {}

    def profiles(self, names: Sequence[str]) -> dict[str, Any]:
        """What each target is."""
        return {name: self._client.target(self._targets[name]).profile for name in names}

    def prepare(self, names: Sequence[str]) -> dict[str, LatencyModelRead]:
        """Measure the space on each target, one after the other; the models, by target."""
        models = {}
        for name in names:
            with self._devices[name].measuring(self._client):
                target = self._await(partial(self._target, name), f"{name} enrols")
                self._targets[name] = target
                models[name] = self._await(
                    partial(self._client.active_latency_model, target, SPACE),
                    f"{name} is measured",
                )
            model = models[name]
            self._say(f"{name}: {model.fastest_ms:.4g} to {model.slowest_ms:.4g} ms")
        return models

    def refusals(self, models: dict[str, LatencyModelRead]) -> dict[str, Any]:
        """Ask for what cannot be: how fast it is refused, and with what."""
        asked = []
        for name, share in product(models, IMPOSSIBLE):
            budget_ms = share * models[name].fastest_ms
            spec = self._spec(Case(name, 0.0, 0), budget_ms)
            began = time.perf_counter()
            try:
                self._client.create_search(**spec)
                problem: dict[str, Any] = {"code": "accepted"}
            except ApiError as error:
                problem = error.problem
            seconds = time.perf_counter() - began
            refused = (
                problem["code"] == "budget_unreachable"
                and problem["fastest_ms"] == models[name].fastest_ms
            )
            asked.append(
                {"target": name, "budget_ms": budget_ms, "seconds": seconds, "refused": refused}
            )
        return {
            "impossible": len(asked),
            "refused": sum(each["refused"] for each in asked),
            "slowest_refusal_seconds": max(each["seconds"] for each in asked),
            "refusals": asked,
        }

    def search(
        self, models: dict[str, LatencyModelRead], cases: Sequence[Case]
    ) -> dict[Case, SearchRead]:
        """Every search to its end, one at a time: the machine that measures also trains."""
        found = {}
        for name in dict.fromkeys(case.target_name for case in cases):
            with self._devices[name].measuring(self._client):
                for case in cases:
                    if case.target_name == name:
                        found[case] = self._search(models[name], case)
        return found

    def _search(self, model: LatencyModelRead, case: Case) -> SearchRead:
        budget_ms = model.fastest_ms + case.share * (model.slowest_ms - model.fastest_ms)
        spec = self._spec(case, budget_ms)
        for time_around in range(1 + _RETRIES):
            key = f"guarantee {case} {time_around}"
            search_id = self._client.create_search(idempotency_key=key, **spec).id
            search: SearchRead = self._await(
                partial(self._ended, search_id),
                f"{case} ends",
            )
            self._tries[case] = time_around + 1
            reason = search.status_reason.code if search.status_reason else ""
            self._say(f"{case}: {search.status} {reason}")
            if reason != "device_too_noisy":
                break
        return search

    def measure_again(self, searches: dict[Case, SearchRead], rounds: int) -> None:
        """Put every file to its target's agents anew until enough is known of it."""
        ended = [case for case, search in searches.items() if search.status == "succeeded"]
        for number in range(1, MOST_ROUNDS + 1):
            wanted = [
                case
                for case in ended
                if not self._is_settled(self._again(searches[case]), searches[case], rounds)
            ]
            if not wanted:
                return
            self._say(f"round {number}: {len(wanted)} files again")
            for name in dict.fromkeys(case.target_name for case in wanted):
                of_target = [searches[case] for case in wanted if case.target_name == name]
                random.shuffle(of_target)
                task_ids = [self._ask_again(search) for search in of_target]
                with self._devices[name].measuring(self._client):
                    self._await(
                        partial(self._are_measured, task_ids),
                        f"{name} has measured {len(task_ids)} files again",
                    )

    def verdict(self, searches: dict[Case, SearchRead], rounds: int) -> dict[str, Any]:
        """Each search with what its file measured later, and the sums."""
        told = []
        for case, search in searches.items():
            entry: dict[str, Any] = {
                "target": case.target_name,
                "share_of_band": case.share,
                "seed": case.seed,
                "status": search.status,
                "reason": search.status_reason.code if search.status_reason else None,
                "tries": self._tries[case],
                "budget_ms": search.spec.latency_budget_ms,
            }
            network = search.result.network if search.result else None
            if search.status == "succeeded" and network is not None and network.measured:
                rows = self._again(search)
                sound = [row for row in rows if not row.flagged]
                entry |= {
                    "certified_ms": network.measured.median_ms,
                    "again_ms": [row.latency_ms for row in sound],
                    "flagged_again": len(rows) - len(sound),
                    "rounds_asked_for": rounds,
                }
                if len(sound) >= 2:
                    entry |= interval(sound, entry["budget_ms"])
            told.append(entry)
        known = [entry for entry in told if "again_mean_ms" in entry]
        slacks = [entry["slack"] for entry in known]
        by_target: dict[str, list[float]] = defaultdict(list)
        for entry in known:
            by_target[entry["target"]].append(entry["slack"])
        return {
            "above_budget": sum(entry["above_budget"] for entry in known),
            "median_slack": statistics.median(slacks) if slacks else None,
            "median_slack_by_target": {n: statistics.median(s) for n, s in by_target.items()},
            "mean_above_budget": sum(entry["slack"] < 0 for entry in known),
            "largest_excess": max((-slack for slack in slacks), default=None),
            "median_half_width": statistics.median(e["half_width"] for e in known)
            if known
            else None,
            "succeeded": sum(entry["status"] == "succeeded" for entry in told),
            "measured_again": len(known),
            "n_searches": len(told),
            "statuses": dict(Counter(entry["status"] for entry in told)),
            "asked_anew_for_noise": sum(entry["tries"] - 1 for entry in told),
            "searches": told,
        }

    # -- parts of it -------------------------------------------------------------------

    def _spec(self, case: Case, budget_ms: float) -> dict[str, Any]:
        return {
            "target": self._targets[case.target_name],
            "latency_budget_ms": budget_ms,
            "search_space": SPACE,
            "epochs": EPOCHS,
            "seed": case.seed,
            "random_baseline": False,
            "hand_made_baseline": False,
        }

    def _target(self, name: str) -> str | None:
        threads, web = (2 if name == "cpu-2" else 1), name == "wasm"
        for target in self._client.targets():
            is_web = target.profile["runtime"] == "onnxruntime-web"
            if is_web == web and target.profile["threads"] == threads:
                return target.id
        return None

    def _ended(self, search_id: str) -> SearchRead | None:
        search = self._client.search(search_id)
        return search if search.status in TERMINAL else None

    def _ask_again(self, search: SearchRead) -> str:
        """A new task for the file that a search exported, beside those it asked for itself."""
        assert search.result is not None
        certified = search.result.network.measured
        assert certified is not None
        with self._database.transaction() as session:
            measured = session.get_one(Measurement, certified.measurement)
            task = session.get_one(MeasurementTask, measured.task_id)
            assert measured.model_sha256 == search.result.onnx_sha256
            return add_task(
                session,
                target_id=task.target_id,
                purpose=_AGAIN,
                subject=task.subject,
                effort="certificate",
                model_sha256=task.model_sha256,
                anchor_sha256=task.anchor_sha256,
                priority=random.random(),
            ).id

    def _are_measured(self, task_ids: Sequence[str]) -> bool:
        with self._database.reading() as session:
            left = select(MeasurementTask.id).where(
                MeasurementTask.id.in_(task_ids), MeasurementTask.status.in_(("queued", "leased"))
            )
            return session.scalars(left.limit(1)).first() is None

    def _again(self, search: SearchRead) -> list[Measurement]:
        """What a search's file measured later, first to last."""
        assert search.result is not None
        with self._database.reading() as session:
            chosen = (
                select(Measurement)
                .join(MeasurementTask, MeasurementTask.id == Measurement.task_id)
                .where(
                    MeasurementTask.purpose == _AGAIN,
                    Measurement.model_sha256 == search.result.onnx_sha256,
                )
                .order_by(Measurement.created_at)
            )
            return list(session.scalars(chosen))

    def _is_settled(self, rows: list[Measurement], search: SearchRead, rounds: int) -> bool:
        sound = [row for row in rows if not row.flagged]
        if len(sound) < rounds:
            return False
        budget_ms = search.spec.latency_budget_ms
        assert budget_ms is not None
        found = interval(sound, budget_ms)
        return not found["again_low_ms"] <= budget_ms <= found["again_high_ms"]

    def _await(self, found: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + _LIMIT_SECONDS
        while True:
            try:
                if value := found():
                    return value
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise SystemExit(f"not in {_LIMIT_SECONDS:g} s: {what}")
            time.sleep(_POLL_SECONDS)


def interval(rows: Sequence[Measurement], budget_ms: float) -> dict[str, Any]:
    """Mean of the rounds' medians with its 95 % interval, held against a budget.

    Rounds of one file may lie closer together by chance than each of them is known; the wider of
    the two counts.
    """
    from scipy import stats

    medians = [row.latency_ms for row in rows]
    n, mean_ms = len(medians), statistics.fmean(medians)
    own = statistics.fmean((row.sigma_ms or 0.0) ** 2 for row in rows)
    spread = math.sqrt(max(statistics.variance(medians), own) / n)
    reach_ms = float(stats.t.ppf(0.975, n - 1)) * spread
    return {
        "again_mean_ms": mean_ms,
        "again_low_ms": mean_ms - reach_ms,
        "again_high_ms": mean_ms + reach_ms,
        "half_width": reach_ms / mean_ms,
        "slack": (budget_ms - mean_ms) / budget_ms,
        "above_budget": mean_ms - reach_ms > budget_ms,
    }


def _plot(searches: Sequence[dict[str, Any]], path: Path) -> None:
    panels: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for entry in searches:
        if "again_mean_ms" in entry:
            budget_ms = entry["budget_ms"]
            panels[entry["target"]].append(
                (
                    entry["again_low_ms"] / budget_ms,
                    entry["again_mean_ms"] / budget_ms,
                    entry["again_high_ms"] / budget_ms,
                )
            )
    plot_intervals(panels, path, "Exported files, measured again", "latency / budget", at=1.0)


if __name__ == "__main__":
    sys.exit(main())
